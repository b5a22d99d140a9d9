"""A report on all runs of a directory: one HTML page that needs no network, and the same as Markdown.

    python -m dynkhydra_tf.paper.report runs/ --output=report.html

It shows what the runs allow: the paper's tables with the paper's numbers beside ours, accuracy over compute,
and for each run the pictures that the commands left there (training, evaluation, embedding, interpolation,
latency). Writes report.html; report.md, which links the runs' own pictures; the others are in report_files/.
"""

import pathlib

from absl import flags

from dynkhydra_tf import cli
from dynkhydra_tf.errors import UserError
from dynkhydra_tf.files import check_writable, write_text
from dynkhydra_tf.paper import results
from dynkhydra_tf.paper.experiments import TABLES, experiments
from dynkhydra_tf.paper.page import Cells, Code, Fold, Heading, Paragraph, Picture, to_html, to_markdown
from dynkhydra_tf.paper.tradeoff import save_tradeoff
from dynkhydra_tf.paper_numbers import DYNK, DYNK_HYDRA, HYDRARES, HYDRARES_SP, PLAIN

QUESTION = (
    "A Hydra is a network with many small branches, each specialised on a cluster of similar classes. A "
    "gater looks at each image and picks the branches that run: at most K, and of these only the ones whose "
    "probability is at least tau. Does the accuracy stay when most branches do not run, and what is saved?"
)
SYSTEMS = [
    ["system", "branches that run", "loss of each branch", "flags"],
    [PLAIN, "there are none", "-", "--system=plain"],
    [HYDRARES, "always K", "no", "--tau=0 --branch_weight=0"],
    [DYNK, "at most K, from tau on", "no", "--tau=0.08 --branch_weight=0"],
    [HYDRARES_SP, "always K", "yes", "--tau=0 --branch_weight=0.05"],
    [DYNK_HYDRA, "at most K, from tau on", "yes", "--tau=0.08 --branch_weight=0.05"],
]
PICTURES = {
    "learning_curves.png": "Training: loss, accuracy and branches per image (lambda) over the epochs.",
    "branches.png": "How many of the images use each branch, and how well its own classes are told apart.",
    "evaluation/tau.png": "The threshold tau after training: branches per image, accuracy, compute.",
    "evaluation/confusion.png": "Which branches, and which clusters' classes, the images of a cluster get.",
    "evaluation/embedding_2d.png": "Classes and clusters: t-SNE of image embeddings (the paper's Fig. 1).",
    "evaluation/embedding_3d.png": "The same in three dimensions.",
    "evaluation/interpolation.png": "Between two branches: loss and accuracy of a branch with interpolated "
    "weights (the paper's Fig. 5).",
    "evaluation/latency.png": "Accuracy over measured milliseconds.",
}


def define_flags(flag_values):
    """Defines the flags of this command."""
    flags.DEFINE_string(
        "output", "report.html", "The HTML file; the Markdown goes beside it.", flag_values=flag_values
    )


def main(options, places):
    """Writes the report."""
    # === Find the runs ===
    output = pathlib.Path(options.output).expanduser()
    if output.suffix != ".html":
        raise UserError(f"--output must end in .html. Received: {options.output}")
    check_writable(output.parent, "output")
    runs = {run.path.resolve(): run for place in places for run in results.find_runs(place)}
    runs = list(runs.values())
    if not runs:
        raise UserError(
            f"No run in {', '.join(places)} has finished; train.py writes summary.json at its end"
        )

    # === Write ===
    files = output.with_name(f"{output.stem}_files")
    blocks = [
        Heading(1, "DynK-Hydra: accuracy and compute, measured"),
        Paragraph(QUESTION),
        Heading(2, "The systems"),
        Paragraph(
            "All are one model with other settings; lambda is the mean number of branches that an image runs."
        ),
        Cells(SYSTEMS, (0, 1, 2, 3)),
    ]
    for number, (recipe, alike) in enumerate(results.by_recipe(runs), 1):
        blocks += _recipe_blocks(recipe, alike, files / f"tradeoff{number}.png")
    blocks += [Heading(2, "The runs"), *map(_run_fold, runs)]
    blocks += [Heading(2, "Versions"), Cells(_version_rows(runs), (0, 1))]
    write_text(output, to_html(blocks))
    write_text(output.with_suffix(".md"), to_markdown(blocks, output.parent))
    print(f"{len(runs)} runs. Written: {output}, {output.with_suffix('.md')}, {files}")


