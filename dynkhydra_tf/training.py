"""Training: the callbacks that make a run safe to kill."""

import math
import signal
import sys
import time
from collections.abc import Sequence

import keras
import numpy as np
import tensorflow as tf

from dynkhydra_tf.averaging import swap_averages
from dynkhydra_tf.distribution import dealt
from dynkhydra_tf.errors import UserError
from dynkhydra_tf.progress import Progress
from dynkhydra_tf.runs import RunDirectory
from dynkhydra_tf.workers import ALONE, Workers


class RunLog(keras.callbacks.Callback):
    """After each epoch: its row in metrics.csv, then a checkpoint; before that, watches the loss.

    In this order a kill between the two costs no row: going on from a checkpoint drops the rows past
    it. A loss that is not finite ends the run with a `UserError` before anything is saved.

    Args:
        run: `RunDirectory`.
        saved: the epochs, from 1, after which there is a checkpoint; None: all.
        keep_best: bool, whether there is one after an epoch that is the best so far, too.
    """

    def __init__(
        self, run: RunDirectory, saved: Sequence[int] | None = None, keep_best: bool = False
    ) -> None:
        super().__init__()
        self.run, self.saved, self.keep_best = run, saved, keep_best

    def on_epoch_begin(self, epoch: int, logs: dict | None = None) -> None:
        """Starts the clock."""
        self.start = time.monotonic()

    def on_train_batch_end(self, batch: int, logs: dict | None = None) -> None:
        """Stops at a loss that is not finite."""
        self._check(logs["loss"])

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        """Writes the row and the checkpoint."""
        # The last step may have broken the weights.
        if "val_loss" in logs:
            self._check(logs["val_loss"])
        else:
            finite = all(np.isfinite(weight.numpy()).all() for weight in self.model.trainable_weights)
            self._check(0.0 if finite else math.nan)
        row = {
            "epoch": epoch + 1,
            "step": int(self.model.optimizer.iterations.numpy()),
            "seconds": time.monotonic() - self.start,
            "learning_rate": last_learning_rate(self.model.optimizer),
        }
        self.run.append_metrics({**row, **{name: float(value) for name, value in logs.items()}})
        best = self.run.best_row() if self.keep_best else None
        is_best = best is not None and int(best["epoch"]) == epoch + 1
        if is_best or self.saved is None or epoch + 1 in self.saved:
            self.run.save_checkpoint(self.model)

    def _check(self, loss):
        if not math.isfinite(loss):
            step = int(self.model.optimizer.iterations.numpy())
            raise UserError(
                f"The loss became {float(loss)} by step {step}; stopped. The last good checkpoint stays in "
                f"{self.run.checkpoints}; try a lower --learning_rate in another --run_dir"
            )


def last_learning_rate(optimizer: keras.Optimizer) -> float:
    """Returns the rate of the last step; Keras's `optimizer.learning_rate` is the next one's."""
    rate = optimizer._learning_rate
    if isinstance(rate, keras.optimizers.schedules.LearningRateSchedule):
        return float(rate(optimizer.iterations - 1))
    return float(optimizer.learning_rate.numpy())


class StopOnSignal(keras.callbacks.Callback):
    """On SIGTERM or SIGINT: saves a checkpoint after the batch in hand and leaves with 128 + signal.

    During validation it lets the epoch end first, so that its row is not lost. It listens while it is
    entered as a context manager. Of several workers all leave after the same batch.

    Args:
        run: `RunDirectory`.
        workers: who else may get a signal.
    """

    def __init__(self, run: RunDirectory, workers: Workers = ALONE) -> None:
        super().__init__()
        self.run, self.workers = run, workers
        self.received: signal.Signals | None = None

    def __enter__(self) -> "StopOnSignal":
        """Takes over the two signals."""
        self.before = {s: signal.signal(s, self._receive) for s in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, *error: object) -> None:
        """Gives them back; tells what was saved, and leaves if one came after the last epoch was."""
        for number, handler in self.before.items():
            signal.signal(number, handler)
        if self.received and error[0] in (None, SystemExit):
            print(
                f"{self.received.name}: saved in {self.run.checkpoints}; the same command, without "
                "--overwrite, goes on from there.",
                flush=True,
            )
            self._leave()

    def on_train_batch_end(self, batch: int, logs: dict | None = None) -> None:
        """Saves and leaves, if told to; after the last batch of an epoch, validation comes first."""
        if batch + 1 < self.params["steps"] and self._is_told():
            self.run.save_checkpoint(self.model)
            self._leave()

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        """Saves and leaves, if told to."""
        if self._is_told():
            self.run.save_checkpoint(self.model)
            self._leave()

    def _is_told(self):
        """Whether a signal has come, to this worker or to another one."""
        # Nothing else: one that comes to this worker after the question is for the next time.
        if not self.workers.any(self.received is not None):
            return False
        self.received = self.received or signal.SIGTERM
        return True

    def _receive(self, number, frame):
        self.received = signal.Signals(number)  # no print: the signal may have come within another one

    def _leave(self):
        sys.exit(128 + self.received)


