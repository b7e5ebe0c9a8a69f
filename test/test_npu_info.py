"""npu_info.py and the host's versions: the chip for every output of npu-smi, or the problem."""

import json
import os
import random
from pathlib import Path
from typing import Any
from unittest import mock

from common.core.cli import Refusal

import pytest
from ascend.helpers import Machine
from conftest import DATA, refusal, succeed


@pytest.mark.parametrize(
    "sample, chip, soc",
    [
        ("310P3", "310P3", "Ascend310P3"),
        ("910B4", "910B4", "Ascend910B4"),
        ("Ascend910", "Ascend910", "Ascend910"),
        ("310P3+no_process_tail", "310P3", "Ascend310P3"),
    ],
)
def test_npu_info_names_the_chip(machine: Machine, sample: str, chip: str, soc: str) -> None:
    environment = dict(machine.environment, STANDIN_NPU_SMI=sample)
    assert succeed("scripts/npu_info.py", env=environment).stdout == chip + "\n"
    assert succeed("scripts/npu_info.py", "--soc-version", env=environment).stdout == soc + "\n"


def test_npu_info_lists_two_chips_of_one_card_and_no_processes(machine: Machine) -> None:
    """The table of processes looks like that of chips; its numbers are not taken for chips."""
    processes = (
        (DATA / "npu-smi" / "no_process_tail.txt")
        .read_text()
        .replace(
            "| No running processes found in NPU 0                                                 "
            "           |",
            "| 0       0                 | 4711          | 310P3                    | 1024         "
            "           |",
        )
    )
    assert "4711" in processes
    answer = machine.folder / "answer.txt"
    answer.write_text((DATA / "npu-smi" / "Ascend910.txt").read_text() + processes)
    done = succeed(
        "scripts/npu_info.py", "--json", env=dict(machine.environment, STANDIN_NPU_SMI=str(answer))
    )
    assert json.loads(done.stdout) == [
        {"npu": 0, "chip": 0, "name": "Ascend910", "health": "OK", "bus_id": "0000:9D:00.0"},
        {"npu": 0, "chip": 1, "name": "Ascend910", "health": "OK", "bus_id": "0000:9F:00.0"},
    ]


@pytest.mark.parametrize(
    "answer, complaint",
    [
        ("no_process_tail", "names no NPU"),
        ("310P3+910B4", "different kinds (310P3, 910B4)"),
        ("fail", "status 252"),
        ("hang", "within 0.5 s"),
    ],
)
def test_npu_info_says_what_is_wrong(machine: Machine, answer: str, complaint: str) -> None:
    said = refusal(
        "scripts/npu_info.py",
        "--timeout",
        "0.5",
        env=dict(machine.environment, STANDIN_NPU_SMI=answer),
    )
    assert complaint in said and "--soc-version" in said and said.count("\n") == 1


def test_npu_info_without_npu_smi(tmp_path: Path) -> None:
    assert "no npu-smi on the PATH" in refusal("scripts/npu_info.py", env={"PATH": str(tmp_path)})


@pytest.mark.parametrize("damage", ["cut", "row", "binary", "empty"])
def test_npu_info_refuses_an_unreadable_answer(machine: Machine, damage: str) -> None:
    text = (DATA / "npu-smi" / "310P3.txt").read_text()
    answer = machine.folder / "answer.txt"
    row = text.replace("| 0       310P3     | OK ", "| ?                 | OK ")
    answer.write_bytes(
        {
            "cut": text[: text.index("| 0       0 ")].encode(),
            "row": row.encode(),
            "binary": bytes(range(256)) * 9,
            "empty": b"",
        }[damage]
    )
    said = refusal(
        "scripts/npu_info.py", env=dict(machine.environment, STANDIN_NPU_SMI=str(answer))
    )
    assert ("cannot parse" if damage in ("cut", "row") else "names no NPU") in said and said.count(
        "\n"
    ) == 1


def test_npu_info_reads_or_refuses_any_answer() -> None:
    """1,000 damaged outputs: each gives whole chips or the one error for that."""
    from common.ascend.chips import parse_npu_smi

    rng = random.Random(0)
    texts = [path.read_text() for path in sorted((DATA / "npu-smi").iterdir())]
    outcomes = set()
    for _ in range(1000):
        letters = list(rng.choice(texts))
        for _ in range(rng.randrange(1, 30)):
            letters[rng.randrange(len(letters))] = rng.choice("| \n+=0AP:\x00\u00e9")
        try:
            for chip in parse_npu_smi("".join(letters)):
                assert all(field != "" for field in chip)
                outcomes.add("chips")
        except ValueError:
            outcomes.add("refused")
    assert outcomes == {"chips", "refused"}


