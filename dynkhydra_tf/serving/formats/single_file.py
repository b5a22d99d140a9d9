"""What the formats for devices, LiteRT and ONNX, share: one file, for images only, without a variable in it.

They take `images` (B,S,S,3) uint8, 0..255, any B > 0, and give, by these names,

    probabilities (B,M) float32, class_id (B) int32, and of a Hydra
    gate (B,N) float32, active_branches (B) int32

A branch runs on the images that select it, and one that no image of the batch selects is not run: in LiteRT
each lies in an If of its own, in ONNX a loop takes those that are needed (`onnx_graph`). Where images can
exit, another If holds them all, with the combiner, and is not run where all of them do.
Axis letters: B batch, S side of an image, N branches (nb), M classes.
"""

import contextlib
import importlib
import os
import pathlib
import types
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from dynkhydra_tf.errors import UserError
from dynkhydra_tf.files import making, replacing
from dynkhydra_tf.gating import select_branches
from dynkhydra_tf.hydra import Hydra
from dynkhydra_tf.plain import Plain
from dynkhydra_tf.serving.graph import InferenceGraph
from dynkhydra_tf.serving.samples import Samples
from dynkhydra_tf.serving.served_model import ServedModel

_FLOAT32_LIMIT = 1e-4  # rounding stays below a tenth of it; a wrong graph is far above
_MOST_LOST = 1.0  # percentage points of top-1
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


def without_variables(model: Hydra | Plain, tau: float | None) -> tf.types.experimental.PolymorphicFunction:
    """Returns the `tf.function` from images to outputs that is converted; its weights are constants."""
    graph = InferenceGraph(model, unrolled=True)
    shape = graph.model.backbone.input_shape

    # No `preprocess`: images of this size come out of it as they are, for each `fit`, and LiteRT has not
    # all of its ops.
    @tf.function(input_signature=[tf.TensorSpec((None, *shape), tf.uint8, name="images")], autograph=False)
    def classify(images):
        return graph.answer(images, graph.gating(images, tau))

    return classify


def check(run: Callable, model: Hydra | Plain, tau: float | None, num_images: int = 16) -> Check:
    """Runs a converted model and the Keras model on random images and compares the probabilities.

    Args:
        run: the converted model, a function from images to outputs as `formats` describes it.
        model: what was converted.
        tau: what it was converted with.
        num_images: how many images.
    """
    rng = np.random.default_rng(0)
    # A colour each and noise on it, so that the gate does not see the same in all of them.
    colour, contrast = rng.uniform(0, 256, (num_images, 1, 1, 3)), rng.uniform(0, 1, (num_images, 1, 1, 1))
    noise = rng.uniform(0, 256, (num_images, *model.backbone.input_shape))
    images = (colour * (1 - contrast) + noise * contrast).astype(np.uint8)
    reference, outputs = model.for_inference(), run(images)
    same = np.ones(num_images, bool)
    if tau is not None:
        reference.tau = tau
    expected = reference.predict(images, verbose=0)
    if tau is not None:
        selected = select_branches(tf.constant(outputs["gate"]), model.top_k, tau)
        runs = outputs["active_branches"][:, np.newaxis] > 0  # where a trunk answers alone, none does
        same = np.all((selected & runs) == expected["selected"], axis=1)
    errors = np.abs(outputs["probabilities"] - tf.nn.softmax(expected["logits"]))[same]
    return Check(float(errors.max(initial=0)), int(same.sum()), int((~same).sum()))


