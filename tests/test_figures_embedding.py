import warnings

import numpy as np
import pytest

from dynkhydra_tf.analysis.embedding import means_of_classes
from dynkhydra_tf.figures import embedding
from dynkhydra_tf.partition import ClassPartition


def test_twenty_clusters_have_twenty_signs():
    signs = [embedding._sign(cluster) for cluster in range(100)]
    assert len(set(signs)) == 100
    assert len({color for color, _ in signs[:20]}) == 20


@pytest.mark.parametrize("dimensions", [2, 3])
def test_any_class_names(tmp_path, dimensions):
    names = ("$a$", "two $ and $", "x_1^{", "шест", "\\frac")
    partition = ClassPartition("$et_", names, (0, 0, 1, 1, 2), "random")
    points = np.random.default_rng(0).normal(size=(40, dimensions))
    labels = np.arange(40) % 4  # no image of the last one
    with warnings.catch_warnings(action="error"):
        means = means_of_classes(points, labels, 5)
        embedding.save_embedding(points, labels, means, partition, tmp_path / "picture.png")
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")
