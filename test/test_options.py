"""Options are declared once, their contradictions too; importing a module changes nothing."""

import argparse
import ast
import itertools
import subprocess
import sys
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Tuple
from unittest import mock

from common.ascend import chips
from common.core import cli, options, places
from common.core.cli import Refusal
from common.data import evaluation, prepared
from common.model import quantisation

import check
import infer_onnx
import pipeline
import pytest
from conftest import ROOT, refusal

import TResNet_postprocess
import TResNet_preprocess

SOURCES = sorted(
    [*ROOT.glob("TResNet_*.py"), *ROOT.glob("scripts/*.py"), *ROOT.glob("scripts/common/**/*.py")]
)
TABLE = ROOT / "scripts" / "common" / "core" / "options.py"


# ---- declared once -------------------------------------------------------------------------------


def calls(path: Path) -> Iterator[ast.Call]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call):
            yield node


def declares_an_option(call: ast.Call) -> bool:
    """Whether a call declares an option, to argparse or to our table."""
    name = getattr(call.func, "attr", getattr(call.func, "id", ""))
    first = call.args[0] if call.args else None
    word = getattr(first, "value", getattr(first, "s", None))
    return name.startswith(("add", "option")) and isinstance(word, str) and word.startswith("-")


def test_no_program_declares_an_option_of_its_own() -> None:
    assert TABLE in SOURCES and len(SOURCES) > 50
    declaring: List[Path] = []
    for path in SOURCES:
        declaring += [path for call in calls(path) if declares_an_option(call)]
    parser_of_all = ROOT / "scripts" / "common" / "core" / "cli.py"  # which declares --version
    assert declaring == [parser_of_all, *[TABLE] * len(options.TABLE)], set(declaring)
    assert len(options.OPTIONS) == len(options.TABLE), "each has a name of its own"


def test_a_word_has_one_declaration_unless_it_is_shared() -> None:
    names: Dict[str, List[str]] = {}
    for name, option in options.OPTIONS.items():
        for word in option.words:
            names.setdefault(word, []).append(name)
    several = {word: set(meanings) for word, meanings in names.items() if len(meanings) > 1}
    assert several == {word: set(meanings) for word, meanings in options.SHARED.items()}


def test_an_option_is_known_in_the_program_by_its_name_in_the_table() -> None:
    several = set(itertools.chain.from_iterable(options.SHARED.values()))
    for name in options.OPTIONS:
        parser = argparse.ArgumentParser()
        options.add(parser, name)
        (known,) = vars(parser.parse_args([]))
        assert known == name or name in several | {"from"}


def test_a_program_may_change_default_help_and_choices_and_nothing_else() -> None:
    parser = argparse.ArgumentParser()
    options.add(
        parser,
        "outfmt",
        "precision",
        "input",
        required=["input"],
        default={"outfmt": "TXT"},
        choices={"precision": ("float", "int8")},
        help={"input": "what goes in"},
    )
    given = parser.parse_args(["--input", "in", "--precision", "float"])
    assert (given.outfmt, given.precision, given.input) == ("TXT", "float", "in")
    assert "what goes in" in parser.format_help()
    with pytest.raises(SystemExit):
        parser.parse_args([])
    assert options.OPTIONS["outfmt"].settings.get("default") is None, "another program has its own"


def test_the_defaults_that_the_help_names_are_timms() -> None:
    for name in evaluation.Evaluation._fields:
        value = evaluation.words(getattr(evaluation.DEFAULT, name))
        assert f" {value})" in options.OPTIONS[name].settings["help"], name
    assert options.OPTIONS["shard"].settings["default"] == prepared.ALL_IMAGES


# ---- contradictions ------------------------------------------------------------------------------


Parse = Callable[[], argparse.Namespace]
PARSERS: Dict[str, Tuple[Parse, List[str]]] = {  # {program: (its parser, words that it needs)}
    "pipeline": (pipeline.parse_arguments, []),
    "postprocess": (TResNet_postprocess.parse_arguments, ["a", "b", "c", "d"]),
    "preprocess": (TResNet_preprocess.parse_arguments, ["a", "b"]),
    "infer": (infer_onnx.parse_arguments, ["--model", "m.onnx"]),
}


