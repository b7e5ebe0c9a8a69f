"""onnx2om.sh: the contract's command, nothing twice, no half model, and why atc failed."""

import fcntl
import os
import platform
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, Dict, List, Sequence
from unittest import mock

import numpy as np
import onnx
import pytest
from ascend.helpers import (
    AIPP,
    CONTRACT,
    CONTRACT_INFER,
    HERE,
    SIZE,
    Machine,
    ais_bench_here,
    calls,
    compile_net,
    processes,
    save_network,
    start,
    start_here,
)
from conftest import PATIENCE, ROOT, run, succeed
from pictures import until
from test_npu_info import install_cann

SCRIPT = ROOT / "scripts" / "onnx2om.sh"
ENDLESS = "atc-sleep=3600"


def contract(work: Path, batch: int) -> List[str]:
    """The contract's command for a batch size, for net.onnx in the work folder."""
    text = "\n".join(CONTRACT).replace("image:1", f"image:{batch}").replace("bs1", f"bs{batch}")
    return text.replace("=net.", f"={work}/net.").split("\n")


def compile_here(
    machine: Machine, *words: object, **switches: str
) -> "subprocess.CompletedProcess[str]":
    """As compile_net(), but onnx2om.py's main() without a process."""
    import onnx2om

    return start_here(
        onnx2om.main,
        dict(machine.environment, **switches),
        machine.folder,
        "onnx2om.sh",
        "net.onnx",
        *words,
    )


def start_compiling(
    machine: Machine, *, pass_fds: Sequence[int] = (), **switches: str
) -> "subprocess.Popen[str]":
    """onnx2om.sh for batch size 1 as a process that goes on; its stderr can be read."""
    return subprocess.Popen(
        ["bash", str(SCRIPT), "net.onnx", "--batch-sizes", "1"],
        cwd=str(machine.folder),
        env=dict(os.environ, **dict(machine.environment, **switches)),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        universal_newlines=True,
        pass_fds=pass_fds,
    )


def test_onnx2om_runs_the_contracts_command_for_each_batch_size(machine: Machine) -> None:
    environment, work = machine
    done = compile_net(machine)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = calls(environment, "atc")
    assert [row["argv"] for row in rows] == [contract(work, batch) for batch in (1, 4, 8, 16, 32)]
    for row in rows:
        assert Path(row["cwd"]).parent == work and not Path(row["cwd"]).exists(), (
            "a folder of its own, gone afterwards"
        )
        assert row["python"] == str(Path(environment["PATH"].split(os.pathsep)[1]) / "python3"), (
            "the host's Python"
        )
    names = {"net.onnx"}
    for batch in (1, 4, 8, 16, 32):
        names |= {f"net_bs{batch}.{end}" for end in ("om", "om.record.jsonl", "atc.log")}
    assert {path.name for path in work.iterdir()} == names
    assert (work / "net_bs8.om").stat().st_mode & 0o777 == 0o640
    assert "ATC run success" in (work / "net_bs8.atc.log").read_text()
    assert "atc starts" in (work / "net_bs8.atc.log").read_text(), "CANN's own log is kept with it"
    assert not (Path(environment["HOME"]) / "ascend").exists(), "and nowhere else"
    assert re.search(r"net_bs8\.om: compiled in \d+ s, \d+\.\d MB\n", done.stdout)
    assert ais_bench_here(machine, "--model", "net_bs8.om").returncode == 0


