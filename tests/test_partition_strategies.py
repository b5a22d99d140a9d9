"""Tests of the partition strategies."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from dynkhydra_tf.errors import UserError
from dynkhydra_tf.partition import strategies
from dynkhydra_tf.partition.strategies import greedy_assign, optimal_assign


def total(distance, clusters):
    return distance[np.arange(len(distance)), clusters].sum()


def sizes(clusters, num_branches):
    return np.bincount(clusters, minlength=num_branches)


def is_balanced(clusters, num_classes, num_branches):
    counts = sizes(clusters, num_branches)
    floor, more = divmod(num_classes, num_branches)
    return (
        len(counts) == num_branches and sorted(counts) == [floor] * (num_branches - more) + [floor + 1] * more
    )


def random_means(num_classes, num_features=8, seed=0):
    return np.random.default_rng(seed).normal(size=(num_classes, num_features))


def test_greedy_by_hand():
    distance = np.array([[5, 1], [2, 2], [2, 6], [4, 3], [7, 8]])
    # Centre 0: classes 1 and 2 are both at 2, the lower index wins: class 1.
    # Centre 1: free are 0 (1), 2 (6), 3 (3), 4 (8): class 0.
    # Centre 0: free are 2 (2), 3 (4), 4 (7): class 2.
    # Centre 1: free are 3 (3), 4 (8): class 3.
    # Centre 0: class 4 is left.
    np.testing.assert_array_equal(greedy_assign(distance), [1, 0, 0, 1, 0])
    assert distance.tolist() == [[5, 1], [2, 2], [2, 6], [4, 3], [7, 8]], "the table is not to be changed"


def test_greedy_and_optimal_differ():
    # Centre 0 takes class 0 at 1 and leaves class 1 to centre 1 at 9: 10. The other way round: 2 + 2.
    distance = np.array([[1.0, 2.0], [2.0, 9.0]])
    np.testing.assert_array_equal(greedy_assign(distance), [0, 1])
    np.testing.assert_array_equal(optimal_assign(distance), [1, 0])


def test_optimal_chooses_which_centre_has_one_more():
    # The first centre of the greedy turns has one more: 0 + 0 + 9. With two for centre 1: 0 + 0 + 1.
    distance = np.array([[0.0, 9.0], [9.0, 0.0], [9.0, 1.0]])
    np.testing.assert_array_equal(greedy_assign(distance), [0, 1, 0])
    np.testing.assert_array_equal(optimal_assign(distance), [0, 1, 1])


def test_optimal_leaves_no_centre_short():
    # All are nearest to centre 0, which may have two of the three: class 0 moves for the least, 5.
    np.testing.assert_array_equal(optimal_assign(np.array([[0.0, 5.0], [0.0, 6.0], [0.0, 7.0]])), [1, 0, 0])


def test_ties_everywhere():
    np.testing.assert_array_equal(greedy_assign(np.ones((7, 3))), [0, 1, 2, 0, 1, 2, 0])
    assert is_balanced(optimal_assign(np.ones((7, 3))), 7, 3)


@pytest.mark.parametrize(("num_classes", "num_branches"), [(6, 3), (5, 2), (7, 3), (5, 3), (4, 4), (4, 1)])
def test_optimal_is_that_of_brute_force(num_classes, num_branches):
    for seed in range(5):
        distance = np.random.default_rng(seed).uniform(size=(num_classes, num_branches))
        least = min(
            total(distance, np.array(clusters))
            for clusters in itertools.product(range(num_branches), repeat=num_classes)
            if is_balanced(np.array(clusters), num_classes, num_branches)
        )
        assert total(distance, optimal_assign(distance)) == pytest.approx(least, abs=1e-12)


@settings(deadline=None)
@given(
    st.integers(1, 12)
    .flatmap(lambda m: st.tuples(st.just(m), st.integers(1, m)))
    .flatmap(lambda shape: npst.arrays(np.float64, shape, elements=st.floats(0, 1e6)))
)
def test_assignments_are_balanced_and_the_optimal_is_no_worse(distance):
    greedy, optimal = greedy_assign(distance), optimal_assign(distance)
    assert is_balanced(greedy, *distance.shape)
    assert is_balanced(optimal, *distance.shape)
    assert total(distance, optimal) <= total(distance, greedy) * (1 + 1e-12)


@pytest.mark.parametrize("name", ["cluster_balance", "cluster_optimal"])
@pytest.mark.parametrize(
    ("num_classes", "num_branches"), [(101, 20), (100, 20), (10, 3), (5, 5), (5, 1), (1, 1)]
)
def test_clusters_are_balanced(name, num_classes, num_branches):
    clusters = getattr(strategies, name)(random_means(num_classes), num_branches, seed=0)
    assert clusters.shape == (num_classes,)
    assert clusters.dtype == np.int64
    assert is_balanced(clusters, num_classes, num_branches)


@pytest.mark.parametrize("name", ["cluster_balance", "cluster_optimal"])
def test_clusters_hold_what_lies_together(name):
    # Three pairs on a line, far from each other.
    means = np.array([[0.0], [100.0], [1.0], [51.0], [101.0], [50.0]])
    clusters = getattr(strategies, name)(means, 3, seed=0)
    assert clusters[0] == clusters[2]
    assert clusters[1] == clusters[4]
    assert clusters[3] == clusters[5]
    assert len(set(clusters)) == 3


def test_clusters_repeat_with_the_seed():
    means = random_means(40)
    first, again = (strategies.cluster_balance(means, 7, seed=3) for _ in range(2))
    np.testing.assert_array_equal(first, again)


def test_centre_distance_by_hand():
    # Two centres at 0.5 and 10 on a line.
    distance = strategies.centre_distance(np.array([[0.0], [1.0], [10.0]]), 2, seed=0)
    np.testing.assert_allclose(np.sort(distance, axis=1), [[0.5, 10], [0.5, 9], [0, 9.5]])


@pytest.mark.parametrize(("num_classes", "num_branches"), [(101, 20), (10, 3), (5, 5), (5, 1)])
def test_random_is_balanced_and_seeded(num_classes, num_branches):
    clusters = strategies.random_balanced(num_classes, num_branches, seed=0)
    assert is_balanced(clusters, num_classes, num_branches)
    np.testing.assert_array_equal(clusters, strategies.random_balanced(num_classes, num_branches, seed=0))
    if num_branches not in (1, num_classes):
        assert (clusters != strategies.random_balanced(num_classes, num_branches, seed=1)).any()


def test_semantic_takes_the_coarse_labels_of_any_sizes():
    clusters = strategies.semantic(np.array([7, 2, 2, 9, 2]), num_branches=3)
    np.testing.assert_array_equal(clusters, [1, 0, 0, 2, 0])


def test_semantic_needs_as_many_branches_as_coarse_labels():
    with pytest.raises(UserError, match="3 coarse labels: set num_branches=3"):
        strategies.semantic([7, 2, 2, 9], num_branches=2)


@pytest.mark.parametrize("num_branches", [0, -1, 6])
@pytest.mark.parametrize(
    "make",
    [
        lambda nb: strategies.cluster_balance(random_means(5), nb, seed=0),
        lambda nb: strategies.cluster_optimal(random_means(5), nb, seed=0),
        lambda nb: strategies.random_balanced(5, nb, seed=0),
    ],
)
def test_impossible_numbers_of_branches(make, num_branches):
    with pytest.raises(UserError, match=f"num_branches={num_branches} .* from 1 to 5"):
        make(num_branches)
