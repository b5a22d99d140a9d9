"""Training on several devices or by several processes, on tf.distribute, and what a step needs of it.

Every device, a replica, has a copy of the model and takes its share of each batch. A model calls the
functions of the second part within its step; where no strategy is in force they leave everything as it is on
one device. All copies stay the same: what a step assigns is computed from sums over the replicas.

Axis letters: R replicas, N branches (nb).
"""

import contextlib
import functools
import itertools
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import keras
import tensorflow as tf

from dynkhydra_tf.memory import keep_freed_memory

STRATEGIES = ("none", "mirrored", "workers")

# === For a command: which devices ===


def open_strategy(distribute: str) -> tf.distribute.Strategy | None:
    """Returns the strategy of a `--distribute` of one process, None for "none"; workers bring their own.

    Tells which devices it has: TensorFlow may not see all that are there.
    """
    if distribute == "mirrored":
        devices = tf.config.list_logical_devices("GPU") or tf.config.list_logical_devices("CPU")
        named = ", ".join(device.name.removeprefix("/device:") for device in devices)
        print(f"--distribute=mirrored: {named}{'' if devices[1:] else ', which is as without it'}")
        keep_freed_memory()
        return _mirrored(tuple(device.name for device in devices))
    return None


@functools.cache  # a second one in a process would number its messages as the first one does
def _mirrored(devices):
    return tf.distribute.MirroredStrategy(devices)


def scope(strategy: tf.distribute.Strategy | None) -> contextlib.AbstractContextManager:
    """Returns the block in which models and optimizers are made, loaded and compiled for a strategy."""
    return contextlib.nullcontext() if strategy is None else strategy.scope()


def scope_of(model: keras.Model) -> contextlib.AbstractContextManager:
    """Returns the `scope` of the strategy that a model was made for."""
    return scope(model._distribute_strategy)


def set_sync_batch_norm(strategy: tf.distribute.Strategy | None, wanted: bool) -> None:
    """Says whether models of a strategy normalise in training by the statistics of all replicas' images."""
    if strategy is not None:
        strategy.dynkhydra_sync_batch_norm = wanted


def count_replicas(strategy: tf.distribute.Strategy | None) -> int:
    """Returns how many devices of all processes a batch is divided among."""
    return 1 if strategy is None else strategy.num_replicas_in_sync


def dealt(batches: tf.data.Dataset, model: keras.Model, parts: int) -> Any:
    """Returns a worker's part of the batches as `fit` takes them, dealt to its devices; not divided again.

    Args:
        batches: the part of each batch that is this worker's.
        model: what is to be trained.
        parts: among how many workers a batch is divided; where it is 1, `fit` deals.
    """
    if parts == 1:
        return batches
    strategy = model._distribute_strategy
    devices = strategy.num_replicas_in_sync // parts
    if devices > 1:
        size = batches.element_spec[0].shape[0]
        batches = batches.rebatch(size // devices)
    return strategy.distribute_datasets_from_function(lambda context: batches)


def each_batch(
    model: keras.Model, step: Callable[..., tuple[tf.Tensor, ...]], batches: tf.data.Dataset
) -> Iterator[tuple[tf.Tensor, ...]]:
    """Yields what a step gives for each batch, in their order; on several devices as many batches at a time.

    Each process calls it for itself. What is left at the end, fewer batches than devices, one device does.

    Args:
        model: that of the step; says which devices there are, one where it is no Keras model.
        step: a `tf.function` of a batch, which adds nothing up over the replicas.
        batches: of tuples.
    """
    strategy, batches = getattr(model, "_distribute_strategy", None), iter(batches)
    devices = 1 if strategy is None else len(strategy.extended.worker_devices)
    together = tf.function(lambda *parts: strategy.run(step, args=parts), reduce_retracing=True)
    while group := list(itertools.islice(batches, devices)):
        if 1 < devices == len(group):
            give = strategy.experimental_distribute_values_from_function
            parts = zip(*group, strict=True)
            parts = [give(lambda of, part=part: part[of.replica_id_in_sync_group]) for part in parts]
            yield from zip(*map(strategy.experimental_local_results, together(*parts)), strict=True)
        else:
            yield from (step(*batch) for batch in group)


# === For a model: within its step ===


def is_replica() -> bool:
    """Whether the step that is traced is one of a strategy, which assigns nothing within a tf.cond."""
    return tf.distribute.has_strategy() and not tf.distribute.in_cross_replica_context()


def is_shared() -> bool:
    """Whether that strategy has several replicas; nothing is added up within a tf.cond."""
    return is_replica() and tf.distribute.get_strategy().num_replicas_in_sync > 1


_pass = threading.local()  # what a pass over a batch knows; replicas are traced in threads of their own


def add_up(tensors: Sequence[tf.Tensor]) -> list[tf.Tensor]:
    """Returns the sum over the replicas of each of some tensors of one type, in one message.

    Parcels of that type travel with it.
    """
    if not is_shared() or not tensors:
        return list(tensors)
    parcels = [parcel for parcel in _waiting() if parcel.dtype == tensors[0].dtype]
    _pass.waiting = [parcel for parcel in _waiting() if parcel not in parcels]
    together = [*tensors, *(tensor for parcel in parcels for tensor in parcel.tensors)]
    flat = tf.concat([tf.reshape(tensor, [-1]) for tensor in together], axis=0)
    flat = tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, flat)
    parts = tf.split(flat, [tf.size(tensor) for tensor in together], num=len(together))
    sums = iter([tf.reshape(part, tf.shape(tensor)) for part, tensor in zip(parts, together, strict=True)])
    mine = list(itertools.islice(sums, len(tensors)))
    for parcel in parcels:
        parcel.added = list(itertools.islice(sums, len(parcel.tensors)))
    return mine


