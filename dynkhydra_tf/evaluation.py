"""Evaluates a trained network: accuracy, gating and compute, at any number of thresholds; its worst mistakes.

    python -m dynkhydra_tf.evaluation --run_dir=runs/digits --tau=0,0.02,0.05,0.08,0.1,0.2

Writes into RUN_DIR/evaluation, or --output_dir:

    evaluation.json   all results; the worst classes, pairs and images among them
    classes.csv       a row for each class: accuracy, and the class that its images are most often taken for
    pairs.csv         a row for each two classes of which one was taken for the other, the worst first
    most_wrong.png    the images that were most wrong; none where there was no mistake
    tau.csv tau.png   the tau table
    exits.csv         of a network with an exit: the table of exit confidences, at the model's own tau
    branches.png      use and accuracy of each branch
    confusion.png     between clusters

The last four are not written of a plain network, which has no gate.
"""

import dataclasses
import pathlib
import textwrap
from typing import Any

from dynkhydra_tf import cli, figures
from dynkhydra_tf.errors import UserError
from dynkhydra_tf.fields import Checked, setting
from dynkhydra_tf.files import check_writable, write_csv, write_json
from dynkhydra_tf.predictions import PAIR_KEYS, mistakes_text, worst_classes
from dynkhydra_tf.runs import EvaluationFile, FinishedRun, check_network, load_network, run_of
from dynkhydra_tf.settings import DataSettings
from dynkhydra_tf.tables import table

WORST, MOST_WRONG = 10, 24  # rows of a table that is printed; images of the sheet
EXIT_CONFIDENCES = (0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 1.0)


@dataclasses.dataclass(frozen=True)
class Options(Checked):
    """The flags of this command."""

    run_dir: str | None = setting(None, "The run to evaluate: its model.keras on its data set.", path=True)
    model: str | None = setting(None, "A .keras file; default RUN_DIR/model.keras.", path=True)
    dataset: str | None = setting(None, "The data set; default: the run's.")
    data_dir: str | None = setting(
        None, "Where the data set lies, as in train.py; default: the run's.", path=True
    )
    validation_fraction: float | None = setting(
        None, "As in train.py; default: the run's, without a run 0.", least=0, most=0.5
    )
    split: str = setting("test", "The images to evaluate on.", choices=("train", "validation", "test"))
    tau: tuple[float, ...] = setting(
        (), "Thresholds in [0, 1) for the tau table, such as 0,0.02,0.08,0.2.", least=0, below=1
    )
    exit_confidence: tuple[float, ...] = setting(
        EXIT_CONFIDENCES,
        "Confidences in (0, 1] for the table of exits, of a network that has one.",
        above=0,
        most=1,
    )
    batch_size: int = setting(256, "Images in a step.", least=1)
    output_dir: str | None = setting(None, "Where to write; default RUN_DIR/evaluation.", path=True)


def main(options: Options) -> None:
    """Evaluates what the options name, writes the results and prints them."""
    # Only now: to see the help or a wrong flag takes no more than a moment.
    from dynkhydra_tf.accuracy import accuracies, evaluate, predict_plain
    from dynkhydra_tf.costs import hydra_costs, plain_costs
    from dynkhydra_tf.data import evaluation_batches, open_data
    from dynkhydra_tf.partition import clusters_of
    from dynkhydra_tf.plain import Plain

    # === What to evaluate: all that can be wrong is found before any long work ===
    run = FinishedRun.open(options.run_dir) if options.run_dir else None
    if not (run or (options.model and options.dataset and options.output_dir)):
        raise UserError("Give --run_dir=DIR, or --model=FILE.keras with --dataset and --output_dir")
    output = pathlib.Path(options.output_dir or run.evaluation)
    check_writable(output, "output_dir")
    path = pathlib.Path(options.model or run.model_path)
    model = load_network(path) if options.model else run.load_model()
    if isinstance(model, Plain) and options.tau:
        raise UserError(f"{path} holds a plain network, which has no gate: leave --tau out")
    names = ("dataset", "data_dir", "validation_fraction")
    given = {name: value for name in names if (value := getattr(options, name)) is not None}
    if run:
        data = open_data(dataclasses.replace(run.settings.data, **given), run.settings.place.cache_dir)
    else:
        data = open_data(DataSettings(**{"validation_fraction": 0.0, **given}))
    if trained_in := run_of(path) or run:
        trained_in.check_data(data)
    check_network(path, model, data)

    # === Evaluate, write, print: what cannot be printed is not lost ===
    tau = "" if isinstance(model, Plain) else f", tau={model.tau:g}"
    print(f"{path} on {data.sizes[options.split]} images of {data.name}/{options.split}{tau}", flush=True)
    batches = evaluation_batches(data, options.split, options.batch_size)
    if isinstance(model, Plain):
        predictions, cluster_of_class = predict_plain(model, batches), None
        results: dict[str, Any] = accuracies(predictions) | plain_costs(
            model.backbone, model.num_classes, model.network
        )
        text, written = _plain_text(results), []
    else:
        evaluation = evaluate(model, batches, options.tau)
        results, predictions = evaluation.at(model.tau), evaluation.predictions_at(model.tau)
        flops = hydra_costs(model)["flops"]
        results["tau_table"] = evaluation.tau_table(flops)
        if exit_rows := evaluation.exit_table(flops, model.tau, options.exit_confidence):
            results["exit_table"] = exit_rows
        clusters = clusters_of(data.class_names, model.cluster_of_class)
        cluster_of_class = model.cluster_of_class
        text, written = _hydra_text(results, clusters), _write_hydra(results, clusters, output)
    class_rows = predictions.class_rows(data.class_names, cluster_of_class)
    pair_rows = predictions.pair_rows(data.class_names, cluster_of_class)
    write_csv(output / EvaluationFile.CLASS_ROWS, class_rows)
    write_csv(output / EvaluationFile.PAIR_ROWS, pair_rows, PAIR_KEYS)
    results["worst_classes"] = worst_classes(class_rows, WORST)
    results["worst_pairs"] = pair_rows[:WORST]
    results["most_wrong"] = _write_most_wrong(predictions, data, options.split, output)
    written += [EvaluationFile.CLASS_ROWS, EvaluationFile.PAIR_ROWS]
    written += [EvaluationFile.MOST_WRONG] if results["most_wrong"] else []
    results = {"model": str(path), "dataset": data.name, "split": options.split, **results}
    write_json(output / EvaluationFile.RESULTS, results)
    print(f"{text}\n\n{mistakes_text(results['worst_classes'], results['worst_pairs'])}\n")
    print(f"Written to {output}: {', '.join([EvaluationFile.RESULTS, *written])}")


