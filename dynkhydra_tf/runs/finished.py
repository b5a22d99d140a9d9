"""`FinishedRun`: a run that is read."""

import functools
import json
import os
import pathlib
from typing import TYPE_CHECKING

from dynkhydra_tf.errors import UserError
from dynkhydra_tf.flags import read_flagfile
from dynkhydra_tf.runs.data_record import class_changes, read_record
from dynkhydra_tf.runs.layout import EvaluationFile, RunFile, RunLayout
from dynkhydra_tf.runs.networks import load_network
from dynkhydra_tf.settings import Settings

if TYPE_CHECKING:
    from dynkhydra_tf.data import ImageData
    from dynkhydra_tf.hydra import Hydra
    from dynkhydra_tf.partition import ClassPartition
    from dynkhydra_tf.plain import Plain


class FinishedRun(RunLayout):
    """A run that is read. Each of its parts is read when it is asked for, and says itself if it is missing.

    Attributes:
        settings: `Settings`, those that it was trained with.
    """

    def __init__(self, path: str | os.PathLike, settings: Settings) -> None:
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
    def partition(self) -> "ClassPartition":
        """Its `ClassPartition`.

        Raises:
            UserError: a plain network's run, which has none, or a file that cannot be read.
        """
        from dynkhydra_tf.partition import ClassPartition

        self.check_hydra("partition")
        return ClassPartition.load(self.path / RunFile.PARTITION)

    @functools.cached_property
    def summary(self) -> dict:
        """Results, costs, versions, machine: see `train.py`.

        Raises:
            UserError: the run has not finished, or the file cannot be read.
        """
        path = self.path / RunFile.SUMMARY
        if not path.exists():
            raise UserError(f"{self.path} has no {path.name}: its training has not ended; finish it first")
        return _read_json(path)

    @functools.cached_property
    def _record(self):
        return read_record(self.path / RunFile.DATA)

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

    def load_model(self) -> "Hydra | Plain":
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

    def check_data(self, data: "ImageData") -> None:
        """Checks that data have the classes, in their order, and the image size that it was trained on.

        Raises:
            UserError: they have not.
        """
        names = self.class_names
        if names is not None and names != tuple(data.class_names):
            raise UserError(
                f"{self.path} was trained on other classes than those of {data.name}: "
                f"{class_changes(names, data.class_names)}. Give the data set that it was trained on"
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

    @property
    def fit(self) -> str:
        """How its pictures become square, see `preprocess`."""
        from dynkhydra_tf.data import find_entry

        return self.settings.data.fit or find_entry(self.settings.data.dataset).fit

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


def open_trained(
    path: str | os.PathLike, flag: str, run_dir: str | os.PathLike | None = None
) -> "tuple[Hydra | Plain, tuple[str, ...] | None]":
    """Loads the trained network that a flag of a new run names: of a run that has ended, or of a .keras file.

    Args:
        flag: its name, for messages.
        run_dir: the directory of the new run, which must be another one; None where that is known.

    Returns:
        The network, and its class names in the order of the labels; None where these are not known.

    Raises:
        UserError: neither of the two, or of the new run itself.
    """
    place, wanted = pathlib.Path(path), f"{flag} must be a run that has ended, or a .keras file of one"
    if run_dir and pathlib.Path(run_dir).resolve() in (place.resolve(), place.resolve().parent):
        raise UserError(f"{flag} must be another run than --run_dir. Received: {path}")
    if not place.exists():
        raise UserError(f"{path} is not there; {wanted}")
    if not place.is_dir():
        model, run = load_network(place), run_of(place)
    else:
        run = FinishedRun.find(place)
        if run is None:
            raise UserError(f"{wanted}. Received: {path}, in which none has")
        model = run.load_model()
    return model, model.class_names or (run.class_names if run else None)


def _read_json(path):
    """The JSON object of a file."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(value, dict):
            raise ValueError("no JSON object")
        return value
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}); train or evaluate that run again") from error