@pytest.mark.slow
def test_onnx2om_keeps_what_the_same_command_made(machine: Machine, tmp_path: Path) -> None:
    environment, work = machine
    om, onnx_file = work / "net_bs1.om", work / "net.onnx"

    def compiles(*words: object, **switches: str) -> int:
        """How many models a run for batch sizes 1 and 8 compiled."""
        before = len(calls(environment, "atc"))
        done = compile_here(machine, "--batch-sizes", "1,8", *words, **switches)
        assert done.returncode == 0, done.stderr
        made = len(calls(environment, "atc")) - before
        assert (done.stdout.count(" compiled in "), done.stdout.count(" is up to date (")) == (
            made,
            2 - made,
        )
        return made

    assert (compiles(), compiles(), compiles("--force")) == (2, 0, 2)
    assert compiles("--", "--precision_mode=force_fp32") == 2, "another command"
    assert calls(environment, "atc")[-1]["argv"][-1] == "--precision_mode=force_fp32"
    assert (compiles(), compiles()) == (2, 0)
    om.write_bytes(om.read_bytes()[:-5])
    assert (compiles(), compiles()) == (1, 0), "a cut model"
    status = onnx_file.stat()
    os.utime(str(onnx_file), ns=(status.st_atime_ns, status.st_mtime_ns - 10**9))
    assert compiles() == 0, "the same content, copied or touched"
    model = onnx.load(str(onnx_file))
    model.doc_string = "another"
    onnx.save(model, str(onnx_file))
    os.utime(str(onnx_file), ns=(status.st_atime_ns, status.st_mtime_ns - 10**9))
    assert (compiles(), compiles()) == (2, 0), "another ONNX file, though an older one"
    (tmp_path / "latest").mkdir()
    (tmp_path / "latest" / "version.cfg").write_text("version=[8.0.RC1:x]\n")
    cann = str(tmp_path / "latest")
    assert (compiles(ASCEND_TOOLKIT_HOME=cann), compiles(ASCEND_TOOLKIT_HOME=cann)) == (2, 0), (
        "another CANN"
    )


def test_onnx2om_never_replaces_a_model_that_it_did_not_make(machine: Machine) -> None:
    environment, work = machine
    (work / "net_bs4.om").write_bytes(b"precious")
    for words in ((), ("--force",)):
        done = compile_here(machine, "--batch-sizes", "1,4", *words)
        assert done.returncode == 1 and done.stderr.count("\n") == 1, done.stderr
        assert (
            f"onnx2om.sh: {work}/net_bs4.om: no record says that this program made it"
            in done.stderr
        )
    assert (work / "net_bs4.om").read_bytes() == b"precious"
    assert all("bs1" in row["argv"][3] for row in calls(environment, "atc")), (
        "atc was not even started"
    )


def test_onnx2om_goes_on_where_it_was_killed_between_model_and_record(machine: Machine) -> None:
    """It accepts its own first model, though the record does not yet say that it is finished."""
    with mock.patch("common.core.record.row_of", side_effect=SystemExit(137)):
        assert compile_here(machine, "--batch-sizes", "1").returncode == 137
    assert (machine.folder / "net_bs1.om").exists()
    done = compile_here(machine, "--batch-sizes", "1")
    assert done.returncode == 0 and " compiled in " in done.stdout, done.stderr


@pytest.mark.parametrize("shell, linked", [("sh", False), ("sh", True), ("bash", True), ("", True)])
def test_onnx2om_runs_however_it_is_started(
    machine: Machine, tmp_path: Path, shell: str, linked: bool
) -> None:
    """By sh as well, through a symbolic link, and with the Python that setup_env.py names."""
    script = tmp_path / "compile it"
    if linked:
        (tmp_path / "first link").symlink_to(SCRIPT)
        script.symlink_to("first link")
    else:
        script = SCRIPT
    command = [shell, script] if shell else ["/usr/bin/env", "sh", script]
    environment = dict(machine.environment, TRESNET_PYTHON="", PYTHON=sys.executable)
    done = start(
        environment, machine.folder, *command, *"net.onnx --batch-sizes 1 --dry-run".split()
    )
    assert done.returncode == 0 and done.stdout.startswith("atc --framework=5"), done.stderr


