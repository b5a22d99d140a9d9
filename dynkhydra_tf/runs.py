"""The directory of a run: `RunDirectory` while it is made, `FinishedRun` when it is read.

    flags.cfg        the run's flags; a flagfile that runs again as it is
    data.json        the data set's classes and sizes, and what tells a folder's images from others
    partition.json   the class partition; a plain network has none, nor branches.png
    checkpoints/     step-NNNNNNNN.keras: the last two, and that of the best epoch; may be a link elsewhere
    metrics.csv      a row for each finished epoch
    logs/            TensorBoard
    model.keras      the trained model, after the last epoch
    learning_curves.png, branches.png
    summary.json     results, costs, versions; written last: a run that has it is finished
    evaluation/      what was found out about it later
    .dynkhydra_run   marks the directory: files of these names, and no others, are the run's to delete

Nothing about progress is stored twice: the epoch and step are the optimizer's iterations, the best
epoch is found in metrics.csv, and every file is written beside its place and renamed into it.
"""

import contextlib
import csv
import enum
import functools
import json
import os
import pathlib
import re
from collections.abc import Iterator, Sequence

from dynkhydra_tf.errors import UserError
from dynkhydra_tf.fields import changed
from dynkhydra_tf.files import (
    LOCK,
    check_writable,
    is_disk_full,
    is_written_as,
    locked,
    making,
    replacing,
    write_json,
    write_text,
)
from dynkhydra_tf.flags import read_flagfile, to_flagfile
from dynkhydra_tf.settings import Settings, differences

# Keras and what is built on it are imported where they are used: to read a run takes a moment.

MARK = ".dynkhydra_run"


class RunFile(enum.StrEnum):
    """The files at the top of a run's directory."""

    FLAGS = "flags.cfg"
    DATA = "data.json"
    PARTITION = "partition.json"
    METRICS = "metrics.csv"
    MODEL = "model.keras"
    LEARNING_CURVES = "learning_curves.png"
    BRANCHES = "branches.png"
    SUMMARY = "summary.json"


class EvaluationFile(enum.StrEnum):
    """The files that are written into a run's evaluation/, or into another --output_dir."""

    RESULTS = "evaluation.json"
    TAU_ROWS = "tau.csv"
    TAU_CURVE = "tau.png"
    BRANCHES = "branches.png"
    CONFUSION = "confusion.png"
    EMBEDDING_2D = "embedding_2d.png"
    EMBEDDING_3D = "embedding_3d.png"
    EMBEDDING_ROWS = "embedding.csv"
    INTERPOLATION = "interpolation.png"
    INTERPOLATION_ROWS = "interpolation.csv"
    LATENCY = "latency.png"
    LATENCY_ROWS = "latency.csv"
    LATENCY_RESULTS = "latency.json"


