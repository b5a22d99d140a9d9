import numpy as np
import pytest

from dynkhydra_tf.figures.learning_curves import save_learning_curves

PANELS = {
    "loss": ("ensemble_loss", "gater_loss"),
    "accuracy": ("top1", "gater_accuracy"),
    "lambda": ("active_branches",),
}


def rows(epochs, **values):
    names = [name for panel in PANELS.values() for name in panel]
    start = dict.fromkeys([*names, *(f"val_{name}" for name in names)], 0.5)
    return [{"epoch": float(epoch), **start, **values} for epoch in range(1, epochs + 1)]


@pytest.mark.parametrize("epochs", [1, 12])
def test_axes_fit_the_data(drawn, tmp_path, epochs):
    some = rows(epochs, top1=0.95, val_top1=0.93, gater_accuracy=0.91, val_gater_accuracy=0.92)
    some = [row | {"active_branches": 1.1, "val_active_branches": 1.2} for row in some]
    save_learning_curves(some, 20, tmp_path / "curves.png")
    loss, accuracy, active = drawn[0].axes
    assert loss.get_xlim() == (0.5, epochs + 0.5)
    assert all(tick == int(tick) for tick in loss.get_xticks())
    low, high = accuracy.get_ylim()
    assert 0.9 < low < 0.91 and 0.95 < high < 0.96
    low, high = active.get_ylim()
    assert low > 1.0 and high < 1.3 and "at most K = 20" in active.get_title()
    assert (accuracy.get_lines()[0].get_marker() == "o") == (epochs == 1)  # a line of one point is not seen


def test_epochs_that_were_not_evaluated(drawn, tmp_path):
    some = [
        {name: value for name, value in row.items() if row["epoch"] in (2, 4) or "val_" not in name}
        for row in rows(4)
    ]
    save_learning_curves(some, 4, tmp_path / "curves.png")
    of_training, held_out = drawn[0].axes[1].get_lines()[:2]
    assert list(of_training.get_xdata()) == [1, 2, 3, 4] and list(held_out.get_xdata()) == [2, 4]
    assert drawn[0].axes[2].get_xlim() == (0.5, 4.5)


def test_a_peak_does_not_flatten_the_rest(drawn, tmp_path):
    some = rows(12)
    save_learning_curves(some, 4, tmp_path / "curves.png")
    some[0]["ensemble_loss"] = 45.0
    some[3]["val_gater_loss"] = np.nan
    save_learning_curves(some, 4, tmp_path / "curves.png")
    assert [figure.axes[0].get_yscale() for figure in drawn] == ["linear", "log"]


def test_a_plain_networks_curves(drawn, tmp_path):
    names = ("loss", "top1", "val_loss", "val_top1")
    save_learning_curves([{"epoch": 1.0, **dict.fromkeys(names, 0.5)}], 4, tmp_path / "curves.png")
    assert len(drawn[0].axes) == 2
