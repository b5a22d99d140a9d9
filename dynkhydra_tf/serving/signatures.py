"""The signatures of a served model: what a request may hold, how it is checked, what comes back.

| signature | inputs | outputs |
|---|---|---|
| serving_default | images (B,S,S,3) uint8 or float32, 0..255 | answer |
| image_bytes | image_bytes (B) strings: JPEG, PNG, GIF, BMP or WebP of any size | answer, error (B) string |
| with_tau, of a Hydra | images, tau (B) float32 in [0, 1) | answer |
| image_bytes_with_tau, of a Hydra | image_bytes, tau | answer, error |
| with_exit_confidence, of one with an exit | images, tau, exit_confidence (B) float32 in (0, 1] | answer |
| image_bytes_with_exit_confidence, likewise | image_bytes, tau, exit_confidence | answer, error |
| gate, of a Hydra | images | gate, selected (B,N) bool, active_branches |

answer: probabilities (B,M) float32, class_id (B) int32, label (B) string; of a Hydra also gate (B,N) float32
and active_branches (B) int32, 0 where it exited; with top classes k also top_class_ids
(B,k) int32, top_labels (B,k) string and top_probabilities (B,k) float32, best first. Every output has the
batch axis, which TensorFlow Serving's batching needs. Axis letters: B batch, S side of an image, N branches
(nb), M classes.

error is empty where all is well. A file that cannot be read does not fail its batch, in which a server may
have put other people's requests: error says what is wrong with it, the class ids of its row are -1, and all
else in it is zero, empty or false. What is wrong with a request as a whole (its shapes, its types, more than
max_batch images, a float image, tau or confidence out of range) fails it, with a message that says so.
"""

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import tensorflow as tf

from dynkhydra_tf.data.headers import MAX_PIXELS
from dynkhydra_tf.data.preprocessing import preprocess
from dynkhydra_tf.serving.graph import InferenceGraph
from dynkhydra_tf.serving.pictures import prepare_pictures


