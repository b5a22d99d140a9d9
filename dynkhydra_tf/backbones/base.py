"""What a backbone is: four factories of Keras layers, and nothing about branches or gates."""

import abc
import dataclasses


class Backbone(abc.ABC):
    """The convolutional parts that a Hydra is composed of.

    A subclass is a frozen dataclass of its sizes, registered with
    `keras.saving.register_keras_serializable`, and sets `input_shape`, (H, W, 3). Each method returns
    a new Keras layer with weights of its own; `dtype` is its Keras dtype policy. The layers of a branch
    have explicit names: by these the weights of the twins are matched, in every process alike. Weight
    regularisers of a layer are not used; the optimizer's weight decay is.
    """

    input_shape: tuple

    @abc.abstractmethod
    def stem(self, dtype=None):
        """Returns the shared part: (B, *input_shape) normalised images -> (B, H, W, C)."""

    @abc.abstractmethod
    def branch(self, dtype=None):
        """Returns one branch: the stem's output -> its projection (B, h, w, c)."""

    @abc.abstractmethod
    def gater_trunk(self, dtype=None):
        """Returns the gater without its classifier: the stem's output -> (B, h', w', c')."""

    @abc.abstractmethod
    def plain(self, dtype=None):
        """Returns the plain network of the same depth, the baseline: images -> its last feature map."""

    def get_config(self):
        """Returns the constructor's arguments, for Keras's serialisation."""
        return dataclasses.asdict(self)

    @classmethod
    def from_config(cls, config):
        """Returns the backbone that `get_config` described."""
        return cls(**config)
