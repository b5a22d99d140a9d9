import numpy as np

from dynkhydra_tf.losses import branch_losses, cross_entropy, total_loss

LN2, LN3, LN4 = np.log([2, 3, 4])


def test_cross_entropy_by_hand():
    # Softmax of (ln 3, 0) is (3/4, 1/4): -ln 3/4 and, of the flat row, ln 2.
    logits = np.float32([[LN3, 0], [0, 0]])
    np.testing.assert_allclose(cross_entropy([0, 1], logits), (LN4 - LN3 + LN2) / 2, rtol=1e-6)


def test_branch_losses_are_means_over_the_own_images():
    # Two classes. Branch 0 has the images 0 and 2 (ln 2 and ln 4), branch 1 none, branch 2 image 1 (ln 4/3).
    logits = np.float32([[0, 0], [0, LN3], [LN3, 0]])
    losses = branch_losses([0, 1, 1], logits, [0, 2, 0], 3)
    np.testing.assert_allclose(losses, [(LN2 + LN4) / 2, 0, LN4 - LN3], rtol=1e-6)


def test_total_is_the_weighted_sum():
    # 1 * 2 + 1.5 * 4 + 0.05 * (10 + 30) = 10.
    losses = total_loss(np.float32(2), np.float32(4), np.float32([10, 30]), (1.0, 1.5, 0.05))
    np.testing.assert_allclose(losses, [10, 2, 4, 40], rtol=1e-6)


def test_without_heads_the_branch_term_is_zero():
    np.testing.assert_allclose(total_loss(np.float32(2), np.float32(4), None, (1.0, 1.5, 0.0)), [8, 2, 4, 0])
