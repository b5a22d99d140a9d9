"""Scikit-learn's handwritten digits."""

import functools
import hashlib
from collections.abc import Callable

import numpy as np
import tensorflow as tf

from dynkhydra_tf.data.sources.base import Source


class DigitsSource(Source):
    """Scikit-learn's 1,797 handwritten digits, 10 classes: real data that needs no download.

    The pictures are (8,8,1) uint8, scaled from 0..16 to 0..255. The data set has no split of its own; a third
    is drawn as the test split, stratified, the same on every machine.
    """

    def label_names(self, feature: str = "label") -> tuple[str, ...]:
        """The digits "0" to "9"."""
        return tuple(str(digit) for digit in range(10))

    def size(self, split: str) -> int:
        """The number of images of a split."""
        return len(self._splits[split][1])

    def labels(self, split: str, feature: str = "label") -> np.ndarray:
        """The digit of each image."""
        return self._splits[split][1]

    def read(self, split: str, wanted: np.ndarray | None = None) -> tf.data.Dataset:
        """A dataset of (picture (8,8,1) uint8, label)."""
        pictures, labels = self._splits[split]
        chosen = slice(None) if wanted is None else wanted
        return tf.data.Dataset.from_tensor_slices((pictures[chosen], labels[chosen]))

    def content(self, split: str) -> str:
        """A hash of the images."""
        return hashlib.sha256(self._splits[split][0].tobytes()).hexdigest()

    def fetch(self, split: str) -> Callable:
        """A function of an index."""
        pictures, labels = map(tf.constant, self._splits[split])
        return lambda index: (pictures[index], labels[index])

    @functools.cached_property
    def _splits(self):
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split

        digits = load_digits()
        images = np.round(digits.images[..., None] * (255 / 16)).astype(np.uint8)
        train_images, test_images, train_labels, test_labels = train_test_split(
            images, digits.target, test_size=1 / 3, stratify=digits.target, random_state=0
        )
        return {"train": (train_images, train_labels), "test": (test_images, test_labels)}
