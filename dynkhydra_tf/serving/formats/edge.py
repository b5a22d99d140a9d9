"""Edge formats: a trained Hydra for LiteRT (model.tflite) and for ONNX Runtime (model.onnx).

Both take `images` (B,S,S,3) uint8, 0..255, any B > 0, and give

    probabilities (B,M) float32, class_id (B) int32, gate (B,N) float32, active_branches (B) int32

by these names; in LiteRT they are the signature "serving_default". Each branch lies in an If of its own,
with the gather of its images inside, and a branch that no image of the batch selects is not run.
Axis letters: B batch, S side of an image, N branches (nb), M classes.
"""

import importlib
import pathlib
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from dynkhydra_tf.errors import UserError
from dynkhydra_tf.files import making, replacing
from dynkhydra_tf.gating import select_branches
from dynkhydra_tf.serving.branches import constant_weights
from dynkhydra_tf.serving.graph import InferenceGraph

FILES = {"litert": "model.tflite", "onnx": "model.onnx"}
QUANTIZATIONS = ("float16", "dynamic")

_RUNTIMES = {"litert": "LiteRT", "onnx": "ONNX Runtime"}
_OPSET = 16  # the first in which ScatterND can add, and so runs in the oldest runtimes
_FLOAT32_LIMIT = 1e-4  # rounding stays below a tenth of it; a wrong graph is far above
_FITS = {
    "stretch": "resize",
    "pad": "pad with zeros to a square, resize",
    "crop": "crop to the central square, resize",
}


class Check(NamedTuple):
    """How a converted model agrees with Keras on some images.

    Attributes:
        max_error: float, the largest difference of a probability, of the images below.
        images: int, the images for which both selected the same branches.
        rerouted: int, the other ones: rounding moved a gate probability across tau or another one.
    """

    max_error: float
    images: int
    rerouted: int


# === Conversion ===


def to_litert(model, tau, quantize=None):
    """Converts a `Hydra` to LiteRT, with its builtin ops alone.

    Args:
        model: `Hydra`.
        tau: float in [0, 1), the threshold; a constant in the file.
        quantize: None for float32; "float16" for weights of 2 bytes; "dynamic" for weights of 1 byte (those
            of 1024 values or more), multiplied as integers. Inputs and outputs are the same for all three.

    Returns:
        bytes, the flatbuffer.

    Raises:
        UserError: an unknown `quantize`.
    """
    if quantize not in (None, *QUANTIZATIONS):
        allowed = ", ".join(QUANTIZATIONS)
        raise UserError(f"quantize must be one of {allowed}. Received: quantize={quantize!r}")
    function = _function(model, tau)  # named: the concrete function alone does not keep the model alive
    # Without the second argument, a place for variables (there are none), the file has no signature.
    converter = tf.lite.TFLiteConverter.from_concrete_functions(
        [function.get_concrete_function()], tf.Module()
    )
    if quantize:
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
    if quantize == "float16":
        converter.target_spec.supported_types = [tf.float16]
    return converter.convert()


