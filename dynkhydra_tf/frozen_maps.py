"""The maps of a model's frozen part: computed once, kept in a cache, trained on in place of images.

A file for each split: a header of `HEADER` bytes, JSON, then the maps (n, V, *map_shape) float16. It is
mapped into memory, not loaded. Its name tells which images, network and views it is of; its header also tells
the content of the images and of the weights by hashes, so that a change of either is noticed and the maps are
computed again. It is written under another name and renamed when it is whole.

Axis letters: B batch, n images of a split, V views of an image, S image size, h w c the map.
"""

import contextlib
import dataclasses
import hashlib
import json
import math
import os
import pathlib
import re
import shutil
from collections.abc import Callable, Iterator
from typing import Any

try:
    import fcntl
except ImportError:  # Windows has none
    fcntl = None

import keras
import numpy as np
import tensorflow as tf

from dynkhydra_tf.backbones.first_weights import copy_weights
from dynkhydra_tf.caches import user_cache_dir
from dynkhydra_tf.data import ImageData
from dynkhydra_tf.data.augment import draw_uniform
from dynkhydra_tf.errors import UserError
from dynkhydra_tf.files import check_writable, is_written_as, readable, replacing
from dynkhydra_tf.folding import constants_of, fold
from dynkhydra_tf.image_classifier import ImageClassifier
from dynkhydra_tf.meter import Meter
from dynkhydra_tf.tuning import untuned

HEADER = 4096  # bytes
FORMAT = 1
AT_ONCE = 32  # views that go through the network together
WAY_OUT = "give another --cache_dir, fewer --cached_views, or --cached_views=0 to keep no maps"


@dataclasses.dataclass(frozen=True)
class Views:
    """The views of a training image: it, its mirror image where that is of its class, then drawn ones.

    Attributes:
        count: V.
        flip: whether a mirrored image is of its class.
        drawn: what tells one way to draw views from another.
        make_augment: makes the function (images (B,S,S,3) uint8, seed (2,) int) -> images that draws a view
            of each; called where there are drawn ones.
    """

    count: int = 1
    flip: bool = True
    drawn: str = ""
    make_augment: Callable[[], Callable[[tf.Tensor, tf.Tensor], tf.Tensor]] | None = None

    @property
    def given(self) -> int:
        """How many of them are not drawn."""
        return min(self.count, 2 if self.flip else 1)

    def describe(self) -> list:
        """What the views depend on, for JSON."""
        return [self.count, self.given, self.drawn if self.count > self.given else ""]

    def function(self) -> Callable[[tf.Tensor, tf.Tensor], tf.Tensor]:
        """Returns (batch number () int, images (B,S,S,3)) -> (B,V,S,S,3)."""
        augment = self.make_augment() if self.count > self.given else None

        def views(batch, images):
            found = [images, images[:, :, ::-1]][: self.given]
            found += [
                augment(images, tf.stack([tf.cast(batch, tf.int64), tf.constant(number, tf.int64)]))
                for number in range(self.given, self.count)
            ]
            return tf.stack(found, axis=1)

        return views


class MapData:
    """The maps of some splits, in the place of `ImageData` where batches are made of them.

    Args:
        name: of the data set.
        splits: by name, the maps (n, V, *map_shape) float16, such as a `numpy.memmap`, and labels (n,) int32.
    """

    in_memory = False

    def __init__(self, name: str, splits: dict[str, tuple[np.ndarray, np.ndarray]]) -> None:
        self.name = name
        self.splits = splits
        self.sizes = {split: len(labels) for split, (_, labels) in splits.items()}

    def labels(self, split: str) -> np.ndarray:
        """(n,) int32."""
        return self.splits[split][1]

    def fetch(self, split: str) -> Callable[[tf.Tensor], tuple[tf.Tensor, tf.Tensor]]:
        """A function (index () int) -> (maps (V, *map_shape) float16, label () int32)."""
        maps, labels = self.splits[split]

        def read(index):
            return np.asarray(maps[index]), labels[index]

        def fetch(index):
            views, label = tf.numpy_function(read, [index], (tf.float16, tf.int32), stateful=False)
            return tf.ensure_shape(views, maps.shape[1:]), tf.ensure_shape(label, ())

        return fetch

    def examples(self, split: str) -> tf.data.Dataset:
        """The images as they are: (map (*map_shape) float16, label () int32) in their order."""
        examples = tf.data.Dataset.range(self.sizes[split]).apply(untuned)
        return examples.map(self.fetch(split)).map(lambda views, label: (views[0], label))


