"""The model card: what a served model is, in one page of Markdown."""

import textwrap
import urllib.parse
from collections.abc import Mapping, Sequence

from dynkhydra_tf.costs import inference_flops, inference_parameters
from dynkhydra_tf.hydra import Hydra
from dynkhydra_tf.partition import ClassPartition
from dynkhydra_tf.plain import Plain
from dynkhydra_tf.serving.calibration import Choice, ExitChoice
from dynkhydra_tf.serving.served_model import ServedModel
from dynkhydra_tf.tables import markdown_table


def hydra_card(
    name: str,
    model: Hydra,
    partition: ClassPartition,
    choice: Choice,
    costs: Mapping[str, Mapping[str, int]],
    trained: Mapping,
    tau_rows: Sequence[Mapping] = (),
    tau_split: str | None = None,
    exit_choice: ExitChoice | None = None,
    exit_rows: Sequence[Mapping] = (),
) -> str:
    """Returns the text of a Hydra's model_card.md.

    Args:
        name: the model's name.
        model: what is served.
        partition: its classes by branch.
        choice: the served tau and why.
        costs: `hydra_costs(model)`.
        trained: what the run's summary.json and settings say: dataset, fit (see `preprocess`), epochs, seed,
            tau, and top1, top5, active_branches, gater_accuracy, versions or None.
        tau_rows: rows of `Evaluation.tau_table`; may be empty.
        tau_split: the split that they were measured on.
        exit_choice: of a network with an exit, the served exit confidence and why.
        exit_rows: rows of `Evaluation.exit_table` at the served tau, on the same split; may be empty.
    """
    flops = costs["flops"]
    features = f" on features of {partition.extractor}" if partition.extractor else ""
    lines = [
        *_head(name, "DynK-Hydra", model),
        f"{model.num_branches} branches, of which an image runs 1 to {model.top_k}"
        f"{', or none where it is sure before' if exit_choice else ''}.",
        "",
        f"- Threshold tau: {choice.tau:g}, {choice.reason}.",
        *([_exit_line(exit_choice, flops, model)] if exit_choice else []),
        _picture(trained),
        f"- Combination of the projections: {model.combine}.",
        _backbone(model),
        f"- Parameters: {inference_parameters(costs['parameters']):,}. MFLOPs of an image: "
        f"{inference_flops(flops, 1) / 1e6:.1f} with one branch, {flops['branch'] / 1e6:.1f} for each further"
        f" one (stem {flops['stem'] / 1e6:.1f}, gater {flops['gater'] / 1e6:.1f}, combiner "
        f"{flops['combiner'] / 1e6:.1f}).",
        *_training(trained, f"; classes clustered by {partition.strategy}{features}"),
    ]
    if trained.get("top1") is not None:
        mean_flops = inference_flops(flops, trained["active_branches"], trained.get("exits") or 0.0)
        lines += [
            "",
            f"On the test split at tau {trained['tau']:g}, that of the run: top-1 {trained['top1']:.2%}, "
            f"top-5 {trained['top5']:.2%}, gater {trained['gater_accuracy']:.2%}, lambda "
            f"{trained['active_branches']:.2f} (mean branches of an image), "
            f"{mean_flops / 1e6:.1f} MFLOPs.",
        ]
    lines += _versions(trained)
    if tau_rows:
        rows = [[_value(row["tau"], choice.tau), *_results(row)] for row in tau_rows]
        lines += [
            "",
            "## Accuracy and compute by tau",
            "",
            f"Measured on the {tau_split} split. A request may set its own tau (signature `with_tau`).",
            "",
            markdown_table([("tau", "lambda", "top-1", "top-5", "MFLOPs"), *rows]),
        ]
    if exit_rows:
        served = exit_choice.exit_confidence
        rows = [
            [_value(row["exit_confidence"], served), f"{row['exits']:.1%}", *_results(row)]
            for row in exit_rows
        ]
        lines += [
            "",
            "## Accuracy and compute by exit confidence",
            "",
            f"Measured on the {tau_split} split at tau {choice.tau:g}. A request may set its own (signature "
            "`with_exit_confidence`).",
            "",
            markdown_table([("exit confidence", "exits", "lambda", "top-1", "top-5", "MFLOPs"), *rows]),
        ]
    lines += ["", "## Class clusters, one for each branch", ""]
    for index, names in enumerate(partition.clusters):
        lines += _wrapped(f"- {index}: {', '.join(names)}")
    return "\n".join(lines) + "\n"


def _exit_line(choice, flops, model):
    part = "classifier on the stem's map" if model.exit else "shared trunk"
    skipped = "nothing else" if model.exit else "no branch and no combiner"
    return (
        f"- Exit confidence: {choice.exit_confidence:g}, {choice.reason}. An image whose best class the "
        f"{part} gives at least this probability runs {skipped}: "
        f"{inference_flops(flops, 0, 1) / 1e6:.1f} MFLOPs. At 1 none exits."
    )


