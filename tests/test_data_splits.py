from collections import Counter

import numpy as np
import pytest

from dynkhydra_tf.data.splits import draw_stratified


def drawn_of(labels, fraction, **arguments):
    """How many of each class are drawn."""
    return Counter(np.asarray(labels)[draw_stratified(labels, fraction, **arguments)].tolist())


def test_the_same_part_of_each_class_is_drawn():
    labels = np.array([0] * 10 + [1] * 20 + [2] * 5)[np.random.default_rng(0).permutation(35)]
    assert drawn_of(labels, 0.2) == {0: 2, 1: 4, 2: 1}
    # Fixed for good: the draw of 2 in 10 with numpy's RandomState(0), whose permutation starts 2 8.
    assert np.flatnonzero(draw_stratified(np.zeros(10, int), 0.2)).tolist() == [2, 8]


def test_the_whole_number_is_drawn_from_where_rounding_took_the_most():
    # Shares 1.5, 1.8, 0.9, 1.2: rounded down 1 1 0 1 = 3 of round(0.3 * 18) = 5; losses .5 .8 .9 .2.
    labels = [0] * 5 + [1] * 6 + [2] * 3 + [3] * 4
    assert drawn_of(labels, 0.3) == {0: 1, 1: 2, 2: 1, 3: 1}


@pytest.mark.parametrize("fraction", [0.1, 0.5, 0.99])
def test_a_class_keeps_an_image(fraction):
    labels = [0] * 1 + [1] * 2 + [2] * 50
    drawn = drawn_of(labels, fraction)
    assert drawn[0] == 0 and drawn[1] <= 1 and drawn[2] <= 49
    # 53 images: round(5.3), round(26.5), and of round(52.5) those that leave each class one.
    assert sum(drawn.values()) == {0.1: 5, 0.5: 26, 0.99: 50}[fraction]


def test_an_order_says_who_is_drawn_and_a_new_image_at_its_end_changes_nobody():
    labels = np.array([0, 1, 0, 1, 0, 1, 0, 1])
    drawn = draw_stratified(labels, 0.25, order=np.array([7, 6, 5, 4, 3, 2, 1, 0]))
    assert np.flatnonzero(drawn).tolist() == [6, 7]
    longer = draw_stratified([*labels, 0], 0.25, order=np.array([7, 6, 5, 4, 3, 2, 1, 0, 8]))
    assert (longer[:8] == drawn).all() and not longer[8]


def test_cub_200_has_exactly_9000_training_images():
    # As many classes and images as CUB-200-2011 has, of 41 to 60 images a class.
    counts = np.full(200, 59) - np.r_[12 + np.zeros(1, int), np.zeros(199, int)]
    assert counts.sum() == 11788
    drawn = draw_stratified(np.arange(200).repeat(counts), 2788 / 11788)
    assert (~drawn).sum() == 9000
