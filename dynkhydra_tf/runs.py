"""A run directory: its files, its checkpoints, its metrics, and how to go on from them.

    flags.cfg        the run's flags; a flagfile that runs again as it is
    data.json        the data set's classes and sizes, and what tells a folder's images from others
    partition.json   the class partition; a plain network has none, nor branches.png
    checkpoints/     step-NNNNNNNN.keras: the last two, and that of the best epoch
    metrics.csv      a row for each finished epoch
    logs/            TensorBoard
    model.keras      the trained model, after the last epoch
    summary.json     results, costs, versions
    learning_curves.png, branches.png

Nothing about progress is stored twice: the epoch and step are the optimizer's iterations, the best
epoch is found in metrics.csv, and every file is written beside its place and renamed into it.
"""

import csv
import json
import pathlib
import shutil

import keras

from dynkhydra_tf.errors import UserError
from dynkhydra_tf.files import check_writable, replacing, write_json, write_text

FILES = ("flags.cfg", "data.json", "partition.json", "checkpoints", "metrics.csv", "logs", "model.keras")
FILES += ("summary.json", "learning_curves.png", "branches.png", "evaluation")


class RunDirectory:
    """The files of one run under `path`; made by `RunDirectory.open`.

    Attributes:
        continued: bool, whether the directory held a run that is to go on.
    """

    def __init__(self, path):
        self.path = pathlib.Path(path)
        self.continued = False
        self.flags = self.path / "flags.cfg"
        self.data = self.path / "data.json"
        self.partition = self.path / "partition.json"
        self.checkpoints = self.path / "checkpoints"
        self.metrics = self.path / "metrics.csv"
        self.logs = self.path / "logs"
        self.model = self.path / "model.keras"
        self.summary = self.path / "summary.json"

    @classmethod
    def open(cls, path, differences, overwrite=False):
        """Opens a run directory, new or to be continued; writes nothing into it yet.

        Args:
            path: the directory.
            differences: callable that takes the path of a flags.cfg and returns the list of flags
                that differ from it.
            overwrite: bool, whether `start` may delete the run that is there.

        Raises:
            UserError: the directory holds something else, or a run with other flags, or cannot be
                written to.
        """
        run = cls(path)
        check_writable(run.path, "run_dir")
        holds_run = run.flags.exists()
        # Without flags.cfg, a run's files are what a kill left of `start`; hidden ones, half-written.
        entries = list(run.path.iterdir()) if run.path.exists() else []
        if not holds_run and any(entry.name not in FILES and entry.name[0] != "." for entry in entries):
            raise UserError(f"{run.path} is not empty and holds no run; give another --run_dir")
        run.continued = holds_run and not overwrite
        if run.continued and (differing := differences(run.flags)):
            raise UserError(
                f"{run.path} holds a run with other flags: {', '.join(differing)}. Give its flags, another "
                "--run_dir, or --overwrite to start anew"
            )
        return run

    def check_data(self, record):
        """Checks that the data are those that the run was started with.

        Args:
            record: `ImageData.record`.

        Raises:
            UserError: they are not, or the run's record of them cannot be read.
        """
        if not self.data.exists():  # a run of an earlier version
            return
        try:
            then = json.loads(self.data.read_text(encoding="utf-8"))
            changes = _changes(then, record)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(
                f"{self.data} is no record of a run's data ({error!r}): start anew with --overwrite"
            ) from error
        if changes:
            raise UserError(
                f"{self.path} was trained on other images: {changes}. Put the run's images back, or start "
                "anew with --overwrite or another --run_dir"
            )

    def start(self, flagfile_text, partition, record=None):
        """Empties the directory and makes it a run.

        Args:
            flagfile_text: str, its flags; they are written last.
            partition: `ClassPartition`; None for none.
            record: `ImageData.record`; None: the data are not checked when the run goes on.
        """
        self.flags.unlink(missing_ok=True)
        for entry in self.path.iterdir() if self.path.exists() else ():
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
        self.checkpoints.mkdir(parents=True)
        if record:
            write_json(self.data, record)
        if partition:
            partition.save(self.partition)
        write_text(self.flags, flagfile_text)

    # === Checkpoints ===

    def save_checkpoint(self, model):
        """Saves model, optimizer and iterations; keeps the last two and the best epoch's."""
        step = int(model.optimizer.iterations.numpy())
        with replacing(self.checkpoints / f"step-{step:08d}.keras") as temporary:
            model.save(temporary)
        best = self.best_row()
        keep = {path.name for path in self._checkpoints()[-2:]}
        keep.add(f"step-{int(best['step']):08d}.keras" if best else "")
        for path in self.checkpoints.glob("*.keras"):  # one that a kill left half-written, too
            if path.name not in keep:
                path.unlink()

    def load_checkpoint(self):
        """Returns (model, step) of the newest checkpoint that can be read, or (None, 0).

        A damaged one is named, set aside as NAME.damaged and passed over.

        Raises:
            UserError: there are checkpoints and none can be read; all stay as they are.
        """
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
        return sorted(self.checkpoints.glob("step-*.keras"))

    # === metrics.csv ===

    def metric_rows(self):
        """Returns the rows of metrics.csv as dicts of float; [] where there is none."""
        if not self.metrics.exists():
            return []
        with self.metrics.open(newline="", encoding="utf-8") as file:
            rows = [row for row in csv.DictReader(file) if None not in row.values() and None not in row]
        return [{key: float(value) for key, value in row.items()} for row in rows]

    def best_row(self):
        """Returns the row of the highest `val_top1`, the earliest of equals; None where there is none."""
        return max(self.metric_rows(), key=lambda row: row["val_top1"], default=None)

    def append_metrics(self, row):
        """Adds a row (dict of numbers) to metrics.csv, with a header if it is the first."""
        self._write_rows([*self.metric_rows(), row])

    def drop_metrics_after(self, step):
        """Drops the rows past the checkpoint that the run goes on from; they will come again."""
        rows = self.metric_rows()
        if kept := [row for row in rows if row["step"] <= step]:
            self._write_rows(kept)
        else:
            self.metrics.unlink(missing_ok=True)

    def _write_rows(self, rows):
        with replacing(self.metrics) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, fieldnames=rows[-1])
            writer.writeheader()
            for row in rows:
                writer.writerow({key: f"{value:.10g}" for key, value in row.items()})

    # === Results ===

    def save_model(self, model):
        """Writes model.keras."""
        with replacing(self.model) as temporary:
            model.save(temporary)

    def write_summary(self, summary):
        """Writes summary.json."""
        write_json(self.summary, summary)


def _changes(then, now):
    """What differs between two records of data, as text for people; "" for nothing."""
    changes = []
    if then["dataset"] != now["dataset"]:
        changes.append(f"{then['dataset']} then, {now['dataset']} now")
    gone, come = (set(a["class_names"]) - set(b["class_names"]) for a, b in ((then, now), (now, then)))
    for word, names in (("gone", gone), ("new", come)):
        if names:
            named = ", ".join(map(repr, sorted(names)[:5])) + (", ..." if len(names) > 5 else "")
            changes.append(f"{word}: {len(names)} of the classes ({named})")
    for split, count in then["sizes"].items():
        if count != now["sizes"].get(split):
            changes.append(f"{count} images for {split} then, {now['sizes'].get(split)} now")
    if not changes and then != now:
        changes.append("as many of the same classes, with other names or other content")
    return "; ".join(changes)
