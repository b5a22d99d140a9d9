"""The SavedModel and the files of its version directory.

    saved_model.pb, variables/, fingerprint.pb
    assets.extra/tf_serving_warmup_requests   replayed by TensorFlow Serving before it answers
    assets.extra/reference.json               requests and the Keras model's answers, for `verify`

M is the number of classes.
"""

import contextlib
import logging

import keras
import numpy as np
import tensorflow as tf

from dynkhydra_tf.errors import UserError
from dynkhydra_tf.files import write_json
from dynkhydra_tf.serving import native
from dynkhydra_tf.serving.graph import InferenceGraph
from dynkhydra_tf.serving.reference import TOLERANCE, difference, make_reference, to_json
from dynkhydra_tf.serving.server_files import write_warmup
from dynkhydra_tf.serving.signatures import signatures

BATCH_SIZES = (1, 2, 4, 8, 16, 32, 64)


def write_saved_model(
    model,
    class_names,
    fit,
    directory,
    tau=None,
    top_classes=0,
    input_dtype="uint8",
    batch_sizes=BATCH_SIZES,
):
    """Writes a trained model as a SavedModel that TensorFlow Serving loads, and checks what was written.

    The check replays the reference requests through TensorFlow's C API, the loader of TensorFlow
    Serving, and compares with the Keras model.

    Args:
        model: `Hydra`; it stays as it is.
        class_names: M str, in the order of the labels.
        fit: how a picture becomes square, see `preprocess`.
        directory: an empty directory; `versions.new_version` gives one.
        tau: float in [0, 1), the threshold to serve with; None for the model's.
        top_classes: int in 0..M, k of the top-k outputs; 0 for none.
        input_dtype: "uint8" or "float32", of the input `images`.
        batch_sizes: ints, the batch sizes to warm up.

    Returns:
        float, the largest difference to the Keras model in any output.

    Raises:
        ValueError: names that are not M, or top_classes or tau out of range.
        UserError: it could not be written, or does not answer as the Keras model does.
    """
    tau = model.tau if tau is None else tau
    if len(class_names) != model.num_classes:
        raise ValueError(f"class_names must be {model.num_classes}. Received: {len(class_names)}")
    if not 0 <= top_classes <= model.num_classes:
        raise ValueError(
            f"top_classes must be in 0..{model.num_classes}. Received: top_classes={top_classes}"
        )
    if not 0 <= tau < 1:
        raise ValueError(f"tau must be in [0, 1). Received: tau={tau}")
    endpoints = signatures(
        InferenceGraph(model), class_names, fit, tau, top_classes, tf.as_dtype(input_dtype)
    )
    archive = keras.export.ExportArchive()
    for name, endpoint in endpoints.items():
        endpoint.get_concrete_function()
        archive.add_endpoint(name, endpoint)  # no track(): it stores the weights twice
    try:
        with _quiet():
            archive.write_out(directory, verbose=False)
    except tf.errors.OpError as error:
        raise UserError(f"The SavedModel could not be written: {error.message.splitlines()[0]}") from error
    size = model.backbone.input_shape[0]
    write_warmup(directory, size, tf.as_dtype(input_dtype), batch_sizes)
    in_float32 = model.for_inference()  # as the graph is, whatever the model was trained in
    reference = make_reference(in_float32, class_names, fit, tau, top_classes, np.dtype(input_dtype))
    write_json(directory / "assets.extra" / "reference.json", to_json(reference))
    try:
        with native.SavedModel(directory) as served:
            answers = [served.run(request["inputs"], request["signature"]) for request in reference]
    except native.ModelError as error:
        raise UserError(f"The exported model does not run: {error}") from error
    largest = max(
        difference(request["outputs"], answer) for request, answer in zip(reference, answers, strict=True)
    )
    if largest > TOLERANCE:
        raise UserError(
            f"The exported model differs from the Keras model by {largest:g}, more than {TOLERANCE:g}; "
            "nothing was exported"
        )
    return largest


@contextlib.contextmanager
def _quiet():
    """Without TensorFlow's lines about assets that were written."""
    logger = logging.getLogger("tensorflow")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