def test_versions_of_the_host(machine: Machine, tmp_path: Path) -> None:
    """From both kinds of CANN's version files, and from packages; "" for what is missing."""
    from common.ascend.host import cann_version, host_facts, host_versions, set_env

    cann = tmp_path / "toolkit" / "latest"
    (cann / "x86_64-linux").mkdir(parents=True)
    (cann / "x86_64-linux" / "ascend_toolkit_install.info").write_text(
        "package_name=x\nversion=6.0.RC1\n"
    )
    (cann.parent / "set_env.sh").write_text("")
    distribution = tmp_path / "packages" / "ais_bench-0.0.2.dist-info"
    distribution.mkdir(parents=True)
    (distribution / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: ais_bench\nVersion: 0.0.2\n"
    )
    path = os.pathsep.join([machine.environment["PYTHONPATH"], str(tmp_path / "packages")])
    with mock.patch.dict(
        os.environ, dict(machine.environment, PYTHONPATH=path, ASCEND_TOOLKIT_HOME=str(cann))
    ):
        host_facts.cache_clear()
        assert (cann_version(), set_env()) == ("6.0.RC1", str(cann.parent / "set_env.sh"))
        (cann / "version.cfg").write_text("# version: 1.0\nversion=[8.0.RC1:x]\n")
        assert cann_version() == "8.0.RC1"
        assert host_facts()["versions"] == {"ais_bench": "0.0.2", "aclruntime": "version unknown"}
        known = tmp_path / "host.json"
        assert host_facts(str(known)) == host_facts(), "without that file the host is asked"
        known.write_text(json.dumps({"versions": {"ais_bench": "9.9"}}))
        host_facts.cache_clear()
        assert host_versions(str(known))["ais_bench"] == "9.9"


def test_a_killed_run_of_the_same_process_id_leaves_its_folder_in_nobodys_way(
    tmp_path: Path,
) -> None:
    from common.ascend.host import run_folder

    (tmp_path / f"result-run-{os.getpid()}" / "in0").mkdir(
        parents=True
    )  # as in a container that is started again
    with run_folder(str(tmp_path / "result-run")) as folder:
        assert os.listdir(folder) == []
    assert os.listdir(str(tmp_path)) == []


def test_ais_bench_is_started_with_the_contracts_words() -> None:
    from common.ascend.bench import command

    assert " ".join(
        command("m.om", input="in", output="./", output_dirname="result", outfmt="TXT")
    ) == (
        "python3 -m ais_bench --model m.om --input in --output ./ --output_dirname result --outfmt "
        "TXT"
    )
    assert " ".join(command("m.om", loop=20, batchsize=8, device=3)) == (
        "python3 -m ais_bench --model=m.om --loop=20 --batchsize=8 --device=3"
    )


@pytest.mark.parametrize(
    "smi, wanted, soc, found",
    [
        ("310P3", None, "", ([0], "310P3")),
        ("310P3", [], "", ([0, 1], "310P3")),
        ("310P3", [1], "", ([1], "310P3")),
        ("910B4+310P3", [3], "", ([3], "310P3")),
        ("910B4+310P3", None, "Ascend310P3", ([2], "310P3")),
        ("910B4+310P3", [], "Ascend310P3", ([2, 3], "310P3")),
        ("910B4+310P3", [2], "Ascend310P3", ([2], "310P3")),
        ("Ascend910", None, "Ascend910A", ([0], "Ascend910")),
        ("fail", None, "Ascend310P3", ([0], "310P3")),
        ("310P3", [0, 2], "", "--device 2 was asked for, but there are 2"),
        ("fail", [1], "", "npu-smi info failed"),
        ("910B4+310P3", None, "", "of different kinds (310P3, 910B4)"),
        ("910B4+310P3", [], "", "of different kinds"),
        ("910B4+310P3", [1, 2], "", "--device 2 (310P3) or --device 1 (910B4), or by"),
        ("fail", [], "Ascend310P3", "npu-smi info failed"),
    ],
)
def test_which_devices_a_run_uses(
    machine: Machine, smi: str, wanted: Any, soc: str, found: Any
) -> None:
    from common.ascend.chips import choose_devices, find_chips

    find_chips.cache_clear()
    with mock.patch.dict(os.environ, dict(machine.environment, STANDIN_NPU_SMI=smi)):
        if isinstance(found, tuple):
            assert choose_devices(wanted, soc) == found
        else:
            with pytest.raises(Refusal) as refused:
                choose_devices(wanted, soc)
            assert found in refused.value.sentence
    find_chips.cache_clear()
