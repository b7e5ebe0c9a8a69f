"""The layers of the code base: what may import what; the documentation names every module."""

import ast
import os
import subprocess
import sys
from pathlib import Path
from typing import Dict, Iterator, List, Set

import pytest
from conftest import ROOT

COMMON = ROOT / "scripts" / "common"
BELOW: Dict[str, Set[str]] = {  # what a package may import beside itself
    "core": set(),
    "data": {"core"},
    "ascend": {"core", "data"},
    "model": {"core", "data"},
    "results": {"core", "data", "model"},
}
MODULES = sorted(COMMON.glob("*/*.py"))
STEPS = ("TResNet_preprocess", "TResNet_pth2onnx", "TResNet_postprocess")


def imports(path: Path) -> Iterator[str]:
    """The dotted names that a source imports anywhere; of `from a import b` a.b."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            for alias in node.names:
                yield f"{node.module}.{alias.name}"
        elif isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name


def package_of(name: str) -> str:
    return name.split(".")[1] if name.startswith("common.") else ""


def test_every_module_lies_in_a_package() -> None:
    assert [path.name for path in COMMON.glob("*.py")] == ["__init__.py"]
    assert {path.parent.name for path in MODULES} == set(BELOW)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_a_package_imports_only_from_those_below_it(path: Path) -> None:
    here = path.parent.name
    assert {package_of(name) for name in imports(path)} - {"", here} <= BELOW[here]


def test_there_is_no_circle() -> None:
    modules = {f"common.{path.parent.name}.{path.stem}": path for path in MODULES}
    needs: Dict[str, Set[str]] = {}
    for module, path in modules.items():
        names = set(imports(path))
        names |= {name.rpartition(".")[0] for name in names}  # of `from module import name`
        needs[module] = (names & modules.keys()) - {module}
    finished: List[str] = []
    while len(finished) < len(needs):
        ready = [
            module for module in needs if module not in finished and needs[module] <= set(finished)
        ]
        assert ready, {module: needs[module] for module in needs if module not in finished}
        finished += ready


def test_core_needs_only_the_standard_library() -> None:
    for path in COMMON.glob("core/*.py"):
        others = {name.split(".")[0] for name in imports(path)} - {"common", "__future__"}
        allowed = {"tqdm"} if path.stem == "progress" else set()
        if path.stem in ("recipe", "environment"):
            allowed |= {
                "pkg_resources",
                "packaging",
                "pip",
            }  # where Python 3.7 has no importlib.metadata; of pip's own
        unknown = others - allowed - set(getattr(sys, "stdlib_module_names", others))
        assert not unknown, path.name


BARE = ("pipeline", "check", "setup_env", "timm_source", "npu_info")


@pytest.mark.parametrize("command", BARE)
def test_what_runs_before_the_set_up_needs_no_package(command: str) -> None:
    """The host's own Python runs these, and it may have nothing but its standard library."""
    code = (
        "import sys; sys.path = [path for path in sys.path if 'site-packages' not in path];"
        f"sys.path.insert(0, {str(ROOT / 'scripts')!r}); import {command}"
    )
    python = os.path.join(sys.base_prefix, "bin", "python%d.%d" % sys.version_info[:2])
    done = subprocess.run([python, "-I", "-c", code], stderr=subprocess.PIPE)
    assert done.stderr.decode() == ""


@pytest.mark.parametrize("step", STEPS)
def test_no_step_imports_another_step_or_a_command(step: str) -> None:
    commands = {path.stem for path in (ROOT / "scripts").glob("*.py")} | set(STEPS)
    assert not {name.split(".")[0] for name in imports(ROOT / f"{step}.py")} & commands


def test_the_documentation_names_each_module_once() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    for path in MODULES:
        if path.stem != "__init__":
            assert text.count(f"| `{path.parent.name}/{path.stem}` |") == 1, path
