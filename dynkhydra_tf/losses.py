"""The losses by name, and their weighted sum (Eq. 7): L_E, L_G and L_b of DynK-Hydra (Eqs. 3, 4, 5), and
beyond the paper L_X and L_D.

A loss is a function of the pass over a batch and of its targets that gives a value for each image. To add
one: the function here, an entry in `HYDRA` or `PLAIN`, and the setting NAME_weight for its flag. The total,
the metrics, the log's columns and the model's config follow from the entry. In training and in validation a
loss is the same function: the two can be compared, but not with those of a run of other settings.

Axis letters: B batch, N branches (nb), M classes, G groups. All logits are float32; all losses are in nats.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import keras
import tensorflow as tf

Targets = Mapping[str, tf.Tensor]

# The targets of the losses that learn from a teacher: its logits (B, M) float32, and how much it counts for
# each image, (B,) float32 in [0, 1]; at 0 it need not have seen it.
OF_TEACHER = ("teacher_logits", "teacher_weight")
GATER_TARGETS = ("hard", "teacher")


@dataclasses.dataclass(frozen=True)
class Loss:
    """One term of the total.

    Attributes:
        weight: float >= 0, its factor in the total. A loss whose default weight is 0 is off until it is given
            one; the others are always reported.
        function: (pass, targets, **options) -> (B,) float32, the loss of each image; or None where the model
            lacks what it takes. The pass is `hydra.Forward` or `plain.Forward`; of the targets there are
            always labels (B,) int32, of a Hydra also own_branch (B,) int32, own (B, N) float32, the same
            one-hot, and clusters (M, N) float32, the branch of each class, one-hot. Of images blended of two
            there are those of `targets.OF_MIXED` besides, of a Hydra second_own_branch; own_branch is then
            that of the class of the larger share.
        groups: name of a target (B, G), one-hot: each group's images are averaged apart, and the means
            summed. None: the mean over all images.
        needs: names of the targets that it needs besides these, for `fit` to be given.
        options: what the function takes by name besides, with its value; several losses may share one.
    """

    weight: float
    function: Callable[..., tf.Tensor | None]
    groups: str | None = None
    needs: tuple[str, ...] = ()
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)


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


def cross_entropy(labels: tf.Tensor, logits: tf.Tensor, label_smoothing: float = 0.0) -> tf.Tensor:
    """Returns the cross-entropy (B,) of each image's logits (B, C) against its label (B,) int.

    Args:
        label_smoothing: share of the target's probability that is spread evenly over all C, the label's too.
    """
    if not label_smoothing:
        return tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits)
    one_hot = tf.one_hot(labels, logits.shape[-1])
    return keras.losses.categorical_crossentropy(one_hot, logits, True, label_smoothing)


def _of_both(targets: Targets, name: str, loss: Callable[[tf.Tensor], tf.Tensor]) -> tf.Tensor:
    """A loss (B,) of labels, the target `name`: of a blended image, that of either label by its share."""
    if "second_share" not in targets:
        return loss(targets[name])
    share = targets["second_share"]
    return (1 - share) * loss(targets[name]) + share * loss(targets[f"second_{name}"])


def ensemble(forward: Any, targets: Targets, label_smoothing: float = 0.0) -> tf.Tensor:
    """L_E (Eq. 3): the network's logits against the classes."""
    return _of_both(targets, "labels", lambda labels: cross_entropy(labels, forward.logits, label_smoothing))


def gater(forward: Any, targets: Targets, gater_targets: str = "hard") -> tf.Tensor:
    """L_G (Eq. 4): the gate's logits against the branch whose partition holds the class.

    Its labels are not smoothed: tau and `gate_weighted` take the gate's probabilities for what they say.

    A shared trunk (`Hydra(trunk=True)`) gives probabilities q of the classes, and the gate's are their sums
    p by cluster. Its loss is the cross-entropy of the classes, -ln q_y = -ln p_c(y) - ln(q_y / p_c(y)): L_G
    and, beside it, the choice within the cluster, which the trunk's own answer needs.

    Args:
        gater_targets: "hard", as above, or "teacher": the probabilities that a teacher gives the classes,
            summed by cluster but for a trunk; where it does not count, as above.
    """
    by_class = forward.class_logits is not None
    logits = forward.class_logits if by_class else forward.gate_logits
    name = "labels" if by_class else "own_branch"
    if gater_targets == "hard":
        return _of_both(targets, name, lambda label: cross_entropy(label, logits))
    taught = tf.nn.softmax(targets["teacher_logits"])
    taught = taught if by_class else taught @ targets["clusters"]
    weight = targets["teacher_weight"][:, tf.newaxis]

    def loss(label):
        wanted = weight * taught + (1 - weight) * tf.one_hot(label, logits.shape[-1])
        return tf.nn.softmax_cross_entropy_with_logits(wanted, logits)

    return _of_both(targets, name, loss)


def branch(forward: Any, targets: Targets, label_smoothing: float = 0.0) -> tf.Tensor | None:
    """L_b (Eq. 5): what the head of each image's own branch says, over all M classes; None without heads.

    An image lies in exactly one partition, so the B rows hold all that the N masked means need. The labels
    are smoothed as those of L_E: it is the same classification, and nobody asks a head how sure it is.
    """
    if forward.own_logits is None:
        return None
    return _of_both(
        targets, "labels", lambda labels: cross_entropy(labels, forward.own_logits, label_smoothing)
    )