def draw_view(
    views: tf.Tensor,
    seed: tf.Tensor,
    mirrored: tf.Tensor | None = None,
    place: tuple[int, int] | None = None,
) -> tf.Tensor:
    """Draws one of the views of each image: the `augment` of `training_batches` on `MapData`.

    Args:
        views: (B, V, ...). seed: (2,) int.
        mirrored: (B,) bool, of two views which of them to take, in place of a draw.
        place: as of `data.augment.Augmentation`.

    Returns:
        (B, ...).
    """
    count = views.shape[1]
    if mirrored is not None and count == 2:
        drawn = tf.cast(mirrored, tf.int32)
    else:
        drawn = draw_uniform(tf.shape(views)[0], place, (), seed, 0, count, tf.int32)
    return tf.gather(views, drawn, batch_dims=1)


def cached_maps(
    model: ImageClassifier,
    data: ImageData,
    views: dict[str, Views],
    cache_dir: str | os.PathLike | None = None,
) -> MapData:
    """Returns the maps that a model's frozen part gives for some splits.

    Those that the cache lacks are computed; what is, how much disk it takes and how far it is, is told.

    Args:
        model: has a `frozen_part`.
        data: the images.
        views: of each split that is wanted, its `Views`.
        cache_dir: where the maps are kept; None: `user_cache_dir("maps")`.

    Raises:
        UserError: nothing is frozen, the disk is too small or cannot be written to, maps that float16 cannot
            hold.
    """
    if model.map_shape() in (None, model.backbone.input_shape):
        raise UserError("There are no maps to keep: no first part of the model that has weights is frozen")
    directory = _place(cache_dir)
    files = [_File(model, data, split, some, directory) for split, some in views.items()]
    opened = [file.open() for file in files]
    missing = [file for file, maps in zip(files, opened, strict=True) if maps is None]
    if missing:
        _check_room(directory, missing)
        network = fast_copy(model)
        for file in missing:
            file.compute(network)
    for number, file in enumerate(files):
        opened[number] = file.open(tell=False) if opened[number] is None else opened[number]
    labels = [data.labels(file.split) for file in files]
    return MapData(data.name, dict(zip(views, zip(opened, labels, strict=True), strict=True)))


def check_cache(cache_dir: str | os.PathLike | None = None) -> None:
    """Refuses a cache that has no maps and takes none, before the images are looked at.

    One that cannot be written to will do where the maps are in it.

    Raises:
        UserError: see above.
    """
    directory = _place(cache_dir)
    if not any(directory.glob("*.maps")):
        check_writable(directory, "cache_dir")


def _place(cache_dir):
    return user_cache_dir("maps") if cache_dir is None else pathlib.Path(cache_dir).expanduser()


def fast_copy(model: ImageClassifier) -> Callable[[tf.Tensor], tf.Tensor]:
    """Returns the frozen part as a function of images (B,S,S,3) uint8 to maps float32, made to be fast.

    It is in float32, with batch normalisation folded and the weights as constants, and does not change when
    the model does.
    """
    parts = []
    for part in model.frozen_part():
        copy = type(part).from_config(part.get_config())
        parts.append(copy)
    network = keras.Sequential(parts, name="frozen")
    network.build((None, *model.backbone.input_shape))
    for part, copy in zip(model.frozen_part(), parts, strict=True):
        if hasattr(part, "layers"):
            copy_weights(part, copy)
        else:
            copy.set_weights(part.get_weights())
    for layer in network._flatten_layers():
        layer.dtype_policy = "float32"
    constants = constants_of(fold(network))

    images = tf.TensorSpec((None, *model.backbone.input_shape), tf.uint8)

    @tf.function(input_signature=[images], autograph=False)
    def maps(images):
        with constants():
            return tf.cast(network(model.normalize(images), training=False), tf.float32)

    return maps


