"""Accuracy over measured milliseconds: trained Hydras at many thresholds beside trained plain networks.

    python -m dynkhydra_tf.benchmark.latency runs/cifar100 runs/cifar100_plain --taus=0,0.05,0.1,0.2,0.5

Accuracy and lambda are those of the whole test split, the time that of some of its images, evenly spaced
over the split, through TensorFlow's C API (the loader of TensorFlow Serving) in a process of its own: every
image is answered by each network at each tau in turn, again and again, so that what slows the machine down
for a while slows all alike. A Hydra is timed as `export.py` serves it, checks and labels included, a plain
network without these; both have their batch normalisation folded. Writes latency.json, latency.csv and
latency.png into --output_dir.
"""

import dataclasses
import os
import pathlib
import tempfile
from collections.abc import Sequence
from typing import Any

from dynkhydra_tf import cli, figures
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
    batch_size: int = setting(1, "Images in a request.", least=1)
    threads: int = setting(1, "Threads of the server.", least=1)
    seconds: float = setting(30.0, "Measure at least so long, and five rounds.", least=0)
    onednn: bool = setting(False, "Measure with TF_ENABLE_ONEDNN_OPTS=1.")
    data_dir: str | None = setting(None, "Where the data set lies; default: as in the first run.", path=True)
    output_dir: str | None = setting(
        None, "Where to write; default: evaluation/ in the first run.", path=True
    )


def main(options: Options, paths: Sequence[str]) -> None:
    """Measures the runs, prints the table and writes it.

    Args:
        options: the flags.
        paths: run directories.
    """
    # Only now: they load Keras, which --help can do without.
    from dynkhydra_tf.benchmark import timing
    from dynkhydra_tf.benchmark.environment import describe
    from dynkhydra_tf.data import open_data

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
    images = timing.timed_images(data, options.batch_size)

    # === Accuracy and exports, then all times together ===
    by_key: dict[str, dict[str, Any]] = {}
    subjects: dict[str, timing.Subject] = {}
    with tempfile.TemporaryDirectory() as folder:
        for number_of_run, (name, run) in enumerate(runs.items()):
            model, optimisation = models[name], run.settings.optimisation
            trained = {"epochs": optimisation.epochs, "schedule": optimisation.schedule}
            plain = run.settings.network.system == "plain"
            taus = [] if plain else sorted({model.tau, *options.taus})
            exported = timing.export_subjects(model, taus, images, os.path.join(folder, str(number_of_run)))
            for row in timing.accuracy_rows(run, model, data, taus):
                key = name if row["tau"] is None else f"{name}, tau {row['tau']:g}"
                subjects[key] = exported[row["tau"]]
                active = subjects[key].active_branches
                by_key[key] = {"run": name, **trained, **row, "timed_active_branches": active}
        times = timing.measure(
            subjects, images, options.batch_size, options.threads, options.seconds, options.onednn
        )
    rows = [row | times[key] for key, row in by_key.items()]

    # === Print, write ===
    requests = {"batch_size": options.batch_size, "threads": options.threads, "images": len(images)}
    environment = describe(options.onednn)
    title = f"{data.name}, batch {options.batch_size}, threads {options.threads}"
    print(f"{title}, {len(images)} images timed\n" + ", ".join(f"{k} {v}" for k, v in environment.items()))
    print(f"\n{latency_text(rows)}")
    write_json(
        output / EvaluationFile.LATENCY_RESULTS,
        {"dataset": data.name, **requests, "environment": environment, "rows": rows},
    )
    write_csv(output / EvaluationFile.LATENCY_ROWS, rows)
    heading = f"Accuracy over measured time: {title}\n{environment['processor']}"
    lengths = {row["run"]: length_text(row["epochs"], row["schedule"]) for row in rows}
    if len(set(lengths.values())) == 1:
        heading, drawn = f"{heading}\nTrained for {lengths[rows[0]['run']]}", rows
    else:
        drawn = [row | {"run": f"{row['run']}: {lengths[row['run']]}"} for row in rows]
    figures.save_latency(drawn, heading, output / EvaluationFile.LATENCY)
    written = (EvaluationFile.LATENCY_RESULTS, EvaluationFile.LATENCY_ROWS, EvaluationFile.LATENCY)
    print(f"\nWritten to {output}: {', '.join(written)}")


def latency_text(rows: Sequence[dict]) -> str:
    """Returns the rows of latency.json as text in aligned columns."""
    header = ["run", "epochs", "schedule", "tau", "lambda", "of those timed", "top-1", "MFLOPs"]
    cells = [[*header, "ms per image", "quartiles"]]
    for row in rows:
        branches = [number(row[key], ".2f") for key in ("active_branches", "timed_active_branches")]
        measured = [f"{row['ms']:.3f}", f"{row['low']:.3f} - {row['high']:.3f}"]
        cost = [f"{row['top1']:.2%}", f"{row['flops'] / 1e6:.1f}"]
        trained = [str(row["epochs"]), row["schedule"]]
        cells.append([row["run"], *trained, number(row["tau"], "g"), *branches, *cost, *measured])
    return table(cells, text_columns=(0, 2))


if __name__ == "__main__":
    cli.run(main, Options, positional="runs")
