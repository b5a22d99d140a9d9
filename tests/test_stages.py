"""The whole command with a frozen stem: maps, then images; killed between, it goes on."""

import csv

import keras
import numpy as np
import pytest
import tensorflow as tf

from dynkhydra_tf import stages, train
from dynkhydra_tf.flags import parse
from dynkhydra_tf.frozen_maps import MapData, draw_view
from dynkhydra_tf.settings import Settings

SMALL = (
    "--dataset=digits",
    "--image_size=8",
    "--system=plain",
    "--batch_size=400",
    "--cutout=0",
    "--shift=0",
)


@pytest.fixture
def network(tmp_path):
    keras.utils.set_random_seed(0)
    x = inputs = keras.Input((None, None, 3))
    for name, filters in (("block1", 4), ("block2", 8)):
        x = keras.layers.Conv2D(filters, 3, strides=2, padding="same", use_bias=False, name=f"{name}_conv")(x)
        x = keras.layers.ReLU(name=f"{name}_relu")(keras.layers.BatchNormalization(name=f"{name}_bn")(x))
    keras.Model(inputs, x).save(tmp_path / "network.keras")
    return tmp_path / "network.keras"


@pytest.mark.slow
def test_maps_then_images_and_on_from_between(run_command, network, tmp_path, capsys, monkeypatch):
    def command(run, *arguments):
        places = (f"--run_dir={tmp_path}/{run}", f"--cache_dir={tmp_path}/cache", f"--backbone={network}")
        return run_command(train.main, Settings, *SMALL, *places, *arguments)

    def rows(run):
        with open(tmp_path / run / "metrics.csv", newline="") as file:
            return [{key: float(value) for key, value in row.items()} for row in csv.DictReader(file)]

    arguments = ("--epochs=3", "--freeze=until_epoch:2", "--learning_rate=0.01")
    assert command("whole", *arguments) is None
    printed = capsys.readouterr().out
    assert "Maps of the frozen part, train: 1198 images, 2 views, 4x4x4 float16, 0.3 MB" in printed
    assert [row["step"] for row in rows("whole")] == [2, 4, 6]  # of 1198 images, 2 batches of 400
    assert [row["learning_rate"] for row in rows("whole")] == pytest.approx([0.01, 0.01, 0.001])
    model = keras.models.load_model(tmp_path / "whole" / "model.keras")
    trained = {variable.path.split("/")[-2] for variable in model.trainable_variables}
    assert "block1_conv" in trained and "block1_bn" not in trained

    # Killed before the stem is let go, the same command ends the same.
    def stop(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(stages, "unfreeze", stop)
        assert command("killed", *arguments) == 130
    assert len(rows("killed")) == 2
    capsys.readouterr()
    assert command("killed", *arguments) is None
    assert "Maps of" not in capsys.readouterr().out  # there they are
    again = keras.models.load_model(tmp_path / "killed" / "model.keras")
    for one, other in zip(again.variables, model.variables, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_images_are_changed_and_blended_once_there_are_images(run_command, network, tmp_path, capsys):
    places = (f"--run_dir={tmp_path}/run", f"--cache_dir={tmp_path}/cache", f"--backbone={network}")
    more = ("--epochs=2", "--freeze=until_epoch:1", "--rand_augment=0.5", "--mixup=0.4", "--num_branches=2")
    more += ("--top_k=1", "--feature_extractor=pixels", "--class_weights=balanced", "--system=hydra")
    assert run_command(train.main, Settings, *SMALL, *places, *more) is None
    assert "--rand_augment and --mixup begin after epoch 1" in capsys.readouterr().out
    with open(tmp_path / "run" / "metrics.csv", newline="") as file:
        assert [float(row["loss"]) > 0 for row in csv.DictReader(file)] == [True, True]


def test_evaluation_batch_size():
    assert [stages.evaluation_batch_size(size) for size in (8, 32, 64, 224)] == [256, 256, 64, 16]


def test_balanced_weights():
    # 6 images: 3 of class 0, 1 of class 1, 2 of class 2; 6 / (3 * 3), 6 / (3 * 1), 6 / (3 * 2).
    weights = stages.balanced_weights(np.array([0, 0, 1, 2, 0, 2]))
    np.testing.assert_allclose(weights, [2 / 3, 2, 1])
    labels = np.repeat([0, 1], [1000, 1])
    assert stages.balanced_weights(labels)[labels].sum() == pytest.approx(1001)


def test_one_photo_among_a_thousand_does_not_count_as_a_thousand(capsys):
    labels = np.repeat([0, 1, 2], [1000, 1, 500])
    weights = stages.balanced_weights(labels, limit=10)
    np.testing.assert_allclose(weights / weights[0], [1, 10, 2])  # of 1000 there would be 1000
    assert weights[labels].mean() == pytest.approx(1)
    settings = parse(["--class_weights=balanced"]).optimisation
    data = MapData("some", {"train": (np.zeros((len(labels), 1, 2), np.float16), labels)})
    np.testing.assert_allclose(stages.class_weights(settings, data), weights)
    assert "the images of 1 of 3 classes would count more than 10 times as much" in capsys.readouterr().out
    settings = parse(["--class_weights=balanced", "--class_weight_limit=2000"]).optimisation
    np.testing.assert_allclose(stages.class_weights(settings, data), stages.balanced_weights(labels))
    assert capsys.readouterr().out == ""
    assert stages.class_weights(parse([]).optimisation, data) is None


def test_batches_of_an_unbalanced_set_carry_the_weights_of_their_classes():
    data = MapData(
        "some", {"train": (np.zeros((8, 1, 2), np.float16), np.array([0] * 6 + [1] * 2, np.int32))}
    )
    mixed = {"labels": [0, 1], "second_labels": [1, 1], "second_share": [0.25, 0.5]}
    settings = parse(["--batch_size=2", "--class_weights=balanced"])
    with pytest.MonkeyPatch.context() as patch:
        blended = tf.data.Dataset.from_tensors((np.zeros((2, 2)), mixed))
        patch.setattr(stages, "training_batches", lambda *_, **__: blended)
        given = stages.class_weights(settings.optimisation, data)
        ((_, _, weights),) = stages._batches(settings, data, 1, 0, draw_view, given)
        np.testing.assert_allclose(weights, [0.75 * 8 / 12 + 0.25 * 2, 2])
    for how, expected in (("none", None), ("balanced", {0: 8 / 12, 1: 2.0})):
        settings = parse(["--batch_size=4", f"--class_weights={how}"])
        given = stages.class_weights(settings.optimisation, data)
        batches = list(stages._batches(settings, data, 1, 0, draw_view, given))
        assert len(batches) == 2 and len(batches[0]) == (3 if expected else 2)
        for _, labels, *weights in batches:
            for label, weight in zip(labels.numpy(), weights[0] if weights else (), strict=bool(weights)):
                assert float(weight) == pytest.approx(expected[label])
