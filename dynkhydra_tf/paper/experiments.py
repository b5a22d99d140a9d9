"""What the paper trained, table by table: for each row and depth a run's flags, and the paper's numbers.

A config in configs/ is one system on one data set; a table is rows of configs at some depths.
"""

import pathlib
from typing import NamedTuple

from absl import flags

from dynkhydra_tf import paper_numbers as paper
from dynkhydra_tf.errors import UserError
from dynkhydra_tf.old_flags import define_training_flags
from dynkhydra_tf.paper_numbers import DYNK, DYNK_HYDRA, HYDRARES, HYDRARES_SP, PLAIN

CONFIGS = pathlib.Path("configs")  # relative to where the command runs, as the configs' own --flagfile are
# The thresholds of Table 6, and some beyond them.
TAUS = (0.0, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.15, 0.2, 0.3, 0.5)

_TO_9 = (1, 2, 3, 4, 5, 6, 7, 9)


class System(NamedTuple):
    """A row of a table: a system on a data set, at some depths.

    Attributes:
        config: str, the file in configs/ without its suffix.
        system: str, the paper's name of it.
        depths: ints, d, those of the paper where they are known.
        variant: str, what tells it from other rows of the same system; "" for nothing.
        changes: flags after the config's, such as "--partition=random".
    """

    config: str
    system: str
    depths: tuple
    variant: str = ""
    changes: tuple = ()


class Table(NamedTuple):
    """A table of the paper.

    Attributes:
        title: str.
        systems: list of `System`.
        by_tau: bool, whether it also has a row for each threshold.
    """

    title: str
    systems: list
    by_tau: bool = False


class Experiment(NamedTuple):
    """One network to train, but for its seed: a system at one depth."""

    system: System
    depth: int

    @property
    def name(self):
        """Its name, for a directory: config, values of what was changed, depth."""
        values = [flag.partition("=")[2] for flag in self.system.changes]
        return "-".join([self.system.config, *values, f"d{self.depth}"])

    @property
    def arguments(self):
        """The flags of train.py: the config, its changes, the depth."""
        config = (CONFIGS / self.system.config).with_suffix(".cfg")
        return [f"--flagfile={config}", *self.system.changes, f"--depth={self.depth}"]

    def flags(self, *more):
        """Returns `absl.flags.FlagValues` of `arguments` and more of them.

        Raises:
            UserError: a config is missing, or a flag is wrong.
        """
        values = flags.FlagValues()
        define_training_flags(values)
        try:
            rest = values(["train.py", *self.arguments, *more])[1:]
        except flags.Error as error:
            hint = "" if CONFIGS.is_dir() else "; run this from the root of the repository"
            raise UserError(f"{self.name}: {error}{hint}") from error
        if rest:
            raise UserError(f"Flags of train.py begin with --. Received: {' '.join(rest)}")
        return values

    def paper_row(self, dataset, backbone):
        """Returns the paper's numbers as `paper.Row`, None in it where it has none."""
        name, depth, variant = self.system.system, self.depth, self.system.variant
        if self.system.changes:
            return paper.Row(top1=paper.PARTITIONS[name].get(variant) if depth == 2 else None)
        if self.system.config == "cifar100_plain" and depth == LARGEST_PLAIN:
            return paper.LARGEST_RESNET
        row = paper.RESULTS.get((dataset, backbone), {}).get(name, {}).get(depth, paper.Row())
        if row.top1 is None and dataset == "food101" and name == DYNK_HYDRA:  # Table 6 has these
            row = row._replace(top1=paper.TAU.get(depth, {}).get(0.08, row).top1)
        return row


LARGEST_PLAIN = 27
GATED, OPTIMAL = "--combine=gate_weighted", "--partition=cluster_optimal"


def _hydra_rows(config, depths, plain_depths):
    return [
        System(f"{config}_plain", PLAIN, plain_depths),
        System(f"{config}_hydrares", HYDRARES, depths),
        System(config, DYNK_HYDRA, depths),
    ]


def _partition_rows(config, system):
    changed = [
        System(config, system, (2,), name, (f"--partition={name}",)) for name in ("random", "semantic")
    ]
    return [*changed, System(config, system, (2,), "cluster_balance")]  # as in the config


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
            System("imagenet32_hydrares", HYDRARES, (1, 2, 3, 4, 5)),
            System("imagenet32", DYNK_HYDRA, (1, 2, 3, 4, 5)),
        ],
    ),
    "4": Table(
        "Table 4: what the threshold and the branches' own loss give, on CIFAR-100",
        [
            System("cifar100_hydrares", HYDRARES, _TO_9),
            System("cifar100_dynk", DYNK, _TO_9),
            System("cifar100_hydrares_sp", HYDRARES_SP, _TO_9),
            System("cifar100", DYNK_HYDRA, _TO_9),
        ],
    ),
    "5": Table(
        "Table 5: partitions of the classes, on CIFAR-100",
        _partition_rows("cifar100_hydrares", HYDRARES) + _partition_rows("cifar100", DYNK_HYDRA),
    ),
    "6": Table(
        "Table 6: accuracy and branches over the threshold, DynK-Hydra on Food-101",
        [System("food101", DYNK_HYDRA, (1, 9))],
        by_tau=True,
    ),
    "plus": Table(
        "Beyond the paper: projections weighted by their gates, and the class partition of least distance, "
        "on CIFAR-100",
        [
            System("cifar100", DYNK_HYDRA, (1, 2, 3)),
            System("cifar100", DYNK_HYDRA, (1, 2, 3), "cluster_optimal", (OPTIMAL,)),
            System("cifar100", DYNK_HYDRA, (1, 2, 3), "gate_weighted", (GATED,)),
            System("cifar100", DYNK_HYDRA, (1, 2, 3), "gate_weighted, cluster_optimal", (GATED, OPTIMAL)),
        ],
        by_tau=True,
    ),
}


def experiments(table, depths=None):
    """Returns the experiments of a table of `TABLES`, row by row.

    Args:
        table: its key, such as "4".
        depths: ints in place of the table's own; a depth need not be one of the paper's.
    """
    systems = TABLES[table].systems
    return [Experiment(system, depth) for system in systems for depth in (depths or system.depths)]
