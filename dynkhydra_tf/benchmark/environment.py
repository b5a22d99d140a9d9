"""What a measurement was made with: the machine and the versions."""

import os
import platform

import keras
import tensorflow as tf

from dynkhydra_tf.benchmark import runner
from dynkhydra_tf.benchmark.results import TURN
from dynkhydra_tf.machine import describe_machine

# What a server's TensorFlow is told: to run its convolutions with oneDNN or not, or nothing. Then it does so
# on processors that have AVX-512 with VNNI or bfloat16, AVX-VNNI or AMX.
ONEDNN = {"default": None, "on": "1", "off": "0"}


def with_onednn(onednn: str) -> dict[str, str]:
    """Returns the environment of a process whose TensorFlow is told what `ONEDNN` has under this name."""
    told = ONEDNN[onednn]
    own = {key: value for key, value in os.environ.items() if key != "TF_ENABLE_ONEDNN_OPTS"}
    return own if told is None else {**own, "TF_ENABLE_ONEDNN_OPTS": told}


def describe(onednn: str) -> dict[str, str | int]:
    """Returns processor, cores, GPUs, versions and how inference is timed, as a flat dict."""
    machine = describe_machine().items()
    return {
        **{name: ", ".join(told) if isinstance(told, list) else told for name, told in machine},
        "oneDNN in inference": onednn,
        TURN: runner.TURN,
        "tensorflow": tf.__version__,
        "keras": keras.__version__,
        "python": platform.python_version(),
    }
