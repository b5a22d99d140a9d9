"""Inference: the served graph against its limit and against what else one could serve; and how it grows.

The limit is stem + gater + lambda branches + combiner on the whole batch, with nothing to choose. The stem
alone, and the stem and the gater, are measured too: the differences say where the time goes.
"""

import functools
import itertools
import os
import pathlib
import pickle
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from dynkhydra_tf.benchmark import runner, subjects
from dynkhydra_tf.benchmark.environment import with_onednn
from dynkhydra_tf.costs import hydra_costs, inference_flops, plain_costs
from dynkhydra_tf.errors import UserError
from dynkhydra_tf.serving import native
from dynkhydra_tf.serving.formats import FORMATS, onnx
from dynkhydra_tf.serving.served_model import ServedModel
from dynkhydra_tf.tables import table

STEM, STEM_GATER = "stem", "stem, gater"


Place = str | os.PathLike | tuple[str, str]


def run_job(
    models: Mapping[str, Place],
    images: np.ndarray,
    batch_sizes: Sequence[int],
    threads: int,
    seconds: float,
    requests: int | None = None,
    onednn: str = "default",
    loads: int = 1,
) -> dict[str, Any]:
    """Runs `runner.py` on exports and returns its result; see there.

    Args:
        models: {name: directory, or (directory, signature)}; without one, serving_default.
        images: (n, S, S, 3) uint8.
        batch_sizes: images in a request.
        threads: of the server.
        seconds: at least so long for each batch size.
        requests: how many batches of each size; None for as many as 64 images make, at least 2.
        onednn: of `ONEDNN`; a process of its own has each.
        loads: how often each export is loaded, where that is timed.
    """
    with tempfile.TemporaryDirectory() as folder:
        job, result = pathlib.Path(folder) / "job.pickle", pathlib.Path(folder) / "result.pickle"
        content = {
            "native": native.__file__,
            "models": {name: _served(place) for name, place in models.items()},
            "images": images,
            "batch_sizes": batch_sizes,
            "threads": threads,
            "seconds": seconds,
            "requests": requests,
            "loads": loads,
        }
        job.write_bytes(pickle.dumps(content))
        done = subprocess.run(
            [sys.executable, runner.__file__, job, result],
            capture_output=True,
            text=True,
            check=False,
            env=with_onednn(onednn),
        )
        if done.returncode:
            raise RuntimeError(f"The benchmark's process failed: {done.stderr[-2000:]}")
        return pickle.loads(result.read_bytes())


def usual(active: Sequence[int]) -> int:
    """Which of some lambdas stands for real use: 2, or without it the first."""
    return 2 if 2 in active else active[0]


def _served(place):
    path, signature = place if isinstance(place, tuple) else (place, "serving_default")
    return str(path), signature


def summarise(
    times: dict[str, list[list[float]]], reference: str, cpu: dict[str, list[list[float]]]
) -> dict[str, dict[str, float]]:
    """Returns {name: {"ms", "low", "high", "over", "cpu"}} of the times of one batch size.

    Args:
        times, cpu: {name: [requests][rounds]} in ms, by the clock and of the processor.
        reference: name of what the others are compared with.

    Returns:
        ms: mean over the requests of the median over the rounds, so that requests of more and of fewer
        branches count alike; low, high: that of the quartiles; over: median over the rounds of the
        ratio of a round's mean to the reference's in the same round; cpu: as ms, the processors' time.
    """
    arrays = {name: np.array(values) for name, values in times.items()}
    rounds = {name: values.mean(axis=0) for name, values in arrays.items()}
    return {
        name: {
            "ms": float(np.median(values, axis=1).mean()),
            "low": float(np.quantile(values, 0.25, axis=1).mean()),
            "high": float(np.quantile(values, 0.75, axis=1).mean()),
            "over": float(np.median(rounds[name] / rounds[reference])),
            "cpu": float(np.median(cpu[name], axis=1).mean()),
        }
        for name, values in arrays.items()
    }


