"""Accuracy over measured milliseconds: trained Hydras at many thresholds beside trained plain networks.

    python -m dynkhydra_tf.benchmark.latency runs/cifar100 runs/cifar100_plain --taus=0,0.05,0.1,0.2,0.5

Accuracy and lambda are those of the whole test split, the time that of some of its images, evenly spaced over
the split, in a process of its own for each runtime: the networks take turns, each at each tau answers all of
them in its turn, as in a server that has no other model, again and again, so that what slows the machine down
for a while slows all alike. TensorFlow answers through its C API (the loader of TensorFlow Serving),
ONNX Runtime from Python. A Hydra is timed as `export.py` serves it, checks and labels included, a plain
network without these; both have their batch normalisation folded. Runs that differ in their seeds alone are
one network: its accuracy is their mean, its time the first one's; in int8 both are the first one's, and
accuracy and lambda those of the quantised file.
"plain ms" is what a plain network of a Hydra's measured accuracy takes, on the line between two plain runs.
Writes latency.json, latency.csv and latency.png into --output_dir; `--redraw=latency.json` draws the
picture again, without the runs.
"""

import dataclasses
import itertools
import os
import pathlib
import statistics
import tempfile
from collections.abc import Sequence
from typing import Any

import numpy as np

from dynkhydra_tf import cli, figures
from dynkhydra_tf.benchmark.results import read_results
from dynkhydra_tf.errors import UserError
from dynkhydra_tf.fields import Checked, changed, setting
from dynkhydra_tf.files import check_writable, write_csv, write_json
from dynkhydra_tf.runs import EvaluationFile
from dynkhydra_tf.settings import length_text
from dynkhydra_tf.tables import number, table


@dataclasses.dataclass(frozen=True)
class Options(Checked):
    """The flags of this command."""

    taus: tuple[float, ...] = setting(
        (0.0, 0.05, 0.1, 0.2, 0.3, 0.5), "Thresholds, besides each Hydra's own.", least=0, below=1
    )
    batch_sizes: tuple[int, ...] = setting((1,), "Images in a request; a panel of the picture each.", least=1)
    runtimes: tuple[str, ...] = setting(
        ("tensorflow",),
        "tensorflow, onnx, onnx_int8 (quantised): what answers.",
        choices=("tensorflow", "onnx", "onnx_int8"),
    )
    threads: int = setting(1, "Threads of the server.", least=1)
    seconds: float = setting(
        30.0, "Measure at least so long each batch size and runtime, and five rounds.", least=0
    )
    onednn: str = setting(
        "default",
        "Whether TensorFlow answers with oneDNN; default: as it decides by the processor.",
        choices=("default", "on", "off"),
    )
    redraw: str | None = setting(None, "A latency.json to draw again; nothing is measured.", path=True)
    data_dir: str | None = setting(None, "Where the data set lies; default: as in the first run.", path=True)
    output_dir: str | None = setting(
        None, "Where to write; default: evaluation/ in the first run.", path=True
    )


def main(options: Options, paths: Sequence[str]) -> None:
    """Measures the runs, prints the table and writes it.

    Args:
        options: the flags.
        paths: run directories; none with --redraw.
    """
    if bool(paths) == bool(options.redraw):
        raise UserError(f"Give runs to measure, or --redraw alone. Received: {' '.join(paths) or 'no run'}")
    if options.redraw:
        results = read_results(
            options.redraw, "redraw", "latency.json", lambda found: latency_text(found["rows"])
        )
        output = pathlib.Path(options.output_dir or pathlib.Path(options.redraw).parent)
    else:
        results, output = measure(options, paths)
        write_json(output / EvaluationFile.LATENCY_RESULTS, results)
        write_csv(output / EvaluationFile.LATENCY_ROWS, results["rows"])
    environment = ", ".join(f"{key} {value}" for key, value in results["environment"].items())
    print(f"{results['dataset']}, threads {results['threads']}\n{environment}\n")
    print(latency_text(results["rows"]))
    draw(results, output / EvaluationFile.LATENCY)
    files = (EvaluationFile.LATENCY_RESULTS, EvaluationFile.LATENCY_ROWS, EvaluationFile.LATENCY)
    written = ", ".join(files[2:] if options.redraw else files)
    print(f"\nWritten to {output}: {written}")


