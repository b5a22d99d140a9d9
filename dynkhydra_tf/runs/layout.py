"""Where the files of a run lie, and which files in its directory are its own."""

import csv
import enum
import os
import pathlib
import re

from dynkhydra_tf.errors import UserError
from dynkhydra_tf.files import is_written_as
from dynkhydra_tf.flags import read_flagfile

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
    EXIT_ROWS = "exits.csv"
    BRANCHES = "branches.png"
    CONFUSION = "confusion.png"
    CLASS_ROWS = "classes.csv"
    PAIR_ROWS = "pairs.csv"
    MOST_WRONG = "most_wrong.png"
    EMBEDDING_2D = "embedding_2d.png"
    EMBEDDING_3D = "embedding_3d.png"
    EMBEDDING_ROWS = "embedding.csv"
    INTERPOLATION = "interpolation.png"
    INTERPOLATION_ROWS = "interpolation.csv"
    LATENCY = "latency.png"
    LATENCY_ROWS = "latency.csv"
    LATENCY_RESULTS = "latency.json"


_CHECKPOINT = re.compile(r"step-\d{8,}[.]keras([.]damaged)?|[.]step-\d{8,}[.][0-9a-f]+[.]keras")


class RunLayout:
    """Where the files of a run lie.

    Attributes:
        path: the run's directory.
        checkpoints, logs, evaluation: directories in it.
    """

    def __init__(self, path: str | os.PathLike) -> None:
        self.path = pathlib.Path(path)
        self.checkpoints = self.path / "checkpoints"
        self.logs = self.path / "logs"
        self.evaluation = self.path / "evaluation"

    def metric_rows(self) -> list[dict[str, float]]:
        """The rows of metrics.csv; [] where there is none. A row lacks what was not measured in its epoch.

        Raises:
            UserError: the file cannot be read.
        """
        path = self.path / RunFile.METRICS
        try:
            with path.open(newline="", encoding="utf-8") as file:
                rows = [row for row in csv.DictReader(file) if None not in row.values() and None not in row]
            return [{key: float(value) for key, value in row.items() if value} for row in rows]
        except FileNotFoundError:
            return []
        except (OSError, ValueError) as error:
            raise UserError(f"{path} cannot be read as the rows of a run's epochs: {error}") from error

    def best_row(self) -> dict[str, float] | None:
        """The row of the highest `val_top1`, the earliest of equals; None where no epoch was evaluated."""
        return max(self._evaluated(), key=lambda row: row["val_top1"], default=None)

    def epochs_since_best(self) -> int:
        """How many epochs lie between the best one and the last one that was evaluated."""
        best = self.best_row()
        return int(self._evaluated()[-1]["epoch"] - best["epoch"]) if best else 0

    def _evaluated(self):
        return [row for row in self.metric_rows() if "val_top1" in row]

    # === Whose files ===

    def results_written(self) -> list[pathlib.Path]:
        """The files there that tell what came out of the run."""
        names = (RunFile.MODEL, RunFile.LEARNING_CURVES, RunFile.BRANCHES, RunFile.SUMMARY)
        return [*_written(self.path, names), *_written(self.evaluation, EvaluationFile)]

    def checkpoints_written(self) -> list[pathlib.Path]:
        """All checkpoints there, half-written and damaged ones too."""
        return [path for path in self.checkpoints.glob("*") if _CHECKPOINT.fullmatch(path.name)]

    def written(self) -> list[pathlib.Path]:
        """All files there that runs write, except the mark; half-written ones too."""
        names = (RunFile.FLAGS, RunFile.DATA, RunFile.PARTITION, RunFile.METRICS)
        logs = self.logs.glob("*/events.out.tfevents.*")
        return [*_written(self.path, names), *self.results_written(), *self.checkpoints_written(), *logs]

    def is_a_runs(self) -> bool:
        """Whether a run may delete its files here: the directory is marked, or a run of version 0.1."""
        return (self.path / MARK).is_file() or self._is_of_version_0_1()

    def _is_of_version_0_1(self):
        """Whether there are our flags, all of them that have defaults, and another of our files."""
        beside = (RunFile.DATA, RunFile.PARTITION, RunFile.MODEL, RunFile.METRICS)
        try:
            read_flagfile(self.path / RunFile.FLAGS)
            text = (self.path / RunFile.FLAGS).read_text(encoding="utf-8", errors="replace")
        except UserError:
            return False
        ours = all(f"--{name}=" in text for name in ("dataset", "system", "epochs", "seed"))
        return ours and any((self.path / name).is_file() for name in beside)


def _written(directory, names):
    """The files of these names in a directory, half-written ones too; a run writes no directory of one."""
    return [
        entry
        for entry in directory.glob("*")
        if any(is_written_as(entry.name, name) for name in names) and (entry.is_symlink() or entry.is_file())
    ]
