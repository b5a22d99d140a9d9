"""ResSep for photographs: a ResNet of depthwise separable convolutions, which the paper uses for CUB-200.

A 7x7 convolution to 64 channels with stride 2, 3x3 max-pooling with stride 2, then four stages of d basic
blocks with 64, 128, 256 and 512 channels, stride 2 from stage 2 on. Stem: all but stage 4; branch and
gater: stage 4. The paper says only that its ResNet takes 224x224 and that "the convolutions are replaced by
depthwise separable convolutions": the stages here are those of ResNet-18 (He et al. 2016), and the first
convolution stays a full one, as is usual in such networks: it has three channels only.
"""

import dataclasses

import keras

from dynkhydra_tf.backbones.base import CutBackbone, DType, scaled
from dynkhydra_tf.backbones.blocks import ConvBN
from dynkhydra_tf.backbones.resnet import stage


@dataclasses.dataclass(frozen=True)
@keras.saving.register_keras_serializable("dynkhydra_tf")
class ResSep(CutBackbone):
    """The ResNet of separable convolutions; the paper has ws=0.5, wb=wg=0.125, d from 1 to 7 and 9."""

    image_size: int = 224

    def first_layers(self, width: float, dtype: DType) -> list[keras.Layer]:
        """Returns the 7x7 convolution, the pooling and stages 1, 2 and 3."""
        return [
            ConvBN(scaled(64, width), 7, strides=2, dtype=dtype, name="conv"),
            keras.layers.MaxPooling2D(3, 2, padding="same", dtype=dtype, name="pool"),
            *stage(1, self.depth, scaled(64, width), 1, separable=True, dtype=dtype),
            *stage(2, self.depth, scaled(128, width), 2, separable=True, dtype=dtype),
            *stage(3, self.depth, scaled(256, width), 2, separable=True, dtype=dtype),
        ]

    def last_layers(self, width: float, dtype: DType) -> list[keras.Layer]:
        """Returns stage 4."""
        return stage(4, self.depth, scaled(512, width), 2, separable=True, dtype=dtype)
