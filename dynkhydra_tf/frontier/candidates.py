"""The networks that are tried: each a training run of its own, all on one stem and with one recipe."""

import os
from collections.abc import Sequence
from typing import Any, NamedTuple

from dynkhydra_tf.backbones.pretrained import OpenNetwork
from dynkhydra_tf.errors import UserError
from dynkhydra_tf.fields import changed, leaves, values
from dynkhydra_tf.settings import Settings

TAIL_WIDTHS = (0.25, 0.5, 1.0)
# Of the Hydra, where nothing else is given.
BRANCH_WIDTH, GATER_TAIL_WIDTH, COMBINE, PARTITION = 0.25, 0.25, "gate_weighted", "cluster_optimal"
CLUSTERING_IMAGES = 20  # of a class: the whole network runs on them


class Candidate(NamedTuple):
    """A network to try.

    Attributes:
        name: for people.
        runs: its settings, one for each seed.
    """

    name: str
    runs: tuple[Settings, ...]


def candidates(settings: Settings, directory: str, seeds: Sequence[int] = ()) -> list[Candidate]:
    """Returns what is tried: the linear head, plain tails of several widths, a Hydra.

    Args:
        settings: what all have in common; a network of Keras.
        directory: where the run directories are to lie.
        seeds: one run of each network for each; none: the settings' seed alone.

    Raises:
        UserError: settings that the candidates set themselves.
    """
    defaults = {field.name: field.default for field in leaves(Settings)}
    given = {name: value for name, value in values(settings).items() if value != defaults[name]}
    for name in ("system", "tail_width", "run_dir"):
        if name in given:
            raise UserError(
                f"--{name} is what the frontier sets for each of its networks: leave it out. "
                f"Received: {given[name]}"
            )
    if settings.network.freeze not in ("none", "stem"):
        raise UserError(
            "The frontier's networks share a stem that stays as it is: leave --freeze out. "
            f"Received: {settings.network.freeze}"
        )
    hydra = {
        "branch_width": BRANCH_WIDTH,
        "gater_tail_width": GATER_TAIL_WIDTH,
        "combine": COMBINE,
        "partition": PARTITION,
        "feature_images_per_class": CLUSTERING_IMAGES,
        "feature_extractor": settings.network.backbone,  # EfficientNet-B7 would take longer than all the rest
    }
    tried: dict[str, dict[str, Any]] = {
        "linear head": {"system": "plain", "freeze": "all", "classifier": "regression"}
    }
    for width in TAIL_WIDTHS:
        tried[f"plain, width {width:g}"] = {"system": "plain", "freeze": "stem", "tail_width": width}
    tried["Hydra"] = {"system": "hydra", "freeze": "stem"} | {
        name: value for name, value in hydra.items() if name not in given
    }
    found = []
    for name, own in tried.items():
        key = name.lower().replace(", width ", "-").replace(" ", "-")
        runs = []
        for seed in seeds or (settings.optimisation.seed,):
            path = os.path.join(directory, f"{key}-seed{seed}" if len(seeds) > 1 else key)
            runs.append(changed(settings, **own, seed=seed, run_dir=path))
        found.append(Candidate(name, tuple(runs)))
    return found


def that_fit(tried: Sequence[Candidate], opened: OpenNetwork) -> list[Candidate]:
    """Returns the candidates that a network can be cut to; tells which it cannot.

    A network may have no hidden channels behind the cut to leave out: its tail then has one width, and the
    Hydra's gate is a layer on the pooled map, or its branches have all channels, too.

    Raises:
        UserError: it cannot be cut there at all, or the branches' blocks do not fit.
    """
    given = tried[0].runs[0].network
    opened.cut(given.cut, given.branch_blocks)
    pooled = {"gater_tail_width": 0.0}
    ways: dict[str, list[dict[str, Any]]] = {
        "plain": [{}],
        "hydra": [{}, pooled, pooled | {"branch_width": 1.0}],
    }
    found, left_out = [], []
    for candidate in tried:
        runs = (
            tuple(changed(run, **way) for run in candidate.runs)
            for way in ways[candidate.runs[0].network.system]
        )
        if fitting := next((each for each in runs if _fits(opened, each[0].network)), None):
            found.append(Candidate(candidate.name, fitting))
        if not fitting or fitting[0].network.branch_width != candidate.runs[0].network.branch_width:
            left_out.append(candidate.name)
    if left_out:
        print(
            f"{opened.name} has no hidden channels behind its cut that could be left out. Not tried, or with "
            f"all channels: {', '.join(left_out)}",
            flush=True,
        )
    return found


def _fits(opened, network):
    widths = {"branch_width": network.branch_width, "tail_width": network.tail_width}
    try:
        opened.cut(network.cut, network.branch_blocks, **widths, gater_width=network.gater_tail_width)
    except UserError:
        return False
    return True
