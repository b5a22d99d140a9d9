"""A run of several workers: the chief has its directory, each other one a copy, which goes with its process.

So all of them find the same run, take the same decisions and begin with the same weights, whether or not they
see the same disks; and one writes.
"""

import contextlib
import io
import tarfile
import tempfile
from collections.abc import Iterator
from typing import TYPE_CHECKING

from dynkhydra_tf.fields import changed
from dynkhydra_tf.runs.directory import RunDirectory
from dynkhydra_tf.runs.layout import MARK, RunFile
from dynkhydra_tf.settings import Settings
from dynkhydra_tf.workers import Workers

if TYPE_CHECKING:
    import keras

RECORDS = (MARK, RunFile.FLAGS, RunFile.DATA, RunFile.PARTITION, RunFile.METRICS)


class RunCopy(RunDirectory):
    """The run as a worker has it that is not the chief."""

    def save_checkpoint(self, model: "keras.Model") -> None:
        """Nothing, but with early stopping: then the best one is wanted again."""
        if self.settings.optimisation.early_stopping:
            super().save_checkpoint(model)


@contextlib.contextmanager
def open_run(settings: Settings, workers: Workers) -> Iterator[RunDirectory]:
    """Opens the run directory of the settings: `RunDirectory.open`, for one of several workers.

    Raises:
        UserError: as `RunDirectory.open`, on all workers where the chief cannot.
    """
    if workers.is_chief:
        with RunDirectory.open(settings) as run:
            workers.share(_packed(run))
            yield run
    else:
        with tempfile.TemporaryDirectory(prefix="dynkhydra_tf-run-") as folder:
            _unpack(workers.share(b""), folder)
            with RunCopy.open(changed(settings, run_dir=folder, overwrite=False)) as run:
                yield run


def _packed(run):
    """What a worker needs to go on with a run, or to see that it has finished."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        paths = [run.path / name for name in RECORDS] if run.continued else []
        if run.finished:
            paths += [run.path / RunFile.MODEL, run.path / RunFile.SUMMARY]
        elif run.continued:
            paths += [path for path in run.checkpoints_written() if path.name.startswith("step-")]
        for path in paths:
            if path.exists():
                archive.add(path, path.relative_to(run.path))
    return packed.getvalue()


def _unpack(packed, folder):
    with tarfile.open(fileobj=io.BytesIO(packed)) as archive:
        archive.extractall(folder, filter="data")
