import hypothesis.extra.numpy as numpy_strategies
import hypothesis.strategies as st
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings

from dynkhydra_tf.gating import combination_weights, exits, gate_logits_of, select_branches


def select(gate, top_k, tau):
    return select_branches(np.asarray(gate, np.float32), top_k, tau).numpy().astype(int).tolist()


def test_top_k_then_tau():
    # Ranks: 0.5, 0.3, 0.15, 0.05. K = 3 leaves out the last, tau = 0.2 the third.
    gate = [[0.05, 0.5, 0.15, 0.3]]
    assert select(gate, 3, 0.0) == [[0, 1, 1, 1]]
    assert select(gate, 3, 0.2) == [[0, 1, 0, 1]]
    assert select(gate, 1, 0.0) == [[0, 1, 0, 0]]


def test_a_probability_equal_to_tau_stays():
    # Algorithm 1: w >= tau. Both are exact in float32.
    assert select([[0.5, 0.25, 0.25]], 3, 0.25) == [[1, 1, 1]]


def test_never_empty():
    # nb = 20, flat: 0.05 everywhere, below tau = 0.08. The lowest index is the largest one.
    assert select(np.full((1, 20), 0.05), 4, 0.08) == [[1] + [0] * 19]
    assert select([[0.2, 0.3, 0.25, 0.25]], 4, 0.9) == [[0, 1, 0, 0]]


def test_ties_resolve_by_index():
    assert select([[0.1, 0.3, 0.3, 0.3]], 2, 0.0) == [[0, 1, 1, 0]]


def test_tau_of_each_image():
    gate = [[0.6, 0.3, 0.1], [0.6, 0.3, 0.1]]
    assert select(gate, 3, np.array([0.0, 0.2], np.float32)) == [[1, 1, 1], [1, 1, 0]]


def test_top_k_above_the_number_of_branches_means_all():
    assert select([[0.6, 0.4]], 5, 0.0) == [[1, 1]]


@settings(deadline=None, max_examples=60)
@given(
    scores=numpy_strategies.arrays(
        np.float32,
        st.tuples(st.integers(1, 5), st.integers(1, 12)),
        # Few different values, so that ties are common.
        elements=st.sampled_from([0.0, 1.0, 2.0, 3.0, 8.0]),
    ),
    top_k=st.integers(1, 12),
    tau=st.sampled_from([0.0, 0.05, 0.2, 0.5, 0.99]),
)
def test_selection_obeys_its_rules(scores, top_k, tau):
    gate = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
    selected = select_branches(gate, top_k, tau).numpy()
    for p, chosen in zip(gate, selected, strict=True):
        ranked = sorted(range(len(p)), key=lambda b: (-p[b], b))
        expected = {b for b in ranked[:top_k] if p[b] >= np.float32(tau)} | {ranked[0]}
        assert set(np.flatnonzero(chosen)) == expected


def test_sum_counts_each_selected_once():
    weights = combination_weights(np.float32([[0.6, 0.3, 0.1]]), np.array([[True, True, False]]), "sum")
    np.testing.assert_array_equal(weights, [[1, 1, 0]])


def test_gate_weighted_renormalises_over_the_selection():
    # 0.6 / 0.9 and 0.3 / 0.9.
    weights = combination_weights(
        np.float32([[0.6, 0.3, 0.1]]), np.array([[True, True, False]]), "gate_weighted"
    )
    np.testing.assert_allclose(weights, [[2 / 3, 1 / 3, 0]], rtol=1e-6)


@pytest.mark.parametrize("combine", ["sum", "gate_weighted"])
def test_no_gradient_reaches_the_gate(combine):
    gate = tf.constant([[0.6, 0.4]])
    with tf.GradientTape() as tape:
        tape.watch(gate)
        weights = combination_weights(gate, tf.constant([[True, True]]), combine)
    assert tape.gradient(weights, gate) is None


# === A shared trunk ===


def test_the_gate_is_the_class_probabilities_summed_by_cluster():
    # softmax of ln 1, ln 2, ln 3, ln 4 is .1 .2 .3 .4; clusters of one class, of two, of one.
    logits = gate_logits_of(tf.math.log([[1.0, 2.0, 3.0, 4.0]]), (1, 0, 1, 2))
    np.testing.assert_allclose(logits, np.log([[2, 1 + 3, 4]]), rtol=1e-6)
    np.testing.assert_allclose(tf.nn.softmax(logits), [[0.2, 0.4, 0.4]], rtol=1e-6)


def test_large_class_logits_overflow_nothing():
    class_logits = tf.constant([[1000.0, 0.0, -1000.0, -1001.0]])
    with tf.GradientTape() as tape:
        tape.watch(class_logits)
        logits = gate_logits_of(class_logits, (0, 0, 1, 1))
        loss = tf.reduce_sum(tf.nn.sparse_softmax_cross_entropy_with_logits([1], logits))
    np.testing.assert_allclose(logits, [[1000, -1000 + np.log(1 + np.exp(-1))]], rtol=1e-6)
    # The gate's gradient, 1 and -1, goes to each class by its share of the cluster.
    share = 1 / (1 + np.exp(-1))
    np.testing.assert_allclose(
        tape.gradient(loss, class_logits), [[1, 0, -share, share - 1]], rtol=1e-5, atol=1e-7
    )


def test_an_image_exits_where_its_best_class_is_likely_enough():
    probabilities = np.float32([[0.5, 0.5], [0.25, 0.75], [0.0, 1.0]])
    assert exits(probabilities, 0.75).numpy().tolist() == [False, True, True]
    assert exits(probabilities, np.float32([0.5, 0.8, 1.0])).numpy().tolist() == [True, False, False]
    assert not exits(probabilities, 1.0).numpy().any()  # never, and be it certain


@pytest.mark.parametrize("combine", ["sum", "gate_weighted"])
def test_an_empty_selection_has_no_weights(combine):
    weights = combination_weights(np.float32([[0.6, 0.4]]), np.array([[False, False]]), combine)
    np.testing.assert_array_equal(weights, [[0, 0]])
