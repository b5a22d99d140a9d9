"""RandAugment through keras-cv's operations; the squares of cutout are in test_data_augment.py."""

import numpy as np
import pytest
import tensorflow as tf

from dynkhydra_tf.data.augment import Augmentation
from dynkhydra_tf.data.keras_cv_layers import RandAugment, transformations

SEED = tf.constant([1, 2])


@pytest.fixture(scope="module")
def augment():
    return RandAugment(0.4)


def pictures(count, size=8):
    return tf.constant(np.random.default_rng(0).integers(0, 256, (count, size, size, 3), np.uint8))


def test_what_is_drawn_is_of_the_form_and_the_range_of_keras_cvs_own_draws(augment):
    count, names = 2000, []
    for layer in augment._layers:
        names.append(type(layer).__name__)
        ours = transformations(layer, tf.constant(count), SEED)
        if ours is None:
            continue
        theirs = layer.get_random_transformation_batch(count)
        tf.nest.assert_same_structure(ours, theirs)
        for one, other in zip(tf.nest.flatten(ours), tf.nest.flatten(theirs), strict=True):
            assert one.shape == other.shape and one.dtype == other.dtype
            np.testing.assert_allclose(np.mean(one), np.mean(other), atol=0.12 * (np.std(other) + 1e-6))
            np.testing.assert_allclose(np.std(one), np.std(other), rtol=0.1, atol=1e-6)
    assert len(names) == 10 and set(names) > {"AutoContrast", "Equalization", "Solarization", "RandomShear"}


def test_the_same_seed_gives_the_same_images_in_a_pipeline_too(augment):
    images = pictures(16)
    first = augment(images, SEED)
    assert first.dtype == tf.uint8 and first.shape == images.shape
    in_a_pipeline = tf.data.Dataset.from_tensors((images, SEED)).map(RandAugment(0.4))
    np.testing.assert_array_equal(next(iter(in_a_pipeline)), first)
    assert (augment(images, SEED + 1).numpy() != first.numpy()).any((1, 2, 3)).all()
    assert augment(images[:0], SEED).shape == (0, 8, 8, 3)


def test_three_operations_an_image_each_skipped_once_in_eleven(augment):
    class AddOne:
        def __init__(self, layer):
            self.__class__ = type("AddOne", (type(layer),), {"augment_images": lambda _, x, **__: x + 1})
            self.__dict__ = layer.__dict__

    counting = RandAugment(0.4)
    counting._layers = [AddOne(layer) for layer in counting._layers]
    done = counting(tf.zeros((4000, 2, 2, 3)), SEED)[:, 0, 0, 0].numpy()
    assert set(done) <= {0, 1, 2, 3}
    assert done.mean() == pytest.approx(3 * 10 / 11, abs=0.04)  # five standard deviations


def test_with_the_other_augmentation_whose_draws_stay_as_they_are():
    images, fill = pictures(8), (1.0, 2.0, 3.0)
    with_it = Augmentation(8, fill, shift=0, flip=False, cutout=4, rand_augment=0.4)
    without = Augmentation(8, fill, shift=0, flip=False, cutout=4)
    both, squares = with_it(images, SEED).numpy(), without(images, SEED).numpy()
    cut = (squares == np.uint8(fill)).all(-1)
    assert cut.any() and (both[cut] == np.uint8(fill)).all()
    assert (both != squares).any((1, 2, 3)).all()
