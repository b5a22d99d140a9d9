"""Keras finds this package's classes by name, before the modules that define them are imported.

Keras looks a saved class up in `keras.saving.get_custom_objects()`, where its module puts it when it is
imported; Keras itself imports no module but its own. So that opening a model needs no more than
`import dynkhydra_tf`, a stand-in for each class waits there as soon as Keras is imported, and imports the
module when it is asked for an object.
"""

import importlib

from dynkhydra_tf.import_hooks import after_import

PACKAGE = "dynkhydra_tf"
# The registered classes and their modules; tests/test_registration.py keeps it whole.
CLASSES = {
    "AdamW": "optimisation",
    "BasicBlock": "backbones.resnet",
    "BatchNorm": "backbones.blocks",
    "ConvBN": "backbones.blocks",
    "CutNetwork": "backbones.cut_network",
    "DenseLayer": "backbones.densenet",
    "DenseNet": "backbones.densenet",
    "Hydra": "hydra",
    "LinearDecay": "optimisation",
    "LowerFrom": "optimisation",
    "NormReLU": "backbones.densenet",
    "Plain": "plain",
    "ResNet": "backbones.resnet",
    "ResSep": "backbones.ressep",
    "SGD": "optimisation",
}


class _StandIn:
    """What Keras asks for an object in place of the class itself.

    Args:
        name: the class's.
    """

    def __init__(self, name: str) -> None:
        self.name = name

    def from_config(self, config: dict) -> object:
        """An object of the class; its module, when imported, takes the stand-in's place with the class."""
        module = importlib.import_module(f"{PACKAGE}.{CLASSES[self.name]}")
        return getattr(module, self.name).from_config(config)


def register_with_keras() -> None:
    """Puts the stand-ins into Keras, now or when it is imported."""
    after_import("keras", _register)


def _register() -> None:
    import keras

    for name in CLASSES:
        keras.saving.get_custom_objects().setdefault(f"{PACKAGE}>{name}", _StandIn(name))
