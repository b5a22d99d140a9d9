"""The classifier by logistic regression: the problem that it solves, and the whole command with it."""

import csv
import json

import keras
import numpy as np
import pytest

from dynkhydra_tf import train
from dynkhydra_tf.errors import UserError
from dynkhydra_tf.flags import parse
from dynkhydra_tf.regression import fit_regression
from dynkhydra_tf.settings import Settings
from tests.test_stages import SMALL, network  # noqa: F401

FOLDED = "ignore:__array__ implementation:DeprecationWarning"


def data(classes, each, views=1, seed=0):
    """Clouds of points of unlike scale around one place for each class: (n, V, 6), (n,)."""
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(classes), each)
    places = np.random.default_rng(1).normal(size=(classes, 6))
    points = places[labels][:, None] + rng.normal(scale=0.4, size=(len(labels), views, 6))
    return (points * [1, 10, 100, 0.1, 1, 0] + [0, 5, 0, 0, 50, 3]).astype(np.float32), labels


@pytest.mark.parametrize(("classes", "weighted"), [(2, False), (4, True)])
def test_it_is_the_minimum_of_the_penalised_loss(classes, weighted):
    features, labels = data(classes, 15, views=2)
    weights = np.linspace(0.5, 1.5, classes) if weighted else None
    found = fit_regression(features, labels, weights, classes)
    assert found.kernel.shape == (6, classes) and found.bias.shape == (classes,)
    # The gradient of sum(w_i loss_i) / V + |kernel of standardised features|^2 / 2C is 0, the bias's too.
    mean, spread = features.mean((0, 1)), np.maximum(features.std((0, 1)), 1e-9)
    spread[5] = 1  # it is the same everywhere
    x = ((features - mean) / spread).reshape(-1, 6)
    y = np.eye(classes)[np.repeat(labels, 2)]
    logits = features.reshape(-1, 6) @ found.kernel + found.bias
    p = np.exp(logits - logits.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    counted = (np.ones(classes) if weights is None else weights)[np.repeat(labels, 2)] / 2
    slope = ((p - y) * counted[:, None]).T @ x
    # Of two classes scikit-learn has one vector, the difference: either class has half of it.
    penalty = (found.kernel * spread[:, None]).T / found.strength * (2 if classes == 2 else 1)
    scale = np.abs(x.T @ (counted[:, None] * y)).max()
    np.testing.assert_allclose((slope + penalty) / scale, 0, atol=2e-3)
    np.testing.assert_allclose(((p - y) * counted[:, None]).sum(0) / counted.sum(), 0, atol=2e-3)


def test_it_tells_new_points_and_has_no_images_to_choose_with():
    features, labels = data(4, 30)
    found = fit_regression(features, labels, None, 4)
    others, their_labels = data(4, 50, seed=7)
    # The nearest of the four places tells 0.94 of such points.
    right = (others[:, 0] @ found.kernel + found.bias).argmax(1) == their_labels
    assert right.mean() > 0.88
    single = fit_regression(features[::30], labels[::30], None, 4)  # one image of each class
    assert single.strength == 0.01 and np.isfinite(single.kernel).all()
    assert ((features[::30, 0] @ single.kernel + single.bias).argmax(1) == labels[::30]).all()


@pytest.mark.filterwarnings(FOLDED)
def test_all_of_a_training_or_its_start(run_command, network, tmp_path, capsys):  # noqa: F811
    def command(run, *arguments):
        places = (f"--run_dir={tmp_path}/{run}", f"--cache_dir={tmp_path}/cache", f"--backbone={network}")
        more = ("--classifier=regression", "--validation_fraction=0.2", "--epochs=1")
        return run_command(train.main, Settings, *SMALL, *places, *more, *arguments)

    def rows(run):
        with open(tmp_path / run / "metrics.csv", newline="") as file:
            return list(csv.DictReader(file))

    assert command("head", "--freeze=all") is None
    assert "classifier by logistic regression on 958 x 2 x 8 features, C=" in capsys.readouterr().out
    (row,) = rows("head")
    assert (row["epoch"], row["step"]) == ("0", "0") and float(
        row["val_top1"]
    ) > 0.3  # of 10 classes, drawn: 0.1
    summary = json.loads((tmp_path / "head" / "summary.json").read_text())
    assert summary["best_epoch"] == 0 and summary["top1"] > 0.3
    kernel = keras.models.load_model(tmp_path / "head" / "model.keras").network.layers[-1].get_weights()[0]

    # Begun there, an epoch that makes it worse is not kept.
    assert (
        command("tail", "--freeze=stem", "--early_stopping=1", "--learning_rate=10", "--ema_decay=0.5")
        is None
    )
    first, second = rows("tail")
    assert (first["epoch"], second["epoch"]) == ("0", "1")
    assert first["val_top1"] == row["val_top1"] and float(second["val_top1"]) < float(first["val_top1"])
    assert json.loads((tmp_path / "tail" / "summary.json").read_text())["best_epoch"] == 0
    kept = keras.models.load_model(tmp_path / "tail" / "model.keras").network.layers[-1].get_weights()[0]
    np.testing.assert_allclose(kept, kernel, rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--freeze=none",), "needs the maps of a network of Keras: add --freeze=stem"),
        (("--freeze=stem", "--cached_views=0"), "Received: --freeze=stem, --cached_views=0"),
        (("--freeze=stem", "--distribute=workers"), "is for one process"),
    ],
)
def test_where_there_are_no_maps(flags, message):
    with pytest.raises(UserError, match=message):
        parse(["--system=plain", "--backbone=MobileNetV2", "--classifier=regression", *flags])
    parse(["--system=hydra", "--backbone=MobileNetV2", "--classifier=regression", *flags])