def _plain_text(results):
    return (
        f"top-1 {results['top1']:.2%}, top-5 {results['top5']:.2%}\n"
        f"{results['flops'] / 1e6:.1f} MFLOPs an image, {results['parameters'] / 1e6:.2f} M parameters"
    )


def _hydra_text(results, clusters):
    """What is printed of `Evaluation.at` with its tau table."""
    from dynkhydra_tf.accuracy import exit_text, tau_text

    head = (
        f"top-1 {results['top1']:.2%}, top-5 {results['top5']:.2%}, gater {results['gater_accuracy']:.2%}, "
        f"lambda {results['active_branches']:.2f}"
    )
    counts, least = results["images_by_active_branches"], 1
    if exit_rows := results.get("exit_table"):
        part = "stem" if "stem_top1" in results else "trunk"
        head += f", the {part} alone {results[f'{part}_top1']:.2%}"
        counts, least = [results["images_that_exit"], *counts], 0
    shares = [f"{count / sum(counts):.1%}" for count in counts]
    used = [["branches used", *map(str, range(least, least + len(shares)))], ["share of images", *shares]]
    rows = [["branch", "used by", "top-1", "of its classes"]]
    for branch, (use, accuracy, names) in enumerate(
        zip(results["branch_use"], results["cluster_accuracy"], clusters, strict=True)
    ):
        accuracy = "-" if accuracy is None else f"{accuracy:.1%}"
        rows.append([str(branch), f"{use:.1%}", accuracy, textwrap.shorten(", ".join(names), 70)])
    tables = [head, table(used), table(rows, text_columns=(0, 3)), tau_text(results["tau_table"])]
    return "\n\n".join([*tables, exit_text(exit_rows)] if exit_rows else tables)


def _write_hydra(results, clusters, output):
    """Writes the tau table and the pictures of a Hydra; returns the names of the files."""
    rows = results["tau_table"]
    write_csv(output / EvaluationFile.TAU_ROWS, rows)
    figures.save_tau_curve(rows, results["tau"], output / EvaluationFile.TAU_CURVE)
    figures.save_branch_use(results, clusters, output / EvaluationFile.BRANCHES)
    figures.save_confusion(results, clusters, output / EvaluationFile.CONFUSION)
    files = EvaluationFile
    if exit_rows := results.get("exit_table"):
        write_csv(output / files.EXIT_ROWS, exit_rows)
        return [files.TAU_ROWS, files.TAU_CURVE, files.EXIT_ROWS, files.BRANCHES, files.CONFUSION]
    return [files.TAU_ROWS, files.TAU_CURVE, files.BRANCHES, files.CONFUSION]


def _write_most_wrong(predictions, data, split, output):
    """Draws the images that were most wrong; returns a row for each, the worst first."""
    import tensorflow as tf

    from dynkhydra_tf.tuning import untuned

    numbers = predictions.most_wrong(MOST_WRONG)
    rows = [
        {
            "image": int(number),
            "class": data.class_names[predictions.labels[number]],
            "taken_for": data.class_names[predictions.predicted[number]],
            "confidence": float(predictions.confidence[number]),
        }
        for number in numbers
    ]
    path = output / EvaluationFile.MOST_WRONG
    path.unlink(missing_ok=True)  # that of an evaluation before, where this one has none
    if rows:
        examples = tf.data.Dataset.from_tensor_slices(numbers).apply(untuned).map(data.fetch(split))
        figures.save_most_wrong([image for image, _ in examples.as_numpy_iterator()], rows, path)
    return rows


if __name__ == "__main__":
    cli.run(main, Options)