class _Directory:
    """Where the files of a run lie.

    Attributes:
        path: the run's directory.
        checkpoints, logs, evaluation: directories in it.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = pathlib.Path(path)
        self.checkpoints = self.path / "checkpoints"
        self.logs = self.path / "logs"
        self.evaluation = self.path / "evaluation"

    def metric_rows(self) -> list[dict[str, float]]:
        """The rows of metrics.csv; [] where there is none.

        Raises:
            UserError: the file cannot be read.
        """
        path = self.path / RunFile.METRICS
        try:
            with path.open(newline="", encoding="utf-8") as file:
                rows = [row for row in csv.DictReader(file) if None not in row.values() and None not in row]
            return [{key: float(value) for key, value in row.items()} for row in rows]
        except FileNotFoundError:
            return []
        except (OSError, ValueError) as error:
            raise UserError(f"{path} cannot be read as the rows of a run's epochs: {error}") from error

    def best_row(self) -> dict[str, float] | None:
        """The row of the highest `val_top1`, the earliest of equals; None where there is none."""
        return max(self.metric_rows(), key=lambda row: row["val_top1"], default=None)


class RunDirectory(_Directory):
    """A run that is being made; got from `RunDirectory.open`.

    Attributes:
        continued: bool, whether the directory held a run that is to go on.
        finished: bool, whether that run has nothing left to do.
    """

    def __init__(self, settings: Settings):
        super().__init__(settings.run_dir)
        self._settings = settings
        self._longer = False  # a run of fewer epochs goes on
        self.continued = self.finished = False

    @classmethod
    @contextlib.contextmanager
    def open(cls, settings: Settings) -> Iterator["RunDirectory"]:
        """Opens the run directory of the settings, new or to be continued; keeps other processes out of it.

        Until `start` or `go_on` nothing is changed in it, and where the block ends before that, nothing is
        left. With `settings.place.overwrite`, `start` deletes the run that is there.

        Raises:
            UserError: the directory holds something else, or a run with other flags; another process is at
                work in it; it cannot be written to; or, from within the block, the disk is full.
        """
        run = cls(settings)
        check_writable(run.path, "run_dir")
        run._check_own()
        with run._telling_a_full_disk(), making(run.path), locked(run.path):
            run._check_own()  # once more: now nobody else is at work here
            run._look()
            yield run

    def _check_own(self):
        """Refuses a directory that holds anything but a run."""
        entries = {entry.name for entry in self.path.iterdir()} if self.path.exists() else set()
        if entries - {LOCK} and not _holds_run(self.path):
            raise UserError(f"{self.path} is not empty and holds no run; give another --run_dir, or empty it")
        if self.checkpoints.is_symlink() and not self.checkpoints.exists():
            raise UserError(
                f"{self.checkpoints} is a link to {os.readlink(self.checkpoints)}, which is not there"
            )

    def _look(self):
        """Finds out what is to be done: compares the settings with those of the run that is there."""
        flagfile = self.path / RunFile.FLAGS
        self.continued = flagfile.exists() and not self._settings.place.overwrite
        if not self.continued:
            return
        now, then, hint = self._settings, read_flagfile(flagfile), ""
        if now.optimisation.epochs > then.optimisation.epochs:
            if then.optimisation.schedule == "piecewise":
                self._longer, then = True, changed(then, epochs=now.optimisation.epochs)
            else:
                hint = " More epochs can follow --schedule=piecewise only: cosine falls to 0 at the last one."
        if differing := differences(now, then):
            raise UserError(
                f"{self.path} holds a run with other flags: {', '.join(differing)}. Give its flags, another "
                f"--run_dir, or --overwrite to start anew.{hint}"
            )
        self.finished = (self.path / RunFile.SUMMARY).exists() and not self._longer

    @contextlib.contextmanager
    def _telling_a_full_disk(self):
        try:
            yield
        except Exception as error:  # Python's, h5py's and TensorFlow's
            if not is_disk_full(error):
                raise
            place = getattr(error, "filename", None) or self.path
            raise UserError(
                f"No space left on the disk of {place}. What the run saved is safe: make room, and the same "
                "command, without --overwrite, goes on from its last checkpoint"
            ) from error

    def check_data(self, record: dict) -> None:
        """Checks that the data are those that the run was started with.

        Args:
            record: `ImageData.record`.

        Raises:
            UserError: they are not, or the run's record of them cannot be read.
        """
        then = _read_data_record(self.path)
        if then and (changes := _changes(then, record)):
            raise UserError(
                f"{self.path} was trained on other images: {changes}. Put the run's images back, or start "
                "anew with --overwrite or another --run_dir"
            )

    def start(self, partition=None, record: dict | None = None) -> None:
        """Marks the directory, deletes what an earlier run wrote into it, and makes it this run.

        What others put there stays.

        Args:
            partition: `ClassPartition`; None for none.
            record: `ImageData.record`; None: the data are not checked when the run goes on.
        """
        self._mark()
        (self.path / RunFile.FLAGS).unlink(missing_ok=True)  # without it, the rest is none
        self._delete([*_entries(self.path, RunFile), *self._checkpoint_entries(), *self._log_entries()])
        self._delete(_entries(self.evaluation, EvaluationFile))
        for directory in (*self.logs.glob("*/"), self.logs, self.evaluation):
            with contextlib.suppress(OSError):  # not empty, not there, or a link
                directory.rmdir()
        self.checkpoints.mkdir(exist_ok=True)
        if record:
            write_json(self.path / RunFile.DATA, record)
        if partition:
            partition.save(self.path / RunFile.PARTITION)
        write_text(self.path / RunFile.FLAGS, to_flagfile(self._settings))

    def load_partition(self, dataset: str, class_names: Sequence[str]):
        """Returns the `ClassPartition` of a run that goes on.

        Raises:
            UserError: it cannot be read, or is not of this data set and these classes.
        """
        from dynkhydra_tf.partition import ClassPartition

        return ClassPartition.load(self.path / RunFile.PARTITION, dataset, class_names)

    def go_on(self, step: int) -> None:
        """Makes the directory ready to go on.

        The rows of metrics.csv past the checkpoint are dropped; they will come again. Of a run that ended
        with fewer epochs than are wanted now, the results are deleted.

        Args:
            step: that of the checkpoint.
        """
        self._mark()
        self.drop_metrics_after(step)
        if self._longer:
            results = (RunFile.SUMMARY, RunFile.MODEL, RunFile.LEARNING_CURVES, RunFile.BRANCHES)
            self._delete(_entries(self.path, results))
            self._delete(_entries(self.evaluation, EvaluationFile))
            write_text(self.path / RunFile.FLAGS, to_flagfile(self._settings))

    def _mark(self):
        text = "A run of dynkhydra_tf: train.py --overwrite deletes the files here that a run writes.\n"
        write_text(self.path / MARK, text)

    def _delete(self, entries):
        for entry in entries:
            if entry.is_symlink() or entry.is_file():  # a run writes no directory of such a name
                entry.unlink()

    # === Checkpoints ===

    def save_checkpoint(self, model) -> None:
        """Saves model, optimizer and iterations; keeps the last two and the best epoch's."""
        step = int(model.optimizer.iterations.numpy())
        with replacing(self.checkpoints / _checkpoint_name(step)) as temporary:
            model.save(temporary)
        best = self.best_row()
        keep = {path.name for path in self._checkpoints()[-2:]}
        keep.add(_checkpoint_name(int(best["step"])) if best else "")
        # One that a kill left half-written goes, too; a damaged one, set aside, stays.
        for path in self._checkpoint_entries():
            if path.name not in keep and path.suffix == ".keras":
                path.unlink()

    def load_checkpoint(self):
        """Returns (model, step) of the newest checkpoint that can be read, or (None, 0).

        A damaged one is named, set aside as NAME.damaged and passed over.

        Raises:
            UserError: there are checkpoints and none can be read; all stay as they are.
        """
        import keras

        damaged = []
        for path in reversed(self._checkpoints()):
            try:
                model = keras.saving.load_model(path)
            except Exception as error:  # whatever a damaged archive makes of zipfile, h5py and Keras
                damaged.append((path, " ".join(str(error).split())[:200]))
                continue
            for bad, reason in damaged:
                print(f"{bad} is damaged ({reason}); going on from {path.name}.")
                bad.rename(f"{bad}.damaged")
            return model, int(model.optimizer.iterations.numpy())
        if damaged:
            path, reason = damaged[0]
            raise UserError(
                f"No checkpoint in {self.checkpoints} can be read ({path.name}: {reason}). Mend them, or "
                "start anew with --overwrite"
            )
        return None, 0

    def _checkpoints(self):
        """Those that can be loaded, by step."""
        return sorted(path for path in self._checkpoint_entries() if re.fullmatch(_STEP, path.name))

    def _checkpoint_entries(self):
        """All that `save_checkpoint` wrote, half-written and damaged ones, too."""
        pattern = rf"\.?{_STEP.removesuffix('[.]keras')}([.][0-9a-f]+)?[.]keras([.]damaged)?"
        return [path for path in self.checkpoints.glob("*") if re.fullmatch(pattern, path.name)]

    def _log_entries(self):
        return self.logs.glob("*/events.out.tfevents.*")

    # === metrics.csv ===

    def append_metrics(self, row: dict[str, float]) -> None:
        """Adds a row to metrics.csv, with a header if it is the first."""
        self._write_rows([*self.metric_rows(), row])

    def drop_metrics_after(self, step: int) -> None:
        """Drops the rows of metrics.csv that are past a step."""
        rows = self.metric_rows()
        if kept := [row for row in rows if row["step"] <= step]:
            self._write_rows(kept)
        else:
            (self.path / RunFile.METRICS).unlink(missing_ok=True)

    def _write_rows(self, rows):
        path = self.path / RunFile.METRICS
        with replacing(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, fieldnames=rows[-1])
            writer.writeheader()
            for row in rows:
                writer.writerow({key: f"{value:.10g}" for key, value in row.items()})

    # === Results ===

    def save_model(self, model) -> None:
        """Writes model.keras."""
        with replacing(self.path / RunFile.MODEL) as temporary:
            model.save(temporary)

    def finish(self, summary: dict) -> None:
        """Writes summary.json: with it the run is finished."""
        write_json(self.path / RunFile.SUMMARY, summary)


