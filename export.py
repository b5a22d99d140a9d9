"""Exports a trained run: a SavedModel for TensorFlow Serving, or a LiteRT or ONNX file for an edge device.

    python export.py --run_dir=runs/digits --export_dir=served/digits          # writes served/digits/1
    python export.py --run_dir=runs/digits --export_dir=edge --format=litert

The served tau is the run's, or --tau, or picked on the validation split for --target_active_branches or
--max_accuracy_drop.
"""

import json
import os
import pathlib

import dynkhydra_tf  # noqa: F401 - first, for it sets what TensorFlow reads when it is imported

# isort: split
from absl import flags

from dynkhydra_tf import cli
from dynkhydra_tf.costs import hydra_costs
from dynkhydra_tf.data import evaluation_batches, find_entry, load_data
from dynkhydra_tf.errors import UserError
from dynkhydra_tf.evaluation import evaluate, load_network, tau_text
from dynkhydra_tf.files import check_writable, write_text
from dynkhydra_tf.old_flags import data_settings, read_flags
from dynkhydra_tf.partition import ClassPartition
from dynkhydra_tf.plain import Plain
from dynkhydra_tf.serving import calibration, server_files, versions
from dynkhydra_tf.serving.formats import edge, saved_model
from dynkhydra_tf.serving.model_card import model_card


def define_flags(flag_values):
    """Defines the flags of this command."""

    def define(kind, name, default, text, **kwargs):
        kind(name=name, default=default, help=text, flag_values=flag_values, **kwargs)

    text, number, whole = flags.DEFINE_string, flags.DEFINE_float, flags.DEFINE_integer
    define(text, "run_dir", None, "The run to export: its model.keras, partition.json and flags.cfg.")
    define(text, "export_dir", None, "The model's directory; a SavedModel goes into its next version, DIR/N.")
    define(
        flags.DEFINE_enum,
        "format",
        "saved_model",
        "What to write: saved_model for TensorFlow Serving, litert or onnx for a device.",
        enum_values=["saved_model", *edge.FILES],
    )
    define(
        flags.DEFINE_enum, "quantize", None, "For litert: smaller weights.", enum_values=edge.QUANTIZATIONS
    )
    define(text, "name", None, "The model's name on the server; default: the last part of export_dir.")
    define(whole, "top_classes", 0, "Adds the best so many classes to each answer.", lower_bound=0)
    define(
        flags.DEFINE_enum,
        "input_dtype",
        "uint8",
        "Of the input images; values are 0..255 in both. uint8 is a quarter of the bytes.",
        enum_values=["uint8", "float32"],
    )
    define(
        flags.DEFINE_list,
        "batch_sizes",
        [str(size) for size in saved_model.BATCH_SIZES],
        "Batch sizes to warm up, and those that the server may batch requests to.",
    )

    # === Which tau ===
    define(number, "tau", None, "The threshold to serve with; default: the run's.")
    define(
        number,
        "target_active_branches",
        None,
        "Pick the lowest tau with lambda at most this.",
        lower_bound=1.0,
    )
    define(
        number,
        "max_accuracy_drop",
        None,
        "Pick the highest tau that is at most so many percentage points below the best top-1.",
        lower_bound=0.0,
    )
    define(
        flags.DEFINE_enum,
        "calibration_split",
        "validation",
        "The images to pick tau on. test is for runs that held no validation images out, and makes the test "
        "accuracy a little too good.",
        enum_values=["validation", "test"],
    )
    define(text, "data_dir", None, "Where the data set lies, as in train.py; default: the run's.")


