"""The catalog of data sets: what each is called, how its images are prepared, and how to get them.

`load_data(name)` gives an `ImageData`. A new data set is one entry of `DATASETS`: its source (`sources.py`)
and what differs from the defaults of `Entry`. M is the number of classes, S the side of the images.
"""

import dataclasses
import functools
from collections.abc import Callable

import numpy as np
import tensorflow as tf

from dynkhydra_tf.data.preprocessing import preprocess
from dynkhydra_tf.data.sources import DigitsSource, TfdsSource
from dynkhydra_tf.errors import UserError


@dataclasses.dataclass(frozen=True)
class Entry:
    """One data set of the catalog.

    Attributes:
        source: makes the data set's source from `data_dir` and `download`.
        image_size: S, side of the network's input in pixels.
        fit: how a picture becomes square, see `preprocess`.
        flip: whether a mirrored image is still of its class.
        mean, std: per channel, in 0..255; None: computed from the training split when it is loaded.
        coarse_feature: the source's feature with superclasses, or None.
    """

    source: Callable
    image_size: int
    fit: str = "stretch"
    flip: bool = True
    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None
    coarse_feature: str | None = None


DATASETS = {
    "cifar100": Entry(
        source=functools.partial(TfdsSource, "cifar100"),
        image_size=32,
        mean=(0.50708 * 255, 0.48655 * 255, 0.44092 * 255),
        std=(0.26733 * 255, 0.25644 * 255, 0.27615 * 255),
        coarse_feature="coarse_label",
    ),
    "digits": Entry(source=DigitsSource, image_size=32, flip=False),
}


@dataclasses.dataclass(frozen=True, eq=False)
class ImageData:
    """A labelled set of images, ready to be read.

    Attributes:
        name: its name in the catalog.
        class_names: M names; a label is an index into them.
        image_size: S; an image is (S,S,3) uint8.
        fit: how a picture becomes square, see `preprocess`; serving needs it.
        flip: whether a mirrored image is still of its class.
        mean, std: of each channel over the whole training split, in 0..255.
        sizes: number of images of the splits `train`, `validation` (0 where none is held out) and `test`.
        coarse_names: names of the superclasses, or None.
        coarse_feature: the source's feature with superclasses, or None.
        source: what it is read from, see `sources.py`.
        held_out: for each example of the source's training split whether it is of `validation`, or None.
    """

    name: str
    class_names: tuple[str, ...]
    image_size: int
    fit: str
    flip: bool
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    sizes: dict[str, int]
    coarse_names: tuple[str, ...] | None
    coarse_feature: str | None
    source: object = dataclasses.field(repr=False)
    held_out: np.ndarray | None = dataclasses.field(repr=False)

    @property
    def num_classes(self):
        """M."""
        return len(self.class_names)

    def examples(self, split):
        """The preprocessed images of a split, in an order that never changes.

        Args:
            split: `train`, `validation` or `test`.

        Returns:
            An unbatched, uncached `tf.data.Dataset` of (image (S,S,3) uint8, label () int32).

        Raises:
            UserError: an unknown split, or one without images.
        """
        if not self.sizes.get(split):
            allowed = ", ".join(name for name, size in self.sizes.items() if size)
            raise UserError(f"{self.name} has images in the splits {allowed}. Received: split={split!r}")
        examples = self.source.read("test" if split == "test" else "train", "image", "label")
        if split != "test" and self.held_out is not None:
            wanted = tf.constant(self.held_out == (split == "validation"))
            examples = examples.enumerate().filter(lambda index, _: wanted[index]).map(lambda _, pair: pair)
        examples = examples.map(
            lambda image, label: (preprocess(image, self.image_size, self.fit), tf.cast(label, tf.int32)),
            num_parallel_calls=tf.data.AUTOTUNE,
            deterministic=True,
        )
        return examples.apply(tf.data.experimental.assert_cardinality(self.sizes[split]))

    @functools.cached_property
    def coarse_of_class(self):
        """The superclass of each class: M indices into `coarse_names`.

        Found in one pass over the labels of the training split, when it is first asked for.

        Raises:
            UserError: the data set has no superclasses.
        """
        if self.coarse_feature is None:
            raise UserError(
                f"{self.name} has no superclasses (coarse labels), which the strategy 'semantic' needs; "
                "choose another strategy"
            )
        labels, coarse_labels = _all(self.source.read("train", "label", self.coarse_feature))
        coarse_of_class = np.full(self.num_classes, -1)
        coarse_of_class[labels] = coarse_labels
        if (coarse_of_class < 0).any():
            absent = self.class_names[int(coarse_of_class.argmin())]
            raise UserError(
                f"{self.name} has no training image of class {absent!r}: its superclass is unknown"
            )
        return tuple(coarse_of_class.tolist())


