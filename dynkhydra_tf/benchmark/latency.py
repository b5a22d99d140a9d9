"""Accuracy over measured milliseconds: trained Hydras at many thresholds beside trained plain networks.

    python -m dynkhydra_tf.benchmark.latency runs/cifar100 runs/cifar100_plain --taus=0,0.05,0.1,0.2,0.5

Accuracy and lambda are those of the whole test split, the time that of some of its images, evenly spaced
over the split, through TensorFlow's C API (the loader of TensorFlow Serving) in a process of its own: every
image is answered by each network at each tau in turn, again and again, so that what slows the machine down
for a while slows all alike. A Hydra is timed as `export.py` serves it, checks and labels included, a plain
network without these; both have their batch normalisation folded. Writes latency.json, latency.csv and
latency.png into --output_dir. B is the batch axis; images are (B, S, S, 3) uint8.
"""

import json
import os
import pathlib
import tempfile
from typing import NamedTuple

import dynkhydra_tf  # noqa: F401 - first, for it sets what TensorFlow reads when it is imported

# isort: split
import numpy as np
import tensorflow as tf
from absl import flags

from dynkhydra_tf import cli, figures
from dynkhydra_tf.benchmark.environment import describe
from dynkhydra_tf.benchmark.inference import run_job, summarise
from dynkhydra_tf.benchmark.subjects import export_hydra_at, export_network
from dynkhydra_tf.costs import hydra_costs, plain_costs
from dynkhydra_tf.data import evaluation_batches, find_entry, load_data
from dynkhydra_tf.errors import UserError
from dynkhydra_tf.evaluation import check_images, evaluate, evaluate_plain, load_network, read_taus
from dynkhydra_tf.files import check_writable, write_csv, write_json
from dynkhydra_tf.old_flags import data_settings, read_flags
from dynkhydra_tf.plain import Plain
from dynkhydra_tf.serving.reference import TOLERANCE
from dynkhydra_tf.tables import number, table

IMAGES = 256  # timed at batch 1; their mean lambda is within about 3 % of the split's


class Run(NamedTuple):
    """A run directory and its training flags.

    Attributes:
        name: str, its last part, or all of it where two runs share that.
        path: `pathlib.Path`.
        flags: `absl.flags.FlagValues`.
    """

    name: str
    path: pathlib.Path
    flags: flags.FlagValues

    @property
    def images(self):
        """What tells its test split from others, as a dict of flags, defaults filled in."""
        entry, settings = find_entry(self.flags.dataset), data_settings(self.flags)
        keys = ("name", "image_size", "fit", "test_fraction")
        chosen = {key: settings[key] or getattr(entry, key, None) for key in keys}
        folder = settings["data_dir"] if self.flags.dataset == "folder" else None
        return chosen | {"data_dir": folder and os.path.realpath(os.path.expanduser(folder))}


def open_runs(paths):
    """Reads the flags of runs, each path once.

    Args:
        paths: list of str.

    Returns:
        list of `Run`.

    Raises:
        UserError: a directory without flags.cfg, or runs of different data sets.
    """
    paths = list({os.path.realpath(path): path for path in map(os.path.expanduser, paths)}.items())
    names = [os.path.basename(real) for real, _ in paths]
    runs = []
    for name, (_, path) in zip(names, paths, strict=True):
        path = pathlib.Path(path)
        runs.append(Run(name if names.count(name) == 1 else str(path), path, read_flags(path / "flags.cfg")))
    for run in runs[1:]:
        for key, value in run.images.items():
            if value != runs[0].images[key]:
                raise UserError(
                    "All runs must have the same test images. Received: "
                    f"{key}={runs[0].images[key]} in {runs[0].path}, {key}={value} in {run.path}"
                )
    return runs


# === Accuracy ===


def accuracy_rows(run, model, data, taus):
    """Returns what a network does on the test split; from RUN/evaluation/evaluation.json where it is there.

    Args:
        run: `Run`. model: its `Hydra` or `Plain`. data: `ImageData`. taus: floats, for a Hydra.

    Returns:
        list of dicts tau, active_branches (None for a plain network), top1, flops; a row for each tau.
    """
    done = _evaluated(run, data)
    if isinstance(model, Plain):
        results = done if "top1" in done else evaluate_plain(model, evaluation_batches(data, "test", 256))
        flops = plain_costs(model.backbone, model.num_classes)["flops"]
        return [{"tau": None, "active_branches": None, "top1": results["top1"], "flops": flops}]
    by_tau = {row["tau"]: row for row in done.get("tau_table", [])}
    if not by_tau.keys() >= set(taus):
        evaluation = evaluate(model, evaluation_batches(data, "test", 256), taus)
        by_tau = {row["tau"]: row for row in evaluation.tau_table(hydra_costs(model)["flops"])}
    return [{key: by_tau[tau][key] for key in ("tau", "active_branches", "top1", "flops")} for tau in taus]


def _evaluated(run, data):
    """The run's evaluation.json, or {} where it is not of the model as it is now and of the test split."""
    path, model = run.path / "evaluation" / "evaluation.json", run.path / "model.keras"
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
        newer = path.stat().st_mtime >= model.stat().st_mtime
        same = (results["dataset"], results["split"]) == (data.name, "test")
        return results if newer and same and os.path.samefile(results["model"], model) else {}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


