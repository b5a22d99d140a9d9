"""Any functional network of Keras as a backbone: cut in two at one of its layers.

Stem: what lies before the cut. A branch: the tail behind it, or some of its blocks, or all with fewer hidden
channels. The plain network: stem and tail.
The gater's trunk is a layer on the pooled map: with the classifier behind it a network of two layers, at a
small part of a branch's cost. Or, of `gater_width`, it is the first blocks of a branch, narrowed: what is
pooled halfway through a network tells clusters apart badly.
"""

import dataclasses
import functools
import json
from collections.abc import Sequence
from typing import Any, Self

import keras

from dynkhydra_tf.backbones.base import Backbone, DType
from dynkhydra_tf.backbones.blocks import ConvBN
from dynkhydra_tf.backbones.chain import Layers, between, block_ends, build, narrow_places, without
from dynkhydra_tf.backbones.narrowing import narrowed

GATE_UNITS = 256


@dataclasses.dataclass(frozen=True)
@keras.saving.register_keras_serializable("dynkhydra_tf")
class CutNetwork(Backbone):
    """A network of Keras before and after a layer; made by `open_network`.

    It holds the whole architecture, so that a saved model needs neither the file nor the function that the
    network came from.

    Args:
        name: str, what the network is called.
        image_size: int, height and width of an image in pixels.
        architecture: str, JSON of the layers' configurations, see `chain.py`; the first is the input.
        cut: str, the name of the stem's last layer.
        dropped: the stretches of the tail that a branch leaves out: (first layer, last layer) each.
        scale, offset: three floats each: the network wants scale * image + offset, image in 0..255.
        bgr: bool, whether it wants the channels in the order blue, green, red; scale and offset are in it.
        frozen_stem: bool, whether the stem's weights are not trained.
        frozen_tail: bool, whether those of the plain network's tail are not, either.
        keep_statistics: bool, whether batch normalisation stays as it is at inference while the network is
            trained: the statistics that it came with are better than those of few images.
        branch_width, tail_width: floats in (0, 1], how many of the hidden channels a branch keeps, and the
            plain network's tail; see `narrowing.py`.
        gater_width: float in [0, 1], the same of the gater's trunk; 0: that is a layer on the pooled map.
        gater_dropped: as `dropped`, of the gater's trunk; where gater_width is not 0.
    """

    name: str
    image_size: int
    architecture: str
    cut: str
    dropped: tuple[tuple[str, str], ...] = ()
    scale: tuple[float, ...] = (1.0, 1.0, 1.0)
    offset: tuple[float, ...] = (0.0, 0.0, 0.0)
    bgr: bool = False
    frozen_stem: bool = False
    frozen_tail: bool = False
    keep_statistics: bool = False
    branch_width: float = 1.0
    tail_width: float = 1.0
    gater_width: float = 0.0
    gater_dropped: tuple[tuple[str, str], ...] = ()

    def __post_init__(self) -> None:
        """Checks the cut.

        Raises:
            ValueError: the network cannot be cut there, or nothing is left behind it; a width out of range.
        """
        if self.cut not in narrow_places(self._layers)[1:-1]:
            raise ValueError(
                f"cut must be a layer through which all of {self.name} goes on. Received: cut={self.cut!r}"
            )
        if not all(0 < width <= 1 for width in (self.branch_width, self.tail_width)):
            raise ValueError(
                "branch_width and tail_width must be in (0, 1]. Received: "
                f"branch_width={self.branch_width}, tail_width={self.tail_width}"
            )
        if not 0 <= self.gater_width <= 1:
            raise ValueError(f"gater_width must be in [0, 1]. Received: gater_width={self.gater_width}")

    @functools.cached_property
    def _layers(self) -> Layers:
        return json.loads(self.architecture)

    @property
    def input_shape(self) -> tuple[int, int, int]:  # type: ignore[override]
        """(H, W, 3)."""
        return (self.image_size, self.image_size, 3)

    def normalizer(self) -> keras.Layer:
        """Returns what the network's own preprocessing is outside of it; what is inside is in the stem."""
        images = x = keras.Input(self.input_shape)
        if self.bgr:
            x = keras.ops.stack([x[..., 2], x[..., 1], x[..., 0]], axis=-1)
        x = keras.layers.Rescaling(list(self.scale), list(self.offset), dtype="float32")(x)
        return keras.Model(images, x, name="normalize")

    def stem(self, dtype: DType = None) -> keras.Model:
        """Returns the network up to the cut."""
        layers = between(self._layers, self._layers[0]["name"], self.cut)
        made = self._build(layers, self.input_shape, "stem", dtype, frozen=self.frozen_stem)
        self.remember_map_shape(made.output.shape[1:])
        return made

    def branch(self, dtype: DType = None) -> keras.Model:
        """Returns the tail, without the blocks and the hidden channels that are left out."""
        return self._build(self.branch_layers(), self.map_shape, "branch", dtype)

    def branch_layers(self) -> Layers:
        """Returns the configurations of a branch's layers.

        Raises:
            ValueError: `branch_width` is less than 1, and there are no hidden channels.
        """
        return self._narrowed(self._tail_without(self.dropped), self.branch_width)

    def gater_layers(self) -> Layers:
        """Returns the configurations of the layers of the gater's trunk, where it is made of the tail's.

        Raises:
            ValueError: `gater_width` is less than 1, and there are no hidden channels.
        """
        return self._narrowed(self._tail_without(self.gater_dropped), self.gater_width)

    def tail_layers(self) -> Layers:
        """Returns the configurations of the layers of the plain network's tail.

        Raises:
            ValueError: `tail_width` is less than 1, and there are no hidden channels.
        """
        return self._narrowed(self._tail, self.tail_width)

    def gater_trunk(self, dtype: DType = None) -> keras.Model:
        """Returns a layer on the pooled map, (B, H, W, C) -> (B, 1, 1, GATE_UNITS), or narrowed blocks."""
        if self.gater_width:
            return self._build(self.gater_layers(), self.map_shape, "gater_trunk", dtype)
        pool = keras.layers.GlobalAveragePooling2D(keepdims=True, dtype=dtype, name="pool")
        return keras.Sequential([pool, ConvBN(GATE_UNITS, 1, dtype=dtype, name="hidden")], name="gater_trunk")

    def trunk(self, dtype: DType = None) -> keras.Model:
        """Returns the plain network's tail."""
        return self._build(self.tail_layers(), self.map_shape, "trunk", dtype)

    def plain(self, dtype: DType = None) -> keras.Sequential:
        """Returns the network: the stem and the whole tail."""
        stem = self.stem(dtype)
        tail = self._build(self.tail_layers(), self.map_shape, "tail", dtype, frozen=self.frozen_tail)
        return keras.Sequential([stem, tail], name="plain")

    @functools.cached_property
    def map_shape(self) -> tuple[int, int, int]:
        """(H, W, C) of the map at the cut."""
        self.stem()
        return self.__dict__["map_shape"]

    def remember_map_shape(self, shape: Sequence[int]) -> None:
        """Notes the `map_shape`, so that no stem is built to learn it."""
        self.__dict__["map_shape"] = tuple(shape)  # where cached_property looks for it

    @property
    def _tail(self) -> Layers:
        return between(self._layers, self.cut, self._layers[-1]["name"])

    def _tail_without(self, dropped):
        layers = self._tail
        for first, last in dropped:
            names = [layer["name"] for layer in layers]
            stretch = layers[names.index(first) : names.index(last) + 1]
            layers = layers[: -len(stretch)] if last == names[-1] else without(layers, stretch)
        return layers

    def _narrowed(self, layers, width):
        if width == 1:  # the shape of the map need not be known then
            return layers
        return narrowed(layers, self.map_shape[-1], block_ends(self._layers), width)

    def _build(self, layers, shape, name, dtype, frozen=False):
        return build(layers, shape, name, dtype, frozen=frozen, keep_statistics=self.keep_statistics)

    @property
    def description(self) -> str:
        """What it is, without the whole architecture."""
        left_out = "".join(f", without {last}" for _, last in self.dropped)
        widths = {"branches": self.branch_width, "plain tail": self.tail_width}
        widths = {part: width for part, width in widths.items() if width < 1}
        widths |= {"gater": self.gater_width} if self.gater_width else {}
        narrow = "".join(f", {part} of width {width:g}" for part, width in widths.items())
        return f"{self.name} for {self.image_size} px, cut at {self.cut}{left_out}{narrow}"

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments, in lists where Keras would make more of tuples."""
        return json.loads(json.dumps(super().get_config()))

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        """Returns the backbone that `get_config` described."""
        tuples = {name: tuple(config[name]) for name in ("scale", "offset")}
        pairs = ("dropped", "gater_dropped")  # early versions had the first alone
        tuples |= {name: tuple(map(tuple, config.get(name, ()))) for name in pairs}
        return cls(**{**config, **tuples})
