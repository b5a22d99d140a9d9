"""The pictures, as PNG files: one module a picture, style and saving in `style`.

`figures.save_NAME(..., path)` draws one. Its module is imported when it is first called: a command that
draws nothing does not load matplotlib.
"""

import importlib

_MODULES = {
    "save_branch_use": "branch_use",
    "save_confusion": "confusion",
    "save_embedding": "embedding",
    "save_frontier": "frontier",
    "save_inference_times": "inference_times",
    "save_interpolation": "interpolation",
    "save_latency": "latency",
    "save_learning_curves": "learning_curves",
    "save_most_wrong": "most_wrong",
    "save_tau_curve": "tau_curve",
    "save_tradeoff": "tradeoff",
}
__all__ = list(_MODULES)


def __getattr__(name):
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