# === Time ===


def timed_images(data, batch_size):
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

    place: tuple
    active_branches: float | None
    probabilities: np.ndarray


def export_subjects(model, taus, images, directory):
    """Exports a network to be timed: a Hydra with a signature for each tau, since serving_default has one.

    Args:
        model: `Hydra` or `Plain`. taus: floats. images: (n, S, S, 3) uint8, those to be timed.
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


def measure(subjects, images, batch_size, threads, seconds):
    """Times exports in turn.

    Args:
        subjects: {key: `Subject`}.
        images: (requests batch_size, S, S, 3) uint8.
        batch_size, threads: ints. seconds: float, at least so long for all together.

    Returns:
        {key: {"ms", "low", "high"}}: ms per image, the mean over the requests of the median over the rounds,
        and of the quartiles.

    Raises:
        UserError: an export does not answer as the Keras model does.
    """
    places = {key: subject.place for key, subject in subjects.items()}
    result = run_job(places, images, [batch_size], threads, seconds, len(images) // batch_size)
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


def define_flags(flag_values):
    """Defines the flags of this command."""

    def define(kind, name, default, text, **kwargs):
        kind(name=name, default=default, help=text, flag_values=flag_values, **kwargs)

    taus = ["0", "0.05", "0.1", "0.2", "0.3", "0.5"]
    define(flags.DEFINE_list, "taus", taus, "Thresholds in [0, 1), besides each Hydra's own.")
    define(flags.DEFINE_integer, "batch_size", 1, "Images in a request.", lower_bound=1)
    define(flags.DEFINE_integer, "threads", 1, "Threads of the server.", lower_bound=1)
    define(flags.DEFINE_float, "seconds", 30.0, "Measure at least so long, and five rounds.", lower_bound=0.0)
    define(flags.DEFINE_bool, "onednn", False, "Measure with TF_ENABLE_ONEDNN_OPTS=1.")
    define(flags.DEFINE_string, "data_dir", None, "Where the data set lies; default: as in the first run.")
    define(flags.DEFINE_string, "output_dir", None, "Where to write; default: evaluation/ in the first run.")


def main(options, paths):
    """Measures the runs, prints the table and writes it."""
    # === What to measure: all that can be wrong is found before any long work ===
    taus = read_taus(options.taus, "taus")
    runs = open_runs(paths)
    output = pathlib.Path(os.path.expanduser(options.output_dir or runs[0].path / "evaluation"))
    check_writable(output, "output_dir")
    models = [load_network(run.path / "model.keras") for run in runs]
    data = load_data(**data_settings(runs[0].flags, options.data_dir) | {"validation_fraction": 0.0})
    for run, model in zip(runs, models, strict=True):
        check_images(run.path / "model.keras", model, data)
    images = timed_images(data, options.batch_size)

    # === Accuracy and exports, then all times together ===
    os.environ["TF_ENABLE_ONEDNN_OPTS"] = str(int(options.onednn))  # for the process that answers
    rows, subjects = {}, {}
    with tempfile.TemporaryDirectory() as folder:
        for place, (run, model) in enumerate(zip(runs, models, strict=True)):
            own = [] if isinstance(model, Plain) else sorted({model.tau, *taus})
            exported = export_subjects(model, own, images, os.path.join(folder, str(place)))
            for row in accuracy_rows(run, model, data, own):
                key = run.name if row["tau"] is None else f"{run.name}, tau {row['tau']:g}"
                subjects[key] = exported[row["tau"]]
                rows[key] = {"run": run.name, **row, "timed_active_branches": subjects[key].active_branches}
        times = measure(subjects, images, options.batch_size, options.threads, options.seconds)
    rows = [row | times[key] for key, row in rows.items()]

    # === Print, write ===
    setting = {"batch_size": options.batch_size, "threads": options.threads, "images": len(images)}
    environment = describe(options.onednn)
    title = f"{data.name}, batch {options.batch_size}, threads {options.threads}"
    print(f"{title}, {len(images)} images timed\n" + ", ".join(f"{k} {v}" for k, v in environment.items()))
    print(f"\n{latency_text(rows)}")
    write_json(
        output / "latency.json",
        {"dataset": data.name, **setting, "environment": environment, "rows": rows},
    )
    write_csv(output / "latency.csv", rows)
    figures.save_latency(
        rows, f"Accuracy over measured time: {title}\n{environment['processor']}", output / "latency.png"
    )
    print(f"\nWritten to {output}: latency.json, latency.csv, latency.png")


def latency_text(rows):
    """Returns the rows of latency.json as text in aligned columns."""
    cells = [["run", "tau", "lambda", "of those timed", "top-1", "MFLOPs", "ms per image", "quartiles"]]
    for row in rows:
        branches = [number(row[key], ".2f") for key in ("active_branches", "timed_active_branches")]
        measured = [f"{row['ms']:.3f}", f"{row['low']:.3f} - {row['high']:.3f}"]
        cost = [f"{row['top1']:.2%}", f"{row['flops'] / 1e6:.1f}"]
        cells.append([row["run"], number(row["tau"], "g"), *branches, *cost, *measured])
    return table(cells)


if __name__ == "__main__":
    cli.run(main, define_flags, positional="runs")
