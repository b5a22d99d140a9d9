"""The plain network of a backbone: the baseline that a Hydra stands beside, trained and saved as one is.

Axis letters: B batch, M classes.
"""

import keras
import tensorflow as tf

from dynkhydra_tf import losses
from dynkhydra_tf.backbones.first_weights import GiveWeights
from dynkhydra_tf.model_parts import check_settings, make_normalizer, make_plain, unpack_batch


@keras.saving.register_keras_serializable("dynkhydra_tf")
class Plain(keras.Model):
    """A backbone's plain network with its classifier; no branches, nothing to select.

    Called on images (B, H, W, 3) in 0..255 (uint8 or float; the model normalises), it returns
    `{"logits": (B, M) float32}`. Trained with `fit` on batches of (images, integer class labels), after
    `compile(optimizer=...)`: the loss, cross-entropy, is built in.

    Args:
        backbone: a `Backbone`.
        num_classes: int >= 2, M.
        mean, std: three floats each, the channels' mean and standard deviation, 0..255; not used where the
            backbone brings a normaliser of its own.
        part_dtype: "float32" or "mixed_bfloat16", the Keras dtype policy of the convolutions; the
            classifier and the loss are float32 always.

    Raises:
        ValueError: an argument out of its range.
    """

    supports_jit = False  # XLA's convolutions on the CPU are slower than oneDNN's

    def __init__(
        self,
        backbone,
        num_classes,
        mean=(127.5, 127.5, 127.5),
        std=(127.5, 127.5, 127.5),
        part_dtype="float32",
        name="plain",
    ):
        super().__init__(name=name, dtype="float32")
        if num_classes < 2:
            raise ValueError(f"num_classes must be at least 2. Received: num_classes={num_classes}")
        check_settings(mean, std, part_dtype)
        self.backbone = backbone
        self.num_classes = int(num_classes)
        self.mean, self.std = tuple(map(float, mean)), tuple(map(float, std))
        self.part_dtype = part_dtype
        self.normalize = make_normalizer(self.backbone, self.mean, self.std)
        self.network = make_plain(backbone, self.num_classes, part_dtype)
        self.network.build((None, *backbone.input_shape))
        self._means = {name: keras.metrics.Mean(name=name) for name in ("loss", "top1", "top5")}
        self.built = True

    def call(self, images, training=False):
        """Returns the logits of a batch."""
        return {"logits": self.network(self.normalize(images), training=training)}

    def train_step(self, data):
        """One step on a batch (images, labels)."""
        images, labels = unpack_batch(data)
        with tf.GradientTape() as tape:
            logits = self(images, training=True)["logits"]
            loss = losses.cross_entropy(labels, logits)
            scaled = self.optimizer.scale_loss(loss)
        gradients = tape.gradient(scaled, self.trainable_variables)
        self.optimizer.apply_gradients(zip(gradients, self.trainable_variables, strict=True))
        return self._update_metrics(labels, loss, logits)

    def test_step(self, data):
        """The same loss and metrics without an update."""
        images, labels = unpack_batch(data)
        logits = self(images)["logits"]
        return self._update_metrics(labels, losses.cross_entropy(labels, logits), logits)

    def _update_metrics(self, labels, loss, logits):
        top5 = min(5, self.num_classes)
        self._means["loss"].update_state(loss, sample_weight=tf.shape(labels)[0])
        self._means["top1"].update_state(keras.metrics.sparse_categorical_accuracy(labels, logits))
        self._means["top5"].update_state(
            keras.metrics.sparse_top_k_categorical_accuracy(labels, logits, top5)
        )
        return {name: mean.result() for name, mean in self._means.items()}

    @property
    def metrics(self):
        """The running means that `fit` and `evaluate` reset and report."""
        return list(self._means.values())

    # === Weights, copies and serialisation ===

    def set_first_weights(self, give: GiveWeights) -> None:
        """Gives all but the classifier the weights to start from; see `backbones/first_weights.py`."""
        give("plain", self.network.layers[0])

    @property
    def shared_parts(self):
        """The layers that every image runs."""
        return (self.network,)

    def for_inference(self):
        """Returns the model with its weights (copied), in float32."""
        model = Plain.from_config({**self.get_config(), "part_dtype": "float32"})
        model.network.set_weights(self.network.get_weights())
        return model

    def get_config(self):
        """Returns the constructor's arguments."""
        return {
            "backbone": keras.saving.serialize_keras_object(self.backbone),
            "num_classes": self.num_classes,
            "mean": list(self.mean),
            "std": list(self.std),
            "part_dtype": self.part_dtype,
            "name": self.name,
        }

    @classmethod
    def from_config(cls, config):
        """Returns the network that `get_config` described, with new weights."""
        backbone = keras.saving.deserialize_keras_object(config["backbone"])
        return cls(**{**config, "backbone": backbone})
