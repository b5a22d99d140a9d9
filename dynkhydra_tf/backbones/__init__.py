"""Backbones: the convolutional parts that a Hydra is composed of, by name."""

from dynkhydra_tf.backbones.base import Backbone, CutBackbone
from dynkhydra_tf.backbones.densenet import DenseNet
from dynkhydra_tf.backbones.resnet import ResNet
from dynkhydra_tf.backbones.ressep import ResSep

BACKBONES = {"densenet": DenseNet, "resnet": ResNet, "ressep": ResSep}

__all__ = ["BACKBONES", "Backbone", "CutBackbone", "DenseNet", "ResNet", "ResSep"]
