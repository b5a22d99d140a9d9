"""Trained networks, measured: their accuracy at many thresholds, and the time of the same images in each.

B is the batch axis; images are (B, S, S, 3) uint8.
"""

import os
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from dynkhydra_tf.accuracy import evaluate, evaluate_plain
from dynkhydra_tf.benchmark.inference import run_job, summarise
from dynkhydra_tf.benchmark.subjects import export_at, export_network
from dynkhydra_tf.costs import hydra_costs, plain_costs
from dynkhydra_tf.data import ImageData, evaluation_batches, find_entry
from dynkhydra_tf.errors import UserError
from dynkhydra_tf.fields import Role
from dynkhydra_tf.hydra import Hydra
from dynkhydra_tf.plain import Plain
from dynkhydra_tf.runs import FinishedRun
from dynkhydra_tf.serving.reference import TOLERANCE
from dynkhydra_tf.settings import DataSettings, by_role, without_effect

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


def networks(runs: Mapping[str, FinishedRun]) -> dict[str, list[str]]:
    """Returns the runs of one network together: those that differ in the seed alone.

    A setting without effect, such as how often a run was evaluated that this could not end, is none either.

    Returns:
        {name of its first run: the names of its runs}.
    """
    found: dict[tuple, list[str]] = {}
    for name, run in runs.items():
        unused = without_effect(run.settings)
        told = by_role(run.settings, *(set(Role) - {Role.SEED, Role.PLACE, Role.ACTION}))
        told = {setting: value for setting, value in told.items() if setting not in unused}
        found.setdefault(tuple(told.items()), []).append(name)
    return {same[0]: same for same in found.values()}


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
        flops = plain_costs(model.backbone, model.num_classes, model.network)["flops"]
        return [{"tau": None, "active_branches": None, "top1": results["top1"], "flops": flops}]
    by_tau = {row["tau"]: row for row in done.get("tau_table", [])}
    if not by_tau.keys() >= set(taus):
        evaluation = evaluate(model, evaluation_batches(data, "test", 256), taus)
        by_tau = {row["tau"]: row for row in evaluation.tau_table(hydra_costs(model)["flops"])}
    return [{key: by_tau[tau][key] for key in ("tau", "active_branches", "top1", "flops")} for tau in taus]


# === Time ===


