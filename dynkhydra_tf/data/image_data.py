"""`ImageData`: a labelled set of images, ready to be read.

M is the number of classes, S the side of the images.
"""

import dataclasses
import functools
import hashlib
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from dynkhydra_tf.data.preprocessing import preprocess
from dynkhydra_tf.data.sources.base import Source
from dynkhydra_tf.errors import UserError
from dynkhydra_tf.tuning import untuned

CACHES = ("auto", "memory", "none")
# Up to so many bytes of decoded images "auto" holds in memory; loading them takes twice as much for a moment.
AUTO_BYTES = 2**30
# As many images tell the mean and standard deviation of a channel to about 1 %.
STATISTICS_IMAGES = 5000
LEAST_STD = 1.0  # of a channel, in 0..255


@dataclasses.dataclass(frozen=True, eq=False)
class ImageData:
    """A labelled set of images.

    Attributes:
        name: its name in the catalog.
        class_names: M names; a label is an index into them.
        image_size: S; an image is (S,S,3) uint8.
        fit: how a picture becomes square, see `preprocess`; serving needs it.
        flip: whether a mirrored image is still of its class.
        sizes: number of images of the splits `train`, `validation` (0 where none is held out) and `test`.
        source: what it is read from, see `sources/`.
        held_out: for each example of the source's training split whether it is of `validation`, or None.
        coarse_feature: the source's feature with superclasses, or None.
        known_statistics: (mean, std) where they need not be computed, else None.
        cache: "memory" holds decoded images in memory, "none" reads and decodes them in each epoch, "auto"
            holds them where all splits together have at most `AUTO_BYTES`. Training sees the same either way.
    """

    name: str
    class_names: tuple[str, ...]
    image_size: int
    fit: str
    flip: bool
    sizes: dict[str, int]
    source: Source = dataclasses.field(repr=False)
    held_out: np.ndarray | None = dataclasses.field(default=None, repr=False)
    coarse_feature: str | None = None
    known_statistics: tuple | None = None
    cache: str = "auto"

    @property
    def num_classes(self) -> int:
        """M."""
        return len(self.class_names)

    @property
    def fingerprint(self) -> str | None:
        """What tells this set from others of its name, or None; see `Source`."""
        return self.source.fingerprint

    @property
    def record(self) -> dict[str, Any]:
        """What a run notes of its data, to know them again: a dict for JSON."""
        return {
            "dataset": self.name,
            "class_names": list(self.class_names),
            "sizes": dict(self.sizes),
            "fingerprint": self.fingerprint,
        }

    @property
    def in_memory(self) -> bool:
        """Whether a split is held in memory, decoded, while it is used."""
        if self.cache == "auto":
            return sum(self.sizes.values()) * self.image_size**2 * 3 <= AUTO_BYTES
        return self.cache == "memory"

    def examples(self, split: str) -> tf.data.Dataset:
        """The preprocessed images of a split, in an order that never changes.

        Args:
            split: `train`, `validation` or `test`.

        Returns:
            An unbatched, uncached `tf.data.Dataset` of (image (S,S,3) uint8, label () int32).

        Raises:
            UserError: an unknown split, or one without images.
        """
        source_split, wanted = self._in_source(split)
        examples = self.source.read(source_split, wanted).apply(untuned)
        examples = examples.map(self._prepare, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
        return examples.apply(tf.data.experimental.assert_cardinality(self.sizes[split]))

    def labels(self, split: str) -> np.ndarray:
        """(n,) int32, the labels of a split in the order of `examples`; no image is decoded."""
        source_split, wanted = self._in_source(split)
        labels = self.source.labels(source_split).astype(np.int32)
        return labels if wanted is None else labels[wanted]

    def content(self, split: str) -> str:
        """A hash that tells the images of a split, as `examples` gives them, from others."""
        source_split, wanted = self._in_source(split)
        members = None if wanted is None else np.flatnonzero(wanted).tolist()
        known = [self.source.content(source_split), members, self.image_size, self.fit]
        return hashlib.sha256(repr(known).encode()).hexdigest()

    def fetch(self, split: str) -> Callable[[tf.Tensor], tuple[tf.Tensor, tf.Tensor]]:
        """Random access to the images of a split, numbered in the order of `examples`.

        Args:
            split: `train`, `validation` or `test`.

        Returns:
            A function (index () int) -> (image (S,S,3) uint8, label () int32), for a `tf.data` map.

        Raises:
            UserError: an unknown split, one without images, or a source that has no random access.
        """
        source_split, wanted = self._in_source(split)
        fetch = self.source.fetch(source_split)
        positions = None if wanted is None else tf.constant(np.flatnonzero(wanted))

        def fetch_image(index):
            index = tf.cast(index, tf.int64)
            return self._prepare(*fetch(index if positions is None else positions[index]))

        return fetch_image

    @property
    def mean(self) -> np.ndarray:
        """Of each channel over the training images, in 0..255."""
        return self._statistics[0]

    @property
    def std(self) -> np.ndarray:
        """Standard deviation of each channel over the training images, in 0..255, at least `LEAST_STD`."""
        return self._statistics[1]

    @property
    def coarse_names(self) -> tuple[str, ...] | None:
        """Names of the superclasses, or None."""
        return self.source.label_names(self.coarse_feature) if self.coarse_feature else None

    @functools.cached_property
    def coarse_of_class(self) -> tuple[int, ...]:
        """The superclass of each class: M indices into `coarse_names`.

        Found from the labels of the training split, when it is first asked for.

        Raises:
            UserError: the data set has no superclasses.
        """
        if self.coarse_feature is None:
            raise UserError(
                f"{self.name} has no superclasses (coarse labels), which the strategy 'semantic' needs; "
                "choose another strategy"
            )
        coarse_of_class = np.full(self.num_classes, -1)
        coarse_of_class[self.source.labels("train")] = self.source.labels("train", self.coarse_feature)
        if (coarse_of_class < 0).any():
            absent = self.class_names[int(coarse_of_class.argmin())]
            raise UserError(
                f"{self.name} has no training image of class {absent!r}: its superclass is unknown"
            )
        return tuple(coarse_of_class.tolist())

    @functools.cached_property
    def _statistics(self):
        """Mean and standard deviation over the source's first training images, its validation among them."""
        if self.known_statistics is not None:
            return self.known_statistics
        images = (
            self.source.read("train").take(STATISTICS_IMAGES).map(lambda *example: self._prepare(*example)[0])
        )
        total, squares, count = np.zeros(3), np.zeros(3), 0
        for batch in images.batch(64).as_numpy_iterator():
            pixels = batch.reshape(-1, 3).astype(np.float64)
            total += pixels.sum(axis=0)
            squares += (pixels**2).sum(axis=0)
            count += len(pixels)
        mean = total / count
        # Of a channel that is the same everywhere it is 0, or from rounding less, and will be divided by.
        std = np.sqrt(np.maximum(squares / count - mean**2, LEAST_STD**2))
        return tuple(mean.tolist()), tuple(std.tolist())

    def _in_source(self, split):
        """The source's split with the examples of `split`, and which these are: (n,) bool, None for all."""
        if not self.sizes.get(split):
            allowed = ", ".join(name for name, size in self.sizes.items() if size)
            raise UserError(f"{self.name} has images in the splits {allowed}. Received: split={split!r}")
        if split == "test":
            return "test", None
        return "train", None if self.held_out is None else self.held_out == (split == "validation")

    def _prepare(self, picture, label):
        return preprocess(picture, self.image_size, self.fit), tf.cast(label, tf.int32)
