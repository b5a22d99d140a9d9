import math
import os
import signal

import keras
import numpy as np
import pytest
import tensorflow as tf

from dynkhydra_tf.errors import UserError
from dynkhydra_tf.partition import ClassPartition
from dynkhydra_tf.runs import RunDirectory
from dynkhydra_tf.settings import PlaceSettings, Settings
from dynkhydra_tf.training import RunLog, fit, last_learning_rate


class FakeRun:
    checkpoints = "run/checkpoints"

    def __init__(self):
        self.said = []

    def append_metrics(self, row):
        self.said.append(("row", row["epoch"]))

    def save_checkpoint(self, model):
        self.said.append("checkpoint")


def small_classifier(rate=0.1):
    """A compiled model of two numbers and three classes, always of the same weights."""
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(3)])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    top1 = keras.metrics.SparseCategoricalAccuracy(name="top1")
    model.compile(keras.optimizers.SGD(rate), loss, metrics=[top1], jit_compile=False)
    return model


@pytest.fixture
def log():
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    model.compile("adamw", "mse")
    log = RunLog(FakeRun())
    log.set_model(model)
    log.on_epoch_begin(0)
    return log


def test_the_row_comes_before_the_checkpoint(log):
    log.on_epoch_end(0, {"loss": 1.0, "val_loss": 1.0})
    assert log.run.said == [("row", 1), "checkpoint"]


def test_the_rate_in_a_row_is_the_one_that_was_used():
    def rate_after(steps, rate):
        optimizer = keras.optimizers.SGD(rate)
        optimizer.iterations.assign(steps)
        return last_learning_rate(optimizer)

    # A drop at step 4, the first of another epoch: the step before it, number 3, still has the old rate.
    drop = keras.optimizers.schedules.PiecewiseConstantDecay([3], [0.5, 0.25])
    assert [rate_after(steps, drop) for steps in (1, 4, 5)] == [0.5, 0.5, 0.25]
    assert rate_after(4, 0.125) == 0.125


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_stops_before_anything_is_saved(log, loss):
    with pytest.raises(UserError, match=r"The loss became .* stopped. The last good checkpoint"):
        log.on_train_batch_end(0, {"loss": loss})
    with pytest.raises(UserError, match=r"The loss became"):
        log.on_epoch_end(0, {"loss": 1.0, "val_loss": loss})
    # An epoch that is not evaluated: the weights tell.
    log.model.layers[0].kernel.assign([[1.0], [loss]])
    with pytest.raises(UserError, match=r"The loss became"):
        log.on_epoch_end(0, {"loss": 1.0})
    assert log.run.said == []
    log.model.layers[0].kernel.assign([[1.0], [1.0]])
    log.on_epoch_end(0, {"loss": 1.0})
    assert log.run.said == [("row", 1), "checkpoint"]


STEPS, EPOCHS = 4, 3


def open_run(path):
    return RunDirectory.open(Settings(place=PlaceSettings(run_dir=str(path))))


def train(path, make_hydra, batch):
    """Trains to the end of the last epoch, from the last checkpoint or from the start."""
    with open_run(path) as run:
        if run.continued:
            model, done = run.load_checkpoint()
            run.go_on(done)
        else:
            model, done = make_hydra(), 0
            model.compile(keras.optimizers.AdamW(1e-2))
            run.start(ClassPartition("toy", ("a",), (0,), "random"))
        images, labels = batch(np.arange(STEPS * EPOCHS * 6) % 6)
        batches = tf.data.Dataset.from_tensor_slices((images, labels)).batch(6).skip(done)
        held_out = tf.data.Dataset.from_tensors(batch([0, 1, 2, 3], seed=1))
        fit(model, run, batches, held_out, EPOCHS, STEPS, done, verbose=False)
        return model, run


@pytest.mark.parametrize(
    ("kill_at", "saved_at"),
    # In the middle of the first and of the last epoch; at the last batch, which lets the epoch end.
    [
        (2, 2),
        pytest.param(10, 10, marks=pytest.mark.slow),
        pytest.param(4, 4, marks=pytest.mark.slow),
        pytest.param(12, 12, marks=pytest.mark.slow),
    ],
)
def test_a_run_stopped_by_a_signal_goes_on_as_if_nothing_had_been(
    make_hydra, batch, tmp_path, monkeypatch, kill_at, saved_at
):
    expected, whole = train(tmp_path / "whole", make_hydra, batch)

    watch = RunLog.on_train_batch_end

    def watch_and_kill(self, index, logs=None):
        watch(self, index, logs)
        if int(self.model.optimizer.iterations.numpy()) == kill_at:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(RunLog, "on_train_batch_end", watch_and_kill)
    with pytest.raises(SystemExit) as leaving:
        train(tmp_path / "stopped", make_hydra, batch)
    assert leaving.value.code == 128 + signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    with open_run(tmp_path / "stopped") as run:
        assert run.load_checkpoint()[1] == saved_at

    monkeypatch.setattr(RunLog, "on_train_batch_end", watch)
    model, run = train(tmp_path / "stopped", make_hydra, batch)
    rows, whole_rows = run.metric_rows(), whole.metric_rows()
    assert [(row["epoch"], row["step"]) for row in rows] == [(1, 4), (2, 8), (3, 12)]
    for row, whole_row in zip(rows, whole_rows, strict=True):
        assert row["val_loss"] == pytest.approx(whole_row["val_loss"], rel=1e-3)
    for mine, theirs in zip(model.weights, expected.weights, strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-2, atol=1e-3, err_msg=mine.path)


