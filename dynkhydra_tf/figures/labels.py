"""Labels that do not print over each other."""

import itertools
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes

from dynkhydra_tf.figures import style

SAME, NEAR = 5, 16  # pixels: points that share a label; points of other lines that need not repeat it
# Where a label may stand, in points, best first: above, or where a rising line leaves it free.
PLACES = ((0, 6), (-5, 4), (5, -4), (5, 4), (-5, -4), (0, -6), (7, 0), (-7, 0))


def label_points(axes: Axes, lines: Sequence[Sequence[tuple]], fontsize: float = 8) -> None:
    """Writes texts beside the points of lines, the ends first; where there is no free place, nothing.

    Points of a line that lie on each other share a label. Call it when all else is drawn: it takes the limits
    of the axes as they are.

    Args:
        axes: where the lines are drawn.
        lines: for each line its points (x, y, text) in the order that it goes through them; None: no label.
        fontsize: in points.
    """
    style.lay_out(axes.get_figure(root=True))
    places = [axes.transData.transform([point[:2] for point in line]) for line in lines]
    # The lines, in so many dots that none slips between two of them through a label.
    along = [np.linspace(a, b, 50) for place in places for a, b in itertools.pairwise(place)]
    drawn = np.concatenate([*places, *along])
    room = axes.get_window_extent().padded(-2)
    written: list[tuple[str, np.ndarray]] = []
    taken = [axes.get_legend().get_window_extent()] if axes.get_legend() else []
    for line, place in zip(lines, places, strict=True):
        for members in _in_one_place(line, place):
            text, spot = _common_text([line[i][2] for i in members]), place[members[0]]
            if any(other == text and np.hypot(*(spot - there)) < NEAR for other, there in written):
                continue
            for offset in PLACES:
                note = _annotate(axes, text, line[members[0]][:2], offset, fontsize)
                box = note.get_window_extent().padded(2)
                inside = room.contains(box.x0, box.y0) and room.contains(box.x1, box.y1)
                if inside and not (box.count_contains(drawn) or box.count_overlaps(taken)):
                    taken.append(box)
                    written.append((text, spot))
                    break
                note.remove()


def _in_one_place(line, place):
    """Groups the labelled points of a line that lie on each other: lists of indices; the ends come first."""
    labelled = [i for i, (_, _, text) in enumerate(line) if text is not None]
    groups = []
    for i in labelled:
        if groups and np.hypot(*(place[i] - place[groups[-1][0]])) < SAME:
            groups[-1].append(i)
        else:
            groups.append([i])
    return groups[:1] + groups[-1:] * (len(groups) > 1) + groups[1:-1]


def _common_text(texts):
    texts = list(dict.fromkeys(texts))
    return ", ".join(texts) if len(texts) < 3 else f"{texts[0]} ... {texts[-1]}"


def _annotate(axes, text, point, offset, fontsize):
    across, upright = offset
    return axes.annotate(
        text,
        point,
        offset,
        textcoords="offset points",
        ha="left" if across > 0 else "right" if across < 0 else "center",
        va="bottom" if upright > 0 else "top" if upright < 0 else "center",
        fontsize=fontsize,
    )


def spread(
    centres: np.ndarray, sizes: np.ndarray, within: np.ndarray | None = None, steps: int = 500
) -> np.ndarray:
    """Moves boxes apart until none overlap, or `steps` are over, each by little.

    Args:
        centres: (L, 2) float.
        sizes: (L, 2) float, widths and heights.
        within: (2, 2) float, the lower left and the upper right corner of a box that none may leave.
        steps: the most rounds.

    Returns:
        (L, 2) float64, the new centres.
    """
    centres, sizes = np.array(centres, np.float64), np.asarray(sizes, np.float64)
    wanted = (sizes[:, np.newaxis] + sizes) / 2  # (L, L, 2), the distance on either axis that is enough
    # Boxes of one centre go apart by their order.
    order = np.sign(np.arange(len(centres))[:, np.newaxis] - np.arange(len(centres)))
    for _ in range(steps):
        if within is not None:
            centres = np.clip(centres, within[0] + sizes / 2, np.maximum(within[1] - sizes / 2, within[0]))
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
