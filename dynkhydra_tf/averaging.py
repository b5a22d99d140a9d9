"""Moving averages of a model's weights, kept by its optimizer: evaluated and saved in place of the weights.

    average += (1 - d) (weight - average), d = min(ema_decay, (1 + step) / (10 + step))

after every step, so that the first weights do not stay for long. Training goes on with the weights.

The moving statistics of batch normalisation are averaged as the weights are: averaged weights are those of
some time ago, and so are then the statistics beside them. Keras's own `use_ema` averages no statistics; it
takes a branch as the optimizer leaves it, before `Hydra.update` puts it back; and at the end of each `fit` it
puts the averages into the model, from which a run that goes on would train.
"""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import keras
import tensorflow as tf


class Averaging:
    """Beside an optimizer of Keras: averages of weights among its variables, saved and loaded with it.

    Args:
        ema_decay: float in [0, 1), how much of an average stays in a step; 0 for no averages.
    """

    def __init__(self, *args: Any, ema_decay: float = 0.0, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.ema_decay = ema_decay
        self._pairs: tuple[tuple[keras.Variable, keras.Variable], ...] = ()

    def build_averages(self, variables: Sequence[keras.Variable]) -> None:
        """Makes the averages of those of the variables that are floats, once; they begin as these are."""
        if not self.ema_decay or self._pairs:
            return
        averaged = [variable for variable in variables if tf.as_dtype(variable.dtype).is_floating]
        add = self.add_variable_from_reference  # type: ignore[attr-defined]  # the optimizer's
        self._pairs = tuple((variable, add(variable, "average")) for variable in averaged)
        self.restart_averages()

    def take_averages(self, earlier: "Averaging") -> None:
        """Goes on from those of an earlier optimizer of the same model, where it had some."""
        kept = {id(variable): average for variable, average in earlier._pairs}
        for variable, average in self._pairs:
            average.assign(kept.get(id(variable), variable))

    def restart_averages(self) -> None:
        """Begins them anew with the weights as they are now."""
        for variable, average in self._pairs:
            average.assign(variable)

    def update_averages(self) -> None:
        """Moves the averages towards the weights, once the step is counted."""
        step = tf.cast(self.iterations, tf.float32)  # type: ignore[attr-defined]
        share = 1 - tf.minimum(self.ema_decay, (1 + step) / (10 + step))
        for variable, average in self._pairs:
            average.assign_add(tf.cast(share, average.dtype) * (variable.value - average.value))

    def swap_averages(self) -> None:
        """Gives the model the averages, and keeps its weights in their place; or the other way round."""
        for variable, average in self._pairs:
            kept = tf.identity(variable.value)
            variable.assign(average)
            average.assign(kept)

    def end_averages(self) -> None:
        """Gives the model the averages for good."""
        for variable, average in self._pairs:
            variable.assign(average)

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments."""
        return {**super().get_config(), "ema_decay": self.ema_decay}  # type: ignore[misc]


def build_optimizer(model: keras.Model, trained: Sequence[keras.Variable] | None = None) -> None:
    """Makes the state of a compiled model's optimizer; without it, the first step would be traced twice.

    Args:
        trained: the variables that it moves, in the order of the gradients; None for the trainable ones.
    """
    model.optimizer.build(list(model.trainable_variables if trained is None else trained))
    if isinstance(model.optimizer, Averaging):
        model.optimizer.build_averages(model.variables)


def restart_averages(model: keras.Model) -> None:
    """Begins a model's averages anew with its weights as they are now; nothing where it has none."""
    if isinstance(model.optimizer, Averaging):
        model.optimizer.restart_averages()


def update_averages(model: keras.Model) -> None:
    """Moves a model's averages towards its weights, at the end of a step; nothing where it has none."""
    if isinstance(model.optimizer, Averaging):
        model.optimizer.update_averages()


def swap_averages(model: keras.Model) -> None:
    """Gives a model its averages in place of its weights, or the weights back; nothing where it has none."""
    if isinstance(model.optimizer, Averaging):
        model.optimizer.swap_averages()


def end_averages(model: keras.Model) -> None:
    """Gives a model its averages for good; nothing where it has none."""
    if isinstance(model.optimizer, Averaging):
        model.optimizer.end_averages()


@contextlib.contextmanager
def averaged(model: keras.Model) -> Iterator[None]:
    """Within the block a model has its averages in place of its weights, where it has any."""
    swap_averages(model)
    try:
        yield
    finally:
        swap_averages(model)
