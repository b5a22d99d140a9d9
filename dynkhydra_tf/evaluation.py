"""Evaluation of a trained model: accuracy, gating and compute, at any number of thresholds in one pass.

    python -m dynkhydra_tf.evaluation --run_dir=runs/digits --tau=0,0.02,0.05,0.08,0.1,0.2

Writes into RUN_DIR/evaluation, or --output_dir:

    evaluation.json   all results; the worst classes, pairs and images among them
    classes.csv       a row for each class: accuracy, and the class that its images are most often taken for
    pairs.csv         a row for each two classes of which one was taken for the other, the worst first
    most_wrong.png    the images that were most wrong; none where there was no mistake
    tau.csv tau.png   the tau table
    branches.png      use and accuracy of each branch
    confusion.png     between clusters

The last three are not written of a plain network, which has no gate.
Axis letters: B batch, T thresholds, N branches (nb), M classes; n images in all.
"""

import dataclasses
import pathlib
import textwrap

import numpy as np
import tensorflow as tf

from dynkhydra_tf import cli, figures
from dynkhydra_tf.costs import hydra_costs, inference_flops, plain_costs
from dynkhydra_tf.data import evaluation_batches, open_data
from dynkhydra_tf.errors import UserError
from dynkhydra_tf.fields import Checked, setting
from dynkhydra_tf.files import check_writable, write_csv, write_json
from dynkhydra_tf.gating import select_branches
from dynkhydra_tf.partition import clusters_of
from dynkhydra_tf.plain import Plain
from dynkhydra_tf.predictions import PAIR_KEYS, Predictions, mistakes_text, worst_classes
from dynkhydra_tf.runs import EvaluationFile, FinishedRun, check_network, load_network, run_of
from dynkhydra_tf.settings import DataSettings
from dynkhydra_tf.tables import table

WORST, MOST_WRONG = 10, 24  # rows of a table that is printed; images of the sheet


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """What a model did on each image of a split.

    Attributes:
        taus: (T,) float, ascending.
        predicted: (T, n) int, the first class.
        top5: (T, n) bool, whether the class was among the first min(5, M).
        active: (T, n) int, branches used, lambda of one image.
        labels: (n,) int.
        gate_choice: (n,) int, the branch of largest gate probability.
        used_in: (T, N, N) int, images of each cluster (second axis) that used each branch (third).
        cluster_of_class: (M,) int.
        confidence: (T, n) float, the probability of the first class, in 0..1.
        loss: (T, n) float, the cross-entropy, in nats.
    """

    taus: np.ndarray
    predicted: np.ndarray
    top5: np.ndarray
    active: np.ndarray
    labels: np.ndarray
    gate_choice: np.ndarray
    used_in: np.ndarray
    cluster_of_class: np.ndarray
    confidence: np.ndarray
    loss: np.ndarray

    @property
    def own_branch(self):
        """(n,) int, the branch whose partition holds each image's class."""
        return self.cluster_of_class[self.labels]

    @property
    def top1(self):
        """(T, n) bool, whether the class was first."""
        return self.predicted == self.labels

    @property
    def used(self):
        """(T, N) int, images that used each branch."""
        return self.used_in.sum(axis=1)

    def at(self, tau):
        """Returns the results at one of `taus` as a dict of plain numbers and lists.

        Keys: tau, top1, top5, gater_accuracy (in 0..1), active_branches (lambda),
        images_by_active_branches (index 0: one branch), branch_use (share of the images that used
        each branch), cluster_accuracy (top-1 over the images of each branch's partition; None where
        the split has none), confusion (see `confusion_at`).
        """
        t = self._place(tau)
        clusters = range(self.used.shape[1])
        of_cluster = [self.top1[t][self.own_branch == cluster] for cluster in clusters]
        return {
            "tau": float(tau),
            "top1": float(self.top1[t].mean()),
            "top5": float(self.top5[t].mean()),
            "gater_accuracy": float((self.gate_choice == self.own_branch).mean()),
            "active_branches": float(self.active[t].mean()),
            "images_by_active_branches": np.bincount(self.active[t])[1:].tolist(),
            "branch_use": (self.used[t] / len(self.labels)).tolist(),
            "cluster_accuracy": [float(hits.mean()) if hits.size else None for hits in of_cluster],
            "confusion": self.confusion_at(tau),
        }

    def confusion_at(self, tau):
        """Returns what became of the images of each cluster, at one of `taus`.

        Returns:
            dict of N lists, one for each cluster, None where the split has none of its images, else N
            shares of its images, in 0..1. "gate": those for which the gate's first choice is branch j;
            "predicted": whose predicted class lies in cluster j; "branches": that used branch j (the sum
            is lambda).
        """
        t = self._place(tau)
        clusters = self.used_in.shape[1]
        images = np.bincount(self.own_branch, minlength=clusters)

        def counts(chosen):
            pairs = self.own_branch * clusters + chosen
            return np.bincount(pairs, minlength=clusters**2).reshape(clusters, clusters)

        def shares(table):
            rows = zip(table, images, strict=True)
            return [(row / count).tolist() if count else None for row, count in rows]

        return {
            "gate": shares(counts(self.gate_choice)),
            "predicted": shares(counts(self.cluster_of_class[self.predicted[t]])),
            "branches": shares(self.used_in[t]),
        }

    def predictions_at(self, tau):
        """Returns the `Predictions` at one of `taus`."""
        t = self._place(tau)
        return Predictions(self.labels, self.predicted[t], self.top5[t], self.confidence[t], self.loss[t])

    def _place(self, tau):
        return int(np.flatnonzero(self.taus == tau)[0])

    def tau_table(self, flops):
        """Returns a dict (tau, active_branches, top1, top5, flops) for each tau.

        Args:
            flops: FLOPs by part, from `hydra_costs`.
        """
        return [
            {
                "tau": float(tau),
                "active_branches": float(self.active[t].mean()),
                "top1": float(self.top1[t].mean()),
                "top5": float(self.top5[t].mean()),
                "flops": inference_flops(flops, float(self.active[t].mean())),
            }
            for t, tau in enumerate(self.taus)
        ]


