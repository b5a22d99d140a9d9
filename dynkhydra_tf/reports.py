"""The running numbers that `fit` and `evaluate` report.

Axis letters: B batch, G groups.
"""

from collections.abc import Mapping

import keras
import tensorflow as tf

# Keras's callbacks look for a metric's direction only among the metrics of such a list.
from keras.src.trainers.compile_utils import MetricsList

from dynkhydra_tf import losses
from dynkhydra_tf.losses import Loss, Sums


class MeanOfSums(keras.metrics.Metric):
    """A loss over all the images since the last reset, whatever the batches were: see `losses.Sums`.

    On several replicas each adds the sums over all of them, and any one can be read.

    Args:
        num_groups: int, G.
        direction: "up" where more is better, "down" where less is, None where neither.
    """

    def __init__(self, num_groups: int, name: str, direction: str | None) -> None:
        super().__init__(name=name, dtype="float32")
        if direction:
            self._direction = direction
        of_all = {"aggregation": "only_first_replica"}
        self.loss = self.add_variable((num_groups,), "zeros", name="loss", **of_all)
        self.images = self.add_variable((num_groups,), "zeros", name="images", **of_all)

    def update_state(self, sums: Sums) -> None:
        """Adds a batch."""
        self.loss.assign_add(sums.loss)
        self.images.assign_add(sums.images)

    def result(self) -> tf.Tensor:
        """Scalar float32."""
        return Sums(self.loss.value, self.images.value).mean


class TotalLoss(keras.metrics.Metric):
    """The weighted sum of the losses.

    Args:
        terms: the losses by name.
        means: their `MeanOfSums`; this metric resets them.
    """

    _direction = "down"

    def __init__(self, terms: Mapping[str, Loss], means: Mapping[str, MeanOfSums]) -> None:
        super().__init__(name="loss", dtype="float32")
        self._terms = terms
        self._means = means

    def reset_state(self) -> None:
        """Forgets all images."""
        for mean in self._means.values():
            mean.reset_state()

    def result(self) -> tf.Tensor:
        """Scalar float32."""
        return losses.total(self._terms, {name: mean.result() for name, mean in self._means.items()})


class _Directions(MetricsList):
    """Shows metrics to Keras's callbacks; they are reset and reported by themselves."""

    def reset_state(self) -> None:
        """Nothing."""

    def result(self) -> dict:
        """Nothing."""
        return {}


class Report:
    """All numbers that a model reports; no Keras object, so that they are no part of a saved model.

    Args:
        terms: the losses by name.
        group_sizes: G of each target that a loss's groups can name.
        numbers: further numbers by name: "up" where more is better, "down" where less is, None where neither.
    """

    def __init__(
        self, terms: Mapping[str, Loss], group_sizes: Mapping[str, int], numbers: Mapping[str, str | None]
    ) -> None:
        self._means = {
            name: MeanOfSums(group_sizes[loss.groups] if loss.groups else 1, f"{name}_loss", "down")
            for name, loss in terms.items()
        }
        self._numbers = {name: MeanOfSums(1, name, direction) for name, direction in numbers.items()}
        parts = self._means.values() if len(terms) > 1 else ()  # one alone is the total
        self._reported = [TotalLoss(terms, self._means), *parts, *self._numbers.values()]
        self.metrics = [*self._reported, _Directions(self._reported)]

    def update(self, sums: Mapping[str, Sums]) -> None:
        """Adds a batch: the `Sums` of each loss, and those of each number."""
        for name, mean in (self._means | self._numbers).items():
            mean.update_state(sums[name])

    def nothing(self) -> dict[str, Sums]:
        """What a batch without images gives."""
        both = {name: tf.zeros(mean.loss.shape) for name, mean in (self._means | self._numbers).items()}
        return {name: Sums(zeros, zeros) for name, zeros in both.items()}

    def results(self) -> dict[str, tf.Tensor]:
        """The numbers since the last reset, scalars by name."""
        return {metric.name: metric.result() for metric in self._reported}