def values(program: str, words: List[str]) -> argparse.Namespace:
    """The options of a program by its own parser, without a look at contradictions."""
    if program == "quantise":
        return quantisation.parser("", 1).parse_args(["a", "b.onnx", "--calibrate", "c", *words])
    parse, needed = PARSERS[program]
    with mock.patch.object(sys, "argv", [program, *needed, *words]), mock.patch.object(
        options, "RULES", ()
    ):
        return parse()


INT8, CARD = ["--precision", "int8"], {"backend": "ascend"}
CASES: Tuple[
    Tuple[str, str, List[str], Dict[str, Any]], ...
] = (  # (code or "", program, words, what is known)
    ("yes-clean", "pipeline", ["--yes"], CARD),
    ("", "pipeline", ["--yes", "--clean"], CARD),
    ("only-from", "pipeline", ["--only", "export", "--from", "export"], CARD),
    ("", "pipeline", ["--only", "export,compile"], CARD),
    ("small-channel", "pipeline", ["--small-channel"], CARD),
    ("small-channel", "pipeline", ["--small-channel", "--uint8"], {"backend": "cpu"}),
    ("small-channel", "pipeline", ["--small-channel", "--uint8", "--stem", "space-to-depth"], CARD),
    ("", "pipeline", ["--small-channel", "--uint8"], CARD),
    ("quant-float", "pipeline", ["--quant-bits", "7"], {"backend": "cpu"}),
    ("quant-float", "pipeline", ["--quant-scales", "tensor", *INT8], CARD),
    ("", "pipeline", ["--quant-ranges", "minmax", *INT8], {"backend": "cpu"}),
    ("", "pipeline", ["--quant-bits", "8", "--tune"], {"backend": "cpu"}),
    ("max-drop-float", "pipeline", ["--max-drop", "0"], CARD),
    ("", "pipeline", ["--max-drop", "1", *INT8], dict(CARD, several_classes=False)),
    ("max-drop-classes", "pipeline", ["--max-drop", "1", *INT8], dict(CARD, several_classes=True)),
    ("max-drop-tune", "pipeline", ["--max-drop", "1", *INT8, "--tune"], CARD),
    ("max-drop-labels", "quantise", ["--max-drop", "1"], {}),
    ("max-drop-labels", "quantise", ["--labels", "l"], {}),
    ("", "quantise", ["--max-drop", "1", "--labels", "l"], {}),
    ("multi-label-shard", "pipeline", ["--multi-label", "--shard", "1/2"], CARD),
    ("", "pipeline", ["--multi-label", "--shard", "1/1"], CARD),
    ("multi-label-gates", "pipeline", ["--multi-label", "--min-top5", "0"], CARD),
    ("multi-label-gates", "postprocess", ["--multi-label", "--min-top1", "0"], {}),
    ("", "postprocess", ["--multi-label"], {}),
    ("multi-label-beside", "postprocess", ["--multi-label", "--beside", "r"], {}),
    ("", "postprocess", ["--beside", "r"], {}),
    ("multi-label-expect", "pipeline", ["--multi-label", "--expect", "sample"], CARD),
    ("min-cosine", "pipeline", ["--min-cosine", "0"], {"backend": "cpu"}),
    ("min-cosine", "pipeline", ["--min-cosine", "0", "--compare", "0"], CARD),
    ("", "pipeline", ["--min-cosine", "0", *INT8], {"backend": "cpu"}),
    ("", "pipeline", ["--min-cosine", "0", "--tune"], {"backend": "cpu"}),
    ("", "pipeline", ["--min-cosine", "0"], CARD),
    ("class-order-map", "pipeline", ["--class-order", "text", "--class-map", "m"], CARD),
    ("class-order-map", "preprocess", ["--class-order", "text", "--class-map", "m"], {}),
    ("", "preprocess", ["--class-order", "text"], {}),
    ("first-spaced", "infer", ["--first", "2", "--spaced", "2"], {}),
    ("", "infer", ["--spaced", "2"], {}),
    ("output-dirname", "infer", ["--output_dirname", "r"], {}),
    ("", "infer", ["--output_dirname", "r", "--output", "."], {}),
)


@pytest.mark.parametrize("code, program, words, known", CASES)
def test_options_that_contradict_each_other(
    code: str, program: str, words: List[str], known: Dict[str, Any]
) -> None:
    broken = options.contradiction(values(program, words), **known)
    assert (broken.code if broken else "") == code


def test_each_rule_is_tried_above() -> None:
    assert {rule.code for rule in options.RULES} == {case[0] for case in CASES} - {""}
    assert len({rule.code for rule in options.RULES}) == len(options.RULES)


