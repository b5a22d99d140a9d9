import numpy as np
import pytest
import tensorflow as tf

from dynkhydra_tf.data import load_data
from dynkhydra_tf.data.augment import Augmentation, make_augmentation, move
from dynkhydra_tf.data.keras_cv_layers import SquareCutter
from dynkhydra_tf.errors import UserError
from dynkhydra_tf.settings import AugmentationSettings

FILL = (9.0, 99.0, 199.6)
ROUNDED = (9, 99, 200)  # what the fill colour is in a uint8 image


def numbered(count, size):
    """Images whose pixels are all different: channels (image, row, column)."""
    return np.stack(np.meshgrid(range(count), range(size), range(size), indexing="ij"), -1).astype(np.uint8)


def random_images(count, size, dtype=np.uint8):
    return np.random.default_rng(0).integers(0, 256, (count, size, size, 3)).astype(dtype)


def test_move_shifts_each_image_by_its_own_offset():
    images = tf.constant(numbered(2, 3))
    moved = move(images, tf.constant([[1, 0], [0, -2]]), tf.constant([False, False]), FILL)
    # Image 0, one pixel down: row 0 is fill, row 1 is the old row 0.
    assert (moved[0, 0].numpy() == ROUNDED).all()
    assert (moved[0, 1:].numpy() == images[0, :2].numpy()).all()
    # Image 1, two pixels left: column 0 is the old column 2, the rest is fill.
    assert (moved[1, :, 0].numpy() == images[1, :, 2].numpy()).all()
    assert (moved[1, :, 1:].numpy() == ROUNDED).all()


def test_move_mirrors_the_marked_images_before_it_shifts_them():
    images = tf.constant(numbered(2, 3))
    moved = move(images, tf.constant([[0, 0], [0, 1]]), tf.constant([False, True]), FILL)
    assert (moved[0].numpy() == images[0].numpy()).all()
    # Columns 0 1 2 mirrored are 2 1 0, and one pixel to the right: fill 2 1.
    assert (moved[1, :, 0].numpy() == ROUNDED).all()
    assert moved[1, :, 1:, 2].numpy().tolist() == [[2, 1]] * 3
    assert moved[1, :, 1:, 1].numpy().tolist() == [[0, 0], [1, 1], [2, 2]]


def test_move_past_the_border_leaves_nothing():
    moved = move(tf.constant(numbered(1, 3)), tf.constant([[3, 0]]), tf.constant([True]), FILL)
    assert (moved.numpy() == ROUNDED).all()


def test_cut_squares_fills_a_square_about_each_centre():
    images = tf.constant(random_images(2, 8))
    cut = SquareCutter(4)(images, tf.constant([[3, 4], [0, 7]]), tf.constant(ROUNDED, tf.uint8)).numpy()
    expected = images.numpy().copy()
    expected[0, 1:5, 2:6] = ROUNDED  # rows 3-2..3+1, columns 4-2..4+1
    expected[1, 0:2, 5:8] = ROUNDED  # rows -2..1 and columns 5..8, less what hangs over
    assert (cut == expected).all()


def test_cut_squares_keeps_floats_exact_under_mixed_precision():
    import keras

    images = tf.constant(random_images(1, 8, np.float32) + 0.123)
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        cut = SquareCutter(2)(images, tf.constant([[1, 1]]), tf.constant(FILL)).numpy()
    finally:
        keras.config.set_dtype_policy(before)
    expected = images.numpy().copy()
    expected[0, 0:2, 0:2] = np.float32(FILL)
    assert (cut == expected).all()


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_augmentation_repeats_with_its_seed_and_differs_without(dtype):
    images = tf.constant(random_images(16, 32, dtype))
    augment = Augmentation(32, FILL)
    first = augment(images, tf.constant([1, 2]))
    assert first.dtype == images.dtype and first.shape == images.shape
    again = Augmentation(32, FILL)(images, tf.constant([1, 2]))
    assert (again.numpy() == first.numpy()).all()
    assert (augment(images, tf.constant([1, 3])).numpy() != first.numpy()).any()