def verify(served: ServedModel, runtime: str, load: Callable, exact: bool = True) -> str:
    """Checks a converted model in its runtime.

    Args:
        served: what was converted.
        runtime: the runtime's name, for the user.
        load: loads it into the runtime, and returns what `check` runs; raises UserError where the runtime is
            not installed.
        exact: whether the model must compute what Keras does, to float32's rounding.

    Returns:
        What came of it, in words.

    Raises:
        UserError: an `exact` model that computes something else.
    """
    try:
        checked = check(load(), served.model, served.tau)
    except UserError as missing:
        return f"not checked: {missing}"
    verdict = _verdict(checked, runtime)
    # Not "error > limit": that lets NaN pass.
    if exact and not (checked.max_error <= _FLOAT32_LIMIT and checked.images):
        raise UserError(f"The conversion to {runtime} changed the model. {verdict}")
    return verdict


def verify_accuracy(samples: Samples, exact: Callable, quantized: Callable) -> str:
    """Checks that a quantised model is as often right as the exact one, on images that neither has seen.

    Args:
        samples: the images.
        exact, quantized: the models, functions from images to outputs.

    Returns:
        What came of it, in words.

    Raises:
        UserError: it is right less often, by more than a percentage point.
    """
    before, after = (_top1(run, samples) for run in (exact, quantized))
    found = (
        f"top-1 {after:.2f} % of {len(samples.images)} {samples.split}, in float32 {before:.2f} %, at most "
        f"{_MOST_LOST:g} point less is allowed"
    )
    if before - after > _MOST_LOST:
        raise UserError(f"The quantised model loses too much: {found}. Export it without --quantize=int8")
    return found


def _top1(run, samples, batch_size=50):
    """How often a model is right, in percent."""
    starts = range(0, len(samples.images), batch_size)
    given = [run(samples.images[start : start + batch_size])["class_id"] for start in starts]
    return 100 * float(np.mean(np.concatenate(given) == samples.labels))


def write(
    served: ServedModel, directory: str | os.PathLike, file: str, content: bytes, runtime: str, verdict: str
) -> str:
    """Writes a converted model, labels.txt (a class name a line) and its card.

    Args:
        served: what was converted.
        directory: where to write; made if it is missing.
        file: the model's file name.
        content: the converted model.
        runtime: the runtime's name, for the user.
        verdict: what its check found.

    Returns:
        What came of it, and what the file takes: it cannot decode a picture.

    Raises:
        UserError: a directory that cannot be written to; it is then as it was.
    """
    directory = pathlib.Path(directory)
    labels = "".join(f"{name}\n" for name in served.class_names)
    files = {file: content, "labels.txt": labels.encode(), "model_card.md": served.card.encode()}
    try:
        with making(directory), contextlib.ExitStack() as writing:
            for name, value in files.items():
                writing.enter_context(replacing(directory / name)).write_bytes(value)
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"Cannot write to {directory}: {reason}; nothing was exported") from error
    note = input_note(runtime, served.image_size, served.fit)
    return f"{directory / file}: {len(content) / 1e6:.2f} MB, {verdict}\n{note}"


def read(directory: str | os.PathLike, file: str) -> bytes:
    """Returns what `write` wrote as the model's file.

    Raises:
        UserError: it cannot be read.
    """
    path = pathlib.Path(directory) / file
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error


def _verdict(checked, runtime):
    images = f"{checked.images} random images in {runtime}"
    if checked.rerouted:
        images += f"; {checked.rerouted} more took other branches"
    return f"probabilities within {checked.max_error:.1e} of Keras ({images})"


def input_note(runtime: str, image_size: int, fit: str) -> str:
    """Returns the line that tells the user what a file takes; `fit` as in `preprocess`."""
    size = image_size
    return (
        f"{runtime} takes images (B,{size},{size},3) uint8, RGB, not JPEG or PNG bytes: decode on the "
        f"device, turn as EXIF says, {_FITS[fit]} to {size}x{size} (bilinear, antialiased)"
    )


def installed(module: str, extra: str) -> types.ModuleType:
    """Imports a module that the package's extra brings.

    Raises:
        UserError: it cannot be imported.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.split(".")[0].replace("_", "-")
        raise UserError(f"{package} cannot be imported ({error}): pip install -e '.[{extra}]'") from error
