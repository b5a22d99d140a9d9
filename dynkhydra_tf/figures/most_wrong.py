"""The images of a split that were most wrong."""

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from dynkhydra_tf.figures import style

COLUMNS = 6


def save_most_wrong(images: Sequence[np.ndarray], rows: list[dict], path: style.Path) -> None:
    """Draws images, each with its class and what it was taken for.

    Args:
        images: n >= 1 of (S, S, 3) uint8.
        rows: n dicts of image (its number in the split), class, taken_for and confidence (the probability of
            the wrong class, in 0..1).
        path: the PNG to write.
    """
    lines = -(-len(images) // COLUMNS)
    figure = Figure(figsize=(11, 2.45 * lines + 0.5), layout="constrained")
    figure.suptitle("Most wrong: an image's class, and what it was taken for", fontsize=11)
    all_axes = figure.subplots(lines, COLUMNS, squeeze=False).ravel()
    for axes in all_axes:
        axes.set_axis_off()
    for axes, image, row in zip(all_axes, images, rows, strict=False):
        axes.imshow(image, interpolation="nearest" if len(image) < 64 else "antialiased")
        axes.set_title(f"{style.short(row['class'], 25)}\nno. {row['image']}", fontsize=8)
        verdict = f"{style.short(row['taken_for'], 25)}\n{row['confidence']:.1%}"
        axes.text(
            0.5, -0.03, verdict, transform=axes.transAxes, ha="center", va="top", fontsize=8, color="tab:red"
        )
    style.save(figure, path)
