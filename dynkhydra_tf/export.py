"""Exports a trained run: a SavedModel for TensorFlow Serving, or a LiteRT or ONNX file for a device.

    python export.py --run_dir=runs/digits --export_dir=served/digits          # writes served/digits/1
    python export.py --run_dir=runs/digits --export_dir=edge --format=litert

The served tau is the run's, or --tau, or picked on the validation split for --target_active_branches or
--max_accuracy_drop. A plain network has none. The exit confidence of a network with an exit is the run's, or
--exit_confidence, or picked on the validation split for --max_exit_drop.
"""

import dataclasses
import pathlib

from dynkhydra_tf import cli
from dynkhydra_tf.errors import UserError
from dynkhydra_tf.fields import Checked, changed, setting, values
from dynkhydra_tf.files import check_writable
from dynkhydra_tf.runs import FinishedRun
from dynkhydra_tf.serving import calibration
from dynkhydra_tf.serving.formats import FORMATS
from dynkhydra_tf.serving.served_model import (
    BATCH_SIZES,
    MOST_FLOPS,
    MOST_IMAGES,
    QUANTIZATIONS,
    ServedModel,
)


@dataclasses.dataclass(frozen=True)
class Options(Checked):
    """The flags of this command."""

    run_dir: str | None = setting(
        None, "The run to export: its model.keras, partition.json and flags.cfg.", path=True
    )
    export_dir: str | None = setting(
        None, "The model's directory; a SavedModel goes into its next version, DIR/N.", path=True
    )
    format: str = setting(
        "saved_model",
        "What to write: saved_model for TensorFlow Serving, litert or onnx for a device.",
        choices=tuple(FORMATS),
    )
    name: str | None = setting(None, "The model's name on the server; default: the last part of export_dir.")

    # === What only some formats have ===
    quantize: str | None = setting(
        None,
        "For litert float16 or dynamic: smaller weights. For onnx int8: convolutions in whole numbers, by "
        "ranges seen on training images; refused where it loses more than a point on held-out ones.",
        choices=tuple(name for names in QUANTIZATIONS.values() for name in names),
    )
    top_classes: int = setting(0, "Adds the best so many classes to each answer.", least=0)
    input_dtype: str = setting(
        "uint8",
        "Of the input images; values are 0..255 in both. uint8 is a quarter of the bytes.",
        choices=("uint8", "float32"),
    )
    batch_sizes: tuple[int, ...] | None = setting(
        None,
        "Batch sizes to warm up, and those that the server may batch requests to; default: "
        f"{','.join(map(str, BATCH_SIZES))}, as far as max_batch goes.",
        least=1,
    )
    max_batch: int | None = setting(
        None,
        f"The most images of a request; default: the largest power of two, at most {MOST_IMAGES}, that takes "
        f"at most {MOST_FLOPS / 1e9:g} GFLOPs at tau 0, and no fewer than the largest of batch_sizes.",
        least=1,
    )
    max_pixels: int | None = setting(
        None,
        "Of the largest picture in a request; default: 16 megapixels, or 256 times an image of the network.",
        least=1,
    )

    # === Which tau ===
    tau: float | None = setting(None, "The threshold to serve with; default: the run's.", least=0, below=1)
    target_active_branches: float | None = setting(
        None, "Pick the lowest tau with lambda at most this.", least=1
    )
    max_accuracy_drop: float | None = setting(
        None,
        "Pick the highest tau that is at most so many percentage points below the best top-1.",
        least=0,
    )
    exit_confidence: float | None = setting(
        None, "Of a network with an exit: the confidence to serve with; default: the run's.", above=0, most=1
    )
    max_exit_drop: float | None = setting(
        None,
        "Pick the lowest exit confidence that loses at most so many percentage points of top-1, such as 0.3, "
        "on the validation images.",
        least=0,
    )
    calibration_split: str = setting(
        "validation",
        "The images to pick tau on. test is for runs that held no validation images out, and makes the test "
        "accuracy a little too good.",
        choices=("validation", "test"),
    )
    data_dir: str | None = setting(
        None, "Where the data set lies, as in train.py; default: the run's.", path=True
    )

    def check(self) -> None:
        """Checks what goes together."""
        if not self.run_dir or not self.export_dir:
            raise UserError("Give --run_dir=DIR of a finished run, and --export_dir=DIR to write to")
        if self.batch_sizes is not None and (
            not self.batch_sizes or list(self.batch_sizes) != sorted(self.batch_sizes)
        ):
            raise UserError(f"batch_sizes must rise. Received: {','.join(map(str, self.batch_sizes))}")
        if len(self.tau_flags) > 1:
            raise UserError("Give one of --tau, --target_active_branches and --max_accuracy_drop")
        if len(self.exit_flags) > 1:
            raise UserError("Give one of --exit_confidence and --max_exit_drop")
        if self.max_exit_drop is not None and self.calibration_split == "test":
            raise UserError("--max_exit_drop picks on held-out training images, never on the test images")

    @property
    def tau_flags(self) -> list[str]:
        """The given ones among the flags that say which tau."""
        names = ("tau", "target_active_branches", "max_accuracy_drop")
        return [f"--{name}" for name in names if getattr(self, name) is not None]

    @property
    def exit_flags(self) -> list[str]:
        """The given ones among the flags that say which exit confidence."""
        names = ("exit_confidence", "max_exit_drop")
        return [f"--{name}" for name in names if getattr(self, name) is not None]

    @property
    def picking(self) -> bool:
        """Whether tau or the exit confidence is to be picked on images."""
        return self.max_exit_drop is not None or (bool(self.tau_flags) and self.tau is None)

    @property
    def needs_data(self) -> bool:
        """Whether it does not go without the run's data."""
        return self.picking or self.quantize == "int8"


