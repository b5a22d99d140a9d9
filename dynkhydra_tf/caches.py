"""Caches: files that could be made again, kept in the user's home or where --cache_dir says."""

import atexit
import functools
import os
import pathlib
import shutil
import sys
import tempfile
from collections.abc import Callable

from absl import logging

from dynkhydra_tf.files import replacing


def user_cache_dir(name: str) -> pathlib.Path:
    """`dynkhydra_tf/NAME` in the user's cache folder ($XDG_CACHE_HOME, or ~/.cache)."""
    provide_home()
    cache_home = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
    return pathlib.Path(cache_home) / "dynkhydra_tf" / name


def provide_home() -> None:
    """Where the process has no home, gives it one that goes with it, and says so.

    A container that runs under a user id of its own has none: no $HOME, and no entry in the list of users.
    Keras, KerasCV and tensorflow-datasets ask for it when they are imported, and fail or litter.
    """
    if os.path.expanduser("~") != "~":
        return
    os.environ["HOME"] = tempfile.mkdtemp(prefix="dynkhydra_tf-home-")
    atexit.register(shutil.rmtree, os.environ["HOME"], ignore_errors=True)
    print(
        "There is no home directory: nothing is cached for the next time; --cache_dir gives a place.",
        file=sys.stderr,
    )


def write_cache(path: pathlib.Path, write: Callable[[pathlib.Path], None]) -> None:
    """Writes a file of a cache; where that cannot be, goes on without it and says so once.

    Args:
        path: the file.
        write: is called with the path to write to.
    """
    try:
        with replacing(path) as beside:
            write(beside)
    except OSError as error:
        there = next(parent for parent in path.absolute().parents if os.path.exists(parent))
        _warn(there, error.strerror or str(error))


@functools.cache
def _warn(directory, reason):
    logging.warning("Nothing is cached: cannot write to %s (%s)", directory, reason)
