"""Accuracy over compute, all methods in one picture: the paper's Fig. 4 with our own runs in it."""

import functools
import os
import textwrap
from collections.abc import Sequence

from dynkhydra_tf import figures
from dynkhydra_tf import paper_numbers as paper
from dynkhydra_tf.paper.experiments import Experiment, Series
from dynkhydra_tf.paper.results import data_set_of, training_text
from dynkhydra_tf.runs import FinishedRun
from dynkhydra_tf.settings import length_text

COLORS = {
    paper.PLAIN: "dimgray",
    paper.HYDRARES: "tab:blue",
    paper.DYNK: "tab:orange",
    paper.HYDRARES_SP: "tab:purple",
    paper.DYNK_HYDRA: "tab:green",
}


def save_tradeoff(rows: Sequence[dict], path: str | os.PathLike) -> None:
    """Draws top-1 over MFLOPs per image, a line for each method through its depths; the paper's dashed.

    A panel for each data set and backbone; its title says how long the runs were, and the paper's. A
    method with several variants has a marker for each. The paper's points are those of `paper_points`.

    Args:
        rows: list of dicts, from `results.result_rows`; what has no run is left out.
        path: the PNG to write.
    """
    panels: dict[tuple[str, str], list[dict]] = {}
    for row in rows:
        if row["top1"] is not None:
            panels.setdefault((row["dataset"], row["backbone"]), []).append(row)
    figures.save_tradeoff(
        {
            f"{dataset}, {backbone}\n{textwrap.fill(training_text(own), 100)}": [
                *_our_lines(own),
                *_paper_lines(dataset, backbone),
            ]
            for (dataset, backbone), own in panels.items()
        },
        path,
    )


def save_own_runs(runs: Sequence[FinishedRun], path: str | os.PathLike) -> None:
    """Draws top-1 over MFLOPs per image of runs of any kind and length: a point each, a panel a data set.

    Args:
        runs: finished runs.
        path: the PNG to write.
    """
    from dynkhydra_tf.figures import style  # loads matplotlib

    panels: dict[str, list[dict]] = {}
    for number, run in enumerate(runs):
        settings, summary = run.settings, run.summary
        length = length_text(settings.optimisation.epochs, settings.optimisation.schedule)
        lines = panels.setdefault(style.plain_text(data_set_of(run)), [])
        lines.append(
            {
                "label": f"{style.short(run.name)}: {length}",
                "points": [(settings.network.depth, summary["flops"]["total"] / 1e6, 100 * summary["top1"])],
                "color": f"C{number % 10}",
                "marker": number // 10,
                "dashed": False,
            }
        )
    figures.save_tradeoff(panels, path)


def _our_lines(rows):
    lines = {}
    for row in rows:
        line = lines.setdefault((row["system"], row["variant"]), [])
        line.append((row["depth"], row["mflops"], row["top1"]))
    variants = list(dict.fromkeys(variant for _, variant in lines))
    return [
        {
            "label": f"{method}, {variant.replace('_', ' ')}" if variant else method,
            "points": points,
            "color": COLORS[method],
            "marker": variants.index(variant),
            "dashed": False,
        }
        for (method, variant), points in lines.items()
    ]


def _paper_lines(dataset, backbone):
    return [
        {
            "label": f"{method} (paper)",
            "points": points,
            "color": COLORS[method],
            "marker": 0,
            "dashed": True,
        }
        for method, points in paper_points(dataset, backbone).items()
    ]


@functools.cache
def paper_points(dataset: str, backbone: str) -> dict[str, list[tuple[int, float, float]]]:
    """Returns the paper's points: {method: [(depth, mflops, top1), ...]}.

    Where the paper's FLOPs are lost or not given they are our own count, at the paper's lambda; a method
    whose lambda is not known, DynK, has no points then.
    """
    points = {}
    for method, rows in paper.RESULTS.get((dataset, backbone), {}).items():
        own = [
            (depth, _mflops(dataset, backbone, method, depth, row), row.top1) for depth, row in rows.items()
        ]
        if own := [point for point in own if None not in point]:
            points[method] = own
    return points


def _mflops(dataset, backbone, method, depth, row):
    if row.mflops is not None or row.top1 is None or method in (paper.PLAIN, paper.DYNK):
        return row.mflops
    from dynkhydra_tf.costs import inference_flops  # loads Keras: only where something is counted

    config = dataset if backbone != "densenet" else f"{dataset}_densenet"
    flops, top_k = _counted(config, depth)
    return inference_flops(flops, row.active_branches or top_k) / 1e6


@functools.cache
def _counted(config, depth):
    """FLOPs by part of a config's network at a depth, and its K."""
    from dynkhydra_tf.backbones import make_backbone
    from dynkhydra_tf.costs import NUM_CLASSES, branched_costs
    from dynkhydra_tf.data import find_entry

    settings = Experiment(Series(config, "", ()), depth).settings()
    data, network = settings.data, settings.network
    backbone = make_backbone(network, data.image_size or find_entry(data.dataset).image_size)
    return branched_costs(backbone, NUM_CLASSES[data.dataset], network.num_branches)["flops"], network.top_k
