"""The training-only classification heads of the branches (section "Enforcing specialization").

Axis letters: B batch, N branches (nb), M classes, c channels of a projection.
"""

import keras
import tensorflow as tf


class BranchHeads(keras.Layer):
    """A dense layer for each branch, from its pooled projection to all M classes.

    Each image meets only the head of its own branch, the one whose partition holds its class. The
    heads are one stacked kernel (N, c, M) and one matrix product: the pooled projection is put into
    its branch's block of an (N c)-vector of zeros, so that head b's gradient comes from its own
    images alone.

    Args:
        num_branches: int, N.
        num_classes: int, M.
    """

    def __init__(self, num_branches: int, num_classes: int, **kwargs: object) -> None:
        super().__init__(dtype="float32", **kwargs)
        self.num_branches = num_branches
        self.num_classes = num_classes

    def build(self, pooled_shape: tuple[int | None, ...]) -> None:
        """Creates kernel (N, c, M) and bias (N, M)."""
        channels = pooled_shape[-1]
        self.kernel = self.add_weight(
            name="kernel",
            shape=(self.num_branches, channels, self.num_classes),
            initializer=_draw_each,
        )
        self.bias = self.add_weight(
            name="bias", shape=(self.num_branches, self.num_classes), initializer="zeros"
        )

    def call(self, pooled: tf.Tensor, own: tf.Tensor) -> tf.Tensor:
        """Returns the logits (B, M) float32 that each image's own branch gives it.

        Args:
            pooled: (B, c), the pooled projection of each image's own branch.
            own: (B, N) float32, one-hot: that branch.
        """
        channels = pooled.shape[-1]
        blocks = own[:, :, tf.newaxis] * tf.cast(pooled, own.dtype)[:, tf.newaxis, :]
        blocks = tf.reshape(blocks, [-1, self.num_branches * channels])
        kernel = tf.reshape(self.kernel, [self.num_branches * channels, self.num_classes])
        return blocks @ kernel + own @ tf.convert_to_tensor(self.bias)


def _draw_each(shape, dtype):
    """Glorot's initial values head by head: the fan of the stacked shape would be N times too large."""
    # A new initializer each: one gives the same values at every call.
    return tf.stack([keras.initializers.GlorotUniform()(shape[1:], dtype) for _ in range(shape[0])])