def plain_card(
    name: str, model: Plain, class_names: Sequence[str], costs: Mapping[str, int], trained: Mapping
) -> str:
    """Returns the text of a plain network's model_card.md.

    Args:
        name, trained: as for `hydra_card`.
        model: what is served.
        class_names: M str.
        costs: `plain_costs` of it.
    """
    lines = [
        *_head(name, "plain", model),
        "every image runs the whole network.",
        "",
        _picture(trained),
        _backbone(model),
        f"- Parameters: {costs['parameters']:,}. MFLOPs of an image: {costs['flops'] / 1e6:.1f}.",
        *_training(trained),
    ]
    if trained.get("top1") is not None:
        lines += ["", f"On the test split: top-1 {trained['top1']:.2%}, top-5 {trained['top5']:.2%}."]
    lines += [*_versions(trained), "", "## Classes", "", *_wrapped(", ".join(class_names))]
    return "\n".join(lines) + "\n"


def requests_text(served: ServedModel) -> str:
    """Returns what a SavedModel's card says of requests, to stand at its end."""
    text = (
        f"A request holds at most {served.largest_batch:,} images. Each file of `image_bytes` is a JPEG, "
        f"PNG, GIF, BMP or WebP of at most {served.most_pixels:,} pixels, several in a request together of "
        "half as many, or of 16 for each byte where that is more. One that cannot be read does not fail the "
        "others: its row of the output `error` says why, its class ids are -1, all else in it is zero or "
        "empty. `error` is empty where all is well. Other limits: export.py --max_batch and --max_pixels."
    )
    commands = [
        "saved_model_cli show --dir . --tag_set serve --signature_def serving_default",
        f'python -c \'import numpy as np; np.save("/tmp/images.npy", np.full((1, {served.image_size}, '
        f"{served.image_size}, 3), 128, np.{served.input_dtype}))'",
        "saved_model_cli run --dir . --tag_set serve --signature_def serving_default "
        "--inputs images=/tmp/images.npy",
        """(printf '{"signature_name": "image_bytes", "instances": [{"b64": "'; base64 < photo.jpg """
        """| tr -d '\\n'; printf '"}]}') | curl -sS -H "Content-Type: application/json" --data-binary @- """
        f"http://localhost:8501/v1/models/{urllib.parse.quote(served.name)}:predict",
    ]
    told = (
        "From the version's directory, and to a server of it:",
        "",
        "```bash",
        *commands,
        "```",
    )
    return "\n".join(["", "## Requests", "", *_wrapped(text), "", *told]) + "\n"


def taus_text(rows: Sequence[Mapping], served_tau: float) -> str:
    """Returns what a SavedModel's card says of time, to stand at its end.

    Args:
        rows: of `measure_taus`.
        served_tau: the threshold where a request gives none.
    """
    sizes = list(rows[0]["ms"])
    text = (
        "Of an image, on the machine that exported it, through TensorFlow's C API, on images of the split "
        "above: one image in a request, and several. The signatures `with_tau` and `image_bytes_with_tau` "
        "take a tau for each image."
    )
    head = ["tau", "lambda", "top-1", *(f"ms, {size} in a request" for size in sizes)]
    cells = [
        [_value(row["tau"], served_tau), *_results(row), *(f"{row['ms'][size]:.3f}" for size in sizes)]
        for row in rows
    ]
    lines = ["", "## Milliseconds by tau", "", *_wrapped(text), "", markdown_table([head, *cells])]
    return "\n".join(lines) + "\n"


def _value(value, served):
    """A row's tau or exit confidence, and whether it is the one that is served."""
    return f"{value:g}{' (served)' if value == served else ''}"


def _results(row):
    """What images came to: lambda, top-1, top-5 and MFLOPs; of a row of times the first two."""
    results = [f"{row['active_branches']:.2f}", f"{row['top1']:.2%}"]
    return [*results, f"{row['top5']:.2%}", f"{row['flops'] / 1e6:.1f}"] if "flops" in row else results


def _head(name, kind, model):
    size = model.backbone.input_shape[0]
    return [
        f"# {name}",
        "",
        f"A {kind} classifier of {model.num_classes} classes for images of {size} x {size} pixels:",
    ]


def _picture(trained):
    return f"- A picture of another size is made square as in training, by `{trained['fit']}`, and scaled."


def _backbone(model):
    return f"- Backbone: {model.backbone.description}."


def _training(trained, more=""):
    line = f"Data set {trained['dataset']}, {trained['epochs']} epochs, seed {trained['seed']}{more}."
    return ["", "## Training", "", line]


def _versions(trained):
    return ["", f"Versions: {_settings(trained['versions'])}."] if trained.get("versions") else []


def _settings(values):
    return ", ".join(f"{key} {value}" for key, value in values.items())


def _wrapped(text):
    return textwrap.wrap(text, 110, subsequent_indent="  ")
