"""Dividing the images of each class in two: test from training, validation from training."""

import numpy as np


def draw_stratified(labels: np.ndarray, fraction: float, order: np.ndarray | None = None) -> np.ndarray:
    """Draws the same share of each class, always the same images, and never the last one of a class.

    Of n images round(fraction * n) are drawn, as far as that leaves each class one: of each class its whole
    share, and one more of the classes whose shares were rounded down the most.

    Args:
        labels: (n,) integers.
        fraction: 0 to 1.
        order: (n,) positions; those that come first are drawn. None: a fixed random order, which is another
            one for another n.

    Returns:
        (n,) bool, True for the images drawn.
    """
    labels = np.asarray(labels)
    if order is None:
        # RandomState and not default_rng: numpy promises that its stream never changes.
        order = np.random.RandomState(0).permutation(len(labels))
    classes, counts = np.unique(labels, return_counts=True)
    shares = fraction * counts
    draws = np.minimum(np.floor(shares + 1e-9), counts - 1).astype(int)
    missing = max(round(fraction * len(labels)) - draws.sum(), 0)
    by_loss = np.argsort(draws - shares, kind="stable")  # the most that was rounded off comes first
    draws[by_loss[draws[by_loss] < counts[by_loss] - 1][:missing]] += 1
    drawn = np.zeros(len(labels), bool)
    for label, count in zip(classes, draws, strict=True):
        drawn[order[labels[order] == label][:count]] = True
    return drawn
