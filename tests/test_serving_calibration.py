import pytest

from dynkhydra_tf.errors import UserError
from dynkhydra_tf.serving.calibration import (
    EXIT_CONFIDENCES,
    TAUS,
    least_active_branches,
    most_exits_within,
    most_tau_within,
)

ROWS = [
    {"tau": 0.0, "active_branches": 4.0, "top1": 0.70},
    {"tau": 0.1, "active_branches": 2.2, "top1": 0.72},
    {"tau": 0.2, "active_branches": 1.6, "top1": 0.717},
    {"tau": 0.5, "active_branches": 1.1, "top1": 0.65},
]


def test_taus_rise_within_range():
    assert list(TAUS) == sorted(set(TAUS)) and TAUS[0] == 0 and TAUS[-1] < 1


@pytest.mark.parametrize(("target", "tau"), [(4, 0.0), (2.2, 0.1), (2.0, 0.2), (1.1, 0.5)])
def test_the_lowest_tau_within_the_compute(target, tau):
    assert least_active_branches(ROWS, target).tau == tau


@pytest.mark.parametrize(("points", "tau"), [(0, 0.1), (0.5, 0.2), (2.5, 0.2), (8, 0.5)])
def test_the_highest_tau_within_the_accuracy(points, tau):
    assert most_tau_within(ROWS, points).tau == tau


def test_the_reason_has_the_numbers():
    choice = most_tau_within(ROWS, 0.5)
    assert choice.reason == (
        "the highest at most 0.5 points below the best top-1 (72.00%): top-1 71.70% at lambda 1.60"
    )
    assert least_active_branches(ROWS, 2).reason == (
        "the lowest with lambda at most 2: top-1 71.70% at lambda 1.60"
    )


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: least_active_branches(ROWS, 0.5), "must be at least 1"),
        (lambda: least_active_branches(ROWS, float("nan")), "must be at least 1"),
        (lambda: least_active_branches(ROWS, 1.05), "the least is 1.10"),
        (lambda: most_tau_within(ROWS, -1), "must be 0 or more"),
        (lambda: most_tau_within(ROWS, float("nan")), "must be 0 or more"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(UserError, match=message):
        call()


EXIT_ROWS = [
    {"exit_confidence": 0.4, "exits": 0.6, "active_branches": 0.5, "top1": 0.697},
    {"exit_confidence": 0.6, "exits": 0.3, "active_branches": 0.9, "top1": 0.699},
    {"exit_confidence": 1.0, "exits": 0.0, "active_branches": 1.2, "top1": 0.700},
]


def test_exit_confidences_rise_to_never():
    assert list(EXIT_CONFIDENCES) == sorted(set(EXIT_CONFIDENCES)) and EXIT_CONFIDENCES[-1] == 1


@pytest.mark.parametrize(("points", "confidence"), [(0, 1.0), (0.15, 0.6), (0.35, 0.4)])
def test_the_lowest_exit_confidence_within_the_accuracy(points, confidence):
    assert most_exits_within(EXIT_ROWS, points).exit_confidence == confidence


def test_the_reason_of_an_exit_confidence():
    assert most_exits_within(EXIT_ROWS, 0.15).reason == (
        "the lowest at most 0.15 points below the top-1 without exits (70.00%): 30.0% exit, top-1 69.90% at "
        "lambda 0.90"
    )
    with pytest.raises(UserError, match="max_exit_drop must be 0 or more"):
        most_exits_within(EXIT_ROWS, float("nan"))