def test_augmentation_draws_anew_at_each_call_of_a_traced_function():
    augment = Augmentation(8, FILL, shift=0, flip=False, cutout=4)
    traced = tf.function(
        augment, input_signature=[tf.TensorSpec((None, 8, 8, 3)), tf.TensorSpec((2,), tf.int32)]
    )
    images = tf.constant(random_images(4, 8, np.float32))
    first, second = traced(images, tf.constant([0, 0])), traced(images, tf.constant([0, 1]))
    assert (first.numpy() != second.numpy()).any()
    assert (first.numpy() == augment(images, tf.constant([0, 0])).numpy()).all()


def test_shift_takes_every_offset_and_flip_half_of_the_images():
    # Channel 1 and 2 of the middle pixel say which row and column came there.
    size, shift, count = 17, 2, 2000
    image = tf.constant(numbered(1, size))
    images = tf.repeat(image, count, axis=0)
    shifted = Augmentation(size, FILL, shift=shift, flip=False, cutout=0)(images, tf.constant([0, 0]))
    middle = size // 2
    rows, columns = np.unique(shifted[:, middle, middle, 1:].numpy().astype(int) - middle, axis=0).T
    assert sorted(zip(rows, columns, strict=True)) == [(r, c) for r in range(-2, 3) for c in range(-2, 3)]
    flipped = Augmentation(size, FILL, shift=0, flip=True, cutout=0)(images, tf.constant([0, 0]))
    is_mirrored = flipped[:, 0, 0, 2].numpy() == size - 1
    assert (flipped[:, 0, 0, 2].numpy()[~is_mirrored] == 0).all()
    assert abs(is_mirrored.mean() - 0.5) < 0.05  # 4.5 standard deviations


def test_images_to_mirror_can_be_told_in_place_of_the_draw():
    images = tf.constant(random_images(4, 8))
    told = tf.constant([True, False, False, True])
    for flip in (True, False):
        seen = Augmentation(8, FILL, shift=0, flip=flip, cutout=0)(images, tf.constant([0, 0]), told).numpy()
        expected = np.where(told[:, None, None, None], images[:, :, ::-1], images)
        assert (seen == expected).all()
    # The shifts and squares are those of a call that is not told.
    told = tf.zeros(4, tf.bool)
    augment = Augmentation(8, FILL, shift=2, flip=False, cutout=4)
    seen, drawn = (augment(images, tf.constant([0, 0]), *more).numpy() for more in ((told,), ()))
    assert (seen == drawn).all()


def test_cutout_has_its_size_and_is_anywhere():
    size, side, count = 32, 16, 2000
    images = tf.zeros((count, size, size, 3), tf.uint8)
    cut = Augmentation(size, FILL, shift=0, flip=False, cutout=side)(images, tf.constant([0, 0])).numpy()
    is_cut = (cut == ROUNDED).all(-1)
    assert (is_cut | (cut == 0).all(-1)).all()
    # A centre from 0 to 31 leaves at least 8 of the 16 rows in the image; every number from 8 to 16 occurs.
    heights = is_cut.any(2).sum(1)
    assert sorted(set(heights.tolist())) == list(range(8, 17))
    assert (is_cut.sum((1, 2)) == heights * is_cut.any(1).sum(1)).all()  # a rectangle
    assert is_cut.any(0).all()  # each pixel is cut in some image


def test_nothing_asked_for_changes_nothing():
    images = tf.constant(random_images(4, 8))
    same = Augmentation(8, FILL, shift=0, flip=False, cutout=0)(images, tf.constant([0, 0]))
    assert (same.numpy() == images.numpy()).all()


@pytest.mark.parametrize(
    ("amounts", "message"),
    [
        ({"shift": -1}, "shift must be from 0 to 32, the image size. Received: shift=-1"),
        ({"cutout": 33}, "cutout must be from 0 to 32, the image size. Received: cutout=33"),
    ],
)
def test_amounts_out_of_range_are_refused(amounts, message):
    with pytest.raises(UserError, match=message):
        Augmentation(32, FILL, **amounts)


def test_an_alternating_flip_needs_images_that_may_be_mirrored():
    digits = load_data("digits")
    assert not digits.flip
    with pytest.raises(UserError, match="those of digits are not mirrored by default: add --flip"):
        make_augmentation(AugmentationSettings(alternating_flip=True), digits)
    made = make_augmentation(AugmentationSettings(alternating_flip=True, flip=True, shift=1), digits)
    assert (made.flip, made.shift, made.image_size) == (True, 1, digits.image_size)
    assert not make_augmentation(AugmentationSettings(), digits).flip
