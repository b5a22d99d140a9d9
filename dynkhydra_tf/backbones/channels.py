"""Which axes of the weights of a stretch of layers hold the same channels, and which of these can be fewer.

A convolution makes new channels; normalisation, activations, depthwise convolutions and pooling keep them,
and the two sides of a sum or a product have the same. A layer that is not known here keeps all channels that
go into it and come out of it.

Layers are configurations as in `chain.py`, (B, H, W, C) or (B, C) between them, channels last.
"""

import math
from collections.abc import Sequence

from dynkhydra_tf.backbones.chain import Layers, sources

# Each channel by itself; what weights these have are one a channel, on the last axis.
# fmt: off
_KEEP = (
    "Activation", "AveragePooling2D", "BatchNorm", "BatchNormalization", "Cropping2D", "Dropout", "ELU",
    "GaussianDropout", "GaussianNoise", "Gelu", "GlobalAveragePooling2D", "GlobalMaxPooling2D",
    "HardSigmoid", "HardSwish", "Identity", "LayerNormalization", "LayerScale", "LeakyReLU",
    "LeakyRelu", "MaxPooling2D", "ReLU", "Relu", "Relu6", "Sigmoid", "Silu", "SpatialDropout2D",
    "StochasticDepth", "Tanh", "UpSampling2D", "ZeroPadding2D",
)
# fmt: on
_MERGE = ("Add", "Average", "Divide", "Maximum", "Minimum", "Multiply", "Subtract", "TrueDivide")
_LAST = (-1, 3, [-1], [3])  # as an axis


class Channels:
    """The channels of a stretch of layers, in groups; a group is told by an int.

    Args:
        layers: the stretch: all that come in read the same tensor.
        incoming: how many channels that has.
        fixed: names of layers whose channels stay; the last layer's stay, too.

    Attributes:
        axes: {layer: a dict {axis: group} for its first weight, its second and so on; the last one is for all
            that follow, too}, for the layers that have weights.
        made: {layer: group} of the layers' outputs.
    """

    def __init__(self, layers: Layers, incoming: int, fixed: Sequence[str] = ()) -> None:
        self._same: list[int] = []  # each group's twin; itself where it has none
        self._sizes: list[int] = []
        self._kept: set[int] = set()
        self.axes: dict[str, list[dict[int, int]]] = {}
        self.made: dict[str, int] = {}
        outside = self._new(incoming, fixed=True)
        for layer in layers:
            read = [self.made.get(name, outside) for name in sources(layer)]
            self.made[layer["name"]] = self._through(layer, read)
        for name in (*fixed, layers[-1]["name"]):
            if name in self.made:
                self._kept.add(self.made[name])

    def hidden(self) -> dict[int, int]:
        """The groups that can be fewer, and how many channels each has."""
        kept = {self.group(each) for each in self._kept}
        return {
            each: size
            for each, size in enumerate(self._sizes)
            if self.group(each) == each and each not in kept and size > 1
        }

    def group(self, group: int) -> int:
        """The one group that stands for all those that were found to be the same."""
        while self._same[group] != group:
            group = self._same[group]
        return group

    def _new(self, size: int, fixed: bool = False) -> int:
        group = len(self._sizes)
        self._same.append(group)
        self._sizes.append(size)
        if fixed:
            self._kept.add(group)
        return group

    def _through(self, layer, read):
        """The group of what a layer gives."""
        kind, config, first = layer["class_name"], layer["config"], self.group(read[0])
        size, axes = self._sizes[first], self.axes
        if kind in _MERGE:
            return self._merged(read)
        if kind in ("Conv2D", "Dense") and config.get("groups", 1) == 1:
            made = self._new(config["units" if kind == "Dense" else "filters"])
            axes[layer["name"]] = [{-2: first, -1: made}, {-1: made}]
            return made
        if kind == "SeparableConv2D" and config["depth_multiplier"] == 1:
            made = self._new(config["filters"])
            axes[layer["name"]] = [{-2: first}, {-2: first, -1: made}, {-1: made}]
            return made
        if kind == "DepthwiseConv2D" and config["depth_multiplier"] == 1:
            axes[layer["name"]] = [{-2: first}, {-1: first}]
            return first
        if kind == "Conv2D" and config["groups"] == config["filters"] == size:
            axes[layer["name"]] = [{-1: first}]
            return first
        one_pixel = kind == "Reshape" and config["target_shape"][-1] == size == math.prod(
            config["target_shape"]
        )
        if one_pixel or (kind in _KEEP and config.get("axis", -1) in _LAST):
            axes[layer["name"]] = [{-1: first}]
            return first
        self._kept.update(read)
        return self._new(0, fixed=True)

    def _merged(self, read):
        """One group of several, but for those of one channel, which go with any."""
        groups = list(dict.fromkeys(map(self.group, read)))
        whole = [each for each in groups if self._sizes[each] != 1] or groups[:1]
        if len({self._sizes[each] for each in whole}) > 1:  # one of them is of an unknown layer
            self._kept.update(whole)
        for each in whole[1:]:
            self._same[each] = whole[0]
        return whole[0]