def test_onnx2om_hands_aipp_settings_to_atc_and_sees_them_change(machine: Machine) -> None:
    environment, work = machine
    (work / "aipp.cfg").write_text(AIPP + "}\n")
    for expected in (1, 1):
        done = compile_here(machine, *"--batch-sizes 1 --aipp aipp.cfg".split())
        assert done.returncode == 0 and len(calls(environment, "atc")) == expected, (
            done.stdout + done.stderr
        )
        (work / "aipp.cfg").write_text(AIPP + "}\n")  # the same settings, written later
    assert calls(environment, "atc")[-1]["argv"][-1] == f"--insert_op_conf={work}/aipp.cfg"
    (work / "aipp.cfg").write_text(AIPP + " min_chn_0 : 1\n}\n")
    assert compile_here(machine, *"--batch-sizes 1 --aipp aipp.cfg".split()).returncode == 0
    assert len(calls(environment, "atc")) == 2


def test_onnx2om_accepts_the_other_name_that_atc_gives(machine: Machine) -> None:
    done = compile_net(
        machine, *"--batch-sizes 1 --output-dir models".split(), STANDIN_OM_NAME="host"
    )
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in (machine.folder / "models").glob("*.om")) == ["net_bs1.om"]
    assert (machine.folder / "models").stat().st_mode & 0o777 == 0o750


def test_onnx2om_dry_run_prints_pasteable_commands_and_does_nothing(machine: Machine) -> None:
    environment, work = machine
    done = compile_net(machine, *"--dry-run --batch-sizes 1,8 --output-dir om".split())
    assert done.stdout == "".join(
        f"atc --framework=5 --model={work}/net.onnx --output=om/net_bs{batch} --input_format=NCHW "
        f'--input_shape="image:{batch},3,32,32" --log=error --soc_version=Ascend310P3\n'
        for batch in (1, 8)
    )
    assert [path.name for path in work.iterdir()] == ["net.onnx"] and not calls(environment)


@pytest.mark.slow
def test_onnx2om_shows_why_atc_failed_and_goes_on_there(machine: Machine) -> None:
    environment, work = machine
    done = compile_net(machine, STANDIN_FAULT="atc-fail=8")
    assert done.returncode == 1
    assert "atc failed with status 255 at batch size 8" in done.stderr
    assert "    E40021: Failed to compile Op [Conv_0]." in done.stderr
    assert f"the full log: {work}/net_bs8.atc.log\n" in done.stderr
    assert sorted(path.name for path in work.glob("*.om")) == ["net_bs1.om", "net_bs4.om"]
    assert compile_net(machine).returncode == 0
    assert [row["argv"][3] for row in calls(environment, "atc")] == [
        f"--output=net_bs{batch}" for batch in (1, 4, 8, 8, 16, 32)
    ], "the two that were made are not made again"


def said_of(done: "subprocess.CompletedProcess[str]") -> List[str]:
    """The message about a failed compilation, without the last line, which names the log."""
    assert done.returncode == 1 and "Traceback\n" not in done.stderr, done.stderr
    *lines, last = done.stderr.splitlines()
    assert re.fullmatch(r"    the full log: .*/net_bs1\.atc\.log", last), done.stderr
    return lines


def test_a_solution_of_two_lines_is_shown_whole(machine: Machine) -> None:
    save_network(machine.folder / "net.onnx", opset=19)
    done = compile_here(machine, "--batch-sizes", "1", STANDIN_CANN="9.2")
    _, error, *solution = said_of(done)
    assert "Not_Supported_Operator(E13010): No operator plugin is registered for Op: conv" in error
    assert solution == [
        "    Solution: 1. If the operator is a custom operator, register related deliverables.",
        "    2. If the operator is a built-in operator, install the package that supports this "
        "operator version.",
    ], "once, though CANN's own log repeats it"


# The form of each generation, as users show them; the words in the middle are shortened.
OF_8_0 = """\
ATC start working now, please wait for a moment.
...
ATC run failed, Please check the detail log, Try 'atc --help' for more information
EC0010: [PID: 1] 2025-07-08-10:25:28 Failed to import Python module [No module named 'decorator'].
        Solution: Check that all required components are properly installed.
        TraceBack (most recent call last):
        AOE Failed to call InitCannKB[FUNC:Initialize][FILE:python_adapter_manager.cc][LINE:47]
"""
OF_8_5 = """\
ATC run failed, Please check the detail log, Try 'atc --help' for more information
[PID: 1] 2026-01-14-06:41:59.991.811 Unsupported_Operator(EZ3002): Optype [Pad] is unsupported.
        Possible Cause: The operator type is unsupported in the operator information library.
        Solution: N/A
        TraceBack (most recent call last):
        build graph failed, graph id:0, ret:-1
"""
PLOG = "[ERROR] GE(1,atc.bin): [PID: 1] 2026-01-14-06:41:59.991.811 Unsupported_Operator(EZ3002): "


