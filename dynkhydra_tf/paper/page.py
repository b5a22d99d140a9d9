"""A page of sections with tables and pictures, written as one HTML file or as Markdown.

The HTML, whose look is all in page.html, needs no other file and no network: pictures are inside it.
"""

import base64
import dataclasses
import os
import pathlib
from collections.abc import Sequence
from typing import NamedTuple

import jinja2

from dynkhydra_tf.tables import markdown_table


class Grid(NamedTuple):
    """A table's cells.

    Attributes:
        rows: lists of str, the first one the header.
        text_columns: indices of the columns that hold no numbers.
        key_columns: up to three that tell the rows apart; in HTML they stay in view when others scroll
            away: the second and the third, of few letters, on narrow windows only.
        main_column: index of the numbers that matter most; in HTML they are in view from the first, or None.
    """

    rows: Sequence[Sequence[str]]
    text_columns: Sequence[int] = ()
    key_columns: Sequence[int] = (0,)
    main_column: int | None = None

    def kinds(self, column: int, cell: str) -> str:
        """What a cell is, as the classes of page.html's style."""
        keys = list(self.key_columns)
        text = column in self.text_columns
        kinds = {
            "text": text,
            "long": text and len(cell) > 40,
            "key": column in keys,
            "second": column in keys[1:2],
            "third": column in keys[2:],
            "last": column == keys[-1],
            "main": column == self.main_column,
        }
        return " ".join(kind for kind, holds in kinds.items() if holds)


class Picture(NamedTuple):
    """A PNG file and what it shows."""

    path: pathlib.Path
    caption: str

    def data_uri(self) -> str:
        """The picture itself, as an address."""
        return f"data:image/png;base64,{base64.b64encode(self.path.read_bytes()).decode()}"


@dataclasses.dataclass(frozen=True)
class Part:
    """Part of a section: whatever it has of a title, a paragraph, a table and a picture, in this order."""

    title: str = ""
    text: str = ""
    grid: Grid | None = None
    picture: Picture | None = None


@dataclasses.dataclass(frozen=True)
class Fold:
    """Parts and preformatted text under a line that opens them."""

    title: str
    parts: Sequence[Part]
    code: str


@dataclasses.dataclass(frozen=True)
class Section:
    """A section: title, paragraph, parts, folds."""

    title: str
    text: str = ""
    parts: Sequence[Part] = ()
    folds: Sequence[Fold] = ()


def to_html(title: str, text: str, sections: Sequence[Section]) -> str:
    """Returns a page, its title, a first paragraph and its sections, as HTML."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(pathlib.Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("page.html").render(title=title, text=text, sections=sections) + "\n"


def to_markdown(title: str, text: str, sections: Sequence[Section], directory: pathlib.Path) -> str:
    """Returns the same as Markdown; pictures are linked, relative to the directory that it will lie in."""
    blocks = [f"# {title}", text]
    for section in sections:
        blocks += [f"## {section.title}", section.text]
        for part in section.parts:
            blocks += _part_blocks(part, directory)
        for fold in section.folds:
            blocks.append(f"**{fold.title}**")
            for part in fold.parts:
                blocks += _part_blocks(part, directory)
            blocks.append(f"```\n{fold.code.rstrip()}\n```")
    return "\n\n".join(filter(None, blocks)) + "\n"


def _part_blocks(part, directory):
    return [
        f"### {part.title}" if part.title else "",
        part.text,
        markdown_table(part.grid.rows, part.grid.text_columns) if part.grid else "",
        _link(part.picture, directory) if part.picture else "",
    ]


def _link(picture, directory):
    link = pathlib.Path(os.path.relpath(picture.path, directory)).as_posix().replace(" ", "%20")
    return f"![{picture.caption}]({link})\n\n*{picture.caption}*"
