"""What all networks here are built of: the convolution unit and the classifier."""

from typing import Any

import keras
import tensorflow as tf

from dynkhydra_tf import distribution, normalisation

# A shape with its batch axis, None where a size is open: (B, H, W, C).
Shape = tuple[int | None, ...]


@keras.saving.register_keras_serializable("dynkhydra_tf")
class BatchNorm(keras.layers.BatchNormalization):
    """Keras's batch normalisation, computed by TensorFlow's fused op.

    Keras composes it of a dozen passes over the map. With oneDNN the fused op made a routed training
    step (d=1, nb=20, 2 cores) 1.15 times as fast, and at inference TensorFlow merges it with the
    convolution before it. Where it is slow in training, `normalisation` does its work. It has scale and
    centre, and normalises the last axis.

    Args:
        momentum: float, of the moving statistics. Keras's 0.99 is too slow for small data sets: digits has
            9 steps an epoch.
    """

    def __init__(self, momentum: float = 0.97, **kwargs: Any) -> None:
        super().__init__(momentum=momentum, **kwargs)

    def call(
        self, inputs: tf.Tensor, training: bool | None = None, mask: tf.Tensor | None = None
    ) -> tf.Tensor:
        """Maps (B, H, W, C), B > 0, to the same; `training` moves the moving statistics."""
        training = bool(training and self.trainable)  # frozen, it is as at inference
        if training and distribution.shares_statistics():
            return self._of_all_replicas(inputs)
        if training and normalisation.is_slow(inputs):
            gamma, beta = map(tf.convert_to_tensor, (self.gamma.value, self.beta.value))
            outputs, mean, variance = normalisation.normalise(inputs, gamma, beta, self.epsilon)
        else:
            moving = () if training else (self.moving_mean.value, self.moving_variance.value)
            outputs, mean, variance = tf.compat.v1.nn.fused_batch_norm(
                inputs,
                self.gamma.value,
                self.beta.value,
                *moving,
                epsilon=self.epsilon,
                is_training=training,
            )
        if training:
            self._move(mean, variance)
        return outputs

    def _of_all_replicas(self, inputs):
        """The same in training with the mean and the variance over all replicas."""
        x = tf.cast(inputs, tf.float32)
        count, mean, variance = distribution.moments(x, tf.convert_to_tensor(self.moving_mean.value))
        # As the fused op, which estimates the variance from count - 1 for the moving one.
        self._move(mean, variance * tf.math.divide_no_nan(count, count - 1))
        scale = self.gamma.value * tf.math.rsqrt(variance + self.epsilon)
        return tf.cast((x - mean) * scale + self.beta.value, inputs.dtype)

    def _move(self, mean, variance):
        # Without stop_gradient the traced functions of the branches compute its gradient, all zeros.
        for moving, value in ((self.moving_mean, mean), (self.moving_variance, variance)):
            value = moving * self.momentum + value * (1 - self.momentum)
            moving.assign(tf.stop_gradient(value))


def convolution(
    filters: int,
    kernel_size: int,
    strides: int = 1,
    dtype: str | keras.DTypePolicy | None = None,
    name: str | None = None,
) -> keras.layers.Conv2D:
    """Returns a convolution that keeps the size times 1/strides, without bias: a normalisation follows.

    Args:
        filters: output channels.
        kernel_size, strides: in pixels.
        dtype: a Keras dtype policy.
        name: of the layer.
    """
    return keras.layers.Conv2D(
        filters,
        kernel_size,
        strides=strides,
        padding="same",
        use_bias=False,
        kernel_initializer="he_normal",
        dtype=dtype,
        name=name,
    )


@keras.saving.register_keras_serializable("dynkhydra_tf")
class ConvBN(keras.Layer):
    """Convolution without bias, batch normalisation, ReLU: one unit.

    Args:
        filters: int, output channels.
        kernel_size: int, in pixels.
        strides: int, in pixels.
        relu: bool, false where a sum follows.
        separable: bool: a depthwise convolution over the pixels, then a 1x1 convolution over the channels,
            nothing between them, in place of the full convolution.
    """

    def __init__(
        self,
        filters: int,
        kernel_size: int,
        strides: int = 1,
        relu: bool = True,
        separable: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.filters = filters
        self.kernel_size = kernel_size
        self.strides = strides
        self.relu = relu
        self.separable = separable
        self.depthwise = None
        if separable:
            # Not Keras's SeparableConv2D: its 1x1 convolution has "valid" padding, and TensorFlow 2.21 with
            # oneDNN crashes where a zero-padded shortcut is added to such a one, with its bias.
            self.depthwise = keras.layers.DepthwiseConv2D(
                kernel_size,
                strides=strides,
                padding="same",
                use_bias=False,
                # Keras counts all channels into a depthwise kernel's fan-in; it is the kernel's pixels.
                depthwise_initializer=keras.initializers.RandomNormal(stddev=1 / kernel_size),
                dtype=self.dtype_policy,
                name="depthwise",
            )
            kernel_size, strides = 1, 1
        self.conv = convolution(filters, kernel_size, strides, dtype=self.dtype_policy, name="conv")
        self.norm = BatchNorm(dtype=self.dtype_policy, name="norm")

    def build(self, input_shape: Shape) -> None:
        """Creates the weights."""
        if self.separable:
            self.depthwise.build(input_shape)
            input_shape = self.depthwise.compute_output_shape(input_shape)
        self.conv.build(input_shape)
        self.norm.build(self.conv.compute_output_shape(input_shape))

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        """Returns (B, H/strides, W/strides, filters)."""
        if self.separable:
            input_shape = self.depthwise.compute_output_shape(input_shape)
        return self.conv.compute_output_shape(input_shape)

    def call(self, x: tf.Tensor, training: bool = False) -> tf.Tensor:
        """Maps (B, H, W, C) to (B, H/strides, W/strides, filters)."""
        x = self.conv(self.depthwise(x) if self.separable else x)
        x = self.norm(x, training=training)
        return keras.ops.relu(x) if self.relu else x

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments."""
        keys = ("filters", "kernel_size", "strides", "relu", "separable")
        return {**super().get_config(), **{key: getattr(self, key) for key in keys}}


def classifier(outputs: int) -> list[keras.Layer]:
    """Returns the layers from a feature map (B, H, W, C) to logits (B, outputs), float32."""
    return [
        keras.layers.GlobalAveragePooling2D(dtype="float32", name="pool"),
        keras.layers.Dense(outputs, dtype="float32", name="logits"),
    ]
