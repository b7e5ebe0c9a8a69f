"""Nothing leaves the machine but the set-up's downloads, and nothing is kept about a user.

ONNX Runtime 1.32 keeps a device's number and a queue of events in the user's cache folder, and
sends them to its maker, unless ORT_DISABLE_TELEMETRY is set when it is imported.
"""

import ast
import os
import shlex
import shutil
import sys
from pathlib import Path
from typing import Iterator, List

import pytest
from ascend.helpers import save_images, save_network
from conftest import ROOT, run

PROGRAMS = sorted([*ROOT.glob("TResNet_*.py"), *ROOT.glob("scripts/*.py")])
INTERNET = ("AF_INET", "sendto(", "sendmsg(", "sendmmsg(")  # in a trace: an address, a look-up
# Where programs keep what they know about a user, beside HOME.
CACHES = ("XDG_CACHE_HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME", "MPLCONFIGDIR")


def test_an_inference_keeps_nothing_in_the_home_folder_and_asks_no_other_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("ORT_DISABLE_TELEMETRY", *CACHES):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "home").mkdir()
    save_images(tmp_path / "images", 4, size=32)
    save_network(tmp_path / "net.onnx")
    trace = tmp_path / "trace.txt"
    if shutil.which("strace"):
        tracer = tmp_path / "python"
        tracer.write_text(
            "#!/bin/sh\nexec strace -f -e trace=network "
            f'-o {shlex.quote(str(trace))} {shlex.quote(sys.executable)} "$@"\n'
        )
        tracer.chmod(0o755)
        monkeypatch.setattr(sys, "executable", str(tracer))
    done = run(
        "scripts/infer_onnx.py",
        *("--model", tmp_path / "net.onnx", "--input", tmp_path / "images"),
        *("--output", tmp_path, "--output_dirname", "result"),
        env={"HOME": str(tmp_path / "home")},
    )
    assert done.returncode == 0, done.stderr
    assert len(list((tmp_path / "result").iterdir())) == 4
    assert list((tmp_path / "home").rglob("*")) == []
    if trace.exists():
        text = trace.read_text()
        assert "exited with 0" in text, "the program was traced to its end"
        assert [line for line in text.splitlines() if any(map(line.count, INTERNET))] == []


def packages_before_start(program: Path) -> Iterator[str]:
    """What a program imports before it calls cli.start(), except for the standard library."""
    for statement in ast.parse(program.read_text(encoding="utf-8")).body:
        if "cli.start(" in ast.unparse(statement):
            return
        if isinstance(statement, ast.ImportFrom):
            yield str(statement.module)
        elif isinstance(statement, ast.Import):
            yield from (alias.name for alias in statement.names)


@pytest.mark.skipif(sys.version_info < (3, 10), reason="sys.stdlib_module_names is needed")
def test_every_program_rules_out_telemetry_before_it_imports_a_package() -> None:
    assert len(PROGRAMS) > 20
    for program in PROGRAMS:
        names: List[str] = [*packages_before_start(program)]
        others = [name for name in names if name.split(".")[0] not in sys.stdlib_module_names]
        assert others == ["common.core"], program.name
    assert os.environ["ORT_DISABLE_TELEMETRY"] == "1", "the tests themselves send nothing either"
