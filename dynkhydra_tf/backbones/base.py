"""What a backbone is: four factories of Keras layers, and nothing about branches or gates."""

import abc
import dataclasses
from typing import Any, Self, TypeAlias

import keras

# What Keras takes as a layer's dtype; None: its global policy.
DType: TypeAlias = str | keras.DTypePolicy | None


class Backbone(abc.ABC):
    """The convolutional parts that a Hydra is composed of.

    A subclass is a frozen dataclass of its sizes, registered with
    `keras.saving.register_keras_serializable`, and sets `input_shape`, (H, W, 3). Each factory returns
    a new Keras layer with weights of its own, which it draws and does not load: it is called nb times for
    the branches, by `from_config` and to count costs; see `first_weights.py` for weights from elsewhere.
    `dtype` is a Keras dtype policy. The layers of a branch have explicit names: by these the weights of the
    twins are matched, in every process alike. Weight regularisers of a layer are not used; the optimizer's
    weight decay is.
    """

    input_shape: tuple[int, int, int]

    @abc.abstractmethod
    def stem(self, dtype: DType = None) -> keras.Layer:
        """Returns the shared part: (B, *input_shape) normalised images -> (B, H, W, C)."""

    @abc.abstractmethod
    def branch(self, dtype: DType = None) -> keras.Layer:
        """Returns one branch: the stem's output -> its projection (B, h, w, c)."""

    @abc.abstractmethod
    def gater_trunk(self, dtype: DType = None) -> keras.Layer:
        """Returns the gater without its classifier: the stem's output -> (B, h', w', c')."""

    def trunk(self, dtype: DType = None) -> keras.Layer:
        """Returns the gater's trunk where its map joins the branches': the stem's output -> (B, h, w, c).

        With the stem before it, it is the plain network. The default is `gater_trunk`, which has the
        branches' shape at their width.
        """
        return self.gater_trunk(dtype)

    @abc.abstractmethod
    def plain(self, dtype: DType = None) -> keras.Layer:
        """Returns the plain network of the same depth, the baseline: normalised images -> its last map."""

    def normalizer(self) -> keras.Layer | None:
        """Returns a layer without weights from images, 0..255, uint8 or float, to float32 normalised ones.

        None, the default: by the mean and the standard deviation that the model was given.
        """
        return None

    @property
    def description(self) -> str:
        """What it is in one line, for people."""
        sizes = ", ".join(f"{name} {value}" for name, value in self.get_config().items())
        return f"{type(self).__name__}, {sizes}"

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments, for Keras's serialisation."""
        return dataclasses.asdict(self)  # type: ignore[call-overload]  # a subclass is a dataclass

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        """Returns the backbone that `get_config` described."""
        return cls(**config)


@dataclasses.dataclass(frozen=True)
class CutBackbone(Backbone):
    """A convolutional network of any depth and width, cut in two: its first layers and its last ones.

    Stem: the first layers; branch and gater: the last ones, each at a width of its own. The plain network
    is both at width 1, so that with widths 1, 1, 1 each path through a Hydra is the plain network. A
    subclass says what the layers are.

    Args:
        depth: int >= 1, d, blocks per stage.
        stem_width, branch_width, gater_width: float > 0, channel multipliers ws, wb, wg.
        image_size: int >= 1, height and width of an image in pixels.
    """

    depth: int = 1
    stem_width: float = 1.0
    branch_width: float = 1.0
    gater_width: float = 1.0
    image_size: int = 32

    def __post_init__(self) -> None:
        """Checks the sizes.

        Raises:
            ValueError: a size out of its range.
        """
        widths = (self.stem_width, self.branch_width, self.gater_width)
        if self.depth < 1 or self.image_size < 1 or not all(0 < width < 100 for width in widths):
            raise ValueError(
                "depth and image_size must be at least 1 and widths in (0, 100). Received: "
                f"depth={self.depth}, image_size={self.image_size}, widths={widths}"
            )

    @abc.abstractmethod
    def first_layers(self, width: float, dtype: DType) -> list[keras.Layer]:
        """Returns the list of layers up to the cut, channels times `width`, each with an explicit name."""

    @abc.abstractmethod
    def last_layers(self, width: float, dtype: DType) -> list[keras.Layer]:
        """Returns the list of layers after the cut, channels times `width`, each with an explicit name."""

    @property
    def input_shape(self) -> tuple[int, int, int]:  # type: ignore[override]
        """(H, W, 3)."""
        return (self.image_size, self.image_size, 3)

    def stem(self, dtype: DType = None) -> keras.Sequential:
        """Returns the first layers."""
        return keras.Sequential(self.first_layers(self.stem_width, dtype), name="stem")

    def branch(self, dtype: DType = None) -> keras.Sequential:
        """Returns the last layers."""
        return keras.Sequential(self.last_layers(self.branch_width, dtype), name="branch")

    def gater_trunk(self, dtype: DType = None) -> keras.Sequential:
        """Returns the last layers at the gater's width."""
        return keras.Sequential(self.last_layers(self.gater_width, dtype), name="gater_trunk")

    def plain(self, dtype: DType = None) -> keras.Sequential:
        """Returns all layers at width 1: the baseline is not narrowed."""
        return keras.Sequential(self.first_layers(1.0, dtype) + self.last_layers(1.0, dtype), name="plain")


def scaled(channels: int, width: float) -> int:
    """Returns `channels` times `width` as a whole number, at least 1."""
    return max(1, round(channels * width))
