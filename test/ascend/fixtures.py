"""The fixtures of the stand-ins; test/conftest.py names this plugin."""

from pathlib import Path

import pytest
from ascend.environment import ascend_environment
from ascend.helpers import CONTRACT, Machine, make_machine, save_network, start
from conftest import Shared


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    """A machine with an Ascend card of its own for each test."""
    return make_machine(tmp_path)


@pytest.fixture(scope="session")
def compiled(shared: Shared) -> Path:
    """net_bs4.om, made by the contract's command."""

    def make(folder: Path) -> None:
        save_network(folder / "net.onnx")
        command = [word.replace("image:1", "image:4").replace("bs1", "bs4") for word in CONTRACT]
        done = start(ascend_environment(folder / "machine", HOME=str(folder)), folder, *command)
        assert done.returncode == 0, done.stdout + done.stderr
        (folder / "net_bs4.om").chmod(0o640)

    return shared("compiled", make) / "net_bs4.om"