def main(options: Options) -> None:
    """Exports what the flags name."""
    # Only now: to see the help or a wrong flag takes no more than a moment.
    from dynkhydra_tf.costs import hydra_costs, plain_costs
    from dynkhydra_tf.plain import Plain
    from dynkhydra_tf.serving.model_card import hydra_card, plain_card, requests_text

    # === What to export: all that can be wrong is found before any long work ===
    format = FORMATS[options.format]
    format.check_installed()
    check_writable(options.export_dir, "export_dir")
    run = FinishedRun.open(options.run_dir)
    model = run.load_model()
    served = ServedModel(
        name=options.name or pathlib.Path(options.export_dir).absolute().name,
        model=model,
        class_names=run.class_names or _open_data(run, options).class_names,  # an early run did not note them
        fit=run.fit,
        tau=getattr(model, "tau", None),
        top_classes=options.top_classes,
        input_dtype=options.input_dtype,
        batch_sizes=options.batch_sizes,
        quantize=options.quantize,
        max_batch=options.max_batch,
        max_pixels=options.max_pixels,
    )
    served.check_options(options.format, format.OPTIONS)
    if isinstance(model, Plain) and options.tau_flags:
        raise UserError(f"{run.path} holds a plain network, without a gate: leave {options.tau_flags[0]} out")
    can_exit = getattr(model, "can_exit", False)
    if options.exit_flags and not can_exit:
        raise UserError(f"{run.path} holds no network with an exit: leave {options.exit_flags[0]} out")
    if options.exit_confidence is not None:
        model.exit_confidence = options.exit_confidence

    # === Which tau to serve with, and the model card ===
    trained = _trained(run, served.fit)
    if isinstance(model, Plain):
        costs = plain_costs(model.backbone, model.num_classes, model.network)
        card = plain_card(served.name, model, served.class_names, costs, trained)
        served = dataclasses.replace(served, card=card, costs=costs)
    else:
        costs = hydra_costs(model)
        rows, split, evaluation, images = _tau_table(run, model, costs["flops"], options)
        choice = _choice(model, rows, options)
        print(f"tau {choice.tau:g}: {choice.reason}.")
        exits = ()
        if can_exit:
            exits = _exits(model, evaluation, costs["flops"], choice.tau, options)
            rows = evaluation.tau_table(costs["flops"], model.exit_confidence) if evaluation else []
        card = hydra_card(served.name, model, run.partition, choice, costs, trained, rows, split, *exits)
        served = dataclasses.replace(
            served,
            tau=choice.tau,
            card=card,
            costs=costs,
            tau_rows=rows,
            images=images,
            validation=evaluation and _histograms(evaluation, model, choice.tau, served.class_names),
        )

    if options.quantize == "int8":
        from dynkhydra_tf.serving.samples import take_samples

        data = _open_data(run, options)
        run.check_data(data)
        served = dataclasses.replace(served, samples=take_samples(data))

    # === Write ===
    if "max_batch" in format.OPTIONS:
        served = dataclasses.replace(served, card=served.card + requests_text(served))
    print(format.convert(served, options.export_dir))


