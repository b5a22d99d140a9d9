"""A stretch of layers with fewer hidden channels: the layers, and which of a trained network's channels stay.

Hidden are the channels between the in- and the output of a block: the expanded ones of an inverted residual,
a bottleneck's, those of squeeze and excite. What a block gives keeps its channels, so that sums fit.
"""

import copy
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from dynkhydra_tf.backbones.base import scaled
from dynkhydra_tf.backbones.chain import Layers
from dynkhydra_tf.backbones.channels import Channels

_NORMALISATIONS = (keras.layers.BatchNormalization, keras.layers.LayerNormalization)


def narrowed(layers: Layers, incoming: int, block_ends: Sequence[str], width: float) -> Layers:
    """Returns the layers with `width` times as many hidden channels, at least one of each.

    Args:
        layers: the stretch, see `chain.py`.
        incoming: the channels of what it reads.
        block_ends: names of layers whose channels stay; the last layer's do, too.
        width: in (0, 1].

    Raises:
        ValueError: there are no hidden channels, and `width` is less than 1.
    """
    if width == 1:
        return layers
    channels = Channels(layers, incoming, block_ends)
    sizes = {group: scaled(size, width) for group, size in channels.hidden().items()}
    if not sizes:
        raise ValueError(f"A width needs hidden channels, and there are none. Received: width={width}")
    layers = copy.deepcopy(layers)
    for layer in layers:
        size = sizes.get(channels.group(channels.made[layer["name"]]))
        if size is not None:
            _set_channels(layer["class_name"], layer["config"], size)
    return layers


def _set_channels(kind: str, config: dict[str, Any], size: int) -> None:
    """Gives a layer that makes or keeps channels another number of them."""
    if kind == "Dense":
        config["units"] = size
    elif kind == "Reshape":
        config["target_shape"] = [*config["target_shape"][:-1], size]
    elif kind == "LayerScale":
        config["projection_dim"] = size
    elif kind in ("Conv2D", "SeparableConv2D"):
        if config.get("groups", 1) > 1:  # one for each channel
            config["groups"] = size
        config["filters"] = size


def copy_largest(source: keras.Model, target: keras.Model) -> None:
    """Copies a network's weights into one that has fewer hidden channels: those that bring most.

    What a channel brings: how large it is, times the length of the weights that read it. How large: the root
    of scale^2 + offset^2 of the last normalisation that it goes through; where there is none, the length of
    the weights that make it.

    Args:
        source: built, with a layer of its own for each layer of `target` that has weights; it may have more.
        target: built, a functional network; narrower than `source` as those of `narrowed` are.

    Raises:
        ValueError: a layer that `source` lacks, or that differs in more than its hidden channels. Nothing is
            copied.
    """
    twins = {layer.name: layer for layer in source.layers}
    values = {layer.name: twins[layer.name].get_weights() for layer in target.layers if layer.name in twins}
    channels = Channels(target.get_config()["layers"][1:], target.input_shape[-1])
    kept = _largest(channels, target, values)
    for name, weights in values.items():
        for number, axes in enumerate(_axes(channels, name, len(weights))):
            for axis, group in axes.items():
                if group in kept:
                    weights[number] = np.take(weights[number], kept[group], axis=axis)
    layers = [layer for layer in target.layers if layer.weights]
    if others := [layer.name for layer in layers if not _fit(values.get(layer.name), layer)]:
        raise ValueError(
            f"{source.name} must have every layer of {target.name}, and more hidden channels at most. "
            f"Received: {target.name} with {', '.join(others)}, of which that is not so"
        )
    for layer in layers:
        layer.set_weights(values[layer.name])


def _fit(weights, layer):
    return weights is not None and [w.shape for w in weights] == [tuple(w.shape) for w in layer.weights]


def _axes(channels, name, count):
    """Of each of a layer's weights {axis: group}."""
    known = channels.axes.get(name) or [{}]
    all_axes = [known[min(number, len(known) - 1)] for number in range(count)]
    return [{axis: channels.group(group) for axis, group in axes.items()} for axes in all_axes]


def _largest(channels, target, values):
    """The indices, rising, of the channels that stay: {group: (n,) int}, for groups that do not keep all."""
    making, reading, normalised = defaultdict(float), defaultdict(float), {}
    sizes: dict[int, int] = {}
    for layer in target.layers:
        weights = values.get(layer.name, [])
        all_axes = _axes(channels, layer.name, len(weights))
        for axes, weight, own in zip(all_axes, weights, layer.weights, strict=False):
            sizes |= {group: own.shape[axis] for axis, group in axes.items()}
            if len(axes) == 2:  # the kernel of a convolution: (..., in, out)
                squares = np.square(weight, dtype=np.float64)
                making[axes[-1]] += squares.sum(axis=tuple(range(squares.ndim - 1)))
                reading[axes[-2]] += np.moveaxis(squares, -2, 0).reshape(squares.shape[-2], -1).sum(axis=1)
        if isinstance(layer, _NORMALISATIONS) and weights:
            scale = weights[0] if layer.gamma is not None else 1.0
            offset = weights[layer.gamma is not None] if layer.beta is not None else 0.0
            normalised[all_axes[0][-1]] = np.square(scale) + np.square(offset)
    kept = {}
    for group, size in sizes.items():
        brings = normalised.get(group, making[group]) * reading[group]
        if np.size(brings) > size:
            kept[group] = np.sort(np.argsort(-brings, kind="stable")[:size])
    return kept