def to_onnx(model, tau):
    """Converts a `Hydra` to ONNX, in float32.

    Args:
        model: `Hydra`.
        tau: float in [0, 1), the threshold; a constant in the file.

    Returns:
        bytes, the model.

    Raises:
        UserError: tf2onnx is not installed.
    """
    check_extra("onnx")
    import onnx
    import tf2onnx

    function = _function(model, tau)
    converted, _ = tf2onnx.convert.from_function(
        function,
        input_signature=function.input_signature,
        opset=_OPSET,
    )
    for value in (*converted.graph.input, *converted.graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = "batch"
    # tf2onnx logs what it cannot convert and leaves it in.
    onnx.checker.check_model(converted, full_check=True)
    return converted.SerializeToString()


def _function(model, tau):
    """The function (B,S,S,3) uint8 -> outputs by name that is converted, without a variable in it."""
    graph = InferenceGraph(model, unrolled=True)
    size = graph.model.backbone.input_shape[0]

    # No `preprocess`: images of this size come out of it as they are, for each `fit`, and LiteRT has not
    # all of its ops.
    @tf.function(
        input_signature=[tf.TensorSpec((None, size, size, 3), tf.uint8, name="images")], autograph=False
    )
    def classify(images):
        with constant_weights(graph.model.stem, graph.model.gater, graph.model.combiner):
            gating = graph.gating(images, tau)
            probabilities = graph.classify(gating)
        return {
            "probabilities": probabilities,
            "class_id": tf.argmax(probabilities, axis=1, output_type=tf.int32),
            "gate": gating.gate,
            "active_branches": tf.reduce_sum(tf.cast(gating.selected, tf.int32), axis=1),
        }

    return classify


# === Running what was converted ===


def load(content, format, threads=None):
    """Loads a converted model into its runtime.

    Args:
        content: bytes, from `to_litert` or `to_onnx`.
        format: "litert" or "onnx".
        threads: int, for the runtime to use; None for its own choice.

    Returns:
        A function from images (B,S,S,3) uint8 to a dict of the outputs, numpy arrays by name.

    Raises:
        UserError: the runtime is not installed.
    """
    if format == "litert":
        runtime = _import("ai_edge_litert.interpreter", "litert")
        interpreter = runtime.Interpreter(model_content=content, num_threads=threads)
        signature = interpreter.get_signature_runner("serving_default")
        return lambda images: signature(images=images)
    onnxruntime = _import("onnxruntime", "onnx")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or 0
    session = onnxruntime.InferenceSession(content, options)
    names = [output.name for output in session.get_outputs()]
    return lambda images: dict(zip(names, session.run(names, {"images": images}), strict=True))


def check(content, format, model, tau, num_images=16):
    """Runs a converted model and the Keras model on random images and compares the probabilities.

    Args:
        content: bytes, from `to_litert` or `to_onnx`.
        format: "litert" or "onnx".
        model: the `Hydra` that was converted.
        tau: the tau that it was converted with.
        num_images: int, how many images.

    Returns:
        `Check`.

    Raises:
        UserError: the runtime is not installed.
    """
    run = load(content, format)
    rng = np.random.default_rng(0)
    # A colour each and noise on it, so that the gate does not see the same in all of them.
    colour, contrast = rng.uniform(0, 256, (num_images, 1, 1, 3)), rng.uniform(0, 1, (num_images, 1, 1, 1))
    noise = rng.uniform(0, 256, (num_images, *model.backbone.input_shape))
    images = (colour * (1 - contrast) + noise * contrast).astype(np.uint8)
    reference = model.for_inference()
    reference.tau = tau
    outputs, expected = run(images), reference.predict(images, verbose=0)
    selected = select_branches(tf.constant(outputs["gate"]), model.top_k, tau)
    same = np.all(selected == expected["selected"], axis=1)
    errors = np.abs(outputs["probabilities"] - tf.nn.softmax(expected["logits"]))[same]
    return Check(float(errors.max(initial=0)), int(same.sum()), int((~same).sum()))


# === Export ===


def check_extra(format):
    """Tells whether the packages for a format are there, before any work is done for it.

    Args:
        format: "litert", which TensorFlow converts to by itself, or "onnx".

    Raises:
        UserError: a package is not installed.
    """
    if format == "onnx":
        for package in ("onnx", "tf2onnx"):
            _import(package, "onnx")


def input_note(format, image_size, fit):
    """Returns the line that tells the user what the file takes: neither format can decode a picture.

    Args:
        format: "litert" or "onnx".
        image_size: int, S.
        fit: how a picture becomes square, see `preprocess`.
    """
    size = f"{image_size}x{image_size}"
    return (
        f"{format} takes images (B,{image_size},{image_size},3) uint8, RGB, not JPEG or PNG bytes: decode on "
        f"the device, turn as EXIF says, {_FITS[fit]} to {size} (bilinear, antialiased)"
    )


def export_edge(model, class_names, fit, tau, directory, format, quantize=None):
    """Converts a model, checks it in its runtime, writes it and its labels, and prints what came of it.

    Writes `model.tflite` or `model.onnx`, and `labels.txt` with a class name a line. Where it raises,
    the directory is as it was.

    Args:
        model: `Hydra`.
        class_names: M str.
        fit: how a picture becomes square, see `preprocess`; the device has to do it.
        tau: float in [0, 1), the threshold.
        directory: where to write; made if it is missing.
        format: "litert" or "onnx".
        quantize: see `to_litert`; None for "onnx".

    Returns:
        pathlib.Path of the model.

    Raises:
        UserError: an unknown format or quantisation, a package that is not installed, a directory that
            cannot be written to, or a converted model that, in float32, computes something else than Keras.
        ValueError: not as many names as classes.
    """
    if format not in FILES:
        raise UserError(f"format must be one of {', '.join(FILES)}. Received: format={format!r}")
    if format == "onnx" and quantize:
        raise UserError(f"Only litert can be quantised here. Received: format='onnx', quantize={quantize!r}")
    if len(class_names) != model.num_classes:
        raise ValueError(f"There must be {model.num_classes} class names. Received: {len(class_names)}")

    # === Convert and check ===
    content = to_litert(model, tau, quantize) if format == "litert" else to_onnx(model, tau)
    try:
        checked = check(content, format, model, tau)
    except UserError as missing:
        verdict = f"not checked: {missing}"
    else:
        verdict = _verdict(checked, _RUNTIMES[format])
        # Not "error > limit": that lets NaN pass.
        if not quantize and not (checked.max_error <= _FLOAT32_LIMIT and checked.images):
            raise UserError(f"The conversion to {format} changed the model. {verdict}")

    # === Write ===
    path = pathlib.Path(directory) / FILES[format]
    labels = "".join(f"{name}\n" for name in class_names)
    try:
        with (
            making(directory),
            replacing(path) as model_file,
            replacing(path.with_name("labels.txt")) as labels_file,
        ):
            model_file.write_bytes(content)
            labels_file.write_text(labels, encoding="utf-8")
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"Cannot write to {directory}: {reason}; nothing was exported") from error
    print(f"{path}: {len(content) / 1e6:.2f} MB, {verdict}")
    print(input_note(format, model.backbone.input_shape[0], fit))
    return path


def _verdict(checked, runtime):
    images = f"{checked.images} random images in {runtime}"
    if checked.rerouted:
        images += f"; {checked.rerouted} more took other branches"
    return f"probabilities within {checked.max_error:.1e} of Keras ({images})"


def _import(module, extra):
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.split(".")[0].replace("_", "-")
        raise UserError(f"{package} cannot be imported ({error}): pip install -e '.[{extra}]'") from error
