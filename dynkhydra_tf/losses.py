"""The three losses of DynK-Hydra (Eqs. 3, 4, 5) and their weighted sum (Eq. 7).

Axis letters: B batch, N branches (nb), M classes. All logits are float32; all losses are in nats.
"""

from typing import NamedTuple

import tensorflow as tf


class Losses(NamedTuple):
    """The terms of Eq. 7, float32 scalars; `branch` is the sum over the branches."""

    total: tf.Tensor
    ensemble: tf.Tensor
    gater: tf.Tensor
    branch: tf.Tensor


def cross_entropy(labels, logits):
    """Returns the mean cross-entropy of (B, C) logits against (B,) int labels (Eqs. 3 and 4)."""
    return tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits))


def branch_losses(labels, own_logits, own_branch, num_branches):
    """Returns L_b of every branch: the mean cross-entropy over the images of its own partition (Eq. 5).

    An image lies in exactly one partition, so the B rows of `own_logits` hold all that the N masked
    means need.

    Args:
        labels: (B,) int classes.
        own_logits: (B, M), the logits that the head of each image's own branch gives it, over all
            M classes.
        own_branch: (B,) int, the branch whose partition holds the image's class.
        num_branches: int, N.

    Returns:
        (N,) float32; 0 for a branch of which the batch has no image.
    """
    losses = tf.nn.sparse_softmax_cross_entropy_with_logits(labels, own_logits)
    sums = tf.math.unsorted_segment_sum(losses, own_branch, num_branches)
    counts = tf.math.unsorted_segment_sum(tf.ones_like(losses), own_branch, num_branches)
    return tf.math.divide_no_nan(sums, counts)


def total_loss(ensemble, gater, branches, weights):
    """Returns `Losses`: L = alpha1 L_E + alpha2 L_G + alpha3 sum_b L_b (Eq. 7).

    Args:
        ensemble: scalar L_E.
        gater: scalar L_G.
        branches: (N,) L_b, or None where there are no heads.
        weights: the three floats (alpha1, alpha2, alpha3).
    """
    branch = tf.constant(0.0) if branches is None else tf.reduce_sum(branches)
    alpha1, alpha2, alpha3 = weights
    return Losses(alpha1 * ensemble + alpha2 * gater + alpha3 * branch, ensemble, gater, branch)
