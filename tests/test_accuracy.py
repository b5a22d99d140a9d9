import dataclasses

import numpy as np
import pytest
import tensorflow as tf

from dynkhydra_tf import plain
from dynkhydra_tf.accuracy import Evaluation, evaluate, evaluate_plain


@pytest.fixture
def by_hand():
    """Four images, two branches; class 0 is of branch 0, classes 1 and 2 of branch 1."""
    return Evaluation(
        taus=np.array([0.0, 0.5]),
        predicted=np.array([[0, 0, 2, 2], [0, 1, 0, 2]]),
        top5=np.ones((2, 4), bool),
        active=np.array([[2, 2, 2, 2], [1, 1, 1, 2]]),
        labels=np.array([0, 0, 1, 2]),
        gate_choice=np.array([0, 1, 1, 1]),
        used_in=np.array([[[2, 2], [2, 2]], [[1, 2], [0, 2]]]),
        cluster_of_class=np.array([0, 1, 1]),
        confidence=np.array([[0.9, 0.8, 0.7, 0.6], [0.9, 0.5, 0.6, 0.7]]),
        loss=np.array([[0.1, 0.2, 3.0, 0.5], [0.1, 1.0, 2.0, 0.4]]),
        gate_probability=np.array([0.9, 0.6, 0.7, 0.5]),
    )


def test_results_by_hand(by_hand):
    assert by_hand.at(0.5) == {
        "tau": 0.5,
        "top1": 0.5,
        "top5": 1.0,
        "gater_accuracy": 0.75,
        "active_branches": 1.25,
        "images_by_active_branches": [3, 1],
        "branch_use": [0.25, 1.0],
        "cluster_accuracy": [0.5, 0.5],
        "confusion": {
            "gate": [[0.5, 0.5], [0.0, 1.0]],
            "predicted": [[0.5, 0.5], [0.5, 0.5]],
            "branches": [[0.5, 1.0], [0.0, 1.0]],
        },
    }
    assert by_hand.at(0.0)["cluster_accuracy"] == [1.0, 0.5]


def test_predictions_of_one_tau_by_hand(by_hand):
    predictions = by_hand.predictions_at(0.5)
    assert predictions.top1.tolist() == [True, False, False, True]
    assert predictions.most_wrong(2).tolist() == [2, 1]
    assert [row["top1"] for row in predictions.class_rows("abc", by_hand.cluster_of_class)] == [0.5, 0, 1]


def test_a_class_taken_for_one_of_its_own_cluster_is_not_confused(by_hand):
    # At tau 0 the image of class 1 is taken for class 2.
    assert by_hand.at(0.0)["top1"] == 0.75
    assert by_hand.confusion_at(0.0)["predicted"] == [[1.0, 0.0], [0.0, 1.0]]


def test_a_cluster_without_images_has_no_shares(by_hand):
    few = dataclasses.replace(by_hand, labels=np.zeros(4, int), used_in=np.array([[[2, 4], [0, 0]]] * 2))
    assert few.confusion_at(0.5)["branches"] == [[0.5, 1.0], None]
    assert few.at(0.5)["cluster_accuracy"] == [0.5, None]


def test_tau_table_by_hand(by_hand):
    rows = by_hand.tau_table({"stem": 100, "gater": 10, "branch": 20, "combiner": 1})
    assert [(row["tau"], row["active_branches"], row["top1"], row["flops"]) for row in rows] == [
        (0.0, 2.0, 0.75, 151),
        (0.5, 1.25, 0.5, 136),
    ]


@pytest.mark.parametrize("combine", ["sum", "gate_weighted"])
def test_one_pass_over_many_taus_is_a_pass_for_each(make_hydra, batch, combine):
    images, labels = batch(np.arange(40) % 6)
    model = make_hydra(combine=combine, top_k=3, tau=0.3)
    batches = tf.data.Dataset.from_tensor_slices((images, labels)).batch(16)
    evaluation = evaluate(model, batches, [0.0, 0.4, 0.9, 0.4])
    assert evaluation.taus.tolist() == [0.0, 0.3, 0.4, 0.9]
    lambdas = []
    for t, tau in enumerate(evaluation.taus):
        out = model(images, tau=tau)
        hits = np.argmax(out["logits"], axis=1) == labels
        np.testing.assert_array_equal(evaluation.top1[t], hits)
        np.testing.assert_array_equal(evaluation.active[t], np.sum(out["selected"], axis=1))
        np.testing.assert_array_equal(evaluation.predicted[t], np.argmax(out["logits"], axis=1))
        np.testing.assert_array_equal(evaluation.used[t], np.sum(out["selected"], axis=0))
        probabilities = tf.nn.softmax(out["logits"]).numpy()
        np.testing.assert_allclose(evaluation.confidence[t], probabilities.max(axis=1), rtol=1e-4)
        own = probabilities[np.arange(40), labels]
        np.testing.assert_allclose(evaluation.predictions_at(tau).loss, -np.log(own), rtol=1e-3, atol=1e-6)
        of_cluster_1 = np.isin(labels, (2, 3))
        np.testing.assert_array_equal(
            evaluation.used_in[t, 1], np.sum(out["selected"].numpy()[of_cluster_1], axis=0)
        )
        lambdas.append(evaluation.active[t].mean())
    assert lambdas[0] == 3 and lambdas[-1] == 1 and lambdas == sorted(lambdas, reverse=True)


def test_a_model_that_cannot_tell_is_not_right(make_hydra, batch):
    # All logits equal: only the lowest class counts as first, not every class that ties with it.
    images, labels = batch([0, 1, 2, 3, 4, 5])
    model = make_hydra()
    dense = model.combiner.layers[-1]
    dense.set_weights([np.zeros_like(weight) for weight in dense.get_weights()])
    evaluation = evaluate(model, tf.data.Dataset.from_tensors((images, labels)))
    assert evaluation.at(model.tau)["top1"] == pytest.approx(1 / 6)
    assert evaluation.at(model.tau)["top5"] == pytest.approx(5 / 6)


class Guesses:
    """Says what it is shown: the logits of an image are its first row's first numbers."""

    def run(self, images, targets, training):
        assert not training
        return plain.Forward(images[:, 0, :, 0]), targets


def test_a_plain_network_is_evaluated_by_hand():
    # Seven classes: right; third; last; all equal, where the first five are taken.
    logits = np.float32([[9, 1, 2, 3, 4, 5, 6], [9, 8, 7, 1, 2, 3, 4], [6, 5, 4, 3, 2, 1, 0], [0] * 7])
    images, labels = logits[:, None, :, None], np.array([0, 2, 6, 4])
    batches = tf.data.Dataset.from_tensor_slices((images, labels)).batch(3)
    assert evaluate_plain(Guesses(), batches) == {"top1": 0.25, "top5": 0.75}
