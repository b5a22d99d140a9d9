"""What a trained network does on images: accuracy, gating, compute; one pass for any number of thresholds.

Axis letters: B batch, T thresholds, N branches (nb), M classes; n images in all.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from dynkhydra_tf.costs import inference_flops
from dynkhydra_tf.distribution import each_batch
from dynkhydra_tf.gating import exits, select_branches
from dynkhydra_tf.hydra import Hydra
from dynkhydra_tf.plain import Plain
from dynkhydra_tf.predictions import Predictions
from dynkhydra_tf.tables import table


@dataclasses.dataclass(frozen=True)
class Exits:
    """What the part of a model by which images can exit says of each, and the rest of the model without it.

    Attributes:
        part: "stem", the classifier on its map, or "trunk", the shared one.
        early: its answers; their confidence is what `Hydra.exit_confidence` is compared with.
        predicted, top5, active: (T, n), as of `Evaluation`, had no image exited.
    """

    part: str
    early: Predictions
    predicted: np.ndarray
    top5: np.ndarray
    active: np.ndarray

    def at(self, confidence: float) -> np.ndarray:
        """Returns (n,) bool, the images that it answers alone."""
        return exits(self.early.confidence[:, np.newaxis], confidence).numpy()

    def served(self, place: int, confidence: float) -> tuple[np.ndarray, np.ndarray]:
        """Returns active and predicted, (n,) int each, at a confidence; `place` is that of the tau."""
        alone = self.at(confidence)
        active = np.where(alone, 0, self.active[place])
        return active, np.where(alone, self.early.predicted, self.predicted[place])


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
        gate_probability: (n,) float, the largest gate probability, in 0..1.
        exit_confidence: the model's.
        exits: of a model with an exit; None of others.
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
    gate_probability: np.ndarray
    exit_confidence: float = 1.0
    exits: Exits | None = None

    @property
    def own_branch(self) -> np.ndarray:
        """(n,) int, the branch whose partition holds each image's class."""
        return self.cluster_of_class[self.labels]

    @property
    def top1(self) -> np.ndarray:
        """(T, n) bool, whether the class was first."""
        return self.predicted == self.labels

    @property
    def used(self) -> np.ndarray:
        """(T, N) int, images that used each branch."""
        return self.used_in.sum(axis=1)

    def at(self, tau: float) -> dict[str, Any]:
        """Returns the results at one of `taus` as a dict of plain numbers and lists.

        Keys: tau, top1, top5, gater_accuracy (in 0..1), active_branches (lambda),
        images_by_active_branches (index 0: one branch), branch_use (share of the images that used
        each branch), cluster_accuracy (top-1 over the images of each branch's partition; None where
        the split has none), confusion (see `confusion_at`). With an exit also exit_confidence, exits
        (share of the images), images_that_exit, and stem_top1 or trunk_top1, of that part alone.
        """
        t = self._place(tau)
        clusters = range(self.used.shape[1])
        of_cluster = [self.top1[t][self.own_branch == cluster] for cluster in clusters]
        early = {}
        if self.exits:
            early = {
                "exit_confidence": self.exit_confidence,
                "exits": self.exit_share,
                "images_that_exit": int((self.active[t] == 0).sum()),
                f"{self.exits.part}_top1": float(self.exits.early.top1.mean()),
            }
        return {
            "tau": float(tau),
            "top1": float(self.top1[t].mean()),
            "top5": float(self.top5[t].mean()),
            **early,
            "gater_accuracy": float((self.gate_choice == self.own_branch).mean()),
            "active_branches": float(self.active[t].mean()),
            "images_by_active_branches": np.bincount(self.active[t])[1:].tolist(),
            "branch_use": (self.used[t] / len(self.labels)).tolist(),
            "cluster_accuracy": [float(hits.mean()) if hits.size else None for hits in of_cluster],
            "confusion": self.confusion_at(tau),
        }

    def confusion_at(self, tau: float) -> dict[str, list]:
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

    def predictions_at(self, tau: float) -> Predictions:
        """Returns the `Predictions` at one of `taus`."""
        t = self._place(tau)
        return Predictions(self.labels, self.predicted[t], self.top5[t], self.confidence[t], self.loss[t])

    def _place(self, tau):
        return int(np.flatnonzero(self.taus == tau)[0])

    def tau_table(
        self, flops: Mapping[str, int], exit_confidence: float | None = None
    ) -> list[dict[str, float]]:
        """Returns a dict (tau, active_branches, top1, top5, flops) for each tau.

        Args:
            flops: FLOPs by part, from `hydra_costs`.
            exit_confidence: of a model with an exit; None: the model's.
        """
        if exit_confidence is not None:
            return [
                {"tau": float(tau), **row}
                for tau in self.taus
                for row in self.exit_table(flops, tau, [exit_confidence])
                if row["exit_confidence"] == exit_confidence
            ]
        return [
            {
                "tau": float(tau),
                "active_branches": float(self.active[t].mean()),
                "top1": float(self.top1[t].mean()),
                "top5": float(self.top5[t].mean()),
                "flops": inference_flops(flops, float(self.active[t].mean()), self.exit_share),
            }
            for t, tau in enumerate(self.taus)
        ]

    @property
    def exit_share(self) -> float:
        """The share of the images that exit."""
        return float(self.exits.at(self.exit_confidence).mean()) if self.exits else 0.0

    def exit_table(
        self, flops: Mapping[str, int], tau: float, confidences: Sequence[float]
    ) -> list[dict[str, float]]:
        """Returns a dict (exit_confidence, exits, active_branches, top1, top5, flops) for each confidence.

        Args:
            flops: FLOPs by part, from `hydra_costs`.
            tau: one of `taus`.
            confidences: floats in (0, 1]; they and the model's own have a row each, in rising order.

        Returns:
            The rows; [] where none can exit.
        """
        if self.exits is None:
            return []
        t, rows = self._place(tau), []
        for confidence in sorted({self.exit_confidence, *map(float, confidences)}):
            alone = self.exits.at(confidence)
            top1, top5, active = (
                float(np.where(alone, early, of_all).mean())
                for early, of_all in (
                    (self.exits.early.top1, self.exits.predicted[t] == self.labels),
                    (self.exits.early.top5, self.exits.top5[t]),
                    (0, self.exits.active[t]),
                )
            )
            share = float(alone.mean())
            rows.append(
                {
                    "exit_confidence": confidence,
                    "exits": share,
                    "active_branches": active,
                    "top1": top1,
                    "top5": top5,
                    "flops": inference_flops(flops, active, share),
                }
            )
        return rows


