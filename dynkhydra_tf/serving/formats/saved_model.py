"""The SavedModel, for TensorFlow Serving: the next version in the model's directory, DIR/N.

    saved_model.pb, variables/, fingerprint.pb
    model_card.md
    assets.extra/tf_serving_warmup_requests   replayed by TensorFlow Serving before it answers
    assets.extra/reference.json               requests and the Keras model's answers, for `verify`
    assets.extra/signatures.json              inputs and outputs, for who has no protobuf: see `native`

Beside the versions lie the server's configuration files, see `server_files`.
"""

import os
import pathlib
from collections.abc import Callable, Mapping

import keras
import numpy as np
import tensorflow as tf
from tensorflow.core.protobuf import saved_model_pb2

from dynkhydra_tf.errors import UserError
from dynkhydra_tf.files import write_json
from dynkhydra_tf.quiet import errors_alone
from dynkhydra_tf.serving import native, versions
from dynkhydra_tf.serving.graph import InferenceGraph
from dynkhydra_tf.serving.model_card import taus_text
from dynkhydra_tf.serving.reference import TOLERANCE, difference, make_reference, to_json
from dynkhydra_tf.serving.served_model import ServedModel
from dynkhydra_tf.serving.server_files import write_server_files, write_warmup
from dynkhydra_tf.serving.signatures import signatures
from dynkhydra_tf.serving.tau_times import load_taus, measure_taus

FILE = versions.MODEL
REFERENCE = "reference.json"
OPTIONS = ("top_classes", "input_dtype", "batch_sizes", "max_batch", "max_pixels")


def check_installed() -> None:
    """Needs nothing more: all of it comes with this package."""


def convert(served: ServedModel, directory: str | os.PathLike) -> str:
    """Writes the next version and what lies beside it, see `formats`."""
    served.check_options("saved_model", OPTIONS)
    directory = pathlib.Path(directory)
    with versions.new_version(directory) as version:
        largest = write_version(served, version)
        card = served.card
        if served.images is not None:
            card += taus_text(load_taus(version / "assets.extra" / REFERENCE), served.tau)
        (version / "model_card.md").write_text(card, encoding="utf-8")
        limits = served.sizes, served.largest_batch
        write_server_files(
            directory, served.name, *limits, (*versions.whole(directory), versions.following(directory))
        )
    return (
        f"Written: {directory / str(versions.latest(directory))}; its answers through TensorFlow's C API are "
        f"within {largest:.0e} of Keras's.\n"
        f"Beside it: {', '.join(sorted(path.name for path in directory.iterdir() if path.is_file()))}; "
        "in it: model_card.md."
    )


def load(directory: str | os.PathLike, threads: int | None = None) -> Callable:
    """Loads the latest version in TensorFlow's C API, see `formats`."""
    number = versions.latest(directory)
    if number is None:
        raise UserError(f"{directory} cannot be loaded: it holds no version of a model")
    try:
        model = open_version(pathlib.Path(directory) / str(number), threads or 0)
    except native.ModelError as error:
        raise UserError(f"{directory} cannot be loaded: {error}") from error
    return lambda images: model.run({"images": images})


def open_version(path: str | os.PathLike, threads: int = 0) -> native.SavedModel:
    """Loads a version in TensorFlow's C API, one of version 0.1 of this package too, without signatures.json.

    Raises:
        native.ModelError: it cannot be loaded.
    """
    path = pathlib.Path(path)
    own = (path / native.SIGNATURES).exists() or not (path / FILE).exists()
    return native.SavedModel(path, threads, signatures=None if own else read_signatures(path))


def write_version(served: ServedModel, directory: str | os.PathLike) -> float:
    """Writes the files of a version, and checks what was written.

    The check replays the reference requests through TensorFlow's C API, the loader of TensorFlow
    Serving, and compares with the Keras model.

    Args:
        served: what to write.
        directory: an empty directory; `versions.new_version` gives one.

    Returns:
        The largest difference to the Keras model in any output.

    Raises:
        UserError: it could not be written, or does not answer as the Keras model does.
    """
    directory, dtype = pathlib.Path(directory), tf.as_dtype(served.input_dtype)
    settings = served.class_names, served.fit, served.tau, served.top_classes
    limits = served.largest_batch, served.most_pixels
    endpoints = signatures(InferenceGraph(served.model), *settings, dtype, *limits)
    write_endpoints(endpoints, directory)
    write_warmup(directory, served.image_size, dtype, served.sizes, list(endpoints))
    in_float32 = served.model.for_inference()  # as the graph is, whatever the model was trained in
    reference = make_reference(in_float32, *settings, np.dtype(served.input_dtype))
    taus = []
    try:
        with native.SavedModel(directory) as model:
            answers = [model.run(request["inputs"], request["signature"]) for request in reference]
            if served.images is not None:
                images = served.images.astype(served.input_dtype)
                taus = measure_taus(model, images, served.tau_rows, served.tau)
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
    write_json(directory / "assets.extra" / REFERENCE, to_json(reference, taus, served.validation))
    return largest


def write_endpoints(
    endpoints: Mapping[str, tf.types.experimental.PolymorphicFunction], directory: str | os.PathLike
) -> None:
    """Writes `tf.function`s of one input signature each as a SavedModel, and its signatures.json.

    Raises:
        UserError: it could not be written.
    """
    archive = keras.export.ExportArchive()
    for name, endpoint in endpoints.items():
        endpoint.get_concrete_function()
        archive.add_endpoint(name, endpoint)  # no track(): it stores the weights twice
    try:
        with errors_alone("tensorflow"):  # not its lines about assets that were written
            archive.write_out(directory, verbose=False)
    except tf.errors.OpError as error:
        raise UserError(f"The SavedModel could not be written: {error.message.splitlines()[0]}") from error
    write_json(pathlib.Path(directory) / native.SIGNATURES, read_signatures(directory))


def read_signatures(directory: str | os.PathLike) -> dict:
    """Returns what signatures.json holds, from a SavedModel itself.

    Returns:
        {signature: {"inputs": {name: {"tensor", "dtype", "shape"}}, "outputs": the same}}: the tensor's name
        in the graph, numpy's name of its dtype or "bytes", its sizes (-1: any) or None for any rank.
    """
    content = (pathlib.Path(directory) / FILE).read_bytes()
    (graph,) = saved_model_pb2.SavedModel.FromString(content).meta_graphs

    def specs(named):
        return {name: spec(info) for name, info in sorted(named.items())}

    def spec(info):
        shape, dtype = tf.TensorShape(info.tensor_shape), tf.as_dtype(info.dtype)
        sizes = None if shape.rank is None else [-1 if size is None else size for size in shape]
        return {"tensor": info.name, "dtype": "bytes" if dtype == tf.string else dtype.name, "shape": sizes}

    return {
        name: {"inputs": specs(signature.inputs), "outputs": specs(signature.outputs)}
        for name, signature in sorted(graph.signature_def.items())
        if not name.startswith("__")
    }