def evaluate(model, batches, taus=()):
    """Evaluates a `Hydra` at its own tau and others, in one pass over the images.

    A lower tau selects all that a higher one does, so each image runs what the lowest needs, and each
    tau combines its part.

    Args:
        model: `Hydra`.
        batches: `tf.data.Dataset` of (images (B, H, W, 3) 0..255, labels (B,) int).
        taus: further thresholds, floats in [0, 1).

    Returns:
        `Evaluation`, its taus sorted, each once.
    """
    taus = sorted({model.tau, *map(float, taus)})

    @tf.function(reduce_retracing=True)
    def step(images, labels):
        forward = model.forward(images, taus[0])
        own_branch = tf.one_hot(tf.gather(model.cluster_of_class, labels), model.num_branches)  # (B, N)
        ranks, selections = [], []
        for tau in taus:
            selected = select_branches(forward.gate, model.top_k, tau)
            ranks.append(_ranked(model.classify(forward.routes, forward.gate, selected), labels))
            selections.append(selected)
        predicted, top5, confidence, loss = zip(*ranks, strict=True)
        selections = tf.cast(tf.stack(selections), tf.float32)  # (T, B, N)
        return (
            tf.stack(predicted),
            tf.stack(top5),
            tf.cast(tf.reduce_sum(selections, axis=2), tf.int32),
            tf.argmax(forward.gate, axis=1),
            tf.cast(tf.einsum("bi,tbj->tij", own_branch, selections), tf.int32),
            tf.stack(confidence),
            tf.stack(loss),
        )

    results = []
    for images, labels in batches:
        results.append(
            (labels.numpy(), *(value.numpy() for value in step(images, tf.cast(labels, tf.int32))))
        )
    labels, predicted, top5, active, gate_choice, used_in, confidence, loss = zip(*results, strict=True)
    return Evaluation(
        taus=np.array(taus),
        predicted=np.concatenate(predicted, axis=1),
        top5=np.concatenate(top5, axis=1),
        active=np.concatenate(active, axis=1),
        labels=np.concatenate(labels),
        gate_choice=np.concatenate(gate_choice),
        used_in=np.sum(used_in, axis=0),
        cluster_of_class=np.array(model.cluster_of_class),
        confidence=np.concatenate(confidence, axis=1),
        loss=np.concatenate(loss, axis=1),
    )


def evaluate_plain(model, batches):
    """Evaluates a `Plain` on batches as in `evaluate`.

    Returns:
        {"top1", "top5"}, in 0..1.
    """
    return _accuracies(predict_plain(model, batches))


def predict_plain(model, batches):
    """Returns the `Predictions` of a `Plain` on batches as in `evaluate`."""

    @tf.function(reduce_retracing=True)
    def step(images, labels):
        return _ranked(model(images)["logits"], labels)

    results = []
    for images, labels in batches:
        found = step(images, tf.cast(labels, tf.int32))
        results.append((labels.numpy(), *(value.numpy() for value in found)))
    return Predictions(*map(np.concatenate, zip(*results, strict=True)))


