"""How a training goes, told while it runs."""

import sys
import time
from collections.abc import Mapping
from typing import Any, Self, TextIO

import keras

from dynkhydra_tf.meter import Meter, duration


class Progress(keras.callbacks.Callback):
    """Tells how a training goes: within an epoch by a `Meter`, after each in one line; a context manager.

    The metrics are `loss`, `top1` and, where a model has branches, `active_branches`, lambda.

    Args:
        epochs: of the whole run.
        steps_per_epoch: of a whole epoch; the first one of a run that goes on may have fewer.
        stream: where to write; default: `sys.stdout`.
    """

    def __init__(self, epochs: int, steps_per_epoch: int, stream: TextIO | None = None) -> None:
        super().__init__()
        self.epochs, self.steps_per_epoch = epochs, steps_per_epoch
        self._stream = sys.stdout if stream is None else stream
        self._meter: Meter | None = None
        self._seconds: float | None = None  # of a whole epoch

    def __enter__(self) -> Self:
        """Returns itself."""
        return self

    def __exit__(self, *error: object) -> None:
        """Takes the bar away."""
        if self._meter is not None:
            self._meter.__exit__()

    def on_epoch_begin(self, epoch: int, logs: Mapping[str, Any] | None = None) -> None:
        """Begins a bar."""
        self._begun = time.monotonic()
        self._skipped = self.steps_per_epoch - self.params["steps"]
        heading = f"epoch {epoch + 1}/{self.epochs}"
        self._meter = Meter(heading, self.steps_per_epoch, "step", self._skipped, self._stream)
        self._epochs_after = self.epochs - epoch - 1

    def on_train_batch_end(self, batch: int, logs: Mapping[str, Any] | None = None) -> None:
        """Moves the bar on."""
        done = self._skipped + batch + 1
        note = f"loss {float(logs['loss']):.2f}, top-1 {float(logs['top1']):.1%}"
        self._meter.update(done, note, self._left_of_the_run)

    def on_epoch_end(self, epoch: int, logs: Mapping[str, Any] | None = None) -> None:
        """Tells what the epoch came to."""
        seconds = time.monotonic() - self._begun
        self._seconds = seconds * self.steps_per_epoch / self.params["steps"]
        self._meter.__exit__()
        parts = [
            f"loss {logs['loss']:.3f}",
            f"top-1 {logs['top1']:.1%}",
            f"val top-1 {logs['val_top1']:.1%}" if "val_top1" in logs else "",
            f"lambda {logs['val_active_branches']:.2f}" if "val_active_branches" in logs else "",
            f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s",
            f"{duration(self._seconds * self._epochs_after)} left" if self._epochs_after else "",
        ]
        line = f"epoch {epoch + 1}/{self.epochs}: {', '.join(filter(None, parts))}"
        print(line, file=self._stream, flush=True)

    def _left_of_the_run(self) -> float | None:
        """Before the first epoch's end by its steps, which leaves validation out; then by whole epochs."""
        if self._seconds is not None:
            elapsed = time.monotonic() - self._begun
            return max(self._seconds * (self._epochs_after + 1) - elapsed, 0)
        if self._meter.rate:
            steps = self.steps_per_epoch * (self._epochs_after + 1) - self._meter.done
            return steps / self._meter.rate
        return None
