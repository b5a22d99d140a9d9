"""Backbones: the convolutional parts that a Hydra is composed of, by name."""

from dynkhydra_tf.backbones.base import Backbone
from dynkhydra_tf.backbones.resnet import ResNet

BACKBONES = {"resnet": ResNet}

__all__ = ["BACKBONES", "Backbone", "ResNet"]