def measure(options: Options, paths: Sequence[str]) -> tuple[dict[str, Any], pathlib.Path]:
    """Returns the content of latency.json, and the directory to write to."""
    # Only now: they load Keras, which --help can do without.
    from dynkhydra_tf.benchmark import timing
    from dynkhydra_tf.benchmark.environment import describe
    from dynkhydra_tf.data import open_data, some_images
    from dynkhydra_tf.serving.samples import CALIBRATION_IMAGES

    # === What to measure: all that can be wrong is found before any long work ===
    runs = timing.open_runs(paths)
    first = next(iter(runs.values()))
    output = pathlib.Path(options.output_dir or first.evaluation)
    check_writable(output, "output_dir")
    models = {name: run.load_model() for name, run in runs.items()}
    place = {"data_dir": options.data_dir} if options.data_dir else {}
    data = open_data(
        changed(first.settings.data, validation_fraction=0.0, **place), first.settings.place.cache_dir
    )
    for run in runs.values():
        run.check_data(data)
    images = {size: timing.timed_images(data, size) for size in options.batch_sizes}
    int8 = "onnx_int8" in options.runtimes
    calibration = some_images(data, "train", CALIBRATION_IMAGES)[0] if int8 else None

    # === Accuracy ===
    found: dict[str, list[dict[str, Any]]] = {}
    for name, same in timing.networks(runs).items():
        optimisation = runs[name].settings.optimisation
        trained = {
            "epochs": optimisation.epochs,
            "schedule": optimisation.schedule,
            "train_images": runs[name].sizes.get("train"),
            "seeds": len(same),
        }
        taus = _taus(models[name], options.taus)
        by_seed = [timing.accuracy_rows(runs[each], models[each], data, taus) for each in same]
        found[name] = [
            {
                "run": name,
                **trained,
                **{key: _mean([row[key] for row in of_seeds]) for key in of_seeds[0]},
                "top1_deviation": _deviation(of_seeds),
            }
            for of_seeds in zip(*by_seed, strict=True)
        ]

    # === Exports, then all times of a runtime together ===
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        exported = {
            (runtime, name): timing.export(
                models[name],
                _taus(models[name], options.taus),
                os.path.join(folder, f"{runtime}-{number}"),
                runtime,
                calibration,
            )
            for runtime in options.runtimes
            for number, name in enumerate(found)
        }
        quantised = {
            place: timing.onnx_row(place, data, options.threads) | {"seeds": 1, "top1_deviation": None}
            for (runtime, _), places in exported.items()
            if runtime == "onnx_int8"
            for place in places.values()
        }
        # What Keras says is the same for each runtime.
        answered = {
            (size, name): timing.subjects_of(models[name], exported[options.runtimes[0], name], timed)
            for size, timed in images.items()
            for name in found
        }
        # Each runtime in a process of its own: the first network after a change of runtime would pay for it.
        for (size, timed), runtime in itertools.product(images.items(), options.runtimes):
            subjects, measured = {}, {}
            for name in found:
                places = exported[runtime, name]
                for row in found[name]:
                    tau = row["tau"]
                    key = f"{runtime}: {name}" + ("" if tau is None else f", tau {tau:g}")
                    subject = answered[size, name][tau]._replace(place=places[tau])
                    if subject.place in quantised:
                        row, subject = row | quantised[subject.place], subject._replace(probabilities=None)
                    subjects[key] = subject
                    asked = {"runtime": runtime, "batch_size": size}
                    measured[key] = asked | row | {"timed_active_branches": subject.active_branches}
            times = timing.measure(subjects, timed, size, options.threads, options.seconds, options.onednn)
            rows += [row | times[key] for key, row in measured.items()]
    results = {
        "dataset": data.name,
        "threads": options.threads,
        "images": {str(size): len(timed) for size, timed in images.items()},
        "environment": describe(options.onednn),
        "rows": rows,
    }
    return results, output


