"""What a measurement was made with: the machine and the versions."""

import platform

import keras
import tensorflow as tf

from dynkhydra_tf.machine import describe_machine


def describe(onednn: bool) -> dict[str, str | int]:
    """Returns processor, cores, versions and whether inference runs with oneDNN, as a flat dict."""
    return {
        **describe_machine(),
        "oneDNN in inference": "on" if onednn else "off",
        "tensorflow": tf.__version__,
        "keras": keras.__version__,
        "python": platform.python_version(),
    }
