"""Trained networks in .keras files."""

import os
import pathlib
from typing import TYPE_CHECKING

from dynkhydra_tf.errors import UserError

if TYPE_CHECKING:
    from dynkhydra_tf.data import ImageData
    from dynkhydra_tf.hydra import Hydra
    from dynkhydra_tf.plain import Plain


def load_network(path: str | os.PathLike) -> "Hydra | Plain":
    """Loads a trained network.

    Args:
        path: a .keras file.

    Raises:
        UserError: no such file, no Keras model, or one of another kind.
    """
    import keras

    from dynkhydra_tf.hydra import Hydra
    from dynkhydra_tf.plain import Plain

    if not pathlib.Path(path).is_file():
        raise UserError(f"{path} is not there; a run has one after its last epoch: finish it with train.py")
    try:
        model = keras.saving.load_model(path)
    except Exception as error:  # whatever a file that is no model makes of zipfile, h5py and Keras
        raise UserError(f"{path} cannot be loaded as a Keras model: {error}") from error
    if not isinstance(model, (Hydra, Plain)):
        raise UserError(f"{path} holds a {type(model).__name__}; it must be a Hydra or a Plain")
    return model


def check_network(path: str | os.PathLike, model: "Hydra | Plain", data: "ImageData") -> None:
    """Checks that the network of a .keras file, which knows no class names, takes the images of a data set.

    Args:
        path: the file, for the message.
        model: what it holds.
        data: the images it is to be called on.

    Raises:
        UserError: other numbers of classes, or another image size.
    """
    takes, has = (model.num_classes, model.backbone.input_shape[0]), (data.num_classes, data.image_size)
    if takes != has:
        raise UserError(
            f"{path} takes {takes[0]} classes and images of {takes[1]} px, {data.name} has {has[0]} and "
            f"{has[1]} px; give the data set that it was trained on"
        )