def draw(results: dict[str, Any], path: pathlib.Path) -> None:
    """Draws the content of latency.json."""
    rows, processor = results["rows"], results["environment"]["processor"]
    heading = f"Accuracy over measured time: {results['dataset']}, threads {results['threads']}\n{processor}"
    lengths = {row["run"]: length_text(row["epochs"], row["schedule"]) for row in rows}
    if len(set(lengths.values())) == 1:
        heading = f"{heading}\nTrained for {lengths[rows[0]['run']]}"
    else:
        rows = [row | {"run": f"{row['run']}: {lengths[row['run']]}"} for row in rows]
    figures.save_latency(rows, heading, path)


def plain_of_equal_accuracy(row: dict[str, Any], rows: Sequence[dict]) -> tuple[float | None, float | None]:
    """Returns the least and the most ms per image of a plain network that is as accurate as a row says.

    Those of the rows count that were trained for as long on as many images, and timed in the same way.
    Between two of them the time is on the straight line: (t, t). More accurate than all is (their best one's,
    None), less is (None, their worst one's), and without any, or for a plain network's own row, it is (None,
    None).
    """
    alike = ("runtime", "batch_size", "epochs", "schedule", "train_images")
    plain = [
        (other["ms"], other["top1"])
        for other in rows
        if other["tau"] is None and all(other.get(key) == row.get(key) for key in alike)
    ]
    # One that is slower and no more accurate than another is none that a user would take.
    line = [(ms, top1) for ms, top1 in plain if all(top1 > best for time, best in plain if time < ms)]
    if row["tau"] is None or not line:
        return None, None
    ms, top1 = zip(*sorted(line), strict=True)
    if row["top1"] > top1[-1]:
        return ms[-1], None
    if row["top1"] < top1[0]:
        return None, ms[0]
    found = float(np.interp(row["top1"], top1, ms))
    return found, found


def latency_text(rows: Sequence[dict]) -> str:
    """Returns the rows of latency.json as text in aligned columns."""
    header = ["run", "runtime", "batch", "epochs", "schedule", "tau", "lambda", "of those timed", "top-1"]
    cells = [[*header, "+- (seeds)", "MFLOPs", "ms per image", "quartiles", "CPU ms", "plain ms"]]
    for row in rows:
        branches = [number(row[key], ".2f") for key in ("active_branches", "timed_active_branches")]
        measured = [f"{row['ms']:.3f}", f"{row['low']:.3f} - {row['high']:.3f}", f"{row['cpu']:.3f}"]
        measured.append(bounds_text(*plain_of_equal_accuracy(row, rows)))
        spread = "-" if row["top1_deviation"] is None else f"{row['top1_deviation']:.2%}"
        cost = [f"{row['top1']:.2%}", f"{spread} ({row['seeds']})", f"{row['flops'] / 1e6:.1f}"]
        trained = [str(row["batch_size"]), str(row["epochs"]), row["schedule"]]
        asked = [row["run"], row["runtime"], *trained, number(row["tau"], "g")]
        cells.append([*asked, *branches, *cost, *measured])
    return table(cells, text_columns=(0, 1, 4))


def bounds_text(least: float | None, most: float | None, form: str = ".3f") -> str:
    """Returns what `plain_of_equal_accuracy` gives as text: "-" where there is neither bound."""
    if least is None:
        return "-" if most is None else f"< {most:{form}}"
    return f"> {least:{form}}" if most is None else f"{least:{form}}"


def _taus(model, taus):
    """The thresholds to measure a network at: none for a plain one."""
    return sorted({model.tau, *taus}) if hasattr(model, "tau") else []


def _mean(values):
    return None if values[0] is None else statistics.fmean(values)


def _deviation(rows):
    """The standard deviation of top-1 over seeds; None of a single one."""
    return statistics.stdev(row["top1"] for row in rows) if len(rows) > 1 else None


if __name__ == "__main__":
    cli.run(main, Options, positional="runs", at_least=0)
