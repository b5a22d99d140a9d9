"""What a network said of each image of a split, class by class: accuracies, mistakes, the worst of them.

Axis letters: M classes; n images in all.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from dynkhydra_tf.tables import number, table

CLASS_KEYS = ("class", "cluster", "images", "top1", "top5", "taken_for", "taken_for_share")
PAIR_KEYS = ("class", "taken_for", "images", "share", "same_cluster")


@dataclasses.dataclass(frozen=True)
class Predictions:
    """What a network said of each image of a split.

    Attributes:
        labels: (n,) int.
        predicted: (n,) int, the first class.
        top5: (n,) bool, whether the class was among the first min(5, M).
        confidence: (n,) float, the probability of the first class, in 0..1.
        loss: (n,) float, the cross-entropy, in nats.
    """

    labels: np.ndarray
    predicted: np.ndarray
    top5: np.ndarray
    confidence: np.ndarray
    loss: np.ndarray

    @property
    def top1(self) -> np.ndarray:
        """(n,) bool, whether the class was first."""
        return self.predicted == self.labels

    def counts(self, num_classes: int) -> np.ndarray:
        """Returns (M, M) int: how many images of each class (first axis) were taken for each (second)."""
        pairs = self.labels * num_classes + self.predicted
        return np.bincount(pairs, minlength=num_classes**2).reshape(num_classes, num_classes)

    def class_rows(
        self, class_names: Sequence[str], cluster_of_class: Sequence[int] | None = None
    ) -> list[dict]:
        """Returns a dict for each class, in the order of the labels.

        Args:
            class_names: M names.
            cluster_of_class: M ints; None for a plain network.

        Returns:
            Dicts of `CLASS_KEYS`: top1 and top5 in 0..1; taken_for, the class that its images are most often
            taken for by mistake, and taken_for_share, the share of its images; None where there is nothing
            to tell.
        """
        num_classes = len(class_names)
        counts = self.counts(num_classes)
        images = counts.sum(axis=1)
        top5 = np.bincount(self.labels, self.top5, num_classes)
        mistakes = counts * (1 - np.eye(num_classes, dtype=int))
        rows = []
        for label, count in enumerate(images.tolist()):
            other = int(mistakes[label].argmax())
            wrong = int(mistakes[label, other])
            values = (
                class_names[label],
                None if cluster_of_class is None else int(cluster_of_class[label]),
                count,
                int(counts[label, label]) / count if count else None,
                float(top5[label]) / count if count else None,
                class_names[other] if wrong else None,
                wrong / count if wrong else None,
            )
            rows.append(dict(zip(CLASS_KEYS, values, strict=True)))
        return rows

    def pair_rows(
        self, class_names: Sequence[str], cluster_of_class: Sequence[int] | None = None
    ) -> list[dict]:
        """Returns a dict for each two classes of which one was taken for the other, most images first.

        Args:
            class_names: M names.
            cluster_of_class: M ints; None for a plain network.

        Returns:
            Dicts of `PAIR_KEYS`: images of the class that were taken for the other, their share of the class,
            and whether one branch has both (None for a plain network).
        """
        counts = self.counts(len(class_names))
        images = counts.sum(axis=1)
        pairs = np.argwhere(counts * (1 - np.eye(len(class_names), dtype=int)))
        order = np.argsort(-counts[tuple(pairs.T)], kind="stable")
        rows = []
        for label, other in pairs[order].tolist():
            count = int(counts[label, other])
            same = None if cluster_of_class is None else cluster_of_class[label] == cluster_of_class[other]
            values = (class_names[label], class_names[other], count, count / int(images[label]), same)
            rows.append(dict(zip(PAIR_KEYS, values, strict=True)))
        return rows

    def most_wrong(self, count: int) -> np.ndarray:
        """Returns the numbers of the images of largest loss among those that were taken for another class.

        Args:
            count: at most so many.

        Returns:
            (at most count,) int, the largest loss first.
        """
        wrong = np.flatnonzero(~self.top1)
        return wrong[np.argsort(-self.loss[wrong], kind="stable")][:count]


# === As tables ===


def worst_classes(rows: Sequence[dict], most: int) -> list[dict]:
    """Returns at most so many rows of `Predictions.class_rows`: those of lowest top-1, the lowest first."""
    return sorted((row for row in rows if row["images"]), key=lambda row: row["top1"])[:most]


def class_table(rows: Sequence[dict]) -> list[list[str]]:
    """Returns rows of `Predictions.class_rows` as a table, its head first."""
    cells = [
        [
            _short(row["class"]),
            str(row["images"]),
            number(row["top1"], ".1%"),
            _short(row["taken_for"] or "-"),
            number(row["taken_for_share"], ".1%"),
        ]
        for row in rows
    ]
    return [["worst classes", "images", "top-1", "most often taken for", "share"], *cells]


def pair_table(rows: Sequence[dict]) -> list[list[str]]:
    """Returns rows of `Predictions.pair_rows` as a table, its head first."""
    where = {None: "-", True: "the same", False: "another"}
    cells = [
        [
            _short(row["class"]),
            _short(row["taken_for"]),
            str(row["images"]),
            f"{row['share']:.1%}",
            where[row["same_cluster"]],
        ]
        for row in rows
    ]
    return [["worst pairs", "taken for", "images", "share", "branch"], *cells]


def _short(name):
    return name if len(name) <= 40 else f"{name[:37]}..."


def mistakes_text(class_rows: Sequence[dict], pair_rows: Sequence[dict]) -> str:
    """Returns the rows of both tables as text in aligned columns."""
    if not pair_rows:
        return "No image was taken for another class."
    classes = table(class_table(class_rows), text_columns=(0, 3))
    return f"{classes}\n\n{table(pair_table(pair_rows), text_columns=(0, 1, 4))}"
