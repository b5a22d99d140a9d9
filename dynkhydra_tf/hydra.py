"""Hydra: stem, gater, routed branches and combiner as one Keras model.

Axis letters: B batch, N branches (nb), M classes, H W C the stem's feature map.
"""

from collections.abc import Sequence
from typing import NamedTuple

import keras
import tensorflow as tf

from dynkhydra_tf import distribution, losses
from dynkhydra_tf.backbones.base import Backbone
from dynkhydra_tf.backbones.first_weights import GiveWeights
from dynkhydra_tf.gating import COMBINATIONS, combination_weights, exits, gate_logits_of, select_branches
from dynkhydra_tf.heads import BranchHeads
from dynkhydra_tf.image_classifier import ImageClassifier, accuracies
from dynkhydra_tf.losses import Targets
from dynkhydra_tf.model_parts import (
    checked_number,
    checked_whole_number,
    make_combiner,
    make_exit,
    make_gater,
    make_trunk_gater,
)
from dynkhydra_tf.routing import ROUTINGS, Branches, Routes, combine
from dynkhydra_tf.targets import at_least_one


class Forward(NamedTuple):
    """Everything that one pass over a batch gives, for losses, metrics and the tau sweep.

    Attributes:
        gate_logits: (B, N) float32.
        gate: (B, N) float32, their softmax.
        selected: (B, N) bool, the branches that count.
        needed: (B, N) bool, those and the ones that were asked for besides.
        routes: `Routes` of the branches that ran.
        logits: (B, M) float32.
        own_logits: (B, M) float32, what the head of each image's own branch says; None but in the training
            and evaluation of a model with heads.
        class_logits: (B, M) float32, what the trunk says by itself, and trunk: (B, h, w, c), its map; None
            but of a model with a shared trunk.
        exit_logits: (B, M) float32, what the classifier on the stem's map says; None where there is none.
    """

    gate_logits: tf.Tensor
    gate: tf.Tensor
    selected: tf.Tensor
    needed: tf.Tensor
    routes: Routes
    logits: tf.Tensor
    own_logits: tf.Tensor | None = None
    class_logits: tf.Tensor | None = None
    trunk: tf.Tensor | None = None
    exit_logits: tf.Tensor | None = None

    @property
    def early_logits(self) -> tf.Tensor | None:
        """(B, M) float32, by which an image can exit: the stem's classifier's, else a shared trunk's."""
        return self.class_logits if self.exit_logits is None else self.exit_logits