@pytest.mark.parametrize(
    "printed, log, expected",
    [
        (
            OF_8_0,
            "[ERROR] TEFUSION(1,atc.bin): some words\n",
            [
                "    EC0010: [PID: 1] 2025-07-08-10:25:28 Failed to import Python module "
                "[No module named 'decorator'].",
                "    Solution: Check that all required components are properly installed.",
            ],
        ),
        (
            OF_8_5,
            PLOG + "Optype [Pad] is unsupported.\n        Possible Cause: repeated\n",
            [
                "    [PID: 1] 2026-01-14-06:41:59.991.811 Unsupported_Operator(EZ3002): Optype "
                "[Pad] is unsupported.",
                "    Possible Cause: The operator type is unsupported in the operator information "
                "library.",
            ],
        ),
        (
            "ATC start working now, please wait for a moment.\n...\nfirst\x1b[1m\nlast\n",
            "[INFO] nothing\n[ERROR] GE: the device is gone\n",
            ["    first [1m", "    last", "    [ERROR] GE: the device is gone"],
        ),
        ("", "", []),
    ],
)
def test_what_atc_says_is_explained(printed: str, log: str, expected: List[str]) -> None:
    from common.ascend import atc

    assert atc.explain(printed, log, failed=True) == expected


def test_the_cure_of_a_coded_error_is_named_too(tmp_path: Path) -> None:
    from common.ascend import atc

    cann = install_cann(tmp_path, "8.5.0", "Ascend-cann-910b-ops", "ascend910b")
    with mock.patch.dict(os.environ, ASCEND_TOOLKIT_HOME=str(cann)):
        assert list(atc.cures(OF_8_0, "Ascend310P3")) == [
            "python3 lacks decorator: pip3 install decorator"
        ]
        (operators,) = atc.cures(OF_8_5, "Ascend310P3")
        assert operators.startswith(
            "atc needs the operators of Ascend310P3: Ascend-cann-310p-ops was not found in "
            f"{cann}, only Ascend-cann-910b-ops"
        )
        assert list(atc.cures(OF_8_5, "Ascend910B4")) == [], "they are there"


@pytest.mark.parametrize(
    "fault, status, last, cure",
    [
        (
            "atc-driver",
            1,
            "libascend_hal.so: cannot open shared object file: No such file or directory",
            "there is no driver on this host, and atc needs its library: export "
            "LD_LIBRARY_PATH={cann}/{machine}-linux/devlib:$LD_LIBRARY_PATH",
        ),
        (
            "atc-module=tbe",
            255,
            "ModuleNotFoundError: No module named 'tbe'",
            "the module tbe is CANN's own: source {cann}/set_env.sh",
        ),
        (
            "atc-module=attr",
            255,
            "ModuleNotFoundError: No module named 'attr'",
            "python3 lacks attr: pip3 install attrs",
        ),
    ],
)
def test_an_error_without_a_code_is_shown_with_its_cure(
    machine: Machine, tmp_path: Path, fault: str, status: int, last: str, cure: str
) -> None:
    cann = install_cann(tmp_path, "9.0.0")
    switches = {"STANDIN_FAULT": fault, "ASCEND_TOOLKIT_HOME": str(cann)}
    first, *lines = said_of(compile_here(machine, "--batch-sizes", "1", **switches))
    assert first.endswith(f"atc failed with status {status} at batch size 1")
    assert any(line.endswith(last) for line in lines), "the last lines of the log"
    assert "    " + cure.format(cann=cann, machine=platform.machine()) in lines
    needs_operators = fault == "atc-module=tbe"
    assert any("Ascend-cann-310p-ops was not found" in line for line in lines) == needs_operators
    assert not any("ATC " in line for line in lines)


