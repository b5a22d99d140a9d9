"""The optimizer of a run: its rate over the steps and of the branches, and what its weight decay touches."""

import re
from typing import Any

import keras
import tensorflow as tf

from dynkhydra_tf.averaging import Averaging
from dynkhydra_tf.distribution import add_up, is_shared
from dynkhydra_tf.settings import OptimisationSettings


def make_optimizer(
    settings: OptimisationSettings, steps_per_epoch: int, unfrozen_from: int | None = None
) -> keras.optimizers.Optimizer:
    """Returns the optimizer of a run, not yet built.

    Args:
        settings: of the run.
        steps_per_epoch: int.
        unfrozen_from: the epoch from which on the rate is times `unfrozen_rate`, or None.
    """
    rate = learning_rate_schedule(settings, steps_per_epoch)
    if unfrozen_from is not None:
        rate = LowerFrom(rate, unfrozen_from * steps_per_epoch, settings.unfrozen_rate)
    given: dict[str, Any] = {
        "decay_kernels_only": settings.decay_kernels_only,
        "branch_gradient_scale": settings.branch_gradient_scale,
        "ema_decay": settings.ema_decay,
    }
    if settings.optimizer == "sgd":
        return SGD(rate, weight_decay=settings.weight_decay or None, momentum=0.9, nesterov=True, **given)
    return AdamW(rate, weight_decay=settings.weight_decay, **given)  # it takes no None


def learning_rate_schedule(settings: OptimisationSettings, steps_per_epoch: int) -> Any:
    """Returns the learning rate of a run, a Keras schedule or a constant.

    `piecewise`, the paper's: the base rate, and from epoch e on the base rate times the factor of each drop.
    `cosine` and `linear`: a linear warm-up, then down to 0.
    """
    base, epochs = settings.learning_rate, settings.epochs
    if settings.schedule == "piecewise":
        if not settings.lr_drops:
            return base
        return keras.optimizers.schedules.PiecewiseConstantDecay(
            # Keras's boundaries are inclusive.
            [epoch * steps_per_epoch - 1 for epoch, _ in settings.lr_drops],
            [base, *(base * factor for _, factor in settings.lr_drops)],
        )
    warmup = round(settings.warmup_epochs * steps_per_epoch)
    decay = epochs * steps_per_epoch - warmup
    if settings.schedule == "linear":
        return LinearDecay(base, warmup, decay)
    if not warmup:
        return keras.optimizers.schedules.CosineDecay(base, decay)
    return keras.optimizers.schedules.CosineDecay(0.0, decay, warmup_target=base, warmup_steps=warmup)


@keras.saving.register_keras_serializable("dynkhydra_tf")
class LinearDecay(keras.optimizers.schedules.LearningRateSchedule):
    """Up from 0 to a peak in a straight line, then down to 0 in another.

    Args:
        peak: float, the highest rate.
        warmup_steps, decay_steps: ints, the steps up to it and from it on.
    """

    def __init__(self, peak: float, warmup_steps: int, decay_steps: int) -> None:
        super().__init__()
        self.peak, self.warmup_steps, self.decay_steps = peak, warmup_steps, decay_steps

    def __call__(self, step: Any) -> tf.Tensor:
        """Returns the rate at a step, float32."""
        step = tf.cast(step, tf.float32)
        up = step / max(self.warmup_steps, 1)
        down = 1 - (step - self.warmup_steps) / self.decay_steps
        share = tf.where(step < self.warmup_steps, up, tf.maximum(down, 0.0))
        return self.peak * share

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments."""
        return {"peak": self.peak, "warmup_steps": self.warmup_steps, "decay_steps": self.decay_steps}


@keras.saving.register_keras_serializable("dynkhydra_tf")
class LowerFrom(keras.optimizers.schedules.LearningRateSchedule):
    """Another schedule, from a step on times a factor.

    Args:
        schedule: a Keras schedule, or a float.
        step: int, the first step at the lower rate.
        factor: float.
    """

    def __init__(self, schedule: Any, step: int, factor: float) -> None:
        super().__init__()
        self.schedule, self.step, self.factor = schedule, step, factor

    def __call__(self, step: Any) -> tf.Tensor:
        """Returns the rate at a step."""
        rate = self.schedule(step) if callable(self.schedule) else self.schedule
        return tf.where(tf.cast(step, tf.int64) < self.step, rate, rate * self.factor)

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments."""
        schedule = keras.saving.serialize_keras_object(self.schedule)
        return {"schedule": schedule, "step": self.step, "factor": self.factor}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "LowerFrom":
        """Returns the schedule that `get_config` described."""
        return cls(**{**config, "schedule": keras.saving.deserialize_keras_object(config["schedule"])})


