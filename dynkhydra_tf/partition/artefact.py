"""The class partition as an artefact of its own: what a run saves, and another run or a person reuses."""

import dataclasses
import json
import os
from collections import Counter
from collections.abc import Sequence
from typing import Any

from dynkhydra_tf.errors import UserError, first_few
from dynkhydra_tf.files import write_text


@dataclasses.dataclass(frozen=True)
class ClassPartition:
    """Which class belongs to which branch, and where this came from.

    Attributes:
        dataset: name of the data set.
        class_names: the M class names, in the order of the labels.
        cluster_of_class: M ints in [0, nb): the cluster, that is the branch, of each class. Every
            branch has at least one class.
        strategy: how it was made, one of `dynkhydra_tf.partition.STRATEGIES` or any text of a person's.
        extractor: name of the feature extractor, None where none was used.
        seed: seed of k-means or of the shuffle, None where none was used.
    """

    dataset: str
    class_names: tuple[str, ...]
    cluster_of_class: tuple[int, ...]
    strategy: str
    extractor: str | None = None
    seed: int | None = None

    def __post_init__(self) -> None:
        """Makes tuples of plain ints and checks them.

        Raises:
            UserError: a class name twice, not one cluster for each class, or a branch without a class.
        """
        object.__setattr__(self, "class_names", tuple(self.class_names))
        object.__setattr__(self, "cluster_of_class", tuple(int(c) for c in self.cluster_of_class))
        twice = [name for name, count in Counter(self.class_names).items() if count > 1]
        if twice:
            raise UserError(f"Class names must differ. Received twice: {first_few(twice)}.")
        if not self.class_names or len(self.class_names) != len(self.cluster_of_class):
            raise UserError(
                f"A partition gives one cluster to each class. Received {len(self.class_names)} classes and "
                f"{len(self.cluster_of_class)} clusters of classes."
            )
        if set(self.cluster_of_class) != set(range(self.num_branches)):
            raise UserError(
                "Clusters are numbered from 0 and each has at least one class. Received the numbers "
                f"{first_few(sorted(set(self.cluster_of_class)))}."
            )

    @property
    def num_classes(self) -> int:
        """M."""
        return len(self.class_names)

    @property
    def num_branches(self) -> int:
        """Number of branches, nb."""
        return max(self.cluster_of_class) + 1

    @property
    def clusters(self) -> list[list[str]]:
        """The class names of each of the nb clusters, in the order of the labels."""
        return clusters_of(self.class_names, self.cluster_of_class)

    def save(self, path: str | os.PathLike) -> None:
        """Writes the partition as JSON, one cluster of class names a line; replaces `path` whole or not."""
        head = {
            "dataset": self.dataset,
            "num_branches": self.num_branches,
            "strategy": self.strategy,
            "extractor": self.extractor,
            "seed": self.seed,
            "class_names": self.class_names,
        }
        lines = [f"  {json.dumps(key)}: {_json(value)}," for key, value in head.items()]
        clusters = ",\n".join(f"    {_json(names)}" for names in self.clusters)
        text = "\n".join(["{", *lines, f'  "clusters": [\n{clusters}\n  ]', "}", ""])
        write_text(path, text)

    @classmethod
    def load(
        cls,
        path: str | os.PathLike,
        dataset: str | None = None,
        class_names: Sequence[str] | None = None,
    ) -> "ClassPartition":
        """Reads a partition that `save` or a person wrote and checks it against the data set in use.

        A person has to give "dataset" and "clusters" only. Classes are found by name: their order in
        the clusters does not matter, the order of the clusters is that of the branches.

        Args:
            path: the JSON file.
            dataset: name of the data set in use; None: any.
            class_names: the M class names of the data set in use, in the order of the labels; None: the
                "class_names" of the file, or where it has none, its classes in alphabetical order.

        Returns:
            The partition, its classes in the order of `class_names`.

        Raises:
            UserError: no such file, not JSON, a key missing or of another kind, another data set, or
                classes that are unknown, missing or there twice.
        """
        record = _read_record(path)
        clusters = record["clusters"]
        if dataset is not None and record["dataset"] != dataset:
            raise UserError(
                f"Partition file {path} is of data set {record['dataset']!r}, the one in use is {dataset!r}: "
                "give a partition file of this data set or choose another strategy."
            )
        found = Counter(name for names in clusters for name in names)
        wanted = record.get("class_names", sorted(found)) if class_names is None else class_names
        problems = {
            "twice": [name for name, count in found.items() if count > 1],
            "missing": [name for name in wanted if name not in found],
            "not of this data set": sorted(set(found) - set(wanted)),
        }
        if any(problems.values()):
            text = "; ".join(f"{kind}: {first_few(names)}" for kind, names in problems.items() if names)
            raise UserError(f"Partition file {path} must name every class exactly once. Classes {text}.")
        cluster_of = {name: cluster for cluster, names in enumerate(clusters) for name in names}
        try:
            return cls(
                dataset=record["dataset"],
                class_names=tuple(wanted),
                cluster_of_class=tuple(cluster_of[name] for name in wanted),
                strategy=record.get("strategy", "file"),
                extractor=record.get("extractor"),
                seed=record.get("seed"),
            )
        except UserError as error:
            raise UserError(f"Partition file {path}: {error}") from error


def clusters_of(class_names: Sequence[str], cluster_of_class: Sequence[int]) -> list[list[str]]:
    """The class names of each cluster, in the order of the labels; M names and M ints in [0, nb)."""
    clusters: list[list[str]] = [[] for _ in range(max(cluster_of_class) + 1)]
    for name, cluster in zip(class_names, cluster_of_class, strict=True):
        clusters[cluster].append(name)
    return clusters


def _read_record(path: str | os.PathLike) -> dict:
    """The JSON object of a partition file, its "dataset" and "clusters" there and of the right kind."""
    try:
        with open(path, encoding="utf-8") as file:
            record = json.load(file)
    except OSError as error:
        raise UserError(
            f"Partition file {path} cannot be read ({error.strerror}): give another path."
        ) from error
    except ValueError as error:
        raise UserError(f"Partition file {path} is not JSON ({error}).") from error
    form = '{"dataset": NAME, "clusters": [[CLASS NAME, ...], ...]}'
    missing = {"dataset", "clusters"} - set(record if isinstance(record, dict) else ())
    if missing:
        raise UserError(f"Partition file {path} lacks {first_few(sorted(missing))}: it has the form {form}.")
    clusters = record["clusters"]
    well_formed = isinstance(clusters, list) and all(
        isinstance(names, list) and names and all(isinstance(name, str) for name in names)
        for names in clusters
    )
    if not clusters or not well_formed:
        raise UserError(
            f"Partition file {path}: clusters is a list with a list of class names, at least one, for each "
            f"branch. The file has the form {form}."
        )
    return record


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