def _accuracies(predictions):
    return {"top1": float(predictions.top1.mean()), "top5": float(predictions.top5.mean())}


def _ranked(logits, labels):
    """Of logits (B, M): the first class, whether the image's is among the first min(5, M), the probability
    of the first class, and the cross-entropy; each (B,).
    """
    logits = tf.cast(logits, tf.float32)
    # Not tf.math.in_top_k: it counts a tie with the last of the k as a hit.
    values, first = tf.math.top_k(logits, min(5, logits.shape[-1]))  # (B, 5)
    among = tf.reduce_any(first == labels[:, tf.newaxis], axis=1)
    confidence = tf.exp(values[:, 0] - tf.reduce_logsumexp(logits, axis=1))
    return first[:, 0], among, confidence, tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits)


def tau_text(tau_rows):
    """Returns the rows of `Evaluation.tau_table` as text in aligned columns."""
    cells = [
        [
            f"{row['tau']:g}",
            f"{row['active_branches']:.2f}",
            f"{row['top1']:.2%}",
            f"{row['top5']:.2%}",
            f"{row['flops'] / 1e6:.1f}",
        ]
        for row in tau_rows
    ]
    return table([["tau", "lambda", "top-1", "top-5", "MFLOPs"], *cells])


# === The command ===


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
    batch_size: int = setting(256, "Images in a step.", least=1)
    output_dir: str | None = setting(None, "Where to write; default RUN_DIR/evaluation.", path=True)


def main(options: Options) -> None:
    """Evaluates what the options name, writes the results and prints them."""
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
        data = open_data(DataSettings(**given))
    if trained_in := run_of(path) or run:
        trained_in.check_data(data)
    check_network(path, model, data)

    # === Evaluate, write, print: what cannot be printed is not lost ===
    tau = "" if isinstance(model, Plain) else f", tau={model.tau:g}"
    print(f"{path} on {data.sizes[options.split]} images of {data.name}/{options.split}{tau}", flush=True)
    batches = evaluation_batches(data, options.split, options.batch_size)
    if isinstance(model, Plain):
        predictions, cluster_of_class = predict_plain(model, batches), None
        results = _accuracies(predictions) | plain_costs(model.backbone, model.num_classes)
        text, written = _plain_text(results), []
    else:
        evaluation = evaluate(model, batches, options.tau)
        results, predictions = evaluation.at(model.tau), evaluation.predictions_at(model.tau)
        results["tau_table"] = evaluation.tau_table(hydra_costs(model)["flops"])
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
    head = (
        f"top-1 {results['top1']:.2%}, top-5 {results['top5']:.2%}, gater {results['gater_accuracy']:.2%}, "
        f"lambda {results['active_branches']:.2f}"
    )
    counts = results["images_by_active_branches"]
    shares = [f"{count / sum(counts):.1%}" for count in counts]
    used = [["branches used", *map(str, range(1, len(shares) + 1))], ["share of images", *shares]]
    rows = [["branch", "used by", "top-1", "of its classes"]]
    for branch, (use, accuracy, names) in enumerate(
        zip(results["branch_use"], results["cluster_accuracy"], clusters, strict=True)
    ):
        accuracy = "-" if accuracy is None else f"{accuracy:.1%}"
        rows.append([str(branch), f"{use:.1%}", accuracy, textwrap.shorten(", ".join(names), 70)])
    tables = [head, table(used), table(rows, text_columns=(0, 3)), tau_text(results["tau_table"])]
    return "\n\n".join(tables)


def _write_hydra(results, clusters, output):
    """Writes the tau table and the pictures of a Hydra; returns the names of the files."""
    rows = results["tau_table"]
    write_csv(output / EvaluationFile.TAU_ROWS, rows)
    figures.save_tau_curve(rows, results["tau"], output / EvaluationFile.TAU_CURVE)
    figures.save_branch_use(results, clusters, output / EvaluationFile.BRANCHES)
    figures.save_confusion(results, clusters, output / EvaluationFile.CONFUSION)
    files = EvaluationFile
    return [files.TAU_ROWS, files.TAU_CURVE, files.BRANCHES, files.CONFUSION]


def _write_most_wrong(predictions, data, split, output):
    """Draws the images that were most wrong; returns a row for each, the worst first."""
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
        examples = tf.data.Dataset.from_tensor_slices(numbers).map(data.fetch(split))
        figures.save_most_wrong([image for image, _ in examples.as_numpy_iterator()], rows, path)
    return rows


if __name__ == "__main__":
    cli.run(main, Options)
