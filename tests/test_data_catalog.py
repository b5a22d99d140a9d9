import contextlib
import dataclasses
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds

from dynkhydra_tf.data.catalog import find_entry, load_data
from dynkhydra_tf.data.image_data import AUTO_BYTES
from dynkhydra_tf.data.pipeline import evaluation_batches, training_batches
from dynkhydra_tf.data.sources import tfds as sources
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
        ({"name": "mnist"}, r"data set must be one of cifar100, .*, or tfds:NAME\. Received: 'mnist'"),
        ({"name": "tfds:"}, "or tfds:NAME"),
        ({"name": "digits", "fit": "zoom"}, "fit must be one of stretch, pad, crop. Received: 'zoom'"),
        ({"name": "digits", "cache": "disk"}, "cache must be one of auto, memory, none. Received: 'disk'"),
        ({"name": "digits", "validation_fraction": 0.6}, "from 0 to 0.5. Received: 0.6"),
        ({"name": "digits", "validation_fraction": -0.1}, "from 0 to 0.5. Received: -0.1"),
        ({"name": "digits", "validation_fraction": 0.0001}, "0.0001 holds out no image of digits"),
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


@pytest.fixture
def open_mock(monkeypatch, tmp_path):
    """Returns a function that opens a data set with the features tfds declares for it, and random content."""
    monkeypatch.setattr(sources, "_check_reachable", lambda builder: None)

    with contextlib.ExitStack() as stack:

        def open_mock(name, num_examples=20, **arguments):
            stack.enter_context(tfds.testing.mock_data(num_examples=num_examples))
            return load_data(name, data_dir=str(tmp_path), **arguments)

        yield open_mock


@pytest.mark.parametrize(
    ("name", "classes", "side", "sizes"),
    [
        ("cifar100", 100, 32, (20, 20)),
        ("food101", 101, 32, (20, 20)),
        ("imagenet32", 1000, 32, (20, 20)),
        # mock_data has 200 images in train and test together: round(200 * 2788 / 11788) = 47 are for testing.
        ("cub200", 200, 224, (153, 47)),
        ("tfds:mnist", 10, 32, (20, 20)),
        ("tfds:imagenet_resized/64x64", 1000, 32, (20, 20)),
    ],
)
def test_entries_fit_the_features_that_tfds_declares(open_mock, name, classes, side, sizes):
    data = open_mock(name, num_examples=200 if name == "cub200" else 20)
    assert data.num_classes == len(set(data.class_names)) == classes
    assert data.sizes == {"train": sizes[0], "validation": 0, "test": sizes[1]}
    for split in ("train", "test"):
        images, labels = arrays(data, split)
        assert images.shape == (data.sizes[split], side, side, 3) and images.dtype == tf.uint8
        assert labels.dtype == tf.int32 and labels.numpy().max() < classes
        (batch,) = evaluation_batches(data, split, 200)
        assert (batch[0].numpy() == images.numpy()).all()
    (batch,) = training_batches(data, sizes[0], 1, 0, lambda images, seed: images)
    assert sorted(batch[1].numpy()) == sorted(arrays(data, "train")[1].numpy())
    assert len(data.mean) == len(data.std) == 3 and min(data.std) > 0


def test_validation_of_a_set_that_is_divided_anew(open_mock):
    data = open_mock("cub200", num_examples=200, validation_fraction=0.1, image_size=16)
    assert data.sizes == {"train": 138, "validation": 15, "test": 47}  # round(0.1 * 153) = 15
    for split in ("train", "validation", "test"):
        assert arrays(data, split)[0].shape == (data.sizes[split], 16, 16, 3)


def test_each_data_set_is_made_square_in_its_own_way():
    fits = {name: find_entry(name).fit for name in ("cifar100", "food101", "cub200", "imagenet32")}
    assert fits == {"cifar100": "stretch", "food101": "pad", "cub200": "crop", "imagenet32": "stretch"}


def test_size_and_fit_can_be_chosen(open_mock):
    data = open_mock("food101", image_size=48, fit="crop")
    assert (data.image_size, data.fit) == (48, "crop")
    assert arrays(data, "test")[0].shape == (20, 48, 48, 3)


def test_coarse_labels_with_classes_left_out(open_mock):
    data = open_mock("cifar100")
    assert len(data.coarse_names) == 20
    # 20 random labels leave classes out, whose superclass cannot be known.
    with pytest.raises(UserError, match="cifar100 has no training image of class"):
        _ = data.coarse_of_class


def test_what_is_large_is_not_held_in_memory_unless_asked_for():
    data = load_data("digits")
    largest = AUTO_BYTES // (32 * 32 * 3)
    for images, held in ((largest, True), (largest + 1, False)):
        sizes = {"train": images - 599, "validation": 0, "test": 599}
        assert dataclasses.replace(data, sizes=sizes).in_memory == held
        assert dataclasses.replace(data, sizes=sizes, cache="memory").in_memory
    assert not load_data("digits", cache="none").in_memory


@pytest.mark.slow
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
