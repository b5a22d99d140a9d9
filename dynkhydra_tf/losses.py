"""The losses by name, and their weighted sum (Eq. 7): L_E, L_G and L_b of DynK-Hydra (Eqs. 3, 4, 5).

A loss is a function of the pass over a batch and of its targets that gives a value for each image. To add
one: the function here, an entry in `HYDRA` or `PLAIN`, and the setting NAME_weight for its flag. The total,
the metrics, the log's columns and the model's config follow from the entry.

Axis letters: B batch, N branches (nb), M classes, G groups. All logits are float32; all losses are in nats.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import tensorflow as tf

Targets = Mapping[str, tf.Tensor]


@dataclasses.dataclass(frozen=True)
class Loss:
    """One term of the total.

    Attributes:
        weight: float >= 0, its factor in the total. A loss whose default weight is 0 is off until it is given
            one; the others are always reported.
        function: (pass, targets) -> (B,) float32, the loss of each image; or None where the model lacks what
            it takes. The pass is `hydra.Forward` or `plain.Forward`; of the targets there are always labels
            (B,) int32, of a Hydra also own_branch (B,) int32 and own (B, N) float32, the same one-hot.
        groups: name of a target (B, G), one-hot: each group's images are averaged apart, and the means
            summed. None: the mean over all images.
        needs: names of the targets that it needs besides these, for `fit` to be given.
    """

    weight: float
    function: Callable[[Any, Targets], tf.Tensor | None]
    groups: str | None = None
    needs: tuple[str, ...] = ()


class Sums(NamedTuple):
    """What a loss comes to over some images; more images add to both.

    Attributes:
        loss: (G,) float32, the sum over each group's images, each image times its sample weight.
        images: (G,) float32, how many these are: as everywhere in Keras, a weight does not change the count.
    """

    loss: tf.Tensor
    images: tf.Tensor

    @property
    def mean(self) -> tf.Tensor:
        """Scalar: the sum over the groups of each one's mean loss; 0 for a group without images."""
        return tf.reduce_sum(tf.math.divide_no_nan(self.loss, self.images))


def cross_entropy(labels: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
    """Returns the cross-entropy (B,) of each image's logits (B, C) against its label (B,) int."""
    return tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits)


def ensemble(forward: Any, targets: Targets) -> tf.Tensor:
    """L_E (Eq. 3): the network's logits against the classes."""
    return cross_entropy(targets["labels"], forward.logits)


def gater(forward: Any, targets: Targets) -> tf.Tensor:
    """L_G (Eq. 4): the gate's logits against the branch whose partition holds the class."""
    return cross_entropy(targets["own_branch"], forward.gate_logits)


def branch(forward: Any, targets: Targets) -> tf.Tensor | None:
    """L_b (Eq. 5): what the head of each image's own branch says, over all M classes; None without heads.

    An image lies in exactly one partition, so the B rows hold all that the N masked means need.
    """
    return None if forward.own_logits is None else cross_entropy(targets["labels"], forward.own_logits)


# The default weights are the paper's alpha1, alpha2 and alpha3.
HYDRA = {
    "ensemble": Loss(1.0, ensemble),
    "gater": Loss(1.5, gater),
    "branch": Loss(0.05, branch, groups="own"),
}
PLAIN = {"cross_entropy": Loss(1.0, ensemble)}


def with_weights(losses: Mapping[str, Loss], weights: Mapping[str, float]) -> dict[str, Loss]:
    """Returns the losses of a model: those that are on, with the weights given, in the order of `losses`.

    Args:
        losses: `HYDRA` or `PLAIN`.
        weights: {"NAME_weight": float}; a loss that is not named keeps its default.

    Raises:
        ValueError: a weight that is negative or not finite, or a name that is none of a loss.
    """
    names = [f"{name}_weight" for name in losses]
    if unknown := weights.keys() - set(names):
        raise ValueError(f"The weights of the losses are {', '.join(names)}. Received: {', '.join(unknown)}")
    result = {}
    for (name, loss), key in zip(losses.items(), names, strict=True):
        weight = weights.get(key, loss.weight)
        # Not float(): it would take "1" for a number.
        if isinstance(weight, (str, bytes)) or not 0 <= weight < math.inf:
            raise ValueError(f"{key} must be at least 0 and finite. Received: {key}={weight!r}")
        if weight > 0 or loss.weight > 0:
            result[name] = dataclasses.replace(loss, weight=float(weight))
    return result


def sums(losses: Mapping[str, Loss], forward: Any, targets: Targets) -> dict[str, Sums]:
    """Returns the `Sums` of each loss over a batch.

    Args:
        losses: of `with_weights`.
        forward: the pass over the batch.
        targets: see `Loss`; sample_weight (B,) float32 among them weights each image in every loss.
    """
    return {name: _sums(name, loss, forward, targets) for name, loss in losses.items()}


def _sums(name, loss, forward, targets):
    groups = targets[loss.groups] if loss.groups else tf.ones_like(targets["labels"], tf.float32)[:, None]
    values = loss.function(forward, targets)
    if values is None:
        values = tf.zeros_like(groups[:, 0])
    if values.shape.rank != 1:
        raise ValueError(f"The loss {name} must give a value for each image. Received: shape {values.shape}")
    if "sample_weight" in targets:
        values *= targets["sample_weight"]
    return Sums(tf.linalg.matvec(groups, values, transpose_a=True), tf.reduce_sum(groups, axis=0))


def total(losses: Mapping[str, Loss], means: Mapping[str, tf.Tensor]) -> tf.Tensor:
    """Returns the scalar sum of weight times mean over the losses (Eq. 7)."""
    return tf.add_n([loss.weight * means[name] for name, loss in losses.items()])
