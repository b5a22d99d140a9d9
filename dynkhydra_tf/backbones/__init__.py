"""Backbones: the convolutional parts that a Hydra is composed of, by name."""

from collections.abc import Callable

from dynkhydra_tf.backbones.base import Backbone, CutBackbone
from dynkhydra_tf.backbones.densenet import DenseNet
from dynkhydra_tf.backbones.resnet import ResNet
from dynkhydra_tf.backbones.ressep import ResSep
from dynkhydra_tf.settings import NetworkSettings

BACKBONES: dict[str, Callable[..., CutBackbone]] = {"densenet": DenseNet, "resnet": ResNet, "ressep": ResSep}

__all__ = ["BACKBONES", "Backbone", "CutBackbone", "DenseNet", "ResNet", "ResSep", "make_backbone"]


def make_backbone(network: NetworkSettings, image_size: int, depth: int | None = None) -> Backbone:
    """Returns the backbone of the settings for images of `image_size` px; `depth` in place of theirs."""
    return BACKBONES[network.backbone](
        depth=depth or network.depth,
        stem_width=network.stem_width,
        branch_width=network.branch_width,
        gater_width=network.gater_width,
        image_size=image_size,
    )
