"""Inference at equal measured accuracy: what a Hydra takes, and a plain network that one would serve instead.

Accuracy and lambda are those that kept runs have measured (`runs.keep`, such as docs/runs), without their
weights; the times are those of networks of the same shape with random weights and a gate that spreads, at the
threshold where as many branches are run. A Hydra stands beside the plain networks of the same data that were
trained for as long, each runtime for itself: TensorFlow with oneDNN and without, and PyTorch where it is
installed, in which the Hydra runs all branches and masks. `latency` measures trained networks themselves.
"""

import importlib.util
import itertools
import os
import pathlib
import statistics
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from dynkhydra_tf.benchmark import inference, subjects
from dynkhydra_tf.benchmark.latency import bounds_text, plain_of_equal_accuracy
from dynkhydra_tf.benchmark.timing import image_source, networks
from dynkhydra_tf.errors import UserError
from dynkhydra_tf.plain import Plain
from dynkhydra_tf.runs import FinishedRun
from dynkhydra_tf.serving.reference import TOLERANCE
from dynkhydra_tf.tables import number, table

IMAGES = 64  # as many as `runner.py` times in small batches: their mean lambda is then the one asked for


# === What the runs have measured ===


def trained(path: str | os.PathLike, taus: Sequence[float]) -> list[dict[str, Any]]:
    """Returns what each network of a directory of runs came to, a Hydra at several thresholds.

    Of the runs count ResNets of full width for 32 x 32 pixels, Hydras without a shared trunk whose evaluation
    has a table of thresholds, and those alone beside which a plain network was trained for as long on as many
    images. Runs that differ in their seeds alone are one network, and its numbers their means.

    Args:
        path: of the directory. taus: thresholds besides each Hydra's own; those that were not measured are
            left out.

    Returns:
        list of dicts: run, depth, classes, data, train_images, epochs, schedule, seeds, top1, and tau,
        active_branches, num_branches, top_k, combine, None for a plain network. Plain networks come first.

    Raises:
        UserError: no such directory, or no such pair in it.
    """
    runs = {str(run.path.relative_to(path)): run for run in FinishedRun.find_all(path) if _is_known(run)}
    rows = [row for same in networks(runs).values() for row in _rows([runs[name] for name in same], taus)]
    trained_so = {_training(row) for row in rows if row["tau"] is None}
    hydras = [row for row in rows if row["tau"] is not None and _training(row) in trained_so]
    if not hydras:
        raise UserError(
            f"{path} must hold a Hydra on ResNet with its evaluation, and a plain network that was trained "
            f"for as long on as many images. Received: {', '.join(runs) or 'no such run'}"
        )
    beside = {_training(row) for row in hydras}
    return [row for row in rows if row["tau"] is None and _training(row) in beside] + hydras


def _is_known(run):
    """Whether a run's network is one of `subjects`, but for its weights."""
    network = run.settings.network
    widths = {network.stem_width, network.branch_width, network.gater_width}
    of_hydra = network.system == "plain" or not network.trunk
    return network.backbone == "resnet" and widths == {1} and run.image_size == 32 and of_hydra


def _training(row):
    """What two networks must share to be compared."""
    return row["data"], row["train_images"], row["epochs"], row["schedule"]


def _rows(same, taus):
    """The rows of `trained` of one network's runs."""
    run = same[0]
    network, optimisation = run.settings.network, run.settings.optimisation
    common = {
        "run": run.name,
        "depth": network.depth,
        "classes": len(run.class_names),
        "data": " ".join(f"{value}" for value in image_source(run.settings.data).values()),
        "train_images": run.sizes.get("train"),
        "epochs": optimisation.epochs,
        "schedule": optimisation.schedule,
        "seeds": len(same),
    }
    if network.system == "plain":
        top1 = statistics.fmean(each.summary["top1"] for each in same)
        nothing = dict.fromkeys(("tau", "active_branches", "num_branches", "top_k", "combine"))
        return [common | nothing | {"top1": top1}]
    common |= {name: getattr(network, name) for name in ("num_branches", "top_k", "combine")}
    rows, tables = [], [{row["tau"]: row for row in each.tau_table()} for each in same]
    for tau in sorted({network.tau, *taus}):
        if all(tau in found for found in tables):
            means = {
                name: statistics.fmean(found[tau][name] for found in tables)
                for name in ("top1", "active_branches")
            }
            rows.append(common | {"tau": tau} | means)
    return rows


# === What that takes ===


