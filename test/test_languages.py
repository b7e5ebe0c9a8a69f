"""The Chinese pages: every command, option and figure of the English ones, and a way from each to the other."""

import re
import unicodedata
from pathlib import Path
from typing import List, Set

import pytest
from conftest import ROOT

CHINESE = sorted(path for folder in (ROOT, ROOT / "docs") for path in folder.glob("*.zh-CN.md"))
NEEDED = {
    "README",
    "ascend",
    "checkpoints",
    "data",
    "files",
    "graph",
    "report",
    "scale",
    "weights",
}  # on a card
CODE = "`[^`]+`"
FIGURE = r"(?:\d[\d.,]*)?\d"
WIDTH = 130  # columns; a Chinese character takes two

both = pytest.mark.parametrize("page", CHINESE, ids=lambda page: page.name)


def english(page: Path) -> Path:
    return page.with_name(page.name.replace(".zh-CN", ""))


def lines(page: Path) -> List[str]:
    return page.read_text(encoding="utf-8").splitlines()


def blocks(page: Path) -> List[str]:
    """The lines of all indented blocks, commands and what they print; what stands behind a # is for readers."""
    return [re.sub(r"\s+# .*", "", line) for line in lines(page) if line.startswith("    ")]


def facts(text: str) -> List[str]:
    """The code spans of a text, and the numbers beside them, sorted."""
    text = re.sub(r"\]\([^)]*\)", "]", text)  # where a link leads is no fact
    return sorted(re.findall(CODE, text)) + sorted(re.findall(FIGURE, re.sub(CODE, " ", text)))


def rows(page: Path) -> List[List[str]]:
    return [facts(line) for line in lines(page) if line.startswith("|")]


def sections(page: Path) -> List[Set[str]]:
    """Of the prose under each heading the code spans and the numbers, each once."""
    prose = "\n".join(line for line in lines(page) if not line.startswith(("    ", "|")))
    return [set(facts(part)) for part in re.split(r"(?m)^#+ .*$", prose)]


def anchors(page: Path) -> Set[str]:
    """What GitHub calls the page's headings in links."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {
        re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings
    }


def test_the_pages_that_a_user_of_a_card_needs_are_there() -> None:
    assert NEEDED <= {page.name.split(".")[0] for page in CHINESE}


@both
def test_commands_are_the_same(page: Path) -> None:
    assert blocks(page) == blocks(english(page))


@both
def test_tables_have_the_same_rows_with_the_same_options_and_figures(page: Path) -> None:
    assert rows(page) == rows(english(page))


@both
def test_each_section_names_the_same_options_files_and_figures(page: Path) -> None:
    headings = [line for line in lines(english(page)) if line.startswith("#")]
    here, there = sections(page), sections(english(page))
    assert len(here) == len(there)
    for heading, chinese, original in zip([english(page).name] + headings, here, there):
        assert (heading, chinese - original, original - chinese) == (heading, set(), set())


@both
def test_each_page_begins_with_a_link_to_the_other_and_has_the_same_sections(page: Path) -> None:
    for here, there in ((page, english(page)), (english(page), page)):
        assert f"]({there.name})" in "\n".join(lines(here)[:6])
    levels = [
        [line.split(" ")[0] for line in lines(path) if line.startswith("#")]
        for path in (page, english(page))
    ]
    assert levels[0] == levels[1]


@both
def test_links_lead_to_files_and_sections_that_are_there_in_chinese_where_there_is_a_chinese_page(
    page: Path,
) -> None:
    text = page.read_text(encoding="utf-8")
    for target, anchor in re.findall(r"\]\((?!https?:)([^)#]*)#?([^)]*)\)", text):
        other = page.parent / target if target else page
        assert other.exists(), target
        assert not anchor or anchor in anchors(other), f"{other.name} has no section #{anchor}"
        chinese = other.with_name(f"{other.stem}.zh-CN.md")
        assert other.suffix != ".md" or other == english(page) or not chinese.exists(), (
            f"{chinese.name} is there"
        )


@both
def test_lines_fit_a_terminal(page: Path) -> None:
    for line in lines(page):
        columns = sum(2 if unicodedata.east_asian_width(letter) in "WF" else 1 for letter in line)
        assert columns <= WIDTH or line.startswith("|"), (columns, line)
