import numpy as np
import pytest
from matplotlib.figure import Figure

from dynkhydra_tf.figures.labels import label_points, spread
from tests.conftest import overlapping


def overlaps(centres, sizes):
    missing = (sizes[:, None] + sizes) / 2 - np.abs(centres[:, None] - centres)
    return int(((missing > 1e-6).all(axis=-1).sum() - len(sizes)) // 2)


def test_boxes_are_spread():
    rng = np.random.default_rng(0)
    centres, sizes = rng.uniform(0, 100, (60, 2)), rng.uniform((8, 4), (16, 5), (60, 2))
    centres[1] = centres[0]  # on top of each other
    assert overlaps(centres, sizes) > 10
    assert overlaps(spread(centres, sizes), sizes) == 0
    apart = np.array([[0.0, 0.0], [20.0, 0.0]])
    np.testing.assert_array_equal(spread(apart, np.full((2, 2), 10.0)), apart)


def test_two_boxes_by_hand():
    # Overlap of 2 across and 8 down: apart across, half of it each and a twentieth more.
    centres = spread([[0.0, 0.0], [8.0, 2.0]], [[10.0, 10.0], [10.0, 10.0]])
    np.testing.assert_allclose(centres, [[-1.05, 0], [9.05, 2]])


def test_boxes_stay_within():
    centres = spread([[0.0, 0.0], [8.0, 0.0]], np.full((2, 2), 10.0), np.array([[0.0, -5.0], [25.0, 5.0]]))
    assert (centres[:, 0] >= 5).all() and (centres[:, 0] <= 20).all() and np.ptp(centres[:, 0]) > 9.999


# === Labels of points ===


@pytest.fixture
def axes():
    """Axes of 0..10 both ways, in which a unit is 50 pixels."""
    axes = Figure(figsize=(5, 5), dpi=100).add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, 10), ylim=(0, 10))
    return axes


def labels(axes):
    return [note.get_text() for note in axes.texts]


def test_points_in_one_place_share_a_label_and_ends_come_first(axes):
    line = [(1, 1, "a"), (3, 3, "b"), (3, 3.01, "c"), (5, 5, None), (8, 8, "x"), (8, 8, "y"), (8, 8, "z")]
    label_points(axes, [line])
    assert labels(axes) == ["a", "x ... z", "b, c"]


def test_a_label_that_stands_there_is_not_repeated_by_another_line(axes):
    label_points(axes, [[(2, 2, "d=1"), (5, 5, "d=2")], [(2.1, 2, "d=1"), (8, 5, "d=2")]])
    assert labels(axes) == ["d=1", "d=2", "d=2"]


def test_where_there_is_no_free_place_nothing_is_written(axes):
    # A square of lines around the point, a fifth of a unit (10 pixels) away.
    square = [(4.8, 4.8, None), (5.2, 4.8, None), (5.2, 5.2, None), (4.8, 5.2, None), (4.8, 4.8, None)]
    label_points(axes, [square, [(5, 5, "long text")]])
    assert labels(axes) == []


def test_labels_keep_off_each_other_the_lines_the_legend_and_the_edge(axes):
    rng = np.random.default_rng(0)
    for _ in range(3):
        axes.plot(*rng.uniform(0, 10, (2, 12)), label="a line")
    axes.legend()
    lines = [[(*point, f"{number}") for number, point in enumerate(line.get_xydata())] for line in axes.lines]
    label_points(axes, lines)
    boxes = [note.get_window_extent() for note in axes.texts]
    assert len(boxes) > 5 and not overlapping(axes.texts)
    drawn = np.concatenate([axes.transData.transform(line.get_xydata()) for line in axes.lines])
    room, legend = axes.get_window_extent(), axes.get_legend().get_window_extent()
    for box in boxes:
        assert not box.count_contains(drawn) and not box.overlaps(legend)
        assert room.x0 <= box.x0 and box.x1 <= room.x1 and room.y0 <= box.y0 and box.y1 <= room.y1
