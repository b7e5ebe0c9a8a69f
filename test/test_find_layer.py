"""find_layer.py: each planted fault is named after three compilations, and the remedy is judged."""

import json
import os
from pathlib import Path
from typing import Any, Dict, List
from unittest import mock

from common.ascend import bench, host
from common.model import onnx_file

import find_layer
import onnx2om
import pytest
from ascend.helpers import (
    Machine,
    ais_bench_here,
    atc_here,
    calls,
    save_images,
    save_tiny_tresnet,
    start,
    start_here,
)
from conftest import ROOT


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with tiny.onnx (miil, SpaceToDepth as in timm) and in/ (three images)."""
    folder = tmp_path_factory.mktemp("tiny")
    save_tiny_tresnet(folder / "tiny.onnx", "miil", "space-to-depth")
    save_images(folder / "in", 3)
    return folder


def find(tiny: Path, machine: Machine, fault: str = "", *words: object) -> Any:
    """The program with the stand-ins of the card, all of it in this process."""
    switches = {"STANDIN_DEVICE": "float16", "STANDIN_FAULT": fault}

    def run_tool(command: List[str], log: str, cwd: str = "", **_: Any) -> int:
        here = machine._replace(folder=Path(cwd) if cwd else machine.folder)
        if command[0] == "atc":
            done = atc_here(here, *command[1:], **switches)
        elif "ais_bench" in command:
            done = ais_bench_here(here, *command[3:], **switches)
        else:
            done = start_here(
                onnx2om.main, dict(machine[0], **switches), machine[1], "onnx2om.sh", *command[2:]
            )
        Path(log).write_text(done.stdout + done.stderr)
        return done.returncode

    with mock.patch.object(host, "run_tool", run_tool), mock.patch.object(
        bench, "spelling", return_value="_"
    ):
        return start_here(
            find_layer.main,
            dict(machine[0], **switches),
            machine[1],
            "find_layer.py",
            tiny / "tiny.onnx",
            "--input",
            tiny / "in",
            "--images",
            3,
            *words,
        )


def read_report(machine: Machine) -> Dict[str, Any]:
    return json.loads((machine[1] / "find_layer.json").read_text())


FAULTS = (
    ("slope", "body.layer2.0.conv1.0.2", "body.layer2.0.relu", "--keep_dtype=", True),
    (
        "zero-padding",
        "body.layer3.0.conv2.1.column",
        "body.layer3.0.relu",
        "export with --reflect pad",
        True,
    ),
    (
        "sigmoid",
        "body.layer1.0.se.fc2.sigmoid",
        "body.layer1.0.relu",
        "--op_select_implmode=high_precision",
        True,
    ),
    ("overflow", "body.layer3.0.add", "body.layer3.0.relu", "--keep_dtype=", True),
    ("channels", "body.SpaceToDepth", "body.SpaceToDepth", "export with --stem conv4", True),
    (
        "weight",
        "body.layer4.0.conv2.0.0",
        "body.layer4.0.relu",
        "--precision_mode=force_fp32",
        False,
    ),
)


@pytest.mark.slow
@pytest.mark.parametrize(
    "fault, operator, block, tried, helps", FAULTS, ids=[row[0] for row in FAULTS]
)
def test_each_planted_fault_is_named(
    fault: str, operator: str, block: str, tried: str, helps: bool, tiny: Path, machine: Machine
) -> None:
    done = find(tiny, machine, f"atc-{fault}={operator}")
    assert done.returncode == 0, done.stdout + done.stderr
    report = read_report(machine)
    assert (report["block"], report["operator"]) == (block, operator), done.stdout
    assert report["helped"] == helps and tried in report["tried"]
    assert f"the operator that loses: {operator} (" in done.stdout
    assert report["compilations"] == len(calls(machine[0], "atc")) == 3
    nodes = onnx_file.load(str(tiny / "tiny.onnx")).graph.node
    (node,) = [node for node in nodes if node.name == operator]
    assert set(report["range"]) == set(node.input)
    assert f"its input {node.input[0]} lies between" in done.stdout
    assert set(os.listdir(str(machine[1]))) - {"find_layer_keep_dtype.txt"} == {
        "net.onnx",
        "find_layer.json",
        "find_layer.json.record.jsonl",
    }


def test_a_sound_card_is_found_sound_with_one_compilation(tiny: Path, machine: Machine) -> None:
    done = find(tiny, machine)
    assert done.returncode == 0 and "no block is worse than float16 explains" in done.stdout, (
        done.stdout + done.stderr
    )
    assert read_report(machine)["operator"] is None and len(calls(machine[0], "atc")) == 1
    assert [row["name"] for row in read_report(machine)["blocks"]] == [
        "body.SpaceToDepth",
        "body.conv1.2",
        "body.layer1.0.relu",
        "body.layer2.0.relu",
        "body.layer3.0.relu",
        "body.layer4.0.relu",
        "head.global_pool",
        "head.flatten",
        "head.fc",
    ]


@pytest.mark.slow
def test_the_file_for_atc_of_an_earlier_search_goes(tiny: Path, machine: Machine) -> None:
    slope = "atc-slope=body.layer2.0.conv1.0.2"
    for fault, written in ((slope, True), ("", False), (slope, True)):
        done = find(tiny, machine, fault)
        assert done.returncode == 0, done.stderr
        assert (machine[1] / "find_layer_keep_dtype.txt").exists() == written


def test_a_file_that_it_did_not_make_is_not_replaced(tiny: Path, machine: Machine) -> None:
    (machine[1] / "find_layer.json").write_text("mine")
    done = find(tiny, machine)
    assert done.returncode == 1 and "no record says that this program made it" in done.stderr
    assert (machine[1] / "find_layer.json").read_text() == "mine" and not calls(machine[0], "atc")


@pytest.mark.slow
def test_it_runs_as_a_program_and_says_why_a_tool_failed(tiny: Path, machine: Machine) -> None:
    command = [
        machine[0]["TRESNET_PYTHON"],
        ROOT / "scripts" / "find_layer.py",
        tiny / "tiny.onnx",
        "--input",
        tiny / "in",
        "--images",
        1,
    ]
    done = start(dict(machine[0], STANDIN_DEVICE="float16"), machine[1], *command)
    assert done.returncode == 0 and "no block is worse" in done.stdout, done.stderr
    done = start(dict(machine[0], STANDIN_FAULT="atc-fail"), machine[1], *command)
    assert (
        done.returncode == 1
        and "compilation 1 failed and said:" in done.stderr
        and "E40021" in done.stderr
    )
    assert "Traceback" not in done.stderr and (machine[1] / "find_layer.log").exists()
