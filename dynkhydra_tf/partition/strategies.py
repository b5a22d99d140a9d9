"""Which class belongs to which branch: pure numpy functions (paper: "Class partitioning", Algorithm 2).

Each strategy gives `cluster_of_class`, an (M,) int64 array with values in [0, N).
Axis letters: M classes, N = nb branches = clusters, F features.

All but `semantic` are balanced: every cluster has floor(M/N) or floor(M/N) + 1 classes. The paper only
has data sets where N divides M; Food-101 (101 classes on 20 branches) needs the rest.

Measured on CIFAR-100, EfficientNet-Lite0 features of all 50,000 training images, N = 20, seed 0: the
total distance of the classes to their centres is 421.8 for the greedy assignment of the paper, 413.1
for the optimal one, and 354.7 where sizes are left free. Fewer images make noisier means and longer
distances: with 50 of each class, sizes left free, it is 381.1.
"""

import numpy as np

from dynkhydra_tf.errors import UserError


def check_num_branches(num_branches: int, num_classes: int) -> None:
    """Raises `UserError` unless 1 <= num_branches <= num_classes: every branch needs a class."""
    if not 1 <= num_branches <= num_classes:
        raise UserError(
            f"num_branches={num_branches} is not possible with {num_classes} classes: every branch needs "
            f"at least one class. Choose a number from 1 to {num_classes}."
        )


def centre_distance(class_means: np.ndarray, num_branches: int, seed: int) -> np.ndarray:
    """The distance table of Algorithm 2: Euclidean, from every class to every k-means centre.

    Args:
        class_means: (M, F) float, the mean features of each class (R in the paper).
        num_branches: number of centres, N.
        seed: seed of k-means (10 starts, the best kept).

    Returns:
        (M, N) float64, in the units of the features.

    Raises:
        UserError: unless 1 <= num_branches <= M.
    """
    from scipy.spatial.distance import cdist  # only where classes are clustered: it takes long to import
    from sklearn.cluster import KMeans

    class_means = np.asarray(class_means, dtype=np.float64)
    check_num_branches(num_branches, len(class_means))
    kmeans = KMeans(num_branches, n_init=10, random_state=seed).fit(class_means)
    return cdist(class_means, kmeans.cluster_centers_)


def greedy_assign(distance: np.ndarray) -> np.ndarray:
    """Algorithm 2 from the distance table on: the centres take turns, each takes its nearest free class.

    Among classes equally near, the one of the lowest index is taken. In the last round the turns end
    when no class is left, so that the first M mod N centres have one class more.

    Args:
        distance: (M, N) float, N <= M.

    Returns:
        (M,) int64, the cluster of each class.
    """
    num_classes, num_branches = distance.shape
    remaining = np.array(distance, dtype=np.float64)
    cluster_of_class = np.empty(num_classes, dtype=np.int64)
    for turn in range(num_classes):
        centre = turn % num_branches
        nearest = np.argmin(remaining[:, centre])
        cluster_of_class[nearest] = centre
        remaining[nearest] = np.inf
    return cluster_of_class


def optimal_assign(distance: np.ndarray) -> np.ndarray:
    """The assignment of least total distance among the balanced ones. Not in the paper.

    Every centre offers floor(M/N) seats that must be taken and, when N does not divide M, one more that
    may stay empty. Empty seats go to phantom classes, which sit nowhere else (infinite cost) and at no
    cost there; so which M mod N centres have one class more is part of the optimum, and no penalty
    large enough to spoil the precision of the distances is needed.

    Args:
        distance: (M, N) float, N <= M.

    Returns:
        (M,) int64, the cluster of each class.
    """
    from scipy.optimize import linear_sum_assignment  # only here: it takes long to import

    num_classes, num_branches = distance.shape
    required, more = divmod(num_classes, num_branches)
    centres = np.arange(num_branches)
    seat_centre = np.concatenate([np.repeat(centres, required), centres if more else centres[:0]])
    num_phantoms = len(seat_centre) - num_classes
    phantom_cost = np.where(np.arange(len(seat_centre)) < num_branches * required, np.inf, 0.0)
    cost = np.concatenate([distance[:, seat_centre], np.tile(phantom_cost, (num_phantoms, 1))])
    _, seat = linear_sum_assignment(cost)
    return seat_centre[seat[:num_classes]]


def cluster_balance(class_means: np.ndarray, num_branches: int, seed: int) -> np.ndarray:
    """Algorithm 2, the strategy of the paper: k-means, then `greedy_assign`.

    The centres that choose last are left with what nobody took; `cluster_optimal` is without this flaw.

    Args:
        class_means: (M, F) float, the mean features of each class.
        num_branches: number of clusters, N.
        seed: seed of k-means.

    Returns:
        (M,) int64, the cluster of each class.

    Raises:
        UserError: unless 1 <= num_branches <= M.
    """
    return greedy_assign(centre_distance(class_means, num_branches, seed))


def cluster_optimal(class_means: np.ndarray, num_branches: int, seed: int) -> np.ndarray:
    """K-means, then `optimal_assign`: the centres of `cluster_balance`, the least total distance.

    Args:
        class_means: (M, F) float, the mean features of each class.
        num_branches: number of clusters, N.
        seed: seed of k-means.

    Returns:
        (M,) int64, the cluster of each class.

    Raises:
        UserError: unless 1 <= num_branches <= M.
    """
    return optimal_assign(centre_distance(class_means, num_branches, seed))


def random_balanced(num_classes: int, num_branches: int, seed: int) -> np.ndarray:
    """The paper's "Random" of Table 5: classes dealt out in a shuffled order.

    Args:
        num_classes: M.
        num_branches: number of clusters, N.
        seed: seed of the shuffle.

    Returns:
        (M,) int64, the cluster of each class.

    Raises:
        UserError: unless 1 <= num_branches <= M.
    """
    check_num_branches(num_branches, num_classes)
    return np.random.default_rng(seed).permutation(np.arange(num_classes) % num_branches)


def semantic(coarse_of_class: np.ndarray, num_branches: int) -> np.ndarray:
    """The paper's "Semantic" of Table 5: one cluster per coarse label of the data set, of any size.

    Args:
        coarse_of_class: (M,) int, the coarse label of each class.
        num_branches: number of clusters; there is no choice, it must be the number of coarse labels.

    Returns:
        (M,) int64, the cluster of each class, in the order of the coarse labels.

    Raises:
        UserError: where num_branches is not the number of coarse labels.
    """
    coarse_labels, cluster_of_class = np.unique(coarse_of_class, return_inverse=True)
    if num_branches != len(coarse_labels):
        raise UserError(
            f"num_branches={num_branches} with strategy semantic, but the data set has "
            f"{len(coarse_labels)} coarse labels: set num_branches={len(coarse_labels)} or choose another "
            "strategy."
        )
    return cluster_of_class.astype(np.int64)
