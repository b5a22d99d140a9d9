"""The trained networks, measured: accuracy on the images held out and on the test images, time as served."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import keras
import numpy as np

from dynkhydra_tf.accuracy import evaluate
from dynkhydra_tf.benchmark import timing
from dynkhydra_tf.benchmark.subjects import export_at
from dynkhydra_tf.costs import hydra_costs
from dynkhydra_tf.data import evaluation_batches, open_data
from dynkhydra_tf.frontier.candidates import Candidate
from dynkhydra_tf.frontier.choice import Point, point_name, wilson_interval
from dynkhydra_tf.frozen_maps import Views, cached_maps
from dynkhydra_tf.hydra import Hydra
from dynkhydra_tf.runs import FinishedRun

SPLITS = {"validation": "validation_top1", "test": "top1"}


class Measured(NamedTuple):
    """A network, but for its times.

    Attributes:
        points: a `Point` for each threshold, of a plain network one.
        subjects: its exports, to be timed, in the same order.
    """

    points: list[Point]
    subjects: list[timing.Subject]


def prepare(candidate: Candidate, taus: Sequence[float], images: np.ndarray, directory: str) -> Measured:
    """Finds the accuracy of a network whose runs have finished, and exports it.

    Args:
        candidate: the network.
        taus: thresholds of a Hydra, beside its own.
        images: (n, S, S, 3) uint8, those that are timed.
        directory: where to export the first seed's network to.

    Raises:
        UserError: a run without a model, or of other images.
    """
    keras.backend.clear_session()
    first = candidate.runs[0]
    data = open_data(first.data, first.place.cache_dir)
    by_seed: list[Mapping[float | None, dict[str, Any]]] = []
    timed: dict[float | None, timing.Subject] = {}
    for settings in candidate.runs:
        run = FinishedRun.open(settings.run_dir)
        model = run.load_model()
        run.check_data(data)
        found: Mapping[float | None, dict[str, Any]] = {None: _told(run)}
        if isinstance(model, Hydra):
            found = _accuracies(model, _inputs(settings, model, data), taus)
        by_seed.append(found)
        if not timed:
            names = export_at(model, directory, list(found))
            timed = timing.subjects_of(model, {tau: (directory, name) for tau, name in names.items()}, images)
    points = [_point(candidate, tau, [rows[tau] for rows in by_seed], data.sizes["test"]) for tau in timed]
    return Measured(points, list(timed.values()))


def measure(networks: Sequence[Measured], images: np.ndarray, seconds: float) -> list[Point]:
    """Times networks as they are served.

    Args:
        networks: what `prepare` returns of each.
        images: those that it was given.
        seconds: to time at least so long, all together.

    Returns:
        A dict for each network, of a Hydra for each threshold: network, system, run_dir (the first seed's),
        seeds, tau (None of a plain network), active_branches (likewise), flops, validation_top1, top1 (means
        over the seeds, in 0..1), low and high (of top1, with 95 % for so many test images), spread (standard
        deviation of top1 over the seeds; None of one), and of an image in ms: ms, ms_low, ms_high, cpu_ms.

    Raises:
        UserError: an export that answers otherwise than its model.
    """
    points = [point for network in networks for point in network.points]
    subjects = [subject for network in networks for subject in network.subjects]
    names = [point_name(point) for point in points]
    times = timing.measure(dict(zip(names, subjects, strict=True)), images, 1, 1, seconds)
    for name, point in zip(names, points, strict=True):
        found = times[name]
        point |= {"ms": found["ms"], "ms_low": found["low"], "ms_high": found["high"], "cpu_ms": found["cpu"]}
    return points


def _told(run: FinishedRun) -> dict[str, Any]:
    """What the run of a plain network has measured itself, as a value of `_accuracies`."""
    early = run.settings.optimisation.early_stopping
    kept = run.best_row() if early else run.metric_rows()[-1]
    return {
        "validation_top1": kept["val_top1"],
        "top1": run.summary["top1"],
        "active_branches": None,
        "flops": run.summary["flops"]["total"],
    }


def _inputs(settings, model, data):
    """The maps of what is frozen in place of the images, where the training had these."""
    if not settings.network.trains_on_maps:
        return data
    return cached_maps(model, data, {split: Views() for split in SPLITS}, settings.place.cache_dir)


def _accuracies(model: Hydra, images: Any, taus: Sequence[float]) -> dict[float | None, dict[str, Any]]:
    """{tau: a dict of `SPLITS`' values, active_branches and flops} of a Hydra, the lowest first.

    `images` are an `ImageData` or a `MapData`.
    """
    found: dict[float | None, dict[str, Any]] = {}
    costs_of_parts = hydra_costs(model)["flops"]
    for split, key in SPLITS.items():
        rows = evaluate(model, evaluation_batches(images, split, 64), taus).tau_table(costs_of_parts)
        for row in rows:
            costs = {"active_branches": row["active_branches"], "flops": row["flops"]}
            found.setdefault(row["tau"], {}).update({key: row["top1"], **costs})
    return found


def _point(candidate, tau, rows, images):
    """A point, but for its times, of one dict of `_accuracies` for each seed."""
    settings = candidate.runs[0]
    means = {
        key: None if value is None else statistics.fmean(row[key] for row in rows)
        for key, value in rows[0].items()
    }
    low, high = wilson_interval(means["top1"], images)
    return {
        "network": candidate.name,
        "system": settings.network.system,
        "run_dir": settings.run_dir,
        "seeds": [each.optimisation.seed for each in candidate.runs],
        "tau": tau,
        **means,
        "low": low,
        "high": high,
        "spread": statistics.stdev(row["top1"] for row in rows) if len(rows) > 1 else None,
    }
