"""Version directories: a watching server sees a model whole or not at all.

TensorFlow Serving loads DIR/N, N a whole number, as soon as it is there. So a version is written into a
hidden directory beside its place and renamed into it.
"""

import contextlib
import os
import pathlib
import shutil
from collections.abc import Iterator

from dynkhydra_tf.errors import UserError
from dynkhydra_tf.files import making

_HIDDEN = ".writing-"


@contextlib.contextmanager
def new_version(directory) -> Iterator[pathlib.Path]:
    """Gives an empty directory to write to, which becomes the next version when the block succeeds.

    When the block raises, nothing is left of it; what a killed process left is removed by the next one.

    Args:
        directory: the model's directory; made where it is missing.

    Yields:
        The directory to write to, in `directory`. Once the block is left, `latest(directory)` is the version.

    Raises:
        UserError: the disk is full or cannot be written to.
    """
    hidden = pathlib.Path(directory) / f"{_HIDDEN}{os.getpid()}"
    try:
        with making(directory) as directory, _removing(hidden):
            _remove_abandoned(directory)
            hidden.mkdir()
            yield hidden
            for path in hidden.rglob("*"):
                _flush(path)
            _publish(hidden, directory)
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"Cannot write to {directory}: {reason}; nothing was exported") from error


def latest(directory) -> int | None:
    """Returns the highest version in a model's directory; None where there is none."""
    versions = [int(path.name) for path in pathlib.Path(directory).iterdir() if path.name.isdecimal()]
    return max(versions, default=None)


@contextlib.contextmanager
def _removing(path):
    try:
        yield
    finally:
        shutil.rmtree(path, ignore_errors=True)


def _publish(hidden, directory):
    while True:
        number = (latest(directory) or 0) + 1
        try:
            hidden.rename(directory / str(number))
            return
        except OSError:
            if not (directory / str(number)).exists():  # else another export was faster: try the next number
                raise


def _remove_abandoned(directory):
    for path in directory.glob(f"{_HIDDEN}*"):
        try:
            os.kill(int(path.name.removeprefix(_HIDDEN)), 0)
        except (ValueError, ProcessLookupError):
            shutil.rmtree(path, ignore_errors=True)
        except PermissionError:
            pass  # somebody else's, at work


def _flush(path):
    """Waits until a file is on the disk: a full one says so here at the latest, before the rename."""
    if path.is_file():
        with path.open("rb") as file:
            os.fsync(file.fileno())
