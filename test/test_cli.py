"""How programs speak and end, and which processor the C files are compiled for."""

import argparse
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Dict

from common.core import cli, native, options

import pytest
from conftest import ROOT, refusal, succeed


def write_program(folder: Path, body: str) -> Path:
    """A program of ours whose main() is this."""
    script = folder / "tool.py"
    script.write_text(
        f"import sys\nsys.path.insert(0, {str(ROOT / 'scripts')!r})\n"
        f"from common.core import cli\ncli.start()\n"
        f"def main():\n    {body}\n"
        "if __name__ == '__main__':\n    cli.run(main, 'nothing was lost')\n"
    )
    return script


def end_of(script: Path, **environment: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, str(script)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        universal_newlines=True,
        env=dict(os.environ, **environment),
    )


@pytest.mark.parametrize(
    "body, status, said",
    (
        ("return 0", 0, ""),
        ("return None", 0, ""),
        ("return 3", 3, ""),
        ("raise cli.Refusal('a is not b; do c')", 1, "tool.py: a is not b; do c\n"),
        ("raise cli.Refusal('too low', cli.BELOW_MINIMUM)", 3, "tool.py: too low\n"),
        (
            "open('/nowhere/a b')",
            1,
            "tool.py: '/nowhere/a b': No such file or directory; fix this and run the same "
            "command again\n",
        ),
        ("raise KeyboardInterrupt", 130, "\ntool.py: interrupted; nothing was lost\n"),
        (
            "raise MemoryError",
            1,
            "tool.py: there is not enough memory; free some, or take a smaller batch or fewer "
            "workers\n",
        ),
    ),
)
def test_every_end_is_one_sentence_and_the_status_that_fits(
    body: str, status: int, said: str, tmp_path: Path
) -> None:
    done = end_of(write_program(tmp_path, body))
    assert (done.returncode, done.stderr) == (status, said)


def test_what_nobody_foresaw_is_one_sentence_and_the_details_are_in_a_file(tmp_path: Path) -> None:
    done = end_of(write_program(tmp_path, "{}['a']"), TMPDIR=str(tmp_path))
    match = re.fullmatch(
        rf"tool\.py: a defect of this program, version {re.escape(cli.VERSION)}, or of its environ"
        r"ment ended it: KeyError: 'a'; the details for a report are in (\S+)\n",
        done.stderr,
    )
    assert done.returncode == 1 and match, done.stderr
    details = Path(match.group(1)).read_text()
    assert "Traceback" in details and "KeyError: 'a'" in details and cli.VERSION in details


def test_a_missing_package_and_an_interruption_while_importing(tmp_path: Path) -> None:
    script = write_program(tmp_path, "return 0")
    script.write_text(script.read_text().replace("def main", "import no_such_package\ndef main"))
    done = end_of(script)
    assert done.returncode == 1 and len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith(
        f"tool.py: the package no_such_package is not installed for {sys.executable}; "
    )
    script.write_text(
        script.read_text().replace("import no_such_package", "raise ImportError('broken numpy')")
    )
    done = end_of(script, PYTHONPATH="/else where")
    assert (done.returncode, done.stderr) == (
        1,
        "tool.py: a package cannot be imported: broken numpy; PYTHONPATH="
        "'/else where' may hide it with another one: unset PYTHONPATH\n",
    )
    script.write_text(
        script.read_text().replace("raise ImportError('broken numpy')", "raise KeyboardInterrupt")
    )
    done = end_of(script)
    assert (done.returncode, done.stderr) == (130, "tool.py: interrupted\n")


def test_a_file_that_hides_a_module_of_python_is_named(tmp_path: Path) -> None:
    script = write_program(tmp_path, "import json; json.dumps({})")
    (tmp_path / "path").mkdir()
    hiding = tmp_path / "path" / "json.py"
    hiding.write_text("")
    done = end_of(script, PYTHONPATH=str(tmp_path / "path"))
    assert (done.returncode, done.stderr) == (
        1,
        f"tool.py: {hiding} hides Python's own module json, and it ended the program with "
        "AttributeError: module 'json' has no attribute 'dumps'; rename that file, or take its "
        "folder out of PYTHONPATH\n",
    )
    hiding.write_text("import no_such_package\n")
    done = end_of(script, PYTHONPATH=str(tmp_path / "path"))
    assert "the package no_such_package is not installed" in done.stderr


def test_output_that_nobody_reads_or_that_is_ascii(tmp_path: Path) -> None:
    script = write_program(tmp_path, "print('224\\u00d7224\\n' * 100000)")
    command = f"'{sys.executable}' '{script}' | head -n 1; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(
        ["bash", "-c", command],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=dict(os.environ, PYTHONIOENCODING="ascii"),
    )
    assert done.stdout == b"224\\xd7224\n141\n" and done.stderr == b""


