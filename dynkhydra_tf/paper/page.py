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
    """

    rows: Sequence[Sequence[str]]
    text_columns: Sequence[int] = ()


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
    """Pictures and preformatted text under a line that opens them."""

    title: str
    pictures: Sequence[Picture]
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
            blocks += [f"### {part.title}" if part.title else "", part.text]
            blocks.append(markdown_table(*part.grid) if part.grid else "")
            blocks.append(_link(part.picture, directory) if part.picture else "")
        for fold in section.folds:
            pictures = [_link(picture, directory) for picture in fold.pictures]
            blocks += [f"**{fold.title}**", *pictures, f"```\n{fold.code.rstrip()}\n```"]
    return "\n\n".join(filter(None, blocks)) + "\n"


def _link(picture, directory):
    link = pathlib.Path(os.path.relpath(picture.path, directory)).as_posix().replace(" ", "%20")
    return f"![{picture.caption}]({link})\n\n*{picture.caption}*"