class EarlyStopping(keras.callbacks.Callback):
    """Ends the training when so many epochs were no better than the best one, by the rows of `RunLog`.

    Args:
        run: `RunDirectory`.
        patience: int, epochs; 0 for never.
    """

    def __init__(self, run: RunDirectory, patience: int) -> None:
        super().__init__()
        self.run, self.patience = run, patience

    @property
    def is_over(self) -> bool:
        """Whether the run has come to that, now or before it was interrupted."""
        return bool(self.patience) and self.run.epochs_since_best() >= self.patience

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        """Ends it."""
        if self.is_over:
            self.model.stop_training = True
            best = int(self.run.best_row()["epoch"])
            print(f"{self.patience} epochs were no better than epoch {best}: the training ends", flush=True)


class ValidateAverages(keras.callbacks.Callback):
    """Validates the averages of the weights, where the optimizer keeps some."""

    def on_test_begin(self, logs: dict | None = None) -> None:
        """Gives the model the averages."""
        swap_averages(self.model)

    def on_test_end(self, logs: dict | None = None) -> None:
        """Gives it the weights back."""
        swap_averages(self.model)


def fit(
    model: keras.Model,
    run: RunDirectory,
    batches: tf.data.Dataset,
    validation: tf.data.Dataset,
    epochs: int,
    steps_per_epoch: int,
    done: int = 0,
    verbose: bool = True,
    patience: int = 0,
    evaluate_every: int = 1,
    checkpoint_every: int = 1,
    workers: Workers = ALONE,
) -> None:
    """Trains a compiled model from step `done` to the end of the last epoch.

    Args:
        model: compiled Keras model whose step reports `loss` and `top1`.
        run: `RunDirectory`.
        batches: `tf.data.Dataset` of all batches from step `done` on; of several workers, its part of each.
        validation: `tf.data.Dataset` to evaluate.
        epochs, steps_per_epoch: ints.
        done: int, steps done; within an epoch, that epoch's remaining steps come first, and its row
            in metrics.csv holds their means.
        verbose: bool, whether to tell how it goes.
        patience: int, see `EarlyStopping`.
        evaluate_every: int, after how many epochs; the last one is evaluated always.
        checkpoint_every: int, likewise.
        workers: who trains it together; the chief keeps the log and tells how it goes.

    Raises:
        UserError: the loss is not finite.
    """
    early = EarlyStopping(run, patience)
    epoch, step = divmod(done, steps_per_epoch)
    # (first epoch, end, steps in each): a broken-off epoch has fewer steps than the others.
    stretches = [(epoch, epoch + 1, steps_per_epoch - step)] if step else []
    stretches.append((epoch + bool(step), epochs, steps_per_epoch))

    def after_every(count):
        return [number for number in range(1, epochs + 1) if number % count == 0 or number == epochs]

    with StopOnSignal(run, workers) as stop, Progress(epochs, steps_per_epoch) as progress:
        callbacks = [ValidateAverages(), RunLog(run, after_every(checkpoint_every), keep_best=patience > 0)]
        if workers.is_chief:
            callbacks.append(keras.callbacks.TensorBoard(run.logs, write_graph=False))
        callbacks += [stop, *([progress] if verbose and workers.is_chief else []), early]
        for first, end, steps in stretches:
            if first < end and not early.is_over:
                model.fit(
                    dealt(batches, model, workers.count),
                    initial_epoch=first,
                    epochs=end,
                    steps_per_epoch=steps,
                    validation_data=validation,
                    validation_freq=after_every(evaluate_every),
                    callbacks=callbacks,
                    shuffle=False,  # the pipeline does
                    verbose=0,
                )
            batches = batches.skip(steps)
