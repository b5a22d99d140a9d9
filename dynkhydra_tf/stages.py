"""What a training goes through: on the maps of what is frozen, or on images, and then perhaps unfrozen."""

import functools
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from dynkhydra_tf.data import ImageData, evaluation_batches, make_augmentation, training_batches
from dynkhydra_tf.data.augment import has_mirror_images
from dynkhydra_tf.distribution import scope_of
from dynkhydra_tf.errors import UserError
from dynkhydra_tf.frozen_maps import MapData, Views, cached_maps, draw_view
from dynkhydra_tf.image_classifier import ImageClassifier
from dynkhydra_tf.optimisation import make_optimizer
from dynkhydra_tf.settings import OptimisationSettings, Settings
from dynkhydra_tf.unfreezing import unfreeze


class Stage(NamedTuple):
    """Some epochs of a training; the arguments of `training.fit` between the run and the steps of an epoch.

    Attributes:
        batches: `tf.data.Dataset` of (images or maps, labels), from step `done` on.
        watched: the same of the images that the training is watched on.
        end: the epoch that it ends with.
        done: the steps done before it, in all.
        maps: what the batches are made of; None where that is images.
        class_weights: (M,), how much an image of each class counts; None: alike.
    """

    batches: tf.data.Dataset
    watched: tf.data.Dataset
    end: int
    done: int
    maps: MapData | None = None
    class_weights: np.ndarray | None = None


def stages(
    settings: Settings,
    model: ImageClassifier,
    data: ImageData,
    steps: int,
    done: int,
    part: tuple[int, int] = (0, 1),
) -> Iterator[Stage]:
    """Yields what is left of a training, stage by stage; the model is made ready for each as it comes.

    Args:
        settings: of the run.
        model: compiled, as it is after `done` steps.
        data: the images.
        steps: of an epoch.
        done: steps done.
        part: (index, count), which worker's part of each batch; see `training_batches`.

    Raises:
        UserError: from `cached_maps`, or of the augmentation.
    """
    network, epochs = settings.network, settings.optimisation.epochs
    frozen = network.frozen_epochs or epochs
    if done < frozen * steps or frozen == epochs:
        make = _on_maps if network.trains_on_maps else _on_images
        yield make(settings, model, data, frozen, done, part)
        done = frozen * steps
    if frozen < epochs:
        if model.frozen_part():
            with scope_of(model):
                unfreeze(model, make_optimizer(settings.optimisation, steps, frozen))
        yield _on_images(settings, model, data, epochs, done, part)


def evaluation_batch_size(image_size: int) -> int:
    """How many images of a size a network evaluates at once: 256 of 32 px, and less of larger ones."""
    return min(256, max(16, 256 * 32**2 // image_size**2))


def batches_to_test(settings: Settings, model: ImageClassifier, data: ImageData) -> tf.data.Dataset:
    """Returns the test images to evaluate a trained model on: their maps where it was trained on such."""
    if settings.network.trains_on_maps and model.frozen_part():
        try:
            maps: Any = cached_maps(model, data, {"test": Views()}, settings.place.cache_dir)
            return evaluation_batches(maps, "test", 256)
        except UserError as error:  # the training is done: a full disk does not undo it
            print(f"Tested on images: {error}", flush=True)
    return evaluation_batches(data, "test", evaluation_batch_size(data.image_size))


def balanced_weights(labels: np.ndarray, limit: float = np.inf) -> np.ndarray:
    """Returns the weight of each class's images: with it all classes count alike, as far as `limit` allows.

    Args:
        labels: (n,) int.
        limit: how many times an image of the largest class another one may count.

    Returns:
        (M,) float32; their mean over the images is 1.
    """
    counts = np.bincount(labels)
    weights = np.minimum(counts.max() / np.maximum(counts, 1), limit)
    return (weights / weights[labels].mean()).astype(np.float32)


def class_weights(settings: OptimisationSettings, data: ImageData | MapData) -> np.ndarray | None:
    """Returns the weights (M,) that the settings ask for; says so where they are limited.

    None for none: the labels are then not read, which of a large set takes its time.
    """
    if settings.class_weights == "none":
        return None
    labels = data.labels("train")
    limit, counts = settings.class_weight_limit, np.bincount(labels)
    if few := int((counts * limit < counts.max()).sum()):
        print(
            f"--class_weights=balanced: the images of {few} of {len(counts)} classes would count more than "
            f"{limit:g} times as much as those of the largest: {limit:g} times it is (--class_weight_limit)",
            flush=True,
        )
    return balanced_weights(labels, limit)


def watched_split(data: ImageData) -> str:
    """The split that a training is watched on: the images held out or, without any, those for testing."""
    return "validation" if data.sizes["validation"] else "test"


def _on_images(settings, model, data, end, done, part):
    how = settings.augmentation
    weights = class_weights(settings.optimisation, data)
    batches = _batches(settings, data, end, done, make_augmentation(how, data), weights, how.mixup, part)
    watched = evaluation_batches(data, watched_split(data), evaluation_batch_size(data.image_size))
    return Stage(batches, watched, end, done, class_weights=weights)


def _on_maps(settings, model, data, end, done, part):
    flip = has_mirror_images(settings.augmentation, data)
    augment = functools.partial(make_augmentation, settings.augmentation, data)
    views = Views(settings.network.cached_views, flip, str(settings.augmentation), augment)
    wanted = {"train": views, watched_split(data): Views()}
    if settings.augmentation.changes_images and settings.network.frozen_epochs:
        print(f"--rand_augment and --mixup begin after epoch {end}: until then there are maps", flush=True)
    maps = cached_maps(model, data, wanted, settings.place.cache_dir)
    weights = class_weights(settings.optimisation, maps)
    batches = _batches(settings, maps, end, done, draw_view, weights, part=part)
    return Stage(batches, evaluation_batches(maps, watched_split(data), 256), end, done, maps, weights)


def _batches(settings, data, end, done, augment, weights=None, mixup=0.0, part=(0, 1)):
    how = settings.optimisation
    batches = training_batches(
        data,
        how.batch_size,
        end,
        how.seed,
        augment,
        initial_step=done,
        alternating_flip=settings.augmentation.alternating_flip,
        mixup=mixup,
        part=part,
    )
    if weights is None:
        return batches
    weights = tf.constant(weights)

    def weighted(images, targets):
        if not isinstance(targets, dict):
            return images, targets, tf.gather(weights, targets)
        first, second = (tf.gather(weights, targets[name]) for name in ("labels", "second_labels"))
        return images, targets, first + targets["second_share"] * (second - first)

    return batches.map(weighted)