def early_exit(forward: Any, targets: Targets) -> tf.Tensor:
    """L_X: what the classifier on the stem's map says against the classes.

    Its labels are not smoothed: how sure it is decides which images it answers.
    """
    return _of_both(targets, "labels", lambda labels: cross_entropy(labels, forward.exit_logits))


def distill(forward: Any, targets: Targets, distill_temperature: float = 1.0) -> tf.Tensor:
    """L_D: how far the network's logits are from a teacher's (Hinton, Vinyals and Dean 2015).

    T^2 KL(softmax(teacher / T) || softmax(logits / T)): 0 where they agree, and of the same size of gradients
    at every temperature T.
    """
    wanted = tf.nn.log_softmax(targets["teacher_logits"] / distill_temperature)
    found = tf.nn.log_softmax(forward.logits / distill_temperature)
    divergence = tf.reduce_sum(tf.exp(wanted) * (wanted - found), axis=-1)
    return targets["teacher_weight"] * distill_temperature**2 * divergence


SMOOTHED = {"label_smoothing": 0.0}
DISTILL = Loss(0.0, distill, needs=OF_TEACHER, options={"distill_temperature": 1.0})
# The default weights are the paper's alpha1, alpha2 and alpha3.
HYDRA = {
    "ensemble": Loss(1.0, ensemble, options=SMOOTHED),
    "gater": Loss(1.5, gater, options={"gater_targets": "hard"}),
    "branch": Loss(0.05, branch, groups="own", options=SMOOTHED),
    "exit": Loss(0.0, early_exit),
    "distill": DISTILL,
}
PLAIN = {"cross_entropy": Loss(1.0, ensemble, options=SMOOTHED), "distill": DISTILL}


def with_settings(losses: Mapping[str, Loss], settings: Mapping[str, Any]) -> dict[str, Loss]:
    """Returns the losses of a model: those that are on, as the settings want them, in the order of `losses`.

    Args:
        losses: `HYDRA` or `PLAIN`.
        settings: {"NAME_weight": float}, and the losses' options by name; those left out are the defaults.

    Raises:
        ValueError: a value that is out of its range, or a name that is none of a loss.
    """
    names = [f"{name}_weight" for name in losses]
    options = {option: None for loss in losses.values() for option in loss.options}
    if unknown := settings.keys() - {*names, *options}:
        raise ValueError(
            f"The options of the losses are {', '.join(options)}. The weights of the losses are "
            f"{', '.join(names)}. Received: {', '.join(unknown)}"
        )
    result = {}
    for (name, loss), key in zip(losses.items(), names, strict=True):
        weight = _checked(key, settings.get(key, loss.weight))
        given = {
            option: _checked(option, settings.get(option, loss.options[option])) for option in loss.options
        }
        if weight > 0 or loss.weight > 0:
            more = OF_TEACHER if given.get("gater_targets") == "teacher" else ()
            result[name] = dataclasses.replace(loss, weight=weight, options=given, needs=loss.needs + more)
    return result


def _checked(name, value):
    """A setting of the losses, within its range; a number as a float."""
    if name == "gater_targets":
        if value not in GATER_TARGETS:
            raise ValueError(f"{name} must be one of {', '.join(GATER_TARGETS)}. Received: {name}={value!r}")
        return value
    below, allowed = (1, "in [0, 1)") if name == "label_smoothing" else (math.inf, "at least 0 and finite")
    if name == "distill_temperature":
        allowed = "above 0 and finite"
    # Not float(): it would take "1" for a number.
    if isinstance(value, (str, bytes)) or not 0 <= value < below or (value == 0 and "above" in allowed):
        raise ValueError(f"{name} must be {allowed}. Received: {name}={value!r}")
    return float(value)


def sums(losses: Mapping[str, Loss], forward: Any, targets: Targets) -> dict[str, Sums]:
    """Returns the `Sums` of each loss over a batch.

    Args:
        losses: of `with_settings`.
        forward: the pass over the batch.
        targets: see `Loss`; sample_weight (B,) float32 among them weights each image in every loss.
    """
    return {name: _sums(name, loss, forward, targets) for name, loss in losses.items()}


def _sums(name, loss, forward, targets):
    groups = targets[loss.groups] if loss.groups else tf.ones_like(targets["labels"], tf.float32)[:, None]
    values = loss.function(forward, targets, **loss.options)
    if values is None:
        values = tf.zeros_like(groups[:, 0])
    if values.shape.rank != 1:
        raise ValueError(f"The loss {name} must give a value for each image. Received: shape {values.shape}")
    if "sample_weight" in targets:
        values *= targets["sample_weight"]
    return Sums(tf.linalg.matvec(groups, values, transpose_a=True), tf.reduce_sum(groups, axis=0))


def sums_of(values: tf.Tensor) -> Sums:
    """Returns the `Sums` of one group of all images, of a value (B,) for each."""
    return Sums(tf.reduce_sum(values, keepdims=True), tf.cast(tf.shape(values), tf.float32))


def total(losses: Mapping[str, Loss], means: Mapping[str, tf.Tensor]) -> tf.Tensor:
    """Returns the scalar sum of weight times mean over the losses (Eq. 7)."""
    return tf.add_n([loss.weight * means[name] for name, loss in losses.items()])
