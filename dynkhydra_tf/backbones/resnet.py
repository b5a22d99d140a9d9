"""ResNet for small images (He et al. 2016, section 4.2): 6d+2 layers, cut in two for Hydra.

A 3x3 convolution to 16 channels, then three stages of d basic blocks with 16, 32 and 64 channels,
stride 2 at stages 2 and 3. Stem: the convolution and stages 1 and 2; branch and gater: stage 3.
"""

import dataclasses

import keras

from dynkhydra_tf.backbones.base import Backbone
from dynkhydra_tf.backbones.blocks import ConvBN


@keras.saving.register_keras_serializable("dynkhydra_tf")
class BasicBlock(keras.Layer):
    """Two 3x3 convolutions and a shortcut without parameters.

    Where the shape changes, the shortcut takes every `strides`-th pixel and pads the new channels
    with zeros (option A of He et al.); the paper's FLOPs of Table 3 fit this, not a convolution. Where a
    branch is narrower than the stem (wb < ws), the shortcut keeps the first `filters` channels.

    Args:
        filters: int, output channels.
        strides: int, of the first convolution.
    """

    def __init__(self, filters, strides=1, **kwargs):
        super().__init__(**kwargs)
        self.filters = filters
        self.strides = strides
        self.conv1 = ConvBN(filters, 3, strides=strides, dtype=self.dtype_policy, name="conv1")
        self.conv2 = ConvBN(filters, 3, relu=False, dtype=self.dtype_policy, name="conv2")

    def build(self, input_shape):
        """Creates the two convolutions' weights."""
        self.conv1.build(input_shape)
        self.conv2.build(self.conv1.compute_output_shape(input_shape))

    def compute_output_shape(self, input_shape):
        """Returns (B, H/strides, W/strides, filters)."""
        return self.conv2.compute_output_shape(self.conv1.compute_output_shape(input_shape))

    def call(self, x, training=False):
        """Maps (B, H, W, C) to (B, H/strides, W/strides, filters)."""
        y = self.conv2(self.conv1(x, training=training), training=training)
        if self.strides > 1:
            # Pooling over single pixels subsamples, at a quarter of the time of a strided slice.
            x = keras.ops.average_pool(x, 1, strides=self.strides)
        missing = self.filters - x.shape[-1]
        if missing > 0:
            x = keras.ops.pad(x, [(0, 0), (0, 0), (0, 0), (0, missing)])
        elif missing < 0:
            x = x[..., : self.filters]
        return keras.ops.relu(x + y)

    def get_config(self):
        """Returns the constructor's arguments."""
        return {**super().get_config(), "filters": self.filters, "strides": self.strides}


@dataclasses.dataclass(frozen=True)
@keras.saving.register_keras_serializable("dynkhydra_tf")
class ResNet(Backbone):
    """The 6d+2-layer ResNet; with widths 1, 1, 1 each Hydra path is the plain network of depth d.

    Args:
        depth: int >= 1, d, blocks per stage (the paper: 1 to 7 and 9).
        stem_width, branch_width, gater_width: float > 0, channel multipliers ws, wb, wg.
        image_size: int, height and width of an image in pixels.
    """

    depth: int = 1
    stem_width: float = 1.0
    branch_width: float = 1.0
    gater_width: float = 1.0
    image_size: int = 32

    def __post_init__(self):
        """Checks the sizes.

        Raises:
            ValueError: a size out of its range.
        """
        if self.depth < 1 or not all(0 < w < 100 for w in self._widths):
            raise ValueError(
                f"depth must be at least 1 and widths in (0, 100). Received: depth={self.depth}, "
                f"widths={self._widths}"
            )

    @property
    def _widths(self):
        return (self.stem_width, self.branch_width, self.gater_width)

    @property
    def input_shape(self):
        """(H, W, 3)."""
        return (self.image_size, self.image_size, 3)

    def stem(self, dtype=None):
        """Returns the first convolution and stages 1 and 2."""
        return keras.Sequential(self._stem(self.stem_width, dtype), name="stem")

    def branch(self, dtype=None):
        """Returns stage 3."""
        return keras.Sequential(self._stage(3, 64, 2, self.branch_width, dtype), name="branch")

    def gater_trunk(self, dtype=None):
        """Returns stage 3 at the gater's width."""
        return keras.Sequential(self._stage(3, 64, 2, self.gater_width, dtype), name="gater_trunk")

    def plain(self, dtype=None):
        """Returns all three stages at width 1."""
        return keras.Sequential(self._stem(1.0, dtype) + self._stage(3, 64, 2, 1.0, dtype), name="resnet")

    def _stem(self, width, dtype):
        return [
            ConvBN(_channels(16, width), 3, dtype=dtype, name="conv"),
            *self._stage(1, 16, 1, width, dtype),
            *self._stage(2, 32, 2, width, dtype),
        ]

    def _stage(self, number, filters, strides, width, dtype):
        return [
            BasicBlock(
                _channels(filters, width),
                strides if block == 1 else 1,
                dtype=dtype,
                name=f"stage{number}_block{block}",
            )
            for block in range(1, self.depth + 1)
        ]


def _channels(filters, width):
    return max(1, round(filters * width))