def signatures(
    graph: InferenceGraph,
    class_names: Sequence[str],
    fit: str,
    tau: float | None,
    top_classes: int = 0,
    input_dtype: tf.DType = tf.uint8,
    max_batch: int = tf.int32.max,
    max_pixels: int = MAX_PIXELS,
) -> dict[str, tf.types.experimental.PolymorphicFunction]:
    """Makes the signatures of a model.

    Args:
        graph: `InferenceGraph`; its model's exit confidence is that where the request gives none.
        class_names: M str.
        fit: how a picture becomes square, see `preprocess`.
        tau: float in [0, 1), the threshold where the request gives none; None for a plain network.
        top_classes: int, k of the top-k outputs; 0 for none.
        input_dtype: of `images`: tf.uint8 or tf.float32.
        max_batch: the most images of a request.
        max_pixels: of the largest picture of `image_bytes`.

    Returns:
        dict of `tf.function` with input signature, by name.
    """
    size = graph.model.backbone.input_shape[0]
    labels = tf.constant(list(class_names))
    images = tf.TensorSpec((None, size, size, 3), input_dtype, name="images")
    thresholds = tf.TensorSpec((None,), tf.float32, name="tau")
    confidences = tf.TensorSpec((None,), tf.float32, name="exit_confidence")
    pictures = tf.TensorSpec((None,), tf.string, name="image_bytes")
    own = [value for value, has in ((tau, graph.gated), (_own_confidence(graph), graph.can_exit)) if has]

    # What the signatures share is traced once: the file holds each of these functions once.
    checked = [tf.TensorSpec((None, size, size, 3), tf.uint8)]
    if graph.gated:
        checked += [tf.TensorSpec((None,), tf.float32)] * len(own)
        gating_of = concrete(graph.gating, *checked)

    def classify(images, *knobs):
        outputs = graph.answer(images, gating_of(images, *knobs) if graph.gated else None)
        outputs["label"] = tf.gather(labels, outputs["class_id"])
        if top_classes:
            best = tf.math.top_k(outputs["probabilities"], top_classes)
            outputs["top_class_ids"] = best.indices
            outputs["top_labels"] = tf.gather(labels, best.indices)
            outputs["top_probabilities"] = best.values
        return outputs

    answer = concrete(classify, *checked)
    decoded = concrete(
        lambda files: prepare_pictures(_checked_files(files, max_batch), size, fit, max_pixels), pictures
    )

    def with_own(images, *given):
        """The images and knobs of a request; for those that it does not give, the model's own."""
        return images, *given, *(tf.constant([value], tf.float32) for value in own[len(given) :])

    def received(images, *given):
        images, *given = _checked(images, given, size, max_batch)
        return with_own(preprocess(images, size, fit), *given)

    knobs = [thresholds, confidences][: len(own)]
    received_with = [concrete(received, images, *knobs[:count]) for count in range(len(own) + 1)]

    def serving_default(images):
        return answer(*received_with[0](images))

    def told(outputs, error):
        return {**{name: _blank(name, value, error) for name, value in outputs.items()}, "error": error}

    def image_bytes(image_bytes):
        images, error = decoded(image_bytes)
        return told(answer(*with_own(images)), error)

    def image_bytes_with_tau(image_bytes, tau):
        images, error = decoded(image_bytes)
        return told(answer(*with_own(images, *_checked_knobs([tau], images))), error)

    def image_bytes_with_exit_confidence(image_bytes, tau, exit_confidence):
        images, error = decoded(image_bytes)
        knobs = _checked_knobs([tau, exit_confidence], images)
        return told(answer(*with_own(images, *knobs)), error)

    def with_tau(images, tau):
        return answer(*received_with[1](images, tau))

    def with_exit_confidence(images, tau, exit_confidence):
        return answer(*received_with[2](images, tau, exit_confidence))

    def gate(images):
        gating = gating_of(*received_with[0](images))
        outputs = {"gate": gating.gate, "selected": gating.selected}
        return {**outputs, "active_branches": gating.active_branches}

    def function(call, *inputs):
        return tf.function(call, input_signature=inputs, autograph=False)

    served = {
        "serving_default": function(serving_default, images),
        "image_bytes": function(image_bytes, pictures),
    }
    if graph.gated:
        served |= {
            "with_tau": function(with_tau, images, thresholds),
            "image_bytes_with_tau": function(image_bytes_with_tau, pictures, thresholds),
            "gate": function(gate, images),
        }
    if graph.can_exit:
        of_files = function(image_bytes_with_exit_confidence, pictures, thresholds, confidences)
        served |= {
            "with_exit_confidence": function(with_exit_confidence, images, thresholds, confidences),
            "image_bytes_with_exit_confidence": of_files,
        }
    return served


def _own_confidence(graph):
    return graph.model.exit_confidence if graph.can_exit else None


def concrete(call: Callable, *inputs: tf.TensorSpec) -> Callable:
    """Traces `call` for inputs of the given `tf.TensorSpec`s and returns the concrete function."""
    traced = tf.function(call, input_signature=inputs, autograph=False).get_concrete_function()
    traced.traced_from = call  # a concrete function alone does not keep its variables alive
    return traced


def _blank(name, output, error):
    """An output with the rows of bad files blank: class ids -1, all else zero or empty."""
    good = tf.reshape(error == b"", [-1] + [1] * (output.shape.rank - 1))
    nothing = tf.constant(-1) if "class_id" in name else tf.zeros((), output.dtype)
    return tf.where(good, output, nothing)


def _checked_files(image_bytes, max_batch):
    batch, more = _sizes(image_bytes, 2)
    message = f"image_bytes must be (B,), a file for each image, of 1 to {max_batch} images. Received:"
    right = tf.debugging.Assert(
        (batch > 0) & (batch <= max_batch) & (more == 0), [message, tf.shape(image_bytes)]
    )
    with tf.control_dependencies([right]):
        return tf.ensure_shape(tf.identity(image_bytes), (None,))


