"""Where the images come from: each source reads the splits `train` and `test` of one data set.

A source has three methods, all that the catalog needs:
- `label_names(feature)`: the names of a label feature's values, a tuple of str;
- `size(split)`: the number of images of a split;
- `read(split, *features)`: an unbatched `tf.data.Dataset` of tuples of these features, in an order that
  never changes.
"""

import functools
import logging
import os

import numpy as np
import tensorflow as tf

from dynkhydra_tf.errors import UserError

REACH_TIMEOUT = 10  # seconds

# tensorflow-datasets warns of an attribute of its own whenever a data set is opened.
logging.getLogger("absl").addFilter(lambda record: "`FeatureConnector.dtype`" not in record.getMessage())


class TfdsSource:
    """A data set of tensorflow-datasets, read from `data_dir` and downloaded where it is not there.

    Args:
        tfds_name: its name in tensorflow-datasets.
        data_dir: directory of prepared data sets, or None for tensorflow-datasets' own default.
        download: whether a data set that is not there may be downloaded.
        test_split: the name of its test split.

    Raises:
        UserError: `data_dir` is no directory, or the data set is not there and cannot be downloaded.
    """

    def __init__(self, tfds_name, data_dir=None, download=True, test_split="test"):
        """Finds the prepared data set, or downloads and prepares it."""
        import tensorflow_datasets as tfds

        data_dir = data_dir and os.path.expanduser(data_dir)
        if data_dir is not None and not tf.io.gfile.isdir(data_dir):
            raise UserError(
                f"data_dir={os.fspath(data_dir)!r} is not a directory; give one that holds {tfds_name} as "
                "tensorflow-datasets prepares it, or make an empty one to download it to"
            )
        self._splits = {"train": "train", "test": test_split}
        self._builder = tfds.builder(tfds_name, data_dir=data_dir, try_gcs=False)
        if not self._builder.is_prepared():
            _prepare(self._builder, download)

    def label_names(self, feature):
        """The names of a label feature's values."""
        return tuple(self._builder.info.features[feature].names)

    def size(self, split):
        """The number of images of a split."""
        return int(self._read(split, ()).cardinality())

    def read(self, split, *features):
        """A dataset of tuples of the named features; the others are not even decoded."""
        dataset = self._read(split, features)
        return dataset.map(lambda example: tuple(example[feature] for feature in features))

    def _read(self, split, features):
        import tensorflow_datasets as tfds

        # Without a decoder for the whole example, a pass over the labels would decode the images too.
        wanted = tfds.decode.PartialDecoding({feature: True for feature in features or ("label",)})
        return self._builder.as_dataset(split=self._splits[split], shuffle_files=False, decoders=wanted)


class DigitsSource:
    """Scikit-learn's 1,797 handwritten digits, 10 classes: real data that needs no download.

    The pictures are (8,8,1) uint8, scaled from 0..16 to 0..255. The data set has no split of its own; a third
    is drawn as the test split, stratified, the same on every machine.
    """

    def __init__(self, data_dir=None, download=True):
        """Takes and ignores the two arguments: the data set comes with scikit-learn."""
        del data_dir, download

    def label_names(self, feature):
        """The digits "0" to "9"."""
        del feature  # "label" is the only one
        return tuple(str(digit) for digit in range(10))

    def size(self, split):
        """The number of images of a split."""
        return len(self._splits[split]["label"])

    def read(self, split, *features):
        """A dataset of tuples of the named features, `image` and `label`."""
        return tf.data.Dataset.from_tensor_slices(tuple(self._splits[split][feature] for feature in features))

    @functools.cached_property
    def _splits(self):
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split

        digits = load_digits()
        images = np.round(digits.images[..., None] * (255 / 16)).astype(np.uint8)
        train_images, test_images, train_labels, test_labels = train_test_split(
            images, digits.target, test_size=1 / 3, stratify=digits.target, random_state=0
        )
        return {
            "train": {"image": train_images, "label": train_labels},
            "test": {"image": test_images, "label": test_labels},
        }


def _prepare(builder, download):
    """Downloads and prepares a tensorflow-datasets builder, or says in one line why that cannot be."""
    problem = f"{builder.name} is not prepared in {os.fspath(builder.data_dir)}"
    remedy = (
        "Give a data_dir that holds it, or run this where there is a network and copy the directory: "
        f"python -c \"import tensorflow_datasets as t; t.load('{builder.name}', data_dir='DIR')\""
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
