"""Finished runs as rows of the paper's tables: ours, the paper's, the difference; Markdown and CSV.

A run belongs to an experiment when its settings are the experiment's, whatever its seed, its schedule and its
feature extractor. Runs of one schedule make one table: numbers of 12 and of 190 epochs never share a row, and
every row says how long its runs were.
"""

import os
import statistics
from collections.abc import Iterable, Sequence
from typing import Any

from dynkhydra_tf.fields import Role, leaves, list_text
from dynkhydra_tf.paper.experiments import Experiment
from dynkhydra_tf.paper_numbers import TAU, Row
from dynkhydra_tf.runs import FinishedRun
from dynkhydra_tf.settings import Settings, by_role, length_text, without_effect
from dynkhydra_tf.tables import number

# Of tables; the others hold numbers.
TEXT_COLUMNS = ("data set", "system", "run", "runs", "schedule", "versions", "machine")

Recipe = tuple[tuple[str, Any], ...]


_BEYOND = (
    "branch_gradient_scale",
    "cached_views",
    "class_weights",
    "distill_temperature",
    "distill_until",
    "gater_targets",
    "unfrozen_rate",
)


def recipe_of(settings: Settings) -> Recipe:
    """Returns how a run is trained, as hashable (name, value) pairs; what changes nothing is left out."""
    unused = without_effect(settings)
    return tuple(
        (name, value) for name, value in by_role(settings, Role.RECIPE).items() if name not in unused
    )


def recipe_text(recipe: Recipe) -> str:
    """Returns a recipe but for epochs and schedule as text, such as "batch size 128, learning rate ...".

    What is off is left out, and of what the paper has not, what is as it is by default.
    """
    fields = {field.name: field for field in leaves(Settings)}
    return ", ".join(
        f"{name.replace('_', ' ')} {list_text(fields[name].metadata['setting'], value)}"
        for name, value in recipe
        if name not in ("epochs", "schedule") and value not in (None, False, 0)
        if not (name in _BEYOND and value == fields[name].default)
    )


def runs_of(experiment: Experiment, runs: Iterable[FinishedRun]) -> list[FinishedRun]:
    """Returns those of some runs that are runs of an experiment."""
    counting = (Role.DATA, Role.NETWORK, Role.PARTITION)
    wanted = by_role(experiment.settings(), *counting)
    return [run for run in runs if by_role(run.settings, *counting) == wanted]


def by_recipe(runs: Iterable[FinishedRun]) -> list[list[FinishedRun]]:
    """Returns the runs in groups that were trained alike; the largest group first."""
    groups: dict[Recipe, list[FinishedRun]] = {}
    for run in runs:
        groups.setdefault(recipe_of(run.settings), []).append(run)
    return sorted(groups.values(), key=len, reverse=True)


def data_set_of(run: FinishedRun) -> str:
    """Returns the data set of a run; a folder's with its name, for there are many."""
    data = run.settings.data
    is_folder = data.dataset == "folder" and data.data_dir
    return f"folder {os.path.basename(os.path.abspath(data.data_dir))}" if is_folder else data.dataset


def machine_of(run: FinishedRun) -> str | None:
    """Returns the machine that a run was trained on as text; None where an early version did not note it."""
    machine = run.summary.get("machine")
    if not machine:
        return None
    return ", ".join([machine["processor"], f"{machine['cores']} cores", *machine.get("accelerators", [])])


# === Rows ===


def result_rows(experiments: Iterable[Experiment], runs: Sequence[FinishedRun]) -> list[dict]:
    """Returns a row for each experiment, those without a run too.

    Args:
        experiments: the rows.
        runs: finished runs; those of one experiment were trained alike.

    Returns:
        List of dicts: dataset, backbone, system (the paper's name of the method), variant, depth; epochs,
        epochs_paper, schedule, machine; seeds (count); of each of top1 (percent), active_branches, mflops and
        parameters (millions) the mean over the seeds, NAME_paper and NAME_difference; top1_std, the
        standard deviation over two seeds or more; seconds_per_epoch. None for what is not there.
    """
    rows = []
    for experiment in experiments:
        own, settings = runs_of(experiment, runs), experiment.settings()
        dataset, backbone = settings.data.dataset, settings.network.backbone
        row = {"dataset": dataset, "backbone": backbone, **_names(experiment), **_training(settings, own)}
        row["seeds"] = len(own)
        measured = [_measured(run) for run in own]
        papers = experiment.paper_row(dataset, backbone)
        for name in Row._fields:
            row |= _beside(name, _mean([numbers[name] for numbers in measured]), papers)
        tops = [numbers["top1"] for numbers in measured]
        row["top1_std"] = statistics.stdev(tops) if len(tops) > 1 else None
        row["seconds_per_epoch"] = _mean([run.summary["seconds_per_epoch"] for run in own])
        rows.append(row)
    return rows


def _measured(run):
    """The numbers of a run, in the paper's units; its parameters include heads where there are any."""
    summary = run.summary
    parameters = summary["parameters"]
    return {
        "top1": 100 * summary["top1"],
        "mflops": summary["flops"]["total"] / 1e6,
        "parameters": (parameters["total"] + parameters.get("heads", 0)) / 1e6,
        "active_branches": summary.get("active_branches"),
    }


def _training(settings, runs):
    """How long and on what the runs of an experiment were trained, beside the epochs of its config."""
    optimisation = runs[0].settings.optimisation if runs else None
    machines = dict.fromkeys(filter(None, map(machine_of, runs)))
    return {
        "epochs": optimisation and optimisation.epochs,
        "epochs_paper": settings.optimisation.epochs,
        "schedule": optimisation and optimisation.schedule,
        "machine": "; ".join(machines) or None,
    }


