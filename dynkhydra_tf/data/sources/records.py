"""Reading single records of TFRecord files, in any order.

A TFRecord file is a row of records: the length of the data (8 bytes, little-endian), its checksum (4), the
data, and their checksum (4). One pass over the lengths finds where each record begins; training can then read
a set that is larger than the memory in a new order in each epoch.
"""

import array
import mmap
import os
import struct
from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from dynkhydra_tf.errors import UserError


class Records:
    """The records of several TFRecord files, numbered from 0 in the order of the files.

    Args:
        parts: list of (path, first, count): `count` records of the file from number `first` on, all that
            follow where `count` is below 0.

    Raises:
        UserError: a file that is no local one, or ends within a record.
    """

    def __init__(self, parts: Sequence[tuple[str | os.PathLike, int, int]]) -> None:
        """Looks for the records."""
        self._paths = [os.fspath(path) for path, *_ in parts]
        found = []
        for path, (_, first, count) in zip(self._paths, parts, strict=True):
            places = _places(path)
            found.append(places[first : len(places) if count < 0 else first + count])
        self._file = np.repeat(np.arange(len(found)), [len(places) for places in found])
        self._places = np.concatenate(found)

    def __len__(self) -> int:
        """The number of records."""
        return len(self._places)

    def read(self, index: tf.Tensor) -> tf.Tensor:
        """The bytes of a record, () string; `index` is () int64, and this works in a `tf.data` map."""
        record = tf.numpy_function(self._read, [index], tf.string, stateful=False)
        return tf.ensure_shape(record, ())

    def _read(self, index):
        start, length = self._places[index]
        with open(self._paths[self._file[index]], "rb", buffering=0) as file:
            return os.pread(file.fileno(), int(length), int(start))


def _places(path):
    """(n,2) int64: where the data of each record begin, and how many bytes they are."""
    places, at = array.array("q"), 0
    try:
        with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            end = len(content)
            while at < end:
                (length,) = struct.unpack_from("<Q", content, at)
                places.extend((at + 12, length))
                at += length + 16
    except (OSError, ValueError, struct.error) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{path} cannot be read in any order ({reason}): use --cache=memory") from error
    if at != end:
        raise UserError(f"{path} ends within a record: it was not copied or written to its end")
    return np.frombuffer(places, np.int64).reshape(-1, 2)
