"""What the tests share: a backbone small enough to trace in seconds, and models of it."""

import dataclasses
import pathlib

import dynkhydra_tf  # noqa: F401 - first, for it sets what TensorFlow reads when it is imported

# isort: split
import keras
import numpy as np
import pytest

from dynkhydra_tf import cli
from dynkhydra_tf.backbones import Backbone
from dynkhydra_tf.backbones.blocks import ConvBN
from dynkhydra_tf.hydra import Hydra

ROOT = pathlib.Path(__file__).parents[1]


@dataclasses.dataclass(frozen=True)
@keras.saving.register_keras_serializable("tests")
class TinyBackbone(Backbone):
    """One convolution for each part, on 8x8 images: (8,8,3) -> stem (4,4,4) -> projection (2,2,6)."""

    channels: int = 6

    @property
    def input_shape(self):
        return (8, 8, 3)

    def stem(self, dtype=None):
        return keras.Sequential([ConvBN(4, 3, strides=2, dtype=dtype, name="conv")], name="stem")

    def branch(self, dtype=None):
        return keras.Sequential(
            [ConvBN(self.channels, 3, strides=2, dtype=dtype, name="conv")], name="branch"
        )

    def gater_trunk(self, dtype=None):
        return keras.Sequential([ConvBN(5, 3, strides=2, dtype=dtype, name="conv")], name="gater_trunk")

    def plain(self, dtype=None):
        layers = [ConvBN(4, 3, strides=2, dtype=dtype), ConvBN(self.channels, 3, strides=2, dtype=dtype)]
        return keras.Sequential(layers, name="plain")


@pytest.fixture
def make_hydra():
    """Returns a factory of small models: 6 classes, classes 0 1 | 2 3 | 4 5 on three branches."""

    def make(**settings):
        keras.utils.set_random_seed(settings.pop("seed", 0))
        settings = {"cluster_of_class": (0, 0, 1, 1, 2, 2), "top_k": 2, **settings}
        return Hydra(TinyBackbone(), **settings)

    return make


@pytest.fixture
def fix_gate():
    """Returns a function that makes a model's gater give every image the same probabilities."""

    def fix(model, probabilities):
        dense = model.gater.layers[-1]
        dense.set_weights([np.zeros_like(dense.kernel), np.log(np.asarray(probabilities, np.float32))])

    return fix


@pytest.fixture
def batch():
    """Returns a function giving random images (B,8,8,3) uint8 and the labels it was given."""

    def make(labels, seed=0):
        labels = np.asarray(labels, np.int32)
        images = np.random.default_rng(seed).integers(0, 256, (len(labels), 8, 8, 3), np.uint8)
        return images, labels

    return make


@pytest.fixture
def run_command():
    """Returns a function that runs a command in this process: its exit status, None where it ends well."""

    def run(main, define_flags, *arguments):
        try:
            cli.run(main, define_flags, ["command", *arguments])
        except SystemExit as leaving:
            return leaving.code

    return run
