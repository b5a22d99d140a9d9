import keras
import numpy as np
import pytest
import tensorflow as tf

from dynkhydra_tf.averaging import averaged, build_optimizer, end_averages
from dynkhydra_tf.optimisation import make_optimizer
from dynkhydra_tf.plain import Plain
from dynkhydra_tf.runs import RunDirectory
from dynkhydra_tf.settings import OptimisationSettings, PlaceSettings, Settings
from dynkhydra_tf.training import fit
from tests.conftest import TinyBackbone, coloured_images

LABELS = np.arange(12) % 6


def optimizer(**settings):
    settings = {"ema_decay": 0.4, "learning_rate": 0.05, "schedule": "piecewise", "lr_drops": (), **settings}
    return make_optimizer(OptimisationSettings(**settings), 1)


def values(owner):
    """Those of all variables of a model or an optimizer."""
    return [variable.numpy() for variable in owner.variables]


def assert_same(found, expected):
    for mine, theirs in zip(found, expected, strict=True):
        np.testing.assert_array_equal(mine, theirs)


def test_averages_by_hand(make_hydra, fix_gate):
    """Of weights and statistics, also of a branch that Hydra puts back after the optimizer has moved it."""
    model = make_hydra(top_k=1, branch_weight=0.0)  # an image runs one branch alone
    fix_gate(model, [0.98, 0.01, 0.01])
    model.compile(optimizer(optimizer="adamw", weight_decay=0.5))
    build_optimizer(model)
    expected = [value.astype(np.float64) for value in values(model)]
    images, labels = coloured_images(LABELS)
    idle = model.branches.stacks[0].numpy()[1:]
    for step in (1, 2, 3):
        model.train_on_batch(images, labels)
        # 2/11, 3/12, and 0.3077 = 4/13 at last: all below 0.4.
        keep = {1: 2 / 11, 2: 3 / 12, 3: 4 / 13}[step]
        expected = [keep * e + (1 - keep) * value for e, value in zip(expected, values(model), strict=True)]
    np.testing.assert_array_equal(model.branches.stacks[0].numpy()[1:], idle)
    weights = values(model)
    with averaged(model):
        changed = 0
        for variable, average, weight in zip(model.variables, expected, weights, strict=True):
            np.testing.assert_allclose(variable, average, rtol=2e-5, atol=1e-6, err_msg=variable.path)
            changed += bool(np.abs(variable.numpy() - weight).max() > 1e-5)
            if "moving" in variable.path and "branches" not in variable.path:
                assert np.abs(variable.numpy() - weight).max() > 1e-4
        assert changed > len(weights) / 2
        np.testing.assert_array_equal(model.branches.stacks[0].numpy()[1:], idle)
    assert_same(values(model), weights)


def test_of_a_long_training_ema_decay_stays():
    variable = keras.Variable(1.0)
    kept = optimizer(ema_decay=0.9)
    kept.build([variable])
    kept.build_averages([variable, keras.Variable(3, dtype="int32")])
    kept.iterations.assign(1000)
    variable.assign(3.0)
    kept.update_averages()
    kept.swap_averages()
    assert float(variable.numpy()) == pytest.approx(0.9 * 1 + 0.1 * 3)
    kept.swap_averages()
    assert float(variable.numpy()) == 3


def train(path, stop_at=None):
    """Trains a plain network for 2 epochs of 3 steps in a run's directory: the model, the run's rows."""
    images, labels = coloured_images(np.arange(36) % 6)
    held_out = tf.data.Dataset.from_tensors(coloured_images(LABELS, seed=1))
    with open_run(path) as run:
        if run.continued:
            model, done = run.load_checkpoint()
            run.go_on(done)
        else:
            model, done = make_plain(ema_decay=0.9), 0
            build_optimizer(model)
            run.start()
        batches = tf.data.Dataset.from_tensor_slices((images, labels)).batch(6).skip(done)
        if stop_at:  # as a signal does
            model.fit(batches.take(stop_at - done), shuffle=False, verbose=0)
            run.save_checkpoint(model)
            return model, None
        fit(model, run, batches, held_out, 2, 3, done, verbose=False)
        end_averages(model)
        run.save_model(model)
        return model, run.metric_rows()


def make_plain(**settings):
    keras.utils.set_random_seed(0)
    model = Plain(TinyBackbone(), 6)
    model.compile(optimizer(optimizer="sgd", **settings))
    return model


def open_run(path):
    return RunDirectory.open(Settings(place=PlaceSettings(run_dir=str(path))))


@pytest.mark.slow
def test_a_run_that_goes_on_has_the_averages_of_one_that_was_not_stopped(tmp_path):
    whole, rows = train(tmp_path / "whole")
    stopped, _ = train(tmp_path / "stopped", stop_at=2)
    with open_run(tmp_path / "stopped") as run:
        loaded, step = run.load_checkpoint()
    # To the last bit, the weights and what was averaged.
    assert step == 2
    assert_same(values(loaded), values(stopped))
    assert_same(values(loaded.optimizer), values(stopped.optimizer))
    (file,) = (tmp_path / "stopped" / "checkpoints").glob("*.keras")
    with averaged(stopped):
        assert_same(values(keras.saving.load_model(file)), values(stopped))
    again, more_rows = train(tmp_path / "stopped")
    for row, other in zip(more_rows, rows, strict=True):
        assert row["val_loss"] == pytest.approx(other["val_loss"], rel=1e-4)
    for mine, theirs in zip(values(again), values(whole), strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-3, atol=1e-4)

    # Validated and saved are the averages.
    held_out = coloured_images(LABELS, seed=1)
    result = whole.evaluate(*held_out, batch_size=12, verbose=0, return_dict=True)
    assert result["loss"] == pytest.approx(rows[-1]["val_loss"], rel=1e-5)
    checkpoint = tmp_path / "whole" / "checkpoints" / "step-00000006.keras"
    for file in (tmp_path / "whole" / "model.keras", checkpoint):
        assert_same(values(keras.saving.load_model(file)), values(whole))

    # The weights go the way that they go without averages, and end elsewhere than these.
    plain = make_plain(ema_decay=0.0)
    images, labels = coloured_images(np.arange(36) % 6)
    plain.fit(images, labels, batch_size=6, shuffle=False, verbose=0)
    with open_run(tmp_path / "whole") as run:
        best = run.load_best()
        file = run.checkpoints / f"step-{int(best.optimizer.iterations.numpy()):08d}.keras"
        end_averages(best)
        assert_same(values(best), values(keras.saving.load_model(file)))
        loaded, _ = run.load_checkpoint()
    for mine, theirs in zip(values(loaded), values(plain), strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-3, atol=1e-4)
    assert any(np.abs(a - b).max() > 1e-2 for a, b in zip(values(whole), values(plain), strict=True))
