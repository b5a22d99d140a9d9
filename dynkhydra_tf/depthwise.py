"""The gradient of depthwise convolutions in half precision on a CPU, some ten times as fast as TensorFlow's.

In bfloat16 oneDNN computes it fast for kernels of 3 x 3 pixels and stride 1. For the kernel's own gradient of
larger kernels, and for the image's with a stride, TensorFlow falls back to loops that take 40 to 240 times
the forward pass (docs/performance.md). Here a large kernel's gradient is put together from pieces of 3 x 3,
and the image's with a stride is computed in float32. Float32 gains little by that and stays as it is.

Shapes: images (B, H, W, C), kernels (h, w, C, 1).
"""

import contextlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from dynkhydra_tf.import_hooks import after_import
from dynkhydra_tf.machine import gpus

if TYPE_CHECKING:  # importing the package does not load it
    import tensorflow as tf

OPERATION = "DepthwiseConv2dNative"
PIECE = 3  # pixels: the largest kernel whose gradient is fast


def mend_gradient() -> None:
    """Has TensorFlow compute the gradient of depthwise convolutions by `gradient`, now or once imported."""
    after_import("tensorflow", _mend)


def _mend() -> None:
    with contextlib.suppress(ImportError, AttributeError, KeyError):  # another version has it elsewhere
        from tensorflow.python.framework import ops

        registered = ops.gradient_registry._registry[OPERATION]
        original = registered["type"]
        if not hasattr(original, "original"):

            def mended(operation: Any, grad: "tf.Tensor") -> "list[tf.Tensor]":
                return gradient(operation, grad, original)

            mended.original = original  # type: ignore[attr-defined]
            registered["type"] = mended


def gradient(
    operation: Any, grad: "tf.Tensor", original: "Callable[[Any, tf.Tensor], list[tf.Tensor]]"
) -> "list[tf.Tensor]":
    """Returns the gradients of a depthwise convolution with respect to its images and its kernel.

    Args:
        operation: `DepthwiseConv2dNative`, or what stands for it in eager mode, which does not tell what was
            left at its default, and is not mended then: inputs, get_attr(name).
        grad: with respect to its output.
        original: TensorFlow's own way, taken for all that is not mended.
    """
    images, kernel = operation.inputs
    told = [operation.get_attr(name) for name in ("data_format", "padding")]
    data_format, padding = (value.decode() if isinstance(value, bytes) else value for value in told)
    is_mended = (
        images.dtype in ("bfloat16", "float16")
        and data_format == "NHWC"
        and padding in ("SAME", "VALID")
        and list(operation.get_attr("dilations")) == [1, 1, 1, 1]
        and None not in images.shape[1:3]
        and None not in kernel.shape
        and kernel.shape[3] == 1
    )
    if not is_mended or gpus():
        return original(operation, grad)
    stride = operation.get_attr("strides")[1]
    return [
        _image_gradient(images, kernel, grad, stride, padding),
        _kernel_gradient(images, kernel, grad, stride, padding),
    ]


def _image_gradient(images, kernel, grad, stride, padding):
    import tensorflow as tf

    dtype = images.dtype
    if stride > 1:
        kernel, grad = tf.cast(kernel, tf.float32), tf.cast(grad, tf.float32)
    strides = [1, stride, stride, 1]
    found = tf.nn.depthwise_conv2d_backprop_input(tf.shape(images), kernel, grad, strides, padding)
    return tf.cast(found, dtype)


def _kernel_gradient(images, kernel, grad, stride, padding):
    """From pieces of at most `PIECE` x `PIECE`, each the gradient of a small kernel on shifted images."""
    import tensorflow as tf

    sizes, strides = kernel.shape[:2], [1, stride, stride, 1]
    if max(sizes) <= PIECE:
        return tf.nn.depthwise_conv2d_backprop_filter(images, kernel.shape, grad, strides, padding)
    if padding == "SAME":
        images = tf.pad(images, [(0, 0), *map(_same_padding, images.shape[1:3], sizes, [stride] * 2), (0, 0)])
    # From there so many pixels belong to the small kernels at one place, for all outputs.
    reach = [(outputs - 1) * stride for outputs in (tf.shape(grad)[1], tf.shape(grad)[2])]
    rows = []
    for top, height, of_rows in _pieces(sizes[0]):
        row = []
        for left, width, of_columns in _pieces(sizes[1]):
            under = images[:, top : top + reach[0] + height, left : left + reach[1] + width]
            small = (height, width, kernel.shape[2], 1)
            piece = tf.nn.depthwise_conv2d_backprop_filter(under, small, grad, strides, "VALID")
            row.append(piece[:of_rows, :of_columns])
        rows.append(tf.concat(row, axis=1))
    return tf.concat(rows, axis=0)


def _same_padding(size, kernel, stride):
    """The pixels that padding="SAME" adds on either side."""
    added = max((-(-size // stride) - 1) * stride + kernel - size, 0)
    return added // 2, added - added // 2


def _pieces(size):
    """(first pixel, size, how many pixels are taken of it) of the pieces of a kernel's side; they overlap."""
    if size <= PIECE:
        return [(0, size, size)]
    starts = [*range(0, size - PIECE, PIECE), size - PIECE]
    return [(start, PIECE, after - start) for start, after in zip(starts, [*starts[1:], size], strict=True)]
