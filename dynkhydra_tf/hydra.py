"""Hydra: stem, gater, routed branches and combiner as one Keras model, with its training step.

Axis letters: B batch, N branches (nb), M classes, H W C the stem's feature map.
"""

from typing import NamedTuple

import keras
import tensorflow as tf

from dynkhydra_tf import losses
from dynkhydra_tf.backbones.first_weights import GiveWeights
from dynkhydra_tf.gating import COMBINATIONS, combination_weights, select_branches
from dynkhydra_tf.heads import BranchHeads
from dynkhydra_tf.model_parts import check_settings, make_combiner, make_gater, make_normalizer, unpack_batch
from dynkhydra_tf.routing import ROUTINGS, Branches, Routes, combine


class Forward(NamedTuple):
    """Everything that one pass over a batch gives, for losses, metrics and the tau sweep.

    Attributes:
        gate_logits: (B, N) float32.
        gate: (B, N) float32, their softmax.
        selected: (B, N) bool, the branches that count.
        routes: `Routes` of the branches that ran.
        logits: (B, M) float32.
    """

    gate_logits: tf.Tensor
    gate: tf.Tensor
    selected: tf.Tensor
    routes: Routes
    logits: tf.Tensor


@keras.saving.register_keras_serializable("dynkhydra_tf")
class Hydra(keras.Model):
    """DynK-Hydra (Algorithm 1), and with other settings HydraRes, DynK and HydraRes-SP.

    Called on images (B, H, W, 3) in 0..255 (uint8 or float; the model normalises), it returns
    `{"logits": (B, M) float32, "gate": (B, N) float32, "selected": (B, N) bool}`. Trained with `fit` on
    batches of (images, integer class labels), after `compile(optimizer=...)`: the losses are built in.

    | system | tau | branch_weight |
    |---|---|---|
    | HydraRes | 0 | 0 |
    | DynK | > 0 | 0 |
    | HydraRes-SP | 0 | > 0 |
    | DynK-Hydra | > 0 | > 0 |

    Args:
        backbone: a `Backbone`.
        cluster_of_class: sequence of M ints, the branch whose partition holds each class; every
            branch 0..nb-1 holds at least one. Gives M and nb.
        top_k: int in 1..nb, K.
        tau: float in [0, 1), the threshold on the gate probabilities at inference.
        train_tau: float in [0, 1), the threshold while training; None means tau.
        combine: "sum" (the paper) or "gate_weighted", see `combination_weights`.
        routing: "routed" or "dense", see `Branches`.
        ensemble_weight, gater_weight, branch_weight: floats >= 0, alpha1, alpha2, alpha3. With
            branch_weight 0 there are no heads.
        mean, std: three floats each, the channels' mean and standard deviation, 0..255; not used where the
            backbone brings a normaliser of its own.
        part_dtype: "float32" or "mixed_bfloat16", the Keras dtype policy of the convolutional parts.
            Gate, selection and losses are float32 always.

    Raises:
        ValueError: an argument out of its range.
    """

    supports_jit = False  # see Branches

    def __init__(
        self,
        backbone,
        cluster_of_class,
        top_k=4,
        tau=0.08,
        train_tau=None,
        combine="sum",
        routing="routed",
        ensemble_weight=1.0,
        gater_weight=1.5,
        branch_weight=0.05,
        mean=(127.5, 127.5, 127.5),
        std=(127.5, 127.5, 127.5),
        part_dtype="float32",
        name="hydra",
    ):
        super().__init__(name=name, dtype="float32")
        self.backbone = backbone
        self.cluster_of_class = tuple(int(cluster) for cluster in cluster_of_class)
        self.num_classes = len(self.cluster_of_class)
        self.num_branches = max(self.cluster_of_class, default=-1) + 1
        self.top_k = top_k
        self.combine = combine
        self.routing = routing
        self.loss_weights = (float(ensemble_weight), float(gater_weight), float(branch_weight))
        self.mean, self.std = tuple(map(float, mean)), tuple(map(float, std))
        self.part_dtype = part_dtype
        self._check()
        self._tau = _checked_tau(tau, "tau")
        self.train_tau = self._tau if train_tau is None else _checked_tau(train_tau, "train_tau")
        self._make_parts()
        self._make_metrics()

    def _check(self):
        if set(self.cluster_of_class) != set(range(self.num_branches)) or not self.cluster_of_class:
            raise ValueError(
                "cluster_of_class must give every branch 0..nb-1 at least one class. "
                f"Received: cluster_of_class={self.cluster_of_class}"
            )
        if not 1 <= self.top_k <= self.num_branches:
            raise ValueError(
                f"top_k must be in 1..{self.num_branches}, the number of branches. "
                f"Received: top_k={self.top_k}"
            )
        if self.combine not in COMBINATIONS:
            raise ValueError(f"combine must be one of {COMBINATIONS}. Received: combine={self.combine!r}")
        if self.routing not in ROUTINGS:
            raise ValueError(f"routing must be one of {ROUTINGS}. Received: routing={self.routing!r}")
        if not all(0 <= weight < float("inf") for weight in self.loss_weights):
            raise ValueError(
                "ensemble_weight, gater_weight and branch_weight must be at least 0. "
                f"Received: {self.loss_weights}"
            )
        check_settings(self.mean, self.std, self.part_dtype)

    def _make_parts(self):
        # === Parts, each built here: the model is ready to call, to save and to count ===
        dtype = self.part_dtype
        self.normalize = make_normalizer(self.backbone, self.mean, self.std)
        self.stem = self.backbone.stem(dtype)
        self.stem.build((None, *self.backbone.input_shape))
        features_shape = self.stem.compute_output_shape((None, *self.backbone.input_shape))
        self.gater = make_gater(self.backbone, self.num_branches, dtype)
        self.gater.build(features_shape)
        self.branches = Branches(
            lambda: self.backbone.branch(dtype), self.num_branches, self.routing, name="branches"
        )
        self.branches.build(features_shape)
        projection_shape = self.branches.projection_shape
        self.combiner = make_combiner(projection_shape[-1], self.num_classes, dtype)
        self.combiner.build((None, *projection_shape))
        self.heads = None
        if self.loss_weights[2] > 0:
            self.heads = BranchHeads(self.num_branches, self.num_classes, name="heads")
            self.heads.build((None, projection_shape[-1]))
        self.built = True

    def _make_metrics(self):
        names = ("loss", "ensemble_loss", "gater_loss", "branch_loss", "top1", "top5")
        names += ("gater_accuracy", "active_branches")
        self._means = {name: keras.metrics.Mean(name=name) for name in names}

    @property
    def tau(self):
        """The threshold at inference; may be set at any time, without training again."""
        return self._tau

    @tau.setter
    def tau(self, tau):
        self._tau = _checked_tau(tau, "tau")
        # Keras keeps the traced functions, and tau is a constant in them. Training has its own.
        self.test_function = self.predict_function = None

    # === Forward ===

    def forward(self, images, tau, own=None, training=False):
        """Runs the model on a batch and returns all that came about on the way.

        Args:
            images: (B, H, W, 3), 0..255, uint8 or float.
            tau: float or (B,) float32, the threshold.
            own: (B, N) bool, branches to run besides the selected ones; they do not count in the
                logits. None for inference.
            training: bool, for batch normalisation.

        Returns:
            `Forward`.
        """
        features = self.stem(self.normalize(images), training=training)
        gate_logits = self.gater(features, training=training)
        gate = tf.nn.softmax(gate_logits)
        selected = select_branches(gate, self.top_k, tau)
        needed = selected if own is None else selected | own
        routes = self.branches(features, needed, training=training)
        logits = self.classify(routes, gate, selected, training=training)
        return Forward(gate_logits, gate, selected, routes, logits)

    def classify(self, routes, gate, selected, training=False):
        """Returns the logits (B, M) that the selected branches among the routes give."""
        weights = combination_weights(gate, selected, self.combine)
        return self.combiner(combine(routes.projections, routes, weights), training=training)

    def call(self, images, training=False, tau=None):
        """Returns logits, gate and selection of a batch; tau as in `forward`, None for the model's."""
        forward = self.forward(images, self.tau if tau is None else tau, training=training)
        return {"logits": forward.logits, "gate": forward.gate, "selected": forward.selected}

    # === Training ===

    def losses_of(self, images, labels, training):
        """Returns the `Losses` and the `Forward` of a batch of images (B, H, W, 3), labels (B,)."""
        own_branch = tf.gather(tf.constant(self.cluster_of_class, tf.int32), labels)
        own = tf.one_hot(own_branch, self.num_branches)
        forward = self.forward(
            images,
            self.train_tau if training else self.tau,
            own=tf.cast(own, tf.bool) if self.heads else None,
            training=training,
        )
        ensemble = losses.cross_entropy(labels, forward.logits)
        gater = losses.cross_entropy(own_branch, forward.gate_logits)
        branches = None
        if self.heads:
            # Pooled first: an own branch that was not selected needs no map in the sum.
            pooled = tf.reduce_mean(tf.cast(forward.routes.projections, tf.float32), axis=[1, 2])
            own_logits = self.heads(combine(pooled, forward.routes, own), own)
            branches = losses.branch_losses(labels, own_logits, own_branch, self.num_branches)
        return losses.total_loss(ensemble, gater, branches, self.loss_weights), forward

    def train_step(self, data):
        """One step on a batch (images, labels): the three losses, their gradients, the update."""
        images, labels = unpack_batch(data)
        with tf.GradientTape() as tape:
            loss, forward = self.losses_of(images, labels, training=True)
            scaled = self.optimizer.scale_loss(loss.total)
        gradients = tape.gradient(scaled, self.trainable_variables)
        self.optimizer.apply_gradients(zip(gradients, self.trainable_variables, strict=True))
        return self._update_metrics(labels, loss, forward)

    def test_step(self, data):
        """The same losses and metrics without an update, at `tau`."""
        images, labels = unpack_batch(data)
        return self._update_metrics(labels, *self.losses_of(images, labels, training=False))

    def _update_metrics(self, labels, loss, forward):
        clusters = tf.gather(tf.constant(self.cluster_of_class), labels)
        top5 = min(5, self.num_classes)
        values = {
            "top1": keras.metrics.sparse_categorical_accuracy(labels, forward.logits),
            "top5": keras.metrics.sparse_top_k_categorical_accuracy(labels, forward.logits, top5),
            "gater_accuracy": keras.metrics.sparse_categorical_accuracy(clusters, forward.gate),
            "active_branches": tf.reduce_sum(tf.cast(forward.selected, tf.float32), axis=1),
        }
        for name, value in values.items():
            self._means[name].update_state(value)
        size = tf.shape(labels)[0]  # weights a smaller last batch by its images
        for name, value in zip(("loss", "ensemble_loss", "gater_loss", "branch_loss"), loss, strict=True):
            self._means[name].update_state(value, sample_weight=size)
        return {name: mean.result() for name, mean in self._means.items()}

    @property
    def metrics(self):
        """The running means that `fit` and `evaluate` reset and report."""
        return list(self._means.values())

    # === Weights, copies and serialisation ===

    def set_first_weights(self, give: GiveWeights) -> None:
        """Gives the backbone's parts the weights to start from, in place of those that Keras drew.

        Args:
            give: called for the stem, the gater trunk and each branch; see `backbones/first_weights.py`.
        """
        give("stem", self.stem)
        give("gater_trunk", self.gater.layers[0])
        self.branches.set_first_weights(lambda branch: give("branch", branch))

    @property
    def shared_parts(self):
        """The layers that every image runs."""
        return self.stem, self.gater, self.combiner

    def for_inference(self):
        """Returns the model with its weights (copied), in float32, without the training-only heads."""
        model = Hydra.from_config({**self.get_config(), "branch_weight": 0.0, "part_dtype": "float32"})
        for part in ("stem", "gater", "branches", "combiner"):
            getattr(model, part).set_weights(getattr(self, part).get_weights())
        return model

    def get_config(self):
        """Returns the constructor's arguments."""
        ensemble, gater, branch = self.loss_weights
        return {
            "backbone": keras.saving.serialize_keras_object(self.backbone),
            "cluster_of_class": list(self.cluster_of_class),
            "top_k": self.top_k,
            "tau": self.tau,
            "train_tau": self.train_tau,
            "combine": self.combine,
            "routing": self.routing,
            "ensemble_weight": ensemble,
            "gater_weight": gater,
            "branch_weight": branch,
            "mean": list(self.mean),
            "std": list(self.std),
            "part_dtype": self.part_dtype,
            "name": self.name,
        }

    @classmethod
    def from_config(cls, config):
        """Returns the model that `get_config` described, with new weights."""
        backbone = config["backbone"]
        if isinstance(backbone, dict):
            backbone = keras.saving.deserialize_keras_object(backbone)
        return cls(**{**config, "backbone": backbone})


def _checked_tau(tau, name):
    if not 0 <= tau < 1:
        raise ValueError(f"{name} must be in [0, 1). Received: {name}={tau}")
    return float(tau)
