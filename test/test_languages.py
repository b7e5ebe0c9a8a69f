"""The Chinese pages have every command, option and figure of the English ones, and links."""

import re
import unicodedata
from pathlib import Path
from typing import List, Set, Tuple

import pytest
from conftest import ROOT

CHINESE = [*sorted(ROOT.glob("*.zh-CN.md")), *sorted((ROOT / "docs").glob("*.zh-CN.md"))]
NEEDED = {  # all pages but CHANGELOG and CONTRIBUTING
    "README",
    "architecture",
    "ascend",
    "checkpoints",
    "container",
    "data",
    "files",
    "glossary",
    "graph",
    "performance",
    "report",
    "runs",
    "scale",
    "setup",
    "speed",
    "weights",
}
CODE = "`[^`]+`"
FIGURE = r"(?:\d[\d.,]*)?\d"
WIDTH = 130  # columns; a Chinese character takes two

ENGLISH = [
    page
    for page in [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md"))]
    if page not in CHINESE
]

both = pytest.mark.parametrize("page", CHINESE, ids=lambda page: page.name)


def english(page: Path) -> Path:
    return page.with_name(page.name.replace(".zh-CN", ""))


def lines(page: Path) -> List[str]:
    return page.read_text(encoding="utf-8").splitlines()


def blocks(page: Path) -> List[str]:
    """The lines of all indented blocks (commands and output), without comments behind #."""
    return [re.sub(r"\s+# .*", "", line) for line in lines(page) if line.startswith("    ")]


def facts(text: str) -> List[str]:
    """The code spans of a text, and the numbers beside them, sorted."""
    text = re.sub(r"\]\([^)]*\)", "]", text)  # the target of a link is not a fact
    return sorted(re.findall(CODE, text)) + sorted(re.findall(FIGURE, re.sub(CODE, " ", text)))


def links(page: Path) -> List[Tuple[str, str]]:
    """(file, section) of each link into this repository, either may be empty."""
    text = page.read_text(encoding="utf-8")
    return re.findall(r"\]\((?!https?:)([^)#]*)#?([^)]*)\)", text)


def rows(page: Path) -> List[List[str]]:
    return [facts(line) for line in lines(page) if line.startswith("|")]


def sections(page: Path) -> List[Set[str]]:
    """Of the prose under each heading the code spans and the numbers, each once."""
    prose = "\n".join(line for line in lines(page) if not line.startswith(("    ", "|")))
    return [set(facts(part)) for part in re.split(r"(?m)^#+ .*$", prose)]


def levels(page: Path) -> List[str]:
    """The marks of the headings in order: #, ##, …"""
    return [line.split(" ")[0] for line in lines(page) if line.startswith("#")]


def anchors(page: Path) -> Set[str]:
    """What GitHub calls the page's headings in links."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {
        re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings
    }


def test_every_page_is_there_in_both_languages() -> None:
    assert {page.name.split(".")[0] for page in CHINESE} == NEEDED
    assert {
        page.stem for page in (ROOT / "docs").glob("*.md") if ".zh-CN" not in page.name
    } <= NEEDED


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
    assert levels(page) == levels(english(page))


@pytest.mark.parametrize("page", ENGLISH, ids=lambda page: page.name)
def test_links_of_english_pages_lead_to_files_and_sections(page: Path) -> None:
    for target, anchor in links(page):
        other = page.parent / target if target else page
        assert other.exists(), target
        assert not anchor or anchor in anchors(other), f"{other.name} has no section #{anchor}"
        assert ".zh-CN" not in target or other.name == f"{page.stem}.zh-CN.md", target


@both
def test_links_lead_to_what_is_there_in_chinese_if_possible(
    page: Path,
) -> None:
    for target, anchor in links(page):
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
