"""Fig. 1: the training images as t-SNE places their features, coloured by the cluster of their class.

    python -m dynkhydra_tf.analysis.embedding --run_dir=runs/digits

A sample of the training images goes through the feature extractor that the partition was made with; t-SNE
brings the features to two dimensions and, as in the paper, to three. Each point is an image; the name of a
class stands at the mean of its points, with a line to it where it had to make room for another name.

Writes embedding_2d.png, embedding_3d.png and embedding.csv (the means of the classes) into
RUN_DIR/evaluation, or --output_dir. Axis letters: M classes, S image size, F features, D dimensions; n images
in all.
"""

import textwrap

import keras
import numpy as np
from absl import flags
from matplotlib import colormaps, patheffects
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.text import Text
from mpl_toolkits.mplot3d import proj3d
from sklearn.manifold import TSNE

from dynkhydra_tf import cli, figures
from dynkhydra_tf.data import load_data
from dynkhydra_tf.errors import UserError
from dynkhydra_tf.evaluation import open_hydra_run
from dynkhydra_tf.files import write_csv
from dynkhydra_tf.flags import data_settings
from dynkhydra_tf.partition import ClassPartition, build_extractor

PERPLEXITY = 30
IMAGES, LEAST_PER_CLASS = 2000, 10  # a sample's size unless told otherwise
# Five clusters share a shape, every second ten are darker: 100 clusters have signs of their own.
HUES, MARKERS = colormaps["tab10"].colors, "o^sDvPX*<>"
DARKER = 0.6


def sample_images(examples, num_classes, images_per_class, seed):
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
    kept, seen = [[] for _ in range(num_classes)], np.zeros(num_classes, int)
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


def embed(extractor, images, batch_size=16, progress=True):
    """Returns the features (n, F) float32 of images (n, S, S, 3) uint8.

    Raises:
        UserError: features that are not finite, or what `Extractor.load` raises.
    """
    extractor.load()
    bar = keras.utils.Progbar(len(images), unit_name="image", verbose=int(progress))
    features = []
    for start in range(0, len(images), batch_size):
        features.append(np.asarray(extractor(images[start : start + batch_size])))
        bar.add(len(features[-1]))
    features = np.concatenate(features)
    if not np.isfinite(features).all():
        raise UserError(
            f"Feature extractor {extractor.name} gives features that are not finite: choose another"
        )
    return features


def reduce_dimensions(features, dimensions, seed):
    """Returns the t-SNE of features (n, F), n > D, as points (n, D) float32; D is 2 or 3."""
    perplexity = min(PERPLEXITY, (len(features) - 1) / 3)
    tsne = TSNE(dimensions, perplexity=perplexity, init="pca", random_state=seed)
    return tsne.fit_transform(features)


def means_of_classes(points, labels, num_classes):
    """Returns the mean (M, D) of the points (n, D) of each class; labels (n,); nan for a class without."""
    means = np.full((num_classes, points.shape[1]), np.nan)
    for label in np.unique(labels):
        means[label] = points[labels == label].mean(axis=0)
    return means


def spread(centres, sizes, steps=500):
    """Moves boxes apart until none overlap, or `steps` are over, each by little.

    Args:
        centres: (L, 2) float.
        sizes: (L, 2) float, widths and heights.

    Returns:
        (L, 2) float64, the new centres.
    """
    centres, sizes = np.array(centres, np.float64), np.asarray(sizes, np.float64)
    wanted = (sizes[:, np.newaxis] + sizes) / 2  # (L, L, 2), the distance on either axis that is enough
    # Boxes of one centre go apart by their order.
    order = np.sign(np.arange(len(centres))[:, np.newaxis] - np.arange(len(centres)))
    for _ in range(steps):
        apart = centres[:, np.newaxis] - centres
        missing = wanted - np.abs(apart)
        overlap = (missing > 1e-9 * wanted).all(axis=-1) & (order != 0)
        if not overlap.any():
            break
        # Along the axis of the shorter way out; each of the two goes half of it.
        shorter = np.eye(2)[np.argmin(missing, axis=-1)]
        sign = np.where(apart == 0, order[..., np.newaxis], np.sign(apart))
        centres += (sign * (missing / 2 * 1.05) * shorter * overlap[..., np.newaxis]).sum(axis=1)
    return centres


# === The pictures ===


