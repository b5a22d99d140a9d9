"""Milliseconds of an image at each threshold, on this machine: what tau buys when a server is busy."""

import json
import os
import statistics
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dynkhydra_tf.errors import UserError
from dynkhydra_tf.serving import native

TAUS = (0.0, 0.02, 0.05, 0.08, 0.1, 0.14, 0.2, 0.3, 0.4, 0.5, 0.7, 0.9)
BATCHES = (1, 16)
SINGLES = 8  # images that are timed one by one: each runs its own number of branches
ROUNDS, SECONDS = 7, 5.0  # at most so many, and no new one after so long


def measure_taus(
    model: native.SavedModel, images: np.ndarray, rows: Sequence[Mapping[str, float]], served_tau: float
) -> list[dict[str, Any]]:
    """Times the signature `with_tau` at some thresholds of a tau table, in turn, round after round.

    Args:
        model: the export, in TensorFlow's C API.
        images: (n, S, S, 3), as the signature takes them, such as the first of the validation images.
        rows: of `Evaluation.tau_table`.
        served_tau: is among them, and is timed.

    Returns:
        dicts of tau, active_branches (lambda), top1, and ms: {batch size: milliseconds of an image, the
        median of the rounds}; tau rising.
    """
    chosen = [row for row in rows if row["tau"] in TAUS or row["tau"] == served_tau]
    times: list[list[list[float]]] = [[[] for _ in BATCHES] for _ in chosen]

    def seconds_of(batch, tau):
        begun = time.perf_counter()
        for inputs in batch:
            model.run({"images": inputs, "tau": np.full(len(inputs), tau, np.float32)}, "with_tau")
        return (time.perf_counter() - begun) / sum(map(len, batch))

    batches = [[images[i : i + 1] for i in range(min(SINGLES, len(images)))], [_filled(images, BATCHES[1])]]
    for batch in batches:  # the first run of a size is slow
        seconds_of(batch, 0.0)
    begun = time.monotonic()
    for _ in range(ROUNDS):
        for row, of_row in zip(chosen, times, strict=True):
            for batch, found in zip(batches, of_row, strict=True):
                found.append(seconds_of(batch, row["tau"]))
        if time.monotonic() - begun > SECONDS:
            break
    return [
        {
            **{name: row[name] for name in ("tau", "active_branches", "top1")},
            "ms": {
                str(size): round(1e3 * statistics.median(found), 4)
                for size, found in zip(BATCHES, of_row, strict=True)
            },
        }
        for row, of_row in zip(chosen, times, strict=True)
    ]


def _filled(images, count):
    """The first so many images, from the beginning again where there are fewer."""
    return images[np.arange(count) % len(images)]


def load_taus(path: str | os.PathLike) -> list[dict[str, Any]]:
    """Reads the table from an export's reference.json.

    Raises:
        UserError: it cannot be read, or has none.
    """
    try:
        with open(path, encoding="utf-8") as file:
            rows = json.load(file)["taus"]
        names = ("tau", "active_branches", "top1")
        return [{**{name: float(row[name]) for name in names}, "ms": dict(row["ms"])} for row in rows]
    except OSError as error:
        raise UserError(f"The reference file {path} cannot be read: {error.strerror}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path} has no table of thresholds: export the run again where its data are; a plain network "
            "has none"
        ) from error
