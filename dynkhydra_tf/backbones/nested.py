"""Networks within networks, as one: the layers of a functional network with those of inner networks in place.

Who fine-tunes a network of Keras often saves one in which it is a single layer, behind layers that augment
images. These draw at random in training and do nothing else; data are augmented elsewhere here.
"""

import json
from typing import NamedTuple

import keras

from dynkhydra_tf.backbones.chain import Layers, histories, sources
from dynkhydra_tf.errors import UserError


class Flat(NamedTuple):
    """A network without networks in it.

    Attributes:
        layers: configurations as in `chain.py`; the first is the input.
        twins: by the names in these, the layers that they are of, with their weights.
        left_out: the names of the layers that augment images, which are left out.
    """

    layers: Layers
    twins: dict[str, keras.Layer]
    left_out: list[str]


def functional(network: keras.Layer, title: str) -> keras.Model:
    """Returns a sequential network as a functional one, and a functional one as it is.

    Raises:
        UserError: it is neither, or has several inputs or outputs.
    """
    if isinstance(network, keras.Sequential) and network.built:
        network = keras.Model(network.inputs, network.outputs, name=network.name)
    if not hasattr(network, "operations"):
        raise UserError(
            f"{title} cannot be cut: it holds a {type(network).__name__}; it must be a functional or "
            "sequential network of Keras"
        )
    inputs, outputs = len(network.inputs), len(network.outputs)
    if (inputs, outputs) != (1, 1):
        raise UserError(
            f"{title} cannot be cut: it must have one input and one output. Received: {inputs} and {outputs}"
        )
    return network


def flatten(network: keras.Model, title: str) -> Flat:
    """Puts the layers of inner networks in their places; of two with one name the inner gets a longer one.

    Args:
        network: from `functional`. title: what it is called.

    Raises:
        UserError: a layer that is called twice, or an inner network of several inputs or outputs.
    """
    flat = Flat([], {}, [])
    used = {layer.name for layer in network.layers}
    _add(flat, network, title, used, start=None)
    return flat


def _add(flat, network, title, used, start):
    """Adds a network's layers, which read `start`; returns the name of the one that gives its output."""
    name_of: dict[str, str] = {}
    operations = {operation.name: operation for operation in network.operations}
    for config in json.loads(json.dumps(network.get_config()["layers"])):
        name, kind = config["name"], config["class_name"]
        layer = operations[name]
        if len(config["inbound_nodes"]) > 1:
            raise UserError(f"{title} cannot be cut: it calls the layer {name} more than once")
        for history in histories(config["inbound_nodes"]):
            history[:2] = [name_of[history[0]], 0]
        if kind == "InputLayer" and start:
            name_of[name] = start
        elif kind.startswith("Random"):
            name_of[name] = sources(config)[0]
            flat.left_out.append(name)
        elif isinstance(layer, keras.Sequential) or hasattr(layer, "operations"):
            inner = functional(layer, f"{title} ({name})")
            name_of[name] = _add(flat, inner, title, used, sources(config)[0])
        else:
            name_of[name] = _free(name, network, used) if start else name
            config["name"] = config["config"]["name"] = name_of[name]
            flat.layers.append(config)
            flat.twins[name_of[name]] = layer
    return name_of[network.outputs[0]._keras_history.operation.name]


def _free(name, network, used):
    """The name if it is free, else one that tells the network, too; it is taken then."""
    while name in used:
        name = f"{network.name}_{name}"
    used.add(name)
    return name
