"""DenseNet for small images (Huang et al. 2017): three dense blocks of 3d, 6d and 12d layers, growth 3.

Stem: a 3x3 convolution to 6 channels, the first two blocks and the transition after each; branch and gater:
the third block. The paper names no more than the blocks and the growth; this is Huang et al.'s DenseNet-BC,
the one of their variants that comes nearest to the paper's Table 2: a layer has a bottleneck of four times
the growth, a transition halves the channels, and the first convolution has twice the growth.
"""

import dataclasses
from typing import Any

import keras
import tensorflow as tf

from dynkhydra_tf.backbones.base import CutBackbone, DType, scaled
from dynkhydra_tf.backbones.blocks import BatchNorm, ConvBN, Shape, convolution

GROWTH = 3


@keras.saving.register_keras_serializable("dynkhydra_tf")
class NormReLU(BatchNorm):
    """Batch normalisation and ReLU ahead of a convolution; what it normalises goes elsewhere too."""

    def call(
        self, inputs: tf.Tensor, training: bool | None = None, mask: tf.Tensor | None = None
    ) -> tf.Tensor:
        """Maps (B, H, W, C) to the same."""
        return keras.ops.relu(super().call(inputs, training=training))


@keras.saving.register_keras_serializable("dynkhydra_tf")
class DenseLayer(keras.Layer):
    """Appends `growth` channels to its input: normalised, mixed to 4 growth channels, then a 3x3 convolution.

    Args:
        growth: int, channels to append.
    """

    def __init__(self, growth: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.growth = growth
        self.norm = NormReLU(dtype=self.dtype_policy, name="norm")
        self.bottleneck = ConvBN(4 * growth, 1, dtype=self.dtype_policy, name="bottleneck")
        self.conv = convolution(growth, 3, dtype=self.dtype_policy, name="conv")

    def build(self, input_shape: Shape) -> None:
        """Creates the weights."""
        self.norm.build(input_shape)
        self.bottleneck.build(input_shape)
        self.conv.build(self.bottleneck.compute_output_shape(input_shape))

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        """Returns (B, H, W, C + growth)."""
        return (*input_shape[:-1], input_shape[-1] + self.growth)

    def call(self, x: tf.Tensor, training: bool = False) -> tf.Tensor:
        """Maps (B, H, W, C) to (B, H, W, C + growth)."""
        y = self.bottleneck(self.norm(x, training=training), training=training)
        return keras.ops.concatenate([x, self.conv(y)], axis=-1)

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments."""
        return {**super().get_config(), "growth": self.growth}


@dataclasses.dataclass(frozen=True)
@keras.saving.register_keras_serializable("dynkhydra_tf")
class DenseNet(CutBackbone):
    """The DenseNet of 3d, 6d and 12d layers; the paper has d from 1 to 4, the plain one to 6.

    A width multiplies the growth: stem_width=4 is a growth of 12 in the stem.
    """

    def first_layers(self, width: float, dtype: DType) -> list[keras.Layer]:
        """Returns the first convolution, two blocks and their transitions."""
        growth = scaled(GROWTH, width)
        layers, channels = [convolution(2 * growth, 3, dtype=dtype, name="conv")], 2 * growth
        for number, count in ((1, 3 * self.depth), (2, 6 * self.depth)):
            layers += _block(number, count, growth, dtype)
            channels = (channels + count * growth) // 2
            layers += [
                NormReLU(dtype=dtype, name=f"transition{number}_norm"),
                convolution(channels, 1, dtype=dtype, name=f"transition{number}_conv"),
                keras.layers.AveragePooling2D(
                    2, padding="same", dtype=dtype, name=f"transition{number}_pool"
                ),
            ]
        return layers

    def last_layers(self, width: float, dtype: DType) -> list[keras.Layer]:
        """Returns the third block and the normalisation that ends the network."""
        layers = _block(3, 12 * self.depth, scaled(GROWTH, width), dtype)
        return [*layers, NormReLU(dtype=dtype, name="norm")]


def _block(number, count, growth, dtype):
    return [
        DenseLayer(growth, dtype=dtype, name=f"block{number}_layer{layer}") for layer in range(1, count + 1)
    ]
