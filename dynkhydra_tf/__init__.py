"""Conditional computation for image classification in Keras: DynK-Hydra and its family.

Importing this package registers its classes, so that `keras.models.load_model` opens a trained model.
"""

import os

# TensorFlow turns oneDNN on by itself only on some processors; where it does not, a training step
# took 1.4 to 2 times as long. It reads this once, when it is first imported.
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")

from dynkhydra_tf.backbones import BACKBONES, Backbone, DenseNet, ResNet, ResSep
from dynkhydra_tf.errors import UserError
from dynkhydra_tf.gating import combination_weights, select_branches
from dynkhydra_tf.hydra import Hydra
from dynkhydra_tf.plain import Plain

__all__ = [
    "BACKBONES",
    "Backbone",
    "DenseNet",
    "Hydra",
    "Plain",
    "ResNet",
    "ResSep",
    "UserError",
    "combination_weights",
    "select_branches",
]
