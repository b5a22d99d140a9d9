"""A functional network of Keras as a list of layer configurations: where it can be cut, and its parts.

A network is cut where all that it computes goes through one tensor: after a residual block, not within it.
The configurations are those of `keras.Model.get_config()["layers"]`, in an order in which each layer comes
after those that it reads. A part is made of some of them and has the layers' names.
"""

import copy
import re
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import keras

Layers = list[dict[str, Any]]

# What the known families call the layers of a block: block10_add, block_12_project_BN, block5c_add,
# conv4_block6_out, expanded_conv_7_add, convnext_tiny_stage_2_block_8_layer_scale.
_BLOCK = re.compile(r"(.*block_?\d+[a-z]?|expanded_conv(?:_\d+)?)_")
# What turns images into normalised ones, or belongs to the convolution that follows: no place for a cut.
_NO_END = ("InputLayer", "Rescaling", "Normalization", "ZeroPadding2D", "TrueDivide", "Subtract")
_WEIGHTED = ("Conv2D", "Dense", "DepthwiseConv2D")
# What belongs to the layer before it.
_FOLLOWS = ("BatchNormalization", "LayerNormalization", "Activation", "ReLU", "LeakyReLU", "Dropout")


class Point(NamedTuple):
    """A place for a cut.

    Attributes:
        name: what a user calls it: the layer's name or, where Keras numbered that, the block's.
        layer: the last layer before the cut.
    """

    name: str
    layer: str


def sources(layer: dict[str, Any]) -> list[str]:
    """The names of the layers that a layer reads."""
    return [history[0] for history in histories(layer["inbound_nodes"])]


def narrow_places(layers: Layers) -> list[str]:
    """The names of the layers through whose output alone the network goes on; the last layer is one."""
    position = {layer["name"]: place for place, layer in enumerate(layers)}
    last_reader = list(range(len(layers)))
    for place, layer in enumerate(layers):
        for source in sources(layer):
            last_reader[position[source]] = place
    narrow, furthest = [], 0
    for place, layer in enumerate(layers):
        if furthest <= place:
            narrow.append(layer["name"])
        furthest = max(furthest, last_reader[place])
    return narrow


def points(layers: Layers) -> list[Point]:
    """The places for a cut, in order: the end of each block, and the ends of the layers outside of any."""
    readers: dict[str, list[dict]] = {}
    for layer in layers:
        for source in sources(layer):
            readers.setdefault(source, []).append(layer)
    blocks = _blocks(layers)
    narrow = set(narrow_places(layers))
    found: dict[str, Point] = {}
    for layer in layers[:-1]:
        name, block = layer["name"], blocks[layer["name"]]
        if name not in narrow or layer["class_name"] in _NO_END:
            continue
        after = readers[name]
        if layer["class_name"] == "LayerNormalization" and all(
            each["class_name"] in _WEIGHTED for each in after
        ):
            continue  # it belongs to what follows: the downsampling of ConvNeXt
        if block is None and any(reader["class_name"] in _FOLLOWS for reader in after):
            continue
        if block is not None and name.startswith(block):
            found[block] = Point(name, name)
        else:
            found[block or name] = Point(block or name, name)
    found.pop(blocks[layers[-1]["name"]], None)  # behind it there is only the last block's own end
    return list(found.values())


def block_ends(layers: Layers) -> list[str]:
    """The last layers of the blocks that the layers' names tell of."""
    blocks = _blocks(layers)
    return [point.layer for point in points(layers) if blocks[point.layer]]


def _blocks(layers: Layers) -> dict[str, str | None]:
    """The block of each layer by the layers' names; None for those that belong to none."""
    blocks: dict[str, str | None] = {}
    for layer in layers:
        name, match = layer["name"], _BLOCK.match(layer["name"])
        # One that Keras named and numbered belongs to the block of what it reads: the sum that ends it.
        numbered = re.sub(r"[_\d]", "", name) == layer["class_name"].lower()
        own = [blocks[source] for source in sources(layer)] if numbered else []
        blocks[name] = match[1] if match else next((block for block in reversed(own) if block), None)
    return blocks


def between(layers: Layers, start: str, end: str) -> Layers:
    """The layers after `start` up to `end`, both narrow places."""
    names = [layer["name"] for layer in layers]
    return layers[names.index(start) + 1 : names.index(end) + 1]


def without(layers: Layers, dropped: Layers) -> Layers:
    """Leaves out a stretch between two narrow places; what read its end reads what it read."""
    first, last = sources(dropped[0])[0], dropped[-1]["name"]
    names = {layer["name"] for layer in dropped}
    kept = copy.deepcopy([layer for layer in layers if layer["name"] not in names])
    for layer in kept:
        for history in histories(layer["inbound_nodes"]):
            if history[0] == last:
                history[:] = [first, 0, 0]
    return kept


def build(
    layers: Layers,
    input_shape: Sequence[int],
    name: str,
    dtype: str | None = None,
    frozen: bool = False,
    keep_statistics: bool = False,
) -> keras.Model:
    """Makes the network of a stretch of layers, with weights as Keras draws them.

    Args:
        layers: those after one narrow place up to another.
        input_shape: (H, W, C), what comes in at the first.
        name: of the network.
        dtype: Keras dtype policy of its layers, but for those that normalise images; None: Keras's.
        frozen: whether the weights are not trained. Dropout then drops nothing.
        keep_statistics: whether batch normalisation stays as it is at inference, its scale and offset too.

    Returns:
        (B, H, W, C) -> (B, h, w, c), with the layers' own names.
    """
    layers, inside = copy.deepcopy(layers), {layer["name"] for layer in layers}
    start = "part_input"
    for layer in layers:
        layer.pop("build_config", None)  # of the size that the network had
        for history in histories(layer["inbound_nodes"]):
            if history[0] not in inside:
                history[:] = [start, 0, 0]
        for config in _configs(layer):
            _set(config, dtype, frozen, keep_statistics)
    entry = {
        "module": "keras.layers",
        "class_name": "InputLayer",
        "config": {"batch_shape": [None, *input_shape], "dtype": "float32", "name": start},
        "name": start,
        "inbound_nodes": [],
    }
    config = {
        "name": name,
        "trainable": not frozen,
        "layers": [entry, *layers],
        "input_layers": [start, 0, 0],
        "output_layers": [layers[-1]["name"], 0, 0],
    }
    return keras.Model.from_config(config)


def _set(layer, dtype, frozen, keep_statistics):
    config, kind = layer["config"], layer["class_name"]
    if "dtype" in config and kind != "InputLayer":
        config["dtype"] = "float32" if kind in _NO_END[1:3] else (dtype or keras.config.dtype_policy().name)
    if "trainable" in config and (frozen or (keep_statistics and kind == "BatchNormalization")):
        config["trainable"] = False
    if frozen and "rate" in config and kind.endswith("Dropout"):
        config["rate"] = 0.0


def _configs(layer: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """A layer's configuration and those of the layers within it."""
    if isinstance(layer.get("config"), dict):
        yield layer
        for inner in layer["config"].get("layers", ()):
            yield from _configs(inner)


def histories(value: Any) -> Iterator[list]:
    """The [layer's name, call, output] of each tensor that the calls of a layer name."""
    if isinstance(value, dict):
        if value.get("class_name") == "__keras_tensor__":
            yield value["config"]["keras_history"]
        else:
            for inner in value.values():
                yield from histories(inner)
    elif isinstance(value, (list, tuple)):
        for inner in value:
            yield from histories(inner)
