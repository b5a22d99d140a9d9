"""The weights that a new model starts from, where they are not to be those that Keras draws.

A backbone's factories make layers, with the values that Keras draws; they are called nb times, by
`from_config` and to count costs, and so they read no file. Weights from elsewhere, a pretrained network's or
another run's, are read once and then given to the new model: `Hydra.set_first_weights` and
`Plain.set_first_weights` call a function of the type `GiveWeights` for each part.

    trained = keras.models.load_model("plain.keras").network.layers[0]
    model.set_first_weights(lambda part, layer: copy_weights(trained, layer))
"""

from collections.abc import Callable, Sequence

import keras

# Takes the name of a factory of `Backbone`, "stem", "branch", "gater_trunk", "trunk" or "plain", and the
# built layer that it made, and assigns that layer's weights; what it leaves alone keeps what Keras drew.
GiveWeights = Callable[[str, keras.Layer], None]


def copy_weights(source: keras.Model | Sequence[keras.Model], target: keras.Model) -> None:
    """Copies the weights of one network's layers into the other's layers of the same names.

    Args:
        source: one or several, built, with a layer of its own for each layer of `target` that has weights; it
            may have more.
        target: built.

    Raises:
        ValueError: a layer that `source` lacks, or that has weights of other shapes there. Nothing is copied.
    """
    layers = {layer.name: layer for layer in target.layers if layer.weights}
    sources = [source] if isinstance(source, keras.Model) else source
    twins = {layer.name: layer for one in sources for layer in one.layers}
    if others := [
        name for name in layers if name not in twins or _shapes(twins[name]) != _shapes(layers[name])
    ]:
        names = " and ".join(one.name for one in sources)
        raise ValueError(
            f"{names} must have every layer of {target.name}, with the same shapes. "
            f"Received: {target.name} with {', '.join(others)}, of which that is not so"
        )
    for name, layer in layers.items():
        layer.set_weights(twins[name].get_weights())


def _shapes(layer):
    return [tuple(weight.shape) for weight in layer.weights]