class FinishedRun(_Directory):
    """A run that is read. Each of its parts is read when it is asked for, and says itself if it is missing.

    Attributes:
        settings: `Settings`, those that it was trained with.
    """

    def __init__(self, path: str | os.PathLike, settings: Settings):
        super().__init__(path)
        self.settings = settings

    @classmethod
    def open(cls, path: str | os.PathLike) -> "FinishedRun":
        """Opens a run's directory; that its training has ended is not asked for yet.

        Raises:
            UserError: no directory of a run, or flags that cannot be read.
        """
        return cls(path, read_flagfile(pathlib.Path(path) / RunFile.FLAGS))

    @classmethod
    def find(cls, path: str | os.PathLike) -> "FinishedRun | None":
        """The run in a directory, or None where none has finished there.

        Raises:
            UserError: its flags cannot be read.
        """
        return cls.open(path) if run_state(path) == "finished" else None

    @classmethod
    def find_all(cls, root: str | os.PathLike) -> list["FinishedRun"]:
        """All runs that have finished in a directory and below it, by path.

        Raises:
            UserError: there is no such directory, or the flags of a run cannot be read.
        """
        root = pathlib.Path(root)
        if not root.is_dir():
            raise UserError(f"{root} is no directory; give the one that holds runs of train.py")
        found = (cls.find(path.parent) for path in sorted(root.rglob(RunFile.SUMMARY.value)))
        return [run for run in found if run]

    @property
    def name(self) -> str:
        """The last part of its path."""
        return self.path.absolute().name

    @property
    def model_path(self) -> pathlib.Path:
        """Where the trained model lies."""
        return self.path / RunFile.MODEL

    def check_hydra(self, parts: str) -> None:
        """Refuses a run of a plain network.

        Args:
            parts: what it is asked for and does not have, such as "branches".

        Raises:
            UserError: it is one.
        """
        if self.settings.network.system == "plain":
            raise UserError(f"{self.path} holds a plain network, which has no {parts}; give a run of a Hydra")

    @functools.cached_property
    def partition(self):
        """Its `ClassPartition`.

        Raises:
            UserError: a plain network's run, which has none, or a file that cannot be read.
        """
        from dynkhydra_tf.partition import ClassPartition

        self.check_hydra("partition")
        return ClassPartition.load(self.path / RunFile.PARTITION)

    @functools.cached_property
    def summary(self) -> dict:
        """Results, costs, versions: see `train.py`.

        Raises:
            UserError: the run has not finished, or the file cannot be read.
        """
        path = self.path / RunFile.SUMMARY
        if not path.exists():
            raise UserError(f"{self.path} has no {path.name}: its training has not ended; finish it first")
        return _read_json(path)

    @functools.cached_property
    def _record(self):
        return _read_data_record(self.path)

    @property
    def sizes(self) -> dict[str, int]:
        """The number of images of each split; {} where an early version did not note them."""
        return self._record["sizes"] if self._record else {}

    @functools.cached_property
    def class_names(self) -> tuple[str, ...] | None:
        """The M class names in the order of the labels; None where an early version did not note them.

        Raises:
            UserError: the run's record cannot be read.
        """
        if self._record:
            return tuple(self._record["class_names"])
        return self.partition.class_names if (self.path / RunFile.PARTITION).exists() else None

    def load_model(self):
        """Loads its `Hydra` or `Plain`.

        Raises:
            UserError: no model, none of this package, or not that of the run's partition and classes.
        """
        model = load_network(self.model_path)
        names = self.class_names
        if names is not None and model.num_classes != len(names):
            raise UserError(
                f"{self.model_path} is not the model of its run: it has {model.num_classes} classes, the "
                f"run {len(names)}"
            )
        path, clusters = self.path / RunFile.PARTITION, getattr(model, "cluster_of_class", None)
        if clusters and path.exists() and clusters != self.partition.cluster_of_class:
            raise UserError(f"{self.model_path} is not the Hydra of {path}")
        return model

    def check_data(self, data) -> None:
        """Checks that data have the classes, in their order, and the image size that it was trained on.

        Args:
            data: `ImageData`.

        Raises:
            UserError: they have not.
        """
        names = self.class_names
        if names is not None and names != tuple(data.class_names):
            raise UserError(
                f"{self.path} was trained on other classes than those of {data.name}: "
                f"{_class_changes(names, data.class_names)}. Give the data set that it was trained on"
            )
        size = self.image_size
        if size != data.image_size:
            raise UserError(
                f"{self.path} was trained on images of {size} px. Received: {data.name} with "
                f"{data.image_size} px"
            )

    @property
    def image_size(self) -> int:
        """S, the side of the images that it was trained on, in pixels."""
        from dynkhydra_tf.data import find_entry

        return self.settings.data.image_size or find_entry(self.settings.data.dataset).image_size

    def results(self) -> dict:
        """What `python -m dynkhydra_tf.evaluation` found last; {} where it was not run.

        Raises:
            UserError: the file cannot be read.
        """
        path = self.evaluation / EvaluationFile.RESULTS
        return _read_json(path) if path.is_file() else {}

    def results_on(self, dataset: str, split: str) -> dict:
        """The same where it is of the model as it is now and of this split; else {}."""
        path = self.evaluation / EvaluationFile.RESULTS
        try:
            results = self.results()
            newer = path.stat().st_mtime >= self.model_path.stat().st_mtime
            same = (results["dataset"], results["split"]) == (dataset, split)
            return results if newer and same and os.path.samefile(results["model"], self.model_path) else {}
        except (OSError, KeyError, UserError):
            return {}

    def tau_table(self) -> list[dict]:
        """The rows (tau, active_branches, top1, top5, flops) of its evaluation; [] where it has none.

        Raises:
            UserError: the file cannot be read.
        """
        return self.results().get("tau_table", [])