def main(options):
    """Exports what the flags name."""
    # === What to export: all that can be wrong is found before any long work ===
    if not options.run_dir or not options.export_dir:
        raise UserError("Give --run_dir=DIR of a finished run, and --export_dir=DIR to write to")
    run_dir = pathlib.Path(os.path.expanduser(options.run_dir))
    export_dir = pathlib.Path(os.path.expanduser(options.export_dir))
    name = options.name or export_dir.absolute().name
    batch_sizes = _batch_sizes(options.batch_sizes)
    budgets = (options.target_active_branches, options.max_accuracy_drop)
    picking = any(budget is not None for budget in budgets)
    if sum(given is not None for given in (options.tau, *budgets)) > 1:
        raise UserError("Give one of --tau, --target_active_branches and --max_accuracy_drop")
    if options.tau is not None and not 0 <= options.tau < 1:
        raise UserError(f"--tau must be in [0, 1). Received: {options.tau}")
    if options.quantize and options.format != "litert":
        raise UserError(f"--quantize is for --format=litert. Received: --format={options.format}")
    if options.format != "saved_model":
        edge.check_extra(options.format)
    check_writable(export_dir, "export_dir")
    trained_with = read_flags(run_dir / "flags.cfg")
    model, partition = _load(run_dir)
    if options.top_classes > model.num_classes:
        raise UserError(
            f"--top_classes must be at most {model.num_classes}, the number of classes. "
            f"Received: {options.top_classes}"
        )

    # === Which tau to serve with ===
    rows, split = _tau_table(model, trained_with, options, picking)
    if options.tau is not None:
        choice = calibration.Choice(options.tau, "given with --tau")
    elif options.target_active_branches is not None:
        choice = calibration.least_active_branches(rows, options.target_active_branches)
    elif options.max_accuracy_drop is not None:
        choice = calibration.most_tau_within(rows, options.max_accuracy_drop)
    else:
        choice = calibration.Choice(model.tau, "the run's own, with which it was trained")
    if picking:
        print(f"On the {split} split:\n{tau_text(rows)}\n")
    print(f"tau {choice.tau:g}: {choice.reason}.")

    # === Write ===
    fit = trained_with.fit or find_entry(trained_with.dataset).fit
    card = model_card(
        name, model, partition, choice, hydra_costs(model), _trained(run_dir, trained_with, fit), rows, split
    )
    if options.format != "saved_model":
        edge.export_edge(
            model, partition.class_names, fit, choice.tau, export_dir, options.format, options.quantize
        )
        write_text(export_dir / "model_card.md", card)
        return
    with versions.new_version(export_dir) as directory:
        largest = saved_model.write_saved_model(
            model,
            partition.class_names,
            fit,
            directory,
            choice.tau,
            options.top_classes,
            options.input_dtype,
            batch_sizes,
        )
        (directory / "model_card.md").write_text(card, encoding="utf-8")
        server_files.write_server_files(export_dir, name, batch_sizes)
    version = export_dir / str(versions.latest(export_dir))
    print(
        f"Written: {version}; its answers through TensorFlow's C API are within {largest:.0e} of Keras's.\n"
        f"Beside it: models.config, batching_parameters.txt, monitoring.config; in it: model_card.md."
    )


def _load(run_dir):
    path = run_dir / "model.keras"
    model = load_network(path)
    if isinstance(model, Plain):
        raise UserError(
            f"{path} holds a plain network, and this command exports a Hydra; Keras's own "
            "model.export(DIR), after one call of the model, writes a SavedModel of it"
        )
    partition = ClassPartition.load(run_dir / "partition.json")
    if model.cluster_of_class != partition.cluster_of_class:
        raise UserError(f"{path} is not the Hydra of {run_dir / 'partition.json'}")
    return model, partition


def _tau_table(model, trained_with, options, picking):
    """The tau table of the model and its split, or ([], None) where none is needed and data are not there."""
    split = options.calibration_split
    try:
        data = load_data(**data_settings(trained_with, options.data_dir), download=picking)
    except UserError as error:
        if picking:
            raise
        print(f"No tau table in the model card: {error}")
        return [], None
    if split == "validation" and not data.sizes["validation"]:
        if picking:
            raise UserError(
                "The run held out no validation images to pick tau on. Train with --validation_fraction=0.1, "
                "or pick on the test images, knowing it, with --calibration_split=test"
            )
        split = "test"  # only to be shown
    taus = [*calibration.TAUS, *([] if options.tau is None else [options.tau])]
    evaluation = evaluate(model, evaluation_batches(data, split, 256), taus)
    return evaluation.tau_table(hydra_costs(model)["flops"]), split


def _trained(run_dir, trained_with, fit):
    try:
        summary = json.loads((run_dir / "summary.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        summary = {}
    keys = ("top1", "top5", "gater_accuracy", "active_branches", "versions")
    settings = {key: trained_with[key].value for key in ("dataset", "epochs", "seed", "tau")}
    return {**settings, "fit": fit, **{key: summary.get(key) for key in keys}}


def _batch_sizes(texts):
    try:
        sizes = [int(text) for text in texts]
    except ValueError:
        sizes = []
    if not sizes or sizes != sorted(set(sizes)) or sizes[0] < 1:
        raise UserError(f"--batch_sizes must be rising whole numbers. Received: {','.join(texts)}")
    return sizes


if __name__ == "__main__":
    cli.run(main, define_flags)
