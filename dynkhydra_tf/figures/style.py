"""What all pictures share: fonts, names as text, and saving.

Drawn on `matplotlib.figure.Figure` and not through pyplot: no window system, no global state.
"""

import pathlib
import re
import textwrap
import unicodedata
import warnings

import matplotlib
from matplotlib import font_manager
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from dynkhydra_tf.files import replacing

DPI = 110
# For the characters that matplotlib's own font lacks; what a machine has of these is used, in this order.
FALLBACK_FONTS = ("Noto Sans CJK JP", "Noto Sans CJK SC", "WenQuanYi Micro Hei", "Noto Sans Devanagari")
FALLBACK_FONTS += ("Noto Sans Bengali", "Noto Sans Thai", "Microsoft YaHei", "Yu Gothic", "Malgun Gothic")
FALLBACK_FONTS += ("Hiragino Sans GB", "Apple SD Gothic Neo", "Arial Unicode MS", "STIXGeneral")
Path = str | pathlib.Path


# === Names ===


def plain_text(name: str) -> str:
    """Returns a name (of a class, a run, a file) that matplotlib draws as it is: no formula, in one line."""
    # A folder's name may hold bytes that are no UTF-8: surrogates, which cannot be drawn.
    return " ".join(name.split()).encode("utf-8", "replace").decode().replace("$", r"\$")


def short(name: str, columns: int = 44) -> str:
    """Returns a name as `plain_text`, cut so that it takes at most so many columns."""
    most = _characters(name, columns)
    return plain_text(name if len(name) <= most else name[: most - 3].rstrip() + "...")


def wrapped(name: str, columns: int, lines: int) -> str:
    """Returns a name as `plain_text`, in at most so many lines of so many columns."""
    broken = textwrap.wrap(name, _characters(name, columns), max_lines=lines, placeholder=" ...")
    return "\n".join(map(plain_text, broken))


def _characters(text, columns):
    """How many of a text's characters fit into so many columns; a Chinese one takes two."""
    wide = sum(unicodedata.east_asian_width(character) in "WF" for character in text)
    return max(8, columns * len(text) // (len(text) + wide)) if text else columns


def cluster_names(clusters: list[list[str]]) -> list[str]:
    """Returns "NUMBER: CLASS, CLASS, ..." for each cluster, a list of class names."""
    return [f"{number}: {', '.join(classes)}" for number, classes in enumerate(clusters)]


# === Figures ===


class _FewTicks(LogLocator):
    """Ticks at the roundest numbers of which an axis holds at least four."""

    def tick_values(self, vmin, vmax):
        for subs in (
            (1, 2, 3, 5),
            (1, 1.5, 2, 3, 4, 5, 7),
            (1, 1.2, 1.4, 1.6, 1.8, 2, 2.5, 3, 4, 5, 6, 7, 8, 9),
        ):
            self.set_params(subs=subs)
            ticks = super().tick_values(vmin, vmax)
            if sum(vmin <= tick <= vmax for tick in ticks) >= 4:
                break
        return ticks


def plain_log_axis(axis: Axis) -> None:
    """Gives a logarithmic axis plain numbers at 1, 2, 3, 5, 10 and so on, at more where it is short."""
    axis.set_major_locator(_FewTicks())
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_locator(NullLocator())


def lay_out(figure: Figure) -> None:
    """Puts all that a figure has in its place, as it will be saved; only now can places be measured."""
    _set_fonts(figure)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font")  # `save` tells
        figure.draw_without_rendering()


def save(figure: Figure, path: Path) -> None:
    """Writes a matplotlib figure as a PNG; replaces `path` whole or not at all.

    Characters that matplotlib's own font lacks are taken from `FALLBACK_FONTS`, where these are installed.
    One warning tells of those that are in none.
    """
    _set_fonts(figure)
    with replacing(pathlib.Path(path)) as temporary, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        figure.savefig(temporary, dpi=DPI)
    missing = []
    for warning in caught:
        match = re.match(r"Glyph \d+ \((.*?)\) missing from font", str(warning.message))
        if not match:
            warnings.warn(warning.message, warning.category, stacklevel=2)
        elif match[1] not in missing:  # it comes for each weight and each time that it is drawn
            missing.append(match[1])
    if missing:
        named = ", ".join(missing[:2]) + (", ..." if len(missing) > 2 else "")
        warnings.warn(
            f"{path}: no font has {len(missing)} of the characters ({named}). Install one that does, such as "
            f"Noto Sans CJK, and empty {matplotlib.get_cachedir()}",
            stacklevel=2,
        )


def _set_fonts(figure):
    installed = {font.name for font in font_manager.fontManager.ttflist}
    fonts = ["DejaVu Sans", *(name for name in FALLBACK_FONTS if name in installed)]
    for text in figure.findobj(Text):
        text.set_fontfamily(fonts)
