from dynkhydra_tf.figures.tau_curve import save_tau_curve
from tests.conftest import overlapping


def test_labels_of_taus_that_do_alike_stand_apart_or_together(drawn, tmp_path):
    points = [(0, 4, 0.578), (0.02, 3.9, 0.5779), (0.08, 2.6, 0.575), (0.3, 1.01, 0.534), (0.5, 1.0, 0.533)]
    points.append((0.7, 1.0, 0.533))
    rows = [{"tau": t, "active_branches": a, "top1": top1, "flops": 2e7 + 7e6 * a} for t, a, top1 in points]
    save_tau_curve(rows, 0.08, tmp_path / "tau.png")
    _, over_flops = drawn[0].axes
    assert "0.5, 0.7" in [note.get_text() for note in over_flops.texts]
    assert "0.08" in [note.get_text() for note in over_flops.texts]
    assert not overlapping(over_flops.texts)


def test_one_tau(drawn, tmp_path):
    row = {"tau": 0.08, "active_branches": 1.5, "top1": 0.9, "flops": 1e6}
    save_tau_curve([row], 0.08, tmp_path / "tau.png")
    assert [note.get_text() for note in drawn[0].axes[1].texts] == ["0.08"]
