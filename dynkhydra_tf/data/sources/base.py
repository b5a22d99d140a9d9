"""`Source`: what the catalog needs of a place where images come from."""

from collections.abc import Callable
from typing import ClassVar

import numpy as np
import tensorflow as tf


class Source:
    """The splits `train` and `test` of one data set; the examples of a split are numbered, always alike.

    Attributes:
        settings: names of the arguments that its constructor takes from `load_data`'s.
        held_out: (n,) bool, which examples of `train` the data set itself means for validation; or None.
        fingerprint: str that differs wherever the images do, for sets whose name does not tell; or None.
        place: the path that tells sets of one name apart; "" where the name is enough.
    """

    settings: ClassVar[tuple[str, ...]] = ()
    held_out: np.ndarray | None = None
    fingerprint: str | None = None
    place: str = ""

    def label_names(self, feature: str = "label") -> tuple[str, ...]:
        """The names of a label feature's values."""
        raise NotImplementedError

    def size(self, split: str) -> int:
        """n, the number of examples of a split."""
        raise NotImplementedError

    def labels(self, split: str, feature: str = "label") -> np.ndarray:
        """(n,) int, a label of each example; no image is decoded."""
        raise NotImplementedError

    def content(self, split: str) -> str:
        """What tells the examples of a split, images and order, from others: a hash, cheap to compute."""
        raise NotImplementedError

    def read(self, split: str, wanted: np.ndarray | None = None) -> tf.data.Dataset:
        """The examples one after the other.

        Args:
            split: `train` or `test`.
            wanted: (n,) bool, the examples to read; the others are not decoded. None: all.

        Returns:
            An unbatched `tf.data.Dataset` of (picture (H,W,C), label () int).
        """
        raise NotImplementedError

    def fetch(self, split: str) -> Callable:
        """Random access: a function (index () int64) -> (picture, label) for a `tf.data` map."""
        raise NotImplementedError
