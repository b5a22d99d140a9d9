import pytest

from dynkhydra_tf.figures.frontier import save_frontier
from tests.conftest import overlapping


def frontier_point(network, tau, ms, top1, spread=None):
    return {
        "network": network,
        "system": "plain" if tau is None else "hydra",
        "tau": tau,
        "top1": top1,
        "low": top1 - 0.05,
        "high": top1 + 0.04,
        "spread": spread,
        "ms": ms,
        "ms_low": 0.9 * ms,
        "ms_high": 1.2 * ms,
    }


def test_frontier(drawn, tmp_path):
    points = [
        frontier_point("linear head", None, 4.0, 0.8),
        frontier_point("plain, width 0.25", None, 2.0, 0.75),
        frontier_point("Hydra", 0.0, 3.0, 0.7),
        frontier_point("Hydra", 0.5, 1.0, 0.6),
    ]
    save_frontier(points, "title", tmp_path / "frontier.png", points[1], 2.5)
    axes = drawn[0].axes[0]
    assert sorted(note.get_text() for note in axes.texts) == ["0", "0.5", "linear head", "width 0.25"]
    assert not overlapping(axes.texts)
    legend = [text.get_text() for text in drawn[0].legends[0].get_texts()]
    assert legend == ["recommended", "budget, 2.5 ms", "plain networks", "Hydra, at each $\\tau$"]
    (ring,) = (line for line in axes.lines if line.get_label() == "recommended")
    assert (ring.get_xdata(), ring.get_ydata()) == ([2.0], [0.75])
    assert axes.get_xscale() == "log" and "seeds" not in axes.get_ylabel()


@pytest.mark.parametrize("count", [1, 20])
def test_few_and_many_points_with_seeds(drawn, tmp_path, count):
    points = [frontier_point("Hydra", i / count, 2 + i / 20, 0.8 + i / 999, 0.01) for i in range(count)]
    save_frontier(points, "title", tmp_path / "frontier.png")
    axes = drawn[0].axes[0]
    assert not overlapping(axes.texts) and axes.texts
    assert "over seeds" in axes.get_ylabel() and axes.get_xscale() == "linear"
