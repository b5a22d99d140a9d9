"""Labels that do not print over each other."""

import numpy as np


def spread(centres, sizes, steps=500):
    """Moves boxes apart until none overlap, or `steps` are over, each by little.

    Args:
        centres: (L, 2) float.
        sizes: (L, 2) float, widths and heights.

    Returns:
        (L, 2) float64, the new centres.
    """
    centres, sizes = np.array(centres, np.float64), np.asarray(sizes, np.float64)
    wanted = (sizes[:, np.newaxis] + sizes) / 2  # (L, L, 2), the distance on either axis that is enough
    # Boxes of one centre go apart by their order.
    order = np.sign(np.arange(len(centres))[:, np.newaxis] - np.arange(len(centres)))
    for _ in range(steps):
        apart = centres[:, np.newaxis] - centres
        missing = wanted - np.abs(apart)
        overlap = (missing > 1e-9 * wanted).all(axis=-1) & (order != 0)
        if not overlap.any():
            break
        # Along the axis of the shorter way out; each of the two goes half of it.
        shorter = np.eye(2)[np.argmin(missing, axis=-1)]
        sign = np.where(apart == 0, order[..., np.newaxis], np.sign(apart))
        centres += (sign * (missing / 2 * 1.05) * shorter * overlap[..., np.newaxis]).sum(axis=1)
    return centres
