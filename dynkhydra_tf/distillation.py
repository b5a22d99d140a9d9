"""Learning from a trained network: what a teacher says of the images that a new one is shown.

The teacher runs in the pipeline, on the images as they come out of it, so that it sees each one augmented as
the new network does; what it says of the validation images, which never change, is found once. The losses
that learn from it are in `losses.py`. Axis letters: B batch, S side of an image, M classes.
"""

import os

import tensorflow as tf

from dynkhydra_tf.data import ImageData
from dynkhydra_tf.errors import UserError
from dynkhydra_tf.folding import fold
from dynkhydra_tf.hydra import Hydra
from dynkhydra_tf.memory import keep_freed_memory
from dynkhydra_tf.plain import Plain
from dynkhydra_tf.runs import class_changes, open_trained


class Teacher:
    """A trained network that says its logits.

    Args:
        model: the network; its weights are copied, and batch normalisation folded.
        order: M ints, the place among its classes of each class of the data.
        part_dtype: "float32" or "mixed_bfloat16", in which its convolutions are computed.
    """

    def __init__(self, model: Hydra | Plain, order: list[int], part_dtype: str) -> None:
        self._model = type(model).from_config({**model.get_config(), "part_dtype": part_dtype})
        self._model.set_weights(model.get_weights())
        for part in self._model.shared_parts:
            fold(part)
        self._order = None if order == sorted(order) else order
        self.num_classes = len(order)

    def logits(self, images: tf.Tensor) -> tf.Tensor:
        """Returns the logits (B, M) float32 of images (B, S, S, 3) uint8, in the data's order of classes."""
        logits = self._model(images, training=False)["logits"]
        return logits if self._order is None else tf.gather(logits, self._order, axis=1)

    def beside_training(self, batches: tf.data.Dataset, step: int, last_step: int) -> tf.data.Dataset:
        """Adds to training batches what the teacher says of them, see `losses.OF_TEACHER`.

        Args:
            batches: of (images (B, S, S, 3) uint8, labels (B,) int32, or a dict of targets), and perhaps
                weights (B,) of these; the first is that of `step`.
            step: steps done.
            last_step: from this step of the run on the teacher is not asked any more, and has no weight.

        Returns:
            `tf.data.Dataset` of (images, {"labels", "teacher_logits", "teacher_weight"}), and the weights.
        """

        def add(number, batch):
            images, labels, *weights = batch
            asked = number < last_step
            # Both in the cond's functions, or the teacher would always run.
            logits = tf.cond(
                asked,
                lambda: self.logits(images),
                lambda: tf.zeros((tf.shape(images)[0], self.num_classes)),
            )
            return images, _targets(labels, logits, tf.cast(asked, tf.float32)), *weights

        return batches.enumerate(step).map(add).prefetch(tf.data.AUTOTUNE)

    def beside_validation(self, batches: tf.data.Dataset) -> tf.data.Dataset:
        """Adds what the teacher says, as above, of batches that are the same each time; it is asked now."""
        ask = tf.function(self.logits, reduce_retracing=True)
        said = [ask(images).numpy() for images, _ in batches]
        spec = tf.TensorSpec((None, self.num_classes), tf.float32)
        keep_freed_memory()  # the training goes on beside this
        logits = tf.data.Dataset.from_generator(lambda: iter(said), output_signature=spec)
        logits = logits.apply(tf.data.experimental.assert_cardinality(len(said)))
        both = tf.data.Dataset.zip(batches, logits)
        return both.map(lambda batch, logits: (batch[0], _targets(batch[1], logits, 1.0)))


def _targets(labels, logits, weight):
    targets = labels if isinstance(labels, dict) else {"labels": labels}
    weights = tf.fill(tf.shape(targets["labels"]), weight)
    return {**targets, "teacher_logits": logits, "teacher_weight": weights}


def open_teacher(
    path: str, data: ImageData, part_dtype: str, run_dir: str | os.PathLike | None = None
) -> Teacher:
    """Opens the teacher that `distill` of the settings names, and checks that it knows the images.

    Args:
        data: the images of the new network.
        part_dtype: see `Teacher`.
        run_dir: the directory of the new run, which must be another one.

    Raises:
        UserError: no run that has ended and no .keras file of ours, one whose class names are not known, or
            one of other classes or of another image size.
    """
    model, names = open_trained(path, "distill", run_dir)
    if names is None:
        raise UserError(
            "distill must be a run, or a network that knows its class names. "
            f"Received: {path}, which does not"
        )
    if set(names) != set(data.class_names):
        raise UserError(
            f"distill must be a network of the classes of {data.name}. Received: {path}, "
            f"its classes: {class_changes(names, data.class_names)}"
        )
    size = model.backbone.input_shape[0]
    if size != data.image_size:
        raise UserError(
            f"distill must be a network for images of {data.image_size} px, the new one's --image_size. "
            f"Received: {path} for {size} px"
        )
    place = {name: index for index, name in enumerate(names)}
    print(f"Teacher: {path}, {type(model).__name__} on {model.backbone.description}.", flush=True)
    return Teacher(model, [place[name] for name in data.class_names], part_dtype)
