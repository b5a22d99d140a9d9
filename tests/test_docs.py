"""README.md and docs/: every table is drawn as one, and every link leads somewhere."""

import itertools
import re

import pytest

from tests.conftest import ROOT

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def prose(page):
    """The lines of a page, without its blocks of code."""
    return re.sub(r"^ *```.*?^ *```$", "", page.read_text(encoding="utf-8"), flags=re.M | re.S).splitlines()


def anchors(page):
    """The names of a page's headings as GitHub makes them."""
    headings = [line.lstrip("# ") for line in prose(page) if line.startswith("#")]
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_tables_are_whole(page):
    for inside, group in itertools.groupby(prose(page), lambda line: line.lstrip().startswith("|")):
        if inside:
            head, rule, *rows = group
            assert re.fullmatch(r"\s*\|([-:]+\|)+", rule.replace(" ", "")), f"no table begins with: {head}"
            assert {len(re.findall(r"(?<!\\)\|", row)) for row in (head, rule, *rows)} == {rule.count("|")}, (
                head
            )


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    text = re.sub(r"`[^`]*`", "", "\n".join(prose(page)))
    targets = re.findall(r"\]\(([^)\s]+)\)", text)
    assert targets or page.name != "README.md"
    for target in targets:
        if "://" not in target:
            file, _, anchor = target.partition("#")
            there = (page.parent / file) if file else page
            assert there.exists(), f"{page.name} has a link to {file}, which is not there"
            assert not anchor or anchor in anchors(there), f"{page.name}: no heading {anchor} in {file}"
