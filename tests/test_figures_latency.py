import numpy as np

from dynkhydra_tf.figures.latency import save_latency
from tests.conftest import overlapping


def latency_rows(run, taus, ms, top1):
    keys = ("run", "tau", "ms", "low", "high", "top1")
    points = zip(taus, ms, top1, strict=True)
    return [dict(zip(keys, (run, tau, x, 0.9 * x, 1.2 * x, y), strict=True)) for tau, x, y in points]


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
