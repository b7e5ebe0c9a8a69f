"""The words of messages, docstrings, comments and pages: plain English, in short sentences.

README quotes messages, and docs/files.md lists the keys of JSON files: the sources must have them.
"""

import ast
import io
import itertools
import re
import tokenize
from pathlib import Path
from typing import Dict, Iterable, Iterator, List, NamedTuple, Optional, Tuple

from common.results import work_files

import pytest
from conftest import ROOT

AVOID: Dict[str, str] = {  # {pattern: what to write}; case does not count
    r"anew": "again",
    r"mend(?:s|ed|ing)?": "fix, repair",
    r"amiss": "wrong",
    r"(?-i:is none)": "there is not one",
    r"(?<!there )is no(?! longer)": "is not a",
    r"for certain": "certainly, or leave it out",
    r"of which": "a sentence of its own",
    r"likewise": "the same, also",
    r"whilst": "while",
    r"whichever": "the one that, any",
    r"whatever": "any, all",
    r"by now": "now, or leave it out",
    r"tells|told": "says, shows",
    r"meant": "intended; or name the thing",
    r"stands? (?:above|below|there|behind|beside)": "is, see above",
    r"upon": "on",
    r"whence|thereof|therein|herein|hitherto|amongst": "today's word",
    r"rooms?": "space (on a disk), memory, module",
    r"houses?": "code base",
    r"(?-i:floors?)(?!\()": "layer, package",  # Floor is an operator
}
WORDS = re.compile(
    "|".join(rf"(?P<w{place}>\b(?:{words})\b)" for place, words in enumerate(AVOID)), re.IGNORECASE
)
LONGEST = 25  # words of a sentence


def matching(*patterns: str) -> List[Path]:
    """The files of the repository that match a pattern, without Chinese pages."""
    paths = itertools.chain.from_iterable(ROOT.glob(pattern) for pattern in patterns)
    return sorted(path for path in paths if not path.name.endswith(".zh-CN.md"))


PRODUCT = matching("*.py", "scripts/**/*.py")
OTHERS = matching("scripts/**/*.c", "scripts/**/*.sh", "scripts/**/*.js", "scripts/**/*.html")
TESTS = matching("test/**/*.py")
PAGES = matching("*.md", "docs/*.md", ".github/**/*.md")


class Text(NamedTuple):
    """A string with those that continue it, or a comment of several lines."""

    line: int
    words: str


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def for_each(paths: List[Path]) -> "pytest.MarkDecorator":
    return pytest.mark.parametrize("path", paths, ids=name)


# ---- what is read --------------------------------------------------------------------------------


def texts(path: Path) -> List[Text]:
    """The strings and comments of a Python source, those that continue each other joined."""
    joined: List[Text] = []
    last = 0  # the type of the token before, if the next one may continue it
    source = io.StringIO(path.read_text(encoding="utf-8"))
    for token in tokenize.generate_tokens(source.readline):
        kind = tokenize.tok_name[token.type]
        if kind in ("NL", "INDENT", "DEDENT", "FSTRING_START", "FSTRING_END"):
            continue
        if kind == "COMMENT":
            words = token.string.lstrip("#")
        elif kind == "STRING":
            words = token.string.lstrip("rRbBfFuU").strip("\"'")
        elif kind == "FSTRING_MIDDLE":
            words = token.string
        else:
            last = 0
            continue
        words = re.sub(r"\{[^{}]*\}", "{}", words)  # a value, not a word
        if token.type == last:
            joined[-1] = Text(joined[-1].line, joined[-1].words + words)
        else:
            joined.append(Text(token.start[0], words))
        last = token.type
    return joined


