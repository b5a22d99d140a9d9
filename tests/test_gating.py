import hypothesis.extra.numpy as numpy_strategies
import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from dynkhydra_tf.gating import combination_weights, select_branches


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
    import tensorflow as tf

    gate = tf.constant([[0.6, 0.4]])
    with tf.GradientTape() as tape:
        tape.watch(gate)
        weights = combination_weights(gate, tf.constant([[True, True]]), combine)
    assert tape.gradient(weights, gate) is None
