"""Images as points, coloured by cluster, with the names of the classes at their means (Fig. 1).

Axis letters: M classes, D dimensions; n points in all.
"""

import textwrap

import numpy as np
from matplotlib import colormaps, patheffects
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.text import Text
from mpl_toolkits.mplot3d import proj3d

from dynkhydra_tf.figures import style
from dynkhydra_tf.figures.labels import spread

# Five clusters share a shape, every second ten are darker: 100 clusters have signs of their own.
HUES, MARKERS = colormaps["tab10"].colors, "o^sDvPX*<>"
DARKER = 0.6


def save_embedding(points, labels, means, partition, path):
    """Draws the points, a sign for each cluster, and the names of the classes at their means.

    Args:
        points: (n, D) float, D = 2 or 3, from `reduce_dimensions`.
        labels: (n,) int.
        means: (M, D) float, the mean of the points of each class; nan for a class without.
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
        signs.append(Line2D([], [], linestyle="", marker=marker, color=color, label=style.plain_text(text)))
    dataset = style.plain_text(partition.dataset)
    axes.set_title(f"t-SNE of {len(points)} training images of {dataset}, names at the class means")
    axes.tick_params(labelleft=False, labelbottom=False, length=0)  # t-SNE's units mean nothing
    if three:
        axes.zaxis.set_ticklabels([])
        axes.set_box_aspect(None, zoom=1.1)
    else:
        axes.set_aspect("equal", adjustable="datalim")
    columns = int(np.ceil(len(signs) / (side * 4.5)))
    figure.legend(handles=signs, loc="outside right upper", fontsize=8, ncols=columns, title="clusters")
    there = np.flatnonzero(np.isfinite(means[:, 0]))
    names = [partition.class_names[label] for label in there]
    colors = [np.multiply(_sign(cluster_of_class[label])[0], 0.75) for label in there]
    _write_names(figure, axes, means[there], names, colors)
    style.save(figure, path)


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
            style.plain_text(name),
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
