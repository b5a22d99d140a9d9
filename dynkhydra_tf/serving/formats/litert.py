"""LiteRT: model.tflite, for phones and microcomputers. Inputs and outputs: see `single_file`."""

import os
from collections.abc import Callable

import tensorflow as tf

from dynkhydra_tf.hydra import Hydra
from dynkhydra_tf.plain import Plain
from dynkhydra_tf.quiet import without_noise
from dynkhydra_tf.serving.formats import single_file
from dynkhydra_tf.serving.served_model import ServedModel

FILE = "model.tflite"
OPTIONS = ("quantize",)


def check_installed() -> None:
    """Needs nothing more: TensorFlow converts to LiteRT by itself."""


def convert(served: ServedModel, directory: str | os.PathLike) -> str:
    """Writes model.tflite, see `formats`; in float32, it must compute what Keras does."""
    served.check_options("litert", OPTIONS)
    content = to_litert(served.model, served.tau, served.quantize)
    verdict = single_file.verify(served, "LiteRT", lambda: run(content), exact=not served.quantize)
    return single_file.write(served, directory, FILE, content, "LiteRT", verdict)


def load(directory: str | os.PathLike, threads: int | None = None) -> Callable:
    """Loads what `convert` wrote, see `formats`."""
    return run(single_file.read(directory, FILE), threads)


def to_litert(model: Hydra | Plain, tau: float | None, quantize: str | None = None) -> bytes:
    """Converts a model to LiteRT, with its builtin ops alone.

    Args:
        model: `Hydra` or `Plain`.
        tau: float in [0, 1), the threshold, a constant in the file; None for a plain network.
        quantize: None for float32; "float16" for weights of 2 bytes; "dynamic" for weights of 1 byte (those
            of 1024 values or more), multiplied as integers. Inputs and outputs are the same for all three.

    Returns:
        The flatbuffer; its signature is "serving_default".
    """
    # Named: the concrete function alone does not keep the model alive.
    function = single_file.without_variables(model, tau)
    # Without the second argument, a place for variables (there are none), the file has no signature.
    converter = tf.lite.TFLiteConverter.from_concrete_functions(
        [function.get_concrete_function()], tf.Module()
    )
    if quantize:
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
    if quantize == "float16":
        converter.target_spec.supported_types = [tf.float16]
    return converter.convert()


def run(content: bytes, threads: int | None = None) -> Callable:
    """Loads a flatbuffer into LiteRT; returns a function as `load` does.

    Raises:
        UserError: LiteRT is not installed.
    """
    runtime = single_file.installed("ai_edge_litert.interpreter", "litert")
    with without_noise():
        interpreter = runtime.Interpreter(model_content=content, num_threads=threads)
        interpreter.allocate_tensors()
    signature = interpreter.get_signature_runner("serving_default")
    return lambda images: signature(images=images)
