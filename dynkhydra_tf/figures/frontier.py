"""The networks that were tried: top-1 over measured milliseconds, and the one to take."""

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from dynkhydra_tf.figures import style
from dynkhydra_tf.figures.labels import label_points


def save_frontier(
    points: list[dict],
    title: str,
    path: style.Path,
    chosen: dict | None = None,
    budget_ms: float | None = None,
) -> None:
    """Draws each network's top-1 over its time; a line through the plain ones, one through the thresholds.

    Args:
        points: from `frontier.measure`: network, system, tau, top1, low, high (0..1), spread (or None), ms,
            ms_low, ms_high.
        title: what was measured on what.
        path: the PNG to write.
        chosen: the one of the points that is recommended.
        budget_ms: drawn as a line.
    """
    figure = Figure(figsize=(10, 5.5), layout="constrained")
    axes = figure.subplots()
    lines = [[point for point in points if point["system"] == system] for system in ("plain", "hydra")]
    for number, line in enumerate(lines):
        line.sort(key=lambda point: point["ms"])
        if line:
            _draw(axes, line, number)
    if chosen is not None:
        axes.plot(
            chosen["ms"],
            chosen["top1"],
            "o",
            markersize=14,
            markerfacecolor="none",
            markeredgecolor="C3",
            markeredgewidth=1.8,
            label="recommended",
        )
    if budget_ms is not None:
        axes.axvline(budget_ms, color="C3", linestyle=":", label=f"budget, {budget_ms:g} ms")
    axes.set(xlabel="ms per image (median; bars: quartiles)", ylabel=_accuracy_label(points))
    axes.yaxis.set_major_formatter(PercentFormatter(1))
    axes.margins(0.1)
    times = [point["ms"] for point in points] + ([budget_ms] if budget_ms else [])
    if max(times) > 3 * min(times):
        axes.set_xscale("log")
        style.plain_log_axis(axes.xaxis)
    axes.grid(alpha=0.3)
    axes.set_title(title, fontsize=10)
    figure.legend(loc="outside right upper", fontsize=8)
    label_points(
        axes, [[(point["ms"], point["top1"], _label(point)) for point in line] for line in lines if line]
    )
    style.save(figure, path)


def _draw(axes, line, number):
    ms, low, high, top1 = np.transpose(
        [[point[key] for key in ("ms", "low", "high", "top1")] for point in line]
    )
    fast, slow = np.transpose([[point[key] for key in ("ms_low", "ms_high")] for point in line])
    axes.errorbar(
        ms,
        top1,
        xerr=np.maximum([ms - fast, slow - ms], 0),
        yerr=np.maximum([top1 - low, high - top1], 0),
        marker="so"[number],
        color=f"C{number}",
        elinewidth=0.8,
        ecolor="silver",
        zorder=3,
        label=("plain networks", "Hydra, at each $\\tau$")[number],
    )
    spread = [point["spread"] for point in line]
    if None not in spread:
        axes.errorbar(ms, top1, yerr=spread, linestyle="none", color=f"C{number}", elinewidth=2.5, zorder=2)


def _accuracy_label(points):
    bars = "bars: 95 % for so many test images"
    if any(point["spread"] is not None for point in points):
        bars += "; thick: 1 deviation over seeds"
    return f"top-1 ({bars})"


def _label(point):
    return point["network"].removeprefix("plain, ") if point["tau"] is None else f"{point['tau']:g}"
