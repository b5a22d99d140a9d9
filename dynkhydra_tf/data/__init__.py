"""Data sets and input pipelines."""

from dynkhydra_tf.data.augment import Augmentation
from dynkhydra_tf.data.catalog import DATASETS, ImageData, load_data
from dynkhydra_tf.data.pipeline import evaluation_batches, steps_per_epoch, training_batches
from dynkhydra_tf.data.preprocessing import FITS, preprocess

__all__ = [
    "DATASETS",
    "FITS",
    "Augmentation",
    "ImageData",
    "evaluation_batches",
    "load_data",
    "preprocess",
    "steps_per_epoch",
    "training_batches",
]
