"""ResNet for small images (He et al. 2016, section 4.2): 6d+2 layers, cut in two for Hydra.

A 3x3 convolution to 16 channels, then three stages of d basic blocks with 16, 32 and 64 channels,
stride 2 at stages 2 and 3. Stem: the convolution and stages 1 and 2; branch and gater: stage 3.
"""

import dataclasses
from typing import Any

import keras
import tensorflow as tf

from dynkhydra_tf.backbones.base import CutBackbone, DType, scaled
from dynkhydra_tf.backbones.blocks import ConvBN, Shape


@keras.saving.register_keras_serializable("dynkhydra_tf")
class BasicBlock(keras.Layer):
    """Two 3x3 convolutions and a shortcut without parameters.

    Where the shape changes, the shortcut takes every `strides`-th pixel and pads the new channels
    with zeros (option A of He et al.); the paper's FLOPs of Table 3 fit this, not a convolution. Where a
    branch is narrower than the stem (wb < ws), the shortcut keeps the first `filters` channels.

    It reads pixel 2i, while TensorFlow's "same" convolution of stride 2 on an even size is centred on 2i+1.
    The mean of 2x2 pixels is nearer to that, and was tried: on 128 maps of 32x32x16 it took 1.5 times as long
    forwards and 1.25 times forwards and backwards, and plain networks (d=1, CIFAR-100 at 16x16 px, 10,000
    images, 3 epochs, 7 seeds) reached 16.2 % with it and 16.1 % without, each +-0.4. So it stays He et al.'s.

    Args:
        filters: int, output channels.
        strides: int, of the first convolution.
        separable: bool, whether the convolutions are depthwise separable.
    """

    def __init__(self, filters: int, strides: int = 1, separable: bool = False, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.filters = filters
        self.strides = strides
        self.separable = separable
        common = {"separable": separable, "dtype": self.dtype_policy}
        self.conv1 = ConvBN(filters, 3, strides=strides, name="conv1", **common)
        self.conv2 = ConvBN(filters, 3, relu=False, name="conv2", **common)

    def build(self, input_shape: Shape) -> None:
        """Creates the two convolutions' weights."""
        self.conv1.build(input_shape)
        self.conv2.build(self.conv1.compute_output_shape(input_shape))

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        """Returns (B, H/strides, W/strides, filters)."""
        return self.conv2.compute_output_shape(self.conv1.compute_output_shape(input_shape))

    def call(self, x: tf.Tensor, training: bool = False) -> tf.Tensor:
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

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments."""
        config = {key: getattr(self, key) for key in ("filters", "strides", "separable")}
        return {**super().get_config(), **config}


def stage(
    number: int, depth: int, filters: int, strides: int, separable: bool = False, dtype: DType = None
) -> list[BasicBlock]:
    """Returns `depth` basic blocks, named after stage `number`, the first of which has the strides."""
    return [
        BasicBlock(
            filters,
            strides if block == 1 else 1,
            separable,
            dtype=dtype,
            name=f"stage{number}_block{block}",
        )
        for block in range(1, depth + 1)
    ]


@dataclasses.dataclass(frozen=True)
@keras.saving.register_keras_serializable("dynkhydra_tf")
class ResNet(CutBackbone):
    """The 6d+2-layer ResNet; the paper has d from 1 to 7 and 9."""

    def first_layers(self, width: float, dtype: DType) -> list[keras.Layer]:
        """Returns the first convolution and stages 1 and 2."""
        return [
            ConvBN(scaled(16, width), 3, dtype=dtype, name="conv"),
            *stage(1, self.depth, scaled(16, width), 1, dtype=dtype),
            *stage(2, self.depth, scaled(32, width), 2, dtype=dtype),
        ]

    def last_layers(self, width: float, dtype: DType) -> list[keras.Layer]:
        """Returns stage 3."""
        return stage(3, self.depth, scaled(64, width), 2, dtype=dtype)
