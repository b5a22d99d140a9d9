"""The model card: what a served model is, in one page of Markdown."""

import textwrap

from dynkhydra_tf.costs import inference_flops


def model_card(name, model, partition, choice, costs, trained, tau_rows=(), tau_split=None):
    """Returns the text of model_card.md.

    Args:
        name: str, the model's name.
        model: `Hydra`.
        partition: `ClassPartition`.
        choice: `calibration.Choice`, the served tau and why.
        costs: `hydra_costs(model)`.
        trained: dict of what the run's summary.json and flags say: dataset, fit (see `preprocess`), epochs,
            seed, tau, and top1, top5, active_branches, gater_accuracy, versions or None.
        tau_rows: rows of `Evaluation.tau_table`; may be empty.
        tau_split: str, the split that they were measured on.
    """
    flops, size = costs["flops"], model.backbone.input_shape[0]
    parameters = sum(count for part, count in costs["parameters"].items() if part != "heads")
    features = f" on features of {partition.extractor}" if partition.extractor else ""
    lines = [
        f"# {name}",
        "",
        f"A DynK-Hydra classifier of {model.num_classes} classes for images of {size} x {size} pixels: "
        f"{model.num_branches} branches, of which an image runs 1 to {model.top_k}.",
        "",
        f"- Threshold tau: {choice.tau:g}, {choice.reason}.",
        f"- A picture of another size is made square as in training, by `{trained['fit']}`, and scaled.",
        f"- Combination of the projections: {model.combine}.",
        f"- Backbone: {type(model.backbone).__name__}, {_settings(model.backbone.get_config())}.",
        f"- Parameters: {parameters:,}. MFLOPs of an image: {inference_flops(flops, 1) / 1e6:.1f} with one "
        f"branch, {flops['branch'] / 1e6:.1f} for each further one (stem {flops['stem'] / 1e6:.1f}, gater "
        f"{flops['gater'] / 1e6:.1f}, combiner {flops['combiner'] / 1e6:.1f}).",
        "",
        "## Training",
        "",
        f"Data set {trained['dataset']}, {trained['epochs']} epochs, seed {trained['seed']}; classes "
        f"clustered by {partition.strategy}{features}.",
    ]
    if trained.get("top1") is not None:
        lines += [
            "",
            f"On the test split at tau {trained['tau']:g}, that of the run: top-1 {trained['top1']:.2%}, "
            f"top-5 {trained['top5']:.2%}, gater {trained['gater_accuracy']:.2%}, lambda "
            f"{trained['active_branches']:.2f} (mean branches of an image), "
            f"{inference_flops(flops, trained['active_branches']) / 1e6:.1f} MFLOPs.",
        ]
    if trained.get("versions"):
        lines += ["", f"Versions: {_settings(trained['versions'])}."]
    if tau_rows:
        lines += [
            "",
            "## Accuracy and compute by tau",
            "",
            f"Measured on the {tau_split} split. A request may set its own tau (signature `with_tau`).",
            "",
            "| tau | lambda | top-1 | top-5 | MFLOPs |",
            "|---|---|---|---|---|",
        ]
        for row in tau_rows:
            served = " (served)" if row["tau"] == choice.tau else ""
            lines.append(
                f"| {row['tau']:g}{served} | {row['active_branches']:.2f} | {row['top1']:.2%} "
                f"| {row['top5']:.2%} | {row['flops'] / 1e6:.1f} |"
            )
    lines += ["", "## Class clusters, one for each branch", ""]
    for index, names in enumerate(partition.clusters):
        lines += textwrap.wrap(f"- {index}: {', '.join(names)}", 110, subsequent_indent="  ")
    return "\n".join(lines) + "\n"


def _settings(values):
    return ", ".join(f"{key} {value}" for key, value in values.items())
