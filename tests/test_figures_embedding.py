import warnings

import numpy as np
import pytest
from matplotlib.text import Text

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


def test_the_picture_is_full_and_names_stand_apart(drawn, tmp_path):
    rng = np.random.default_rng(0)
    centres = rng.uniform(-50, 50, (120, 2))
    labels = np.repeat(np.arange(120), 3)
    points = centres[labels] + rng.normal(size=(360, 2))
    names = [f"Rather_long name {number}" for number in range(120)]
    partition = ClassPartition("birds", names, np.arange(120) // 10, "random")
    means = means_of_classes(points, labels, 120)
    embedding.save_embedding(points, labels, means, partition, tmp_path / "picture.png")
    (axes,) = drawn[0].axes
    drawn[0].draw_without_rendering()
    boxes = [Text.get_window_extent(text) for text in axes.texts]
    assert len(boxes) == 120
    shrunk = [box.padded(-0.5) for box in boxes]
    assert not any(box.overlaps(other) for i, box in enumerate(shrunk) for other in shrunk[:i])
    room = axes.get_window_extent()
    assert all(room.x0 - 1 <= box.x0 and box.x1 <= room.x1 + 1 for box in boxes)
    # Points reach from edge to edge, and the axes take most of the picture.
    offsets = np.concatenate([axes.transData.transform(c.get_offsets()) for c in axes.collections])
    assert (np.ptp(offsets, axis=0) > 0.85 * np.array([room.width, room.height])).all()
    assert room.width * room.height > 0.75 * drawn[0].bbox.width * drawn[0].bbox.height


def test_three_dimensions_are_seen_where_they_are_widest():
    points = np.array([[0, 0, -9], [0, 0, 9], [0, 4, 0], [0, -4, 0], [1, 0, 0], [-1, 0, 0]], float)
    seen, means, near = embedding._seen(points, points[:1])
    np.testing.assert_allclose(np.ptp(seen, axis=0), [18, 8])
    np.testing.assert_allclose(means[0], seen[0])
    np.testing.assert_allclose(np.sort(near), [0, 0.5, 0.5, 0.5, 0.5, 1])