def precious_file(folder: Path) -> Path:
    """A file of somebody else's, mode 0600, beside the work folder."""
    path = folder / "precious"
    path.write_bytes(b"precious")
    path.chmod(0o600)
    return path


@pytest.mark.parametrize(
    "fault, problem",
    [
        ("atc-link={precious}", "its net_bs1.om is a link, or not a regular file"),
        ("atc-hard-link={precious}", "its net_bs1.om is not a file of its own"),
        ("atc-random", "its net_bs1.om is not a compiled model: it begins with b"),
        ("atc-cut", r"its net_bs1.om has [0-9,]+ bytes, but its header says [0-9,]+: it is not"),
    ],
)
@pytest.mark.parametrize("cann", ["6.0.RC1", "9.2"])
def test_only_a_whole_model_that_this_atc_made_is_taken(
    machine: Machine, tmp_path: Path, fault: str, problem: str, cann: str
) -> None:
    precious = precious_file(tmp_path)
    switches = {"STANDIN_FAULT": fault.format(precious=precious), "STANDIN_CANN": cann}
    (first,) = said_of(compile_here(machine, "--batch-sizes", "1", **switches))
    assert re.search(f"atc ended well at batch size 1, but {problem}", first)
    assert precious.stat().st_mode & 0o777 == 0o600 and precious.read_bytes() == b"precious"
    assert sorted(path.name for path in machine.folder.iterdir()) == [
        "net.onnx",
        "net_bs1.atc.log",
    ]


@pytest.mark.parametrize("mask, mode", [(0o077, 0o600), (0o022, 0o640), (0, 0o640)])
def test_who_hides_files_from_the_group_hides_models_too(
    machine: Machine, mask: int, mode: int
) -> None:
    before = os.umask(mask)
    try:
        done = compile_here(machine, "--batch-sizes", "1")
    finally:
        os.umask(before)
    assert done.returncode == 0, done.stderr
    assert (machine.folder / "net_bs1.om").stat().st_mode & 0o777 == mode


def test_a_record_never_changes_the_mode_of_another_file(tmp_path: Path) -> None:
    """A link and a second name of a file are refused where a program's file becomes a product."""
    from common.core import record
    from common.core.cli import Refusal

    precious = precious_file(tmp_path)
    (tmp_path / "link").symlink_to(precious)
    os.link(str(precious), str(tmp_path / "hard"))
    for name in ("link", "hard"):
        with pytest.raises(Refusal, match="is a link or not a regular file"):
            record.adopt(str(tmp_path / "p.om"), record.Recipe({"tool": "t"}), str(tmp_path / name))
    assert precious.stat().st_mode & 0o777 == 0o600 and not (tmp_path / "p.om").exists()


def test_an_atc_that_writes_nothing_any_more_is_ended(machine: Machine) -> None:
    environment, work = machine
    words = ("--batch-sizes", "1", "--stall", "0.5")
    first, *_ = said_of(compile_here(machine, *words, STANDIN_FAULT=ENDLESS))
    assert first == (
        "onnx2om.sh: atc was ended: for 0.5 s it gave no output and no result; if it only needs "
        "longer, give --stall SECONDS"
    )
    assert f"--model={work}/net.onnx" not in processes()
    done = compile_here(machine, "--batch-sizes", "1", "--stall", "0", STANDIN_FAULT="atc-sleep=1")
    assert done.returncode == 0, "0: it may take as long as it wants"


def test_a_watch_sees_every_output(tmp_path: Path) -> None:
    """The log, a new file at any depth, and a file that grows; then nothing."""
    from common.ascend.host import Watch

    clock = [0.0]
    with mock.patch("time.monotonic", lambda: clock[0]):
        watch = Watch([str(tmp_path)], 10)

        def is_stalled_at(seconds: float) -> bool:
            clock[0] = seconds
            return watch.is_stalled()

        assert not is_stalled_at(9)
        (tmp_path / "kernel_meta").mkdir()
        (tmp_path / "kernel_meta" / "te_conv.json").write_text("")
        assert not is_stalled_at(18) and not is_stalled_at(27.9)
        (tmp_path / "kernel_meta" / "te_conv.json").write_text("more")
        assert not is_stalled_at(28.5) and not is_stalled_at(38)
        assert is_stalled_at(39)
        assert not Watch([str(tmp_path)], 0).is_stalled()


