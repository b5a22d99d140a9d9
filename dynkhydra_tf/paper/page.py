"""A page of headings, paragraphs, tables and pictures, written as one HTML file or as Markdown.

The HTML needs no other file and no network: pictures are inside it.
"""

import base64
import html
import os
import pathlib
from typing import NamedTuple

from dynkhydra_tf.tables import markdown_table

_STYLE = """
:root { color-scheme: light; }
body { font: 16px/1.5 system-ui, sans-serif; color: #1b1f24; background: #fff; max-width: 72rem;
  margin: 0 auto; padding: 1rem 1.2rem 4rem; }
h1 { font-size: 1.9rem; line-height: 1.2; } h2 { margin-top: 2.6rem; border-bottom: 1px solid #d0d7de; }
h3 { margin-top: 1.9rem; } p { max-width: 46rem; }
.wide { overflow-x: auto; margin: 1rem 0 1.6rem; } table { border-collapse: collapse; font-size: .9rem; }
th, td { padding: .28rem .7rem; border-bottom: 1px solid #e3e7eb; text-align: right; white-space: nowrap; }
th { border-bottom: 2px solid #8c959f; vertical-align: bottom; } .text { text-align: left; }
td.text.long { white-space: normal; min-width: 18rem; }
figure { margin: 1.2rem 0; } img { max-width: 100%; height: auto; }
figcaption { font-size: .9rem; color: #57606a; }
details { margin: .6rem 0; } summary { cursor: pointer; overflow-wrap: anywhere; }
pre { overflow-x: auto; background: #f6f8fa; padding: .7rem; font-size: .85rem; }
"""


class Heading(NamedTuple):
    """A heading; level 1 is the page's own."""

    level: int
    text: str


class Paragraph(NamedTuple):
    """Plain text."""

    text: str


class Cells(NamedTuple):
    """A table: lists of str, the first one the header; `text_columns` are those that hold no numbers."""

    rows: list
    text_columns: tuple = ()


class Picture(NamedTuple):
    """A PNG file and what it shows."""

    path: pathlib.Path
    caption: str


class Fold(NamedTuple):
    """Blocks under a line that opens them."""

    summary: str
    blocks: list


class Code(NamedTuple):
    """Preformatted text."""

    text: str


def to_html(blocks):
    """Returns blocks as the text of one HTML page; the first one is its `Heading`."""
    title = html.escape(blocks[0].text)
    head = '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
    body = "\n".join(map(_html, blocks))
    return (
        f'<!doctype html>\n<html lang="en"><head>{head}<title>{title}</title><style>{_STYLE}</style></head>\n'
        f"<body>\n{body}\n</body></html>\n"
    )


def _html(block):
    match block:
        case Heading(level, text):
            return f"<h{level}>{html.escape(text)}</h{level}>"
        case Paragraph(text):
            return f"<p>{html.escape(text)}</p>"
        case Code(text):
            return f"<pre>{html.escape(text)}</pre>"
        case Cells(rows, text_columns):
            return _html_table(rows, text_columns)
        case Picture(path, caption):
            data = base64.b64encode(path.read_bytes()).decode()
            text = html.escape(caption)
            image = f'<img alt="{text}" src="data:image/png;base64,{data}">'
            return f"<figure>{image}<figcaption>{text}</figcaption></figure>"
        case Fold(summary, blocks):
            inner = "\n".join(map(_html, blocks))
            return f"<details><summary>{html.escape(summary)}</summary>\n{inner}\n</details>"
    raise TypeError(f"A page has no block like {block!r}")


def _html_table(rows, text_columns):
    def line(cells, tag):
        shown = []
        for column, cell in enumerate(cells):
            kind = ""
            if column in text_columns:
                kind = ' class="text long"' if len(cell) > 40 else ' class="text"'
            shown.append(f"<{tag}{kind}>{html.escape(cell)}</{tag}>")
        return f"<tr>{''.join(shown)}</tr>"

    body = "\n".join(line(cells, "td") for cells in rows[1:])
    head = line(rows[0], "th")
    return f'<div class="wide"><table>\n<thead>{head}</thead>\n<tbody>\n{body}\n</tbody></table></div>'


def to_markdown(blocks, directory):
    """Returns blocks as Markdown; pictures are linked, relative to the directory that it will lie in."""
    return "\n\n".join(_markdown(block, directory) for block in blocks) + "\n"


def _markdown(block, directory):
    match block:
        case Heading(level, text):
            return f"{'#' * level} {text}"
        case Paragraph(text):
            return text
        case Code(text):
            return f"```\n{text.rstrip()}\n```"
        case Cells(rows, text_columns):
            return markdown_table(rows, text_columns)
        case Picture(path, caption):
            link = pathlib.Path(os.path.relpath(path, directory)).as_posix().replace(" ", "%20")
            return f"![{caption}]({link})\n\n*{caption}*"
        case Fold(summary, blocks):
            return "\n\n".join([f"**{summary}**", *(_markdown(each, directory) for each in blocks)])
    raise TypeError(f"A page has no block like {block!r}")
