"""Images as points, coloured by cluster, with the names of the classes at their means (Fig. 1).

Axis letters: M classes, D dimensions; n points in all.
"""

import numpy as np
from matplotlib import colormaps, patheffects
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.text import Text

from dynkhydra_tf.figures import style
from dynkhydra_tf.figures.labels import spread
from dynkhydra_tf.partition import ClassPartition

# Five clusters share a shape, every second ten are darker: 100 clusters have signs of their own.
HUES, MARKERS = [colormaps["tab10"](i)[:3] for i in range(10)], "o^sDvPX*<>"
DARKER = 0.6
# Inches: of a name's character and line, the picture's sides, a row and a column of the legend.
CHARACTER, LINE, SIDES, ROW, COLUMN = 0.07, 0.13, (7, 30), 0.19, 3.9
COVERED = 0.17  # the share of the picture that names may take


def save_embedding(
    points: np.ndarray, labels: np.ndarray, means: np.ndarray, partition: ClassPartition, path: style.Path
) -> None:
    """Draws the points, a sign for each cluster, and the names of the classes at their means.

    Points of three dimensions are seen from where they are spread widest; the farther, the paler.

    Args:
        points: (n, D) float, D = 2 or 3, from `reduce_dimensions`.
        labels: (n,) int.
        means: (M, D) float, the mean of the points of each class; nan for a class without.
        partition: of the M classes.
        path: the PNG to write.
    """
    near = np.ones(len(points))
    if points.shape[1] == 3:
        points, means, near = _seen(points, means)
    names = [style.short(name, 28) for name in partition.class_names]
    area = sum(len(name) * CHARACTER * LINE for name in names) / COVERED
    side = float(np.clip(np.sqrt(area), *SIDES))
    width, height = np.ptp(points, axis=0)
    shape = float(np.clip(height / width, 0.5, 1.5)) if width else 1
    width, height = side / shape**0.5, side * shape**0.5
    columns = max(1, min(int(width / COLUMN), partition.num_branches))
    rows = -(-partition.num_branches // columns)
    figure = Figure(figsize=(width, height + 0.9 + rows * ROW), layout="constrained")
    axes = figure.add_subplot()
    cluster_of_class = np.array(partition.cluster_of_class)
    signs = []
    for cluster, text in enumerate(style.cluster_names(partition.clusters)):
        color, marker = _sign(cluster)
        own = cluster_of_class[labels] == cluster
        colors = np.column_stack([np.tile(color, (own.sum(), 1)), 0.2 + 0.55 * near[own]])
        axes.scatter(points[own, 0], points[own, 1], s=22, c=colors, marker=marker, linewidths=0)
        signs.append(Line2D([], [], linestyle="", marker=marker, color=color, label=style.short(text, 52)))
    seen = "" if near.min() == 1 else ", the farther the paler"
    dataset = style.short(partition.dataset)
    axes.set_title(f"t-SNE of {len(points)} images of {dataset}{seen}; names at the means", fontsize=10)
    axes.set(xticks=[], yticks=[])  # t-SNE's units mean nothing
    axes.margins(0.04)
    axes.set_aspect("equal", adjustable="datalim")
    figure.legend(handles=signs, loc="outside lower center", fontsize=8, ncols=columns, title="clusters")
    there = np.flatnonzero(np.isfinite(means[:, 0]))
    colors = [np.multiply(_sign(cluster_of_class[label])[0], 0.75) for label in there]
    _write_names(figure, axes, means[there], [names[label] for label in there], colors)
    style.save(figure, path)


def _seen(points, means):
    """Points and means (., 3) as (., 2) along their widest axes, and how near each point is, in 0..1."""
    centre = points.mean(axis=0)
    *_, axes = np.linalg.svd(points - centre, full_matrices=False)
    axes = (
        axes * np.sign(axes[np.arange(3), np.abs(axes).argmax(axis=1)])[:, np.newaxis]
    )  # svd's sign is free
    points, means = (points - centre) @ axes.T, (means - centre) @ axes.T
    depth = points[:, 2]
    return points[:, :2], means[:, :2], (depth - depth.min()) / max(np.ptp(depth), 1e-9)


def _sign(cluster):
    """The colour (three floats) and the marker of a cluster."""
    turn, hue = divmod(cluster, len(HUES))
    color = np.multiply(HUES[hue], DARKER if turn % 2 else 1)
    return tuple(color.tolist()), MARKERS[cluster // 5 % len(MARKERS)]


def _write_names(figure, axes, means, names, colors):
    """Writes the names at the means (L, 2), apart from each other as far as there is room."""
    style.lay_out(figure)
    figure.set_layout_engine("none")
    to_pixels, to_figure = axes.transData, figure.transFigure.inverted()
    texts = [
        axes.annotate(
            name,
            mean,
            xytext=to_figure.transform(to_pixels.transform(mean)),
            textcoords="figure fraction",
            ha="center",
            va="center",
            fontsize=7,
            fontweight="bold",
            color=color,
            arrowprops={"arrowstyle": "-", "color": "black", "linewidth": 0.6, "shrinkA": 0, "shrinkB": 0},
            path_effects=[patheffects.withStroke(linewidth=2, foreground="white")],
            annotation_clip=False,
            zorder=10,
        )
        for name, mean, color in zip(names, means, colors, strict=True)
    ]
    style.lay_out(figure)
    # An annotation's own extent would take in the line to its point.
    boxes = [Text.get_window_extent(text) for text in texts]
    sizes = np.array([(box.width + 4, box.height + 1) for box in boxes])
    places = spread(to_pixels.transform(means), sizes, axes.get_window_extent().get_points())
    for text, place in zip(texts, places, strict=True):
        text.set_position(to_figure.transform(place))