@pytest.mark.slow
def test_onnx2om_leaves_no_half_model_when_atc_is_killed(machine: Machine) -> None:
    work = machine.folder
    done = compile_net(machine, "--batch-sizes", "4", STANDIN_FAULT="atc-kill=4")
    assert done.returncode == 1 and "atc was ended by signal KILL at batch size 4" in done.stderr
    assert sorted(path.name for path in work.iterdir()) == ["net.onnx", "net_bs4.atc.log"]
    assert compile_net(machine, "--batch-sizes", "4").returncode == 0
    good = (work / "net_bs4.om").read_bytes()
    assert (
        compile_net(machine, "--batch-sizes", "4", "--force", STANDIN_FAULT="atc-kill=4").returncode
        == 1
    )
    assert (work / "net_bs4.om").read_bytes() == good, "what was there stays"
    assert ais_bench_here(machine, "--model", "net_bs4.om").returncode == 0
    assert "is up to date" in compile_net(machine, "--batch-sizes", "4").stdout


@pytest.mark.parametrize(
    "number, status", [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]
)
def test_onnx2om_ends_atc_with_itself(machine: Machine, number: int, status: int) -> None:
    environment, work = machine
    with start_compiling(machine, STANDIN_FAULT=ENDLESS) as child:
        until(lambda: calls(environment, "atc"))
        assert f"--model={work}/net.onnx" in processes()
        child.send_signal(number)
        message = child.communicate(timeout=PATIENCE)[1]
    assert child.returncode == status
    expected = ""
    if status == 130:
        expected = "\nonnx2om.sh: interrupted; the model being compiled is dropped, .*\n"
    assert re.fullmatch(expected, message), message
    assert sorted(path.name for path in work.iterdir()) == ["net.onnx", "net_bs1.atc.log"]
    assert f"--model={work}/net.onnx" not in processes()


@pytest.mark.slow
def test_onnx2om_ends_what_does_not_listen(machine: Machine, tmp_path: Path) -> None:
    """An atc that ignores SIGTERM, as does the compiler that it has started."""
    (tmp_path / "bin").mkdir()
    atc = tmp_path / "bin" / "atc"
    compiler = tmp_path / "compiler"
    begun = tmp_path / "begun"
    compiler.write_text(f"touch {shlex.quote(str(begun))}\nsleep 3600\nsleep 3600\n")
    atc.write_text(f"#!/bin/sh\ntrap '' TERM\nsh {shlex.quote(str(compiler))} &\nwait\n")
    atc.chmod(0o755)
    path = os.pathsep.join([str(tmp_path / "bin"), machine.environment["PATH"]])
    with start_compiling(machine, PATH=path) as child:
        until(begun.exists)
        assert str(compiler) in processes()
        child.terminate()
        child.communicate(timeout=PATIENCE)
    assert child.returncode == 143 and str(compiler) not in processes()
    names = sorted(path.name for path in machine.folder.iterdir())
    assert names == ["net.onnx", "net_bs1.atc.log"]


def test_onnx2om_killed_leaves_the_lock_to_atc(machine: Machine) -> None:
    """A pipeline's lock on the work folder holds as long as an atc of its is at work there."""
    from common.core import cli, files

    environment, work = machine
    lock = files.hold(str(work / "lock"))
    child = start_compiling(machine, pass_fds=[lock], STANDIN_FAULT=ENDLESS)
    os.close(lock)
    until(lambda: calls(environment, "atc"))
    child.kill()
    child.wait()
    assert child.stderr
    child.stderr.close()
    with pytest.raises(cli.Refusal, match="in use by another run"):
        files.hold(str(work / "lock"))
    atc = next(
        path.name
        for path in Path("/proc").glob("[0-9]*")
        if str(child.pid) != path.name
        and f"--model={work}/net.onnx" in (path / "cmdline").read_text(errors="replace")
    )
    os.kill(int(atc), signal.SIGKILL)
    with open(str(work / "lock")) as lock_file:
        fcntl.flock(lock_file, fcntl.LOCK_EX)  # waits until it has ended
    assert len(list(work.glob("atc-run-*"))) == 1
    assert compile_here(machine, "--batch-sizes", "4").returncode == 0
    assert not list(work.glob("atc-run-*")), "the next run clears away what is left"


