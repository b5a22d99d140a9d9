"""Fig. 1: the training images as t-SNE places their features, coloured by the cluster of their class.

    python -m dynkhydra_tf.analysis.embedding --run_dir=runs/digits

A sample of the training images goes through the feature extractor that the partition was made with; t-SNE
brings the features to two dimensions and, as in the paper, to three. Each point is an image; the name of a
class stands at the mean of its points, with a line to it where it had to make room for another name. Three
dimensions are seen from where they are spread widest; the farther a point, the paler.

Writes embedding_2d.png, embedding_3d.png and embedding.csv (the means of the classes) into
RUN_DIR/evaluation, or --output_dir. Axis letters: M classes, S image size, F features, D dimensions; n images
in all.
"""

import dataclasses
from typing import TYPE_CHECKING

import numpy as np

from dynkhydra_tf import cli, figures
from dynkhydra_tf.analysis.options import HydraRunOptions
from dynkhydra_tf.errors import UserError
from dynkhydra_tf.fields import setting
from dynkhydra_tf.files import write_csv
from dynkhydra_tf.meter import Meter
from dynkhydra_tf.runs import EvaluationFile

if TYPE_CHECKING:  # they load Keras, which --help can do without
    import tensorflow as tf

    from dynkhydra_tf.partition import Extractor

PERPLEXITY = 30
IMAGES, LEAST_PER_CLASS = 2000, 10  # a sample's size unless told otherwise


def sample_images(
    examples: "tf.data.Dataset", num_classes: int, images_per_class: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Draws images of each class at random, in one pass (reservoir sampling).

    Args:
        examples: `tf.data.Dataset` of (image (S, S, 3) uint8, label () int).
        num_classes: M.
        images_per_class: int >= 1; of a class with fewer images all are taken.
        seed: int.

    Returns:
        images (n, S, S, 3) uint8 and labels (n,) int64, ascending.
    """
    rng = np.random.default_rng(seed)
    kept: list[list[np.ndarray]] = [[] for _ in range(num_classes)]
    seen = np.zeros(num_classes, int)
    for images, labels in examples.batch(256).as_numpy_iterator():
        for image, label in zip(images, labels, strict=True):
            if len(kept[label]) < images_per_class:
                kept[label].append(image.copy())  # a view would hold its whole batch in memory
            elif (place := rng.integers(seen[label] + 1)) < images_per_class:
                kept[label][place] = image.copy()
            seen[label] += 1
    return np.stack([image for images in kept for image in images]), np.repeat(
        np.arange(num_classes), [len(images) for images in kept]
    )


def embed(extractor: "Extractor", images: np.ndarray, batch_size: int = 16) -> np.ndarray:
    """Returns the features (n, F) float32 of images (n, S, S, 3) uint8.

    Raises:
        UserError: features that are not finite, or what `Extractor.load` raises.
    """
    extractor.load()
    features = []
    with Meter("features", len(images), "image") as meter:
        for start in range(0, len(images), batch_size):
            features.append(np.asarray(extractor(images[start : start + batch_size])))
            meter.update(start + len(features[-1]))
    features = np.concatenate(features)
    if not np.isfinite(features).all():
        raise UserError(
            f"Feature extractor {extractor.name} gives features that are not finite: choose another"
        )
    return features


def reduce_dimensions(features: np.ndarray, dimensions: int, seed: int) -> np.ndarray:
    """Returns the t-SNE of features (n, F), n > D, as points (n, D) float32; D is 2 or 3."""
    from sklearn.manifold import TSNE

    perplexity = min(PERPLEXITY, (len(features) - 1) / 3)
    tsne = TSNE(dimensions, perplexity=perplexity, init="pca", random_state=seed)
    return tsne.fit_transform(features)


def means_of_classes(points: np.ndarray, labels: np.ndarray, num_classes: int) -> np.ndarray:
    """Returns the mean (M, D) of the points (n, D) of each class; labels (n,); nan for a class without."""
    means = np.full((num_classes, points.shape[1]), np.nan)
    for label in np.unique(labels):
        means[label] = points[labels == label].mean(axis=0)
    return means


# === The command ===


@dataclasses.dataclass(frozen=True)
class Options(HydraRunOptions):
    """The flags of this command."""

    feature_extractor: str | None = setting(None, "As in train.py; default: the run's.", path=True)
    feature_weights: str | None = setting(None, "As in train.py; default: the run's.", path=True)
    images_per_class: int | None = setting(
        None,
        f"Images of each class, drawn at random; default: about {IMAGES} in all, of each class at least "
        f"{LEAST_PER_CLASS}.",
        least=1,
    )
    seed: int = setting(0, "Of the draw and of t-SNE.", least=0, most=2**32 - 1)


def main(options: Options) -> None:
    """Embeds a sample of a run's training images and draws it."""
    from dynkhydra_tf.partition import build_extractor

    # === What to show ===
    run, output = options.open_run("partition")
    trained_with, weights = run.settings.partition, options.feature_weights
    if weights is None:  # the run's are those of the run's extractor
        weights = "imagenet" if options.feature_extractor else trained_with.feature_weights
    extractor = build_extractor(options.feature_extractor or trained_with.feature_extractor, weights)
    data, partition = options.open_data(run), run.partition
    extractor.load()

    # === Embed, reduce, draw, write ===
    count = options.images_per_class or max(LEAST_PER_CLASS, IMAGES // data.num_classes)
    images, labels = sample_images(data.examples("train"), data.num_classes, count, options.seed)
    if len(images) < 10:
        raise UserError(f"t-SNE needs at least 10 images. Received: {len(images)}; raise --images_per_class")
    print(f"Features of {len(images)} training images of {data.name} by {extractor.name}", flush=True)
    features = embed(extractor, images)
    rows = [
        {"class": name, "cluster": cluster}
        for name, cluster in zip(partition.class_names, partition.cluster_of_class, strict=True)
    ]
    pictures = {2: EvaluationFile.EMBEDDING_2D, 3: EvaluationFile.EMBEDDING_3D}
    for dimensions, axes in ((2, ("x_2d", "y_2d")), (3, ("x_3d", "y_3d", "z_3d"))):
        print(f"t-SNE to {dimensions} dimensions", flush=True)
        points = reduce_dimensions(features, dimensions, options.seed)
        means = means_of_classes(points, labels, data.num_classes)
        figures.save_embedding(points, labels, means, partition, output / pictures[dimensions])
        for row, mean in zip(rows, means, strict=True):
            row.update((axis, f"{value:.6g}") for axis, value in zip(axes, mean, strict=True))
    write_csv(output / EvaluationFile.EMBEDDING_ROWS, rows)
    print(f"Written to {output}: {', '.join([*pictures.values(), EvaluationFile.EMBEDDING_ROWS])}")


if __name__ == "__main__":
    cli.run(main, Options)
