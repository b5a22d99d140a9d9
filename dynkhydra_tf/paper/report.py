"""A report on all runs of a directory: one HTML page that needs no network, and the same as Markdown.

    python -m dynkhydra_tf.paper.report runs/ --output=report.html

It shows what the runs allow: the paper's tables with the paper's numbers beside ours, accuracy over compute,
runs that belong to no table, and for each run what the commands left there: pictures (training, evaluation,
embedding, interpolation, latency) and the classes that are told worst. Writes report.html; report.md, which
links the runs' own pictures; the others are in report_files/.
"""

import dataclasses
import pathlib
from collections.abc import Sequence

from dynkhydra_tf import cli
from dynkhydra_tf.errors import UserError
from dynkhydra_tf.fields import Checked, setting
from dynkhydra_tf.files import check_writable, write_text
from dynkhydra_tf.flags import to_flagfile
from dynkhydra_tf.paper import results
from dynkhydra_tf.paper.experiments import TABLES, experiments
from dynkhydra_tf.paper.page import Fold, Grid, Part, Picture, Section, to_html, to_markdown
from dynkhydra_tf.paper.tradeoff import save_own_runs, save_tradeoff
from dynkhydra_tf.paper_numbers import DYNK, DYNK_HYDRA, HYDRARES, HYDRARES_SP, PLAIN
from dynkhydra_tf.predictions import class_table, pair_table
from dynkhydra_tf.runs import EvaluationFile, FinishedRun, RunFile
from dynkhydra_tf.settings import length_text

TITLE = "DynK-Hydra: accuracy and compute, measured"
QUESTION = (
    "A Hydra is a network with many small branches, each specialised on a cluster of similar classes. A "
    "gater looks at each image and picks the branches that run: at most K, and of these only the ones whose "
    "probability is at least tau. Does the accuracy stay when most branches do not run, and what is saved?"
)
METHODS = [
    ["system", "branches that run", "loss of each branch", "flags"],
    [PLAIN, "there are none", "-", "--system=plain"],
    [HYDRARES, "always K", "no", "--tau=0 --branch_weight=0"],
    [DYNK, "at most K, from tau on", "no", "--tau=0.08 --branch_weight=0"],
    [HYDRARES_SP, "always K", "yes", "--tau=0 --branch_weight=0.05"],
    [DYNK_HYDRA, "at most K, from tau on", "yes", "--tau=0.08 --branch_weight=0.05"],
]
# The columns that tell the rows of a table apart, and the one to look at.
KEYS, MAIN = ("system", "run", "d", "tau"), ("top-1, %",)
RUN_PICTURES = {
    RunFile.LEARNING_CURVES: "Training: loss, accuracy and branches per image (lambda) over the epochs.",
    RunFile.BRANCHES: "How many of the images use each branch, and how well its own classes are told apart.",
}
EVALUATION_PICTURES = {
    EvaluationFile.TAU_CURVE: "The threshold tau after training: branches per image, accuracy, compute.",
    EvaluationFile.CONFUSION: "Which branches, and which clusters' classes, the images of a cluster get.",
    EvaluationFile.MOST_WRONG: "The images that were most wrong.",
    EvaluationFile.EMBEDDING_2D: "Classes and clusters: t-SNE of image embeddings (the paper's Fig. 1).",
    EvaluationFile.EMBEDDING_3D: "The same in three dimensions.",
    EvaluationFile.INTERPOLATION: "Between two branches: loss and accuracy of a branch with interpolated "
    "weights (the paper's Fig. 5).",
    EvaluationFile.LATENCY: "Accuracy over measured milliseconds.",
}


@dataclasses.dataclass(frozen=True)
class Options(Checked):
    """The flags of this command."""

    output: str = setting("report.html", "The HTML file; the Markdown goes beside it.", path=True)


def main(options: Options, places: Sequence[str]) -> None:
    """Writes the report.

    Args:
        options: the flags.
        places: directories that hold runs.
    """
    # === Find the runs ===
    output = pathlib.Path(options.output)
    if output.suffix != ".html":
        raise UserError(f"--output must end in .html. Received: {options.output}")
    check_writable(output.parent, "output")
    found = [run for place in places for run in FinishedRun.find_all(pathlib.Path(place).expanduser())]
    runs = list({run.path.resolve(): run for run in found}.values())
    if not runs:
        raise UserError(
            f"No run in {', '.join(places)} has finished; train.py writes the summary of a run at its end"
        )

    # === Write ===
    files = output.with_name(f"{output.stem}_files")
    text = "All are one model with other settings; lambda is the mean number of branches that an image runs."
    sections = [Section("The systems", text, [Part(grid=Grid(METHODS, range(4)))])]
    own = list(runs)
    for number, alike in enumerate(results.by_recipe(runs), 1):
        section, seen = _recipe_section(alike, files / f"tradeoff{number}.png")
        sections += [section] if seen else []
        own = [run for run in own if run not in seen]
    if own:
        text = "Runs that are none of the paper's experiments, of any length."
        save_own_runs(own, files / "own_runs.png")
        picture = Picture(
            files / "own_runs.png", "Accuracy over FLOPs; beside each name how long it was trained."
        )
        parts = [Part(grid=_grid(_own_rows(own))), Part(picture=picture)]
        sections.append(Section("Your own runs", text, parts))
    sections.append(Section("The runs", folds=[_run_fold(run) for run in runs]))
    sections.append(Section("Versions", parts=[Part(grid=_grid(_version_rows(runs)))]))
    write_text(output, to_html(TITLE, QUESTION, sections))
    write_text(output.with_suffix(".md"), to_markdown(TITLE, QUESTION, sections, output.parent))
    print(f"{len(runs)} runs. Written: {output}, {output.with_suffix('.md')}, {files}")


