"""The catalog of data sets: what each is called, how its images are prepared, and how to get them.

`load_data(name)` gives an `ImageData`, `open_data(settings)` the one of a run's settings. A new data set is
one entry of `DATASETS`: its source (`sources/`) and what differs from the defaults of `Entry`. Beside them,
tfds:NAME is any set of tensorflow-datasets.
"""

import dataclasses
import os
from collections.abc import Mapping

from dynkhydra_tf.data.image_data import CACHES, ImageData
from dynkhydra_tf.data.preprocessing import FITS
from dynkhydra_tf.data.sources.base import Source
from dynkhydra_tf.data.sources.digits import DigitsSource
from dynkhydra_tf.data.sources.folder.source import FolderSource
from dynkhydra_tf.data.sources.tfds import TfdsSource
from dynkhydra_tf.data.splits import draw_stratified
from dynkhydra_tf.errors import UserError
from dynkhydra_tf.files import readable
from dynkhydra_tf.settings import DataSettings


@dataclasses.dataclass(frozen=True)
class Entry:
    """One data set of the catalog.

    Attributes:
        source: the kind of its source, a subclass of `Source`.
        arguments: what the source is made with, beside its `settings`, which are taken from `load_data`'s
            arguments.
        image_size: S, side of the network's input in pixels, unless `load_data` is given another.
        fit: how a picture becomes square, see `preprocess`; likewise.
        flip: whether a mirrored image is still of its class.
        validation_fraction: part of the training images that is held out unless it is said how many.
        statistics: mean and standard deviation per channel, in 0..255; None: computed from training images.
        coarse_feature: the source's feature with superclasses, or None.
    """

    source: type[Source]
    arguments: Mapping[str, object] = dataclasses.field(default_factory=dict)
    image_size: int = 32  # what the default backbone, ResNet, is made for
    fit: str = "stretch"
    flip: bool = True
    validation_fraction: float = 0.0
    statistics: tuple | None = None
    coarse_feature: str | None = None


def _tfds(tfds_name, **settings):
    return {"source": TfdsSource, "arguments": {"tfds_name": tfds_name, **settings}}


DATASETS = {
    "cifar100": Entry(
        **_tfds("cifar100"),
        statistics=(
            (0.50708 * 255, 0.48655 * 255, 0.44092 * 255),
            (0.26733 * 255, 0.25644 * 255, 0.27615 * 255),
        ),
        coarse_feature="coarse_label",
    ),
    # The paper has 9,000 training images: of all 11,788, for the set's own split has 5,994.
    "cub200": Entry(
        **_tfds("caltech_birds2011", pool="train+test", test_fraction=2788 / 11788),
        image_size=224,
        fit="crop",
    ),
    "digits": Entry(DigitsSource, flip=False),
    # Photographs come in all proportions; nothing is cut off.
    "folder": Entry(FolderSource, fit="pad", validation_fraction=0.1),
    "food101": Entry(**_tfds("food101", test_split="validation"), fit="pad"),
    "imagenet32": Entry(**_tfds("imagenet_resized/32x32", test_split="validation")),
}


def find_entry(name: str) -> Entry:
    """The entry of a data set, or one made for tfds:NAME.

    Raises:
        UserError: an unknown name.
    """
    prefix, _, tfds_name = name.partition(":")
    if prefix == "tfds" and tfds_name:
        return Entry(**_tfds(tfds_name, test_split=None), fit="pad")
    if name not in DATASETS:
        raise UserError(f"data set must be one of {', '.join(DATASETS)}, or tfds:NAME. Received: {name!r}")
    return DATASETS[name]