def save_embedding(points, labels, partition, path):
    """Draws the points, a sign for each cluster, and the names of the classes at their means.

    Args:
        points: (n, D) float, D = 2 or 3, from `reduce_dimensions`.
        labels: (n,) int.
        partition: `ClassPartition`.
        path: the PNG to write.
    """
    side = float(np.clip(1.35 * np.sqrt(partition.num_classes), 7, 40))  # inches; room for all the names
    three = points.shape[1] == 3
    width, height = np.ptp(points, axis=0)[:2]
    shape = 1 if three or not width else float(np.clip(height / width, 0.6, 1.6))
    figure = Figure(figsize=(side / shape**0.5 + 4, side * shape**0.5), layout="constrained")
    axes = figure.add_subplot(projection="3d" if three else None)
    cluster_of_class = np.array(partition.cluster_of_class)
    signs = []
    for cluster, names in enumerate(partition.clusters):
        color, marker = _sign(cluster)
        own = points[cluster_of_class[labels] == cluster]
        axes.plot(*own.T, marker, color=color, markersize=5, markeredgewidth=0, alpha=0.7)
        text = textwrap.shorten(f"{cluster}: {', '.join(names)}", 56, placeholder=" ...")
        signs.append(Line2D([], [], linestyle="", marker=marker, color=color, label=figures.plain_text(text)))
    dataset = figures.plain_text(partition.dataset)
    axes.set_title(f"t-SNE of {len(points)} training images of {dataset}, names at the class means")
    axes.tick_params(labelleft=False, labelbottom=False, length=0)  # t-SNE's units mean nothing
    if three:
        axes.zaxis.set_ticklabels([])
        axes.set_box_aspect(None, zoom=1.1)
    else:
        axes.set_aspect("equal", adjustable="datalim")
    columns = int(np.ceil(len(signs) / (side * 4.5)))
    figure.legend(handles=signs, loc="outside right upper", fontsize=8, ncols=columns, title="clusters")
    means = means_of_classes(points, labels, partition.num_classes)
    there = np.flatnonzero(np.isfinite(means[:, 0]))
    names = [partition.class_names[label] for label in there]
    colors = [np.multiply(_sign(cluster_of_class[label])[0], 0.75) for label in there]
    _write_names(figure, axes, means[there], names, colors)
    figures.save(figure, path)


def _sign(cluster):
    """The colour (three floats) and the marker of a cluster."""
    turn, hue = divmod(cluster, len(HUES))
    color = np.multiply(HUES[hue], DARKER if turn % 2 else 1)
    return tuple(color.tolist()), MARKERS[cluster // 5 % len(MARKERS)]


def _write_names(figure, axes, means, names, colors):
    """Writes the names at the means (L, D), apart from each other as far as there is room."""
    figure.draw_without_rendering()  # only now the layout, and with it where the means are, is known
    figure.set_layout_engine("none")
    if means.shape[1] == 3:
        x, y, _ = proj3d.proj_transform(*means.T, axes.get_proj())
        means = np.stack([x, y], axis=1)
    to_pixels, to_figure = axes.transData, figure.transFigure.inverted()
    texts = [
        axes.annotate(
            figures.plain_text(name),
            mean,
            xytext=to_figure.transform(to_pixels.transform(mean)),
            textcoords="figure fraction",
            ha="center",
            va="center",
            fontsize=8,
            fontweight="bold",
            color=color,
            arrowprops={"arrowstyle": "-", "color": "black", "linewidth": 0.6, "shrinkA": 0, "shrinkB": 0},
            path_effects=[patheffects.withStroke(linewidth=2, foreground="white")],
            annotation_clip=False,
            zorder=10,
        )
        for name, mean, color in zip(names, means, colors, strict=True)
    ]
    # An annotation's own extent would take in the line to its point.
    boxes = [Text.get_window_extent(text) for text in texts]
    sizes = np.array([(box.width + 4, box.height + 1) for box in boxes])
    places = spread(to_pixels.transform(means), sizes)
    for text, place in zip(texts, places, strict=True):
        text.set_position(to_figure.transform(place))


# === The command ===


def define_flags(flag_values):
    """Defines the flags of this command."""

    def define(kind, *args, **kwargs):
        kind(*args, flag_values=flag_values, **kwargs)

    define(flags.DEFINE_string, "run_dir", None, "The run whose partition to show.")
    define(
        flags.DEFINE_string, "data_dir", None, "Where the data set lies, as in train.py; default: the run's."
    )
    define(flags.DEFINE_string, "feature_extractor", None, "As in train.py; default: the run's.")
    define(flags.DEFINE_string, "feature_weights", None, "As in train.py; default: the run's.")
    define(
        flags.DEFINE_integer,
        "images_per_class",
        None,
        f"Images of each class, drawn at random; default: about {IMAGES} in all, of each class at least "
        f"{LEAST_PER_CLASS}.",
        lower_bound=1,
    )
    define(flags.DEFINE_integer, "seed", 0, "Of the draw and of t-SNE.", lower_bound=0, upper_bound=2**32 - 1)
    define(flags.DEFINE_string, "output_dir", None, "Where to write; default RUN_DIR/evaluation.")


def main(options):
    """Embeds a sample of a run's training images and draws it."""
    # === What to show ===
    run, trained_with, output = open_hydra_run(options, "partition", "show")
    weights = options.feature_weights
    if weights is None:  # the run's are those of the run's extractor
        weights = "imagenet" if options.feature_extractor else trained_with.feature_weights
    extractor = build_extractor(options.feature_extractor or trained_with.feature_extractor, weights)
    data = load_data(**data_settings(trained_with, options.data_dir))
    partition = ClassPartition.load(run.partition, data.name, data.class_names)
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
    for dimensions, axes in ((2, ("x_2d", "y_2d")), (3, ("x_3d", "y_3d", "z_3d"))):
        print(f"t-SNE to {dimensions} dimensions", flush=True)
        points = reduce_dimensions(features, dimensions, options.seed)
        save_embedding(points, labels, partition, output / f"embedding_{dimensions}d.png")
        means = means_of_classes(points, labels, data.num_classes)
        for row, mean in zip(rows, means, strict=True):
            row.update((axis, f"{value:.6g}") for axis, value in zip(axes, mean, strict=True))
    write_csv(output / "embedding.csv", rows)
    print(f"Written to {output}: embedding_2d.png, embedding_3d.png, embedding.csv")


if __name__ == "__main__":
    cli.run(main, define_flags)
