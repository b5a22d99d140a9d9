"""The class means R of Algorithm 2: one pass over the training images, kept in a cache.

Axis letters: B batch, S image size, M classes, F features.
"""

import hashlib
import json
import os
import pathlib
import re
from typing import Any

import numpy as np
import tensorflow as tf
from absl import logging

from dynkhydra_tf.caches import user_cache_dir, write_cache
from dynkhydra_tf.errors import UserError
from dynkhydra_tf.meter import Meter
from dynkhydra_tf.partition.extractors import Extractor
from dynkhydra_tf.tuning import untuned
from dynkhydra_tf.workers import ALONE, Workers


def class_means(
    data: Any,
    extractor: Extractor,
    cache_dir: str | os.PathLike | None = None,
    images_per_class: int | None = None,
    batch_size: int = 16,
    progress: bool = True,
    workers: Workers = ALONE,
) -> np.ndarray:
    """The mean features of every class over the training images (paper: "Class partitioning").

    The result is kept in `cache_dir`, under a key made of the data set (name, number of images, class
    names, a hash of its first images and of a folder's files), the extractor and `images_per_class`. On a
    hit the extractor is not called, nor is its network loaded.

    Args:
        data: has `name`, `class_names` (M str), `sizes` (split -> number of images),
            `examples("train")`, a tf.data.Dataset of (image (S, S, 3) uint8, label () int), and for an image
            folder, whose name does not tell them, a `fingerprint` of the files; for several workers also
            `labels("train")` and `fetch("train")`.
        extractor: images (B, S, S, 3) uint8 -> features (B, F) float32, with `name` and `identity`.
        cache_dir: None: `default_cache_dir()`.
        images_per_class: use the first so many images of each class, or all it has where it has fewer;
            None: all. For machines without a GPU. Measured on CIFAR-100 (EfficientNet-Lite0, nb = 20,
            cluster_optimal), total distance of the true means to those of their clusters: 376.7 with
            all 500 images, 394.8 with 50, 397.9 with 10, 545.9 for a random partition.
        batch_size: images a call of the extractor, B. On CPUs, 16 take less time an image than 64, and with
            EfficientNet-B7 at 600x600 64 would take tens of GB.
        progress: whether to print a heading, and how far it is.
        workers: who shares the work: each embeds a part of the images, and the chief has the cache. All get
            the same bits.

    Returns:
        (M, F) float64.

    Raises:
        UserError: images_per_class < 1, a class without training images, features that are not finite,
            or what `Extractor.load` raises.
    """
    if images_per_class is not None and images_per_class < 1:
        raise UserError(f"images_per_class must be at least 1, or None for all. Received {images_per_class}.")
    key = _cache_key(data, extractor, images_per_class)
    path = _cache_path(default_cache_dir() if cache_dir is None else cache_dir, data, extractor, key)
    means = _read_cache(path, key) if workers.is_chief else None
    if workers.any(means is not None):
        return _shared(means, workers)
    extractor.load()
    means = _compute(data, extractor, images_per_class, batch_size, progress and workers.is_chief, workers)
    if workers.is_chief:
        write_cache(path, lambda beside: np.savez(beside, key=key, class_means=means))
    return means


def default_cache_dir() -> pathlib.Path:
    """Where the class means are kept: `class_means` in the user's cache folder."""
    return user_cache_dir("class_means")


def _shared(means, workers):
    """The chief's class means on all workers."""
    shape = workers.add_up(np.array(means.shape if workers.is_chief else (0, 0)))
    return workers.add_up(means if workers.is_chief else np.zeros(shape))


