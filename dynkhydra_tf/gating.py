"""Gating: from gate probabilities to the branches that each image runs.

Axis letters: B batch, N branches (nb).
"""

import tensorflow as tf

COMBINATIONS = ("sum", "gate_weighted")


def select_branches(gate_probabilities: tf.Tensor, top_k: int, tau: float | tf.Tensor) -> tf.Tensor:
    """Returns which branches each image uses: the top K, less those below tau, never none.

    Algorithm 1 of the paper. Where the paper leaves a case open: the branch of largest probability
    stays even below tau (with nb = 20 a flat gate is 0.05 everywhere, and tau is 0.08), and of equal
    probabilities the lower index wins, so that never more than K are chosen.

    Args:
        gate_probabilities: (B, N) floats, the softmax of the gater.
        top_k: int, K, most branches of an image. At least 1; above N it means N.
        tau: float, scalar or (B,): a branch is dropped when its probability is below it.

    Returns:
        (B, N) bool, between 1 and min(K, N) true values a row.
    """
    num_branches = gate_probabilities.shape[-1]
    ranked = tf.math.top_k(gate_probabilities, min(top_k, num_branches)).indices  # (B, K)
    branches = tf.range(num_branches)
    best = ranked[:, :1] == branches
    among_top = tf.reduce_any(ranked[:, :, tf.newaxis] == branches, axis=1)
    tau = tf.cast(tau, gate_probabilities.dtype)
    confident = gate_probabilities >= (tau[:, tf.newaxis] if tau.shape.rank else tau)
    return best | (among_top & confident)


def combination_weights(gate_probabilities: tf.Tensor, selected: tf.Tensor, combine: str) -> tf.Tensor:
    """Returns the weight of each branch's projection in an image's sum; 0 where it is not selected.

    `sum` is the paper's (Eq. 6): every selected projection counts once. `gate_weighted` goes beyond
    it: each counts by its gate probability, renormalised over the selection, so that dropping a
    branch of small probability changes little. No gradient passes: the ensemble loss must not reach
    the gater.

    Args:
        gate_probabilities: (B, N) floats.
        selected: (B, N) bool, from `select_branches`.
        combine: "sum" or "gate_weighted".

    Returns:
        (B, N), the dtype of `gate_probabilities`.
    """
    weights = tf.cast(selected, gate_probabilities.dtype)
    if combine == "gate_weighted":
        weights *= gate_probabilities
        weights /= tf.reduce_sum(weights, axis=1, keepdims=True)
    return tf.stop_gradient(weights)
