"""What all networks here are built of: the convolution unit and the classifier."""

import keras


@keras.saving.register_keras_serializable("dynkhydra_tf")
class ConvBN(keras.Layer):
    """Convolution without bias, batch normalisation, ReLU: one unit, so that export can fold it.

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
        self.norm = keras.layers.BatchNormalization(momentum=0.97, dtype=self.dtype_policy, name="norm")

    def build(self, input_shape):
        """Creates the weights."""
        self.conv.build(input_shape)
        self.norm.build(self.conv.compute_output_shape(input_shape))

    def compute_output_shape(self, input_shape):
        """Returns (B, H/strides, W/strides, filters)."""
        return self.conv.compute_output_shape(input_shape)

    def call(self, x, training=False):
        """Maps (B, H, W, C) to (B, H/strides, W/strides, filters)."""
        x = self.norm(self.conv(x), training=training)
        return keras.ops.relu(x) if self.relu else x

    def get_config(self):
        """Returns the constructor's arguments."""
        config = {key: getattr(self, key) for key in ("filters", "kernel_size", "strides", "relu")}
        return {**super().get_config(), **config}


def classifier(outputs):
    """Returns the layers from a feature map (B, H, W, C) to logits (B, outputs), float32."""
    return [
        keras.layers.GlobalAveragePooling2D(dtype="float32", name="pool"),
        keras.layers.Dense(outputs, dtype="float32", name="logits"),
    ]
