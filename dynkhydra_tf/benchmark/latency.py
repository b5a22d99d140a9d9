"""Accuracy over measured milliseconds: trained Hydras at many thresholds beside trained plain networks.

    python -m dynkhydra_tf.benchmark.latency runs/cifar100 runs/cifar100_plain --taus=0,0.05,0.1,0.2,0.5

Accuracy and lambda are those of the whole test split, the time that of some of its images, evenly spaced
over the split, through TensorFlow's C API (the loader of TensorFlow Serving) in a process of its own: every
image is answered by each network at each tau in turn, again and again, so that what slows the machine down
for a while slows all alike. A Hydra is timed as `export.py` serves it, checks and labels included, a plain
network without these; both have their batch normalisation folded. Writes latency.json, latency.csv and
latency.png into --output_dir. B is the batch axis; images are (B, S, S, 3) uint8.
"""

import dataclasses
import os
import pathlib
import tempfile
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from dynkhydra_tf import cli, figures
from dynkhydra_tf.benchmark.environment import describe
from dynkhydra_tf.benchmark.inference import run_job, summarise
from dynkhydra_tf.benchmark.subjects import export_hydra_at, export_network
from dynkhydra_tf.costs import hydra_costs, plain_costs
from dynkhydra_tf.data import ImageData, evaluation_batches, find_entry, open_data
from dynkhydra_tf.errors import UserError
from dynkhydra_tf.evaluation import evaluate, evaluate_plain
from dynkhydra_tf.fields import Checked, changed, setting
from dynkhydra_tf.files import check_writable, write_csv, write_json
from dynkhydra_tf.hydra import Hydra
from dynkhydra_tf.plain import Plain
from dynkhydra_tf.runs import EvaluationFile, FinishedRun
from dynkhydra_tf.serving.reference import TOLERANCE
from dynkhydra_tf.settings import DataSettings, length_text
from dynkhydra_tf.tables import number, table

IMAGES = 256  # timed at batch 1; their mean lambda is within about 3 % of the split's


def open_runs(paths: Iterable[str]) -> dict[str, FinishedRun]:
    """Opens runs, each path once.

    Returns:
        The runs by their names, or by their paths where two runs have one name.

    Raises:
        UserError: a directory without a run, or runs of different test images.
    """
    paths = {os.path.realpath(path): path for path in map(os.path.expanduser, paths)}.values()
    runs = [FinishedRun.open(path) for path in paths]
    names = [run.name for run in runs]
    first = runs[0]
    for run in runs[1:]:
        of_first = image_source(first.settings.data)
        for key, value in image_source(run.settings.data).items():
            if value != of_first[key]:
                raise UserError(
                    "All runs must have the same test images. Received: "
                    f"{key}={of_first[key]} in {first.path}, {key}={value} in {run.path}"
                )
    return {run.name if names.count(run.name) == 1 else str(run.path): run for run in runs}


def image_source(data: DataSettings) -> dict[str, str | int | float | None]:
    """Returns what tells a test split from others, defaults filled in."""
    entry = find_entry(data.dataset)
    return {
        "dataset": data.dataset,
        "image_size": data.image_size or entry.image_size,
        "fit": data.fit or entry.fit,
        "test_fraction": data.test_fraction,
        "data_dir": data.data_dir and os.path.realpath(data.data_dir) if data.dataset == "folder" else None,
    }


# === Accuracy ===


def accuracy_rows(
    run: FinishedRun, model: Hydra | Plain, data: ImageData, taus: Sequence[float]
) -> list[dict[str, float | None]]:
    """Returns what a network does on the test split; from the run's evaluation where it is there.

    Args:
        run: the run. model: its network. data: with the test split. taus: for a Hydra.

    Returns:
        list of dicts tau, active_branches (None for a plain network), top1, flops; a row for each tau.
    """
    done = run.results_on(data.name, "test")
    if isinstance(model, Plain):
        results = done if "top1" in done else evaluate_plain(model, evaluation_batches(data, "test", 256))
        flops = plain_costs(model.backbone, model.num_classes)["flops"]
        return [{"tau": None, "active_branches": None, "top1": results["top1"], "flops": flops}]
    by_tau = {row["tau"]: row for row in done.get("tau_table", [])}
    if not by_tau.keys() >= set(taus):
        evaluation = evaluate(model, evaluation_batches(data, "test", 256), taus)
        by_tau = {row["tau"]: row for row in evaluation.tau_table(hydra_costs(model)["flops"])}
    return [{key: by_tau[tau][key] for key in ("tau", "active_branches", "top1", "flops")} for tau in taus]


# === Time ===