def _compute(data, extractor, images_per_class, batch_size, progress, workers):
    num_classes = len(data.class_names)
    if workers.count > 1:
        examples, num_images = _part_of_examples(data, images_per_class, workers)
    else:
        examples, num_images = data.examples("train"), data.sizes["train"]
        if images_per_class is not None:
            examples = _first_of_each_class(examples, num_classes, images_per_class)
            num_images = min(num_images, num_classes * images_per_class)
    if progress:
        print(f"Class means of {data.name}, {num_images} images, features by {extractor.name}", flush=True)
    # float64: a float32 sum over many images would lose digits.
    sums, counts, seen = np.zeros((num_classes, 1)), np.zeros(num_classes, dtype=np.int64), 0
    with Meter("class means", num_images, "image") as meter:
        for images, labels in examples.batch(batch_size).prefetch(tf.data.AUTOTUNE):
            features = np.asarray(extractor(images), dtype=np.float64)
            of_class = np.eye(num_classes)[np.asarray(labels)]  # (B, M) one-hot
            sums = sums + of_class.T @ features
            counts += of_class.sum(axis=0, dtype=np.int64)
            seen += len(features)
            if progress:
                meter.update(min(seen, num_images))
    # A worker without an image does not know F.
    features = workers.add_up(np.eye(workers.count, dtype=np.int64)[workers.index] * sums.shape[1]).max()
    sums = workers.add_up(np.broadcast_to(sums, (num_classes, features)).copy())
    counts = workers.add_up(counts)
    if not counts.all():
        empty = [name for name, count in zip(data.class_names, counts, strict=True) if not count]
        raise UserError(
            f"Data set {data.name} has no training images of {len(empty)} of its {num_classes} classes, such "
            f"as {empty[0]!r}: every class needs at least one."
        )
    if not np.isfinite(sums).all():
        raise UserError(
            f"Feature extractor {extractor.name} gives features that are not finite: its weights are "
            "damaged, or not for this network. Choose others."
        )
    return sums / counts[:, np.newaxis]


def _part_of_examples(data, images_per_class, workers):
    """The examples that this worker embeds, and how many; no others are read."""
    indices = np.arange(data.sizes["train"])
    if images_per_class is not None:
        labels = data.labels("train")
        places = (np.flatnonzero(labels == number) for number in range(len(data.class_names)))
        indices = np.concatenate([each[:images_per_class] for each in places])
    indices = indices[workers.index :: workers.count]
    examples = tf.data.Dataset.from_tensor_slices(indices).apply(untuned)
    fetch = data.fetch("train")
    return examples.map(fetch, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True), len(indices)


def _first_of_each_class(examples: tf.data.Dataset, num_classes: int, count: int) -> tf.data.Dataset:
    """The first `count` examples of every class; the pass ends once it has them all."""

    def count_label(counts, example):
        label = example[1]
        counts = tf.tensor_scatter_nd_add(counts, [[label]], [1])
        return counts, (*example, counts[label] <= count)

    counted = examples.scan(tf.zeros(num_classes, tf.int32), count_label)
    kept = counted.filter(lambda image, label, keep: keep)
    return kept.map(lambda image, label, keep: (image, label)).take(num_classes * count)


def _cache_key(data, extractor, images_per_class):
    """All that the class means depend on, as JSON.

    The first images stand for the preprocessing (padded, cropped, size), the fingerprint for the files of
    an image folder.
    """
    first_images = hashlib.sha256()
    for image, label in data.examples("train").take(16).as_numpy_iterator():
        first_images.update(f"{image.shape} {label} ".encode() + image.tobytes())
    key = {
        "dataset": data.name,
        "num_images": int(data.sizes["train"]),
        "class_names": list(data.class_names),
        "first_images": first_images.hexdigest(),
        "extractor": extractor.identity,
        "images_per_class": images_per_class,
    }
    if fingerprint := getattr(data, "fingerprint", None):
        key["fingerprint"] = fingerprint
    return json.dumps(key)


def _cache_path(cache_dir, data, extractor, key):
    """A file name that a person can tell apart, made unique by a hash of the key."""
    stem = re.sub(r"[^\w.-]+", "_", f"{data.name}-{extractor.name}")
    return pathlib.Path(cache_dir) / f"{stem}-{hashlib.sha256(key.encode()).hexdigest()[:16]}.npz"


def _read_cache(path: pathlib.Path, key: str) -> np.ndarray | None:
    """The class means at `path`; None where there are none, or none to be trusted."""
    try:
        with np.load(path, allow_pickle=False) as file:
            stored_key, means = str(file["key"]), file["class_means"]
        if stored_key == key and means.ndim == 2 and np.isfinite(means).all():
            return means
        problem = "not what its name says"
    except FileNotFoundError:
        return None
    except Exception as error:  # a damaged zip file raises one of half a dozen kinds
        problem = str(error)
    logging.warning("Cached class means %s are damaged (%s): computing them again.", path, problem)
    return None