def test_a_program_refuses_a_contradiction_as_wrong_usage(tmp_path: Path) -> None:
    said = refusal(
        "TResNet_postprocess.py",
        "a",
        "b",
        tmp_path,
        "acc.json",
        "--multi-label",
        "--min-top1",
        "5",
        status=2,
    )
    assert (
        "TResNet_postprocess.py: error: --min-top1 and --min-top5 are not for --multi-label" in said
    )


# ---- some of the steps ---------------------------------------------------------------------------


def test_what_a_step_needs_is_looked_at(tmp_path: Path) -> None:
    """A name that the check does not have would never be missing."""
    words = ["--backend", "ascend", "--precision", "int8", "--data", str(tmp_path)]
    given = values("pipeline", [*words, "--workdir", str(tmp_path / "work")])
    looked_at = {row.item for row in check.examine(given, check.locate(given)).rows}
    assert set(itertools.chain.from_iterable(pipeline.NEEDS.values())) <= looked_at
    data = check.locate(given)
    for backend in ("cpu", "ascend"):
        run = pipeline.Run(given, data, backend, "", places.checkout(), "", 0.0)
        names = {step.word for step in pipeline.plan(run)}
        judges = itertools.chain.from_iterable(pipeline.JUDGES.values())
        used = {*pipeline.NEEDS, *pipeline.BEFORE_MODEL, *pipeline.AFTER_COMPILING, *judges}
        assert used <= names


# ---- importing changes nothing -------------------------------------------------------------------

IMPORTING = """
import importlib, signal, sys
sys.path[:0] = [{root!r}, {root!r} + "/scripts"]
signal.signal(signal.SIGHUP, signal.SIG_DFL)
def state():
    handlers = [signal.getsignal(number) for number in range(1, signal.NSIG)]
    return [sys.argv[:], handlers, sys.excepthook, sys.stdin, sys.stdout, sys.stderr]
for name in {names!r}:
    before = state()
    importlib.import_module(name)
    if state() != before:
        print(name)
"""


