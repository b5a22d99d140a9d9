import numpy as np
import tensorflow as tf

from dynkhydra_tf.heads import BranchHeads


def test_each_image_meets_the_head_of_its_own_branch():
    heads = BranchHeads(num_branches=2, num_classes=2)
    heads.build((None, 3))
    kernel = np.arange(12, dtype=np.float32).reshape(2, 3, 2)
    heads.set_weights([kernel, np.float32([[10, 20], [30, 40]])])
    pooled = np.float32([[1, 0, 0], [0, 0, 2]])
    logits = heads(pooled, tf.one_hot([1, 0], 2))
    # Head 1's first row (6, 7) and bias (30, 40); twice head 0's last row (4, 5) and bias (10, 20).
    np.testing.assert_array_equal(logits, [[36, 47], [18, 30]])


def test_heads_start_as_dense_layers_of_their_own():
    heads = BranchHeads(num_branches=20, num_classes=100)
    heads.build((None, 64))
    limit = np.sqrt(6 / (64 + 100))  # Glorot's, of one head
    kernel = heads.kernel.numpy()
    assert 0.95 * limit < np.abs(kernel).max() <= limit
    assert not np.array_equal(kernel[0], kernel[1])
