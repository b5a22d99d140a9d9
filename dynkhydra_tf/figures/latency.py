"""Accuracy over measured milliseconds."""

import itertools

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullFormatter, PercentFormatter, ScalarFormatter

from dynkhydra_tf.figures import style


def save_latency(rows, title, path):
    """Draws accuracy over measured milliseconds: a line for each Hydra, a marker for each plain network.

    Args:
        rows: list of dicts from `analysis.latency`: run, tau (None for a plain network), top1 (0..1), ms,
            low, high (ms per image, the median and its quartiles).
        title: str, what was measured where.
        path: the PNG to write.
    """
    keys = ("ms", "low", "high", "top1")
    runs = list(dict.fromkeys(row["run"] for row in rows))
    figure = Figure(figsize=(10, 5), layout="constrained")
    axes = figure.subplots()
    for number, run in enumerate(runs):
        points = [row for row in rows if row["run"] == run]
        ms, low, high, top1 = np.transpose([[row[key] for key in keys] for row in points])
        plain = points[0]["tau"] is None
        axes.errorbar(
            ms,
            top1,
            xerr=np.maximum([ms - low, high - ms], 0),
            marker="osD^vP*X<>"[number // 10 % 10] if not plain else "sD^vP*X<>h"[number % 10],
            color=f"C{number % 10}",
            linestyle="none" if plain else "-",
            elinewidth=0.8,
            ecolor="silver",
            label=style.short(run),
        )
    axes.set_title(title, fontsize=10)
    axes.set(xlabel="ms per image (median; bars: quartiles)", ylabel="top-1")
    axes.yaxis.set_major_formatter(PercentFormatter(1))
    axes.margins(0.08)
    fastest, slowest = (pick(row["ms"] for row in rows) for pick in (min, max))
    if slowest > 3 * fastest:
        axes.set_xscale("log")
        steps = [step * 10.0**power for power in range(-3, 6) for step in (1, 2, 3, 5)]
        axes.xaxis.set_major_locator(FixedLocator(steps))
        axes.xaxis.set_major_formatter(ScalarFormatter())
        axes.xaxis.set_minor_formatter(NullFormatter())
    axes.grid(alpha=0.3)
    kinds = "line: a Hydra, at each $\\tau$\nmarker alone: a plain network"
    figure.legend(loc="outside right upper", fontsize=8, title=kinds, title_fontsize=8)
    _label_points(figure, axes, [[row for row in rows if row["run"] == run] for run in runs])
    style.save(figure, path)


def _label_points(figure, axes, lines):
    """Writes tau beside each point of the lines, lists of rows; where there is no free place, nothing."""
    figure.draw_without_rendering()
    places = [axes.transData.transform([(row["ms"], row["top1"]) for row in line]) for line in lines]
    # The lines, in so many dots that none slips between two of them through a label.
    along = [np.linspace(a, b, 50) for place in places for a, b in itertools.pairwise(place)]
    drawn, taken = np.concatenate([*places, *along]), []
    # On a rising line, the first two leave it free.
    corners = [
        ((x, y), "left" if x > 0 else "right", "bottom" if y > 0 else "top")
        for x, y in ((-5, 4), (5, -4), (5, 4), (-5, -4))
    ]
    for row in (row for line in lines for row in line if row["tau"] is not None):
        for offset, across, upright in corners:
            note = axes.annotate(
                f"{row['tau']:g}",
                (row["ms"], row["top1"]),
                offset,
                textcoords="offset points",
                ha=across,
                va=upright,
                fontsize=8,
            )
            box = note.get_window_extent().padded(2)
            if not (box.count_contains(drawn) or box.count_overlaps(taken)):
                taken.append(box)
                break
            note.remove()