def against_limit(
    folder: str | os.PathLike,
    depth: int,
    num_branches: int,
    active: Sequence[int],
    batch_sizes: Sequence[int],
    threads: Sequence[int],
    onednn: Sequence[str],
    seconds: float,
    say: Callable[[str], None] = print,
) -> list[dict]:
    """Measures Hydra, its limit, all branches and a mask, and the plain network of the same depth.

    What takes the place of a Hydra of some accuracy is in `equal_accuracy.py`.

    Args:
        folder: where to export to.
        depth: d. num_branches: nb. active: list of lambda, whole numbers from 1 to 4.
        batch_sizes: images in a request, each in turn. threads: of the server, each in turn.
        onednn: of `ONEDNN`, each in turn.
        seconds: at least so long for each batch size, number of threads and setting of oneDNN.
        say: callable for each table's text.

    Returns:
        list of dicts: threads, onednn, batch_size, and for each subject ms, low, high, over (the limit of
        lambda 2 or, without it, of the first lambda), cpu.
    """
    folder = pathlib.Path(folder)
    images = subjects.images(256)
    model = subjects.make_hydra(depth, num_branches)
    flops = hydra_costs(model)["flops"]
    subjects.export_static(model, folder / "stem", 0, gater=False)
    subjects.export_static(model, folder / "gater", 0)
    models = {STEM: folder / "stem", STEM_GATER: folder / "gater"}
    megaflops = {STEM: flops["stem"] / 1e6, STEM_GATER: (flops["stem"] + flops["gater"]) / 1e6}
    for count in active:
        tau = subjects.tau_for(model, images, count)
        name, limit = f"hydra, lambda {count}", f"limit, lambda {count}"
        subjects.export_hydra(model, folder / f"hydra{count}", tau)
        subjects.export_static(model, folder / f"limit{count}", count)
        models |= {name: folder / f"hydra{count}", limit: folder / f"limit{count}"}
        megaflops[name] = megaflops[limit] = inference_flops(flops, count) / 1e6
    masked = f"all {num_branches} branches, masked"
    first = usual(active)
    subjects.export_masked(model, folder / "masked", subjects.tau_for(model, images, first))
    plain = f"plain ResNet, d={depth}"
    subjects.export_plain(depth, folder / "plain")
    models |= {masked: folder / "masked", plain: folder / "plain"}
    megaflops[masked] = inference_flops(flops, num_branches) / 1e6
    megaflops[plain] = plain_costs(subjects.ResNet(depth), subjects.NUM_CLASSES)["flops"] / 1e6

    expected = {f"hydra, lambda {first}": masked}
    reference, results = f"limit, lambda {first}", []
    for count, told in itertools.product(threads, onednn):
        result = run_job(models, images, batch_sizes, count, seconds, onednn=told)
        for name, same in expected.items():
            answers = [result["answers"][which]["probabilities"] for which in (name, same)]
            error = np.abs(answers[0] - answers[1]).max()
            if not error < 1e-4:
                raise RuntimeError(f"{name} differs from the dense computation by {error}")
        for size in batch_sizes:
            summary = summarise(result["times_ms"][size], reference, result["cpu_ms"][size])
            results.append({"threads": count, "onednn": told, "batch_size": size, "subjects": summary})
            where = f"{count} thread{'s'[: count > 1]}, oneDNN {told}, batch {size}"
            say(f"\n{where}; d={depth}, nb={num_branches}")
            rows = [["", "MFLOPs", "ms", "quartiles", "CPU ms", "GFLOP/s", "x limit"]]
            for name, numbers in summary.items():
                row = [f"{megaflops[name]:.0f}", f"{numbers['ms']:.2f}"]
                row += [f"{numbers['low']:.2f} - {numbers['high']:.2f}", f"{numbers['cpu']:.2f}"]
                row += [f"{megaflops[name] * size / numbers['ms']:.0f}", f"{numbers['over']:.2f}"]
                rows.append([name, *row])
            say(table(rows))
            say(_shares(summary, first))
    return results


def _shares(summary, count):
    """Where the time of a Hydra at lambda `count` goes, as text."""
    places = {"stem": STEM, "gater": STEM_GATER, "branches and combiner": f"limit, lambda {count}"}
    places["choosing"] = f"hydra, lambda {count}"
    ends = [summary[name]["ms"] for name in places.values()]
    parts = zip(places, ends, [0.0, *ends], strict=False)
    shares = ", ".join(f"{part} {(end - start) / ends[-1]:.0%}" for part, end, start in parts)
    return f"Of the time at lambda {count}: {shares}"


