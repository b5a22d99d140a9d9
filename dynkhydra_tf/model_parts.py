"""What `Hydra`, the plain network and the counting of costs share: parts around a backbone, and the batch.

Axis letters: B batch, N branches (nb), M classes, h w c a projection.
"""

import keras
import tensorflow as tf

from dynkhydra_tf.backbones.blocks import ConvBN, classifier

# Not mixed_float16: it would need a scaled loss, and bfloat16 does without.
PART_DTYPES = ("float32", "mixed_bfloat16")


def check_settings(mean, std, part_dtype):
    """Checks what all models are told of their images and of their precision.

    Raises:
        ValueError: an argument out of its range.
    """
    if len(mean) != 3 or len(std) != 3 or not all(value > 0 for value in std):
        raise ValueError(
            f"mean and std must be three numbers each, std above 0. Received: mean={mean}, std={std}"
        )
    if part_dtype not in PART_DTYPES:
        raise ValueError(f"part_dtype must be one of {PART_DTYPES}. Received: part_dtype={part_dtype!r}")


def make_normalizer(backbone, mean, std):
    """Returns the built layer from images in 0..255 to normalised ones, float32.

    Args:
        backbone: `Backbone`; its own normaliser, if it brings one.
        mean, std: three numbers each, of the channels; else by these.

    Raises:
        ValueError: the backbone's has weights, which nothing would train or copy.
    """
    layer = backbone.normalizer()
    if layer is None:
        offset = [-m / s for m, s in zip(mean, std, strict=True)]
        layer = keras.layers.Rescaling([1 / s for s in std], offset, dtype="float32", name="normalize")
    layer.build((None, *backbone.input_shape))
    if layer.weights:
        raise ValueError(
            "A backbone's normaliser has no weights; a layer with some belongs to its stem. "
            f"Received: {layer.name} with {', '.join(weight.path for weight in layer.weights)}"
        )
    return layer


def make_gater(backbone, num_branches, dtype=None):
    """Returns the gater: the stem's output -> gate logits (B, N) float32."""
    return keras.Sequential([backbone.gater_trunk(dtype), *classifier(num_branches)], name="gater")


def make_combiner(channels, num_classes, dtype=None):
    """Returns the combiner: combined projections (B, h, w, channels) -> logits (B, M) float32.

    Its kernel is 1x1: the paper's FLOPs (Table 3) fit that.
    """
    return keras.Sequential(
        [ConvBN(channels, 1, dtype=dtype, name="conv"), *classifier(num_classes)], name="combiner"
    )


def make_plain(backbone, num_classes, dtype=None):
    """Returns the plain network with its classifier: normalised images -> logits (B, M) float32."""
    return keras.Sequential([backbone.plain(dtype), *classifier(num_classes)], name="network")


def unpack_batch(data):
    """Returns images (B, H, W, 3) and labels (B,) of what `fit` hands to a training step.

    Raises:
        ValueError: there is a sample weight.
    """
    images, labels, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
    if sample_weight is not None:
        raise ValueError(
            "The model does not take sample_weight or class_weight. Received: one of the two; leave it out"
        )
    return images, tf.reshape(labels, [-1])
