"""What the paper trained, table by table: for each row and depth a run's flags, and the paper's numbers.

A config in configs/ is one method on one data set; a table is rows of configs at some depths.
"""

import pathlib
from collections.abc import Sequence
from typing import NamedTuple

from dynkhydra_tf import flags
from dynkhydra_tf import paper_numbers as paper
from dynkhydra_tf.errors import UserError
from dynkhydra_tf.paper_numbers import DYNK, DYNK_HYDRA, HYDRARES, HYDRARES_SP, PLAIN
from dynkhydra_tf.settings import Settings

CONFIGS = pathlib.Path("configs")  # the package's, where there is no such directory
# The thresholds of Table 6, and some beyond them.
TAUS = (0.0, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.15, 0.2, 0.3, 0.5)

_TO_9 = (1, 2, 3, 4, 5, 6, 7, 9)


class Series(NamedTuple):
    """A method on a data set, at some depths: a row of a table for each, a line in a figure.

    Attributes:
        config: the file in configs/ without its suffix.
        method: the paper's name of it, one of `paper_numbers`.
        depths: d, those of the paper where they are known.
        variant: what tells it from others of the same method; "" for nothing.
        changes: flags after the config's, such as "--partition=random".
    """

    config: str
    method: str
    depths: tuple[int, ...]
    variant: str = ""
    changes: tuple[str, ...] = ()


class Table(NamedTuple):
    """A table of the paper.

    Attributes:
        title: its heading.
        series: what it sets side by side.
        by_tau: whether it also has a row for each threshold.
    """

    title: str
    series: list[Series]
    by_tau: bool = False


class Experiment(NamedTuple):
    """One network to train, but for its seed: a series at one depth."""

    series: Series
    depth: int

    @property
    def name(self) -> str:
        """Its name, for a directory: config, values of what was changed, depth."""
        values = [flag.partition("=")[2] for flag in self.series.changes]
        return "-".join([self.series.config, *values, f"d{self.depth}"])

    @property
    def arguments(self) -> list[str]:
        """The flags of train.py: the config, its changes, the depth."""
        config = (CONFIGS / self.series.config).with_suffix(".cfg")
        return [f"--flagfile={config}", *self.series.changes, f"--depth={self.depth}"]

    def settings(self, *more: str) -> Settings:
        """Returns the settings that `arguments` and more of them describe.

        Raises:
            UserError: a flag is wrong.
        """
        try:
            return flags.parse([*self.arguments, *more])
        except UserError as error:
            raise UserError(f"{self.name}: {error}") from error

    def paper_row(self, dataset: str, backbone: str) -> paper.Row:
        """Returns the paper's numbers, None in them where it has none."""
        method, depth, variant = self.series.method, self.depth, self.series.variant
        if self.series.changes:
            return paper.Row(top1=paper.PARTITIONS[method].get(variant) if depth == 2 else None)
        if self.series.config == "cifar100_plain" and depth == LARGEST_PLAIN:
            return paper.LARGEST_RESNET
        row = paper.RESULTS.get((dataset, backbone), {}).get(method, {}).get(depth, paper.Row())
        if row.top1 is None and dataset == "food101" and method == DYNK_HYDRA:  # Table 6 has these
            row = row._replace(top1=paper.TAU.get(depth, {}).get(0.08, row).top1)
        return row


LARGEST_PLAIN = 27
GATED, OPTIMAL = "--combine=gate_weighted", "--partition=cluster_optimal"


def _hydra_rows(config: str, depths: tuple[int, ...], plain_depths: tuple[int, ...]) -> list[Series]:
    return [
        Series(f"{config}_plain", PLAIN, plain_depths),
        Series(f"{config}_hydrares", HYDRARES, depths),
        Series(config, DYNK_HYDRA, depths),
    ]


def _partition_rows(config: str, method: str) -> list[Series]:
    changed = [
        Series(config, method, (2,), name, (f"--partition={name}",)) for name in ("random", "semantic")
    ]
    return [*changed, Series(config, method, (2,), "cluster_balance")]  # as in the config


TABLES = {
    "1": Table(
        "Table 1: plain networks, HydraRes and DynK-Hydra on CIFAR-100, Food-101 and CUB-200",
        [
            *_hydra_rows("cifar100", _TO_9, (*_TO_9, 18, LARGEST_PLAIN)),
            *_hydra_rows("food101", _TO_9, (*_TO_9, 18, LARGEST_PLAIN)),
            *_hydra_rows("cub200", _TO_9, _TO_9),
        ],
    ),
    "2": Table(
        "Table 2: DenseNet, Hydra-Dense and DynK-Hydra-Dense on CIFAR-100",
        _hydra_rows("cifar100_densenet", (1, 2, 3, 4), (1, 2, 3, 4, 5, 6)),
    ),
    "3": Table(
        "Table 3: HydraRes and DynK-Hydra on ImageNet32",
        [
            Series("imagenet32_hydrares", HYDRARES, (1, 2, 3, 4, 5)),
            Series("imagenet32", DYNK_HYDRA, (1, 2, 3, 4, 5)),
        ],
    ),
    "4": Table(
        "Table 4: what the threshold and the branches' own loss give, on CIFAR-100",
        [
            Series("cifar100_hydrares", HYDRARES, _TO_9),
            Series("cifar100_dynk", DYNK, _TO_9),
            Series("cifar100_hydrares_sp", HYDRARES_SP, _TO_9),
            Series("cifar100", DYNK_HYDRA, _TO_9),
        ],
    ),
    "5": Table(
        "Table 5: partitions of the classes, on CIFAR-100",
        _partition_rows("cifar100_hydrares", HYDRARES) + _partition_rows("cifar100", DYNK_HYDRA),
    ),
    "6": Table(
        "Table 6: accuracy and branches over the threshold, DynK-Hydra on Food-101",
        [Series("food101", DYNK_HYDRA, (1, 9))],
        by_tau=True,
    ),
    "plus": Table(
        "Beyond the paper: projections weighted by their gates, and the class partition of least distance, "
        "on CIFAR-100",
        [
            Series("cifar100", DYNK_HYDRA, (1, 2, 3)),
            Series("cifar100", DYNK_HYDRA, (1, 2, 3), "cluster_optimal", (OPTIMAL,)),
            Series("cifar100", DYNK_HYDRA, (1, 2, 3), "gate_weighted", (GATED,)),
            Series("cifar100", DYNK_HYDRA, (1, 2, 3), "gate_weighted, cluster_optimal", (GATED, OPTIMAL)),
        ],
        by_tau=True,
    ),
}


def experiments(table: str, depths: Sequence[int] = ()) -> list[Experiment]:
    """Returns the experiments of a table of `TABLES`, row by row.

    Args:
        table: its key, such as "4".
        depths: d in place of the table's own, any from 1 on.
    """
    return [Experiment(line, depth) for line in TABLES[table].series for depth in (depths or line.depths)]