def test_epochs_that_are_evaluated(tmp_path):
    """Every second one of five, and the last; also of a run that goes on within an epoch."""
    model = small_classifier()
    rng = np.random.default_rng(0)
    images, labels = rng.normal(size=(10, 1, 2)).astype(np.float32), np.arange(10)[:, None] % 3
    batches = tf.data.Dataset.from_tensor_slices((images, labels))
    with open_run(tmp_path) as run:
        run.start()
        # Step 3 is the first of two in the second epoch.
        model.fit(batches.take(3), verbose=0)
        fit(model, run, batches.skip(3), batches, 5, 2, 3, verbose=False, patience=3, evaluate_every=2)
        rows = run.metric_rows()
    evaluated = [(row["epoch"], "val_top1" in row) for row in rows]
    assert evaluated == [(2, True), (3, False), (4, True), (5, True)]
    assert all(row.keys() >= {"loss", "top1", "seconds"} for row in rows)
    accuracy = {int(row["epoch"]): row["val_top1"] for row in rows if "val_top1" in row}
    assert run.best_row()["epoch"] == max(accuracy, key=accuracy.get)
    best = {int(path.stem.removeprefix("step-")) for path in run.checkpoints.glob("*.keras")}
    assert best == {8, 10, run.best_row()["step"]}


@pytest.mark.parametrize("patience", [0, 5])
def test_a_checkpoint_after_every_so_many_epochs_the_last_and_the_best(tmp_path, monkeypatch, patience):
    model = small_classifier(rate=0.0)  # the first is the best
    images, labels = np.ones((5, 1, 2), np.float32), np.ones((5, 1), int)
    batches = tf.data.Dataset.from_tensor_slices((images, labels))
    saved, save = [], RunDirectory.save_checkpoint

    def note(run, model):
        saved.append(int(model.optimizer.iterations.numpy()))
        save(run, model)

    monkeypatch.setattr(RunDirectory, "save_checkpoint", note)
    with open_run(tmp_path) as run:
        run.start()
        fit(model, run, batches, batches, 5, 1, verbose=False, patience=patience, checkpoint_every=2)
    assert saved == ([1] if patience else []) + [2, 4, 5]
    kept = sorted(path.name for path in run.checkpoints.glob("*.keras"))
    assert kept == [f"step-{step:08d}.keras" for step in ([1] if patience else []) + [4, 5]]


def test_a_signal_at_the_end_of_an_epoch_without_a_checkpoint_saves_one(tmp_path, monkeypatch):
    model = small_classifier()
    images, labels = np.ones((5, 1, 2), np.float32), np.ones((5, 1), int)
    batches = tf.data.Dataset.from_tensor_slices((images, labels))
    append = RunDirectory.append_metrics

    def append_and_signal(run, row):
        append(run, row | {"val_top1": 0.0})
        if row["epoch"] == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(RunDirectory, "append_metrics", append_and_signal)
    with open_run(tmp_path) as run:
        run.start()
        with pytest.raises(SystemExit):
            fit(model, run, batches, batches, 5, 1, verbose=False, checkpoint_every=10)
        assert [path.name for path in run.checkpoints.glob("*.keras")] == ["step-00000003.keras"]
        assert [row["epoch"] for row in run.metric_rows()] == [1, 2, 3]


@pytest.mark.slow
def test_early_stopping_ends_a_run_that_is_no_better_and_keeps_the_best_epoch(
    make_hydra, batch, tmp_path, capsys
):
    images, labels = batch(np.arange(STEPS * EPOCHS * 6) % 6)
    batches = tf.data.Dataset.from_tensor_slices((images, labels)).batch(6)
    held_out = tf.data.Dataset.from_tensors(batch([0, 1, 2, 3], seed=1))

    def train_early(model, run, done):
        fit(model, run, batches.skip(done), held_out, EPOCHS, STEPS, done, verbose=False, patience=1)
        return run.load_best()

    # At a rate of 0 only the statistics move: of two epochs that are as good the first is the best.
    model = make_hydra(tau=0.0)
    model.compile(keras.optimizers.SGD(0.0))
    for variable in model.gater.variables:  # and these change nothing in what is answered
        variable.assign(variable * 0)
    with open_run(tmp_path) as run:
        run.start(ClassPartition("toy", ("a",), (0,), "random"))
        best = train_early(model, run, 0)
        rows = run.metric_rows()
        run_best = int(run.best_row()["epoch"])
    assert len(rows) == run_best + 1 < EPOCHS + 1
    assert int(best.optimizer.iterations) == run_best * STEPS
    assert f"1 epochs were no better than epoch {run_best}: the training ends" in capsys.readouterr().out

    # Killed before model.keras was written, it trains no more, and comes to the same.
    with open_run(tmp_path) as run:
        model, done = run.load_checkpoint()
        assert done == (run_best + 1) * STEPS
        again = train_early(model, run, done)
        assert run.metric_rows() == rows
    for one, other in zip(again.variables, best.variables, strict=True):
        np.testing.assert_array_equal(one, other)
