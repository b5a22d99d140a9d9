"""Accuracy over compute: a line for each method through its depths."""

import numpy as np
from matplotlib.figure import Figure

from dynkhydra_tf.figures import style
from dynkhydra_tf.figures.labels import label_points

MARKERS = ("o", "s", "^", "D", "v", "P", "X")


def save_tradeoff(panels: dict[str, list[dict]], path: style.Path) -> None:
    """Draws top-1 over MFLOPs per image, a line for each method, a point for each depth.

    Args:
        panels: {title: lines}; a line is a dict of label, points [(depth, MFLOPs, top-1 in %), ...], color,
            marker (int, a number for each variant) and dashed (bool: numbers of others, drawn hollow).
        path: the PNG to write.
    """
    figure = Figure(figsize=(10, 4.4 * len(panels)), layout="constrained")
    all_axes = figure.subplots(len(panels), 1, squeeze=False)[:, 0]
    for axes, (title, lines) in zip(all_axes, panels.items(), strict=True):
        for number, line in enumerate(lines):
            _, mflops, top1 = zip(*sorted(line["points"]), strict=True)
            look = {"linestyle": "--", "fillstyle": "none", "alpha": 0.6} if line["dashed"] else {}
            look["marker"] = MARKERS[line["marker"] % len(MARKERS)]
            # Earlier lines above later ones.
            axes.plot(mflops, top1, color=line["color"], label=line["label"], zorder=9 - number / 99, **look)
        axes.set(title=title, xlabel="MFLOPs per image", ylabel="top-1, %", xscale="log")
        _widen(axes)
        axes.grid(alpha=0.3)
        axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1), fontsize=8)
    for axes, lines in zip(all_axes, panels.values(), strict=True):
        label_points(axes, [_with_depths(line) for line in lines], fontsize=7)
    style.save(figure, path)


def _with_depths(line):
    """The points of a line for `label_points`: the first and the last tell their depth."""
    points = sorted(line["points"])
    depths = {points[0][0], points[-1][0]}
    return [(x, y, f"d={depth}" if depth in depths else None) for depth, x, y in points]


def _widen(axes):
    """Gives one point or two a neighbourhood, and the horizontal axis plain numbers."""
    (low, high), (bottom, top) = axes.dataLim.intervalx, axes.dataLim.intervaly
    if high < 2 * low:
        middle = np.sqrt(low * high)
        axes.set_xlim(middle / 1.5, middle * 1.5)
    if top < bottom + 4:
        axes.set_ylim((bottom + top) / 2 - 2, (bottom + top) / 2 + 2)
    style.plain_log_axis(axes.xaxis)
