"""Backbones: the convolutional parts that a Hydra is composed of, by name."""

import dataclasses
from collections.abc import Callable

from dynkhydra_tf.backbones.base import Backbone, CutBackbone
from dynkhydra_tf.backbones.densenet import DenseNet
from dynkhydra_tf.backbones.first_weights import GiveWeights
from dynkhydra_tf.backbones.pretrained import open_network
from dynkhydra_tf.backbones.resnet import ResNet
from dynkhydra_tf.backbones.ressep import ResSep
from dynkhydra_tf.settings import NetworkSettings

BACKBONES: dict[str, Callable[..., CutBackbone]] = {"densenet": DenseNet, "resnet": ResNet, "ressep": ResSep}

__all__ = [
    "BACKBONES",
    "Backbone",
    "CutBackbone",
    "DenseNet",
    "ResNet",
    "ResSep",
    "make_backbone",
    "open_backbone",
]


def make_backbone(network: NetworkSettings, image_size: int, depth: int | None = None) -> Backbone:
    """Returns the backbone of the settings for images of `image_size` px; `depth` in place of theirs.

    Raises:
        UserError: a network of Keras that cannot be opened or cut, see `pretrained.py`.
    """
    if network.backbone not in BACKBONES:
        return open_backbone(dataclasses.replace(network, weights="none", freeze="none"), image_size)[0]
    return BACKBONES[network.backbone](
        depth=depth or network.depth,
        stem_width=network.stem_width,
        branch_width=network.branch_width,
        gater_width=network.gater_width,
        image_size=image_size,
    )


def open_backbone(network: NetworkSettings, image_size: int) -> tuple[Backbone, GiveWeights | None]:
    """Returns the backbone of the settings, and what gives a new model the weights it is to start from.

    The second is None where these are the ones that Keras draws. What becomes of a network of Keras is told.

    Raises:
        UserError: a network of Keras, or its weights, that cannot be had, opened or cut.
    """
    if network.backbone in BACKBONES:
        return make_backbone(network, image_size), None
    opened = open_network(network.backbone, image_size, network.weights)
    backbone = opened.cut(
        network.cut,
        network.branch_blocks,
        frozen=network.frozen_part,
        branch_width=network.branch_width,
        tail_width=network.tail_width,
        gater_width=network.gater_tail_width,
    )
    print(*([opened.left_out] if opened.left_out else []), backbone.description, sep="\n", flush=True)
    return backbone, opened.give(fresh_branches=network.branch_init == "fresh") if opened.pretrained else None
