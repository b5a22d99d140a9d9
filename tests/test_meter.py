import importlib.util
import io
import sys
import time

import pytest

from dynkhydra_tf.meter import Meter, duration
from tests.conftest import Terminal


def test_durations():
    assert [duration(s) for s in (0.4, 52, 723, 11100)] == ["0:00", "0:52", "12:03", "3:05:00"]


@pytest.mark.parametrize("stream", [io.StringIO(), Terminal()])
def test_a_line_now_and_then_where_there_is_no_terminal_or_no_tqdm(stream, clock, monkeypatch):
    if stream.isatty():
        monkeypatch.setitem(sys.modules, "tqdm", None)
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with Meter("class means", 100, "image", stream=stream) as meter:
        for done in range(10, 101, 10):
            clock.now += 10
            meter.update(done, "a note", lambda: 60)
    # The rate leaves out the first 10 images; a line every 30 seconds.
    assert stream.getvalue().splitlines() == [
        "class means, image 30/100: a note, 1 images/s, 1:10 left, 1:00 of the run",
        "class means, image 60/100: a note, 1 images/s, 0:40 left, 1:00 of the run",
        "class means, image 90/100: a note, 1 images/s, 0:10 left, 1:00 of the run",
    ]


def test_a_bar_on_a_terminal_goes_when_it_is_done():
    stream = Terminal()
    with Meter("epoch 2/3", 4, "step", done=1, stream=stream) as meter:
        meter.update(2, "loss 2.0", lambda: 30)
        time.sleep(0.11)  # a bar is drawn ten times a second at most
        meter.update(3, "loss 1.0", lambda: 20)
    shown = stream.getvalue().split("\r")
    assert shown[1].startswith("epoch 2/3 |") and "1/4" in shown[1]
    assert shown[2].startswith("epoch 2/3 |") and "3/4" in shown[2] and "loss 1.0, run 0:20" in shown[2]
    assert shown[-1] == "" and not shown[-2].strip()


def test_a_meter_that_is_never_told_anything_shows_nothing():
    stream = Terminal()
    with Meter("class means", 100, "image", stream=stream):
        pass
    assert stream.getvalue() == ""
