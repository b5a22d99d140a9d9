"""Which network to take, and what the measurements say of branches."""

import pytest

from dynkhydra_tf.frontier.choice import on_frontier, recommend, sureness, verdict, wilson_interval


def point(network, validation, test, ms, tau=None):
    system = "plain" if tau is None else "hydra"
    return {
        "network": network,
        "system": system,
        "tau": tau,
        "validation_top1": validation,
        "top1": test,
        "ms": ms,
    }


LINEAR = point("linear head", 0.80, 0.80, 5.0)
NARROW = point("narrow", 0.85, 0.84, 2.0)
WIDE = point("wide", 0.86, 0.83, 4.0)
HYDRA = point("Hydra", 0.83, 0.85, 1.5, tau=0.3)


def test_wilson_interval():
    # 8 of 10: (0.8 + 1.92073/10 -+ 1.959964 sqrt(0.016 + 0.0096036)) / (1 + 3.84146/10)
    assert wilson_interval(0.8, 10) == pytest.approx((0.4902, 0.9433), abs=1e-4)
    for count in range(1, 100):  # rounding takes neither bound past the share
        assert wilson_interval(0.0, count)[0] == 0 and wilson_interval(1.0, count)[1] == 1


def test_without_a_budget_the_fastest_within_a_point_of_the_best():
    choice = recommend([LINEAR, NARROW, WIDE, HYDRA])
    assert choice.point is NARROW  # 85 of 86 %: a point below, though 0.86 - 0.01 > 0.85 in floats
    assert choice.reason == (
        "the fastest within 1 point of the best on the images held out, wide, which takes 4.00 ms"
    )
    choice = recommend([LINEAR, NARROW, WIDE, HYDRA], margin=0.03)
    assert choice.point is HYDRA and "within 3 points of" in choice.reason
    choice = recommend([LINEAR, WIDE, HYDRA])
    assert choice.point is WIDE and choice.reason.endswith("and none within 1 point of it is faster")


def test_within_a_budget_the_most_accurate_on_the_images_held_out():
    assert recommend([LINEAR, NARROW, WIDE, HYDRA], 4.0).point is WIDE
    assert recommend([LINEAR, NARROW, WIDE, HYDRA], 3.0).point is NARROW  # the test images say Hydra
    same = point("other", 0.85, 0.9, 2.5)
    assert recommend([same, NARROW], 3.0).point is NARROW  # as accurate, and faster


def test_a_budget_that_nothing_meets():
    choice = recommend([LINEAR, HYDRA], 1.0)
    assert choice.point is None
    assert choice.reason.startswith(
        "nothing answers within 1 ms; the fastest is Hydra at tau 0.3 with 1.50 ms"
    )


def test_the_verdict():
    slow = HYDRA | {"ms": 3.0}
    assert verdict([NARROW, WIDE, slow], 100_000) == (
        "Branches pay here: Hydra at tau 0.3 has 85.0% in 3.00 ms, narrow 84.0% in 2.00 ms."
    )
    # About 1.96 sqrt((0.85 * 0.15 + 0.84 * 0.16) / 1000) = 0.0317
    assert "a difference of up to 3.2 points can be chance" in verdict([NARROW, WIDE, slow], 1000)
    worse = slow | {"top1": 0.84}
    assert verdict([NARROW, WIDE, worse], 1000).startswith("Branches do not pay here: at no threshold")
    assert "nothing to compare" in verdict([NARROW, HYDRA], 1000)


def test_how_sure_the_choice_is():
    # Each is known to +-0.068 by Wilson's interval, their difference to sqrt(2) times that, 0.096.
    assert "With 100 images held out a difference of up to 10 points" in sureness([NARROW, WIDE], 100)
    assert sureness([NARROW, WIDE], 10_000) == ""
    # All of four right is no certainty: the interval is 0.51 to 1.
    assert "a difference of up to 35 points" in sureness([point("all right", 1.0, 1.0, 1.0)], 4)


def test_the_frontier():
    assert on_frontier([LINEAR, WIDE, NARROW, HYDRA]) == [HYDRA]
    assert on_frontier([LINEAR, WIDE, HYDRA | {"top1": 0.82}, NARROW]) == [HYDRA | {"top1": 0.82}, NARROW]
