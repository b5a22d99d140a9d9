import json

import pytest

from dynkhydra_tf.errors import UserError
from dynkhydra_tf.serving.tau_controller import CALM, WINDOW, TauController, rungs, with_tau

TABLE = [  # tau, lambda, top-1
    (0.0, 4.0, 0.58),
    (0.08, 1.9, 0.60),
    (0.1, 1.7, 0.59),
    (0.2, 1.3, 0.595),
    (0.3, 1.3, 0.59),
    (0.5, 1.0, 0.56),
    (0.7, 1.0, 0.56),
]
ROWS = [dict(zip(("tau", "active_branches", "top1"), row, strict=True)) for row in TABLE]


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


def test_the_rungs_are_the_best_and_what_runs_fewer_branches():
    taus = lambda drop: [row["tau"] for row in rungs(ROWS, drop)]  # noqa: E731
    assert taus(5) == [0.08, 0.1, 0.2, 0.5]
    assert taus(3.9) == [0.08, 0.1, 0.2]
    assert taus(0.5001) == [0.08, 0.2]
    assert taus(0) == [0.08]
    for drop in (-1, float("nan")):
        with pytest.raises(UserError, match="max_accuracy_drop must be 0 or more"):
            rungs(ROWS, drop)


def feed(controller, clock, *seconds):
    """Requests that follow each other; the taus that they got."""
    taus = []
    for each in seconds:
        with controller.request() as tau:
            clock.now += each
        taus.append(tau)
    return taus


def test_two_slow_ones_of_a_hundred_lead_up_and_a_long_calm_down():
    clock = Clock()
    controller = TauController(rungs(ROWS, 5), seconds=0.1, clock=clock)
    feed(controller, clock, *[0.2, *[0.06] * (WINDOW - 1)] * 2)
    assert controller.tau == 0.08, "one of a hundred may be slow"
    assert feed(controller, clock, 0.2, 0.06, 0.2, 0.06) == [0.08, 0.08, 0.08, 0.2]
    assert controller.rung == 2, "half of the four"
    feed(controller, clock, 0.2, 0.2)
    assert controller.rung == 3, "half of the two that are left"
    feed(controller, clock, *[0.2] * 10)
    assert controller.tau == 0.5, "there is no higher one"
    feed(controller, clock, *[0.06] * (3 * CALM * WINDOW))
    assert controller.tau == 0.5, "more than half of the target is no calm"
    feed(controller, clock, *[0.04] * (CALM * WINDOW + WINDOW))
    assert controller.rung == 2, "one rung at a time"
    feed(controller, clock, *[0.04] * (4 * CALM * WINDOW))
    assert controller.rung == 0


def test_what_was_sent_before_the_change_does_not_count():
    clock = Clock()
    controller = TauController(rungs(ROWS, 5), seconds=0.1, clock=clock)
    clock.now = 10.0
    feed(controller, clock, 1, 1)
    assert controller.rung == 2
    for _ in range(20):
        controller.observe(9.5, 1.0)
    assert controller.rung == 2
    controller.observe(12.0, 1.0)
    controller.observe(12.0, 1.0)
    assert controller.rung == 3


def test_a_request_that_fails_is_a_slow_one():
    controller = TauController(rungs(ROWS, 5), seconds=0.1, clock=Clock())
    for _ in range(2):
        with pytest.raises(ZeroDivisionError), controller.request():
            1 / 0  # noqa: B018
    assert controller.rung == 2


@pytest.mark.parametrize(
    ("asked", "taken"),
    [
        (
            {"instances": [[1], [2]]},
            {
                "signature_name": "with_tau",
                "instances": [{"images": [1], "tau": 0.2}, {"images": [2], "tau": 0.2}],
            },
        ),
        (
            {
                "signature_name": "image_bytes",
                "instances": [{"b64": "eA=="}, {"image_bytes": {"b64": "eQ=="}}],
            },
            {
                "signature_name": "image_bytes_with_tau",
                "instances": [
                    {"image_bytes": {"b64": "eA=="}, "tau": 0.2},
                    {"image_bytes": {"b64": "eQ=="}, "tau": 0.2},
                ],
            },
        ),
    ],
)
def test_a_request_gets_a_tau(asked, taken):
    assert json.loads(with_tau(json.dumps(asked).encode(), 0.2)) == taken


@pytest.mark.parametrize(
    "asked",
    [
        {"signature_name": "with_tau", "instances": [{"images": [1], "tau": 0.5}]},
        {"signature_name": "gate", "instances": [[1]]},
        {"inputs": {"images": [[1]]}},
        {"instances": 3},
        [1],
        "text",
    ],
)
def test_what_brings_its_own_or_takes_none_stays(asked):
    body = json.dumps(asked).encode()
    assert with_tau(body, 0.2) == body
    assert with_tau(b"{", 0.2) == b"{"
