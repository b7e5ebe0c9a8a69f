"""Options from a file: the same as on the command line, which wins; mistakes name the file."""

import json
import sys
from pathlib import Path
from typing import Any, List

from common.core import config

import pipeline
import pytest
from conftest import run_pipeline


def values(*words: object, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The options of a command line of the pipeline."""
    monkeypatch.setattr(sys, "argv", ["pipeline.sh", *map(str, words)])
    return pipeline.parse_arguments()


def write(path: Path, content: Any) -> Path:
    path.write_text(json.dumps(content))
    return path


def test_a_file_gives_what_the_command_line_would(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write(
        tmp_path / "mine.json",
        {
            "data": "./ImageNet",
            "batch-sizes": [1, 8],
            "batch_size": 4,
            "uint8": True,
            "perf": False,
            "loop": None,
            "shard": "1/4",
            "mean": [0.1, 0.2, 0.3],
            "crop_pct": 1e-3,
            "label_offset": -1,
            "device": "0,2",
        },
    )
    line = (
        "--data ./ImageNet --batch-sizes 1,8 --batch-size 4 --uint8 --shard 1/4 --mean .1 .2 .3 "
        "--crop-pct 0.001 --label-offset=-1 --device 0,2"
    )
    from_file = vars(values("--config", file, monkeypatch=monkeypatch))
    from_line = vars(values(*line.split(), monkeypatch=monkeypatch))
    for only_there in ("config", "words"):
        del from_file[only_there], from_line[only_there]
    assert from_file == from_line


def test_the_command_line_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write(tmp_path / "mine.json", {"data": "theirs", "batch_sizes": [1, 8], "uint8": True})
    for words in (["--conf", str(file)], [f"--config={file}"]):
        given = values("--data", "mine", *words, "--loop", "3", monkeypatch=monkeypatch)
        assert (given.data, given.batch_sizes, given.uint8, given.loop) == ("mine", [1, 8], True, 3)
        assert given.words == "--data=theirs --batch-sizes=1,8 --uint8 --data mine --loop 3".split()


def test_what_a_run_writes_gives_the_same_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    line = (
        "--data ./ImageNet --checkpoint=a.pth --mean .1 .2 .3 --shard 2/4 --device all --uint8 "
        "--batch-sizes 1,8 --key teacher --min-top1 76.5 --force --only export"
    )
    given = values(*line.split(), monkeypatch=monkeypatch)
    written = config.values(pipeline.make_parser(), given)
    assert written["data"] == str(tmp_path / "ImageNet") and written["key"] == "teacher"
    assert not {"force", "only", "workdir", "config"} & set(written)
    file = write(tmp_path / "run.json", {"tool": "pipeline.sh", "options": written})
    monkeypatch.chdir("/")
    again = values("--config", file, monkeypatch=monkeypatch)
    assert config.values(pipeline.make_parser(), again) == written
    assert (again.force, again.only, again.workdir) == (False, [], "work")


MISTAKES = (  # (content of the file, exit status, sentence)
    ('{"bach_sizes": 1}', 2, "bach_sizes is not an option that a file can have (did you mean "),
    ('{"config": "x"}', 2, "config is not an option that a file can have"),
    ('{"loop": "x"}', 2, "argument --loop: 'x' is not a whole number"),
    ('{"perf": "yes"}', 2, 'perf is "yes", true or false was expected'),
    ('{"loop": true}', 2, "loop is true, a text or a number was expected"),
    ('{"mean": [1, 2]}', 2, "argument --mean: expected 3 arguments"),
    ('{"data": {}}', 1, "cannot be used (data is an object"),
    ('{"loop": 1e999}', 1, "cannot be used (loop is Infinity"),
    ('{"batch_sizes": [1, "a"]}', 1, '(entry 2 of batch_sizes is "a", a number was expected)'),
    ('{"loop": NaN}', 1, "(loop is NaN, a number was expected)"),
    (
        '{"data": "a\\u0000b"}',
        1,
        '(data is "a\\u0000b", a text that messages',
    ),
    ("[1]", 1, "cannot be used (it is a list, an object was expected)"),
    ("loop: 3", 1, "an object of options is expected, such as {"),
)


@pytest.mark.parametrize("content, status, sentence", MISTAKES)
def test_a_mistake_in_a_file_is_one_sentence_that_names_it(
    content: str, status: int, sentence: str, tmp_path: Path
) -> None:
    file = tmp_path / "mine.json"
    file.write_text(content)
    done = run_pipeline("--config", file, cwd=str(tmp_path))
    assert done.returncode == status and sentence in done.stderr, done.stderr
    assert str(file) in done.stderr and done.stderr.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["mine.json"]


def test_a_mistake_on_the_command_line_does_not_blame_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    file = write(tmp_path / "mine.json", {"loop": 3})
    words: List[object] = ["--config", file, "--repeat", "x"]
    with pytest.raises(SystemExit) as ended:
        values(*words, monkeypatch=monkeypatch)
    said = capsys.readouterr().err
    assert ended.value.code == 2 and "argument --repeat" in said and "mine.json" not in said