def run_state(path: str | os.PathLike) -> str:
    """How far a directory's run is: "new" (there is none), "started" or "finished"."""
    path = pathlib.Path(path)
    if not (path / RunFile.FLAGS).is_file():
        return "new"
    return "finished" if (path / RunFile.SUMMARY).is_file() else "started"


def run_of(model_path: str | os.PathLike) -> FinishedRun | None:
    """The run whose directory a .keras file lies in; None where it lies in none.

    Raises:
        UserError: its flags cannot be read.
    """
    directory = pathlib.Path(model_path).parent
    return None if run_state(directory) == "new" else FinishedRun.open(directory)


def load_network(path: str | os.PathLike):
    """Loads a trained network.

    Args:
        path: a .keras file.

    Returns:
        `Hydra` or `Plain`.

    Raises:
        UserError: no such file, no Keras model, or one of another kind.
    """
    import keras

    from dynkhydra_tf.hydra import Hydra
    from dynkhydra_tf.plain import Plain

    if not pathlib.Path(path).is_file():
        raise UserError(f"{path} is not there; a run has one after its last epoch: finish it with train.py")
    try:
        model = keras.saving.load_model(path)
    except Exception as error:  # whatever a file that is no model makes of zipfile, h5py and Keras
        raise UserError(f"{path} cannot be loaded as a Keras model: {error}") from error
    if not isinstance(model, (Hydra, Plain)):
        raise UserError(f"{path} holds a {type(model).__name__}; it must be a Hydra or a Plain")
    return model


