import numpy as np
from matplotlib.colors import to_rgb

from dynkhydra_tf.figures.latency import save_latency
from tests.conftest import overlapping


def latency_rows(run, taus, ms, top1):
    keys = ("run", "tau", "ms", "low", "high", "top1")
    points = zip(taus, ms, top1, strict=True)
    same = {
        "runtime": "tensorflow",
        "batch_size": 1,
        "epochs": 12,
        "schedule": "linear",
        "top1_deviation": None,
    }
    return [same | dict(zip(keys, (run, tau, x, 0.9 * x, 1.2 * x, y), strict=True)) for tau, x, y in points]


def test_latency(drawn, tmp_path):
    # The second Hydra's points lie all in one place.
    rows = latency_rows("a", (0, 0.1, 0.5), (2.0, 1.5, 1.0), (0.70, 0.69, 0.6))
    rows += latency_rows("b$1$", np.arange(9) / 10, [3.0] * 9, [0.8] * 9)
    rows += latency_rows("plain", [None], [9.0], [0.7])
    save_latency(rows, "title", tmp_path / "latency.png")
    axes = drawn[0].axes[0]
    assert axes.get_xscale() == "log"
    notes = axes.texts
    assert [note.get_text() for note in notes] == ["0", "0.5", "0.1", "0 ... 0.8"]
    assert not overlapping(notes)
    legend = [text.get_text() for text in drawn[0].legends[0].get_texts()]
    assert legend == ["a", r"b\$1\$", "plain"]
    save_latency(rows[:2], "title", tmp_path / "latency.png")
    assert drawn[1].axes[0].get_xscale() == "linear"


def test_panels_seeds_and_the_line_to_beat(drawn, tmp_path):
    plain = latency_rows("d1", [None], [2.0], [0.6]) + latency_rows("d2", [None], [3.0], [0.7])
    longer = [row | {"epochs": 60} for row in latency_rows("long", [None], [3.0], [0.8])]
    spread = [row | {"top1_deviation": 0.01} for row in plain]
    other = [row | {"batch_size": 64, "ms": 0.1} for row in plain]
    onnx = [row | {"runtime": "onnx", "ms": 1.0} for row in plain]
    int8 = [row | {"runtime": "onnx_int8", "ms": 0.5} for row in plain]
    save_latency([*spread, *longer, *onnx, *int8, *other], "title", tmp_path / "latency.png")
    first, second = drawn[0].axes
    assert [axes.get_xlabel().split(" (")[0] for axes in (first, second)] == [
        "ms per image at batch 1",
        "ms per image at batch 64",
    ]
    joined = {
        tuple(line.get_xdata()): line.get_linestyle() for line in first.lines if len(line.get_xdata()) == 2
    }
    # The one of 60 epochs is on no line.
    assert joined == {(2.0, 3.0): "-", (1.0, 1.0): "--", (0.5, 0.5): ":"}
    said = drawn[0].legends[0].get_title().get_text()
    assert said.endswith("filled: tensorflow\nhollow: onnx\nhalf filled: onnx_int8")
    legend = [text.get_text() for text in drawn[0].legends[0].get_texts()]
    assert legend == ["d1", "d2", "long"]
    assert "over seeds" in first.get_ylabel()


def test_many_networks_differ_and_none_is_grey_as_the_line_to_beat(drawn, tmp_path):
    rows = latency_rows("plain", [None], [9.0], [0.7])
    for n in range(17):
        rows += latency_rows(f"h{n}", [0, 0.1], [n + 2.0, n + 1.0], [0.7, 0.6])
        rows += [row | {"epochs": n} for row in latency_rows(f"p{n}", [None], [n + 3.0], [0.5])]
    save_latency(rows, "title", tmp_path / "latency.png")
    lines = [line for line in drawn[0].axes[0].lines if line.get_marker() != "None"]
    looks = [(to_rgb(line.get_color()), line.get_marker()) for line in lines]
    assert len(looks) == len(set(looks)) == 35
    assert all(len(set(colour)) > 1 for colour, _ in looks)
