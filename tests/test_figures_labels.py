import numpy as np

from dynkhydra_tf.figures.labels import spread


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
