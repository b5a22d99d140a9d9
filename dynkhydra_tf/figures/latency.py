"""Accuracy over measured milliseconds."""

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from dynkhydra_tf.figures import style
from dynkhydra_tf.figures.labels import label_points


def save_latency(rows: list[dict], title: str, path: style.Path) -> None:
    """Draws accuracy over measured milliseconds: a line for each Hydra, a marker for each plain network.

    Args:
        rows: from `benchmark.latency`: run, tau (None for a plain network), top1 (0..1), ms,
            low, high (ms per image, the median and its quartiles).
        title: what was measured where.
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
        style.plain_log_axis(axes.xaxis)
    axes.grid(alpha=0.3)
    kinds = "line: a Hydra, at each $\\tau$\nmarker alone: a plain network"
    figure.legend(loc="outside right upper", fontsize=8, title=kinds, title_fontsize=8)
    label_points(
        axes,
        [
            [
                (row["ms"], row["top1"], None if row["tau"] is None else f"{row['tau']:g}")
                for row in rows
                if row["run"] == run
            ]
            for run in runs
        ],
    )
    style.save(figure, path)