def load_data(
    name: str,
    data_dir: str | os.PathLike | None = None,
    validation_fraction: float | None = 0.0,
    download: bool = True,
    image_size: int | None = None,
    fit: str | None = None,
    test_fraction: float = 0.2,
    max_bad_images: int = 0,
    labels: str | os.PathLike | None = None,
    cache: str = "auto",
    cache_dir: str | os.PathLike | None = None,
) -> ImageData:
    """Opens a data set of the catalog.

    Args:
        name: a key of `DATASETS`, or tfds:NAME.
        data_dir: for `folder` the folder; else the directory with the prepared data sets of
            tensorflow-datasets, which downloads go to as well, None for its default. Not needed for `digits`.
        validation_fraction: part of each class's training images to hold out as the split `validation`,
            0 to 0.5. The draw is the same whatever the seed of the training run. None: the data set's own
            part, where it has no such images itself and enough to draw some.
        download: whether a data set that is not in `data_dir` may be downloaded. Nothing is downloaded, and
            no network touched, where it is there.
        image_size: S; None: the data set's own, see `Entry`.
        fit: how a picture becomes square, see `preprocess`; None: the data set's own.
        test_fraction: for `folder` and tfds:NAME where they have no test split, the part of each class
            that is drawn for it.
        max_bad_images: for `folder`, most files that may be left out because they are no images.
        labels: for `folder`, a table that names the classes of images, see `find_images`.
        cache: whether decoded images are held in memory, one of `CACHES`, see `ImageData`.
        cache_dir: for `folder`, where the check of its files is kept, see `check_files`.

    Returns:
        ImageData.

    Raises:
        UserError: an unknown name, a fraction out of range or too small to hold out anything, a data set
            that is neither there nor to be had, or what `FolderSource` raises.
    """
    entry = find_entry(name)
    if validation_fraction is not None and not 0 <= validation_fraction <= 0.5:
        raise UserError(f"validation_fraction must be from 0 to 0.5. Received: {validation_fraction}")
    for argument, value, allowed in (("fit", fit or entry.fit, FITS), ("cache", cache, CACHES)):
        if value not in allowed:
            raise UserError(f"{argument} must be one of {', '.join(allowed)}. Received: {value!r}")
    given: dict[str, object] = {
        "data_dir": data_dir,
        "download": download,
        "test_fraction": test_fraction,
        "max_bad_images": max_bad_images,
        "labels": labels,
        "cache_dir": cache_dir,
    }
    if labels and "labels" not in entry.source.settings:
        raise UserError(f"labels are for --dataset=folder; {name} has its own. Received: {readable(labels)}")
    taken = {setting: given[setting] for setting in entry.source.settings}
    source = entry.source(**{**taken, **entry.arguments})
    if validation_fraction is None:
        held_out = source.held_out
        if held_out is None and entry.validation_fraction:
            held_out = draw_stratified(source.labels("train"), entry.validation_fraction)
            held_out = held_out if held_out.any() else None
    else:
        held_out = _draw_validation(name, source, validation_fraction)
    sizes = {"train": source.size("train"), "validation": 0, "test": source.size("test")}
    if held_out is not None:
        sizes["validation"] = int(held_out.sum())
        sizes["train"] -= sizes["validation"]
    return ImageData(
        name=name,
        class_names=source.label_names(),
        image_size=image_size or entry.image_size,
        fit=fit or entry.fit,
        flip=entry.flip,
        sizes=sizes,
        source=source,
        held_out=held_out,
        coarse_feature=entry.coarse_feature,
        known_statistics=entry.statistics,
        cache=cache,
    )


def open_data(
    settings: DataSettings, cache_dir: str | os.PathLike | None = None, download: bool = True
) -> ImageData:
    """Opens the data set that the settings describe; see `load_data`."""
    return load_data(
        settings.dataset,
        data_dir=settings.data_dir,
        validation_fraction=settings.validation_fraction,
        download=download,
        image_size=settings.image_size,
        fit=settings.fit,
        test_fraction=settings.test_fraction,
        max_bad_images=settings.max_bad_images,
        labels=settings.labels,
        cache=settings.cache,
        cache_dir=cache_dir,
    )


def _draw_validation(name, source, fraction):
    """Which of the source's training images are for validation: (n,) bool; None for none."""
    if not fraction:
        return source.held_out
    if source.held_out is not None:
        raise UserError(
            f"{name} has validation images of its own. Received: validation_fraction={fraction}; leave it out"
        )
    held_out = draw_stratified(source.labels("train"), fraction)
    if not held_out.any():
        raise UserError(
            f"validation_fraction={fraction} holds out no image of {name}; "
            "give 0 for no validation split, or a larger fraction"
        )
    return held_out
