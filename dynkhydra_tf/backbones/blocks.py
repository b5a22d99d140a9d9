"""What all networks here are built of: the convolution unit and the classifier."""

import keras
import tensorflow as tf


class BatchNorm(keras.layers.BatchNormalization):
    """Keras's batch normalisation, computed by TensorFlow's fused op.

    Keras composes it of a dozen passes over the map. With oneDNN the fused op made a routed training
    step (d=1, nb=20, 2 cores) 1.15 times as fast, and at inference TensorFlow merges it with the
    convolution before it. Without oneDNN, Keras's own is the faster one in training. It has scale and
    centre, and normalises the last axis.
    """

    def call(self, inputs, training=None, mask=None):
        """Maps (B, H, W, C), B > 0, to the same; `training` moves the moving statistics."""
        training = bool(training and self.trainable)  # frozen, it is as at inference
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
            self.moving_mean.assign(self.moving_mean * self.momentum + mean * (1 - self.momentum))
            self.moving_variance.assign(self.moving_variance * self.momentum + variance * (1 - self.momentum))
        return outputs


@keras.saving.register_keras_serializable("dynkhydra_tf")
class ConvBN(keras.Layer):
    """Convolution without bias, batch normalisation, ReLU: one unit, that `fold` makes one convolution.

    Args:
        filters: int, output channels.
        kernel_size: int, in pixels.
        strides: int, in pixels.
        relu: bool, false where a sum follows.
    """

    def __init__(self, filters, kernel_size, strides=1, relu=True, **kwargs):
        super().__init__(**kwargs)
        self.filters = filters
        self.kernel_size = kernel_size
        self.strides = strides
        self.relu = relu
        self.conv = keras.layers.Conv2D(
            filters,
            kernel_size,
            strides=strides,
            padding="same",
            use_bias=False,
            kernel_initializer="he_normal",
            dtype=self.dtype_policy,
            name="conv",
        )
        # Keras's momentum of 0.99 is too slow for small data sets: digits has 9 steps an epoch.
        self.norm = BatchNorm(momentum=0.97, dtype=self.dtype_policy, name="norm")
        self.folded = False

    def fold(self):
        """Merges the normalisation by moving statistics into the convolution, in place: for inference only.

        The kernel and `norm.beta`, from now on the bias, take the place of all five weights.

        Returns:
            The three variables that are not used any more.
        """
        scale = self.norm.gamma / keras.ops.sqrt(self.norm.moving_variance + self.norm.epsilon)
        self.conv.kernel.assign(self.conv.kernel * scale)
        self.norm.beta.assign(self.norm.beta - self.norm.moving_mean * scale)
        self.folded = True
        return self.norm.gamma, self.norm.moving_mean, self.norm.moving_variance

    def build(self, input_shape):
        """Creates the weights."""
        self.conv.build(input_shape)
        self.norm.build(self.conv.compute_output_shape(input_shape))

    def compute_output_shape(self, input_shape):
        """Returns (B, H/strides, W/strides, filters)."""
        return self.conv.compute_output_shape(input_shape)

    def call(self, x, training=False):
        """Maps (B, H, W, C) to (B, H/strides, W/strides, filters)."""
        x = self.conv(x)
        # No Keras addition: TensorFlow merges bias_add with the convolution and the ReLU.
        beta = self.norm.beta.value
        x = tf.nn.bias_add(x, beta) if self.folded else self.norm(x, training=training)
        return keras.ops.relu(x) if self.relu else x

    def get_config(self):
        """Returns the constructor's arguments."""
        config = {key: getattr(self, key) for key in ("filters", "kernel_size", "strides", "relu")}
        return {**super().get_config(), **config}


def fold(layer):
    """Folds every `ConvBN` within a layer, in place, and returns the layer's variables that are still used.

    Sorted by path, as `Branches.stacks` are. Other normalisations stay as they are.
    """
    units = [part for part in layer._flatten_layers() if isinstance(part, ConvBN)]
    unused = {id(variable) for unit in units for variable in unit.fold()}
    used = [variable for variable in layer.variables if id(variable) not in unused]
    return sorted(used, key=lambda variable: variable.path)


def classifier(outputs):
    """Returns the layers from a feature map (B, H, W, C) to logits (B, outputs), float32."""
    return [
        keras.layers.GlobalAveragePooling2D(dtype="float32", name="pool"),
        keras.layers.Dense(outputs, dtype="float32", name="logits"),
    ]
