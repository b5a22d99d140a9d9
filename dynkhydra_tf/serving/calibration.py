"""Which tau to serve with: given, or picked from a tau table for a budget of compute or of accuracy.

Likewise the exit confidence of a network with an exit, from the table of exits.
"""

import dataclasses
from collections.abc import Mapping, Sequence

from dynkhydra_tf.errors import UserError

# Close where the gate's probabilities are: with nb = 20 few second branches have more than 0.3.
TAUS = (*(i / 100 for i in range(11)), *(i / 50 for i in range(6, 16)), *(i / 20 for i in range(7, 20)))


EXIT_CONFIDENCES = (*(i / 50 for i in range(10, 48)), 0.95, 0.96, 0.97, 0.98, 0.99, 0.995, 0.999, 1.0)


@dataclasses.dataclass(frozen=True)
class ExitChoice:
    """An exit confidence and why it was picked.

    Attributes:
        exit_confidence: float in (0, 1].
        reason: str, a sentence for people.
    """

    exit_confidence: float
    reason: str


@dataclasses.dataclass(frozen=True)
class Choice:
    """A threshold and why it was picked.

    Attributes:
        tau: float in [0, 1).
        reason: str, a sentence for people.
    """

    tau: float
    reason: str


def least_active_branches(rows: Sequence[Mapping], target: float) -> Choice:
    """Picks the lowest tau of a table at which an image runs at most `target` branches on average.

    Args:
        rows: list of dicts with tau, active_branches (lambda) and top1, tau rising; as
            `Evaluation.tau_table` gives them.
        target: float, the most that lambda may be.

    Returns:
        `Choice`.

    Raises:
        UserError: no tau of the table gets there.
    """
    if not target >= 1:
        raise UserError(
            f"target_active_branches must be at least 1: one branch always runs. Received: {target}"
        )
    for row in rows:
        if row["active_branches"] <= target:
            return Choice(row["tau"], f"the lowest with lambda at most {target:g}: {_result(row)}")
    raise UserError(
        f"No tau in the table has lambda at most {target:g}; the least is "
        f"{min(row['active_branches'] for row in rows):.2f}"
    )


def most_tau_within(rows: Sequence[Mapping], points: float) -> Choice:
    """Picks the highest tau of a table that is at most `points` percentage points below the best accuracy.

    Args:
        rows: as for `least_active_branches`.
        points: float >= 0, percentage points of top-1.

    Returns:
        `Choice`.

    Raises:
        UserError: a drop that is negative or not a number.
    """
    if not points >= 0:
        raise UserError(f"max_accuracy_drop must be 0 or more percentage points. Received: {points}")
    best = max(row["top1"] for row in rows)
    row = max((row for row in rows if best - row["top1"] <= points / 100), key=lambda row: row["tau"])
    return Choice(
        row["tau"], f"the highest at most {points:g} points below the best top-1 ({best:.2%}): {_result(row)}"
    )


def most_exits_within(rows: Sequence[Mapping], points: float) -> ExitChoice:
    """Picks the lowest exit confidence of a table that loses at most `points` percentage points of top-1.

    Args:
        rows: list of dicts with exit_confidence, exits, active_branches and top1, exit_confidence rising to
            1, where no image exits; as `Evaluation.exit_table` gives them. Measured on held-out images.
        points: float >= 0, percentage points of top-1.

    Raises:
        UserError: a loss that is negative or not a number.
    """
    if not points >= 0:
        raise UserError(f"max_exit_drop must be 0 or more percentage points. Received: {points}")
    never = rows[-1]["top1"]
    row = next(row for row in rows if never - row["top1"] <= points / 100)
    return ExitChoice(
        row["exit_confidence"],
        f"the lowest at most {points:g} points below the top-1 without exits ({never:.2%}): "
        f"{row['exits']:.1%} exit, {_result(row)}",
    )


def _result(row):
    return f"top-1 {row['top1']:.2%} at lambda {row['active_branches']:.2f}"
