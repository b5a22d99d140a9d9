"""Which photos the names on a command line stand for: files, folders, globs, standard input."""

import glob
import os
import sys
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from dynkhydra_tf.errors import UserError

ENDINGS = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".gif", ".bmp", ".webp")


class Problem(NamedTuple):
    """A name that stands for no photo, or a photo that cannot be read.

    Attributes:
        name: as it was given, or the photo's path.
        reason: in a few words.
    """

    name: str
    reason: str


def find_photos(names: Iterable[str]) -> tuple[list[str], list[Problem]]:
    """Finds the photos that are meant; nothing is opened.

    Args:
        names: files, whatever their names end in; folders, of which all files of `ENDINGS` are taken, those
            of inner folders too, but no hidden ones; globs; "-" for a name a line on standard input.

    Returns:
        The paths, each once: in the order of the names, within a folder or glob sorted. And the names that
        stand for none.

    Raises:
        UserError: none of them stands for a photo.
    """
    photos: dict[str, None] = {}
    problems = []
    for name in _given(names):
        found, reason = _photos_of(name)
        photos |= dict.fromkeys(found)
        if reason:
            problems.append(Problem(name, reason))
    if not photos:
        told = ", ".join(f"{name}: {reason}" for name, reason in problems)
        raise UserError(f"There are no photos. {told or 'Standard input was empty'}")
    return list(photos), problems


def _given(names: Iterable[str]) -> Iterator[str]:
    """The names, with the lines of standard input in place of "-"."""
    for name in names:
        if name == "-":
            lines = (os.fsdecode(line).rstrip("\r\n") for line in sys.stdin.buffer)
            yield from filter(None, lines)
        else:
            yield name


def _photos_of(name: str) -> tuple[list[str], str | None]:
    """The photos that a name stands for, and what is wrong with it, if anything is."""
    if os.path.isdir(name):
        return _inside(name)
    if os.path.isfile(name):
        return [name], None
    if os.path.exists(name):
        return [], "not a file"
    if not glob.has_magic(name):
        return [], "no such file or folder"
    found: list[str] = []
    for path in sorted(glob.glob(name, recursive=True)):
        found += _inside(path)[0] if os.path.isdir(path) else [path]
    return found, None if found else "matches no photo"


def _inside(folder: str) -> tuple[list[str], str | None]:
    """The photos in a folder and below it, and why some or all are missing."""
    errors: list[OSError] = []
    found = []
    for path, folders, files in os.walk(folder, onerror=errors.append):
        folders[:] = [inner for inner in folders if not inner.startswith(".")]
        photos = (file for file in files if file.lower().endswith(ENDINGS) and not file.startswith("."))
        found += [os.path.join(path, file) for file in photos]
    if errors:
        return sorted(found), f"{errors[0].filename} cannot be listed: {errors[0].strerror}"
    return sorted(found), None if found else f"a folder without photos ({' '.join(ENDINGS)})"