class _Recipe(Averaging):
    """What an optimizer does with some of the variables alone, and averages of all.

    Args:
        decay_kernels_only: bool, weight decay on kernels alone, not on biases and the scales and offsets of
            normalisation. By the variables' names, for the stacks of the branches have an axis more than what
            they are stacks of. Keras's own `exclude_from_weight_decay` is not saved with the optimizer.
        branch_gradient_scale: float > 0, factor on the rate of the branches, weight decay excepted. A branch
            sees K/nb of the images, and of the mean over a batch that L_E is, its gradient is as small a
            share. With SGD this is a factor on the gradients; AdamW divides that by itself. Their heads have
            none: L_b is a mean over a branch's own images.
    """

    def __init__(
        self,
        *args: Any,
        decay_kernels_only: bool = False,
        branch_gradient_scale: float = 1.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.decay_kernels_only = decay_kernels_only
        self.branch_gradient_scale = branch_gradient_scale

    def _use_weight_decay(self, variable: tf.Variable) -> bool:
        # TensorFlow appends ":0", and before it "/replica_1" to the copy of a second device.
        name = re.sub(r"(/replica_\d+)?:\d+$", "", variable.name)
        return not self.decay_kernels_only or name.endswith("kernel")

    def update_step(self, gradient: tf.Tensor, variable: tf.Variable, learning_rate: tf.Tensor) -> None:
        """Keras's, of a branch at its own rate."""
        index = self._get_variable_index(variable)  # type: ignore[attr-defined]
        if getattr(self._trainable_variables[index], "of_branches", False):  # type: ignore[attr-defined]
            learning_rate = learning_rate * self.branch_gradient_scale
        if isinstance(gradient, tf.IndexedSlices) or not self.in_one_pass:
            super().update_step(gradient, variable, learning_rate)  # type: ignore[misc]
        else:
            variable = variable.value if isinstance(variable, keras.Variable) else variable
            self.update_in_one_pass(tf.cast(gradient, variable.dtype), variable, index, learning_rate)

    def _all_reduce_sum_gradients(self, grads_and_vars):
        """Keras's, over the replicas, in one message where it would send one for each variable."""
        grads_and_vars = list(grads_and_vars)
        if not is_shared():
            return grads_and_vars
        there = {i: tf.convert_to_tensor(g) for i, (g, _) in enumerate(grads_and_vars) if g is not None}
        sums = dict(zip(there, add_up(list(there.values())), strict=True))
        return [(sums.get(i), variable) for i, (_, variable) in enumerate(grads_and_vars)]

    @property
    def in_one_pass(self) -> bool:
        """Whether TensorFlow has one op for what this optimizer does to a variable."""
        return True

    def update_in_one_pass(
        self, gradient: tf.Tensor, variable: tf.Variable, index: int, learning_rate: tf.Tensor
    ) -> None:
        """Does what Keras's `update_step` does, by one op in place of one for each sign of the formula.

        Args:
            gradient: of the variable's dtype. variable: of TensorFlow. index: of what belongs to it.
            learning_rate: scalar.
        """
        raise NotImplementedError

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments."""
        config = super().get_config()
        names = ("decay_kernels_only", "branch_gradient_scale")
        return {**config, **{name: getattr(self, name) for name in names}}


@keras.saving.register_keras_serializable("dynkhydra_tf")
class SGD(_Recipe, keras.optimizers.SGD):
    """Keras's SGD with decoupled weight decay, and what `_Recipe` adds."""

    @property
    def in_one_pass(self) -> bool:
        """Not without momentum, which is one pass in Keras."""
        return self.momentum > 0

    def update_in_one_pass(
        self, gradient: tf.Tensor, variable: tf.Variable, index: int, learning_rate: tf.Tensor
    ) -> None:
        """See `_Recipe`."""
        tf.raw_ops.ResourceApplyKerasMomentum(
            var=variable.handle,
            accum=self.momentums[index].value.handle,
            lr=tf.cast(learning_rate, variable.dtype),
            grad=gradient,
            momentum=tf.cast(self.momentum, variable.dtype),
            use_nesterov=self.nesterov,
        )


@keras.saving.register_keras_serializable("dynkhydra_tf")
class AdamW(_Recipe, keras.optimizers.AdamW):
    """Keras's AdamW, and what `_Recipe` adds."""

    @property
    def in_one_pass(self) -> bool:
        """Not with amsgrad."""
        return not self.amsgrad

    def update_in_one_pass(
        self, gradient: tf.Tensor, variable: tf.Variable, index: int, learning_rate: tf.Tensor
    ) -> None:
        """See `_Recipe`."""
        step = tf.cast(self.iterations.value + 1, variable.dtype)
        beta_1, beta_2 = (tf.cast(beta, variable.dtype) for beta in (self.beta_1, self.beta_2))
        tf.raw_ops.ResourceApplyAdam(
            var=variable.handle,
            m=self._momentums[index].value.handle,
            v=self._velocities[index].value.handle,
            beta1_power=beta_1**step,
            beta2_power=beta_2**step,
            lr=tf.cast(learning_rate, variable.dtype),
            beta1=beta_1,
            beta2=beta_2,
            epsilon=tf.cast(self.epsilon, variable.dtype),
            grad=gradient,
        )