def test_onnx2om_clears_away_what_a_killed_run_left(machine: Machine) -> None:
    work = machine.folder
    gone = subprocess.Popen(["true"])
    gone.wait()
    (work / f"atc-run-{gone.pid}" / "kernel_meta").mkdir(parents=True)
    (work / f"atc-run-{os.getpid()}").mkdir()
    assert compile_net(machine, "--batch-sizes", "1").returncode == 0
    assert [path.name for path in work.glob("*run*")] == [f"atc-run-{os.getpid()}"], (
        "a living run's stays"
    )


@pytest.mark.parametrize(
    "words, switches, status, complaint",
    [
        (["--batch-sizes", "1,x"], {}, 2, "is not a list of batch sizes joined by commas"),
        (["--batch-sizes", "0"], {}, 2, "is not a list of batch sizes joined by commas"),
        (["--batch-sizes"], {}, 2, "expected one argument"),
        (["--soc-version", "310 P3"], {}, 2, "'310 P3' is not a name such as Ascend310P3"),
        (["--output-dir", ""], {}, 2, "is a shell variable unset?"),
        (["--optimise", "1"], {}, 2, "unrecognized arguments: --optimise 1"),
        (["second.onnx"], {}, 2, "unrecognized arguments: second.onnx"),
        (["--aipp", "absent.cfg"], {}, 1, "no readable AIPP file"),
        (["--output-dir", "with space"], {}, 1, "move or rename"),
        (["--output-dir", "net.onnx/x"], {}, 1, "cannot be made or written"),
        (["--", "--fusion_switch_file=net.onnx"], {}, 1, "absolute path"),
        (["--", "--batch-sizes"], {"STANDIN_NPU_SMI": "fail"}, 1, "npu-smi info failed"),
        ([], {"STANDIN_NPU_SMI": "no_process_tail"}, 1, "names no NPU"),
        ([], {"STANDIN_NPU_SMI": "310P3+910B4"}, 1, "different kinds"),
    ],
)
def test_onnx2om_refuses(
    machine: Machine, words: List[str], switches: Dict[str, str], status: int, complaint: str
) -> None:
    done = compile_here(machine, *words, **switches)
    assert done.returncode == status and complaint in done.stderr.splitlines()[-1], (
        done.stdout + done.stderr
    )
    assert not calls(machine.environment, "atc")


def test_onnx2om_refuses_on_the_command_line_too(machine: Machine) -> None:
    done = compile_net(machine, "--batch-sizes", "0")
    assert (
        done.returncode == 2
        and "onnx2om.sh: error: argument --batch-sizes: '0' is not" in done.stderr
    )
    done = compile_net(machine, "--aipp", "absent.cfg")
    assert (done.returncode, done.stderr) == (
        1,
        "onnx2om.sh: there is no readable AIPP file absent.cfg\n",
    )
    done = compile_net(machine, TRESNET_PYTHON="/absent/python")
    assert done.returncode == 1 and done.stderr.startswith(
        "onnx2om.sh: there is no Python at /absent/python; "
    )