def docstrings_and_comments(path: Path) -> Iterator[Text]:
    """What a test says to its readers; the strings that it checks are left out."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)):
            docstring = ast.get_docstring(node)
            if docstring:
                yield Text(getattr(node, "lineno", 1), docstring)
    source = io.StringIO(path.read_text(encoding="utf-8"))
    for token in tokenize.generate_tokens(source.readline):
        if token.type == tokenize.COMMENT:
            yield Text(token.start[0], token.string)


def lines_of(path: Path) -> List[Text]:
    lines = path.read_text(encoding="utf-8").splitlines()
    return [Text(number, line) for number, line in enumerate(lines, 1)]


def to_avoid(parts: Iterable[Text]) -> List[str]:
    """The words of the list that are in the texts: line, words around, what to write."""
    complaints = []
    for text in parts:
        words = " ".join(text.words.split())
        for match in WORDS.finditer(words):
            instead = list(AVOID.values())[int(str(match.lastgroup)[1:])]
            around = words[max(0, match.start() - 30) : match.end() + 30]
            complaints.append(f"line {text.line}: ...{around}... -> {instead}")
    return complaints


# ---- words ---------------------------------------------------------------------------------------


def test_the_list_finds_words_and_leaves_others_alone() -> None:
    bad = "It is no file; made anew, of which some room is none. Nothing is amiss by now."
    assert len(to_avoid([Text(1, bad)])) == 7
    good = "There is no file. It is no longer there; a mushroom, floor(x), what is None."
    assert to_avoid([Text(1, good)]) == []


@for_each(PRODUCT)
def test_messages_docstrings_and_comments_use_plain_words(path: Path) -> None:
    assert to_avoid(texts(path)) == []


@for_each(OTHERS)
def test_other_sources_use_plain_words(path: Path) -> None:
    parts = lines_of(path)
    if path.suffix == ".c":  # of C the comments and strings: a variable may have any name
        text = path.read_text(encoding="utf-8")
        parts = [Text(0, words) for words in re.findall(r'(?s)/\*.*?\*/|//[^\n]*|"[^"]*"', text)]
    assert to_avoid(parts) == []


@for_each(TESTS)
def test_tests_use_plain_words(path: Path) -> None:
    complaints = to_avoid(docstrings_and_comments(path))
    assert [line for line in complaints if path != Path(__file__)] == []


@for_each(PAGES)
def test_pages_use_plain_words(path: Path) -> None:
    assert to_avoid(lines_of(path)) == []


# ---- sentences -----------------------------------------------------------------------------------


def sentences(path: Path) -> Iterator[str]:
    """The sentences of a page, without tables, commands and headings; a list's item is one."""
    text = path.read_text(encoding="utf-8")
    text = re.sub(r"(?m)^(?:\||#|    ).*$", "", text)
    text = re.sub(r"\]\([^)]*\)", "]", text)  # where a link leads is not read
    text = re.sub(r"`[^`]*`", "CODE", text)  # a command or a name counts as one word
    for block in re.split(r"\n\s*\n|\n *(?:-|\d+\.) ", text):
        yield from re.split(r"(?<=[.:?!])[)*_]*\s+", " ".join(block.split()))


@for_each(PAGES)
def test_a_sentence_has_at_most_25_words(path: Path) -> None:
    long = [text for text in sentences(path) if len(re.findall(r"\w[\w'’.,-]*", text)) > LONGEST]
    assert long == []


# ---- what pages repeat ---------------------------------------------------------------------------


def string_of(node: ast.AST) -> Optional[str]:
    """The value of a string in a source: a Constant, or what Python 3.7 calls a Str."""
    value = getattr(node, "value", getattr(node, "s", None))
    return value if isinstance(value, str) else None


def messages() -> str:
    """All strings of the product and of the stand-ins, one on a line; … for each value."""
    lines = []
    for path in [*PRODUCT, *ROOT.glob("test/ascend/python/*.py")]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            text = string_of(node)
            if isinstance(node, ast.JoinedStr):
                text = "".join(string_of(part) or "…" for part in node.values)
            lines += [text] if text else []
    return "\n".join(" ".join(line.split()) for line in lines)


def test_messages_that_readme_explains_are_the_program_s() -> None:
    section = (
        (ROOT / "README.md").read_text(encoding="utf-8").split("\n## When it does not work\n")[1]
    )
    cells = [line.split(" | ")[0] for line in section.splitlines() if line.startswith("| `")]
    quoted = re.findall("`([^`]+)`", "\n".join(cells))
    assert len(quoted) > 10
    known = messages()
    values = re.compile(r"\b[NM]\b(?: images)?|'\w+'|\d+|E…")
    missing = [
        text
        for text in quoted
        if not re.search(".{1,10}".join(map(re.escape, values.split(text))), known)
    ]
    assert missing == []


def keys_of(shape: object) -> Iterator[str]:
    """The keys that a work file's shape names, at any depth."""
    if isinstance(shape, dict):
        for key, value in shape.items():
            if isinstance(key, str):
                yield key.rstrip("?")
            yield from keys_of(value)
    elif isinstance(shape, (list, tuple)):
        for value in shape:
            yield from keys_of(value)


def work_file_keys() -> Iterator[Tuple[str, str]]:
    """(file, key) of what programs read; `tool` and `version` are in most files."""
    for file in vars(work_files).values():
        if isinstance(file, work_files.WorkFile):
            for key in set(keys_of(file.shape)) - {"tool", "version"}:
                yield file.name, key


def test_the_page_of_files_has_every_json_key_that_a_program_reads() -> None:
    page = (ROOT / "docs" / "files.md").read_text(encoding="utf-8")
    table = page.split("## JSON files and their keys")[1].split("\n## ")[0]
    rows = [line for line in table.splitlines() if line.startswith("| `")]
    for file, key in work_file_keys():
        of_file = [row for row in rows if row.startswith(f"| `{file}`")]
        assert f"`{key}`" in "\n".join(of_file), file
