"""Measures what this machine makes of the method: inference, growth, training, input pipeline.

The section equal_accuracy has what a user would serve instead: plain networks as accurate as a Hydra, by the
runs of --runs, in the same runtime; see `equal_accuracy.py`.

    python -m dynkhydra_tf.benchmark                          # everything
    python -m dynkhydra_tf.benchmark inference --depth=3 --num_branches=20 --active=1,2,4
    python -m dynkhydra_tf.benchmark --compare=benchmark_results/older.json

The tables are printed; all numbers go to OUTPUT_DIR/benchmark.json, and inference is drawn there. What is
compared is measured in one run, in turn, after a warm-up; times are medians. --compare names what became
slower than in an older file, in any section, by more than the spread of both.
"""

import dataclasses
import itertools
import pathlib
import sys
import tempfile
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import threadpoolctl

from dynkhydra_tf import cli, figures
from dynkhydra_tf.benchmark.results import TURN, read_results
from dynkhydra_tf.errors import UserError
from dynkhydra_tf.fields import Checked, setting
from dynkhydra_tf.files import check_writable, write_json
from dynkhydra_tf.tables import table

SECTIONS = ("inference", "equal_accuracy", "edge", "growth", "training", "input")


@dataclasses.dataclass(frozen=True)
class Options(Checked):
    """The flags of this command."""

    depth: int = setting(3, "d of the network in inference.", least=1)
    num_branches: int = setting(20, "nb of the network in inference.", least=4)
    active: tuple[int, ...] = setting(
        (1, 2, 4), "lambda: how many branches an image runs, 1 to 4.", least=1, most=4
    )
    batch_sizes: tuple[int, ...] = setting((1, 8, 64), "Images in a request.", least=1)
    threads: tuple[int, ...] = setting((1, 2), "Threads of the server.", least=1)
    runs: str = setting(
        "docs/runs",
        "Directory of runs, or of what `runs.keep` kept of them, that have measured the accuracies in "
        "equal_accuracy.",
        path=True,
    )
    run_taus: tuple[float, ...] = setting(
        (0.08, 0.15, 0.3), "Thresholds in equal_accuracy, besides each Hydra's own.", least=0, below=1
    )
    growth_depths: tuple[int, ...] = setting(
        (3, 1, 5), "d of the networks in growth; the first with each nb.", least=1
    )
    growth_branches: tuple[int, ...] = setting(
        (20, 10, 50, 100), "nb in growth; the first with each d.", least=1
    )
    training_depths: tuple[int, ...] = setting((1, 3), "d in training; the first with each nb.", least=1)
    training_branches: tuple[int, ...] = setting(
        (20, 10, 50), "nb in training; the first with each d.", least=1
    )
    training_batch_size: int = setting(128, "Images in a training step.", least=1)
    training_steps: int = setting(6, "Training steps of each kind.", least=1)
    seconds: float = setting(10.0, "At least so long for each comparison.", least=0)
    onednn: tuple[str, ...] = setting(
        ("on", "off"),
        "Inference and growth with oneDNN, without, or as TensorFlow decides by the processor (default).",
        choices=("on", "off", "default"),
    )
    output_dir: str = setting("benchmark_results", "Where benchmark.json goes.", path=True)
    compare: str | None = setting(None, "An older benchmark.json.", path=True)

    def check(self) -> None:
        """Checks that no list is empty."""
        for field in dataclasses.fields(self):
            if getattr(self, field.name) == ():
                raise UserError(f"{field.name} must name at least one number. Received: none")


