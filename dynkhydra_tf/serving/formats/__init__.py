"""Export formats. To add one, write a module with these names and enter it in `FORMATS`.

    FILE                            name of the file that holds the model
    OPTIONS                         what it takes of the fields of `ServedModel` from top_classes on
    check_installed()               raises UserError where a package is missing, before any work
    convert(served, directory)      converts a `ServedModel`, compares the result with Keras, writes it into
                                    the model's directory and returns what to tell the user; where it raises
                                    (UserError: bad input), the directory is as it was
    load(directory, threads=None)   what was written, as a function from images (B,S,S,3) uint8 to a dict of
                                    numpy arrays by output name; raises UserError

B images of S x S pixels.
"""

from dynkhydra_tf.serving.formats import litert, onnx, saved_model

FORMATS = {"saved_model": saved_model, "litert": litert, "onnx": onnx}
