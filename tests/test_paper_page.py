import base64
import html.parser

import pytest

from dynkhydra_tf.paper.page import Fold, Grid, Part, Picture, Section, to_html, to_markdown

PNG = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAQAAAC1HAwCAAAAC0lEQVR42mNk+A8AAQUBAScY42YAAAAASUVORK5CYII="
)


@pytest.fixture
def content(tmp_path):
    (tmp_path / "runs").mkdir()
    picture = tmp_path / "runs" / "a b.png"
    picture.write_bytes(PNG)
    shown = Picture(picture, 'a "caption"')
    table = Grid([["name", "n"], ["a|b <i>", "1"], ["x" * 41, "2"]], (0,))
    first = Section("S & T", parts=[Part("part", grid=table), Part(text="after it", picture=shown)])
    return (
        "A <b> & c",
        "x < y",
        [first, Section("R", folds=[Fold("more", [Part(picture=shown)], "--flag=<x>\n")])],
    )


class Reader(html.parser.HTMLParser):
    """Collects what a browser would see, and checks that tags close."""

    def __init__(self):
        super().__init__()
        self.open, self.text, self.images, self.cells = [], [], [], []

    def handle_starttag(self, tag, attrs):
        if tag not in ("meta", "img"):
            self.open.append(tag)
        if tag == "img":
            self.images.append(dict(attrs))
        if tag in ("td", "th"):
            self.cells.append(dict(attrs).get("class"))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def test_html_is_whole_escaped_and_needs_no_other_file(content):
    reader, text = Reader(), to_html(*content)
    reader.feed(text)
    assert reader.open == []
    for expected in ("A <b> & c", "x < y", "S & T", "part", "a|b <i>", "after it", "--flag=<x>\n", "more"):
        assert expected in reader.text
    assert reader.text.count("A <b> & c") == 2  # the page's title, and the window's
    assert reader.cells == ["text key last", None, "text key last", None, "text long key last", None]
    assert len(reader.images) == 2
    for image in reader.images:
        assert image["alt"] == 'a "caption"'
        assert base64.b64decode(image["src"].removeprefix("data:image/png;base64,")) == PNG
    assert text.startswith("<!doctype html>\n") and text.endswith("</html>\n")


def test_markdown_links_pictures_from_where_it_lies(content, tmp_path):
    title, first, (tables, folds) = content
    text = to_markdown(title, first, [tables, folds], tmp_path / "docs")
    assert text.startswith(
        "# A <b> & c\n\nx < y\n\n## S & T\n\n### part\n\n| name | n |\n| --- | ---: |\n| a\\|b <i> | 1 |\n"
    )
    assert '\n\nafter it\n\n![a "caption"](../runs/a%20b.png)\n\n*a "caption"*\n\n## R\n\n**more**' in text
    assert text.endswith("```\n--flag=<x>\n```\n")


def test_keys_and_the_main_column_are_marked():
    grid = Grid([["system", "top-1", "d", "tau"]], (0,), key_columns=(0, 2, 3), main_column=1)
    assert [grid.kinds(column, "x") for column in range(4)] == [
        "text key",
        "main",
        "key second",
        "key third last",
    ]
    text = to_html("T", "", [Section("S", parts=[Part(grid=grid)])])
    assert '<th class="main">top-1</th>' in text
