"""What a measurement was made on: a time without it says little."""

import os
import platform

import keras
import tensorflow as tf


def describe(onednn):
    """Returns processor, cores, versions and whether inference runs with oneDNN (bool), as a flat dict."""
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "oneDNN in inference": "on" if onednn else "off",
        "tensorflow": tf.__version__,
        "keras": keras.__version__,
        "python": platform.python_version(),
    }


def _processor():
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            return next(line.split(":")[1].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
