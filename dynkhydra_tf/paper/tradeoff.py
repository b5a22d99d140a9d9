"""Accuracy over compute, all systems in one picture: the paper's Fig. 4 with our own runs in it."""

import functools

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from dynkhydra_tf.costs import NUM_CLASSES, branched_costs, inference_flops
from dynkhydra_tf.data import find_entry
from dynkhydra_tf.figures import save
from dynkhydra_tf.flags import make_backbone
from dynkhydra_tf.paper import numbers as paper
from dynkhydra_tf.paper.experiments import Experiment, System

COLORS = {
    paper.PLAIN: "dimgray",
    paper.HYDRARES: "tab:blue",
    paper.DYNK: "tab:orange",
    paper.HYDRARES_SP: "tab:purple",
    paper.DYNK_HYDRA: "tab:green",
}
MARKERS = ("o", "s", "^", "D", "v", "P", "X")


def save_tradeoff(rows, path):
    """Draws top-1 over MFLOPs per image, a line for each system through its depths; the paper's dashed.

    A panel for each data set and backbone. A system with several variants has a marker for each.
    The paper's points are those of `paper_points`.

    Args:
        rows: list of dicts, from `results.result_rows`; what has no run is left out.
        path: the PNG to write.
    """
    rows = [row for row in rows if row["top1"] is not None]
    panels = list(dict.fromkeys((row["dataset"], row["backbone"]) for row in rows))
    figure = Figure(figsize=(8 * len(panels), 5), layout="constrained")
    for axes, (dataset, backbone) in zip(
        figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True
    ):
        own = [row for row in rows if (row["dataset"], row["backbone"]) == (dataset, backbone)]
        _draw_ours(axes, own)
        for system, points in paper_points(dataset, backbone).items():
            label = f"{system} (paper)"
            _draw_line(
                axes, points, COLORS[system], label, linestyle="--", marker="o", fillstyle="none", alpha=0.6
            )
        axes.set(title=f"{dataset}, {backbone}", xlabel="MFLOPs per image", ylabel="top-1, %", xscale="log")
        _widen(axes)
        axes.grid(alpha=0.3, which="both")
        axes.legend(fontsize=8)
    save(figure, path)


def _draw_ours(axes, rows):
    lines = {}
    for row in rows:
        lines.setdefault((row["system"], row["variant"]), []).append(row)
    variants = list(dict.fromkeys(variant for _, variant in lines))
    for (system, variant), line in lines.items():
        label = f"{system}, {variant.replace('_', ' ')}" if variant else system
        points = [(row["depth"], row["mflops"], row["top1"]) for row in line]
        marker = MARKERS[variants.index(variant) % len(MARKERS)]
        _draw_line(axes, points, COLORS[system], label, linestyle="-", marker=marker)


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


@functools.cache
def paper_points(dataset, backbone):
    """Returns the paper's points: {system: [(depth, mflops, top1), ...]}.

    Where the paper's FLOPs are lost or not given they are our own count, at the paper's lambda; a system
    whose lambda is not known, DynK, has no points then.
    """
    points = {}
    for system, rows in paper.RESULTS.get((dataset, backbone), {}).items():
        own = [
            (depth, _mflops(dataset, backbone, system, depth, row), row.top1) for depth, row in rows.items()
        ]
        if own := [point for point in own if None not in point]:
            points[system] = own
    return points


def _mflops(dataset, backbone, system, depth, row):
    if row.mflops is not None or row.top1 is None or system in (paper.PLAIN, paper.DYNK):
        return row.mflops
    config = dataset if backbone != "densenet" else f"{dataset}_densenet"
    flops, top_k = _counted(config, depth)
    return inference_flops(flops, row.active_branches or top_k) / 1e6


@functools.cache
def _counted(config, depth):
    """FLOPs by part of a config's network at a depth, and its K."""
    values = Experiment(System(config, "", ()), depth).flags()
    size = values.image_size or find_entry(values.dataset).image_size
    backbone = make_backbone(values, size)
    return branched_costs(backbone, NUM_CLASSES[values.dataset], values.num_branches)["flops"], values.top_k