def test_an_error_that_a_library_makes_of_a_signal_is_not_a_refusal(tmp_path: Path) -> None:
    for number, said in (
        (signal.SIGTERM, b""),
        (signal.SIGINT, b"\ntool.py: interrupted; nothing was lost\n"),
    ):
        for error in ("cli.Refusal('it is damaged')", "ImportError('initialization failed')"):
            script = write_program(
                tmp_path,
                f"import os, time\n    try:\n        os.kill(os.getpid(), {number})\n"
                f"        time.sleep(9)\n    except BaseException:\n        raise {error}",
            )
            done = subprocess.run(
                [sys.executable, str(script)], stdout=subprocess.PIPE, stderr=subprocess.PIPE
            )
            assert (done.returncode, done.stderr) == (128 + number, said)
    (tmp_path / "module.py").write_text(
        "import os, time\ntry:\n    os.kill(os.getpid(), 2)\n    time.sleep(9)\n"
        "except BaseException:\n    raise ImportError('initialization failed')\n"
    )
    script.write_text(script.read_text().replace("def main", "import module\n\ndef main"))
    done = subprocess.run(
        [sys.executable, str(script)], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert (done.returncode, done.stderr) == (130, b"tool.py: interrupted\n")


def test_a_refusal_that_nobody_reads_keeps_its_status_and_is_not_a_defect(tmp_path: Path) -> None:
    script = write_program(
        tmp_path, "import time\n    time.sleep(0.3)\n    raise cli.Refusal('a is not b; do c', 3)"
    )
    (tmp_path / "tmp").mkdir()
    process = subprocess.Popen(
        [sys.executable, str(script)],
        stderr=subprocess.PIPE,
        env=dict(os.environ, TMPDIR=str(tmp_path / "tmp")),
    )
    assert process.stderr is not None
    process.stderr.close()
    assert process.wait() == 3 and os.listdir(str(tmp_path / "tmp")) == []


def test_closed_streams_take_nothing_and_no_file_takes_their_place(tmp_path: Path) -> None:
    script = write_program(
        tmp_path,
        "import subprocess\n    with open('made.txt', 'w') as file:\n        print('said')\n"
        "        subprocess.call(['echo', 'said'])\n        file.write('made')\n"
        "    raise cli.Refusal('a is not b; do c')",
    )
    for closed, said in (
        (">&-", b"tool.py: a is not b; do c\n"),
        (">&- 2>&-", b""),
        ("<&- >&- 2>&-", b""),
    ):
        done = subprocess.run(
            ["bash", "-c", f'"$@" {closed}', "-", sys.executable, str(script)],
            cwd=str(tmp_path),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        assert (done.returncode, done.stdout, done.stderr) == (1, b"", said)
        assert (tmp_path / "made.txt").read_text() == "made"


@pytest.mark.parametrize("number", (signal.SIGTERM, signal.SIGHUP))
def test_a_signal_ends_it_silently_and_what_it_had_begun_is_cleared_away(
    number: int, tmp_path: Path
) -> None:
    script = write_program(
        tmp_path,
        "import time, pathlib\n    try:\n        print('begun', flush=True); time.sleep(60)\n"
        "    finally:\n        print('cleared')",
    )
    with subprocess.Popen(
        [sys.executable, str(script)], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as child:
        assert child.stdout is not None and child.stdout.readline() == b"begun\n"
        child.send_signal(number)
        assert child.communicate() == (b"cleared\n", b"") and child.returncode == 128 + number


@pytest.mark.slow
def test_a_group_is_ended_with_all_that_it_started_even_what_does_not_listen() -> None:
    code = "trap '' TERM; (trap '' TERM; sleep 60) & echo $!; wait"
    child = subprocess.Popen(["bash", "-c", code], stdout=subprocess.PIPE, start_new_session=True)
    assert child.stdout is not None
    grandchild = int(child.stdout.readline())
    cli.end_group(child)
    time.sleep(0.1)
    state = Path(f"/proc/{grandchild}/stat")
    assert not state.exists() or state.read_text().rsplit(")", 1)[1].split()[0] == "Z"


@pytest.mark.parametrize(
    "name, text",
    (
        ("val_union", "val_union"),
        ("北京.png", "北京.png"),
        ("a b", "'a b'"),
        ("", "''"),
        ("a\nb", "'a\\nb'"),
        ("x\u202egpj", "'x\\u202egpj'"),
        (os.fsdecode(b"\xff"), "'\\udcff'"),
        ("it's", '"it\'s"'),
    ),
)
def test_a_name_is_shown_as_it_is_if_that_is_plain(name: str, text: str) -> None:
    assert cli.shown(name) == text


def test_options_become_the_words_that_give_them_to_another_program() -> None:
    words = options.words(
        img_size=448,
        mean=(0.5, 0.5, 0.25),
        device=0,
        min_top1=0.0,
        batch_sizes=[1, 8],
        force=True,
        key=None,
        aipp="",
        ema=False,
        label_offset=-1,
    )
    assert " ".join(words) == (
        "--img-size 448 --mean 0.5 0.5 0.25 --device 0 --min-top1 0.0 --batch-sizes 1,8 --force "
        "--label-offset=-1"
    )


def test_a_noun_agrees_with_its_number() -> None:
    assert [cli.counted(number, "image") for number in (0, 1, 20)] == [
        "0 images",
        "1 image",
        "20 images",
    ]


PROGRAMS = sorted([*ROOT.glob("TResNet_*.py"), *ROOT.glob("scripts/*.py")])


@pytest.mark.slow
@pytest.mark.parametrize("path", PROGRAMS, ids=lambda path: path.name)
def test_each_program_says_its_version(path: Path) -> None:
    name = path.name
    if name in ("pipeline.py", "onnx2om.py"):  # people start these by a shell script
        name = path.with_suffix(".sh").name
    done = succeed(str(path.relative_to(ROOT)), "--version")
    assert (done.stdout, done.stderr) == (f"{name} {cli.VERSION}\n", "")


def test_a_mistyped_option_gets_one_line_with_the_nearest_one() -> None:
    errors = refusal("scripts/check.py", "--img-sise", "64", status=2)
    assert errors == (
        "check.py: error: unrecognized arguments: --img-sise 64 (did you mean --img-size?); "
        "see check.py --help\n"
    )


def test_of_many_names_the_first_are_shown() -> None:
    assert cli.some(["b", "a"]) == "a, b" and cli.some("edcba") == "a, b, c and 2 more"


@pytest.mark.parametrize(
    "kind, good, bad",
    (
        (
            options.integer(1, 99),
            {"1": 1, "99": 99},
            ("0", "100", "-1", "1e1", "1.0", "", " 1", "１", "9" * 30),
        ),
        (
            options.real(0),
            {"1e9": 1e9, "0": 0.0, ".5": 0.5, "7.": 7.0},
            ("-0.1", "nan", "inf", "1e999", "high", "", "1_0"),
        ),
        (options.real(0, 100, above=True), {"100": 100.0}, ("0", "100.1")),
        (options.batch_sizes, {"8,1,8": [1, 8]}, ("1,,2", "0", "", "1,a", "1 2")),
        (options.path, {"a b": "a b"}, ("",)),
    ),
)
def test_argument_types(kind: Any, good: Dict[str, Any], bad: Any) -> None:
    for text, value in good.items():
        assert kind(text) == value
    for text in bad:
        with pytest.raises(argparse.ArgumentTypeError, match="is not|is empty"):
            kind(text)


def test_avx2_is_asked_for_only_on_x86_64(monkeypatch: pytest.MonkeyPatch) -> None:
    """In an emulated ARM root /proc/cpuinfo is the host's."""
    monkeypatch.setattr(os, "uname", lambda: argparse.Namespace(machine="aarch64"))
    assert not native.has_avx2()
    monkeypatch.setattr(os, "uname", lambda: argparse.Namespace(machine="x86_64"))
    assert native.has_avx2() == bool(
        re.search(r"^flags\s*:.* avx2( |$)", Path("/proc/cpuinfo").read_text(), re.M)
    )


def test_an_error_about_the_model_is_a_sentence_about_the_model(tmp_path: Path) -> None:
    """ONNX Runtime's own kinds of errors, wherever they come up."""
    done = end_of(
        write_program(
            tmp_path,
            "import onnxruntime; onnxruntime.InferenceSession(b'no model')",
        ),
        TMPDIR=str(tmp_path),
    )
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "ONNX Runtime refuses the model: " in done.stderr and "make it again" in done.stderr
    (log,) = tmp_path.glob("*.log")
    assert "InvalidProtobuf" in log.read_text() and str(log) in done.stderr


def test_an_inspecting_python_does_not_take_an_end_for_a_defect(tmp_path: Path) -> None:
    done = end_of(
        write_program(tmp_path, "raise cli.Refusal('2 is not 3; take 3')"), PYTHONINSPECT="1"
    )
    assert done.returncode == 1 and done.stderr.endswith("2 is not 3; take 3\n"), done.stderr


def test_ctrl_c_while_pythons_version_is_asked_does_not_blame_the_version(tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\nkill -INT $PPID\nexit 1\n")
    python.chmod(0o755)
    done = subprocess.run(
        ["bash", str(ROOT / "scripts" / "pipeline.sh")],
        env=dict(os.environ, PYTHON=str(python)),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        universal_newlines=True,
    )
    assert (done.returncode, done.stdout) == (130, "")
    assert done.stderr == "pipeline.sh: interrupted\n"


def test_an_output_on_a_full_disk_is_named(tmp_path: Path) -> None:
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONUNBUFFERED"}
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, str(write_program(tmp_path, "print('Top1 accuracy: 76.5%')"))],
            env=environment,
            stdout=full,
            stderr=subprocess.PIPE,
            universal_newlines=True,
        )
    assert done.returncode == 1
    assert done.stderr == (
        "tool.py: stdout cannot be written: No space left on device; fix this and run the same "
        "command again\n"
    )
