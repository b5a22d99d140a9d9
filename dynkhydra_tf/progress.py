"""How far long work is, and how long it will take: a bar on a terminal, elsewhere a line now and then."""

import sys
import time
from collections.abc import Callable, Mapping
from typing import Any, Self, TextIO

import keras
from tqdm import tqdm

SECONDS_BETWEEN_LINES = 30.0


class Meter:
    """How many of a known number of things are done; a context manager, which ends the bar.

    Args:
        heading: what they belong to, such as "epoch 3/12".
        total: how many there are.
        unit: what one is called, such as "step".
        done: how many of them were done before.
        stream: where to write; default: `sys.stdout`.
    """

    def __init__(
        self, heading: str, total: int, unit: str, done: int = 0, stream: TextIO | None = None
    ) -> None:
        self.heading, self.total, self.unit = heading, total, unit
        self._stream = sys.stdout if stream is None else stream
        self._bar = None
        self._before = self.done = done
        self._first = None  # (seconds, done): the rate leaves out the first update, which traces and reads
        self._told = time.monotonic()

    def __enter__(self) -> Self:
        """Returns itself."""
        return self

    def __exit__(self, *error: object) -> None:
        """Takes the bar away."""
        if self._bar is not None:
            self._bar.close()

    @property
    def rate(self) -> float | None:
        """Things a second; None before the second update."""
        if self._first is None or self.done == self._first[1]:
            return None
        seconds, done = self._first
        return (self.done - done) / (time.monotonic() - seconds)

    def update(self, done: int, note: str = "", run_left: Callable[[], float | None] = lambda: None) -> None:
        """Says that so many are done, those before included.

        Args:
            done: how many.
            note: what else there is to tell, such as "loss 2.31".
            run_left: gives the seconds that are left of a whole run, of which these things are a part.
        """
        self.done = done
        if self._first is None:
            self._first = (time.monotonic(), done)
        if self._stream.isatty():
            self._bar = self._bar or self._make_bar()
            seconds = run_left()
            parts = [note, "" if seconds is None else f"run {duration(seconds)}"]
            self._bar.set_postfix_str(", ".join(filter(None, parts)), refresh=False)
            self._bar.update(done - self._bar.n)
        elif time.monotonic() - self._told >= SECONDS_BETWEEN_LINES and self.rate:
            self._told = time.monotonic()
            parts = [note, f"{self.rate:.3g} {self.unit}s/s"]
            parts.append(f"{duration((self.total - done) / self.rate)} left")
            seconds = run_left()
            parts.append("" if seconds is None else f"{duration(seconds)} of the run")
            head = f"{self.heading}, {self.unit} {done}/{self.total}"
            print(f"{head}: {', '.join(filter(None, parts))}", file=self._stream, flush=True)

    def _make_bar(self) -> tqdm:
        return tqdm(
            total=self.total,
            initial=self._before,
            desc=self.heading,
            unit=self.unit,
            file=self._stream,
            bar_format="{desc} |{bar}| {n_fmt}/{total_fmt} {rate_fmt} {remaining} left{postfix}",
            leave=False,
            dynamic_ncols=True,
        )


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
        self._meter = None
        self._seconds = None  # of a whole epoch

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
            f"val top-1 {logs['val_top1']:.1%}",
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


def duration(seconds: float) -> str:
    """Returns a time as "0:52", "12:03" or "3:05:00"."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
