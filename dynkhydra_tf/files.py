"""Writing a file so that a reader sees the old one or the new one, never half of one."""

import contextlib
import csv
import json
import os
import pathlib
import tempfile
from collections.abc import Iterator

from dynkhydra_tf.errors import UserError


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
    beside = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    try:
        yield beside
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


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


def user_cache_dir(name: str) -> pathlib.Path:
    """`dynkhydra_tf/NAME` in the user's cache folder ($XDG_CACHE_HOME, or ~/.cache)."""
    cache_home = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
    return pathlib.Path(cache_home) / "dynkhydra_tf" / name


def write_text(path: str | os.PathLike, text: str) -> None:
    """Writes text as UTF-8; replaces `path` whole or not at all."""
    with replacing(path) as beside:
        beside.write_text(text, encoding="utf-8")


def write_json(path: str | os.PathLike, value) -> None:
    """Writes a value as indented JSON; replaces `path` whole or not at all."""
    write_text(path, json.dumps(value, indent=2) + "\n")


def write_csv(path: str | os.PathLike, rows) -> None:
    """Writes rows (dicts of the same keys, at least one) as CSV; replaces `path` whole or not at all."""
    with replacing(path) as beside, beside.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=rows[0])
        writer.writeheader()
        writer.writerows(rows)