def against_plain(
    folder: str | os.PathLike,
    rows: Sequence[dict[str, Any]],
    batch_sizes: Sequence[int],
    threads: Sequence[int],
    onednn: Sequence[str],
    seconds: float,
    say: Callable[[str], None] = print,
) -> list[dict[str, Any]]:
    """Times the networks of `trained`, in each runtime in turn.

    Args:
        folder: where to export to.
        rows: of `trained`.
        batch_sizes: images in a request, each in turn. threads: of the server, each in turn.
        onednn: of `ONEDNN`, each in a process of its own.
        seconds: at least so long for each batch size, number of threads and runtime.
        say: callable for each table's text.

    Returns:
        list of dicts: runtime, threads, onednn (None of PyTorch), batch_size, subjects: {name: {ms, low,
        high, cpu, then what `trained` says of it, and plain_ms, the least and the most that a plain network
        of its accuracy takes, see `plain_of_equal_accuracy`}}.

    Raises:
        RuntimeError: PyTorch does not answer as TensorFlow does.
    """
    few = subjects.images(IMAGES)
    images = np.resize(few, (2 * max(IMAGES, *batch_sizes), *few.shape[1:]))
    with_torch = _torch_is_there()
    if not with_torch:
        say("Without PyTorch, which is not installed (`pip install torch`)")
    places, masked = _export(pathlib.Path(folder), rows, few, with_torch)
    runtimes: list[tuple[str, str | None]] = [("tensorflow", told) for told in onednn]
    runtimes += [("pytorch", None)] if with_torch else []
    results = []
    for count, (runtime, told) in itertools.product(threads, runtimes):
        models = places if runtime == "tensorflow" else masked
        found = inference.run_job(models, images, batch_sizes, count, seconds, onednn=told or "default")
        if runtime == "tensorflow":
            answers = found["answers"]
        else:
            _check_alike(found["answers"], answers)
        for size in batch_sizes:
            times = found["times_ms"][size], found["cpu_ms"][size]
            summary = inference.summarise(times[0], next(iter(models)), times[1])
            asked = {"runtime": runtime, "threads": count, "onednn": told, "batch_size": size}
            measured = [row | asked | summary[_subject(row)] for row in rows if _subject(row) in summary]
            results.append(asked | {"subjects": {_name(row): _result(row, measured) for row in measured}})
            say(_text(results[-1]))
    return results


def _torch_is_there():
    return importlib.util.find_spec("torch") is not None


def _subject(row):
    """What a row's network is called while it is timed; networks of one shape are timed once."""
    if row["tau"] is None:
        return f"plain d={row['depth']}, {row['classes']} classes"
    shape = f"d={row['depth']}, nb={row['num_branches']}, K={row['top_k']}, {row['combine']}"
    return f"hydra {shape}, {row['classes']} classes, lambda {row['active_branches']:.4f}"


def _export(folder, rows, images, with_torch):
    """Where the exports are: ({subject: place} of TensorFlow, the same of PyTorch)."""
    places: dict[str, inference.Place] = {}
    masked: dict[str, inference.Place] = {}
    for row in (row for row in rows if row["tau"] is None):
        name = _subject(row)
        if name not in places:
            model = Plain(subjects.ResNet(row["depth"]), row["classes"])
            places[name], masked[name] = folder / f"plain{len(places)}", folder / f"plain{len(places)}.torch"
            subjects.export_network(model, places[name])
            if with_torch:
                subjects.export_pytorch(model, masked[name])

    def shape(row):
        return tuple(row[key] for key in ("depth", "num_branches", "top_k", "combine", "classes"))

    hydras = sorted((row for row in rows if row["tau"] is not None), key=shape)
    for number_of, (key, alike) in enumerate(itertools.groupby(hydras, shape)):
        depth, branches, top_k, combine, classes = key
        model = subjects.make_hydra(depth, branches, top_k=top_k, combine=combine, num_classes=classes)
        taus = {_subject(row): subjects.tau_for(model, images, row["active_branches"]) for row in alike}
        path = folder / f"hydra{number_of}"
        signatures = subjects.export_at(model, path, list(dict.fromkeys(taus.values())))
        places |= {name: (str(path), signatures[tau]) for name, tau in taus.items()}
        if with_torch:  # all branches take the same time at each threshold: once, at the lowest
            name = min(taus, key=taus.__getitem__)
            masked[name] = folder / f"hydra{number_of}.torch"
            subjects.export_pytorch(model, masked[name], taus[name])
    return places, masked


def _check_alike(answers, of_tensorflow):
    for name, outputs in answers.items():
        errors = np.abs(outputs["probabilities"] - of_tensorflow[name]["probabilities"]).max(axis=1)
        error = np.sort(errors)[-2]  # all images but one: a gate probability may lie close to tau
        if not error <= TOLERANCE:
            raise RuntimeError(f"PyTorch's {name} differs from TensorFlow's by {error}")


def _name(row):
    tau = "" if row["tau"] is None else f", tau {row['tau']:g}"
    return f"{row['run']}{tau}"


def _result(row, measured):
    least, most = plain_of_equal_accuracy(row, measured)
    names = ("ms", "low", "high", "cpu", "top1", "tau", "active_branches", "epochs", "schedule", "seeds")
    return {name: row[name] for name in names} | {"plain_ms": [least, most]}


def _text(result):
    """A result as a table, and the comparison in words."""
    told = "" if result["onednn"] is None else f", oneDNN {result['onednn']}"
    runtime = {"tensorflow": "TensorFlow", "pytorch": "PyTorch, all branches and a mask"}[result["runtime"]]
    threads = f"{result['threads']} thread{'s'[: result['threads'] > 1]}"
    header = ["", "epochs", "lambda", "top-1", "ms", "quartiles", "CPU ms", "plain of equal accuracy, ms"]
    cells = [[*header, "that / this"]]
    for name, row in result["subjects"].items():
        plain, times = "-", "-"
        if row["tau"] is not None:
            plain = bounds_text(*row["plain_ms"], ".2f")
            over = (None if bound is None else bound / row["ms"] for bound in row["plain_ms"])
            times = bounds_text(*over, ".2f")
        cost = [f"{row['ms']:.2f}", f"{row['low']:.2f} - {row['high']:.2f}", f"{row['cpu']:.2f}"]
        measured = [str(row["epochs"]), number(row["active_branches"], ".2f"), f"{row['top1']:.2%}"]
        cells.append([name, *measured, *cost, plain, times])
    return f"\n{runtime}{told}, {threads}, batch {result['batch_size']}\n{table(cells)}"
