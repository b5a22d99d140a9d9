import warnings

import numpy as np
import pytest
from matplotlib import font_manager

from dynkhydra_tf import figures

NAMES = [["a$b$c", "x"], ["$\\frac{", "_^"], ["two\nlines", "\udcff"]]  # the last: a byte that is no UTF-8


@pytest.fixture
def drawn(monkeypatch):
    """Returns the list of the figures that are saved."""
    saved, save = [], figures.save
    monkeypatch.setattr(figures, "save", lambda figure, path: (saved.append(figure), save(figure, path)))
    return saved


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


def test_plain_text_by_hand():
    assert figures.plain_text("50$ and $x_1$") == r"50\$ and \$x_1\$"
    assert figures.plain_text(" two\n lines\t") == "two lines"
    assert figures.plain_text("a\udcffb") == "a?b"
    assert figures.plain_text("狐 лиса") == "狐 лиса"


def test_any_class_name_can_be_drawn(drawn, tmp_path):
    figures.save_branch_use(results(), NAMES, tmp_path / "use.png")
    figures.save_confusion(results(), NAMES, tmp_path / "confusion.png")
    for figure in drawn:
        labels = [label.get_text() for label in figure.axes[0].get_yticklabels()]
        assert labels == [r"0: a\$b\$c, x", r"1: \$\frac{, _^", "2: two lines, ?"]
    assert (tmp_path / "use.png").stat().st_size and (tmp_path / "confusion.png").stat().st_size


def test_fallback_fonts_draw_what_the_own_font_lacks(tmp_path, monkeypatch):
    clusters = [["\N{LATIN SMALL LETTER D WITH PALATAL HOOK}"], ["b"], ["c"]]

    def draw():
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            figures.save_branch_use(results(), clusters, tmp_path / "use.png")
        return [str(warning.message) for warning in caught if "missing from font" in str(warning.message)]

    # STIXGeneral comes with matplotlib, and has this character.
    assert "STIXGeneral" in {font.name for font in font_manager.fontManager.ttflist}
    assert draw() == []
    monkeypatch.setattr(figures, "FALLBACK_FONTS", ("No Such Font",))
    assert any("PALATAL HOOK" in message for message in draw())


@pytest.mark.parametrize(("clusters", "rows"), [(3, 3), (30, 30), (100, 20)])
def test_confusion(drawn, tmp_path, clusters, rows):
    names = [[f"class {number} of a name that is long and goes on", "other"] for number in range(clusters)]
    figures.save_confusion(results(clusters), names, tmp_path / "confusion.png")
    (figure,) = drawn
    gate, predicted, branches = (axes.images[0].get_array() for axes in figure.axes[:3])
    np.testing.assert_array_equal(gate, np.eye(clusters))
    np.testing.assert_array_equal(branches, np.eye(clusters))
    assert np.ma.getmaskarray(predicted)[-1].all() and not np.ma.getmaskarray(predicted)[:-1].any()
    assert not overlapping(label for label in figure.axes[0].get_yticklabels() if label.get_text())
    assert not overlapping(label for label in figure.axes[0].get_xticklabels() if label.get_text())
    assert rows - 1 <= len(figure.axes[0].get_yticks()) <= rows + 2
    figure.draw_without_rendering()  # saved, it had another resolution
    for axes in figure.axes:
        box = axes.get_tightbbox()  # nothing is cut off
        assert min(box.x0, box.y0) >= 0 and box.x1 <= figure.bbox.x1 and box.y1 <= figure.bbox.y1


def latency_rows(run, taus, ms, top1):
    keys = ("run", "tau", "ms", "low", "high", "top1")
    points = zip(taus, ms, top1, strict=True)
    return [dict(zip(keys, (run, tau, x, 0.9 * x, 1.2 * x, y), strict=True)) for tau, x, y in points]


def test_latency(drawn, tmp_path):
    # The second Hydra's points lie all in one place: there is room for few of their labels.
    rows = latency_rows("a", (0, 0.1, 0.5), (2.0, 1.5, 1.0), (0.70, 0.69, 0.6))
    rows += latency_rows("b$1$", np.arange(9) / 10, [3.0] * 9, [0.8] * 9)
    rows += latency_rows("plain", [None], [9.0], [0.7])
    figures.save_latency(rows, "title", tmp_path / "latency.png")
    axes = drawn[0].axes[0]
    assert axes.get_xscale() == "log"
    notes = axes.texts
    assert [note.get_text() for note in notes[:3]] == ["0", "0.1", "0.5"]
    assert 4 <= len(notes) < 12 and not overlapping(notes)
    legend = [text.get_text() for text in drawn[0].legends[0].get_texts()]
    assert legend == ["a", r"b\$1\$", "plain"]
    figures.save_latency(rows[:2], "title", tmp_path / "latency.png")
    assert drawn[1].axes[0].get_xscale() == "linear"


def overlapping(texts):
    """Whether any two of the texts do."""
    boxes = [text.get_window_extent() for text in texts]
    return any(box.overlaps(other) for i, box in enumerate(boxes) for other in boxes[:i])
