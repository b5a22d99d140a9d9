"""ONNX: model.onnx, for ONNX Runtime. Inputs and outputs: see `single_file`."""

import os
from collections.abc import Callable

from dynkhydra_tf.hydra import Hydra
from dynkhydra_tf.plain import Plain
from dynkhydra_tf.serving.formats import onnx_int8, single_file
from dynkhydra_tf.serving.served_model import ServedModel

FILE = "model.onnx"
OPTIONS = ("quantize",)

_OPSET = 16  # the first in which ScatterND can add, and so runs in the oldest runtimes


def check_installed() -> None:
    """Raises UserError where a package for the conversion is missing."""
    for package in ("onnx", "tf2onnx"):
        single_file.installed(package, "onnx")


def convert(served: ServedModel, directory: str | os.PathLike) -> str:
    """Writes model.onnx, see `formats`; int8 must be as right as float32, see `single_file`."""
    served.check_options("onnx", OPTIONS)
    content = to_onnx(served.model, served.tau)
    verdict = single_file.verify(served, "ONNX Runtime", lambda: run(content))
    if served.quantize:
        exact, content = content, onnx_int8.quantized(content, served.samples.calibration)
        verdict = single_file.verify_accuracy(served.samples, run(exact), run(content))
    return single_file.write(served, directory, FILE, content, "ONNX Runtime", verdict)


def load(directory: str | os.PathLike, threads: int | None = None) -> Callable:
    """Loads what `convert` wrote, see `formats`."""
    return run(single_file.read(directory, FILE), threads)


def to_onnx(model: Hydra | Plain, tau: float | None) -> bytes:
    """Converts a model to ONNX, in float32.

    Args:
        model: `Hydra` or `Plain`.
        tau: float in [0, 1), the threshold, a constant in the file; None for a plain network.

    Raises:
        UserError: a package is not installed.
    """
    check_installed()
    import onnx
    import tf2onnx

    function = single_file.without_variables(model, tau)
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


def run(content: bytes, threads: int | None = None) -> Callable:
    """Loads a model into ONNX Runtime; returns a function as `load` does.

    Raises:
        UserError: ONNX Runtime is not installed.
    """
    runtime = single_file.installed("onnxruntime", "onnx")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = threads or 0
    session = runtime.InferenceSession(content, options)
    names = [output.name for output in session.get_outputs()]
    return lambda images: dict(zip(names, session.run(names, {"images": images}), strict=True))
