"""Accuracy over compute, all systems in one picture: the paper's Fig. 4 with our own runs in it."""

import functools

from dynkhydra_tf import figures
from dynkhydra_tf import paper_numbers as paper
from dynkhydra_tf.costs import NUM_CLASSES, branched_costs, inference_flops
from dynkhydra_tf.data import find_entry
from dynkhydra_tf.old_flags import make_backbone
from dynkhydra_tf.paper.experiments import Experiment, System

COLORS = {
    paper.PLAIN: "dimgray",
    paper.HYDRARES: "tab:blue",
    paper.DYNK: "tab:orange",
    paper.HYDRARES_SP: "tab:purple",
    paper.DYNK_HYDRA: "tab:green",
}


def save_tradeoff(rows, path):
    """Draws top-1 over MFLOPs per image, a line for each system through its depths; the paper's dashed.

    A panel for each data set and backbone. A system with several variants has a marker for each.
    The paper's points are those of `paper_points`.

    Args:
        rows: list of dicts, from `results.result_rows`; what has no run is left out.
        path: the PNG to write.
    """
    rows = [row for row in rows if row["top1"] is not None]
    panels = {}
    for row in rows:
        panels.setdefault((row["dataset"], row["backbone"]), []).append(row)
    figures.save_tradeoff(
        {
            f"{dataset}, {backbone}": [*_our_lines(own), *_paper_lines(dataset, backbone)]
            for (dataset, backbone), own in panels.items()
        },
        path,
    )


def _our_lines(rows):
    lines = {}
    for row in rows:
        line = lines.setdefault((row["system"], row["variant"]), [])
        line.append((row["depth"], row["mflops"], row["top1"]))
    variants = list(dict.fromkeys(variant for _, variant in lines))
    return [
        {
            "label": f"{system}, {variant.replace('_', ' ')}" if variant else system,
            "points": points,
            "color": COLORS[system],
            "marker": variants.index(variant),
            "dashed": False,
        }
        for (system, variant), points in lines.items()
    ]


def _paper_lines(dataset, backbone):
    return [
        {
            "label": f"{system} (paper)",
            "points": points,
            "color": COLORS[system],
            "marker": 0,
            "dashed": True,
        }
        for system, points in paper_points(dataset, backbone).items()
    ]


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
