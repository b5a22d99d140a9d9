"""`RunDirectory`: a run that is being made."""

import contextlib
import csv
import os
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from dynkhydra_tf.errors import UserError
from dynkhydra_tf.fields import changed
from dynkhydra_tf.files import (
    LOCK,
    check_writable,
    is_disk_full,
    locked,
    making,
    replacing,
    write_json,
    write_text,
)
from dynkhydra_tf.flags import read_flagfile, to_flagfile
from dynkhydra_tf.runs.data_record import changes, read_record
from dynkhydra_tf.runs.layout import MARK, RunFile, RunLayout
from dynkhydra_tf.settings import Settings, differences, filled_from
from dynkhydra_tf.workers import is_lost

if TYPE_CHECKING:
    import keras

    from dynkhydra_tf.partition import ClassPartition


class RunDirectory(RunLayout):
    """A run that is being made; got from `RunDirectory.open`.

    Attributes:
        settings: `Settings`; those of `FROM_COUNTS` that were not given are the run's that is there. `start`
            notes what they are then.
        continued: bool, whether the directory held a run that is to go on.
        finished: bool, whether that run has nothing left to do.
    """

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings.run_dir)
        self.settings = settings
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
        with run._full_disk_told(), making(run.path), locked(run.path):
            run._check_own()  # once more: now nobody else is at work here
            run._look()
            yield run

    def _check_own(self):
        """Refuses a directory that holds anything but a run."""
        entries = {entry.name for entry in self.path.iterdir()} if self.path.exists() else set()
        if entries - {LOCK} and not self.is_a_runs():
            raise UserError(f"{self.path} is not empty and holds no run; give another --run_dir, or empty it")
        if self.checkpoints.is_symlink() and not self.checkpoints.exists():
            raise UserError(
                f"{self.checkpoints} is a link to {os.readlink(self.checkpoints)}, which is not there"
            )

    def _look(self):
        """Finds out what is to be done: compares the settings with those of the run that is there."""
        flagfile = self.path / RunFile.FLAGS
        self.continued = flagfile.exists() and not self.settings.place.overwrite
        if not self.continued:
            return
        then, hint = read_flagfile(flagfile), ""
        self.settings = now = filled_from(self.settings, then)
        if now.optimisation.epochs > then.optimisation.epochs:
            if then.optimisation.schedule == "piecewise":
                self._longer, then = True, changed(then, epochs=now.optimisation.epochs)
            else:
                hint = " More epochs can follow --schedule=piecewise only: others end at a rate of 0."
        if differing := differences(now, then):
            raise UserError(
                f"{self.path} holds a run with other flags: {', '.join(differing)}. Give its flags, another "
                f"--run_dir, or --overwrite to start anew.{hint}"
            )
        results = (RunFile.MODEL, RunFile.SUMMARY)
        self.finished = all((self.path / name).exists() for name in results) and not self._longer

    @contextlib.contextmanager
    def _full_disk_told(self):
        try:
            yield
        except Exception as error:  # Python's, h5py's and TensorFlow's
            if isinstance(error, UserError) or not is_disk_full(error):
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
        then = read_record(self.path / RunFile.DATA)
        if then and (differing := changes(then, record)):
            raise UserError(
                f"{self.path} was trained on other images: {differing}. Put the run's images back, or start "
                "anew with --overwrite or another --run_dir"
            )

    def start(self, partition: "ClassPartition | None" = None, record: dict | None = None) -> None:
        """Marks the directory, deletes what an earlier run wrote into it, and makes it this run.

        What others put there stays.

        Args:
            partition: None for none.
            record: `ImageData.record`; None: the data are not checked when the run goes on.
        """
        self._mark()
        (self.path / RunFile.FLAGS).unlink(missing_ok=True)  # without it, the rest is none
        for path in self.written():
            path.unlink()
        for directory in (*self.logs.glob("*/"), self.logs, self.evaluation):
            with contextlib.suppress(OSError):  # not empty, not there, or a link
                directory.rmdir()
        self.checkpoints.mkdir(exist_ok=True)
        if record:
            write_json(self.path / RunFile.DATA, record)
        if partition:
            partition.save(self.path / RunFile.PARTITION)
        write_text(self.path / RunFile.FLAGS, to_flagfile(self.settings))

    def load_partition(self, dataset: str, class_names: Sequence[str]) -> "ClassPartition":
        """Loads the partition of a run that goes on.

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
            for path in self.results_written():
                path.unlink()
            write_text(self.path / RunFile.FLAGS, to_flagfile(self.settings))

    def _mark(self):
        if not (self.path / MARK).exists():
            text = "A run of dynkhydra_tf: train.py --overwrite deletes the files here that a run writes.\n"
            write_text(self.path / MARK, text)

    # === Checkpoints ===

    def save_checkpoint(self, model: "keras.Model") -> None:
        """Saves model, optimizer and iterations; keeps the last two and the best epoch's.

        Where the optimizer keeps averages of the weights, these are the model's in the file, and the weights
        lie with the optimizer: whoever loads the file has what was validated.
        """
        from dynkhydra_tf.averaging import averaged

        step = int(model.optimizer.iterations.numpy())
        with replacing(self.checkpoints / _checkpoint_name(step)) as temporary, averaged(model):
            model.save(temporary)
        best = self.best_row()
        keep = {path.name for path in self._checkpoints()[-2:]}
        keep.add(_checkpoint_name(int(best["step"])) if best else "")
        # One that a kill left half-written goes, too; a damaged one, set aside, stays.
        for path in self.checkpoints_written():
            if path.name not in keep and path.suffix == ".keras":
                path.unlink()

    def load_checkpoint(self) -> "tuple[keras.Model | None, int]":
        """Returns (model, step) of the newest checkpoint that can be read, to train on, or (None, 0).

        A damaged one is named, set aside as NAME.damaged and passed over.

        Raises:
            UserError: there are checkpoints and none can be read; all stay as they are.
        """
        import keras

        from dynkhydra_tf.averaging import swap_averages

        damaged = []
        for path in reversed(self._checkpoints()):
            try:
                model = keras.saving.load_model(path)
            except Exception as error:  # whatever a damaged archive makes of zipfile, h5py and Keras
                if is_lost(error):
                    raise
                damaged.append((path, " ".join(str(error).split())[:200]))
                continue
            for bad, reason in damaged:
                print(f"{bad} is damaged ({reason}); going on from {path.name}.")
                bad.rename(f"{bad}.damaged")
            swap_averages(model)
            return model, int(model.optimizer.iterations.numpy())
        if damaged:
            path, reason = damaged[0]
            raise UserError(
                f"No checkpoint in {self.checkpoints} can be read ({path.name}: {reason}). Mend them, or "
                "start anew with --overwrite"
            )
        return None, 0

    def load_best(self) -> "keras.Model":
        """Returns the model as it was after the best epoch, to train on.

        Raises:
            UserError: that checkpoint cannot be read.
        """
        import keras

        from dynkhydra_tf.averaging import swap_averages

        path = self.checkpoints / _checkpoint_name(int(self.best_row()["step"]))
        try:
            model = keras.saving.load_model(path)
        except Exception as error:  # whatever a damaged archive makes of zipfile, h5py and Keras
            if is_lost(error):
                raise
            raise UserError(
                f"The best epoch's checkpoint {path} cannot be read ({' '.join(str(error).split())[:200]}): "
                "start anew with --overwrite, or --early_stopping=0 in another --run_dir"
            ) from error
        swap_averages(model)
        return model

    def _checkpoints(self):
        """Those that are whole, by step."""
        whole = [path for path in self.checkpoints_written() if path.name.startswith("step-")]
        return sorted(path for path in whole if path.suffix == ".keras")

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
            # In the rows of epochs that were not evaluated some columns stay empty.
            names = dict.fromkeys(name for row in sorted(rows, key=len, reverse=True) for name in row)
            writer = csv.DictWriter(file, fieldnames=names)
            writer.writeheader()
            for row in rows:
                writer.writerow({key: f"{value:.10g}" for key, value in row.items()})

    # === Results ===

    def save_model(self, model: "keras.Model") -> None:
        """Writes model.keras."""
        with replacing(self.path / RunFile.MODEL) as temporary:
            model.save(temporary)

    def finish(self, summary: dict) -> None:
        """Writes summary.json: with it the run is finished."""
        write_json(self.path / RunFile.SUMMARY, summary)


def _checkpoint_name(step):
    return f"step-{step:08d}.keras"