def _checked(images, knobs, size, max_batch):
    """Images (B, S, S, 3) and knobs (B,), as they are where they may be so; else it fails, and says why.

    Most requests are of one image, and few operations see that such a one is right; the many that find out
    what is wrong would together take a twentieth of a small network's time.
    """
    values = [_KNOBS[index].is_right(value) for index, value in enumerate(knobs)]
    if images.dtype.is_floating:
        values.append(_in_range(images))
    shapes = tf.concat([tf.shape(_of_any_shape(value)) for value in (images, *knobs)], axis=0)
    one = tf.raw_ops.Equal(x=shapes, y=[1, size, size, 3, *[1] * len(knobs)], incompatible_shape_error=False)
    right = [tf.reduce_all(tf.reshape(found, [-1])) for found in (one, *values)]

    def look():
        checked = _checked_images(images, size, max_batch)
        return checked, *_checked_knobs(knobs, checked)

    images, *knobs = tf.cond(functools.reduce(tf.logical_and, right), lambda: (images, *knobs), look)
    return tf.ensure_shape(images, (None, size, size, 3)), *(tf.ensure_shape(knob, (None,)) for knob in knobs)


def _checked_images(images, size, max_batch):
    batch, *rest = _sizes(images, 5)
    checks = [
        tf.debugging.Assert(
            tf.reduce_all(tf.stack(rest) == [size, size, 3, 0]),
            [
                f"images must be (B, {size}, {size}, 3); image_bytes takes any size. Received:",
                tf.shape(images),
            ],
        ),
        tf.debugging.Assert(
            (batch > 0) & (batch <= max_batch),
            [f"images must be 1 to {max_batch} in a request. Received:", tf.shape(images)],
        ),
    ]
    if images.dtype.is_floating:
        message = "images must be in 0..255, not NaN. Received, among others:"
        checks.append(tf.debugging.Assert(tf.reduce_all(_in_range(images)), [message, images]))
    with tf.control_dependencies(checks):
        return tf.identity(images)


def _in_range(images):
    # NaN fails both comparisons.
    return tf.reshape((images >= 0) & (images <= 255), [-1])


class _Knob(NamedTuple):
    """What a request can give for each image.

    Attributes:
        name: of the input.
        is_right: whether values are allowed, NaN not, each: of a tensor a bool tensor of its shape.
        allowed: the same in words.
    """

    name: str
    is_right: Callable[[tf.Tensor], tf.Tensor]
    allowed: str


_KNOBS = (
    _Knob("tau", lambda tau: tf.floor(tau) == 0, "[0, 1)"),
    _Knob("exit_confidence", lambda confidence: tf.math.ceil(confidence) == 1, "(0, 1]"),
)


def _checked_knobs(knobs, images):
    return [
        _checked_each(kind.name, values, images, kind.is_right(values), kind.allowed)
        for kind, values in zip(_KNOBS, knobs, strict=False)
    ]


def _checked_each(name, values, images, right, allowed):
    count, more = _sizes(values, 2)
    checks = [
        tf.debugging.Assert(
            (count == tf.shape(images)[0]) & (more == 0),
            [f"{name} must have a value for each image. Received the shape:", tf.shape(values)],
        ),
        tf.debugging.Assert(
            tf.reduce_all(tf.reshape(right, [-1])),
            [f"{name} must be in {allowed}, not NaN. Received:", values],
        ),
    ]
    with tf.control_dependencies(checks):
        return tf.identity(values)


def _sizes(tensor, count):
    """The first `count` sizes of a tensor, 0 where it has no such axis.

    TensorFlow does not compare what is sent with what the signature declares, not even the rank. Simpler ways
    to look at the shape break on another rank, or are replaced by the declaration before they run.
    """
    return tf.unstack(tf.concat([tf.shape(tensor), [0] * count], axis=0)[:count], num=count)


def _of_any_shape(tensor):
    """A tensor of which TensorFlow does not know the shape, so that it looks at what was sent."""
    return tf.raw_ops.PlaceholderWithDefault(input=tensor, shape=tf.TensorShape(None))
