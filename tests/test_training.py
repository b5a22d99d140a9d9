import math

import keras
import pytest

from dynkhydra_tf.errors import UserError
from dynkhydra_tf.training import RunLog, learning_rate_schedule


def test_piecewise_drops_at_the_first_step_of_the_epoch():
    rate = learning_rate_schedule("piecewise", 1e-3, 10, 4, [(2, 0.1), (3, 0.01)])
    # Steps 0..19 are epochs 0 and 1, the paper's "at epoch 2" begins with step 20.
    for step, factor in [(0, 1), (19, 1), (20, 0.1), (29, 0.1), (30, 0.01), (39, 0.01)]:
        assert float(rate(step)) == pytest.approx(1e-3 * factor), step


def test_piecewise_without_drops_is_constant():
    assert learning_rate_schedule("piecewise", 1e-3, 10, 4) == 1e-3


def test_cosine_with_warm_up():
    rate = learning_rate_schedule("cosine", 2.0, 10, 5, warmup_epochs=1)
    # Linear to 2 at step 10; half way from 10 to 50 the cosine is at 1; at the end at 0.
    for step, value in [(0, 0), (5, 1), (10, 2), (30, 1), (50, 0)]:
        assert float(rate(step)) == pytest.approx(value, abs=1e-6), step


def test_cosine_without_warm_up():
    rate = learning_rate_schedule("cosine", 2.0, 10, 5)
    for step, value in [(0, 2), (25, 1), (50, 0)]:
        assert float(rate(step)) == pytest.approx(value, abs=1e-6), step


def test_a_warm_up_as_long_as_the_run():
    with pytest.raises(
        UserError, match=r"warmup_epochs must be less than epochs=2. Received: warmup_epochs=2"
    ):
        learning_rate_schedule("cosine", 1.0, 10, 2, warmup_epochs=2)


class FakeRun:
    checkpoints = "run/checkpoints"

    def __init__(self):
        self.said = []

    def append_metrics(self, row):
        self.said.append(("row", row["epoch"]))

    def save_checkpoint(self, model):
        self.said.append("checkpoint")


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


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_stops_before_anything_is_saved(log, loss):
    with pytest.raises(UserError, match=r"The loss became .* stopped. The last good checkpoint"):
        log.on_train_batch_end(0, {"loss": loss})
    with pytest.raises(UserError, match=r"The loss became"):
        log.on_epoch_end(0, {"loss": 1.0, "val_loss": loss})
    assert log.run.said == []
