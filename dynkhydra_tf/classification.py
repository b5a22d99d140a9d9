"""Photo files through a Keras model. B batch, S side of an image, M classes, N branches (nb)."""

import os
from collections.abc import Callable, Iterator, Sequence

import tensorflow as tf

from dynkhydra_tf.answers import Answer
from dynkhydra_tf.data.photos import FEW, photo_batches
from dynkhydra_tf.data.sources.folder.check import why_bad


def classify_photos(
    run: Callable[[tf.Tensor], dict[str, tf.Tensor]],
    paths: Sequence[str | os.PathLike],
    class_names: Sequence[str],
    image_size: int,
    fit: str,
    top: int = 5,
    batch_size: int = 32,
) -> Iterator[Answer]:
    """Gives an answer for each photo, in order; while one batch runs, the next ones are decoded.

    Args:
        run: from images (B,S,S,3) uint8 to probabilities (B,M) and, of a Hydra, selected (B,N), by name.
        paths: of the photos.
        class_names: M str.
        image_size: S. fit: how a picture becomes square, see `preprocess`.
        top: how many classes to name.
        batch_size: B.
    """
    paths = [os.fspath(path) for path in paths]
    done = 0
    if len(paths) <= FEW:  # to trace takes longer than to run
        run = getattr(run, "python_function", run)
    for indices, images in photo_batches(paths, image_size, fit, batch_size) if paths else ():
        outputs = {name: output.numpy() for name, output in run(images).items()}
        for row, index in enumerate(indices.numpy()):
            yield from map(_bad, paths[done:index])
            selected = outputs["selected"][row] if "selected" in outputs else None
            yield Answer.of(paths[index], outputs["probabilities"][row], class_names, top, selected)
            done = index + 1
    yield from map(_bad, paths[done:])


def _bad(path):
    return Answer(path, problem=why_bad(path))
