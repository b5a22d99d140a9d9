"""Which files of an image folder are images: each one is read and decoded once.

What was found is kept in a cache, under a key made of the paths, sizes and times of the files: opening the
same folder again, to go on with a run or to evaluate it, only looks at those.
"""

import dataclasses
import hashlib
import os
import pathlib
import stat

import keras
import numpy as np
import tensorflow as tf
from absl import logging

from dynkhydra_tf.caches import user_cache_dir, write_cache
from dynkhydra_tf.data.decoding import decode_picture, why_unreadable
from dynkhydra_tf.files import readable
from dynkhydra_tf.tuning import untuned

BAD = -1  # in place of a file's hash
# Another one whenever `decode_picture` comes to read other files: what was found before no longer holds then.
DECODER = b"2"


@dataclasses.dataclass(frozen=True)
class Check:
    """What was found.

    Attributes:
        good: (n,) bool, whether the file is an image that can be decoded.
        fingerprint: a hash of the paths and the contents of the good ones.
    """

    good: np.ndarray
    fingerprint: str


def check_files(
    root: str | os.PathLike, paths: np.ndarray, cache_dir: str | os.PathLike | None = None
) -> Check:
    """Decodes every file once, on all cores, unless the cache knows them.

    Args:
        root: the folder.
        paths: (n,) bytes, relative to it.
        cache_dir: where what was found is kept; None: `user_cache_dir("folders")`.

    Returns:
        Check.
    """
    states = [_state(root, path) for path in paths]
    key = hashlib.sha256(
        b"\0".join([DECODER, os.fsencode(os.path.abspath(root)), *paths, *states])
    ).hexdigest()
    cache_dir = user_cache_dir("folders") if cache_dir is None else os.path.expanduser(cache_dir)
    cached = pathlib.Path(cache_dir) / f"folder-{key[:32]}.npy"
    hashes = _read_cache(cached, len(paths))
    if hashes is None:
        hashes = _hashes(root, paths, [bool(state) for state in states])
        write_cache(cached, lambda beside: np.save(beside, hashes))
    good = hashes != BAD
    fingerprint = hashlib.sha256(b"\0".join(paths[good]) + b"\0" + hashes[good].tobytes())
    return Check(good, fingerprint.hexdigest())


def why_bad(path: str | bytes) -> str:
    """Says in a few words why a file is not taken for an image."""
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            return "not a file"
        with open(path, "rb") as file:
            content = file.read()
    except OSError as error:
        return error.strerror
    if not content:
        return "empty"
    return why_unreadable(content) or "could not be read before"


def _state(root, path):
    """What changes with a file or its permissions, as bytes; empty for what is no file, or not there."""
    try:
        state = os.stat(os.path.join(os.fsencode(root), path))
    except OSError:
        return b""
    if not stat.S_ISREG(state.st_mode):
        return b""
    return b"%d %d %d" % (state.st_size, state.st_mtime_ns, state.st_ctime_ns)


def _hashes(root, paths, present):
    """(n,) int64, a hash of each file's bytes, or `BAD`; a file that is not `present` is not opened."""
    hashes = np.full(len(paths), BAD)
    folder = tf.constant(os.path.join(os.fsencode(root), b""))

    def look(index, path):
        content = tf.io.read_file(folder + path)
        # The size is handed on, because what nobody asks for is not computed.
        return index, tf.strings.to_hash_bucket_fast(content, 2**63 - 1), tf.size(decode_picture(content))

    indices = np.flatnonzero(present)
    files = tf.data.Dataset.from_tensor_slices((indices, tf.constant(paths[indices].tolist(), tf.string)))
    files = files.apply(untuned).map(look, num_parallel_calls=tf.data.AUTOTUNE).ignore_errors().batch(256)
    print(f"Looking at {len(paths)} files in {readable(root)}", flush=True)
    bar = keras.utils.Progbar(len(paths), unit_name="file")
    for some, values, _ in files:
        hashes[some] = values
        bar.update(int(some[-1]) + 1, finalize=False)
    bar.update(len(paths), finalize=True)
    return hashes


def _read_cache(path, count):
    """The hashes at `path`; None where there are none, or none to be trusted."""
    try:
        hashes = np.load(path, allow_pickle=False)
    except FileNotFoundError:
        return None
    except Exception as error:  # a damaged file raises one of several kinds
        logging.warning("The cached check %s is damaged (%s): looking again.", path, error)
        return None
    return hashes if hashes.shape == (count,) and hashes.dtype == np.int64 else None
