import subprocess
import sys

import numpy as np
import pytest

from dynkhydra_tf import figures

NAMES = [["a$b$c", "x"], ["$\\frac{", "_^"], ["two\nlines", "\udcff"]]  # the last: a byte that is no UTF-8


def results(clusters=3):
    eye = np.eye(clusters).tolist()
    return {
        "tau": 0.1,
        "top1": 0.5,
        "active_branches": 1.5,
        "branch_use": [0.5] * clusters,
        "cluster_accuracy": [0.5] * (clusters - 1) + [None],
        "confusion": {"gate": eye, "predicted": [*eye[:-1], None], "branches": eye},
    }


def test_any_class_name_can_be_drawn(drawn, tmp_path):
    figures.save_branch_use(results(), NAMES, tmp_path / "use.png")
    figures.save_confusion(results(), NAMES, tmp_path / "confusion.png")
    for figure in drawn:
        labels = [label.get_text() for label in figure.axes[0].get_yticklabels()]
        assert labels == [r"0: a\$b\$c, x", r"1: \$\frac{, _^", "2: two lines, ?"]
    assert (tmp_path / "use.png").stat().st_size and (tmp_path / "confusion.png").stat().st_size


def test_a_sheet_takes_any_class_name(drawn, tmp_path):
    rows = [
        {"image": 7, "class": name * 20, "taken_for": name, "confidence": 0.5} for name in NAMES[0] + NAMES[1]
    ]
    figures.save_most_wrong([np.zeros((8, 8, 3), np.uint8)] * 4, rows, tmp_path / "sheet.png")
    titles = [axes.get_title() for axes in drawn[0].axes[:4]]
    assert titles[0] == r"a\$b\$ca\$b\$ca\$b\$ca\$b\$ca\$..." + "\nno. 7"


def test_a_picture_is_imported_when_it_is_drawn():
    # Not matplotlib itself: Keras imports it wherever it is installed.
    loaded = "print('dynkhydra_tf.figures.style' in sys.modules)"
    code = f"import sys; from dynkhydra_tf import figures; {loaded}; figures.save_confusion; {loaded}"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert printed.split() == ["False", "True"]


def test_every_name_is_there():
    assert all(callable(getattr(figures, name)) for name in figures.__all__)
    with pytest.raises(AttributeError, match="no attribute 'save_nothing'"):
        figures.save_nothing  # noqa: B018
