import numpy as np
import pytest

from dynkhydra_tf.figures.confusion import save_confusion
from tests.conftest import overlapping
from tests.test_figures import results


@pytest.mark.parametrize(("clusters", "labels"), [(3, 3), (20, 20), (31, 31), (130, 20)])
def test_confusion(drawn, tmp_path, clusters, labels):
    names = [[f"class {number} of a name that is long and goes on", "other"] for number in range(clusters)]
    save_confusion(results(clusters), names, tmp_path / "confusion.png")
    (figure,) = drawn
    gate, predicted, branches = (axes.images[0].get_array() for axes in figure.axes[:3])
    np.testing.assert_array_equal(gate, np.eye(clusters))
    np.testing.assert_array_equal(branches, np.eye(clusters))
    assert np.ma.getmaskarray(predicted)[-1].all() and not np.ma.getmaskarray(predicted)[:-1].any()
    assert not overlapping(label for label in figure.axes[0].get_yticklabels() if label.get_text())
    assert not overlapping(label for label in figure.axes[0].get_xticklabels() if label.get_text())
    assert labels - 1 <= len(figure.axes[0].get_yticks()) <= labels + 2
    columns = [label.get_text() for label in figure.axes[0].get_xticklabels()]
    if 10 < clusters < 130:  # columns have names, too
        assert columns[3] == "3: class 3 of a name..."
    assert len(figure.axes[0].texts) == (clusters if clusters <= 30 else 0)
    figure.draw_without_rendering()  # saved, it had another resolution
    for axes in figure.axes:
        box = axes.get_tightbbox()  # nothing is cut off
        assert min(box.x0, box.y0) >= 0 and box.x1 <= figure.bbox.x1 and box.y1 <= figure.bbox.y1
