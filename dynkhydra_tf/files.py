"""Files: written whole or not at all, in directories that one process at a time works in."""

import contextlib
import csv
import errno
import json
import os
import pathlib
import re
import secrets
import socket
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

try:
    import fcntl
except ImportError:  # Windows has none: no locks there
    fcntl = None

from absl import logging

from dynkhydra_tf.errors import UserError

LOCK = ".dynkhydra_lock"  # in a directory that a process works in


@contextlib.contextmanager
def replacing(path: str | os.PathLike) -> Iterator[pathlib.Path]:
    """Gives a path beside `path` to write to; it takes the place of `path` when the block succeeds.

    Folders that are missing are made. When the block raises, `path` is as it was and nothing is left
    beside it.

    Args:
        path: the file to write or to replace.

    Yields:
        The path to write to: same folder, same suffix.
    """
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # Random, for in containers every process may have the same id.
    beside = path.with_name(f".{path.stem}.{secrets.token_hex(4)}{path.suffix}")
    try:
        yield beside
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


def is_written_as(entry: str, name: str) -> bool:
    """Whether `entry` is `name`, or what a process that was killed in `replacing` left of it; file names."""
    stem, suffix = os.path.splitext(name)
    half = rf"\.{re.escape(stem)}\.[0-9a-f]+{re.escape(suffix)}"
    return entry == name or re.fullmatch(half, entry) is not None


@contextlib.contextmanager
def making(directory: str | os.PathLike) -> Iterator[pathlib.Path]:
    """Makes a directory and its parents where they are missing; undoes that when the block raises.

    Args:
        directory: the directory.

    Yields:
        Its path.
    """
    directory = pathlib.Path(directory)
    made = [path for path in (directory, *directory.parents) if not path.exists()]
    try:
        directory.mkdir(parents=True, exist_ok=True)
        yield directory
    except BaseException:
        with contextlib.suppress(OSError):  # not empty: somebody else is at work in it
            for path in made:
                path.rmdir()
        raise


@contextlib.contextmanager
def locked(directory: str | os.PathLike) -> Iterator[None]:
    """Keeps a directory to this process while the block runs.

    The lock is the kernel's (flock): it ends with the process, however that ends. The file that it is on
    tells others who holds it; one that is left behind holds nothing. Where a file system knows no locks, the
    block runs without one, and a warning says so.

    Args:
        directory: an existing directory.

    Raises:
        UserError: another process holds it; the message says which.
    """
    path = pathlib.Path(directory) / LOCK
    while True:
        try:
            file = path.open("a+b", buffering=0)
        except PermissionError as error:
            raise UserError(
                f"{directory} may be in use by another user, whose {path.name} is there: when it is not, "
                "delete that file"
            ) from error
        try:
            if fcntl is None:
                raise OSError(errno.ENOTSUP, os.strerror(errno.ENOTSUP))
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            with file:
                file.seek(0)
                holder = file.read().decode(errors="replace") or "another process"
            raise UserError(
                f"{directory} is in use by {holder}: wait until that has ended, or stop it"
            ) from None
        except OSError as error:
            logging.warning("%s cannot be locked (%s): let no second process work in it", directory, error)
        # The holder may have ended, and removed the file, after it was opened here.
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                break
        file.close()
    with file:
        try:
            file.truncate(0)
            file.write(f"process {os.getpid()} on {socket.gethostname()}".encode())
            yield
        finally:
            path.unlink(missing_ok=True)


def is_abandoned(directory: str | os.PathLike) -> bool:
    """Whether a process held a directory by `locked` and ended without leaving its block: it was killed."""
    try:
        with (pathlib.Path(directory) / LOCK).open("rb") as file:
            if not file.read():  # about to be locked
                return False
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
    except (OSError, AttributeError):  # held, never locked, or no locks here
        return False


def is_disk_full(error: BaseException) -> bool:
    """Whether an error says that a disk, or the user's share of it, is full; TensorFlow's, too."""
    full = (errno.ENOSPC, errno.EDQUOT)
    return getattr(error, "errno", None) in full or any(os.strerror(number) in str(error) for number in full)


def check_writable(directory: str | os.PathLike, flag: str) -> None:
    """Tries whether a directory, there or still to be made, can be written to; leaves nothing behind.

    Args:
        directory: the path.
        flag: the flag that it was given with, for the message.

    Raises:
        UserError: it cannot.
    """
    directory = pathlib.Path(directory)
    there = next(parent for parent in (directory, *directory.absolute().parents) if parent.exists())
    try:
        os.rmdir(tempfile.mkdtemp(prefix=".", dir=there))  # os.access says yes to root everywhere
    except OSError as error:
        reason = error.strerror or error
        raise UserError(
            f"Cannot write to {there} ({reason}); give another --{flag}. Received: {directory}"
        ) from error


def write_text(path: str | os.PathLike, text: str) -> None:
    """Writes text as UTF-8; replaces `path` whole or not at all.

    What is no UTF-8 in it, such as a folder's name, becomes the bytes that it was.
    """
    with replacing(path) as beside:
        beside.write_text(text, encoding="utf-8", errors="surrogateescape")


def write_json(path: str | os.PathLike, value: Any) -> None:
    """Writes a value as indented JSON; replaces `path` whole or not at all."""
    write_text(path, json.dumps(value, indent=2) + "\n")


def write_csv(
    path: str | os.PathLike, rows: Sequence[Mapping[str, Any]], keys: Sequence[str] | None = None
) -> None:
    """Writes rows (dicts of the same keys) as CSV; replaces `path` whole or not at all.

    Args:
        path: the file.
        rows: the dicts.
        keys: the head of the table; None: the keys of the first row, of which there is at least one then.
    """
    with (
        replacing(path) as beside,
        beside.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file,
    ):
        writer = csv.DictWriter(file, fieldnames=keys or rows[0])
        writer.writeheader()
        writer.writerows(rows)


def readable(path: str | bytes | os.PathLike) -> str:
    """A path as text that can be printed and written: what is no UTF-8 shows as \\xNN."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")
