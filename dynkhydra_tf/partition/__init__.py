"""Class partitioning: which classes each branch specialises in (paper: "Class partitioning")."""

from dynkhydra_tf.partition.artefact import ClassPartition, clusters_of
from dynkhydra_tf.partition.extractors import Extractor, build_extractor
from dynkhydra_tf.partition.make import STRATEGIES, check_source, make_partition

__all__ = [
    "STRATEGIES",
    "ClassPartition",
    "Extractor",
    "build_extractor",
    "check_source",
    "clusters_of",
    "make_partition",
]
