"""Letting a frozen part go: from an epoch on it is trained with the rest, at a lower rate."""

import keras

from dynkhydra_tf.averaging import Averaging, build_optimizer
from dynkhydra_tf.image_classifier import ImageClassifier


def unfreeze(model: ImageClassifier, optimizer: keras.Optimizer) -> None:
    """Makes a model train its frozen part, too, from the step on that it is at.

    Batch normalisation in it stays as it is, scale and offset too: it was trained on more images than these.

    Args:
        model: compiled, with a `frozen_part`.
        optimizer: not yet built; its steps and its averages go on from those of the model's optimizer, its
            moments begin anew.
    """
    earlier = model.optimizer
    for part in model.frozen_part():
        layers = list(part._flatten_layers())
        part.trainable = True  # and so everything in it
        for layer in layers:
            if isinstance(layer, keras.layers.BatchNormalization):
                layer.trainable = False
    model.compile(optimizer)
    build_optimizer(model)
    optimizer.iterations.assign(earlier.iterations)
    if isinstance(optimizer, Averaging) and isinstance(earlier, Averaging):
        optimizer.take_averages(earlier)