class Parcel:
    """Tensors of one type whose sums over the replicas can wait: they travel with the next message.

    A message, however small, takes a millisecond of processor time, and waits for the slowest replica.

    Args:
        tensors: at least one.
    """

    def __init__(self, tensors: Sequence[tf.Tensor]) -> None:
        self.tensors = list(tensors)
        self.added: list[tf.Tensor] | None = None
        if is_shared():
            _pass.waiting = [*_waiting(), self]

    @property
    def dtype(self) -> tf.DType:
        """Of all the tensors."""
        return self.tensors[0].dtype

    def sums(self) -> list[tf.Tensor]:
        """Returns the sums; where there was no message yet, the parcel is one."""
        if not is_shared():
            return self.tensors
        if self.added is None:
            _pass.waiting = [parcel for parcel in _waiting() if parcel is not self]
            self.added = add_up(self.tensors)
        return self.added


def _waiting():
    return getattr(_pass, "waiting", [])


def anywhere(condition: tf.Tensor) -> Parcel:
    """Returns a parcel of bools of any shape as floats; its sum is above 0 where a replica has them true."""
    return Parcel([tf.cast(condition, tf.float32)])


def shares_statistics() -> bool:
    """Whether batch normalisation is to take the statistics of all replicas' images."""
    return is_shared() and getattr(tf.distribute.get_strategy(), "dynkhydra_sync_batch_norm", False)


@contextlib.contextmanager
def counting(weight: tf.Tensor) -> Iterator[None]:
    """Within the block the rows of a batch count so much in `moments`, 1 or 0, in place of 1.

    A branch that no image of this replica needs runs on a row that does not count: the other replicas wait
    for what it adds.
    """
    _pass.weight = weight
    try:
        yield
    finally:
        del _pass.weight


