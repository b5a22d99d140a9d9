import gc

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds

from dynkhydra_tf.data import FITS, find_entry, load_data, preprocess
from dynkhydra_tf.serving.graph import InferenceGraph
from dynkhydra_tf.serving.signatures import decode, signatures


def test_signatures_keep_the_weights_alive(make_hydra, batch):
    # TensorFlow's concrete functions hold variables weakly, and nobody else holds this graph.
    model = make_hydra()
    endpoints = signatures(InferenceGraph(model), "abcdef", "stretch", model.tau)
    gc.collect()
    images, _ = batch(np.zeros(3))
    answer = endpoints["serving_default"](tf.constant(images))
    right = tf.nn.softmax(model(images)["logits"])
    np.testing.assert_allclose(answer["probabilities"], right, atol=1e-5)
    np.testing.assert_array_equal(endpoints["gate"](tf.constant(images))["gate"], answer["gate"])


def test_top_classes_are_sorted(make_hydra, batch):
    model = make_hydra()
    endpoints = signatures(InferenceGraph(model), "abcdef", "stretch", model.tau, top_classes=3)
    answer = endpoints["serving_default"](tf.constant(batch(np.zeros(4))[0]))
    assert (np.diff(answer["top_probabilities"]) <= 0).all()
    np.testing.assert_array_equal(answer["top_class_ids"][:, 0], answer["class_id"])
    np.testing.assert_array_equal(answer["top_labels"][:, 0], answer["label"])


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
        served = decode(tf.constant([file]), entry.image_size, fit).numpy()
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
        served = {image.tobytes() for image in decode(tf.constant(files), 16, fit).numpy()}
        assert {image.tobytes() for image, _ in data.examples("train").as_numpy_iterator()} <= served
        seen |= served
    assert len(seen) == 3 * 3 - 1  # a picture of one grey is the same, stretched and cropped
