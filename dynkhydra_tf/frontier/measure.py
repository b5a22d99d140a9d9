"""The trained networks, measured: accuracy on the images held out and on the test images, time as served."""

import os
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any

import keras

from dynkhydra_tf.accuracy import evaluate
from dynkhydra_tf.benchmark import timing
from dynkhydra_tf.benchmark.subjects import export_at
from dynkhydra_tf.costs import hydra_costs
from dynkhydra_tf.data import ImageData, evaluation_batches
from dynkhydra_tf.frontier.candidates import Candidate
from dynkhydra_tf.frontier.choice import Point, point_name, wilson_interval
from dynkhydra_tf.frozen_maps import Views, cached_maps
from dynkhydra_tf.hydra import Hydra
from dynkhydra_tf.runs import FinishedRun

SPLITS = {"validation": "validation_top1", "test": "top1"}
IMAGES = 64  # timed at batch 1


def measure(
    tried: Sequence[Candidate], data: ImageData, taus: Sequence[float], seconds: float
) -> list[Point]:
    """Measures networks whose runs have finished.

    Args:
        tried: the networks.
        data: with images held out and test images.
        taus: thresholds of a Hydra, beside its own.
        seconds: to time at least so long, all together.

    Returns:
        A dict for each network, of a Hydra for each threshold: network, system, run_dir (the first seed's),
        seeds, tau (None of a plain network), active_branches (likewise), flops, validation_top1, top1 (means
        over the seeds, in 0..1), low and high (of top1, with 95 % for so many test images), spread (standard
        deviation of top1 over the seeds; None of one), and of an image in ms: ms, ms_low, ms_high, cpu_ms.

    Raises:
        UserError: a run without a model, or an export that answers otherwise than its model.
    """
    points: list[Point] = []
    images = timing.timed_images(data, 1, IMAGES)
    subjects: dict[str, timing.Subject] = {}
    with tempfile.TemporaryDirectory() as folder:
        for number, candidate in enumerate(tried):
            keras.backend.clear_session()
            by_seed = []
            for seed, settings in enumerate(candidate.runs):
                run = FinishedRun.open(settings.run_dir)
                model = run.load_model()
                run.check_data(data)
                if isinstance(model, Hydra):
                    by_seed.append(_accuracies(model, _inputs(settings, model, data), taus))
                else:
                    by_seed.append({None: _told(run)})
                if seed == 0:
                    place = os.path.join(folder, str(number))
                    names = export_at(
                        model, place, sorted(by_seed[0]) if isinstance(model, Hydra) else [None]
                    )
                    places = {tau: (place, name) for tau, name in names.items()}
                    timed = timing.subjects_of(model, places, images)
            for tau, subject in timed.items():
                point = _point(candidate, tau, [rows[tau] for rows in by_seed], data.sizes["test"])
                subjects[point_name(point)] = subject
                points.append(point)
        times = timing.measure(subjects, images, 1, 1, seconds)
    for point in points:
        found = times[point_name(point)]
        point |= {"ms": found["ms"], "ms_low": found["low"], "ms_high": found["high"], "cpu_ms": found["cpu"]}
    return points


def _inputs(settings, model, data):
    """The maps of what is frozen in place of the images, where the training had these."""
    if not settings.network.trains_on_maps:
        return data
    return cached_maps(model, data, {split: Views() for split in SPLITS}, settings.place.cache_dir)


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


def _accuracies(model: Hydra, images: Any, taus: Sequence[float]) -> Mapping[float | None, dict]:
    """{tau: a dict of `SPLITS`' values, active_branches and flops} of a Hydra.

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