@pytest.mark.slow
def test_importing_a_module_changes_neither_words_nor_signals_nor_streams() -> None:
    names = [
        ".".join(
            path.relative_to(ROOT / "scripts" if "scripts" in path.parts else ROOT)
            .with_suffix("")
            .parts
        )
        for path in SOURCES
    ]
    names = [name.replace(".__init__", "") for name in names]
    code = IMPORTING.format(root=str(ROOT), names=names)
    done = subprocess.run(
        [sys.executable, "-c", code, "a word"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
        universal_newlines=True,
    )
    assert (done.returncode, done.stdout) == (0, ""), done.stderr


# ---- what is looked at before the first step -----------------------------------------------------


def given_to_check(*words: object) -> argparse.Namespace:
    parser = cli.parser("")
    check.add_options(parser)
    return parser.parse_args(list(map(str, words)))


def answer(question: Any, data: check.Data) -> str:
    try:
        return str(question(data))
    except Refusal as error:
        return error.sentence


@pytest.mark.parametrize("form", ("lines", "folders", "nothing"))
def test_what_check_finds_does_not_depend_on_what_was_asked_before(
    form: str, tmp_path: Path
) -> None:
    for name in ("cat/a.jpg", "dog/b.jpg"):
        image = tmp_path / "data" / ("val" if form == "folders" else "val_union") / name
        image.parent.mkdir(parents=True)
        if form != "nothing":
            image.write_bytes(b"")
    if form == "lines":
        (tmp_path / "data" / "val_label.txt").write_text("cat/a.jpg 0\ndog/b.jpg 1\n")
    given = given_to_check("--data", tmp_path / "data", "--workdir", tmp_path / "work")
    questions = (
        check.check_images,
        check.check_labels,
        check.check_checkpoint,
        check.number_of_images,
        lambda data: check.check_classes(data, 1),
    )
    alone = [answer(question, check.locate(given)) for question in questions]
    for order in itertools.permutations(range(len(questions))):
        data = check.locate(given)
        found = {place: answer(questions[place], data) for place in order}
        assert [found[place] for place in range(len(questions))] == alone
    if form == "lines":
        assert alone[:2] == [
            f"2 in {tmp_path}/data/val_union",
            f"2 in {tmp_path}/data/val_label.txt",
        ]
        assert "label 1 is outside the classes 0 to 0" in alone[4]


def test_the_sample_photos_need_a_network_of_their_own_classes(tmp_path: Path) -> None:
    """Where config.json says the number of classes, even before the export."""
    sentence = (
        "the checkpoint has 3 classes, but the sample photos have classes of ImageNet's 1,000; "
        "give images of its own classes: --data DIR"
    )
    (tmp_path / "model.safetensors").write_bytes(b"")
    given = given_to_check("--workdir", tmp_path / "work", "--checkpoint", tmp_path)
    data = check.locate(given)
    assert answer(check.check_checkpoint, data) == str(tmp_path)
    assert answer(lambda data: check.check_classes(data, 3), data) == sentence
    assert answer(lambda data: check.check_classes(data, 1001), data) == "None"
    (tmp_path / "config.json").write_text('{"num_classes": 3}')
    assert answer(check.check_checkpoint, check.locate(given)) == sentence
    labelled = given_to_check("--checkpoint", tmp_path, "--labels", tmp_path / "labels.txt")
    assert answer(check.check_checkpoint, check.locate(labelled)) == str(tmp_path)


def test_codes_and_not_words_choose_the_backend(tmp_path: Path) -> None:
    def row(good: bool, code: str) -> check.Row:
        return check.Row(
            "ascend", "an item", good, "some words; and advice", "", code, "some words"
        )

    given, there = given_to_check("--workdir", tmp_path), row(True, check.ATC)
    assert check.choose(given, [row(False, chips.KINDS), there])[0] == "ascend"
    for code in (chips.UNANSWERED, chips.ABSENT):
        assert check.choose(given, [row(False, code), there]) == (
            "cpu",
            "for ascend, an item: some words",
        )
    for code in (chips.UNNAMED, chips.HIDDEN):
        assert check.choose(given, [row(False, code), there]) == ("ascend", "an item: some words")
    assert check.choose(given, [row(False, chips.KINDS), row(False, check.BENCH)])[0] == "cpu"
    unreadable = row(False, chips.UNREADABLE)
    assert check.choose(given, [unreadable, row(False, check.ATC)])[0] == "ascend", "it stops"
    assert check.choose(given, [there, row(False, "")])[0] == "ascend", "auto does not ask for that"


@pytest.mark.parametrize(
    "names, wanted, code",
    (
        (["310P3", "910A"], None, chips.KINDS),
        (["310P3"], [1], chips.BEYOND),
        ([], None, chips.UNANSWERED),
    ),
)
def test_a_problem_with_chips_has_a_code(names: List[str], wanted: Any, code: str) -> None:
    problem = chips.ChipProblem(chips.UNANSWERED, "nobody answers", "ask again")
    found = [chips.Chip(card, 0, name, "OK", "") for card, name in enumerate(names)]
    with mock.patch.object(chips, "find_chips", side_effect=[found] if names else problem):
        with pytest.raises(chips.ChipProblem) as raised:
            chips.choose_devices(wanted)
    assert raised.value.code == code and raised.value.sentence.startswith(raised.value.fact)


def test_steps_do_not_talk_through_the_environment() -> None:
    """Nothing is put into os.environ, which every later step would inherit unseen.

    Except for the switch of ONNX Runtime's telemetry.
    """
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, (ast.Assign, ast.Delete)):
                written = [target for target in node.targets if is_in_environment(target)]
                key = ast.dump(written[0].slice) if written else ""  # type: ignore[attr-defined]
                assert not written or "id='NO_TELEMETRY'" in key, f"{path.name}:{node.lineno}"


def is_in_environment(target: ast.expr) -> bool:
    """Whether an expression is os.environ[...]."""
    if not isinstance(target, ast.Subscript):
        return False
    container = ast.dump(target.value)
    return container.startswith("Attribute(value=Name(id='os'") and "environ" in container


# ---- a command line again ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "given, kept",
    (
        ("--tune --data d --stem conv12 --uint8", "--data d"),
        ("--stem=conv12 --batch-sizes 1,4 -b 4", "--batch-sizes 1,4"),
        ("-b8 --prec int8 --workdir --x", "--workdir --x"),
        ("--data --tuned --checkpoint c", "--data --tuned --checkpoint c"),
    ),
)
def test_options_are_taken_out_of_a_command_line_with_their_values(given: str, kept: str) -> None:
    names = ("tune", "uint8", "stem", "precision", "batch_size")
    assert options.without(given.split(), names) == kept.split()