def timed_images(data: ImageData, batch_size: int) -> np.ndarray:
    """Returns the test images to time, evenly spaced over the split: (requests batch_size, S, S, 3) uint8.

    About `IMAGES` of them, in at least 8 requests.

    Raises:
        UserError: the split has fewer than two such batches.
    """
    size = data.sizes["test"]
    requests = min(max(8, IMAGES // batch_size), size // batch_size)
    if requests < 2:
        raise UserError(
            f"--batch_size must be at most {size // 2}, half of the test images. Received: {batch_size}"
        )
    wanted = np.linspace(0, size - 1, requests * batch_size).round().astype(int)
    chosen, start = [], 0
    for images, _ in evaluation_batches(data, "test", 256):
        chosen.append(images.numpy()[wanted[(wanted >= start) & (wanted < start + len(images))] - start])
        start += len(images)
    return np.concatenate(chosen)


class Subject(NamedTuple):
    """An export to be timed, and what Keras says it must answer.

    Attributes:
        place: (directory, signature).
        active_branches: float, lambda of the timed images; None for a plain network.
        probabilities: (n, M) float32, of the first images.
    """

    place: tuple[str, str]
    active_branches: float | None
    probabilities: np.ndarray


def export_subjects(
    model: Hydra | Plain, taus: Sequence[float], images: np.ndarray, directory: str
) -> dict[float | None, Subject]:
    """Exports a network to be timed: a Hydra with a signature for each tau, since serving_default has one.

    Args:
        model: the network. taus: for a Hydra. images: (n, S, S, 3) uint8, those to be timed.
        directory: where to export to.

    Returns:
        {tau: `Subject`}; of a plain network {None: `Subject`}.
    """
    parts = np.split(images, range(64, len(images), 64))  # 64: so many answers the timing gives back
    if isinstance(model, Plain):
        export_network(model, directory)
        answer = tf.nn.softmax(model.for_inference()(parts[0])["logits"]).numpy()
        return {None: Subject((directory, "serving_default"), None, answer)}
    model, subjects = model.for_inference(), {}
    for tau, signature in export_hydra_at(model, directory, taus).items():
        answers = [model(part, tau=tau) for part in parts]
        active = sum(int(np.sum(answer["selected"])) for answer in answers) / len(images)
        probabilities = tf.nn.softmax(answers[0]["logits"]).numpy()
        subjects[tau] = Subject((directory, signature), active, probabilities)
    return subjects


def measure(
    subjects: dict[str, Subject],
    images: np.ndarray,
    batch_size: int,
    threads: int,
    seconds: float,
    onednn: bool = False,
) -> dict[str, dict[str, float]]:
    """Times exports in turn.

    Args:
        subjects: by name.
        images: (requests batch_size, S, S, 3) uint8.
        batch_size: images in a request. threads: of the server. seconds: at least so long for all together.
        onednn: whether TensorFlow answers with oneDNN.

    Returns:
        {name: {"ms", "low", "high"}}: ms per image, the mean over the requests of the median over the rounds,
        and of the quartiles.

    Raises:
        UserError: an export does not answer as the Keras model does.
    """
    places = {key: subject.place for key, subject in subjects.items()}
    result = run_job(places, images, [batch_size], threads, seconds, len(images) // batch_size, onednn)
    for key, subject in subjects.items():
        errors = np.abs(result["answers"][key]["probabilities"] - subject.probabilities).max(axis=1)
        # All images but one: a gate probability may lie at tau so closely that rounding decides.
        error = np.sort(errors)[-2]
        if not error <= TOLERANCE:
            raise UserError(
                f"The export of {key} differs from its Keras model by {error:g}; nothing is written"
            )
    summary = summarise(result["times_ms"][batch_size], next(iter(subjects)))
    return {
        key: {name: numbers[name] / batch_size for name in ("ms", "low", "high")}
        for key, numbers in summary.items()
    }


# === The command ===


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
    # === What to measure: all that can be wrong is found before any long work ===
    runs = open_runs(paths)
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
    images = timed_images(data, options.batch_size)

    # === Accuracy and exports, then all times together ===
    rows, subjects = {}, {}
    with tempfile.TemporaryDirectory() as folder:
        for number_of_run, (name, run) in enumerate(runs.items()):
            model, optimisation = models[name], run.settings.optimisation
            trained = {"epochs": optimisation.epochs, "schedule": optimisation.schedule}
            taus = [] if isinstance(model, Plain) else sorted({model.tau, *options.taus})
            exported = export_subjects(model, taus, images, os.path.join(folder, str(number_of_run)))
            for row in accuracy_rows(run, model, data, taus):
                key = name if row["tau"] is None else f"{name}, tau {row['tau']:g}"
                subjects[key] = exported[row["tau"]]
                active = subjects[key].active_branches
                rows[key] = {"run": name, **trained, **row, "timed_active_branches": active}
        times = measure(
            subjects, images, options.batch_size, options.threads, options.seconds, options.onednn
        )
    rows = [row | times[key] for key, row in rows.items()]

    # === Print, write ===
    setting = {"batch_size": options.batch_size, "threads": options.threads, "images": len(images)}
    environment = describe(options.onednn)
    title = f"{data.name}, batch {options.batch_size}, threads {options.threads}"
    print(f"{title}, {len(images)} images timed\n" + ", ".join(f"{k} {v}" for k, v in environment.items()))
    print(f"\n{latency_text(rows)}")
    write_json(
        output / EvaluationFile.LATENCY_RESULTS,
        {"dataset": data.name, **setting, "environment": environment, "rows": rows},
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
