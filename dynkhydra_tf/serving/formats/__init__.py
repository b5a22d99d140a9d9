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

import importlib.util
import sys
from types import ModuleType


def _when_used(name: str) -> ModuleType:
    """A module here that is executed when something of it is asked for: all convert by TensorFlow."""
    full_name = f"{__name__}.{name}"
    spec = importlib.util.find_spec(full_name)
    spec.loader = importlib.util.LazyLoader(spec.loader)
    module = sys.modules[full_name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


FORMATS = {name: _when_used(name) for name in ("saved_model", "litert", "onnx")}
