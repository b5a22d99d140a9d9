import gc

import numpy as np
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