def evaluate(model: Hydra, batches: tf.data.Dataset, taus: Sequence[float] = ()) -> Evaluation:
    """Evaluates a `Hydra` at its own tau and others, in one pass over the images.

    A lower tau selects all that a higher one does, so each image runs what the lowest needs, and each
    tau combines its part. No image exits in the pass: what the early classifier says is known of all, and so
    the results at any exit confidence are.

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
        labels = tf.cast(labels, tf.int32)
        forward = model.forward(images, taus[0])
        own_branch = tf.one_hot(tf.gather(model.cluster_of_class, labels), model.num_branches)  # (B, N)
        early = _ranked(forward.early_logits, labels) if model.can_exit else ()
        ranks, selections = [], []
        for tau in taus:
            selected = select_branches(forward.gate, model.top_k, tau)
            logits = model.logits_of(forward.routes, forward.gate, selected, forward.trunk)
            ranks.append(_ranked(logits, labels))
            selections.append(selected)
        selections = tf.cast(tf.stack(selections), tf.float32)  # (T, B, N)
        active = tf.cast(tf.reduce_sum(selections, axis=2), tf.int32)
        if model.can_exit:
            goes_on = ~exits(early[2][:, tf.newaxis], model.exit_confidence)
            own_branch *= tf.cast(goes_on, tf.float32)[:, tf.newaxis]
        return (
            labels,
            tf.argmax(forward.gate, axis=1),
            tf.cast(tf.einsum("bi,tbj->tij", own_branch, selections), tf.int32),
            tf.reduce_max(forward.gate, axis=1),
            active,
            *map(tf.stack, zip(*ranks, strict=True)),
            *early,
        )

    results = [[value.numpy() for value in found] for found in each_batch(model, step, batches)]
    labels, gate_choice, used_in, gate, *others = zip(*results, strict=True)
    active, *ranks = (np.concatenate(values, axis=-1) for values in others)
    predicted, top5, confidence, loss, *early = ranks
    evaluation = Evaluation(
        taus=np.array(taus),
        predicted=predicted,
        top5=top5,
        active=active,
        labels=np.concatenate(labels),
        gate_choice=np.concatenate(gate_choice),
        used_in=np.sum(used_in, axis=0),
        cluster_of_class=np.array(model.cluster_of_class),
        confidence=confidence,
        loss=loss,
        gate_probability=np.concatenate(gate),
    )
    if not model.can_exit:
        return evaluation
    return _with_exits(evaluation, "stem" if model.exit else "trunk", early, model.exit_confidence)


def _with_exits(evaluation, part, early, confidence):
    """The evaluation of a model with an exit from what it said without, and what the early part did."""
    early = Predictions(evaluation.labels, *early)
    found = Exits(part, early, evaluation.predicted, evaluation.top5, evaluation.active)
    alone = found.at(confidence)
    answers = {
        name: np.where(alone, getattr(early, name), getattr(evaluation, name))
        for name in ("predicted", "top5", "confidence", "loss")
    }
    active = np.where(alone, 0, evaluation.active)
    return dataclasses.replace(evaluation, **answers, active=active, exit_confidence=confidence, exits=found)


def evaluate_plain(model: Plain, batches: tf.data.Dataset) -> dict[str, float]:
    """Evaluates a `Plain` on batches as in `evaluate`.

    Returns:
        {"top1", "top5"}, in 0..1.
    """
    return accuracies(predict_plain(model, batches))


def predict_plain(model: Plain, batches: tf.data.Dataset) -> Predictions:
    """Returns the `Predictions` of a `Plain` on batches as in `evaluate`."""

    @tf.function(reduce_retracing=True)
    def step(images, labels):
        labels = tf.cast(labels, tf.int32)
        forward, _ = model.run(images, {}, training=False)  # takes maps, too
        return labels, *_ranked(forward.logits, labels)

    results = [[value.numpy() for value in found] for found in each_batch(model, step, batches)]
    return Predictions(*map(np.concatenate, zip(*results, strict=True)))


def accuracies(predictions: Predictions) -> dict[str, float]:
    """Returns top1 and top5."""
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


def exit_text(rows: Sequence[Mapping[str, float]]) -> str:
    """Returns the rows of `Evaluation.exit_table` as text in aligned columns."""
    return _rows_text(rows, {"exit_confidence": ("exit confidence", "g"), "exits": ("exits", ".1%")})


def tau_text(tau_rows: Sequence[Mapping[str, float]]) -> str:
    """Returns the rows of `Evaluation.tau_table` as text in aligned columns."""
    return _rows_text(tau_rows, {"tau": ("tau", "g")})


def _rows_text(rows, leading):
    """Rows as text: columns of their own, {key: (header, format)}, then what all such tables have."""
    columns = leading | {"active_branches": ("lambda", ".2f")}
    columns |= {"top1": ("top-1", ".2%"), "top5": ("top-5", ".2%")}
    header = [*(head for head, _ in columns.values()), "MFLOPs"]
    cells = [
        [*(format(row[key], form) for key, (_, form) in columns.items()), f"{row['flops'] / 1e6:.1f}"]
        for row in rows
    ]
    return table([header, *cells])
