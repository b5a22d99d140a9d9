import gc

import numpy as np
import pytest
import tensorflow as tf

from dynkhydra_tf.serving.graph import InferenceGraph
from dynkhydra_tf.serving.signatures import signatures


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


def test_a_bad_file_leaves_the_answers_to_the_others_as_they_are(trained, batch):
    images, _ = batch(np.zeros(4))
    files = [tf.io.encode_png(image).numpy() for image in images]
    served = signatures(InferenceGraph(trained), "abcdef", "stretch", 0.2, top_classes=2)["image_bytes"]
    right = {name: value.numpy() for name, value in served(tf.constant(files)).items()}
    assert right["error"].tolist() == [b""] * 4 and right["error"].dtype == object
    bad = [files[0], b"no picture", files[2], files[3][:40]]
    answer = {name: value.numpy() for name, value in served(tf.constant(bad)).items()}
    error = answer.pop("error").tolist()
    assert error == [b"", b"not JPEG, PNG, GIF, BMP or WebP", b"", b"damaged or cut off"]
    blank = {"class_id": -1, "top_class_ids": -1, "label": b"", "top_labels": b""}
    for name, value in answer.items():
        np.testing.assert_array_equal(value[[0, 2]], right[name][[0, 2]])
        assert (value[[1, 3]] == blank.get(name, 0)).all(), name


def test_limits_are_checked_in_the_graph(trained, batch):
    images, _ = batch(np.zeros(3))
    endpoints = signatures(InferenceGraph(trained), "abcdef", "stretch", 0.2, max_batch=2, max_pixels=80)
    files = [tf.io.encode_png(np.zeros((height, 8, 3), np.uint8)).numpy() for height in (10, 11, 1)]
    requests = {
        "serving_default": {"images": tf.constant(images)},
        "gate": {"images": tf.constant(images)},
        "with_tau": {"images": tf.constant(images), "tau": tf.zeros(3)},
        "image_bytes": {"image_bytes": tf.constant(files)},
    }
    for name, inputs in requests.items():
        with pytest.raises(tf.errors.InvalidArgumentError, match=r"1 to 2 .*Received"):
            endpoints[name](**inputs)
        endpoints[name](**{key: value[:2] for key, value in inputs.items()})
    error = endpoints["image_bytes"](tf.constant(files[:2]))["error"]
    assert error.numpy().tolist() == [b"", b"more than 80 pixels"]