def timed_images(data: ImageData, batch_size: int, count: int | None = None) -> np.ndarray:
    """Returns the test images to time, evenly spaced over the split: (requests batch_size, S, S, 3) uint8.

    About `count` of them, by default `IMAGES`, in at least 8 requests.

    Raises:
        UserError: the split has fewer than two such batches.
    """
    size = data.sizes["test"]
    requests = min(max(8, (count or IMAGES) // batch_size), size // batch_size)
    if requests < 2:
        raise UserError(
            f"--batch_sizes must be at most {size // 2}, half of the test images. Received: {batch_size}"
        )
    wanted = np.linspace(0, size - 1, requests * batch_size).round().astype(int)
    chosen, start = [], 0
    for images, _ in evaluation_batches(data, "test", 256):
        chosen.append(images.numpy()[wanted[(wanted >= start) & (wanted < start + len(images))] - start])
        start += len(images)
    return np.concatenate(chosen)


Place = tuple[str, str] | str  # (directory, signature) of a SavedModel, or a .onnx file


class Subject(NamedTuple):
    """An export to be timed, and what Keras says it must answer.

    Attributes:
        place: of the export.
        active_branches: float, lambda of the timed images; None for a plain network.
        probabilities: (n, M) float32, of the first images; None where it may answer otherwise, as int8 does.
    """

    place: Place
    active_branches: float | None
    probabilities: np.ndarray | None


def export(
    model: Hydra | Plain,
    taus: Sequence[float],
    directory: str,
    runtime: str = "tensorflow",
    calibration: np.ndarray | None = None,
) -> dict[float | None, Place]:
    """Exports a network to be timed: a Hydra at each tau, since serving_default has one.

    Args:
        model: the network. taus: for a Hydra.
        directory: where to export to.
        runtime: "tensorflow": a SavedModel with a signature for each tau; "onnx", "onnx_int8": a file each.
        calibration: (n, S, S, 3) uint8, the images that tell the ranges of int8.

    Returns:
        {tau: where}; of a plain network {None: where}.
    """
    if runtime == "tensorflow":
        return _saved_models(model, taus, directory)
    return _onnx_files(model, taus, directory, calibration if runtime == "onnx_int8" else None)


def onnx_row(place: Place, data: ImageData, threads: int) -> dict[str, float | None]:
    """Returns what a .onnx file does on the test split: top1, active_branches (None if plain)."""
    from dynkhydra_tf.serving.formats import onnx

    answer = onnx.run(pathlib.Path(str(place)).read_bytes(), threads)
    right, active = [], []
    for images, labels in evaluation_batches(data, "test", 256):
        outputs = answer(images.numpy())
        right.append(outputs["class_id"] == labels.numpy())
        active.append(outputs.get("active_branches", []))
    branches = np.concatenate(active)
    return {
        "top1": float(np.mean(np.concatenate(right))),
        "active_branches": float(np.mean(branches)) if len(branches) else None,
    }


def subjects_of(
    model: Hydra | Plain, places: Mapping[float | None, Place], images: np.ndarray
) -> dict[float | None, Subject]:
    """Returns what was exported, with what Keras says of the images (n, S, S, 3) uint8 that are timed."""
    parts = np.split(images, range(64, len(images), 64))  # 64: so many answers the timing gives back
    model, subjects = model.for_inference(), {}
    for tau, place in places.items():
        if isinstance(model, Plain):
            answers, active = [model(parts[0])], None
        else:
            answers = [model(part, tau=tau) for part in parts]
            active = sum(int(np.sum(answer["selected"])) for answer in answers) / len(images)
        probabilities = tf.nn.softmax(answers[0]["logits"]).numpy()
        subjects[tau] = Subject(place, active, probabilities)
    return subjects


def _saved_models(model, taus, directory):
    """{tau: (directory, signature)} of one SavedModel."""
    if isinstance(model, Plain):
        export_network(model, directory)
        return {None: (directory, "serving_default")}
    names = export_at(model, directory, taus)
    return {tau: (directory, name) for tau, name in names.items()}


def _onnx_files(model, taus, directory, calibration):
    """{tau: file} of a .onnx file for each, in int8 where there are images for its calibration."""
    from dynkhydra_tf.serving.formats.onnx import to_onnx
    from dynkhydra_tf.serving.formats.onnx_int8 import quantized

    pathlib.Path(directory).mkdir()
    files = {}
    for number, tau in enumerate(taus or [None]):
        path = pathlib.Path(directory) / f"{number}.onnx"
        content = to_onnx(model, tau)
        path.write_bytes(content if calibration is None else quantized(content, calibration))
        files[tau] = str(path)
    return files


def measure(
    subjects: dict[str, Subject],
    images: np.ndarray,
    batch_size: int,
    threads: int,
    seconds: float,
    onednn: str = "default",
) -> dict[str, dict[str, float]]:
    """Times exports in turn, each as in a server that has no other model.

    Args:
        subjects: by name.
        images: (requests batch_size, S, S, 3) uint8.
        batch_size: images in a request. threads: of the server. seconds: at least so long for all together.
        onednn: of `environment.ONEDNN`.

    Returns:
        {name: {"ms", "low", "high", "cpu"}}: ms per image, the mean over the requests of the median over the
        rounds, and of the quartiles; the processors' ms.

    Raises:
        UserError: an export does not answer as the Keras model does.
    """
    places = {key: subject.place for key, subject in subjects.items()}
    result = run_job(places, images, [batch_size], threads, seconds, len(images) // batch_size, onednn)
    for key, subject in subjects.items():
        if subject.probabilities is None:
            continue
        errors = np.abs(result["answers"][key]["probabilities"] - subject.probabilities).max(axis=1)
        # All images but one: a gate probability may lie at tau so closely that rounding decides.
        error = np.sort(errors)[-2]
        if not error <= TOLERANCE:
            raise UserError(
                f"The export of {key} differs from its Keras model by {error:g}; nothing is written"
            )
    summary = summarise(result["times_ms"][batch_size], next(iter(subjects)), result["cpu_ms"][batch_size])
    return {
        key: {name: numbers[name] / batch_size for name in ("ms", "low", "high", "cpu")}
        for key, numbers in summary.items()
    }
