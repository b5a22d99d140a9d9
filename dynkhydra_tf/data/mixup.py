"""Mixup (Zhang et al. 2018): each image of a batch blended with another one, whose class counts as much.

Not by keras-cv's layer: it draws what a resumed run could not repeat, and gives probabilities of the classes
in place of the two labels that the losses of gate and branches take. Axis letters: B batch, S image size.
"""

import tensorflow as tf


def mix(
    images: tf.Tensor, labels: tf.Tensor, seed: tf.Tensor, alpha: float
) -> tuple[tf.Tensor, dict[str, tf.Tensor]]:
    """Blends each image with another one of the batch, drawn for it.

    Args:
        images: (B,S,S,3), uint8 or floating.
        labels: (B,) int32.
        seed: (2,) int; the same one gives the same result for the same images.
        alpha: of the Beta(alpha, alpha) distribution that the shares are drawn of, above 0: small ones leave
            most images nearly as they are.

    Returns:
        (B,S,S,3), the dtype of `images`; and as targets "labels" (B,) int32, the class of the larger share,
        "second_labels" (B,) int32 and "second_share" (B,) float32 in [0, 0.5].
    """
    order_seed, *gamma_seeds = tf.unstack(tf.random.split(seed, 3))
    count = tf.shape(images)[0]
    order = tf.random.experimental.stateless_shuffle(tf.range(count), order_seed)
    # Of two draws x, y of a gamma distribution x / (x + y) is one of Beta.
    first, second = (tf.random.stateless_gamma((count,), each, alpha) for each in gamma_seeds)
    share = tf.math.divide_no_nan(tf.minimum(first, second), first + second)
    weight = tf.reshape(share, (-1, 1, 1, 1))
    blended = tf.cast(images, tf.float32)
    blended = (1 - weight) * blended + weight * tf.gather(blended, order)
    blended = tf.cast(tf.round(blended) if images.dtype.is_integer else blended, images.dtype)
    return blended, {"labels": labels, "second_labels": tf.gather(labels, order), "second_share": share}
