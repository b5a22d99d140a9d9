"""Data sets and input pipelines."""

from dynkhydra_tf.data.augment import Augmentation, make_augmentation
from dynkhydra_tf.data.catalog import DATASETS, find_entry, load_data, open_data
from dynkhydra_tf.data.image_data import CACHES, ImageData
from dynkhydra_tf.data.pipeline import (
    evaluation_batches,
    part_of_batch,
    some_images,
    steps_per_epoch,
    training_batches,
)
from dynkhydra_tf.data.preprocessing import FITS, preprocess

__all__ = [
    "CACHES",
    "DATASETS",
    "FITS",
    "Augmentation",
    "ImageData",
    "evaluation_batches",
    "find_entry",
    "load_data",
    "make_augmentation",
    "open_data",
    "part_of_batch",
    "preprocess",
    "some_images",
    "steps_per_epoch",
    "training_batches",
]