def _recipe_section(runs, picture):
    """Tables and the picture of the runs of one recipe; and those of the runs that are in them."""
    optimisation = runs[0].settings.optimisation
    parts, seen, rows = [], [], {}
    for key, table in TABLES.items():
        own = {each: results.runs_of(each, runs) for each in experiments(key) + _other_depths(key, runs)}
        listed = [each for each in own if own[each]]
        if not listed:
            continue
        result_rows = results.result_rows(listed, runs)
        for each, row in zip(listed, result_rows, strict=True):
            rows.setdefault(each.name, row)
        text = results.training_text(result_rows)
        parts.append(Part(table.title, text, _grid(results.result_table(result_rows))))
        if table.by_tau and (by_tau := results.tau_rows(listed, runs)):
            text = "Other thresholds tau, after training:"
            parts.append(Part(text=text, grid=_grid(results.tau_table(by_tau))))
        seen += [run for each in listed for run in own[each]]
    if rows:
        save_tradeoff(list(rows.values()), picture)
        caption = "Accuracy over FLOPs, all systems (the paper's Fig. 4); hollow: the paper's numbers."
        parts.append(Part("Accuracy over compute", picture=Picture(picture, caption)))
    title = f"Results: {length_text(optimisation.epochs, optimisation.schedule)}"
    details = results.recipe_text(results.recipe_of(runs[0].settings))
    return Section(title, f"Trained with {details}.", parts), seen


def _other_depths(key, runs):
    """A table's experiments at depths that only the runs have."""
    depths = sorted({run.settings.network.depth for run in runs})
    return [each for each in experiments(key, depths) if each.depth not in each.series.depths]


def _grid(table):
    head = list(table[0])
    keys = [head.index(name) for name in KEYS if name in head][:3]
    mains = [head.index(name) for name in MAIN if name in head]
    text_columns = [i for i, name in enumerate(head) if name in results.TEXT_COLUMNS]
    return Grid(table, text_columns, keys or (0,), mains[0] if mains else None)


def _own_rows(runs):
    rows = [["run", "data set", "d", "nb", "K", "epochs", "schedule", "top-1, %", "lambda", "MFLOPs"]]
    for run in runs:
        network, optimisation, summary = run.settings.network, run.settings.optimisation, run.summary
        plain = network.system == "plain"
        counts = ["-", "-"] if plain else [str(network.num_branches), str(network.top_k)]
        length = [str(optimisation.epochs), optimisation.schedule]
        active = "-" if plain else f"{summary['active_branches']:.2f}"
        numbers = [f"{100 * summary['top1']:.2f}", active, f"{summary['flops']['total'] / 1e6:.1f}"]
        rows.append([run.name, results.data_set_of(run), str(network.depth), *counts, *length, *numbers])
    return rows


def _run_fold(run):
    """A run's pictures, worst mistakes and settings."""
    pictures = {run.path / name: caption for name, caption in RUN_PICTURES.items()}
    pictures |= {run.evaluation / name: caption for name, caption in EVALUATION_PICTURES.items()}
    optimisation, summary = run.settings.optimisation, run.summary
    line = f"{run.name}: top-1 {summary['top1']:.2%}, seed {summary['seed']}"
    line += f", {length_text(optimisation.epochs, optimisation.schedule)}"
    line += f", {summary['seconds_per_epoch']:.0f} s an epoch"
    parts = [Part(picture=Picture(path, caption)) for path, caption in pictures.items() if path.is_file()]
    found = run.results()
    if worst := found.get("worst_classes"):
        parts.append(Part(grid=Grid(class_table(worst), (0, 3), main_column=2)))
    if worst := found.get("worst_pairs"):
        parts.append(Part(grid=Grid(pair_table(worst), (0, 1, 4), main_column=2)))
    return Fold(line, parts, to_flagfile(run.settings))


def _version_rows(runs):
    rows = {}
    for run in runs:
        text = ", ".join(f"{name} {version}" for name, version in run.summary["versions"].items())
        rows.setdefault((text, results.machine_of(run) or "-"), []).append(run.name)
    header = ["versions", "machine", "runs"]
    return [header, *([*made_with, ", ".join(names)] for made_with, names in rows.items())]


if __name__ == "__main__":
    cli.run(main, Options, positional="directories that hold runs")
