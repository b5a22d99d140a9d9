"""Finished runs as rows of the paper's tables: ours, the paper's, the difference; Markdown and CSV.

A run belongs to an experiment when its flags are the experiment's, whatever its seed, its schedule and its
feature extractor. Runs of one schedule make one table: numbers of 12 and of 190 epochs never share a row.
"""

import dataclasses
import json
import pathlib
import statistics

from absl import flags

from dynkhydra_tf.errors import UserError
from dynkhydra_tf.old_flags import PLACES, read_flags
from dynkhydra_tf.paper_numbers import TAU, Row
from dynkhydra_tf.tables import number

# How long and on what a network was trained; the rest of the flags says which network it is.
RECIPE = ("epochs", "batch_size", "learning_rate", "schedule", "lr_drops", "warmup_epochs", "weight_decay")
RECIPE += ("shift", "flip", "cutout", "mixed_precision", "validation_fraction")
TEXT_COLUMNS = ("data set", "system", "run")  # of tables; the others hold numbers
FEATURES = ("feature_extractor", "feature_weights", "feature_images_per_class")


@dataclasses.dataclass(frozen=True)
class Run:
    """A finished run.

    Attributes:
        path: its directory.
        flags: `absl.flags.FlagValues` that it was trained with.
        summary: dict, its summary.json.
        tau_rows: list of dicts, the tau table of its evaluation; [] where it has none.
    """

    path: pathlib.Path
    flags: flags.FlagValues
    summary: dict
    tau_rows: list

    @property
    def recipe(self):
        """How it was trained, as hashable (name, value) pairs; learning-rate drops only where they count."""
        values = [(name, self.flags[name].value) for name in RECIPE]
        unused = "lr_drops" if self.flags.schedule == "cosine" else "warmup_epochs"
        return tuple((name, str(value)) for name, value in values if name != unused)


def read_run(path):
    """Returns the `Run` of a directory, or None where none has finished there.

    Raises:
        UserError: a file of the run cannot be read.
    """
    path = pathlib.Path(path)
    summary, evaluation = path / "summary.json", path / "evaluation" / "evaluation.json"
    if not (summary.is_file() and (path / "flags.cfg").is_file()):
        return None
    return Run(
        path,
        read_flags(path / "flags.cfg"),
        _read_json(summary),
        _read_json(evaluation).get("tau_table", []) if evaluation.is_file() else [],
    )


def _read_json(path):
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}); train or evaluate that run again") from error


def find_runs(root):
    """Returns all finished runs in a directory and below it, by path.

    Raises:
        UserError: the directory is missing, or a file of a run cannot be read.
    """
    root = pathlib.Path(root)
    if not root.is_dir():
        raise UserError(f"{root} is no directory; give the one that holds runs of train.py")
    found = (read_run(path.parent) for path in sorted(root.rglob("summary.json")))
    return [run for run in found if run]


def runs_of(experiment, runs):
    """Returns those of a list of `Run` that are runs of an `Experiment`."""
    ignored = {*RECIPE, *FEATURES, *PLACES, "seed", "overwrite"}
    wanted = experiment.flags()
    names = [name for name in wanted if name not in ignored]
    return [run for run in runs if all(run.flags[name].value == wanted[name].value for name in names)]


def by_recipe(runs):
    """Returns [(recipe, [run, ...]), ...]: runs that were trained alike; the largest group first."""
    groups = {}
    for run in runs:
        groups.setdefault(run.recipe, []).append(run)
    return sorted(groups.items(), key=lambda group: -len(group[1]))


def recipe_text(recipe):
    """Returns a recipe as two texts, such as "12 epochs, cosine" and "batch size 128, learning rate ..."."""
    values = dict(recipe)
    epochs = values.pop("epochs")
    head = f"{epochs} epoch{'s' * (epochs != '1')}, {values.pop('schedule')}"
    off = {"None", "False", "0", "0.0"}
    return head, ", ".join(
        f"{name.replace('_', ' ')} {value}" for name, value in values.items() if value not in off
    )


# === Rows ===


def result_rows(experiments, runs):
    """Returns a row for each experiment, those without a run too.

    Args:
        experiments: list of `Experiment`.
        runs: list of `Run`, all of one recipe.

    Returns:
        List of dicts: dataset, backbone, system, variant, depth, seeds (count); of each of top1 (percent),
        active_branches, mflops and parameters (millions) the mean over the seeds, NAME_paper and
        NAME_difference; top1_std, the standard deviation over two seeds or more; seconds_per_epoch. None for
        what is not there.
    """
    rows = []
    for experiment in experiments:
        own, values = runs_of(experiment, runs), experiment.flags()
        row = {"dataset": values.dataset, "backbone": values.backbone, **_names(experiment)}
        row["seeds"] = len(own)
        measured = [_measured(run) for run in own]
        papers = experiment.paper_row(values.dataset, values.backbone)
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


def _mean(numbers):
    return statistics.fmean(numbers) if numbers and None not in numbers else None


def _names(experiment):
    return {
        "system": experiment.system.system,
        "variant": experiment.system.variant,
        "depth": experiment.depth,
    }


def _beside(name, ours, papers):
    """Our number, that of a `paper.Row`, and the difference; None for what is not there."""
    theirs = getattr(papers, name)
    difference = None if ours is None or theirs is None else ours - theirs
    return {name: ours, f"{name}_paper": theirs, f"{name}_difference": difference}


def tau_rows(experiments, runs):
    """Returns a row for each experiment that has a tau table, and each tau of it; means over the seeds.

    Returns:
        List of dicts: dataset, system, variant, depth, tau, seeds, mflops, and top1 (percent) and
        active_branches, these two with NAME_paper and NAME_difference, too; None for what is not there.
    """
    rows = []
    for experiment in experiments:
        own = [run for run in runs_of(experiment, runs) if run.tau_rows]
        dataset = experiment.flags().dataset
        papers = TAU.get(experiment.depth, {}) if dataset == "food101" else {}
        for tau in sorted({row["tau"] for run in own for row in run.tau_rows}):
            at = [row for run in own for row in run.tau_rows if row["tau"] == tau]
            row = {"dataset": dataset, **_names(experiment), "tau": tau, "seeds": len(at)}
            row["mflops"] = _mean([each["flops"] / 1e6 for each in at])
            for name, scale in (("active_branches", 1), ("top1", 100)):
                ours = _mean([scale * each[name] for each in at])
                row |= _beside(name, ours, papers.get(tau, Row()))
            rows.append(row)
    return rows


# === Tables as lists of texts, the first the header ===


# Which network a row is of: the columns that both tables begin with.
_NAMES = [
    ("data set", lambda row: row["dataset"]),
    ("system", lambda row: _system(row)),
    ("d", lambda row: str(row["depth"])),
]


def result_table(rows):
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
    ]
    return _table(columns, rows)


def tau_table(rows):
    """Returns tau rows as a table (lists of str, the header first), columns without a number left out."""
    columns = [
        *_NAMES,
        ("tau", lambda row: f"{row['tau']:g}"),
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
