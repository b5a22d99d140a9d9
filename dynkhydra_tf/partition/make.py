"""`make_partition`: a data set and a strategy in, a `ClassPartition` out."""

import os
from typing import Any

from dynkhydra_tf.errors import UserError
from dynkhydra_tf.partition import strategies
from dynkhydra_tf.partition.artefact import ClassPartition
from dynkhydra_tf.partition.class_means import class_means
from dynkhydra_tf.partition.extractors import IMAGENET, build_extractor
from dynkhydra_tf.workers import ALONE, Workers

STRATEGIES = ("cluster_balance", "cluster_optimal", "random", "semantic", "file")


def make_partition(
    data: Any,
    strategy: str,
    num_branches: int,
    seed: int,
    feature_extractor: str = "EfficientNetB7",
    feature_weights: str | os.PathLike = IMAGENET,
    partition_file: str | os.PathLike | None = None,
    cache_dir: str | os.PathLike | None = None,
    images_per_class: int | None = None,
    progress: bool = True,
    workers: Workers = ALONE,
) -> ClassPartition:
    """Divides the classes of a data set among the branches (paper: "Class partitioning", Algorithm 2).

    All arguments are checked before the images are read. Where a network is built for the features,
    Keras draws its weights from Python's random state: set the seed of the training after this call.

    Args:
        data: a `dynkhydra_tf.data.ImageData`, or what has its `name`, `class_names`, `sizes`,
            `examples` and, for strategy "semantic", `coarse_of_class`.
        strategy: one of `STRATEGIES`. "cluster_balance" is the paper's; "cluster_optimal" has the same
            centres and sizes, and the least total distance; "random" is balanced too; "semantic" takes
            the data set's own coarse labels, whatever their sizes; "file" reads `partition_file`.
        num_branches: nb, from 1 to the number of classes; for "semantic" and "file" it has to agree
            with what the data set or the file has.
        seed: seed of k-means or of the shuffle.
        feature_extractor: for the cluster strategies, see `build_extractor`.
        feature_weights: for the cluster strategies, see `build_extractor`.
        partition_file: for "file" only: a JSON file, see `ClassPartition.load`.
        cache_dir: for the cluster strategies, where class means are kept, see `class_means`.
        images_per_class: for the cluster strategies, see `class_means`.
        progress: whether to print a progress bar where class means are computed.
        workers: for the cluster strategies, see `class_means`.

    Returns:
        The partition. For "file" its strategy, extractor and seed are those that the file tells.

    Raises:
        UserError: any argument that is not as told here, or what the functions named here raise.
    """
    if strategy not in STRATEGIES:
        raise UserError(f"Unknown partition strategy {strategy!r}. Choose one of {', '.join(STRATEGIES)}.")
    strategies.check_num_branches(num_branches, len(data.class_names))
    if (strategy == "file") != bool(partition_file):
        raise UserError(
            f"Partition strategy {strategy!r} with partition_file={partition_file!r}: a partition file goes "
            "with strategy 'file', and strategy 'file' needs one."
        )
    if strategy == "file":
        return _from_file(data, partition_file, num_branches)
    extractor_name = None
    if strategy == "random":
        clusters = strategies.random_balanced(len(data.class_names), num_branches, seed)
    elif strategy == "semantic":
        clusters, seed = strategies.semantic(data.coarse_of_class, num_branches), None
    else:
        extractor = build_extractor(feature_extractor, feature_weights)
        means = class_means(data, extractor, cache_dir, images_per_class, progress=progress, workers=workers)
        clusters = getattr(strategies, strategy)(means, num_branches, seed)
        extractor_name = extractor.name
    return ClassPartition(
        data.name, data.class_names, tuple(map(int, clusters)), strategy, extractor_name, seed
    )


def check_source(
    strategy: str,
    feature_extractor: str,
    feature_weights: str | os.PathLike = IMAGENET,
    partition_file: str | os.PathLike | None = None,
) -> None:
    """Checks what a strategy is to be made from as far as this needs no data set.

    Raises:
        UserError: an unknown feature extractor, or a file that is not there or not what it should be.
    """
    if strategy == "file":
        ClassPartition.load(partition_file)
    elif strategy.startswith("cluster_"):
        build_extractor(feature_extractor, feature_weights)


def _from_file(data, partition_file, num_branches):
    partition = ClassPartition.load(partition_file, data.name, data.class_names)
    if partition.num_branches != num_branches:
        raise UserError(
            f"Partition file {partition_file} has {partition.num_branches} clusters, not "
            f"num_branches={num_branches}: set num_branches={partition.num_branches}."
        )
    return partition
