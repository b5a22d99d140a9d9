import resource

import numpy as np
import pytest
import tensorflow as tf

from dynkhydra_tf.data import preprocessing
from dynkhydra_tf.data.preprocessing import preprocess
from dynkhydra_tf.errors import UserError

# A 2x4 grey picture: rows of a picture twice as wide as high.
WIDE = np.array([[10, 20, 30, 40], [50, 60, 70, 80]], np.uint8)[..., None]


def grey(image):
    """The single channel of an image whose three channels must agree."""
    image = np.asarray(image)
    assert image.shape[-1] == 3
    assert (image == image[..., :1]).all()
    return image[..., 0].tolist()


def test_pad_puts_zeros_above_and_below_a_wide_picture():
    assert grey(preprocess(WIDE, 4, "pad")) == [
        [0, 0, 0, 0],
        [10, 20, 30, 40],
        [50, 60, 70, 80],
        [0, 0, 0, 0],
    ]


def test_pad_of_an_odd_difference_has_the_extra_zeros_at_the_end():
    # 1 row of 4: 3 rows to add, 1 above and 2 below.
    assert grey(preprocess(WIDE[:1], 4, "pad")) == [[0] * 4, [10, 20, 30, 40], [0] * 4, [0] * 4]


@pytest.mark.parametrize(
    "shape", [(40, 90, 3), (90, 40, 3), (1, 77, 1), (2, 31, 90, 3), (64, 64, 3), (50, 7, 4)]
)
@pytest.mark.parametrize("size", [8, 32, 100])
def test_pad_is_the_same_whether_or_not_the_square_is_made(shape, size, monkeypatch):
    picture = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    at_once = preprocess(picture, size, "pad").numpy().astype(int)
    monkeypatch.setattr(preprocessing, "SMALL_SQUARE", 0)
    by_dimension = preprocess(picture, size, "pad").numpy().astype(int)
    difference = np.abs(at_once - by_dimension)
    assert difference.max() <= 1 and (difference > 0).mean() < 5e-3  # a half, rounded either way


@pytest.mark.parametrize("shape", [(1, 65535, 3), (65535, 1, 3)])
def test_a_long_thin_picture_costs_little_memory(shape):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    thin = preprocess(np.full(shape, 255, np.uint8), 224, "pad").numpy()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # kB; its square is 13 GB
    assert thin.max() == 0  # a 300th of a pixel


def test_crop_keeps_the_central_square():
    assert grey(preprocess(WIDE, 2, "crop")) == [[20, 30], [60, 70]]
    assert grey(preprocess(WIDE.transpose(1, 0, 2), 2, "crop")) == [[20, 60], [30, 70]]


def test_stretch_averages_with_antialiasing():
    # Halving the width, the bilinear kernel is a triangle of half-width 2 about the centre of two pixels,
    # here 1.0 and 3.0: pixels at distance 0.5 weigh 0.75, at 1.5 0.25; what lies outside is left out.
    # Left: (0.75*10 + 0.75*20 + 0.25*30) / 1.75 = 17.14; right: (0.25*20 + 0.75*30 + 0.75*40) / 1.75 = 32.86.
    assert grey(preprocess(WIDE, 2, "stretch")) == [[17, 33], [57, 73]]


def test_values_are_rounded_and_not_cut_off():
    # Doubling: the inner pixels are 3/4 and 1/4 of two neighbours: 0.75*0 + 0.25*255 = 63.75 -> 64.
    two = np.array([[0, 255], [0, 255]], np.uint8)[..., None]
    assert grey(preprocess(two, 4))[0] == [0, 64, 191, 255]


@pytest.mark.parametrize("fit", ["stretch", "pad", "crop"])
@pytest.mark.parametrize("static", [True, False])
def test_a_picture_of_the_right_size_comes_back_bit_exact(fit, static):
    image = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    spec = tf.TensorSpec((32, 32, 3) if static else (None, None, None), tf.uint8)
    traced = tf.function(lambda image: preprocess(image, 32, fit), input_signature=[spec])
    assert (traced(image).numpy() == image).all()


@pytest.mark.parametrize("spec_shape", [None, (None, None, None), (None, None, 4), (5, 7, 4)])
def test_graph_mode_gives_the_eager_result_and_a_static_shape(spec_shape):
    image = np.random.default_rng(1).integers(0, 256, (5, 7, 4), dtype=np.uint8)
    traced = tf.function(
        lambda image: preprocess(image, 6, "pad"), input_signature=[tf.TensorSpec(spec_shape, tf.uint8)]
    )
    assert traced.get_concrete_function().structured_outputs.shape == (6, 6, 3)
    assert (traced(image).numpy() == preprocess(image, 6, "pad").numpy()).all()


def test_grey_is_repeated_and_alpha_dropped_when_channels_are_known_at_run_time_only():
    traced = tf.function(
        lambda image: preprocess(image, 2), input_signature=[tf.TensorSpec((None, None, None), tf.uint8)]
    )
    assert grey(traced(WIDE[:, :2])) == [[10, 20], [50, 60]]
    four = np.arange(16, dtype=np.uint8).reshape(2, 2, 4)
    assert (traced(four).numpy() == four[..., :3]).all()


@pytest.mark.parametrize("fit", ["stretch", "pad", "crop"])
def test_a_batch_is_prepared_like_its_images(fit):
    images = np.random.default_rng(2).integers(0, 256, (3, 5, 9, 3), dtype=np.uint8)
    one_by_one = np.stack([preprocess(image, 6, fit) for image in images])
    assert (preprocess(images, 6, fit).numpy() == one_by_one).all()


def test_float_pictures_are_rounded_to_uint8():
    prepared = preprocess(np.array([[[0.4], [254.6]], [[-3.0], [300.0]]], np.float32), 2)
    assert prepared.dtype == tf.uint8
    assert grey(prepared) == [[0, 255], [0, 255]]


def test_unknown_fit_and_channels_are_refused():
    with pytest.raises(UserError, match=r"one of stretch, pad, crop\. Received: fit='zoom'"):
        preprocess(WIDE, 2, "zoom")
    with pytest.raises(UserError, match=r"1, 3 or 4 channels\. Received: 2 channels"):
        preprocess(np.zeros((4, 4, 2), np.uint8), 2)