def _recipe_blocks(recipe, runs, picture):
    """Tables and the picture of the runs of one schedule."""
    head, details = results.recipe_text(recipe)
    blocks = [Heading(2, f"Results: {head}"), Paragraph(f"Trained with {details}.")]
    seen, rows = set(), {}
    for key, table in TABLES.items():
        own = {each: results.runs_of(each, runs) for each in experiments(key) + _other_depths(key, runs)}
        listed = [each for each in own if own[each]]
        if not listed:
            continue
        result_rows = results.result_rows(listed, runs)
        for each, row in zip(listed, result_rows, strict=True):
            rows.setdefault(each.name, row)
        blocks += [Heading(3, table.title), _cells(results.result_table(result_rows))]
        if table.by_tau and (by_tau := results.tau_rows(listed, runs)):
            blocks += [Paragraph("Other thresholds tau, after training:"), _cells(results.tau_table(by_tau))]
        seen |= {run.path for each in listed for run in own[each]}
    if rows:
        save_tradeoff(list(rows.values()), picture)
        caption = "Accuracy over FLOPs, all systems (the paper's Fig. 4); hollow: the paper's numbers."
        blocks += [Heading(3, "Accuracy over compute"), Picture(picture, caption)]
    if others := [run for run in runs if run.path not in seen]:
        blocks += [Heading(3, "Other runs"), _cells(_other_rows(others))]
    return blocks


def _other_depths(key, runs):
    """A table's experiments at depths that only the runs have."""
    depths = sorted({run.flags.depth for run in runs})
    return [each for each in experiments(key, depths) if each.depth not in each.system.depths]


def _cells(table):
    return Cells(table, tuple(i for i, head in enumerate(table[0]) if head in results.TEXT_COLUMNS))


def _other_rows(runs):
    rows = [["run", "data set", "d", "nb", "K", "top-1, %", "lambda", "MFLOPs"]]
    for run in runs:
        values, summary = run.flags, run.summary
        plain = values.system == "plain"
        counts = ["-", "-"] if plain else [str(values.num_branches), str(values.top_k)]
        active = "-" if plain else f"{summary['active_branches']:.2f}"
        numbers = [f"{100 * summary['top1']:.2f}", active, f"{summary['flops']['total'] / 1e6:.1f}"]
        rows.append([run.path.name, values.dataset, str(values.depth), *counts, *numbers])
    return rows


def _run_fold(run):
    """A run's pictures and settings."""
    blocks = [
        Picture(run.path / name, caption) for name, caption in PICTURES.items() if (run.path / name).is_file()
    ]
    settings = (run.path / "flags.cfg").read_text(encoding="utf-8")
    summary = run.summary
    line = f"{run.path.name}: top-1 {summary['top1']:.2%}, seed {summary['seed']}"
    line += f", {summary['seconds_per_epoch']:.0f} s an epoch"
    return Fold(line, [*blocks, Code(settings)])


def _version_rows(runs):
    versions = {}
    for run in runs:
        text = ", ".join(f"{name} {version}" for name, version in run.summary["versions"].items())
        versions.setdefault(text, []).append(run.path.name)
    return [["versions", "runs"], *([text, ", ".join(names)] for text, names in versions.items())]


if __name__ == "__main__":
    cli.run(main, define_flags, positional="directories that hold runs")