def edge_runtimes(
    folder: str | os.PathLike,
    depth: int,
    num_branches: int,
    count: int,
    batch_sizes: Sequence[int],
    seconds: float,
    say: Callable[[str], None] = print,
) -> list[dict]:
    """Measures all export formats whose packages are installed; one thread, in turn.

    Here the clock covers the call from Python, and TensorFlow has oneDNN on, as this process does. ONNX has
    its own limit beside it, a file of the same parts with nothing to choose.

    Args:
        folder: where to export to.
        depth: d. num_branches: nb. count: lambda, a whole number from 1 to 4.
        batch_sizes: list of int.
        seconds: float, for each batch size.
        say: callable for the table's text.

    Returns:
        list of dicts: threads, batch_size, and for each subject ms, low, high, over (the first format);
        onnx_over_limit, in the same rounds, where ONNX is there.
    """
    folder, images = pathlib.Path(folder), subjects.images(256)
    model = subjects.make_hydra(depth, num_branches)
    tau = subjects.tau_for(model, images, count)
    served = ServedModel("benchmark", model, subjects.class_names(model), "stretch", tau)
    answers = {}
    for name, format in FORMATS.items():
        try:
            format.check_installed()
            format.convert(served, folder / name)
            answers[f"{name}, lambda {count}"] = format.load(folder / name, threads=1)
        except UserError as missing:
            say(f"Without {name}: {missing}")
    reference, hydra, limit = next(iter(answers)), f"onnx, lambda {count}", f"onnx, limit, lambda {count}"
    if hydra in answers:
        static = onnx.function_to_onnx(subjects.static_function(model, count))
        answers[limit] = onnx.run(static, threads=1)
    results: list[dict[str, Any]] = []
    for size in batch_sizes:
        batches = runner.batches_of(images, size)
        requests = {
            name: [functools.partial(answer, batch) for batch in batches] for name, answer in answers.items()
        }
        taken, spent = runner.in_turn(requests, seconds)
        row = {"threads": 1, "batch_size": size, "subjects": summarise(taken, reference, spent)}
        if hydra in answers:
            row["onnx_over_limit"] = summarise(taken, limit, spent)[hydra]["over"]
        results.append(row)
    say(f"\nExport formats, called from Python, one thread, oneDNN on; d={depth}, nb={num_branches}; ms")
    rows = [["", *(f"batch {size}" for size in batch_sizes)]]
    rows += [[name, *(f"{r['subjects'][name]['ms']:.2f}" for r in results)] for name in answers]
    if hydra in answers:
        rows.append(["onnx, x limit", *(f"{r['onnx_over_limit']:.2f}" for r in results)])
    say(table(rows))
    return results


def growth(
    folder: str | os.PathLike,
    depths: Sequence[int],
    branch_counts: Sequence[int],
    seconds: float,
    onednn: Sequence[str],
    say: Callable[[str], None] = print,
) -> list[dict]:
    """Measures how time, memory, size and load time of the served graph grow with nb and d, at lambda 2.

    Args:
        folder: where to export to.
        depths: list of d, each with the first number of branches. branch_counts: list of nb, each with
            the first depth.
        seconds: at least so long for each batch size.
        onednn: of `ONEDNN`, each in turn.
        say: callable for each table's text.

    Returns:
        list of dicts: depth, num_branches, onednn, batches ({"1", "64": ms, low, high}), load_ms, graph_kb,
        weights_mb, process_mb.
    """
    folder, images = pathlib.Path(folder), subjects.images(256)
    sizes = [(depths[0], nb) for nb in branch_counts] + [(d, branch_counts[0]) for d in depths[1:]]
    models = {}
    for depth, branches in sizes:
        model = subjects.make_hydra(depth, branches)
        path = folder / f"d{depth}_nb{branches}"
        subjects.export_hydra(model, path, subjects.tau_for(model, images, 2))
        models[f"d={depth} nb={branches}"] = path
    results = []
    for told in onednn:
        together = run_job(models, images, [1, 64], 1, seconds, onednn=told, loads=3)
        rows = [["d", "nb", "ms at batch 1", "CPU", "at 64", "CPU", "load ms"]]
        rows[0] += ["graph KB", "weights MB", "process MB"]
        for (depth, branches), (name, path) in zip(sizes, models.items(), strict=True):
            alone = run_job({name: path}, images, [], 1, 0, onednn=told, loads=3)
            times = {
                str(size): summarise(together["times_ms"][size], name, together["cpu_ms"][size])[name]
                for size in (1, 64)
            }
            weights = sum(file.stat().st_size for file in (path / "variables").iterdir())
            row = {
                "depth": depth,
                "num_branches": branches,
                "onednn": told,
                "batches": times,
                "load_ms": float(np.median(together["load_ms"][name])),
                "graph_kb": (path / "saved_model.pb").stat().st_size / 1e3,
                "weights_mb": weights / 1e6,
                "process_mb": alone["process_mb"],
            }
            results.append(row)
            numbers = [f"{times['1'][key]:.2f}" for key in ("ms", "cpu")]
            numbers += [f"{times['64'][key]:.1f}" for key in ("ms", "cpu")]
            numbers += [f"{row['load_ms']:.0f}"]
            numbers += [f"{row['graph_kb']:.0f}", f"{row['weights_mb']:.1f}", f"{row['process_mb']:.0f}"]
            rows.append([str(depth), str(branches), *numbers])
        say(f"\nGrowth at lambda 2, one thread, oneDNN {told}")
        say(table(rows, text_columns=()))
    return results
