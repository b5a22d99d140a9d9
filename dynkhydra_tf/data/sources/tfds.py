"""The data sets of tensorflow-datasets."""

import hashlib
import logging
import os
from collections.abc import Callable
from typing import ClassVar

import numpy as np
import tensorflow as tf

from dynkhydra_tf.data.decoding import decode_picture
from dynkhydra_tf.data.sources.base import Source
from dynkhydra_tf.data.sources.records import Records
from dynkhydra_tf.data.splits import draw_stratified
from dynkhydra_tf.errors import UserError
from dynkhydra_tf.files import readable

REACH_TIMEOUT = 10  # seconds


class TfdsSource(Source):
    """A data set of tensorflow-datasets, read from `data_dir` and downloaded where it is not there.

    Args:
        tfds_name: its name in tensorflow-datasets, with its config where it has some: NAME or NAME/CONFIG.
        data_dir: directory of prepared data sets, or None for tensorflow-datasets' own default.
        download: whether a data set that is not there may be downloaded.
        test_split: the name of its test split. None: `test` or else `validation`; where it has only `train`,
            a part of that is drawn, as if `pool` were "train".
        pool: tensorflow-datasets' name of what is divided anew into training and test, such as
            "train+test", by a fixed stratified draw; None: the data set's own splits are used.
        test_fraction: where there is a pool, the part of it for testing.

    Raises:
        UserError: `data_dir` is no directory, there is no such data set, it is not there and cannot be
            downloaded, its files are no TFRecords, it has no `image` of whole numbers with a `label` that has
            names, or no split `train`.
    """

    settings: ClassVar = ("data_dir", "download", "test_fraction")

    def __init__(
        self,
        tfds_name: str,
        data_dir: str | os.PathLike | None = None,
        download: bool = True,
        test_split: str | None = "test",
        pool: str | None = None,
        test_fraction: float | None = None,
    ) -> None:
        """Finds the prepared data set, or downloads and prepares it."""
        tfds = _tensorflow_datasets()

        data_dir = data_dir and _checked_path(data_dir)
        if data_dir is not None and not tf.io.gfile.isdir(data_dir):
            raise UserError(
                f"data_dir={os.fspath(data_dir)!r} is not a directory; give one that holds {tfds_name} as "
                "tensorflow-datasets prepares it, or make an empty one to download it to"
            )
        try:
            self._builder = tfds.builder(tfds_name, data_dir=data_dir, try_gcs=False)
        except (tfds.core.DatasetNotFoundError, ValueError) as error:
            reason = str(error).strip().split("\n")[0]
            raise UserError(f"tensorflow-datasets has no data set {tfds_name!r}: {reason}") from error
        _check_features(tfds_name, self._builder.info.features)
        if not self._builder.is_prepared():
            _prepare(self._builder, tfds_name, download)
        if self._builder.info.file_format != tfds.core.FileFormat.TFRECORD:
            raise UserError(
                f"{tfds_name} in {os.fspath(self._builder.data_dir)} is not prepared as TFRecord: prepare "
                "it once more, elsewhere, with file_format='tfrecord'"
            )
        self._name = tfds_name
        if test_split is None and pool is None:
            test_split = self._find_test_split()
            pool = "train" if test_split is None else None
        self._splits = {"train": pool or "train", "test": pool or test_split}
        # Positions within the pool.
        self._members: dict[str, np.ndarray | None] = {"train": None, "test": None}
        if pool:
            drawn = draw_stratified(self._labels_of(pool, "label"), test_fraction)
            self._members = {"train": np.flatnonzero(~drawn), "test": np.flatnonzero(drawn)}

    def label_names(self, feature: str = "label") -> tuple[str, ...]:
        """The names of a label feature's values."""
        return tuple(self._builder.info.features[feature].names)

    def size(self, split: str) -> int:
        """The number of images of a split."""
        members = self._members[split]
        return self._pool_size(split) if members is None else len(members)

    def labels(self, split: str, feature: str = "label") -> np.ndarray:
        """A label feature of each example; the images are not decoded."""
        labels = self._labels_of(self._splits[split], feature)
        return labels if self._members[split] is None else labels[self._members[split]]

    def content(self, split: str) -> str:
        """A hash of the files' bytes and of which of their examples are meant."""
        found = hashlib.sha256()
        for path in sorted({part.filename for part in self._files(split)}):
            with open(path, "rb") as file:
                found.update(hashlib.file_digest(file, "sha256").digest())
        members = self._members[split]
        found.update(repr([self._splits[split], None if members is None else members.tolist()]).encode())
        return found.hexdigest()

    def read(self, split: str, wanted: np.ndarray | None = None) -> tf.data.Dataset:
        """A dataset of (picture, label), in the order of the files."""
        tfds = _tensorflow_datasets()

        as_stored = tfds.decode.SkipDecoding()  # the bytes of the image file
        examples = self._examples(self._splits[split], "image", "label", image=as_stored)
        if wanted is not None or self._members[split] is not None:
            mask = tf.constant(self._pool_mask(split, wanted))
            examples = examples.enumerate().filter(lambda position, _: mask[position])
            examples = examples.map(lambda _, example: example)
        return examples.map(
            lambda example: (decode_picture(example["image"]), example["label"]),
            num_parallel_calls=tf.data.AUTOTUNE,
            deterministic=True,
        )

    def fetch(self, split: str) -> Callable:
        """A function of an index.

        Raises:
            UserError: the data set's files are damaged or not on a local disk.
        """
        tfds = _tensorflow_datasets()

        info = self._builder.info
        members = None if self._members[split] is None else tf.constant(self._members[split])
        records = Records([(part.filename, part.skip, part.take) for part in self._files(split)])
        features = tfds.decode.PartialDecoding({"image": True, "label": True}).extract_features(info.features)
        as_stored = {"image": tfds.decode.SkipDecoding()}

        def fetch(index):
            position = index if members is None else tf.gather(members, index)
            example = features.deserialize_example(records.read(position), decoders=as_stored)
            return decode_picture(example["image"]), example["label"]

        return fetch

    def _files(self, split):
        """Which part of which files a split is read from."""
        return self._builder.info.splits[self._splits[split]].file_instructions

    def _examples(self, tfds_split, *features, **decoders):
        """A dataset of dicts of the features, those without a decoder decoded in the usual way."""
        tfds = _tensorflow_datasets()

        # Without a decoder for the whole example, a pass over the labels would decode the images too.
        wanted = tfds.decode.PartialDecoding(dict.fromkeys(features, True), decoders=decoders or None)
        # One file after the other: the order of `Records`.
        one_by_one = tfds.ReadConfig(interleave_cycle_length=1, try_autocache=False)
        return self._builder.as_dataset(
            split=tfds_split, shuffle_files=False, decoders=wanted, read_config=one_by_one
        )

    def _labels_of(self, tfds_split, feature):
        batches = self._examples(tfds_split, feature).batch(4096).as_numpy_iterator()
        return np.concatenate([batch[feature] for batch in batches])

    def _pool_size(self, split):
        return int(self._examples(self._splits[split], "label").cardinality())

    def _pool_mask(self, split, wanted):
        """(n,) bool over all that `split` is a part of, True for its examples that are wanted."""
        if self._members[split] is None:
            return wanted
        mask = np.zeros(self._pool_size(split), bool)
        mask[self._members[split] if wanted is None else self._members[split][wanted]] = True
        return mask

    def _find_test_split(self):
        """The name of a split with labels to test on; None where there is only `train`."""
        names = list(self._builder.info.splits)
        if names and "train" not in names:
            raise UserError(
                f"{self._name} cannot be used: it needs a split 'train'. It has: {', '.join(names)}"
            )
        for name in ("test", "validation"):
            # A test split may keep its labels back: they are all -1.
            if name in names and self._labels_of(f"{name}[:1]", "label")[0] >= 0:
                return name
        return None if names else "test"  # under tfds.testing.mock_data there are no names