def moments(x: tf.Tensor, about: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Returns count (), mean and variance (C,) of the pixels of all replicas' x (B, H, W, C), float32.

    Args:
        about: (C,), the same everywhere; the nearer to the mean, the less is lost to rounding. Where no row
            counts it is the mean, and the variance is 0.
    """
    mean, variance = tf.nn.moments(x, [0, 1, 2])
    count = tf.cast(tf.size(x) // x.shape[-1], tf.float32) * getattr(_pass, "weight", 1.0)
    mean -= about
    before = getattr(_pass, "sum_before", 0.0)
    sums = add_up([count, count * mean, count * (variance + mean**2), tf.convert_to_tensor(before)])
    # The gradients of sums are sums, too. A tape takes those of parallel layers in any order, and the
    # replicas must take the same: each sum has the one before it, which is 0, among its terms.
    count, first, second, _pass.sum_before = sums
    mean = tf.math.divide_no_nan(first, count)
    return count, about + mean, tf.nn.relu(tf.math.divide_no_nan(second, count) - mean**2)


def packed(results: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
    """Returns a step's scalars, the same on all replicas, as Keras takes them.

    For several processes that is with a leading axis, each apart averaged over these; here all in one.
    """
    if is_replica() and isinstance(tf.distribute.get_strategy(), tf.distribute.MultiWorkerMirroredStrategy):
        return {",".join(results): tf.stack([tf.cast(value, tf.float32) for value in results.values()])[None]}
    return results


def unpacking(step: Callable[..., dict[str, tf.Tensor]]) -> Callable[..., dict[str, tf.Tensor]]:
    """Returns a function that gives the scalars of a step by name, whether they were `packed` or not."""

    @functools.wraps(step)
    def run(*args):
        results = step(*args)
        if len(results) == 1 and next(iter(results.values())).shape.rank:
            ((names, values),) = results.items()
            # One worker's still have the leading axis.
            return dict(zip(names.split(","), tf.unstack(tf.reshape(values, [-1])), strict=True))
        return results

    return run


class Moving:
    """What a pass over a batch moves but the weights: statistics of normalisation, states of random draws.

    Within the block the pass leaves them as they are; `send` and `apply` then move them on all replicas
    alike. Where there is one replica they move as they always do.

    Args:
        variables: the model's.
    """

    def __init__(self, variables: Iterable[keras.Variable]) -> None:
        self._variables = list(variables)
        self._before: dict[int, tf.Tensor] = {}
        self._sent: list[tuple[list[keras.Variable], Parcel]] = []
        self._scope: Any = contextlib.nullcontext()
        if is_shared():
            replica = tf.distribute.get_replica_context().replica_id_in_sync_group
            for variable in self._variables:
                # Else all replicas would draw the same, such as which units drop out.
                draws = 0 if tf.as_dtype(variable.dtype).is_floating else replica
                self._before[id(variable)] = variable.value + tf.cast(draws, variable.dtype)
            before = [self._before[id(variable)] for variable in self._variables]
            self._scope = keras.StatelessScope(list(zip(self._variables, before, strict=True)))

    def __enter__(self) -> "Moving":
        """Returns itself."""
        self._scope.__enter__()
        _pass.__dict__.clear()  # of a pass that could not be traced to its end
        return self

    def __exit__(self, *error: object) -> None:
        """Ends the block."""
        self._scope.__exit__(*error)

    def send(self, images: tf.Tensor, branch_images: tf.Tensor | None) -> None:
        """Adds up what moved them on each replica, with the next message.

        Args:
            images: scalar, how many of the batch this replica saw.
            branch_images: (N,), how many each of its branches saw.
        """
        if not is_shared():
            return
        moved = []
        for variable in self._variables:
            before, after = self._before[id(variable)], self._scope.get_current_value(variable)
            if after is not before:
                moved.append((variable, before, after))
        for kind in {variable.dtype: None for variable, _, _ in moved}:
            self._send([entry for entry in moved if entry[0].dtype == kind], images, branch_images)

    def _send(self, moved, images, branch_images):
        """Sends those of one type."""
        floats = tf.as_dtype(moved[0][0].dtype).is_floating
        number = tf.float32 if floats else tf.int64
        weights, sums = [], []
        for variable, before, after in moved:
            weight = branch_images if getattr(variable, "of_branches", False) else images
            # A random state moves by the same number wherever it does.
            weights.append(tf.cast(weight if floats else weight > 0, number))
            sums.append(_along(weights[-1], before) * (tf.cast(after, number) - tf.cast(before, number)))
        self._sent.append(([variable for variable, _, _ in moved], Parcel(sums + weights)))

    def apply(self) -> None:
        """Moves them by the mean over the images that each replica saw; a branch that ran nowhere stays."""
        for variables, parcel in self._sent:
            totals = parcel.sums()
            for variable, total, weight in zip(variables, totals, totals[len(variables) :], strict=False):
                weight = _along(weight, total)
                floats = total.dtype.is_floating
                step = tf.math.divide_no_nan(total, weight) if floats else total // tf.maximum(weight, 1)
                variable.assign(tf.cast(tf.cast(variable.value, total.dtype) + step, variable.dtype))


def _along(weight, tensor):
    """A scalar as it is; (N,) shaped to multiply (N, ...)."""
    return tf.reshape(weight, [-1] + [1] * (tensor.shape.rank - 1)) if weight.shape.rank else weight
