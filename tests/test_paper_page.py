import base64
import html.parser

import pytest

from dynkhydra_tf.paper.page import Cells, Code, Fold, Heading, Paragraph, Picture, to_html, to_markdown

PNG = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAQAAAC1HAwCAAAAC0lEQVR42mNk+A8AAQUBAScY42YAAAAASUVORK5CYII="
)


@pytest.fixture
def blocks(tmp_path):
    (tmp_path / "runs").mkdir()
    picture = tmp_path / "runs" / "a b.png"
    picture.write_bytes(PNG)
    return [
        Heading(1, "A <b> & c"),
        Paragraph("x < y"),
        Cells([["name", "n"], ["a|b <i>", "1"]], (0,)),
        Fold("more", [Picture(picture, 'a "caption"'), Code("--flag=<x>\n")]),
    ]


class Reader(html.parser.HTMLParser):
    """Collects what a browser would see, and checks that tags close."""

    def __init__(self):
        super().__init__()
        self.open, self.text, self.images = [], [], []

    def handle_starttag(self, tag, attrs):
        if tag not in ("meta", "img"):
            self.open.append(tag)
        if tag == "img":
            self.images.append(dict(attrs))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def test_html_is_whole_escaped_and_needs_no_other_file(blocks):
    reader = Reader()
    reader.feed(to_html(blocks))
    assert reader.open == []
    for text in ("A <b> & c", "x < y", "a|b <i>", "--flag=<x>\n", "more"):
        assert text in reader.text
    (image,) = reader.images
    assert image["alt"] == 'a "caption"'
    assert base64.b64decode(image["src"].removeprefix("data:image/png;base64,")) == PNG


def test_markdown_links_pictures_from_where_it_lies(blocks, tmp_path):
    text = to_markdown(blocks, tmp_path / "docs")
    assert text.startswith(
        "# A <b> & c\n\nx < y\n\n| name | n |\n| --- | ---: |\n| a\\|b <i> | 1 |\n\n**more**"
    )
    assert '![a "caption"](../runs/a%20b.png)' in text
    assert text.endswith("```\n--flag=<x>\n```\n")


def test_what_is_no_block_is_an_error():
    with pytest.raises(TypeError, match="no block like 'text'"):
        to_html([Heading(1, "title"), "text"])