def training_text(rows: Iterable[dict]) -> str:
    """Returns how long and on what the runs of some rows were trained, and how long the paper's; "" for none.

    Such as "Ours: 12 epochs, cosine, on Xeon, 2 cores. The paper's: 190 epochs."
    """
    rows = [row for row in rows if row["epochs"]]
    if not rows:
        return ""
    lengths = dict.fromkeys(length_text(row["epochs"], row["schedule"]) for row in rows)
    machines = dict.fromkeys(one for row in rows if row["machine"] for one in row["machine"].split("; "))
    papers = dict.fromkeys(str(row["epochs_paper"]) for row in rows)
    on = f", on {'; '.join(machines)}" if machines else ""
    return f"Ours: {' or '.join(lengths)}{on}. The paper's: {' or '.join(papers)} epochs."


def _mean(numbers):
    return statistics.fmean(numbers) if numbers and None not in numbers else None


def _names(experiment):
    series = experiment.series
    return {"system": series.method, "variant": series.variant, "depth": experiment.depth}


def _beside(name, ours, papers):
    """Our number, that of a `paper.Row`, and the difference; None for what is not there."""
    theirs = getattr(papers, name)
    difference = None if ours is None or theirs is None else ours - theirs
    return {name: ours, f"{name}_paper": theirs, f"{name}_difference": difference}


def tau_rows(experiments: Iterable[Experiment], runs: Sequence[FinishedRun]) -> list[dict]:
    """Returns a row for each experiment that has a tau table, and each tau of it; means over the seeds.

    Returns:
        List of dicts: dataset, system, variant, depth, epochs, epochs_paper, schedule, machine, tau, seeds,
        mflops, and top1 (percent) and active_branches, these two with NAME_paper and NAME_difference, too;
        None for what is not there.
    """
    rows = []
    for experiment in experiments:
        own, settings = runs_of(experiment, runs), experiment.settings()
        tables = [table for run in own if (table := run.tau_table())]
        dataset = settings.data.dataset
        papers = TAU.get(experiment.depth, {}) if dataset == "food101" else {}
        for tau in sorted({row["tau"] for table in tables for row in table}):
            at = [row for table in tables for row in table if row["tau"] == tau]
            row = {"dataset": dataset, **_names(experiment), **_training(settings, own)}
            row |= {"tau": tau, "seeds": len(at)}
            row["mflops"] = _mean([each["flops"] / 1e6 for each in at])
            for name, scale in (("active_branches", 1), ("top1", 100)):
                ours = _mean([scale * each[name] for each in at])
                row |= _beside(name, ours, papers.get(tau, Row()))
            rows.append(row)
    return rows


# === Tables as lists of texts, the first the header ===


# Which network a row is of, and how long it was trained: the columns that both tables begin with.
_NAMES = [
    ("data set", lambda row: row["dataset"]),
    ("system", lambda row: _system(row)),
    ("d", lambda row: str(row["depth"])),
    ("epochs", lambda row: number(row["epochs"], "d")),
    ("paper", lambda row: str(row["epochs_paper"])),
]


def result_table(rows: Sequence[dict]) -> list[list[str]]:
    """Returns result rows as a table (lists of str, the header first), columns without a number left out."""
    columns = [
        *_NAMES,
        ("seeds", lambda row: str(row["seeds"]) if row["seeds"] > 1 else "-"),
        ("top-1, %", lambda row: number(row["top1"], ".2f") + _spread(row["top1_std"])),
        ("paper", lambda row: number(row["top1_paper"], ".2f")),
        ("difference", lambda row: number(row["top1_difference"], "+.2f")),
        ("lambda", lambda row: number(row["active_branches"], ".2f")),
        ("paper", lambda row: number(row["active_branches_paper"], ".2f")),
        ("MFLOPs", lambda row: number(row["mflops"], ".1f")),
        ("paper", lambda row: number(row["mflops_paper"], ".0f")),
        ("M parameters", lambda row: number(row["parameters"], ".2f")),
        ("paper", lambda row: number(row["parameters_paper"], ".2f")),
        ("schedule", lambda row: row["schedule"] or "-"),
    ]
    return _table(columns, rows)


def tau_table(rows: Sequence[dict]) -> list[list[str]]:
    """Returns tau rows as a table (lists of str, the header first), columns without a number left out."""
    columns = [
        *_NAMES[:3],
        ("tau", lambda row: f"{row['tau']:g}"),
        *_NAMES[3:],
        ("lambda", lambda row: number(row["active_branches"], ".2f")),
        ("paper", lambda row: number(row["active_branches_paper"], ".2f")),
        ("top-1, %", lambda row: number(row["top1"], ".2f")),
        ("paper", lambda row: number(row["top1_paper"], ".2f")),
        ("difference", lambda row: number(row["top1_difference"], "+.2f")),
        ("MFLOPs", lambda row: number(row["mflops"], ".1f")),
    ]
    return _table(columns, rows)


def _system(row):
    return f"{row['system']}, {row['variant'].replace('_', ' ')}" if row["variant"] else row["system"]


def _spread(deviation):
    return "" if deviation is None else f" ± {deviation:.2f}"


def _table(columns, rows):
    shown = [(head, [cell(row) for row in rows]) for head, cell in columns]
    shown = [(head, cells) for head, cells in shown if any(cell != "-" for cell in cells)]
    return [[head for head, _ in shown], *map(list, zip(*(cells for _, cells in shown), strict=True))]
