import warnings

import pytest
from matplotlib import font_manager
from matplotlib.figure import Figure

from dynkhydra_tf.figures import style
from dynkhydra_tf.figures.branch_use import save_branch_use
from tests.test_figures import results


def test_plain_text_by_hand():
    assert style.plain_text("50$ and $x_1$") == r"50\$ and \$x_1\$"
    assert style.plain_text(" two\n lines\t") == "two lines"
    assert style.plain_text("a\udcffb") == "a?b"
    assert style.plain_text("狐 лиса") == "狐 лиса"


def test_names_are_cut_to_columns_by_hand():
    assert style.short("abcdefghij", 10) == "abcdefghij"
    assert style.short("abcdefghijk", 10) == "abcdefg..."
    assert style.short("狐" * 40, 20) == "狐" * 7 + "..."  # each takes two
    assert style.wrapped("one two three four five six", 10, 2) == "one two\nthree ..."
    assert style.wrapped("", 10, 2) == "" and style.short("") == ""


def test_fallback_fonts_draw_what_the_own_font_lacks(tmp_path, monkeypatch):
    clusters = [["\N{LATIN SMALL LETTER D WITH PALATAL HOOK}" * 3], ["b"], ["c"]]

    def draw():
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            save_branch_use(results(), clusters, tmp_path / "use.png")
        return [str(warning.message) for warning in caught]

    # STIXGeneral comes with matplotlib, and has this character.
    assert "STIXGeneral" in {font.name for font in font_manager.fontManager.ttflist}
    assert draw() == []
    monkeypatch.setattr(style, "FALLBACK_FONTS", ("No Such Font",))
    (message,) = draw()
    assert "no font has 1 of the characters (\\N{LATIN SMALL LETTER D WITH PALATAL HOOK}). Install" in message


def test_other_warnings_than_of_fonts_are_passed_on(tmp_path):
    figure = Figure(figsize=(0.1, 0.1), layout="constrained")
    figure.subplots().set_title("no room")
    with pytest.warns(UserWarning, match="collapsed to zero"):
        style.save(figure, tmp_path / "small.png")


@pytest.mark.parametrize(
    ("least", "most", "ticks"),
    [
        (0.9, 600, [1, 2, 3, 5, 10, 20, 30, 50, 100, 200, 300, 500]),
        (0.9, 5.5, [1, 2, 3, 5]),
        (1.4, 5.5, [1.5, 2, 3, 4, 5]),
        (0.55, 1.95, [0.6, 0.7, 0.8, 0.9, 1, 1.2, 1.4, 1.6, 1.8]),
    ],
)
def test_a_logarithmic_axis_has_some_plain_numbers(least, most, ticks):
    axes = Figure().subplots()
    axes.set(xscale="log", xlim=(least, most))
    style.plain_log_axis(axes.xaxis)
    shown = [tick for tick in axes.xaxis.get_major_locator()() if least <= tick <= most]
    assert shown == pytest.approx(ticks)
    texts = axes.xaxis.get_major_formatter().format_ticks(shown)
    assert texts == [f"{tick:g}" for tick in ticks]
