"""Which of the measured networks to take, and what the measurements say of branches; numbers and words alone.

A point is a network at one threshold: a dict of network (its name), system ("plain" or "hydra"), tau (None of
a plain network), validation_top1, top1 (of the test images, in 0..1) and ms, among others.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

Point = dict[str, Any]
Z = 1.959964  # of the normal distribution: 95 % lie within


def wilson_interval(share: float, count: int) -> tuple[float, float]:
    """Returns the bounds between which the accuracy lies with 95 %, Wilson (1927).

    Args:
        share: that was right, in 0..1. count: images that were looked at, at least 1.
    """
    middle = share + Z**2 / (2 * count)
    half = Z * math.sqrt(share * (1 - share) / count + Z**2 / (4 * count**2))
    low, high = ((middle + sign * half) / (1 + Z**2 / count) for sign in (-1, 1))
    # Of all or none it is the share itself, but for rounding.
    return max(0.0, min(low, share)), min(1.0, max(high, share))


class Choice(NamedTuple):
    """What is recommended.

    Attributes:
        point: the point to take; None where nothing meets the budget.
        reason: why, in words.
    """

    point: Point | None
    reason: str


def recommend(points: Sequence[Point], budget_ms: float | None = None, margin: float = 0.01) -> Choice:
    """Chooses by the validation images, so that the test images tell what the choice is worth.

    Args:
        points: at least one.
        budget_ms: the most accurate within it is taken; None: the fastest within `margin` of the best.
        margin: of top-1, in 0..1.
    """
    if budget_ms is None:
        best = max(points, key=lambda point: (point["validation_top1"], -point["ms"]))
        # Counts of images are compared, not their rounded quotients.
        near = [each for each in points if each["validation_top1"] >= best["validation_top1"] - margin - 1e-9]
        chosen = min(near, key=lambda point: (point["ms"], -point["validation_top1"]))
        within = f"within {100 * margin:g} point{'s' * (margin != 0.01)} of"
        if chosen is best:
            return Choice(chosen, f"the best on the images held out, and none {within} it is faster")
        return Choice(
            chosen,
            f"the fastest {within} the best on the images held out, {point_name(best)}, which takes "
            f"{best['ms']:.2f} ms",
        )
    within = [point for point in points if point["ms"] <= budget_ms]
    if not within:
        fastest = min(points, key=lambda point: point["ms"])
        return Choice(
            None,
            f"nothing answers within {budget_ms:g} ms; the fastest is {point_name(fastest)} with "
            f"{fastest['ms']:.2f} ms. A smaller --image_size or another --backbone may be fast enough",
        )
    chosen = max(within, key=lambda point: (point["validation_top1"], -point["ms"]))
    return Choice(chosen, f"the best on the images held out of those that answer within {budget_ms:g} ms")


def sureness(points: Sequence[Point], images: int, margin: float = 0.01) -> str:
    """Says how far the choice can be chance; empty where the images held out tell `margin` for sure.

    Args:
        points: all that were measured. images: held out. margin: of top-1, in 0..1.
    """
    best = max(point["validation_top1"] for point in points)
    chance = noise(best, best, images)
    if chance <= margin:
        return ""
    return (
        f"With {images} images held out a difference of up to {100 * chance:.0f} points between two networks "
        "can be chance: a larger --validation_fraction, or --seeds=0,1,2, chooses more surely."
    )


def verdict(points: Sequence[Point], images: int) -> str:
    """Says whether branches paid on these images: each Hydra's point beside the plain networks no slower.

    Args:
        points: all that were measured. images: test images.
    """
    plain = [point for point in points if point["system"] == "plain"]
    compared = []
    for point in points:
        no_slower = [each for each in plain if each["ms"] <= point["ms"]]
        if point["system"] == "hydra" and no_slower:
            beside = max(no_slower, key=lambda each: each["top1"])
            compared.append((point["top1"] - beside["top1"], point, beside))
    if not compared:
        return "No Hydra was as slow as a plain network: there is nothing to compare at equal time."
    gain, point, beside = max(compared, key=lambda each: each[0])
    figures = (
        f"{point_name(point)} has {point['top1']:.1%} in {point['ms']:.2f} ms, {point_name(beside)} "
        f"{beside['top1']:.1%} in {beside['ms']:.2f} ms"
    )
    chance = noise(point["top1"], beside["top1"], images)
    if gain <= 0:
        return (
            "Branches do not pay here: at no threshold is the Hydra more accurate than a plain network that "
            f"is no slower. Where it comes nearest, {figures}."
        )
    if gain <= chance:
        return (
            f"Whether branches pay here cannot be told: {figures}, and with {images} test images a "
            f"difference of up to {100 * chance:.1f} points can be chance."
        )
    return f"Branches pay here: {figures}."


def noise(first: float, second: float, images: int) -> float:
    """The difference of two accuracies on so many images that 95 % of chance differences lie within.

    By the half-widths of their intervals, as if the two were right on images of their own; on the same images
    it is less.
    """
    bounds = [wilson_interval(share, images) for share in (first, second)]
    return math.hypot(*((high - low) / 2 for low, high in bounds))


def point_name(point: Point) -> str:
    """What a point is called: the network, and its threshold if it has one."""
    return point["network"] if point["tau"] is None else f"{point['network']} at tau {point['tau']:g}"


def on_frontier(points: Sequence[Point]) -> list[Point]:
    """The points that none is both faster and more accurate than, by the test images, the fastest first."""
    found: list[Point] = []
    for point in sorted(points, key=lambda point: (point["ms"], -point["top1"])):
        if not found or point["top1"] > found[-1]["top1"]:
            found.append(point)
    return found