def _tensorflow_datasets():
    """The library, without the warnings that it gives of attributes of its own when a data set is opened."""
    import tensorflow_datasets

    logging.getLogger("absl").addFilter(_not_its_own)  # the same filter is added once only
    return tensorflow_datasets


def _not_its_own(record):
    return not record.getMessage().startswith(("`FeatureConnector.dtype`", "`TensorInfo.dtype`"))


def _checked_path(path):
    """A path that the library can take: it wants UTF-8."""
    path = os.path.expanduser(os.fsdecode(path))
    try:
        path.encode("utf-8")
    except UnicodeEncodeError as error:
        raise UserError(
            f"tensorflow-datasets takes a data_dir whose name is UTF-8 only. Received: {readable(path)}"
        ) from error
    return path


def _check_features(tfds_name, features):
    tfds = _tensorflow_datasets()

    needed = {"image": tfds.features.Image, "label": tfds.features.ClassLabel}
    if not all(name in features and isinstance(features[name], kind) for name, kind in needed.items()):
        raise UserError(
            f"{tfds_name} cannot be used: it needs a feature 'image' that is a picture and a feature 'label' "
            f"with class names. It has: {', '.join(features)}"
        )
    if features["image"].np_dtype not in (np.uint8, np.uint16):
        raise UserError(
            f"{tfds_name} cannot be used: its images must be of whole numbers, 8 or 16 bits a channel. "
            f"Received: {np.dtype(features['image'].np_dtype).name}"
        )


def _prepare(builder, tfds_name, download):
    """Downloads and prepares a tensorflow-datasets builder, or says in one line why that cannot be."""
    problem = f"{tfds_name} is not prepared in {os.fspath(builder.data_dir)}"
    remedy = (
        "Give a data_dir that holds it, or run this where there is a network and copy the directory: "
        f"python -c \"import tensorflow_datasets as t; t.load('{tfds_name}', data_dir='DIR')\""
    )
    if not download:
        raise UserError(f"{problem}, and downloading is off. {remedy}")
    try:
        _check_reachable(builder)
        builder.download_and_prepare()
    except Exception as error:  # network, server, disk, checksum: tensorflow-datasets has a class for each
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise UserError(f"{problem}, and downloading it failed ({reason}). {remedy}") from error


def _check_reachable(builder):
    """Raises an OSError within seconds where there is no network: tensorflow-datasets retries for minutes."""
    import requests  # what tensorflow-datasets downloads with: the same proxies and certificates

    for url in list(builder.url_infos or ())[:1]:
        requests.get(url, stream=True, timeout=REACH_TIMEOUT).close()