def load_data(name, data_dir=None, validation_fraction=0.0, download=True):
    """Opens a data set of the catalog.

    Args:
        name: a key of `DATASETS`.
        data_dir: directory with the prepared data sets of tensorflow-datasets, which downloads go to as well;
            None for its default. Not needed for `digits`.
        validation_fraction: part of each class's training images to hold out as the split `validation`,
            0 to 0.5. The draw is the same whatever the seed of the training run.
        download: whether a data set that is not in `data_dir` may be downloaded. Nothing is downloaded, and
            no network touched, where it is there.

    Returns:
        ImageData.

    Raises:
        UserError: an unknown name, a fraction out of range or too small to hold out anything, a data set
            that is neither there nor to be had.
    """
    if name not in DATASETS:
        raise UserError(f"data set must be one of {', '.join(DATASETS)}. Received: {name!r}")
    if not 0 <= validation_fraction <= 0.5:
        raise UserError(f"validation_fraction must be from 0 to 0.5. Received: {validation_fraction}")
    entry = DATASETS[name]
    source = entry.source(data_dir=data_dir, download=download)
    sizes = {"train": source.size("train"), "validation": 0, "test": source.size("test")}
    held_out = None
    if validation_fraction:
        (labels,) = _all(source.read("train", "label"))
        held_out = draw_held_out(labels, validation_fraction)
        sizes["validation"] = int(held_out.sum())
        sizes["train"] -= sizes["validation"]
        if not sizes["validation"]:
            raise UserError(
                f"validation_fraction={validation_fraction} holds out no image of {name}; "
                "give 0 for no validation split, or a larger fraction"
            )
    mean, std = entry.mean, entry.std
    if mean is None:
        mean, std = _channel_statistics(source, entry)
    return ImageData(
        name=name,
        class_names=source.label_names("label"),
        image_size=entry.image_size,
        fit=entry.fit,
        flip=entry.flip,
        mean=mean,
        std=std,
        sizes=sizes,
        coarse_names=entry.coarse_feature and source.label_names(entry.coarse_feature),
        coarse_feature=entry.coarse_feature,
        source=source,
        held_out=held_out,
    )


def draw_held_out(labels, fraction):
    """Draws the same part of each class: of n images round(fraction * n), always the same ones.

    Args:
        labels: (n,) integers.
        fraction: 0 to 1.

    Returns:
        (n,) bool, True for the images drawn.
    """
    # RandomState and not default_rng: numpy promises that its stream never changes.
    order = np.random.RandomState(0).permutation(len(labels))
    held_out = np.zeros(len(labels), bool)
    for label in np.unique(labels):
        members = order[labels[order] == label]
        held_out[members[: round(fraction * len(members))]] = True
    return held_out


def _channel_statistics(source, entry):
    """Mean and standard deviation of each channel over the source's training split, in 0..255."""
    pictures = source.read("train", "image")
    images = pictures.map(lambda picture: preprocess(picture, entry.image_size, entry.fit))
    total, squares, count = np.zeros(3), np.zeros(3), 0
    for batch in images.batch(256).as_numpy_iterator():
        pixels = batch.reshape(-1, 3).astype(np.float64)
        total += pixels.sum(axis=0)
        squares += (pixels**2).sum(axis=0)
        count += len(pixels)
    mean = total / count
    return tuple(mean.tolist()), tuple(np.sqrt(squares / count - mean**2).tolist())


def _all(dataset):
    """All elements of a dataset of tuples: one numpy array for each place of the tuple."""
    batches = list(dataset.batch(4096).as_numpy_iterator())
    return [np.concatenate(parts) for parts in zip(*batches, strict=True)]
