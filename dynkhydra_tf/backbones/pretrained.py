"""Networks of Keras, opened to be cut: of keras.applications by name, or from a .keras file."""

import dataclasses
import functools
import inspect
import json
import os
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np

from dynkhydra_tf.applications import (
    IMAGENET,
    application_names,
    build_application,
    first_line,
    mend_normalisation,
    suggestion,
)
from dynkhydra_tf.backbones.chain import Layers, Point, between, build, narrow_places, points, sources
from dynkhydra_tf.backbones.cut_network import CutNetwork
from dynkhydra_tf.backbones.first_weights import GiveWeights
from dynkhydra_tf.backbones.narrowing import copy_largest
from dynkhydra_tf.backbones.nested import Flat, flatten, functional
from dynkhydra_tf.errors import UserError

NO_WEIGHTS = "none"
_POOLINGS = ("GlobalAveragePooling2D", "GlobalMaxPooling2D", "Flatten")


@dataclasses.dataclass(frozen=True, eq=False)
class OpenNetwork:
    """A network without its head, and with its weights, that is to be cut.

    Attributes:
        name: what it is called.
        image_size: height and width of its input in pixels.
        layers: see `chain.py`; the last one gives a map.
        shapes: by layer the shape (H, W, C) that it gives.
        network: the built network, from the first to the last of the layers; its weights count.
        pretrained: whether these are a trained network's.
        preprocessing: `scale`, `offset` and `bgr` of `CutNetwork`.
        left_out: what was taken off behind the last map, and augmented images, in words; empty where
            nothing did.
    """

    name: str
    image_size: int
    layers: Layers
    shapes: dict[str, tuple[int, ...]]
    network: keras.Model
    pretrained: bool
    preprocessing: dict[str, Any]
    left_out: str

    @property
    def points(self) -> list[Point]:
        """The places for a cut."""
        return points(self.layers)

    def point(self, cut: str | None) -> Point:
        """The place of that name; None: the last one before the map becomes as small as it is at the end.

        Raises:
            UserError: there is none.
        """
        places, end = self.points, self.shapes[self.layers[-1]["name"]]
        if not places:
            raise UserError(f"{self.name} cannot be cut: nowhere does it go on through one map alone")
        if cut is None:
            larger = [place for place in places if self.shapes[place.layer][0] > end[0]]
            return larger[-1] if larger else places[len(places) * 2 // 3]
        if cut in (self.layers[-1]["name"], self.layers[0]["name"]):
            raise UserError(f"cut must leave a stem and a tail of {self.name}. Received: {cut}")
        found = [place for place in places if cut in place]
        if not found and cut in narrow_places(self.layers):
            found = [Point(cut, cut)]
        if not found:
            names = [place.name for place in places]
            raise UserError(
                f"{self.name} cannot be cut at {cut!r}.{suggestion(cut, names)} --cut=list shows where it can"
            )
        if len(self.shapes[found[0].layer]) != 3:
            raise UserError(f"{self.name} has no map (H, W, C) at {cut}: cut it at another layer")
        return found[0]

    def cut(
        self,
        cut: str | None = None,
        blocks: Sequence[str] = (),
        frozen: str = "none",
        branch_width: float = 1.0,
        tail_width: float = 1.0,
        gater_width: float = 0.0,
    ) -> CutNetwork:
        """Cuts it.

        Args:
            cut: the name of a place, as in `point`.
            blocks: the names of the places, and of the last layer, at which the tail's blocks end that a
                branch keeps; empty: all.
            frozen: "none", "stem", or "all": the plain network's tail, too.
            branch_width, tail_width: see `CutNetwork`.
            gater_width: the same; its blocks are those of a branch but for the network's last one.

        Raises:
            UserError: a name that is none, blocks that do not fit together, or a width where there are no
                hidden channels.
        """
        place = self.point(cut)
        dropped = self._dropped(place, tuple(blocks))
        kept = [end.name for end in self.blocks(place) if not blocks or any(name in end for name in blocks)]
        of_gater = [name for name in kept if name != self.layers[-1]["name"]] or kept
        made = CutNetwork(
            self.name,
            self.image_size,
            json.dumps(self.layers),
            place.layer,
            dropped,
            **self.preprocessing,
            frozen_stem=frozen != "none",
            frozen_tail=frozen == "all",
            keep_statistics=self.pretrained,
            branch_width=branch_width,
            tail_width=tail_width,
            gater_width=gater_width,
            gater_dropped=self._dropped(place, of_gater) if gater_width else (),
        )
        made.remember_map_shape(self.shapes[place.layer])
        narrow = {"branch_width": made.branch_layers, "tail_width": made.tail_layers}
        narrow |= {"gater_tail_width": made.gater_layers} if gater_width else {}
        for name, parts in narrow.items():
            try:
                parts()
            except ValueError as error:
                raise UserError(
                    f"{self.name} has no channels between the in- and outputs of its blocks behind "
                    f"{place.name}: leave --{name} out"
                ) from error
        return made

    def blocks(self, place: Point) -> list[Point]:
        """The ends of the tail's blocks."""
        last = self.layers[-1]["name"]
        places = self.points
        ends = [point.layer for point in places]
        behind = [layer["name"] for layer in between(self.layers, place.layer, last)]
        return [places[ends.index(name)] for name in behind if name in ends] + [Point(last, last)]

    def _dropped(self, place, kept):
        ends = self.blocks(place)
        if unknown := [name for name in kept if not any(name in end for end in ends)]:
            raise UserError(
                f"branch_blocks must be of {', '.join(end.name for end in ends)}. "
                f"Received: {', '.join(unknown)}"
            )
        keeps = [not kept or any(name in end for name in kept) for end in ends]
        dropped, start = [], place.layer
        for number, end in enumerate(ends):
            if not keeps[number]:
                if any(keeps[number:]) and self.shapes[start] != self.shapes[end.layer]:
                    raise UserError(
                        f"A branch needs the block {end.name}, which makes {self.shapes[end.layer]} of "
                        f"{self.shapes[start]}: name it in --branch_blocks"
                    )
                first = between(self.layers, start, end.layer)[0]["name"]
                dropped.append((first, end.layer))
            start = end.layer
        # From the end, so that those that nothing follows go first.
        return tuple(reversed(dropped))

    def give(self, fresh_branches: bool = False) -> GiveWeights:
        """What gives a new model's parts the network's weights, for `set_first_weights`; see `copy_largest`.

        Args:
            fresh_branches: whether the branches keep what Keras drew.
        """
        names = {layer.name for layer in self.network.layers}

        def give(part: str, layer: keras.Layer) -> None:
            if part == "branch" and fresh_branches:
                return
            if part == "gater_trunk" and layer.layers[-1].name not in names:  # a layer on the pooled map
                return
            for one in layer.layers if part == "plain" else [layer]:
                copy_largest(self.network, one)

        return give


def open_network(name: str, image_size: int, weights: str | os.PathLike | None = None) -> OpenNetwork:
    """Opens a network for images of a size; the one that was opened last is kept for who asks for it again.

    Args:
        name: one of keras.applications, or the path of a .keras file of a functional or sequential network
            of one input, (B, H, W, 3) in 0..255; a classifier on it is taken off.
        image_size: height and width in pixels.
        weights: None: ImageNet's, or those in the file; "imagenet"; "none": as Keras draws them; else the
            path of a weights file.

    Raises:
        UserError: no such network or weights, or one that cannot be cut.
    """
    given = None if weights is None else str(weights)
    return _opened(str(name), image_size, given, _state(name), _state(weights))


def _state(path):
    """What changes with a file; None where there is none."""
    try:
        found = os.stat(path)
    except (OSError, TypeError):
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino


@functools.lru_cache(maxsize=1)
def _opened(name, image_size, weights, *states):
    if name.endswith(".keras"):
        network, preprocessing = _load_file(name, weights), {}
        title = os.path.basename(name)
    else:
        network, preprocessing = _load_application(name, image_size, weights)
        title = name
    pretrained = weights != NO_WEIGHTS
    network = functional(network, title)
    _check_input(network, title)
    flat = flatten(network, title)
    layers, left_out = _without_head(_with_statistics(flat), title)
    if flat.left_out:
        augmenting = f"{title}: what augments images is left out ({', '.join(flat.left_out)})"
        left_out = "\n".join(filter(None, [augmenting, left_out]))
    try:
        same = build(layers[1:], (image_size, image_size, 3), title.removesuffix(".keras"))
    except Exception as error:  # layers of their own kinds, sizes that do not fit
        raise UserError(f"{title} cannot take images of {image_size} px ({first_line(error)})") from error
    shapes = {one.name: tuple(one.output.shape[1:]) for one in same.operations}
    shapes[layers[0]["name"]] = (image_size, image_size, 3)
    end = shapes[layers[-1]["name"]]
    if len(end) != 3:
        raise UserError(f"{title} cannot be cut: it has no map (H, W, C) at its end but {end}")
    if 0 in end:
        raise UserError(f"{title} cannot take images of {image_size} px: nothing is left of them at its end")
    if pretrained:
        for layer in same.layers:
            if layer.weights:
                layer.set_weights(flat.twins[layer.name].get_weights())
    return OpenNetwork(title, image_size, layers, shapes, same, pretrained, preprocessing, left_out)


def _load_application(name, image_size, weights):
    names = application_names()
    if name not in names:
        raise UserError(
            f"backbone must be densenet, resnet, ressep, a path ending in .keras, or a network of "
            f"keras.applications.{suggestion(name, names)} Received: {name}"
        )
    if weights not in (None, IMAGENET, NO_WEIGHTS) and not os.path.exists(weights):
        raise UserError(f"weights must be imagenet, none, or a file that exists. Received: {weights}")
    network = build_application(
        name,
        {None: IMAGENET, NO_WEIGHTS: None}.get(weights, weights),
        image_size,
        "Weights",
        "Pass --weights=PATH, a file of them, or --backbone=FILE.keras, a saved network.",
    )
    return network, _preprocessing(inspect.getmodule(getattr(keras.applications, name)).preprocess_input)


def _preprocessing(function: Callable[[np.ndarray], np.ndarray]) -> dict[str, Any]:
    """Reads the scale, the offset and the order of the channels off a function of keras.applications."""
    offset = function(np.zeros((1, 1, 1, 3), np.float32))[0, 0, 0]
    pure = [np.reshape(255 * row, (1, 1, 1, 3)).astype(np.float32) for row in np.eye(3)]
    slopes = np.stack([function(image)[0, 0, 0] - offset for image in pure]) / 255  # (from, to) channels
    bgr = bool(slopes[0, 2])
    scale = np.diag(slopes[::-1] if bgr else slopes)
    # To the digits that they are written with: float32 leaves some noise behind these.
    exact: dict[str, Any] = {"scale": scale, "offset": offset}
    return {name: tuple(float(f"{value:.7g}") for value in values) for name, values in exact.items()} | {
        "bgr": bgr
    }


def _load_file(path, weights):
    if weights == IMAGENET:
        raise UserError(f"{path} has its own weights; --weights=imagenet goes with keras.applications")
    if not os.path.isfile(path):
        raise UserError(f"No backbone file at {path}: give the path of a file that exists")
    if weights not in (None, NO_WEIGHTS) and not os.path.isfile(weights):
        raise UserError(f"weights must be none, or a file that exists. Received: {weights}")
    try:
        network = keras.saving.load_model(path, compile=False)
    except Exception as error:  # Keras raises whatever its parts raise on a damaged file
        raise UserError(
            f"Backbone {path} cannot be loaded as a Keras model ({first_line(error)}): give a file saved by "
            "Keras 3"
        ) from error
    if weights not in (None, NO_WEIGHTS):
        try:
            with warnings.catch_warnings(action="ignore"):  # one for each layer that does not fit
                network.load_weights(weights)
        except Exception as error:  # Keras, h5py and zipfile each raise their own
            raise UserError(f"Weights {weights} do not fit {path} ({first_line(error)})") from error
        mend_normalisation(network)
    return network


def _check_input(network, title):
    shape = tuple(network.inputs[0].shape)
    if len(shape) != 4 or shape[3] != 3:
        raise UserError(
            f"{title} must take colour images (None, H, W, 3), channels last. Received: {title} of {shape}"
        )


def _with_statistics(flat: Flat) -> Layers:
    """The layers; the statistics of `Normalization`, which are no trained weights, are in them."""
    for config in flat.layers:
        if config["class_name"] == "Normalization" and config["config"]["mean"] is None:
            layer = flat.twins[config["name"]]
            # Not adapted by its maker, it has mean 0 and variance 1.
            for name, weight in (("mean", layer.adapt_mean), ("variance", layer.adapt_variance)):
                config["config"][name] = np.ravel(weight).tolist()
    return flat.layers


def _without_head(layers: Layers, title: str) -> tuple[Layers, str]:
    """Takes off what follows the last map; returns the layers left and what went, in words."""
    narrow = narrow_places(layers)
    ends = [layer for layer in layers if layer["name"] in narrow and layer["class_name"] in _POOLINGS]
    if not ends:
        return layers, ""
    last = sources(ends[0])[0]
    names = [layer["name"] for layer in layers]
    kept = layers[: names.index(last) + 1]
    off = [layer["name"] for layer in layers[len(kept) :] if layer["class_name"] == "Dense"]
    head = f" and its head ({', '.join(off)})" if off else ""
    return kept, f"{title}: what follows {last} is taken off, its pooling{head}"
