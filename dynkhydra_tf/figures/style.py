"""What all pictures share: fonts, names as text, and saving.

Drawn on `matplotlib.figure.Figure` and not through pyplot: no window system, no global state.
"""

import pathlib

from matplotlib import font_manager
from matplotlib.text import Text

from dynkhydra_tf.files import replacing

# For the characters that matplotlib's own font lacks; what a machine has of these is used, in this order.
FALLBACK_FONTS = ("Noto Sans CJK JP", "Noto Sans CJK SC", "WenQuanYi Micro Hei", "Noto Sans Devanagari")
FALLBACK_FONTS += ("Noto Sans Bengali", "Noto Sans Thai", "Microsoft YaHei", "Yu Gothic", "Malgun Gothic")
FALLBACK_FONTS += ("Hiragino Sans GB", "Apple SD Gothic Neo", "Arial Unicode MS", "STIXGeneral")


def plain_text(name):
    """Returns a name (of a class, a run, a file) that matplotlib draws as it is: no formula, in one line."""
    # A folder's name may hold bytes that are no UTF-8: surrogates, which cannot be drawn.
    return " ".join(name.split()).encode("utf-8", "replace").decode().replace("$", r"\$")


def short(name, most=44):
    """Returns a name as `plain_text`, cut after so many characters."""
    return plain_text(name if len(name) <= most else name[: most - 3] + "...")


def cluster_names(clusters):
    """Returns "NUMBER: CLASS, CLASS, ..." for each cluster, a list of class names."""
    return [f"{number}: {', '.join(classes)}" for number, classes in enumerate(clusters)]


def save(figure, path):
    """Writes a matplotlib figure as a PNG; replaces `path` whole or not at all.

    Characters that matplotlib's own font lacks are taken from `FALLBACK_FONTS`, where these are installed.
    """
    installed = {font.name for font in font_manager.fontManager.ttflist}
    fonts = ["DejaVu Sans", *(name for name in FALLBACK_FONTS if name in installed)]
    for text in figure.findobj(Text):
        text.set_fontfamily(fonts)
    with replacing(pathlib.Path(path)) as temporary:
        figure.savefig(temporary, dpi=110)
