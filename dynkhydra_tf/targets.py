"""What Keras hands to a step of a model: images and targets, checked, and errors that say it in one line.

Axis letters: B batch, H W an image's height and width, M classes.
"""

import functools
import re
from collections.abc import Callable, Iterable

import keras
import tensorflow as tf

# The targets of images blended of two: the other one's class, (B,) int32, and its share, (B,) float32.
OF_MIXED = ("second_labels", "second_share")


def unpack(
    data: tuple, num_classes: int, extra: Iterable[str] = ()
) -> tuple[tf.Tensor, dict[str, tf.Tensor]]:
    """Returns the images and the targets of what `fit` hands to a training step.

    Args:
        data: (images, targets) or (images, targets, sample_weight). Targets are the labels, (B,) or (B, 1) of
            any number type, or a dict: "labels", perhaps "sample_weight" (B,), what `extra` names and, of
            images blended of two, those of `OF_MIXED`.
        num_classes: M; labels are whole numbers in 0..M-1.
        extra: the further targets that the model's losses need, and no others.

    Returns:
        images as they came; dict: labels (B,) int32, sample_weight (B,) float32 if there is one, the extra
        targets as they came.

    Raises:
        ValueError: targets that are missing, not known, or of a wrong shape or type. Labels out of range
            raise when the step runs: see `in_one_line`.
    """
    images, given, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
    targets = dict(given) if isinstance(given, dict) else {} if given is None else {"labels": given}
    if sample_weight is not None:
        if "sample_weight" in targets:
            raise ValueError("sample_weight is given twice. Received: one of its own, one among the targets")
        targets["sample_weight"] = sample_weight
    known = {"labels", *extra}
    if not targets.keys().isdisjoint(OF_MIXED):
        known.update(OF_MIXED)
    if not known <= targets.keys() <= known | {"sample_weight"}:
        raise ValueError(
            f"The targets must be {', '.join(sorted(known))}, and perhaps sample_weight. "
            f"Received: {', '.join(sorted(targets)) or 'none'}"
        )
    images = tf.convert_to_tensor(images)
    targets = {name: tf.convert_to_tensor(value) for name, value in targets.items()}
    for name in {"labels", "second_labels"} & targets.keys():
        targets[name] = _class_numbers(_column(targets[name], name), num_classes)
    if "sample_weight" in targets:
        weight = _column(targets["sample_weight"], "sample_weight")
        targets["sample_weight"] = tf.cast(weight, tf.float32)
    return images, targets


def _column(value, name):
    """A target (B,) of (B,) or (B, 1)."""
    if value.shape.rank == 1 or (value.shape.rank == 2 and value.shape[1] == 1):
        return tf.reshape(value, [-1])
    hint = "; of one-hot labels take argmax(labels, axis=-1)" if name == "labels" else ""
    raise ValueError(
        f"{name} must be one number for each image{hint}. Received: {name} of shape {value.shape}"
    )


def _class_numbers(labels, num_classes):
    """Labels (B,) int32 of labels of any number type, with a check of their range when it runs."""
    if not (labels.dtype.is_integer or labels.dtype.is_floating or labels.dtype.is_bool):
        raise ValueError(f"labels must be numbers. Received: labels of type {labels.dtype.name}")
    if labels.dtype.is_bool:
        labels = tf.cast(labels, tf.int32)
    # In float64 every number type can be compared; of a NaN no comparison holds.
    value = tf.cast(labels, tf.float64)
    right = (value >= 0) & (value < num_classes) & (value == tf.floor(value))
    message = f"labels must be whole numbers in 0..{num_classes - 1}."
    with tf.control_dependencies([require(tf.reduce_all(right), message, labels[~right])]):
        return tf.identity(tf.cast(labels, tf.int32))  # a cast of int32 is no op


def check_shape(batch: tf.Tensor, shape: tuple[int, ...], name: str) -> tf.Tensor:
    """Returns a batch that must be (B, *shape), with that shape also where it was not known before it runs.

    Raises:
        ValueError: another shape. Where it is not known yet, when it runs: see `in_one_line`.
    """
    message = f"{name} must be (B, {', '.join(map(str, shape))})."
    expected, found = tf.TensorShape((None, *shape)), tf.TensorShape(batch.shape)
    if not expected.is_compatible_with(found):
        raise ValueError(f"{message} Received: shape {tuple(found)}")
    if found[1:].is_fully_defined() or isinstance(batch, keras.KerasTensor):
        return batch
    right = tf.reduce_all(tf.equal(tf.shape(batch)[1:], shape))
    with tf.control_dependencies([require(right, message, tf.shape(batch))]):
        batch = tf.identity(batch)
    batch.set_shape(expected)
    return batch


def require(condition: tf.Tensor, message: str, received: tf.Tensor) -> tf.Operation | None:
    """Returns the op that stops a step where a scalar bool does not hold; `in_one_line` makes it readable."""
    return tf.debugging.Assert(condition, [f"{message} Received: ", received], summarize=5)


def in_one_line(function: Callable) -> Callable:
    """Returns a function that runs a step, with a ValueError of one line in place of TensorFlow's of fifty.

    Args:
        function: what Keras made of a step. Other errors than those of `require` stay as they are.
    """
    if hasattr(function, "in_one_line"):
        return function

    @functools.wraps(function)
    def run(*args):
        try:
            return function(*args)
        except tf.errors.InvalidArgumentError as error:
            found = re.search(r"assertion failed: \[([^\]]*Received: )\] \[([^\]]*)\]", str(error))
            if not found:
                raise
            message = "".join(found.groups())
        raise ValueError(message)

    run.in_one_line = True  # type: ignore[attr-defined]
    return run


def at_least_one(batch: tf.Tensor) -> tf.Tensor:
    """Returns a batch (B, ...), or one row of zeros for an empty one, on which oneDNN's convolutions fail."""
    if batch.shape[0]:
        return batch
    row = tf.zeros([1, *batch.shape[1:]], batch.dtype)
    return tf.cond(tf.shape(batch)[0] > 0, lambda: batch, lambda: row)
