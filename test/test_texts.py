"""What the report says: the same in each language, and all of it is used."""

import re
import string
from typing import Dict, Set

from common.model import speed
from common.results import texts

import pipeline
import pytest
from conftest import ROOT

CHINESE = re.compile("[\u4e00-\u9fff]")
# atc's word, a unit, and punctuation
WITHOUT_WORDS = {
    "batch_size",
    "latency_99_ms",
    "named_value",
    "full_stop",
    "list_separator",
    "semicolon",
}


def names_in(text: str) -> Set[str]:
    """The names of the values that a text takes."""
    return {name for _, name, _, _ in string.Formatter().parse(text) if name}


def test_both_languages_have_the_same_texts_with_the_same_values() -> None:
    english, chinese = texts.TABLES["en"], texts.TABLES["zh"]
    assert english.keys() == chinese.keys() and len(english) > 200
    for key, text in english.items():
        assert names_in(text) == names_in(chinese[key]), key
        if key.endswith("_one"):
            assert names_in(text) <= {*names_in(english[key[: -len("_one")]]), "n"}, key


def test_chinese_texts_are_chinese() -> None:
    english, chinese = texts.TABLES["en"], texts.TABLES["zh"]
    without = {key for key, text in chinese.items() if not CHINESE.search(text)}
    assert without == WITHOUT_WORDS
    assert {key for key in english if CHINESE.search(english[key])} == set()
    assert all(map(CHINESE.search, texts.KNOWN_TEXTS.values()))


def sources() -> str:
    """The text of the report's program, template and modules."""
    results = ROOT / "scripts" / "common" / "results"
    paths = [ROOT / "scripts" / "report.py", results / "report.html", *results.glob("*.py")]
    return "\n".join(path.read_text(encoding="utf-8") for path in paths if path.name != "texts.py")


def test_each_text_is_used() -> None:
    program = sources()
    made_of_parts = set(re.findall(r'[("]([a-z_]+_)["{]', program))  # "state_" ~ …, f"count_{key}"
    for key in texts.ENGLISH.table:
        stem = re.sub("_one$", "", key)
        by_prefix = any(stem.startswith(prefix) for prefix in made_of_parts)
        assert f'"{stem}"' in program or by_prefix, key


def test_texts_of_other_programs_that_are_known_are_theirs() -> None:
    theirs = [*speed.LIMITS, *speed.limits(1024, 1024)]
    for text in speed.LOOK_AT.values():
        theirs += [text.format(names) for names in ("Pad", "SpaceToDepth", "SpaceToDepth and Pad")]
    program = (ROOT / "scripts" / "pipeline.py").read_text(encoding="utf-8")
    steps = set(re.findall(r'Step\(\s*"[^"]+",\s*"([^"]+)"', program))
    steps |= {f"Comparison with {precision}" for precision in ("float16", "float32")}
    assert set(texts.KNOWN_TEXTS) - set(theirs) == steps
    assert set(theirs) <= set(texts.KNOWN_TEXTS)
    assert pipeline.REPORT.name in texts.KNOWN_TEXTS


@pytest.mark.parametrize(
    "environment, language",
    (
        ({"LANG": "zh_CN.UTF-8"}, "zh"),
        ({"LANG": "zh_TW"}, "zh"),
        ({"LANG": "en_US.UTF-8"}, "en"),
        ({"LANG": "de_DE.UTF-8"}, "en"),
        ({"LANG": "zh_CN.UTF-8", "LC_ALL": "C.UTF-8"}, "en"),
        ({"LANG": "C", "LC_MESSAGES": "zh_CN.UTF-8"}, "zh"),
        ({"LANG": "zh_CN.UTF-8", "LC_ALL": ""}, "zh"),
        ({}, "en"),
    ),
)
def test_the_environment_says_the_language(environment: Dict[str, str], language: str) -> None:
    assert texts.language_of(environment) == language


def test_one_thing_and_several_have_words_of_their_own() -> None:
    assert texts.ENGLISH("right_answers", subject="x", share="100 %", n=1) == (
        "x gives the right answer for 100 % of 1 image"
    )
    assert texts.ENGLISH("right_answers", subject="x", share="80.00 %", n=50000) == (
        "x gives the right answer for 80.00 % of 50,000 images"
    )