def main(options: Options, sections: Sequence[str]) -> None:
    """Runs the sections named, or all."""
    # Only now: they load Keras, which --help can do without.
    from dynkhydra_tf.benchmark import equal_accuracy, inference, training
    from dynkhydra_tf.benchmark.environment import describe

    unknown = [section for section in sections if section not in SECTIONS]
    if unknown:
        raise UserError(f"There are the sections {', '.join(SECTIONS)}. Received: {' '.join(unknown)}")
    trained: list[dict[str, Any]] = []
    try:
        if "equal_accuracy" in (sections or SECTIONS):
            trained = equal_accuracy.trained(options.runs, options.run_taus)
    except UserError as error:
        if sections:
            raise
        print(f"Without equal_accuracy: {error}")
    sections = sections or [section for section in SECTIONS if trained or section != "equal_accuracy"]
    active, batch_sizes = options.active, options.batch_sizes
    older = read_results(options.compare, "compare", "benchmark.json", _timings) if options.compare else None
    check_writable(options.output_dir, "output_dir")

    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]  # each table as soon as it is measured, in a file too
    environment = describe(",".join(options.onednn))
    print(", ".join(f"{key} {value}" for key, value in environment.items()))
    limits = machine_limits()
    print(", ".join(f"{key} {value:.0f}" for key, value in limits.items()))
    results: dict[str, Any] = {"environment": environment, "limits": limits, "minutes": {}}
    network, usual = (options.depth, options.num_branches), inference.usual(active)
    with tempfile.TemporaryDirectory() as folder:
        measure = {
            "inference": lambda: inference.against_limit(
                folder, *network, active, batch_sizes, options.threads, options.onednn, options.seconds
            ),
            "equal_accuracy": lambda: equal_accuracy.against_plain(
                folder, trained, batch_sizes, options.threads, options.onednn, options.seconds
            ),
            "edge": lambda: inference.edge_runtimes(folder, *network, usual, batch_sizes, options.seconds),
            "growth": lambda: inference.growth(
                folder, options.growth_depths, options.growth_branches, options.seconds, options.onednn
            ),
            "training": lambda: training.training_steps(
                options.training_depths,
                options.training_branches,
                options.training_batch_size,
                options.training_steps,
            ),
            "input": lambda: training.input_pipeline(
                options.training_batch_size, 200, next(iter(results.get("training", [])), None)
            ),
        }
        for section in filter(sections.__contains__, SECTIONS):
            start = time.perf_counter()
            results[section] = measure[section]()
            results["minutes"][section] = (time.perf_counter() - start) / 60
    path = pathlib.Path(options.output_dir) / "benchmark.json"
    write_json(path, results)
    if "inference" in results:
        for count, told in itertools.product(options.threads, options.onednn):
            rows = [row for row in results["inference"] if (row["threads"], row["onednn"]) == (count, told)]
            figures.save_inference_times(rows, path.with_name(f"inference_{count}_onednn_{told}.png"))
    written = ", ".join(str(file) for file in sorted(path.parent.glob("*.*")))
    took = ", ".join(f"{section} {minutes:.1f}" for section, minutes in results["minutes"].items())
    print(f"\nMinutes: {took}\nWritten: {written}")
    if older:
        print("\n" + slower_or_faster(older, results))


def slower_or_faster(older: dict, newer: dict) -> str:
    """Returns what became slower or faster, beyond the quartiles of both, as text.

    Args:
        older, newer: contents of two benchmark.json. What only one of them has is left out, and inference
            where their models did not take turns alike.
    """
    before, after = _timings(older), _timings(newer)
    both = [what for what in after if what in before]
    if not both:
        return "Nothing was measured in both runs."
    rows = [["", "older ms", "newer ms", ""]]
    for what in both:
        then, now = before[what], after[what]
        if now["low"] > then["high"] or now["high"] < then["low"]:
            verdict = "SLOWER" if now["ms"] > then["ms"] else "faster"
            rows.append([what, f"{then['ms']:.2f}", f"{now['ms']:.2f}", verdict])
    if len(rows) == 1:
        return f"None of {len(both)} times changed beyond the quartiles of both runs."
    return table(rows, text_columns=(0, 3))


def _timings(results):
    """{what: {"ms", "low", "high"}} of all sections of a benchmark.json."""
    found = {}
    environment = results.get("environment", {})
    # Once it was one setting for a whole file, and for growth the first of several.
    usual = environment.get("oneDNN in inference", "default").partition(",")[0]
    turns = f"turns of {environment.get(TURN, 'one request')}"
    for section in ("inference", "equal_accuracy", "edge"):
        for row in results.get(section, []):
            told = "" if section == "edge" else f", oneDNN {row.get('onednn', usual)}"
            told += f", {row['runtime']}" if "runtime" in row else ""
            where = f"{section}, {turns}, threads {row['threads']}{told}, batch {row['batch_size']}"
            found |= {f"{where}: {name}": times for name, times in row["subjects"].items()}
    for row in results.get("growth", []):
        told = f"oneDNN {row.get('onednn', usual)}"
        where = f"growth, {turns}, {told}, d={row['depth']}, nb={row['num_branches']}"
        found |= {f"{where}, batch {size}": times for size, times in row["batches"].items()}
    for row in results.get("training", []):
        where = f"training, d={row['depth']}, nb={row['num_branches']}, batch {row['batch_size']}"
        found |= {f"{where}: {name}": times for name, times in row["steps"].items()}
    if "input" in results:
        found[f"input, batch {results['input']['batch_size']}"] = results["input"]
    return found


def machine_limits(size: int = 2048, turns: int = 7) -> dict[str, float]:
    """Returns what the machine can do at best: GFLOP/s of a float32 matrix product, GB/s of a copy."""
    rng = np.random.default_rng(0)
    left, right = (rng.random((size, size), np.float32) for _ in range(2))
    megabytes = np.zeros(256 * 2**20, np.uint8)

    def best(run):
        times = []
        for _ in range(turns):
            start = time.perf_counter()
            run()
            times.append(time.perf_counter() - start)
        return min(times)

    with threadpoolctl.threadpool_limits(1):
        one = 2e-9 * size**3 / best(lambda: left @ right)
    return {
        "matrix product, 1 thread, GFLOP/s": one,
        "all threads, GFLOP/s": 2e-9 * size**3 / best(lambda: left @ right),
        "copy, GB/s": 1e-9 * megabytes.nbytes / best(megabytes.copy),
    }


if __name__ == "__main__":
    cli.run(main, Options, positional="sections", at_least=0)
