"""Conditional computation for image classification in Keras: DynK-Hydra and its family.

Importing this package loads neither Keras nor TensorFlow; its names come when they are first used. After it,
`keras.models.load_model` opens a trained model.
"""

import importlib
import os
from typing import TYPE_CHECKING

from dynkhydra_tf import depthwise, keras_mends, registration

# TensorFlow turns oneDNN on by itself only on some processors; where it does not, a training step
# took 1.4 to 2 times as long. It reads this once, when it is first imported.
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")

registration.register_with_keras()
keras_mends.mend_keras()
depthwise.mend_gradient()

if TYPE_CHECKING:
    from dynkhydra_tf.backbones import BACKBONES, Backbone, DenseNet, ResNet, ResSep
    from dynkhydra_tf.errors import UserError
    from dynkhydra_tf.gating import combination_weights, select_branches
    from dynkhydra_tf.hydra import Hydra
    from dynkhydra_tf.plain import Plain

_MODULES = {
    "BACKBONES": "backbones",
    "Backbone": "backbones",
    "DenseNet": "backbones",
    "Hydra": "hydra",
    "Plain": "plain",
    "ResNet": "backbones",
    "ResSep": "backbones",
    "UserError": "errors",
    "combination_weights": "gating",
    "select_branches": "gating",
}

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


def __getattr__(name: str) -> object:
    """A public name, from the module that defines it."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
