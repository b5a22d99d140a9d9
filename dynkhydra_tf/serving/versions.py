"""Version directories: a watching server sees a model whole or not at all.

TensorFlow Serving loads DIR/N, N a whole number, as soon as it is there. So a version is written into a
hidden directory beside its place and renamed into it.
"""

import contextlib
import os
import pathlib
import re
import shutil
import tempfile
from collections.abc import Iterator

from dynkhydra_tf.errors import UserError
from dynkhydra_tf.files import is_abandoned, locked, making

MODEL = "saved_model.pb"
_HIDDEN = ".writing-"
_MOST = 2**63 - 1  # TensorFlow Serving's versions are int64


@contextlib.contextmanager
def new_version(directory: str | os.PathLike) -> Iterator[pathlib.Path]:
    """Gives an empty directory to write to, which becomes the next version when the block succeeds.

    When the block raises, nothing is left of it; what a killed process left is removed by the next one.
    Several processes may write versions of a model at once.

    Args:
        directory: the model's directory; made where it is missing.

    Yields:
        The directory to write to, in `directory`. Once the block is left, `latest(directory)` is the version.

    Raises:
        UserError: the disk is full or cannot be written to.
    """
    try:
        with making(directory) as directory:
            for path in directory.glob(f"{_HIDDEN}*"):
                if is_abandoned(path):
                    shutil.rmtree(path, ignore_errors=True)
            # A random name: in containers every process may have the same id.
            hidden = tempfile.TemporaryDirectory(prefix=_HIDDEN, dir=directory, ignore_cleanup_errors=True)
            with hidden, locked(hidden.name):
                version = pathlib.Path(hidden.name) / "version"
                version.mkdir()
                yield version
                for path in version.rglob("*"):
                    _flush(path)
                _publish(version, directory)
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"Cannot write to {directory}: {reason}; nothing was exported") from error


def latest(directory: str | os.PathLike) -> int | None:
    """Returns the highest version in a model's directory; None where there is none."""
    return max(_numbers(directory), default=None)


def whole(directory: str | os.PathLike) -> list[int]:
    """Returns the versions that hold a model, rising."""
    directory = pathlib.Path(directory)
    return sorted(number for number in _numbers(directory) if (directory / str(number) / MODEL).is_file())


def following(directory: str | os.PathLike) -> int:
    """Returns the number that the next version gets.

    Raises:
        UserError: there is none.
    """
    number = (latest(directory) or 0) + 1
    if number > _MOST:
        raise UserError(f"There is no version after {_MOST}; move it out of {directory}")
    return number


def _numbers(directory):
    """The numbers of a server's versions among the names in a directory."""
    names = [path.name for path in pathlib.Path(directory).glob("*")]  # nothing where it is not there
    return [int(name) for name in names if re.fullmatch("[0-9]+", name) and int(name) <= _MOST]


def _publish(version, directory):
    while True:
        number = following(directory)
        try:
            version.rename(directory / str(number))
            return
        except OSError:
            # Else another export was faster: try the next number.
            if not os.path.lexists(directory / str(number)):
                raise


def _flush(path):
    """Waits until a file is on the disk: a full one says so here at the latest, before the rename."""
    if path.is_file():
        with path.open("rb") as file:
            os.fsync(file.fileno())
