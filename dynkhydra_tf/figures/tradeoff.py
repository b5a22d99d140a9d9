"""Accuracy over compute: a line for each system through its depths."""

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from dynkhydra_tf.figures import style

MARKERS = ("o", "s", "^", "D", "v", "P", "X")


def save_tradeoff(panels, path):
    """Draws top-1 over MFLOPs per image, a line for each system, a point for each depth.

    Args:
        panels: {title: lines}; a line is a dict of label, points [(depth, MFLOPs, top-1 in %), ...], color,
            marker (int, a number for each variant) and dashed (bool: numbers of others, drawn hollow).
        path: the PNG to write.
    """
    figure = Figure(figsize=(8 * len(panels), 5), layout="constrained")
    for axes, (title, lines) in zip(
        figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True
    ):
        for line in lines:
            look = {"linestyle": "--", "fillstyle": "none", "alpha": 0.6} if line["dashed"] else {}
            marker = MARKERS[line["marker"] % len(MARKERS)]
            _draw_line(axes, line["points"], line["color"], line["label"], marker=marker, **look)
        axes.set(title=title, xlabel="MFLOPs per image", ylabel="top-1, %", xscale="log")
        _widen(axes)
        axes.grid(alpha=0.3, which="both")
        axes.legend(fontsize=8)
    style.save(figure, path)


def _draw_line(axes, points, color, label, **style):
    """Draws (depth, mflops, top1) points; the first and the last tell their depth."""
    points = sorted(points)
    _, x, y = zip(*points, strict=True)
    axes.plot(x, y, color=color, label=label, **style)
    for depth, *place in {points[0], points[-1]}:
        axes.annotate(f"d={depth}", place, (5, 4), textcoords="offset points", fontsize=7, color=color)


def _widen(axes):
    """Gives one point or two a neighbourhood, and a short log axis plain numbers."""
    (low, high), (bottom, top) = axes.dataLim.intervalx, axes.dataLim.intervaly
    if high < 2 * low:
        middle = np.sqrt(low * high)
        axes.set_xlim(middle / 1.5, middle * 1.5)
    if top < bottom + 4:
        axes.set_ylim((bottom + top) / 2 - 2, (bottom + top) / 2 + 2)
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