def check_network(path: str | os.PathLike, model, data) -> None:
    """Checks that the network of a .keras file, which knows no class names, takes the images of a data set.

    Args:
        path: the file, for the message. model: `Hydra` or `Plain`. data: `ImageData`.

    Raises:
        UserError: other numbers of classes, or another image size.
    """
    takes, has = (model.num_classes, model.backbone.input_shape[0]), (data.num_classes, data.image_size)
    if takes != has:
        raise UserError(
            f"{path} takes {takes[0]} classes and images of {takes[1]} px, {data.name} has {has[0]} and "
            f"{has[1]} px; give the data set that it was trained on"
        )


_STEP = r"step-\d{8}[.]keras"


def _checkpoint_name(step):
    return f"step-{step:08d}.keras"


def _holds_run(path):
    """Whether a run may delete its files here: the directory is marked, or is a run of version 0.1."""
    if (path / MARK).is_file():
        return True
    beside = (RunFile.DATA, RunFile.PARTITION, RunFile.MODEL, RunFile.METRICS)
    if not any((path / name).is_file() for name in beside):
        return False
    try:
        read_flagfile(path / RunFile.FLAGS)
    except UserError:
        return False
    return True


def _entries(directory, names):
    """What there is in a directory under these names, half-written ones, too."""
    return [entry for entry in directory.glob("*") if any(is_written_as(entry.name, name) for name in names)]


