"""What all workers of a training must have alike, by names that a message can tell."""

import hashlib
import importlib.metadata
import os
import platform

import keras

from dynkhydra_tf.data import ImageData
from dynkhydra_tf.fields import Role, leaves, list_text, values
from dynkhydra_tf.machine import part_dtype
from dynkhydra_tf.settings import Settings

PACKAGES = ("dynkhydra_tf", "tensorflow", "keras", "keras-cv", "numpy", "scikit-learn", "scipy")


def facts_of(settings: Settings, data: ImageData) -> dict[str, object]:
    """Returns what `Workers.agree` is to compare before the training: flags, images, versions of packages."""
    known = values(settings)
    flags = {
        f"--{field.name}": list_text(field.metadata["setting"], known[field.name])
        for field in leaves(type(settings))
        if field.metadata["setting"].role not in (Role.PLACE, Role.ACTION)
    }
    return {
        **flags,
        "precision": part_dtype(settings.optimisation.mixed_precision),  # of "auto" the machine decides
        **{f"{split} images": size for split, size in data.sizes.items()},
        "classes": _digest(repr(data.class_names).encode()),
        "content of the images": _digest(
            "".join(map(data.content, filter(data.sizes.get, data.sizes))).encode()
        ),
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in PACKAGES},
        "PYTHONHASHSEED": os.environ.get("PYTHONHASHSEED"),
    }


def state_of(model: keras.Model) -> dict[str, object]:
    """Returns what `Workers.agree` is to compare before the first step: the state of model and optimizer."""
    found = hashlib.sha256()
    for variable in [*model.variables, *model.optimizer.variables]:
        found.update(variable.numpy().tobytes())
    return {"step": int(model.optimizer.iterations.numpy()), "weights": found.hexdigest()[:12]}


def _digest(data):
    return hashlib.sha256(data).hexdigest()[:12]
