"""The plain network of a backbone: the baseline that a Hydra stands beside, trained and saved as one is.

Axis letters: B batch, M classes.
"""

from collections.abc import Sequence
from typing import NamedTuple

import keras
import tensorflow as tf

from dynkhydra_tf import losses
from dynkhydra_tf.backbones.base import Backbone
from dynkhydra_tf.backbones.first_weights import GiveWeights
from dynkhydra_tf.image_classifier import ImageClassifier, accuracies
from dynkhydra_tf.losses import Targets
from dynkhydra_tf.model_parts import checked_whole_number, make_plain
from dynkhydra_tf.targets import at_least_one


class Forward(NamedTuple):
    """What one pass over a batch gives.

    Attributes:
        logits: (B, M) float32.
    """

    logits: tf.Tensor


@keras.saving.register_keras_serializable("dynkhydra_tf")
class Plain(ImageClassifier):
    """A backbone's plain network with its classifier; no branches, nothing to select.

    Called on images (B, H, W, 3) in 0..255 (uint8 or float; the model normalises), it returns
    `{"logits": (B, M) float32}`. Trained with `fit` on batches of (images, integer class labels), after
    `compile(optimizer=...)`: the loss, cross-entropy, is built in; see `ImageClassifier`.

    Args:
        backbone: a `Backbone`.
        num_classes: int >= 2, M.
        mean, std: three floats each, the channels' mean and standard deviation, 0..255; not used where the
            backbone brings a normaliser of its own.
        part_dtype: "float32" or "mixed_bfloat16", the Keras dtype policy of the convolutions; the
            classifier and the loss are float32 always.
        class_names: M str in the order of the labels, and picture_fit: "stretch", "pad" or "crop", how a
            picture becomes square: for `classify`, and kept with the model; None where they are not known.
        loss_settings: NAME_weight, floats >= 0, the weight of each loss of `losses.PLAIN`; label_smoothing,
            float in [0, 1); distill_temperature, float > 0.

    Raises:
        ValueError: an argument out of its range.
    """

    LOSSES = losses.PLAIN

    def __init__(
        self,
        backbone: Backbone,
        num_classes: int,
        mean: tuple[float, float, float] = (127.5, 127.5, 127.5),
        std: tuple[float, float, float] = (127.5, 127.5, 127.5),
        part_dtype: str = "float32",
        name: str = "plain",
        class_names: Sequence[str] | None = None,
        picture_fit: str | None = None,
        **loss_settings: float,
    ) -> None:
        num_classes = checked_whole_number(num_classes, "num_classes", lambda count: count >= 2, "at least 2")
        photos = class_names, picture_fit
        super().__init__(backbone, num_classes, mean, std, part_dtype, loss_settings, name, *photos)
        self.network = make_plain(backbone, self.num_classes, part_dtype)
        self.network.build((None, *backbone.input_shape))
        self.finish({}, {"top1": "up", "top5": "up"})

    def call(self, images: tf.Tensor, training: bool = False) -> dict[str, tf.Tensor]:
        """Returns the logits of a batch."""
        logits = self.network(self.normalized(at_least_one(images)), training=training)
        return {"logits": logits[: tf.shape(images)[0]]}

    def run(self, images: tf.Tensor, targets: Targets, training: bool) -> tuple[Forward, Targets]:
        """Returns the pass over a batch, and the targets as they are."""
        if self.are_maps(images):
            x = tf.cast(images, tf.float32)
            for part in self.first_parts()[len(self.frozen_part()) :]:
                x = part(x, training=training)
            return Forward(x), targets
        return Forward(self.network(self.normalized(images), training=training)), targets

    def numbers(self, forward: Forward, targets: Targets) -> dict[str, tf.Tensor]:
        """Returns whether each image's class is the first, or among the first five, as (B,) floats."""
        return accuracies(forward.logits, targets["labels"])

    # === Weights, copies and serialisation ===

    def set_first_weights(self, give: GiveWeights) -> None:
        """Gives all but the classifier the weights to start from; see `backbones/first_weights.py`."""
        give("plain", self.network.layers[0])

    def first_parts(self) -> tuple[keras.Layer, ...]:
        """All layers: those of the backbone's network where it is a chain of some, then the classifier's."""
        network, *classifier = self.network.layers
        return (*(network.layers if isinstance(network, keras.Sequential) else [network]), *classifier)

    @property
    def shared_parts(self) -> tuple[keras.Layer, ...]:
        """The layers that every image runs."""
        return (self.network,)

    def for_inference(self) -> "Plain":
        """Returns the model with its weights (copied), in float32."""
        model = Plain.from_config({**self.get_config(), "part_dtype": "float32"})
        model.network.set_weights(self.network.get_weights())
        return model

    def get_config(self) -> dict:
        """Returns the constructor's arguments."""
        return {**super().get_config(), "num_classes": self.num_classes}
