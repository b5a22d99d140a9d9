"""Gating: from gate probabilities to the branches that each image runs.

Axis letters: B batch, N branches (nb), M classes.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import tensorflow as tf

COMBINATIONS = ("sum", "gate_weighted")


class Ranking(NamedTuple):
    """The best branches of each image, the best first. K: of them, at most N.

    Attributes:
        probability: (B, K) floats.
        branch: (B, K) int32.
        kept: (B, K) bool, those that the image uses: the first ones of a row.
    """

    probability: tf.Tensor
    branch: tf.Tensor
    kept: tf.Tensor

    def selected(self, num_branches: int) -> tf.Tensor:
        """Returns which of the N branches each image uses: (B, N) bool."""
        of_rank = tf.expand_dims(self.branch, 2) == tf.range(num_branches)
        return tf.reduce_any(of_rank & tf.expand_dims(self.kept, 2), axis=1)


def select_branches(gate_probabilities: tf.Tensor, top_k: int, tau: float | tf.Tensor) -> tf.Tensor:
    """Returns which branches each image uses: the top K, less those below tau, never none.

    Algorithm 1 of the paper. Where the paper leaves a case open: the branch of largest probability
    stays even below tau (with nb = 20 a flat gate is 0.05 everywhere, and tau is 0.08), and of equal
    probabilities the lower index wins, so that never more than K are chosen.

    Args:
        gate_probabilities: (B, N) floats, the softmax of the gater.
        top_k: int, K, most branches of an image. At least 1; above N it means N.
        tau: float, scalar, (B,) or (1,): a branch is dropped when its probability is below it.

    Returns:
        (B, N) bool, between 1 and min(K, N) true values a row.
    """
    return rank_branches(gate_probabilities, top_k, tau).selected(gate_probabilities.shape[-1])


def rank_branches(gate_probabilities: tf.Tensor, top_k: int, tau: float | tf.Tensor) -> Ranking:
    """Returns the best branches of each image and which of them it uses; see `select_branches`."""
    top_k = min(top_k, gate_probabilities.shape[-1])
    probability, branch = tf.math.top_k(gate_probabilities, top_k)
    tau = tf.cast(tau, gate_probabilities.dtype)
    confident = probability >= (tf.expand_dims(tau, 1) if tau.shape.rank else tau)
    return Ranking(probability, branch, confident | (np.arange(top_k) == 0))


def gate_logits_of(class_logits: tf.Tensor, cluster_of_class: Sequence[int]) -> tf.Tensor:
    """Returns logits whose softmax is the softmax of the class logits, summed by cluster.

    Args:
        class_logits: (B, M) floats.
        cluster_of_class: M ints; each cluster 0..N-1 holds at least one class.

    Returns:
        (B, N), the dtype of `class_logits`: of each cluster the logarithm of the sum of the exponentials,
        taken relative to the cluster's own largest, so that no sum is 0.
    """
    clusters = np.asarray(cluster_of_class)
    members = [np.flatnonzero(clusters == cluster) for cluster in range(clusters.max() + 1)]
    size = max(map(len, members))
    # Clusters can differ in size: the rows of small ones end with their first class, which does not count.
    classes = np.stack([np.pad(own, (0, size - len(own)), constant_values=own[0]) for own in members])
    counts = np.arange(size) < np.array([[len(own)] for own in members])  # (N, size)
    by_cluster = tf.gather(class_logits, classes, axis=1)
    return tf.reduce_logsumexp(tf.where(counts, by_cluster, -np.inf), axis=2)


def exits(class_probabilities: tf.Tensor, confidence: float | tf.Tensor) -> tf.Tensor:
    """Returns which images an early classifier answers alone, without branches: those of which it is sure.

    Args:
        class_probabilities: (B, M) floats, the softmax of its class logits.
        confidence: float in (0, 1], scalar or (B,): the least probability of the best class; at 1 no image.

    Returns:
        (B,) bool.
    """
    confidence = tf.cast(confidence, class_probabilities.dtype)
    # In float32 a probability can be 1; never is never.
    return (tf.reduce_max(class_probabilities, axis=1) >= confidence) & (confidence < 1)


def combination_weights(gate_probabilities: tf.Tensor, selected: tf.Tensor, combine: str) -> tf.Tensor:
    """Returns the weight of each branch's projection in an image's sum; 0 where it is not selected.

    `sum` is the paper's (Eq. 6): every selected projection counts once. `gate_weighted` goes beyond
    it: each counts by its gate probability, renormalised over the selection, so that dropping a
    branch of small probability changes little. No gradient passes: the ensemble loss must not reach
    the gater. Of an image without a selected branch all weights are 0.

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
        weights = tf.math.divide_no_nan(weights, tf.reduce_sum(weights, axis=1, keepdims=True))
    return tf.stop_gradient(weights)