def _read_json(path):
    """The JSON object of a file."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(value, dict):
            raise ValueError("no JSON object")
        return value
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}); train or evaluate that run again") from error


def _read_data_record(run):
    """data.json of a run's directory; None for a run of an early version, which has none."""
    path = run / RunFile.DATA
    if not path.exists():
        return None
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        kinds = {"dataset": str, "class_names": list, "sizes": dict}
        if not all(isinstance(record[key], kind) for key, kind in kinds.items()):
            raise TypeError("values of other kinds")
        return record
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path} is no record of a run's data ({error!r}): start anew with --overwrite"
        ) from error


def _changes(then, now):
    """What differs between two records of data, as text for people; "" for nothing."""
    changes = []
    if then["dataset"] != now["dataset"]:
        changes.append(f"{then['dataset']} then, {now['dataset']} now")
    if set(then["class_names"]) != set(now["class_names"]):
        changes.append(_class_changes(then["class_names"], now["class_names"]))
    for split, count in then["sizes"].items():
        if count != now["sizes"].get(split):
            changes.append(f"{count} images for {split} then, {now['sizes'].get(split)} now")
    if not changes and then != now:
        changes.append("as many of the same classes, with other names or other content")
    return "; ".join(changes)


def _class_changes(then, now):
    """How two lists of class names differ, as text for people."""
    changes = []
    for word, names in (("gone", set(then) - set(now)), ("new", set(now) - set(then))):
        if names:
            named = ", ".join(map(repr, sorted(names)[:5])) + (", ..." if len(names) > 5 else "")
            changes.append(f"{word}: {len(names)} of the classes ({named})")
    if not changes:
        place = next(place for place, pair in enumerate(zip(then, now, strict=True)) if len(set(pair)) > 1)
        changes.append(f"the same in another order: class {place} is {now[place]!r}, not {then[place]!r}")
    return "; ".join(changes)