class _File:
    """The maps of one split in a cache."""

    def __init__(
        self, model: ImageClassifier, data: ImageData, split: str, views: Views, directory: pathlib.Path
    ) -> None:
        self.split, self._data, self._views = split, data, views
        self.shape = (data.sizes[split], views.count, *model.map_shape())
        # What the file's name tells, and beside it what its header tells.
        where = [data.name, data.source.place, split, data.image_size, data.fit]
        where += [_architecture(model), self.shape[2:], views.describe()]
        self._key = {
            "format": FORMAT,
            "shape": list(self.shape),
            "images": data.content(split),
            "weights": _weights(model),
        }
        name = re.sub(r"[^\w.-]+", "_", f"{data.name}-{split}")
        digest = hashlib.sha256(json.dumps(where).encode()).hexdigest()[:16]
        self.path = directory / f"{name}-{digest}.maps"

    @property
    def size(self):
        """Bytes."""
        return HEADER + 2 * math.prod(self.shape)

    def open(self, tell=True):
        """The maps; None where there are none, or others than these, which is told."""
        try:
            with self.path.open("rb") as file:
                key = json.loads(file.read(HEADER))
                problem = _problem(key, self._key)
                if not problem and os.fstat(file.fileno()).st_size != self.size:
                    problem = "it is not whole"
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (OSError, ValueError) as error:
            problem = f"it cannot be read ({getattr(error, 'strerror', None) or error})"
        if problem:
            if tell:
                print(f"Maps of {self._data.name}/{self.split} are computed again: {problem} ({self.path})")
            return None
        return np.memmap(self.path, np.float16, "r", HEADER, self.shape)

    def compute(self, network):
        """Computes and writes them."""
        views, count = self._views.function(), self.shape[0]
        batches = self._data.examples(self.split).batch(max(1, AT_ONCE // self._views.count)).enumerate()
        batches = batches.map(lambda number, batch: views(number, batch[0])).prefetch(2)
        heading = f"maps of {self._data.name}/{self.split}"
        try:
            with _written(self.path) as file, Meter(heading, count, "image") as meter:
                file.write(json.dumps(self._key).encode().ljust(HEADER))
                done = 0
                for images in batches:
                    maps = network(tf.reshape(images, (-1, *images.shape[2:]))).numpy()
                    with np.errstate(over="ignore"):  # it is looked for
                        maps = maps.astype(np.float16)
                    if not np.isfinite(maps).all():
                        raise UserError(
                            "float16 cannot hold the maps at this place: choose another --cut, or "
                            "--cached_views=0, which keeps none"
                        )
                    file.write(maps.tobytes())
                    done += len(images)
                    meter.update(done)
        except OSError as error:
            reason = error.strerror or error
            raise UserError(f"Maps cannot be written to {self.path.parent} ({reason}): {WAY_OUT}") from error


def _problem(found, key):
    """Why maps with this header are not those of the key; "" where they are."""
    if found.get("format") != key["format"]:
        return f"they are of format {found.get('format')}, this version has {key['format']}"
    changed = [name for name in ("images", "weights") if found.get(name) != key[name]]
    return f"the {' and the '.join(changed)} have changed" if changed else ""


def _check_room(directory, missing):
    """Says what the maps will take; refuses where that cannot be had."""
    check_writable(directory, "cache_dir")
    there = next(parent for parent in (directory, *directory.absolute().parents) if parent.exists())
    free, needed = shutil.disk_usage(there).free, sum(file.size for file in missing)
    for file in missing:
        count, views, *shape = file.shape
        what = f"{count} images, {views} view{'s' * (views > 1)}, {'x'.join(map(str, shape))} float16"
        print(f"Maps of the frozen part, {file.split}: {what}, {_amount(file.size)}")
    print(f"They are kept in {readable(directory)}, where {_amount(free)} are free.", flush=True)
    if needed > free:
        raise UserError(
            f"The disk of {readable(directory)} is too small for the maps: they take {_amount(needed)}, "
            f"{_amount(free)} are free; {WAY_OUT}"
        )


def _amount(size):
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"


@contextlib.contextmanager
def _written(path: pathlib.Path) -> Iterator[Any]:
    """A file to write to that takes the place of `path` when the block succeeds.

    It is locked while it is written: what is not, beside it, a process left that was killed, and goes.
    """
    for entry in path.parent.glob(f".{path.stem}.*"):
        if is_written_as(entry.name, path.name) and not _is_locked(entry):
            entry.unlink(missing_ok=True)
    with replacing(path) as beside, beside.open("xb") as file:
        if fcntl is not None:
            with contextlib.suppress(OSError):  # file systems without locks
                fcntl.flock(file, fcntl.LOCK_EX)
        yield file


def _is_locked(path):
    try:
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return False
    except (OSError, AttributeError):  # it is, or is gone, or cannot be told
        return True


# === What the maps depend on ===


def _architecture(model):
    """A hash of what the frozen part computes, without its weights; all models that have it have the same."""
    picture = np.arange(math.prod(model.backbone.input_shape)) % 256
    picture = picture.reshape(1, *model.backbone.input_shape).astype(np.uint8)
    found = hashlib.sha256(np.asarray(model.normalize(picture)).tobytes())
    for part in model.frozen_part():
        config = _without_numbers({**part.get_config(), "name": ""})
        config["layers"] = sorted(config.get("layers", ()), key=lambda layer: str(layer.get("name")))
        found.update(json.dumps([type(part).__name__, config], sort_keys=True, default=str).encode())
    return found.hexdigest()


def _without_numbers(value):
    """A configuration without what says nothing of the result: precision, training, the ids of objects."""
    if isinstance(value, dict):
        dropped = ("dtype", "trainable", "shared_object_id", "build_config")
        return {key: _without_numbers(inner) for key, inner in value.items() if key not in dropped}
    return [_without_numbers(inner) for inner in value] if isinstance(value, (list, tuple)) else value


def _weights(model):
    """A hash of the frozen part's weights."""
    found = hashlib.sha256()
    for part in model.frozen_part():
        for weight in sorted(part.weights, key=lambda weight: weight.path):
            found.update(np.ascontiguousarray(weight).tobytes())
    return found.hexdigest()