@pytest.mark.parametrize(
    "content, complaint",
    [
        (b"", "must have one input"),
        (b"not a model", "is not an ONNX file, or it is damaged"),
        (None, "cannot read the ONNX file"),
        ("name", "--input_shape takes only"),
        ("fixed", "give --batch-sizes 2"),
    ],
)
def test_onnx2om_refuses_what_is_no_such_model(
    machine: Machine, content: Any, complaint: str
) -> None:
    path = machine.folder / "net.onnx"
    if content is None:
        path.unlink()
    elif isinstance(content, bytes):
        path.write_bytes(content)
    else:
        save_network(path, **({"name": 'a"; rm -rf "'} if content == "name" else {"batch": 2}))
    done = compile_here(machine)
    assert done.returncode == 1 and complaint in done.stderr and "Traceback" not in done.stderr, (
        done.stderr
    )
    assert not calls(machine.environment, "atc")


def test_onnx2om_without_atc_says_how_to_get_it(machine: Machine, tmp_path: Path) -> None:
    """With no CANN at all, and with one that is installed but not sourced."""
    environment, work = machine
    path = os.pathsep.join(
        part for part in environment["PATH"].split(os.pathsep) if part != str(HERE / "bin")
    )
    done = compile_net(machine, PATH=path)
    assert (
        done.returncode == 1
        and "source /usr/local/Ascend/cann/set_env.sh (up to CANN 8.3: "
        "/usr/local/Ascend/ascend-toolkit/set_env.sh)"
        in done.stderr
    )
    script = tmp_path / "Ascend" / "ascend-toolkit" / "set_env.sh"
    script.parent.mkdir(parents=True)
    script.write_text("")
    assert f"source {script}" in compile_net(machine, PATH=path, HOME=str(tmp_path)).stderr


def test_onnx2om_names_a_virtual_environment_on_atcs_path(machine: Machine, tmp_path: Path) -> None:
    subprocess.run(
        [sys.executable, "-m", "venv", "--without-pip", str(tmp_path / "venv")], check=True
    )
    path = os.pathsep.join([str(tmp_path / "venv" / "bin"), machine.environment["PATH"]])
    done = compile_net(machine, PATH=path)
    assert done.returncode == 1 and "EC0010" in done.stderr
    assert f"virtual environment's ({tmp_path}/venv/bin/python3): deactivate it" in done.stderr


def test_comparison_catches_a_lossy_compilation(machine: Machine) -> None:
    """float16 weights pass, hard-rounded ones do not: the figure users are warned by."""
    environment, work = machine
    (work / "in").mkdir(mode=0o750)
    rng = np.random.RandomState(3)
    for number in range(
        8
    ):  # images that differ in contrast and colour, so that their classes differ
        image = rng.rand(3, 1, 1) * rng.rand(3, SIZE, SIZE) ** rng.randint(1, 5)
        image.astype(np.float32).tofile(str(work / "in" / f"i{number}.bin"))
    succeed(
        "scripts/infer_onnx.py",
        "--model",
        work / "net.onnx",
        "--input",
        work / "in",
        "--output",
        work,
        *"--output_dirname onnx --outfmt TXT".split(),
    )
    outcome = {}
    for fault in ("", "atc-lossy"):
        done = compile_net(machine, "--batch-sizes", "4", "--force", STANDIN_FAULT=fault)
        assert done.returncode == 0, done.stderr
        name = "result" + fault
        assert (
            ais_bench_here(machine, *CONTRACT_INFER[:-3], name, "--outfmt", "TXT").returncode == 0
        )
        outcome[fault] = run(
            "scripts/compare_results.py", work / name, work / "onnx", "--min-cosine", 0.999
        ).returncode
    assert outcome == {"": 0, "atc-lossy": 3}


def test_a_negative_size_in_a_model_is_not_a_size(tmp_path: Path) -> None:
    from common.core.cli import Refusal
    from common.model import onnx_file

    import onnx

    path = save_network(tmp_path / "net.onnx")
    model = onnx.load(str(path))
    sides = model.graph.input[0].type.tensor_type.shape.dim
    sides[0].dim_value = -1
    onnx.save(model, str(path))
    assert onnx_file.describe(str(path))["shape"] == [None, 3, 32, 32]
    sides[2].dim_value = -32
    onnx.save(model, str(path))
    with pytest.raises(Refusal, match="has the shape .None, 3, None, 32., but all sizes except"):
        onnx_file.describe(str(path))
