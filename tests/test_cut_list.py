"""The table of the places at which a network can be cut."""

import keras
import pytest
from keras import layers

from dynkhydra_tf import cut_list, train
from dynkhydra_tf.settings import Settings


@pytest.fixture
def path(tmp_path):
    """Conv 3x3, 16x16x3 -> 8x8x4 and then -> 4x4x8, each with a normalisation and a ReLU."""
    x = inputs = keras.Input((None, None, 3))
    for name, filters in (("first", 4), ("second", 8)):
        x = layers.Conv2D(filters, 3, strides=2, padding="same", use_bias=False, name=f"{name}_conv")(x)
        x = layers.ReLU(name=f"{name}_relu")(layers.BatchNormalization(name=f"{name}_bn")(x))
    x = layers.Dense(7, name="classes")(layers.GlobalAveragePooling2D(name="pool")(x))
    keras.Model(inputs, x).save(tmp_path / "two.keras")
    return str(tmp_path / "two.keras")


def test_the_table(run_command, path, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    arguments = ("--cut=list", f"--backbone={path}", "--image_size=16", "--dataset=digits")
    assert run_command(train.main, Settings, *arguments) is None
    text = capsys.readouterr().out
    # 2 * 8*8*4 * 9*3 = 13,824 of these and 2 * 4*4*8 * 9*4 = 9,216.
    assert "first_relu (default)  8x8x4             60.0" in text
    assert "taken off, its pooling and its head (classes)" in text
    assert "The whole: 0.0 MFLOPs" in text
    assert [entry.name for entry in tmp_path.iterdir()] == ["two.keras"]  # nothing is trained


def test_it_is_for_networks_of_keras(run_command, capsys):
    assert run_command(train.main, Settings, "--cut=list", "--backbone=resnet") == 2
    assert "is for networks of Keras" in capsys.readouterr().err
    assert cut_list.CALLS > 1
