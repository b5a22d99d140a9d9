from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds

from dynkhydra_tf.data import sources
from dynkhydra_tf.data.catalog import draw_held_out, load_data
from dynkhydra_tf.errors import UserError

TFDS_DIR = Path(__file__).parents[2] / "shared" / "data" / "tfds"
needs_cifar100 = pytest.mark.skipif(
    not (TFDS_DIR / "cifar100").is_dir(), reason="the real CIFAR-100 is not in ../shared/data/tfds"
)


def arrays(data, split):
    """All images and labels of a split."""
    return data.examples(split).batch(data.sizes[split]).get_single_element()


def test_digits_are_small_colour_images_with_their_own_statistics():
    data = load_data("digits")
    assert data.class_names == ("0", "1", "2", "3", "4", "5", "6", "7", "8", "9")
    assert data.num_classes == 10
    assert data.sizes == {"train": 1198, "validation": 0, "test": 599}
    assert data.flip is False
    images, labels = arrays(data, "train")
    assert images.shape == (1198, 32, 32, 3) and images.dtype == tf.uint8
    assert labels.shape == (1198,) and labels.dtype == tf.int32
    np.testing.assert_allclose(data.mean, images.numpy().mean((0, 1, 2)), rtol=1e-6)
    np.testing.assert_allclose(data.std, images.numpy().std((0, 1, 2)), rtol=1e-6)


def test_validation_is_held_out_of_training_and_always_the_same():
    whole, data = load_data("digits"), load_data("digits", validation_fraction=0.1)
    images, labels = (part.numpy() for part in arrays(whole, "train"))
    assert data.sizes["test"] == 599
    assert data.sizes["train"] + data.sizes["validation"] == 1198
    for split, chosen in (("train", ~data.held_out), ("validation", data.held_out)):
        split_images, split_labels = (part.numpy() for part in arrays(data, split))
        assert (split_images == images[chosen]).all()
        assert (split_labels == labels[chosen]).all()
    # Of a class's 116 to 122 training images round(0.1 n) = 12.
    assert np.bincount(labels[data.held_out]).tolist() == [12] * 10
    assert (load_data("digits", validation_fraction=0.1).held_out == data.held_out).all()
    assert data.mean == whole.mean


def test_draw_held_out_takes_the_same_part_of_each_class():
    labels = np.array([0] * 10 + [1] * 20 + [2] * 5)[np.random.default_rng(0).permutation(35)]
    held_out = draw_held_out(labels, 0.2)
    assert Counter(labels[held_out].tolist()) == {0: 2, 1: 4, 2: 1}
    # Fixed for good: the draw of 2 in 10 with numpy's RandomState(0), whose permutation starts 2 8.
    assert np.flatnonzero(draw_held_out(np.zeros(10, int), 0.2)).tolist() == [2, 8]


def test_examples_of_a_split_without_images_are_refused():
    data = load_data("digits")
    with pytest.raises(
        UserError, match=r"digits has images in the splits train, test\. Received: split='validation'"
    ):
        data.examples("validation")
    with pytest.raises(UserError, match="Received: split='dev'"):
        data.examples("dev")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "mnist"}, "data set must be one of cifar100, digits. Received: 'mnist'"),
        ({"name": "digits", "validation_fraction": 0.6}, "from 0 to 0.5. Received: 0.6"),
        ({"name": "digits", "validation_fraction": -0.1}, "from 0 to 0.5. Received: -0.1"),
        ({"name": "digits", "validation_fraction": 0.001}, "0.001 holds out no image of digits"),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    with pytest.raises(UserError, match=message):
        load_data(**arguments)


def test_digits_have_no_superclasses():
    data = load_data("digits")
    assert data.coarse_names is None
    with pytest.raises(UserError, match=r"digits has no superclasses \(coarse labels\)"):
        _ = data.coarse_of_class


def test_cifar100_entry_fits_the_features_that_tfds_declares(monkeypatch, tmp_path):
    monkeypatch.setattr(sources, "_check_reachable", lambda builder: None)
    with tfds.testing.mock_data(num_examples=20):
        data = load_data("cifar100", data_dir=tmp_path)
        images, labels = arrays(data, "train")
        assert data.sizes == {"train": 20, "validation": 0, "test": 20}
        assert (len(data.class_names), len(data.coarse_names)) == (100, 20)
        assert images.shape == (20, 32, 32, 3) and images.dtype == tf.uint8
        assert labels.dtype == tf.int32
        # 20 random labels leave classes out, whose superclass cannot be known.
        with pytest.raises(UserError, match="cifar100 has no training image of class"):
            _ = data.coarse_of_class


@needs_cifar100
def test_the_real_cifar100():
    data = load_data("cifar100", data_dir=TFDS_DIR)
    assert data.sizes == {"train": 50000, "validation": 0, "test": 10000}
    assert data.class_names[:3] == ("apple", "aquarium_fish", "baby")
    assert data.flip is True
    assert Counter(data.coarse_of_class) == {superclass: 5 for superclass in range(20)}
    superclass = dict(zip(data.class_names, data.coarse_of_class, strict=True))
    assert data.coarse_names[superclass["apple"]] == "fruit_and_vegetables"
    assert data.coarse_names[superclass["tiger"]] == "large_carnivores"
    images = data.examples("test").take(2000).batch(2000).get_single_element()[0].numpy()
    # The statistics are the training split's; 2,000 test images come within a few grey levels of them.
    np.testing.assert_allclose(images.mean((0, 1, 2)), data.mean, atol=4)
    np.testing.assert_allclose(images.std((0, 1, 2)), data.std, atol=3)
