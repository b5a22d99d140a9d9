import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds

from dynkhydra_tf.benchmark import hostile_files
from dynkhydra_tf.data import FITS, find_entry, load_data, preprocess
from dynkhydra_tf.serving.pictures import BLACK, prepare_pictures


def prepared(files, size, fit):
    images, error = prepare_pictures(tf.constant(files), size, fit, 10**6)
    assert error.numpy().tolist() == [b""] * len(files)
    return images.numpy()


def photo(height, width):
    """A JPEG, red with a blue square in the middle: what is cut off, padded or squeezed shows."""
    picture = np.full((height, width, 3), [230, 20, 20], np.uint8)
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    picture[top : top + side, left : left + side] = [20, 20, 230]
    return tf.io.encode_jpeg(picture, quality=95).numpy()


@pytest.mark.parametrize(("name", "fit"), [("food101", "pad"), ("cub200", "crop")])
def test_a_served_jpeg_is_prepared_as_the_data_set_is_for_training(name, fit):
    entry = find_entry(name)
    assert entry.fit == fit
    train_decoder = tfds.features.Image().decode_example
    for file in (photo(90, 200), photo(201, 90)):
        trained_on = preprocess(train_decoder(file), entry.image_size, entry.fit).numpy()
        served = prepared([file], entry.image_size, fit)
        np.testing.assert_array_equal(served, trained_on[None])
        reddish = (trained_on[..., 0] > 128).any()
        black = (trained_on.max(axis=-1) < 16).any()
        assert (reddish, black) == ((True, True) if fit == "pad" else (False, False))


def test_a_served_file_is_prepared_as_the_folder_is_for_training(tmp_path):
    files = [photo(30, 70), photo(71, 30), tf.io.encode_png(np.full((5, 9, 1), 77, np.uint8)).numpy()]
    for name in ("some", "others"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for number, file in enumerate(files):
            (tmp_path / "photos" / name / f"{number}.jpg").write_bytes(file)
    seen = set()
    for fit in FITS:
        data = load_data("folder", str(tmp_path / "photos"), image_size=16, fit=fit, cache_dir=str(tmp_path))
        served = {image.tobytes() for image in prepared(files, 16, fit)}
        assert {image.tobytes() for image, _ in data.examples("train").as_numpy_iterator()} <= served
        seen |= served
    assert len(seen) == 3 * 3 - 1  # a picture of one grey is the same, stretched and cropped


def test_the_pixels_of_a_request_have_a_limit_together():
    """Half of those of one picture, or 16 for each byte of the files, the smaller pictures first."""
    prepare = tf.function(lambda files, most: prepare_pictures(files, 4, "stretch", most))

    def refused(files, most):
        _, error = prepare(tf.constant(files), most)
        assert set(error.numpy()) <= {b"", b"the request's pictures have too many pixels: send it alone"}
        return [bool(text) for text in error.numpy()]

    large = [hostile_files.png(side, side) for side in (500, 300, 600, 400)]
    assert all(len(file) < 900 for file in large)
    assert refused(large, 720_000) == [True, False, True, False], "300 and 400 a side are 250,000 pixels"
    assert refused(large, 1_000_000) == [False, False, True, False]
    assert refused(large[2:3], 360_000) == [False], "alone"
    strips = [hostile_files.png(3000, 1), hostile_files.png(1, 3000)]  # each counts as 3000 x 256
    assert refused(strips, 2_000_000) == [False, True]
    # The last two count twice.
    for kind, slow in (("PNG", {}), ("JPEG", {}), ("WEBP", {}), ("GIF", {}), ("JPEG", {"progressive": True})):
        some = [hostile_files.square(kind, 300, **slow)(0), hostile_files.png(301, 301)]
        assert refused(some, 400_000) == [kind == "GIF" or bool(slow), False], kind
    noise = np.random.default_rng(0).integers(0, 256, (256, 256, 3)).astype(np.uint8)
    assert refused([tf.io.encode_png(noise).numpy()] * 4, 256**2) == [False] * 4, "their files are large"


def test_what_is_wrong_with_a_file_is_said_and_no_other_file_suffers():
    good = tf.io.encode_png(np.full((5, 9, 3), 200, np.uint8)).numpy()
    jpeg = photo(30, 30)
    wrong = {
        b"": b"not JPEG, PNG, GIF, BMP or WebP",
        b"II*\0" + bytes(60): b"TIFF, which is not supported: save it as PNG or JPEG",
        jpeg[: len(jpeg) // 2]: b"damaged or cut off",
        jpeg[:20]: b"damaged or cut off",  # without a frame
        photo(11, 100): b"more than 1000 pixels",
        BLACK[:-20]: b"damaged or cut off",
    }
    prepare = tf.function(lambda files: prepare_pictures(files, 4, "stretch", 1000))
    files = [good, *(file for bad in wrong for file in (bad, good))]
    images, error = prepare(tf.constant(files))
    assert error[1::2].numpy().tolist() == list(wrong.values())
    assert error[::2].numpy().tolist() == [b""] * (len(wrong) + 1)
    assert (images[::2].numpy() == 200).all() and (images[1::2].numpy() == 0).all()
    # None of them is sound.
    images, error = prepare(tf.constant([b"", b""]))
    assert (images.numpy() == 0).all() and all(error.numpy())