def _open_data(run, options):
    """The run's data, which are downloaded only where they are needed."""
    from dynkhydra_tf.data import open_data

    settings = run.settings.data
    if options.data_dir:
        settings = changed(settings, data_dir=options.data_dir)
    return open_data(settings, run.settings.place.cache_dir, download=options.needs_data)


def _tau_table(run, model, flops, options):
    """The tau table of the model, its split, its `Evaluation` and some of its images (n, S, S, 3).

    ([], None, None, None) where none is needed and data are not there.
    """
    from dynkhydra_tf.accuracy import evaluate, tau_text
    from dynkhydra_tf.data import evaluation_batches

    split = options.calibration_split
    try:
        data = _open_data(run, options)
        run.check_data(data)
    except UserError as error:
        if options.picking:
            raise
        print(f"No tau table in the model card: {error}")
        return [], None, None, None
    if split == "validation" and not data.sizes["validation"]:
        if options.picking:
            raise UserError(
                "The run held out no validation images to pick on. Train with --validation_fraction=0.1, "
                "or pick tau on the test images, knowing it, with --calibration_split=test"
            )
        split = "test"  # only to be shown
    taus = [*calibration.TAUS, *([] if options.tau is None else [options.tau])]
    batches = evaluation_batches(data, split, 256)
    evaluation = evaluate(model, batches, taus)
    rows = evaluation.tau_table(flops)
    if options.picking:
        print(f"On the {split} split:\n{tau_text(rows)}\n")
    images = next(iter(batches.take(1)))[0][:64].numpy()
    return rows, split, evaluation, images.round().astype("uint8")


def _histograms(evaluation, model, tau, class_names):
    """What the model, as it is served, did on the images of an `Evaluation`: `drift.Histograms`."""
    from dynkhydra_tf.serving.drift import Histograms, Seen

    place = evaluation.taus.tolist().index(tau)
    active, predicted = evaluation.active[place], evaluation.predicted[place]
    if evaluation.exits:
        active, predicted = evaluation.exits.served(place, model.exit_confidence)
    gate = evaluation.gate_probability
    if model.exit:
        gate = gate * (active > 0)  # an image that exits at the stem never meets the gater
    numbers = gate, active, predicted
    rows = zip(*(values.tolist() for values in numbers), strict=True)
    return Histograms.of((Seen(gate, count, class_names[label]) for gate, count, label in rows), class_names)


def _exits(model, evaluation, flops, tau, options):
    """Which exit confidence to serve with, and the table at the served tau; sets the model's."""
    from dynkhydra_tf.accuracy import exit_text

    rows = evaluation.exit_table(flops, tau, calibration.EXIT_CONFIDENCES) if evaluation else []
    if options.max_exit_drop is not None:
        choice = calibration.most_exits_within(rows, options.max_exit_drop)
        model.exit_confidence = choice.exit_confidence
        print(exit_text(rows))
    elif options.exit_confidence is not None:
        choice = calibration.ExitChoice(options.exit_confidence, "given with --exit_confidence")
    else:
        choice = calibration.ExitChoice(model.exit_confidence, "the run's own")
    print(f"exit confidence {choice.exit_confidence:g}: {choice.reason}.")
    return choice, rows


def _choice(model, rows, options):
    """Which tau to serve with."""
    if options.tau is not None:
        return calibration.Choice(options.tau, "given with --tau")
    if options.target_active_branches is not None:
        return calibration.least_active_branches(rows, options.target_active_branches)
    if options.max_accuracy_drop is not None:
        return calibration.most_tau_within(rows, options.max_accuracy_drop)
    return calibration.Choice(model.tau, "the run's own, with which it was trained")


def _trained(run, fit):
    """What the model card says of the training."""
    try:
        summary = run.summary
    except UserError:  # not needed to serve the model
        summary = {}
    settings = values(run.settings)
    keys = ("top1", "top5", "gater_accuracy", "active_branches", "exits", "versions")
    return {
        **{key: settings[key] for key in ("dataset", "epochs", "seed", "tau")},
        "fit": fit,
        **{key: summary.get(key) for key in keys},
    }


if __name__ == "__main__":
    cli.run(main, Options)
