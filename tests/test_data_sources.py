import os
import time
from pathlib import Path

import numpy as np
import pytest
import requests
import tensorflow_datasets as tfds

from dynkhydra_tf.data import sources
from dynkhydra_tf.data.sources import DigitsSource, TfdsSource
from dynkhydra_tf.errors import UserError

TFDS_DIR = Path(__file__).parents[2] / "shared" / "data" / "tfds"
needs_cifar100 = pytest.mark.skipif(
    not (TFDS_DIR / "cifar100").is_dir(), reason="the real CIFAR-100 is not in ../shared/data/tfds"
)


@pytest.fixture
def no_network(monkeypatch):
    """Every request fails at once, and is counted."""
    asked = []

    def fail(url, *args, **kwargs):
        asked.append((url, kwargs))
        raise requests.ConnectionError("no route\nto host")

    monkeypatch.setattr(requests, "get", fail)
    monkeypatch.setattr(requests.Session, "request", fail)
    return asked


def test_a_data_dir_that_is_not_there_is_refused_before_any_download(no_network, tmp_path):
    with pytest.raises(UserError) as caught:
        TfdsSource("cifar100", data_dir=tmp_path / "absent")
    assert str(tmp_path / "absent") in str(caught.value)
    assert "make an empty one to download it to" in str(caught.value)
    assert not no_network
    assert not (tmp_path / "absent").exists()


def test_a_data_set_that_is_not_there_without_network_ends_within_seconds(no_network, tmp_path):
    start = time.monotonic()
    with pytest.raises(UserError) as caught:
        TfdsSource("cifar100", data_dir=tmp_path)
    assert time.monotonic() - start < 5
    ((url, arguments),) = no_network  # asked once, and not the minutes long that tensorflow-datasets retries
    assert url.endswith("cifar-100-binary.tar.gz")
    assert arguments == {"stream": True, "timeout": sources.REACH_TIMEOUT}
    message = str(caught.value)
    assert os.fspath(tmp_path / "cifar100") in message
    assert "ConnectionError: no route to host" in message
    assert "t.load('cifar100', data_dir='DIR')" in message
    assert "\n" not in message


def test_download_false_never_asks_the_network(no_network, tmp_path):
    with pytest.raises(UserError, match=r"is not prepared in .*, and downloading is off"):
        TfdsSource("cifar100", data_dir=tmp_path, download=False)
    assert not no_network


@needs_cifar100
def test_prepared_data_is_read_without_network(no_network):
    source = TfdsSource("cifar100", data_dir=TFDS_DIR)
    assert (source.size("train"), source.size("test")) == (50000, 10000)
    image, label = next(source.read("test", "image", "label").as_numpy_iterator())
    assert image.shape == (32, 32, 3) and image.dtype == np.uint8
    assert 0 <= label < 100
    assert not no_network


def test_tfds_reads_just_the_features_that_are_asked_for(monkeypatch, tmp_path):
    monkeypatch.setattr(sources, "_check_reachable", lambda builder: None)
    with tfds.testing.mock_data(num_examples=5):
        source = TfdsSource("cifar100", data_dir=tmp_path)
        assert source.size("train") == 5
        assert len(source.label_names("coarse_label")) == 20
        (coarse, label), *rest = source.read("train", "coarse_label", "label").as_numpy_iterator()
    assert len(rest) == 4
    assert 0 <= coarse < 20 and 0 <= label < 100


def test_digits_are_split_in_thirds_of_every_class_always_alike():
    source = DigitsSource()
    assert (source.size("train"), source.size("test")) == (1198, 599)
    pairs = source.read("test", "image", "label").as_numpy_iterator()
    images, labels = (np.stack(parts) for parts in zip(*pairs, strict=True))
    assert images.shape == (599, 8, 8, 1) and images.dtype == np.uint8
    # Scikit-learn's documentation counts these images of 0 to 9; a third of each, rounded either way.
    counts = np.array([178, 182, 177, 183, 181, 182, 181, 179, 174, 180])
    assert (np.abs(np.bincount(labels) - counts / 3) < 1).all()
    assert labels[:12].tolist() == [2, 3, 7, 0, 8, 4, 8, 4, 6, 5, 4, 9]  # seen once, to stay
    # 0..16 is scaled to 0..255: 1 is 15.9 -> 16, 8 is 127.5 -> 128 (the even one), 16 is 255.
    assert set(np.unique(images)) == {round(value * 255 / 16) for value in range(17)}