@keras.saving.register_keras_serializable("dynkhydra_tf")
class Hydra(ImageClassifier):
    """DynK-Hydra (Algorithm 1), and with other settings HydraRes, DynK and HydraRes-SP.

    Called on images (B, H, W, 3) in 0..255 (uint8 or float; the model normalises), it returns
    `{"logits": (B, M) float32, "gate": (B, N) float32, "selected": (B, N) bool}`. Trained with `fit` on
    batches of (images, integer class labels), after `compile(optimizer=...)`: the losses are built in; see
    `ImageClassifier`. A step leaves the weights of a branch that no image needed as they are: no weight
    decay, no momentum.

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
        tau: float in [0, 1), the threshold on the gate probabilities at inference. It may be set at any
            time, also where this model is a layer of another one.
        train_tau: float in [0, 1), the threshold while training; None means tau.
        combine: "sum" (the paper) or "gate_weighted", see `combination_weights`.
        combiner_conv: bool, whether the combined projections go through a convolution (the paper) before they
            are pooled and classified. Branches that start as the tail of a trained network end in a map that
            is ready to be pooled, of many channels.
        trunk: bool, whether the gater shares its trunk, beyond the paper: its map joins the sum of the
            projections, and the gate is the probabilities of a classifier on it, summed by cluster. It learns
            by `losses.gater` alone: the ensemble loss does not reach it through the sum.
        exit_confidence: float in (0, 1], with exit_weight or trunk: at inference, where the best class of the
            stem's classifier, or without one of the trunk, has at least this probability, no branch is
            selected and the logits are its own; where it is the stem's, the gate is 0 everywhere. 1: nowhere.
            It may be set at any time. In training no image exits: a branch sees few enough.
        routing: "routed" or "dense", see `Branches`.
        mean, std: three floats each, the channels' mean and standard deviation, 0..255; not used where the
            backbone brings a normaliser of its own.
        part_dtype: "float32" or "mixed_bfloat16", the Keras dtype policy of the convolutional parts.
            Gate, selection and losses are float32 always.
        class_names: M str in the order of the labels, and picture_fit: "stretch", "pad" or "crop", how a
            picture becomes square: for `classify`, and kept with the model; None where they are not known.
        loss_settings: NAME_weight, floats >= 0, the weight of each loss of `losses.HYDRA`: ensemble_weight,
            gater_weight and branch_weight are alpha1, alpha2, alpha3. At branch_weight 0 there are no heads,
            at exit_weight 0, the default, there is no classifier on the stem's map.
            label_smoothing, float in [0, 1), of L_E and L_b; distill_temperature, float > 0, of L_D;
            gater_targets, "hard" or "teacher", of L_G.

    Raises:
        ValueError: an argument out of its range.
    """

    LOSSES = losses.HYDRA

    def __init__(
        self,
        backbone: Backbone,
        cluster_of_class: Sequence[int],
        top_k: int = 4,
        tau: float = 0.08,
        train_tau: float | None = None,
        combine: str = "sum",
        trunk: bool = False,
        exit_confidence: float = 1.0,
        routing: str = "routed",
        mean: tuple[float, float, float] = (127.5, 127.5, 127.5),
        std: tuple[float, float, float] = (127.5, 127.5, 127.5),
        part_dtype: str = "float32",
        name: str = "hydra",
        class_names: Sequence[str] | None = None,
        picture_fit: str | None = None,
        combiner_conv: bool = True,
        **loss_settings: float | str,
    ) -> None:
        clusters = _checked_clusters(cluster_of_class)
        num_branches = max(clusters) + 1
        photos = class_names, picture_fit
        super().__init__(backbone, len(clusters), mean, std, part_dtype, loss_settings, name, *photos)
        self.cluster_of_class = clusters
        self.num_branches = num_branches
        allowed = f"in 1..{num_branches}, the number of branches"
        self.top_k = checked_whole_number(top_k, "top_k", lambda k: 1 <= k <= num_branches, allowed)
        self.combine = _one_of(combine, "combine", COMBINATIONS)
        self.combiner_conv = bool(combiner_conv)
        self.routing = _one_of(routing, "routing", ROUTINGS)
        tau = _checked_tau(tau, "tau")
        # A variable, read at each step: whatever traced the model would keep a constant as it was. It is no
        # weight; in float64 it is exactly the number that was given.
        self._tau = tf.Variable(tau, dtype=tf.float64, trainable=False, name="tau")
        self.train_tau = tau if train_tau is None else _checked_tau(train_tau, "train_tau")
        self.trunk = bool(trunk)
        confidence = self._checked_confidence(exit_confidence)
        self._exit_confidence = tf.Variable(confidence, dtype=tf.float64, trainable=False, name="confidence")
        self._make_parts()
        numbers = {"top1": "up", "top5": "up", "gater_accuracy": "up", "active_branches": None}
        numbers |= {"trunk_top1": "up"} if self.trunk else {}
        numbers |= {"stem_top1": "up"} if self.exit else {}
        self.finish({"own": num_branches}, numbers)

    def _make_parts(self):
        # === Parts, each built here: the model is ready to call, to save and to count ===
        dtype = self.part_dtype
        self.stem = self.backbone.stem(dtype)
        self.stem.build((None, *self.backbone.input_shape))
        features_shape = self.stem.compute_output_shape((None, *self.backbone.input_shape))
        if self.trunk:
            self.gater = make_trunk_gater(self.backbone, self.num_classes, dtype)
        else:
            self.gater = make_gater(self.backbone, self.num_branches, dtype)
        self.gater.build(features_shape)
        self.branches = Branches(
            lambda: self.backbone.branch(dtype), self.num_branches, self.routing, name="branches"
        )
        self.branches.build(features_shape)
        projection_shape = self.branches.projection_shape
        if self.trunk:
            shape = tuple(self.gater.layers[0].compute_output_shape(features_shape)[1:])
            if shape != projection_shape:
                raise ValueError(
                    "The map of a shared trunk joins the sum of the projections and must have their shape, "
                    f"{projection_shape}: give gater and branches one width. Received: {shape}"
                )
        self.combiner = make_combiner(projection_shape[-1], self.num_classes, dtype, self.combiner_conv)
        self.combiner.build((None, *projection_shape))
        self.exit = None
        if "exit" in self.loss_terms:
            self.exit = make_exit(features_shape[1:], self.num_classes)
            self.exit.build(features_shape)
        self.heads = None
        if self.loss_terms["branch"].weight > 0:
            self.heads = BranchHeads(self.num_branches, self.num_classes, name="heads")
            self.heads.build((None, projection_shape[-1]))

    @property
    def tau(self) -> float:
        """The threshold at inference; may be set at any time, without training again."""
        with tf.init_scope():
            return float(self._tau.numpy())

    @tau.setter
    def tau(self, tau: float) -> None:
        self._tau.assign(_checked_tau(tau, "tau"))

    @property
    def exit_confidence(self) -> float:
        """The confidence at which an image exits; may be set at any time."""
        with tf.init_scope():
            return float(self._exit_confidence.numpy())

    @exit_confidence.setter
    def exit_confidence(self, confidence: float) -> None:
        self._exit_confidence.assign(self._checked_confidence(confidence))

    def _checked_confidence(self, value):
        value = checked_number(value, "exit_confidence", lambda number: 0 < number <= 1, "in (0, 1]")
        if value < 1 and not self.can_exit:
            raise ValueError(
                f"exit_confidence below 1 needs exit_weight or a trunk. Received: exit_confidence={value}"
            )
        return value

    # === Forward ===

    def forward(
        self,
        images: tf.Tensor,
        tau: float | tf.Tensor,
        own: tf.Tensor | None = None,
        training: bool = False,
        exit_confidence: float | tf.Tensor = 1.0,
    ) -> Forward:
        """Runs the model on a batch and returns all that came about on the way.

        Args:
            images: (B, H, W, 3), 0..255, uint8 or float; B > 0. Or maps of a frozen stem, see `frozen_part`.
            tau: float or (B,) float32, the threshold.
            own: (B, N) bool, branches to run besides the selected ones; they do not count in the
                logits. None for inference.
            training: bool, for batch normalisation.
            exit_confidence: float in (0, 1] or (B,) float32; does nothing where none can exit.

        Raises:
            ValueError: images of another shape than the backbone's.
        """
        if self.are_maps(images):
            features = tf.cast(images, tf.float32)
        else:
            features = self.stem(self.normalized(images), training=training)
        # The classifier learns by its own loss alone, and nothing else learns by that.
        exit_logits = self.exit(tf.stop_gradient(features), training=training) if self.exit else None
        trunk = class_logits = None
        if self.trunk:
            to_map, *to_logits = self.gater.layers
            trunk = class_logits = to_map(features, training=training)
            for layer in to_logits:
                class_logits = layer(class_logits)
            gate_logits = gate_logits_of(class_logits, self.cluster_of_class)
        else:
            gate_logits = self.gater(features, training=training)
        gate = tf.nn.softmax(gate_logits)
        selected = select_branches(gate, self.top_k, tau)
        early_logits = exit_logits if self.exit else class_logits
        if self.can_exit:
            alone = exits(tf.nn.softmax(early_logits), exit_confidence)[:, tf.newaxis]
            selected &= ~alone
        needed = selected if own is None else selected | own
        routes = self.branches(features, needed, training=training)
        logits = self.logits_of(routes, gate, selected, trunk, training=training)
        if self.can_exit:
            logits = tf.where(alone, early_logits, logits)
        if self.exit:
            gate = tf.where(alone, 0.0, gate)
        early = class_logits, trunk, exit_logits
        return Forward(gate_logits, gate, selected, needed, routes, logits, None, *early)

    def logits_of(
        self,
        routes: Routes,
        gate: tf.Tensor,
        selected: tf.Tensor,
        trunk: tf.Tensor | None = None,
        training: bool = False,
    ) -> tf.Tensor:
        """Returns the logits (B, M) that the selected branches among the routes and a trunk's map give."""
        combined = combine(routes.projections, routes, combination_weights(gate, selected, self.combine))
        if trunk is not None:
            combined += tf.stop_gradient(trunk)  # as the gate's weights: L_E must not reach the gater
        return self.combiner(combined, training=training)

    def call(
        self,
        images: tf.Tensor,
        training: bool = False,
        tau: float | tf.Tensor | None = None,
        exit_confidence: float | tf.Tensor | None = None,
    ) -> dict[str, tf.Tensor]:
        """Returns logits, gate and selection of a batch.

        Args:
            images: (B, H, W, 3). training: bool.
            tau, exit_confidence: as in `forward`, None for the model's.
        """
        taus, confidences = (
            at_least_one(value) if value.shape.rank else value
            for value in (
                tf.convert_to_tensor(self._tau if tau is None else tau),
                tf.convert_to_tensor(self._exit_confidence if exit_confidence is None else exit_confidence),
            )
        )
        forward = self.forward(at_least_one(images), taus, training=training, exit_confidence=confidences)
        outputs = {"logits": forward.logits, "gate": forward.gate, "selected": forward.selected}
        return {name: output[: tf.shape(images)[0]] for name, output in outputs.items()}

    # === Training ===

    def run(self, images: tf.Tensor, targets: Targets, training: bool) -> tuple[Forward, Targets]:
        """Returns the pass over a batch, at `train_tau` in training, and the targets; see `losses.Loss`."""
        cluster_of_class = tf.constant(self.cluster_of_class, tf.int32)
        own_branch = tf.gather(cluster_of_class, targets["labels"])
        clusters = tf.one_hot(self.cluster_of_class, self.num_branches)
        own = tf.gather(clusters, targets["labels"])
        forward = self.forward(
            images,
            self.train_tau if training else self._tau,
            own=tf.cast(own, tf.bool) if self.heads else None,
            training=training,
            exit_confidence=1.0 if training else self._exit_confidence,
        )
        if self.heads:
            # Pooled first: an own branch that was not selected needs no map in the sum.
            pooled = tf.reduce_mean(tf.cast(forward.routes.projections, tf.float32), axis=[1, 2])
            own_logits = self.heads(combine(pooled, forward.routes, own), own)
            forward = forward._replace(own_logits=own_logits)
        found = {**targets, "own_branch": own_branch, "own": own, "clusters": clusters}
        if "second_labels" in targets:
            found["second_own_branch"] = tf.gather(cluster_of_class, targets["second_labels"])
        return forward, found

    def numbers(self, forward: Forward, targets: Targets) -> dict[str, tf.Tensor]:
        """Returns what is reported besides the losses: (B,) floats by name."""
        found = {
            **accuracies(forward.logits, targets["labels"]),
            "gater_accuracy": keras.metrics.sparse_categorical_accuracy(
                targets["own_branch"], forward.gate_logits
            ),
            "active_branches": tf.reduce_sum(tf.cast(forward.selected, tf.float32), axis=1),
        }
        if self.trunk:
            found["trunk_top1"] = accuracies(forward.class_logits, targets["labels"])["top1"]
        if self.exit:
            found["stem_top1"] = accuracies(forward.exit_logits, targets["labels"])["top1"]
        return found

    def update(self, gradients: list[tf.Tensor], forward: Forward) -> None:
        """Applies the gradients, and leaves branches that no image needed as they were.

        "Not altered", says the paper: their gradient is 0, but weight decay and momentum would move them.
        """
        stacks = [stack for part in self._stacked for stack in part.trainable_variables]
        if self.optimizer.gradient_accumulation_steps:
            stacks = []  # a branch idle in the last of several batches may have a gradient of another
        before = [tf.convert_to_tensor(stack) for stack in stacks]  # `stack.value` is the variable itself
        anywhere = distribution.anywhere(tf.reduce_any(forward.needed, axis=0))
        super().update(gradients, forward)
        ran = anywhere.sums()[0] > 0

        def restore():
            for stack, value in zip(stacks, before, strict=True):
                rows = tf.reshape(ran, [-1] + [1] * (len(stack.shape) - 1))
                stack.assign(tf.where(rows, stack.value, value))

        tf.cond(tf.reduce_all(ran), lambda: None, restore)

    def branch_images(self, forward: Forward) -> tf.Tensor:
        """Returns how many images each branch ran on, (N,) int32."""
        return self.branches.images(forward.needed)

    @property
    def _stacked(self):
        """The parts whose variables have an axis of branches."""
        return [part for part in (self.branches, self.heads) if part]

    # === Weights, copies and serialisation ===

    def set_first_weights(self, give: GiveWeights) -> None:
        """Gives the backbone's parts the weights to start from, in place of those that Keras drew.

        Args:
            give: called for the stem, the gater trunk and each branch; see `backbones/first_weights.py`.
        """
        give("stem", self.stem)
        give("trunk" if self.trunk else "gater_trunk", self.gater.layers[0])
        self.branches.set_first_weights(lambda branch: give("branch", branch))

    def first_parts(self) -> tuple[keras.Layer, ...]:
        """The stem; behind it the way forks."""
        return (self.stem,)

    @property
    def shared_parts(self) -> tuple[keras.Layer, ...]:
        """The layers that every image runs."""
        return (self.stem, self.gater, self.combiner, *([self.exit] if self.exit else []))

    @property
    def can_exit(self) -> bool:
        """Whether images can be answered without a branch."""
        return self.trunk or "exit" in self.loss_terms

    def for_inference(self) -> "Hydra":
        """Returns the model with its weights (copied), in float32, without the training-only heads."""
        model = Hydra.from_config({**self.get_config(), "branch_weight": 0.0, "part_dtype": "float32"})
        for part in ("stem", "gater", "branches", "combiner", *(["exit"] if self.exit else [])):
            getattr(model, part).set_weights(getattr(self, part).get_weights())
        return model

    def get_config(self) -> dict:
        """Returns the constructor's arguments."""
        settings = (
            "top_k",
            "tau",
            "train_tau",
            "combine",
            "combiner_conv",
            "trunk",
            "exit_confidence",
            "routing",
        )
        return {
            **super().get_config(),
            "cluster_of_class": list(self.cluster_of_class),
            **{name: getattr(self, name) for name in settings},
        }


def _checked_tau(tau, name):
    return checked_number(tau, name, lambda tau: 0 <= tau < 1, "in [0, 1)")


def _checked_clusters(cluster_of_class):
    """The clusters as a tuple of ints."""
    name, allowed = "cluster_of_class", "whole numbers from 0 on"
    clusters = tuple(checked_whole_number(c, name, lambda c: c >= 0, allowed) for c in cluster_of_class)
    if not clusters or set(clusters) != set(range(max(clusters) + 1)):
        raise ValueError(
            "cluster_of_class must give every branch 0..nb-1 at least one class. "
            f"Received: cluster_of_class={clusters}"
        )
    return clusters


def _one_of(value, name, allowed):
    if value not in allowed:
        raise ValueError(f"{name} must be one of {allowed}. Received: {name}={value!r}")
    return value
