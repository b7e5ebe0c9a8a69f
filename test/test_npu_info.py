"""npu_info.py and the host's versions: the chip for every output of npu-smi, or the problem."""

import json
import os
import random
import re
from pathlib import Path
from typing import Any, Dict, List
from unittest import mock

from common.core.cli import Refusal

import pytest
from ascend.helpers import Machine, start, start_here
from conftest import DATA, ROOT, refusal, succeed


@pytest.mark.parametrize(
    "sample, chip, soc",
    [
        ("310P3", "310P3", "Ascend310P3"),
        ("310P3_duo", "310P3", "Ascend310P3"),
        ("310P3_ids", "310P3", "Ascend310P3"),
        ("310P3+no_process_tail", "310P3", "Ascend310P3"),
        ("310", "310", "Ascend310"),
        ("310B4", "310B4", "Ascend310B4"),
        ("310B4_alarm", "310B4", "Ascend310B4"),
        ("910B", "910B", "Ascend910B"),
        ("910B4", "910B4", "Ascend910B4"),
        ("Ascend910", "Ascend910", "Ascend910_9391"),
        ("A3", "Ascend910", "Ascend910_9392"),
        ("950", "Ascend950PR", "Ascend950PR_9579"),
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
    two = {"npu": 0, "name": "Ascend910", "health": "OK", "soc": ""}
    assert json.loads(done.stdout) == [
        {**two, "chip": 0, "bus_id": "0000:9D:00.0"},
        {**two, "chip": 1, "bus_id": "0000:9F:00.0"},
    ], "this machine's npu-smi knows no more than the name"


def chip(npu: int, number: int, name: str, bus_id: str) -> Dict[str, Any]:
    soc = name if name.startswith("Ascend") else f"Ascend{name}"
    soc += {"Ascend950PR": "_9579"}.get(name, "")
    return dict(npu=npu, chip=number, name=name, health="OK", bus_id=bus_id, soc=soc)


@pytest.mark.parametrize(
    "sample, expected",
    [
        ("310P3_duo", [chip(2, 0, "310P3", "0000:01:00.0"), chip(2, 1, "310P3", "0000:01:00.0")]),
        ("310", [chip(2048, 0, "310", "0000:81:00.0"), chip(2048, 1, "310", "0000:82:00.0")]),
        ("310B4_alarm", [dict(chip(0, 0, "310B4", "NA"), health="Alarm")]),
        (
            "950",
            [
                chip(0, 0, "Ascend950PR", "0000:61:00.0"),
                chip(1, 0, "Ascend950PR", "0000:71:00.0"),
            ],
        ),
    ],
)
def test_npu_info_reads_each_layout(
    machine: Machine, sample: str, expected: List[Dict[str, Any]]
) -> None:
    """Two chips on one card, a narrow table of 2020, no bus id, and a line for NPU ID alone."""
    environment = dict(machine.environment, STANDIN_NPU_SMI=sample)
    done = succeed("scripts/npu_info.py", "--json", env=environment)
    assert json.loads(done.stdout) == expected


@pytest.mark.parametrize(
    "sample, board, likely",
    [
        ("A3", "fail", "Ascend910_9391, Ascend910_9392"),
        ("A3", "old", "Ascend910A for the first generation"),
        ("950", "fail", "Ascend950PR_9579"),
    ],
)
def test_a_name_that_chips_share_is_never_guessed(
    machine: Machine, sample: str, board: str, likely: str
) -> None:
    environment = dict(machine.environment, STANDIN_NPU_SMI=sample, STANDIN_BOARD=board)
    said = refusal("scripts/npu_info.py", "--soc-version", env=environment)
    assert "which several chips share" in said and "name it by --soc-version" in said
    assert likely in said and said.count("\n") == 1


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
    texts = [path.read_text() for path in sorted((DATA / "npu-smi").glob("*.txt"))]
    outcomes = set()
    for _ in range(1000):
        letters = list(rng.choice(texts))
        for _ in range(rng.randrange(1, 30)):
            letters[rng.randrange(len(letters))] = rng.choice("| \n+=0AP:\x00\u00e9")
        try:
            for chip in parse_npu_smi("".join(letters)):
                assert all(field != "" for field in chip._replace(soc="unasked"))
                outcomes.add("chips")
        except ValueError:
            outcomes.add("refused")
    assert outcomes == {"chips", "refused"}


def test_versions_of_the_host(machine: Machine, tmp_path: Path) -> None:
    """From both kinds of CANN's version files, and from packages; "" for what is missing."""
    from common.ascend import cann
    from common.ascend.host import host_facts, host_versions

    folder = tmp_path / "toolkit" / "latest"
    (folder / "x86_64-linux").mkdir(parents=True)
    (folder / "x86_64-linux" / "ascend_toolkit_install.info").write_text(
        "package_name=Ascend-cann-toolkit\nversion=6.0.RC1\n"
    )
    (folder.parent / "set_env.sh").write_text("")
    distribution = tmp_path / "packages" / "ais_bench-0.0.2.dist-info"
    distribution.mkdir(parents=True)
    (distribution / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: ais_bench\nVersion: 0.0.2\n"
    )
    path = os.pathsep.join([machine.environment["PYTHONPATH"], str(tmp_path / "packages")])
    with mock.patch.dict(
        os.environ, dict(machine.environment, PYTHONPATH=path, ASCEND_TOOLKIT_HOME=str(folder))
    ):
        host_facts.cache_clear()
        assert (cann.version(), cann.set_env()) == ("6.0.RC1", str(folder.parent / "set_env.sh"))
        (folder / "version.cfg").write_text(  # as an installed 8.1.RC1 has it
            "# version: 1.0\nruntime_running_version=[7.7.0.1.238:8.1.RC1]\n"
            "toolkit_installed_version=[7.7.0.1.238:8.1.RC1]\n"
        )
        assert cann.version() == "8.1.RC1"
        assert host_facts()["versions"] == {"ais_bench": "0.0.2", "aclruntime": "version unknown"}
        known = tmp_path / "host.json"
        assert host_facts(str(known)) == host_facts(), "without that file the host is asked"
        known.write_text(json.dumps({"versions": {"ais_bench": "9.9"}}))
        host_facts.cache_clear()
        assert host_versions(str(known))["ais_bench"] == "9.9"


def install_cann(root: Path, version: str, ops: str = "", kernels: str = "") -> Path:
    """A CANN as 8.5 and later lay it out: root/cann-VERSION, and the link root/cann."""
    folder = root / f"cann-{version}"
    for processor in ("aarch64", "x86_64"):
        (folder / f"{processor}-linux").mkdir(parents=True)
        for name, package in (("toolkit", "Ascend-cann-toolkit"), ("ops", ops)):
            if package:
                (folder / f"{processor}-linux" / f"ascend_{name}_install.info").write_text(
                    f"package_name={package}\nversion={version}\narch={processor}\nos=linux\n"
                )
    if kernels:
        place = folder / "opp" / "built-in" / "op_impl" / "ai_core" / "tbe" / "kernel" / kernels
        (place / "conv2d").mkdir(parents=True)
    (folder / "set_env.sh").write_text("")
    (folder / "bin").mkdir()
    (folder / "bin" / "atc").write_text("#!/bin/sh\n")
    (folder / "bin" / "atc").chmod(0o755)
    if not (root / "cann").is_symlink():
        (root / "cann").symlink_to(folder.name)
    return folder


@pytest.mark.parametrize("found_by", ["ASCEND_TOOLKIT_HOME", "ASCEND_HOME_PATH", "home", "atc"])
def test_a_cann_of_8_5_and_later_is_found(tmp_path: Path, found_by: str) -> None:
    from common.ascend import cann

    folder = install_cann(tmp_path / "Ascend", "9.0.0")
    environment = {"HOME": str(tmp_path / "elsewhere"), "PATH": str(tmp_path)}
    if found_by == "home":  # of a user who has sourced nothing
        environment["HOME"] = str(tmp_path)
        folder = tmp_path / "Ascend" / "cann"
    elif found_by == "atc":
        (tmp_path / "atc").symlink_to(folder / "bin" / "atc")
    else:
        environment[found_by] = str(folder)
    with mock.patch.dict(os.environ, environment):
        for name in {"ASCEND_TOOLKIT_HOME", "ASCEND_HOME_PATH"} - set(environment):
            os.environ.pop(name, None)
        assert (cann.home(), cann.version()) == (str(folder), "9.0.0")
        assert cann.source() == f"source {folder}/set_env.sh"


@pytest.mark.parametrize(
    "version, ops, kernels, soc, state",
    [
        ("9.0.0", "Ascend-cann-310p-ops", "", "Ascend310P3", ""),
        ("9.0.0", "", "ascend310p", "Ascend310P3", ""),
        ("8.1.RC1", "", "ascend910b", "Ascend910B4-1", ""),
        ("8.5.0", "", "", "Ascend310B4", "Ascend-cann-310b-ops was not found in "),
        ("9.0.0", "", "", "Ascend910_9391", "Ascend-cann-A3-ops was not found in "),
        ("9.0.0", "", "", "Ascend950PR_9579", "Ascend-cann-950-ops was not found in "),
        ("8.3.RC1", "", "", "Ascend310P3", "Ascend-cann-kernels-310p was not found in "),
        ("8.3.RC1", "", "", "Ascend910_9391", "Atlas-A3-cann-kernels was not found in "),
        ("8.1.RC1", "", "ascend910b", "Ascend910B", "Ascend-cann-kernels-910 was not found in "),
    ],
)
def test_the_operators_of_a_chip_are_a_package_of_their_own(
    tmp_path: Path, version: str, ops: str, kernels: str, soc: str, state: str
) -> None:
    """Up to 8.3 it is called kernels; 910B (first generation) and 910B4 have different ones."""
    from common.ascend import cann

    folder = install_cann(tmp_path, version, ops, kernels)
    with mock.patch.dict(os.environ, ASCEND_TOOLKIT_HOME=str(folder)):
        operators = cann.operators(soc)
    assert operators.there == (not state)
    if state:
        assert operators.state == state + str(folder)
        assert operators.advice.startswith(f"if atc fails: install {state.split(' ')[0]}_{version}")


def test_operators_of_another_chip_are_named(tmp_path: Path) -> None:
    from common.ascend import cann

    with mock.patch.object(cann, "folders", return_value=[]):
        assert cann.operators("Ascend310P3") == (
            False,
            "Ascend-cann-310p-ops was not looked for: no CANN was found",
            "",
        )
    assert cann.operators("") == (False, "not looked for: the chip is not known", "")
    folder = install_cann(tmp_path, "9.0.0", "Ascend-cann-910b-ops", "ascend910b")
    with mock.patch.dict(os.environ, ASCEND_TOOLKIT_HOME=str(folder)):
        assert cann.operators("Ascend310P3").state == (
            f"Ascend-cann-310p-ops was not found in {folder}, only Ascend-cann-910b-ops, "
            "Ascend-cann-910b-ops"
        )


def host_with(python: str, **packages: str) -> Any:
    """A patch: the host's python3 is of this version and has these packages, and what atc needs."""
    from common.ascend import host

    has = {**dict.fromkeys(host.PACKAGES, ""), **dict.fromkeys(host.ATC_NEEDS, "1.0")}
    has.update(dict.fromkeys(host.ATC_GUIDE, "1.0"), **packages)
    facts = {"python": python, "versions": {}, "errors": {}, "packages": has}
    return mock.patch.object(host, "host_facts", return_value=facts)


@pytest.mark.parametrize(
    "cann, python, numpy, advice",
    [
        ("8.0.0", "3.11.4", "1.24.4", ""),
        ("8.0.0", "3.11.12", "1.24.4", "names Python 3.11.4 at most, here is 3.11.12; if atc"),
        ("8.3.RC1", "3.10.2", "1.26.4", "names NumPy below 1.25, here is 1.26.4 (pip3 install"),
        ("8.5.1", "3.12.12", "1.26.4", ""),
        ("8.5.1", "3.12.12", "2.1.0", "names NumPy below 2.0, here is 2.1.0"),
        ("9.0.0", "3.13.1", "2.1.0", ""),
        ("9.0.0", "3.14.0", "2.1.0", "names Python 3.13 at most, here is 3.14.0"),
        ("9.1.0", "3.14.0", "2.1.0", ""),
        ("", "3.14.0", "2.1.0", ""),
    ],
)
def test_what_only_the_guide_limits_is_advice(
    cann: str, python: str, numpy: str, advice: str
) -> None:
    from common.ascend import host

    with host_with(python, numpy=numpy), mock.patch("common.ascend.cann.version", lambda: cann):
        assert host.atc_problem() == ("", "")
        assert advice in host.atc_advice() and bool(advice) == bool(host.atc_advice())


@pytest.mark.parametrize(
    "python, onnx, runtime, advice",
    [
        ("3.10.17", "1.14.0", "1.16.0", ""),
        ("3.11.12", "1.17.0", "1.16.0", "3.11: onnx 1.14.0 (here is 1.17.0); if AMCT fails"),
        ("3.12.1", "1.18.0", "1.20.0", ""),
        ("3.13.1", "1.18.0", "", "onnxruntime 1.20.0 (here is none); if AMCT fails: pip3 install "),
        ("3.9.2", "1.10.2", "1.9.0", ""),
        ("3.8.1", "1.10.2", "1.9.0", "names Python 3.7, 3.9, 3.10, 3.11, 3.12, 3.13, here is 3.8"),
    ],
)
def test_the_versions_that_amct_names_are_compared(
    python: str, onnx: str, runtime: str, advice: str
) -> None:
    from common.ascend import host

    versions = {"numpy": "1.24.4", "protobuf": "3.20.2", "onnx": onnx, "onnxruntime": runtime}
    with host_with(python, **versions):
        assert advice in host.amct_advice() and bool(advice) == bool(host.amct_advice())


@pytest.mark.parametrize(
    "python, advice",
    [
        ("3.12.3", "pip3 install the ais_bench wheel of Ascend's tools for this Python, then: x"),
        ("3.13.1", "build ais_bench from the sources of Ascend's tools of 2025-12-10 or later"),
    ],
)
def test_where_ais_bench_has_no_wheel_it_is_built(python: str, advice: str) -> None:
    import check

    with host_with(python):
        row = check.bench_row("ais_bench", check.BENCH, "", "ModuleNotFoundError", "x")
    assert row.advice.startswith(advice) and not row.good


def test_files_of_the_current_folder_are_not_executed(machine: Machine, tmp_path: Path) -> None:
    """Nor where PYTHONPATH has an empty word, as after CANN's set_env.sh; ais_bench in the user's
    own site-packages is still found.
    """
    import check
    import onnx2om

    folder = machine.folder
    for name in ("json", "select", "importlib", "numpy", "ais_bench", "argparse"):
        (folder / f"{name}.py").write_text(f"open({str(tmp_path / name)!r}, 'w').close()\n")
    standin = Path(machine.environment["PYTHONPATH"])
    (user,) = (tmp_path / "machine" / "user").glob("lib/*/site-packages")
    for path in standin.iterdir():
        (user / path.name).symlink_to(path)
    environment = dict(machine.environment, PYTHONPATH=os.pathsep)
    done = start_here(check.main, environment, folder, "check.py", "--backend", "ascend")
    assert re.search(r"ais_bench +ok +version unknown", done.stdout), done.stdout + done.stderr
    assert not [path.name for path in tmp_path.iterdir() if path.name.endswith(".py")]
    done = start_here(onnx2om.main, environment, folder, "onnx2om.sh", "net.onnx", "--dry-run")
    assert done.returncode == 0, done.stderr
    assert {path.name for path in tmp_path.iterdir()} == {"machine", "work"}, "nothing was executed"


@pytest.mark.slow
@pytest.mark.parametrize(
    "words", [["pipeline.sh", "--check"], ["onnx2om.sh", "net.onnx", "--dry-run"]]
)
def test_an_empty_word_in_pythonpath_runs_no_file_of_the_current_folder(
    machine: Machine, tmp_path: Path, words: List[str]
) -> None:
    for name in ("json", "select", "numpy", "sitecustomize", "common"):
        (machine.folder / f"{name}.py").write_text(f"open({str(tmp_path / name)!r}, 'w').close()\n")
    environment = dict(machine.environment)
    environment["PYTHONPATH"] = f":{environment['PYTHONPATH']}::"
    script, *arguments = words
    done = start(environment, machine.folder, "bash", ROOT / "scripts" / script, *arguments)
    assert done.returncode == 0 and ("can run" in done.stdout or "atc --" in done.stdout), (
        done.stdout + done.stderr
    )
    assert {path.name for path in tmp_path.iterdir()} == {"machine", "work"}, "nothing was executed"


def test_the_spelling_of_ais_bench_is_asked_elsewhere(machine: Machine, tmp_path: Path) -> None:
    from common.ascend import bench

    (machine.folder / "argparse.py").write_text(f"open({str(tmp_path / 'run')!r}, 'w').close()\n")
    bench.spelling.cache_clear()
    before = os.getcwd()
    os.chdir(str(machine.folder))
    try:
        with mock.patch.dict(os.environ, machine.environment):
            assert bench.spelling() == "_"
    finally:
        os.chdir(before)
        bench.spelling.cache_clear()
    assert not (tmp_path / "run").exists()


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
        ("310P3", None, "", ([0], "310P3", "Ascend310P3")),
        ("310P3", [], "", ([0, 1], "310P3", "Ascend310P3")),
        ("310P3", [1], "", ([1], "310P3", "Ascend310P3")),
        ("910B4+310P3", [3], "", ([3], "310P3", "Ascend310P3")),
        ("910B4+310P3", None, "Ascend310P3", ([2], "310P3", "Ascend310P3")),
        ("910B4+310P3", [], "Ascend310P3", ([2, 3], "310P3", "Ascend310P3")),
        ("910B4+310P3", [2], "Ascend310P3", ([2], "310P3", "Ascend310P3")),
        ("Ascend910", None, "", ([0], "Ascend910", "Ascend910_9391")),
        ("910B", None, "Ascend910A", ([0], "910B", "Ascend910A")),
        ("fail", None, "Ascend310P3", ([0], "310P3", "Ascend310P3")),
        ("310P3", [0, 2], "", "--device 2 was asked for, but there are 2"),
        ("fail", [1], "", "npu-smi info failed"),
        ("910B4+310P3", None, "", "of different kinds (310P3, 910B4)"),
        ("910B4+310P3", [], "", "of different kinds"),
        ("910B4+310P3", [1, 2], "", "--device 2 (310P3) or --device 1 (910B4), or by"),
        ("fail", [], "Ascend310P3", "(--device 0,1 --soc-version NAME)"),
        ("A3", None, "Ascend910", "Ascend910 is not the chip of this machine, which is Ascend910_"),
        ("A3", None, "Ascend910_9392", ([0], "Ascend910", "Ascend910_9392")),
        ("fail", None, "Ascend910", ([0], "910", "Ascend910")),
    ],
)
def test_which_devices_a_run_uses(
    machine: Machine, smi: str, wanted: Any, soc: str, found: Any
) -> None:
    from common.ascend.chips import choose_devices, find_all_chips

    find_all_chips.cache_clear()
    with mock.patch.dict(os.environ, dict(machine.environment, STANDIN_NPU_SMI=smi)):
        if isinstance(found, tuple):
            assert choose_devices(wanted, soc) == found
        else:
            with pytest.raises(Refusal) as refused:
                choose_devices(wanted, soc)
            assert found in refused.value.sentence
    find_all_chips.cache_clear()


@pytest.mark.parametrize(
    "visible, wanted, outcome",
    [
        ("1", None, "Ascend310P3, device 0 (npu-smi's 1: ASCEND_RT_VISIBLE_DEVICES=1)"),
        ("1,2", [], "Ascend310P3, devices 0,1 (npu-smi's 1,2: ASCEND_RT_VISIBLE_DEVICES=1,2)"),
        ("0,1", [], "Ascend310P3, devices 0,1"),
        ("1, 2", [], "Ascend310P3, device 0 (npu-smi's 1: ASCEND_RT_VISIBLE_DEVICES=1, 2)"),
        ("1,9,2", [], "Ascend310P3, device 0 (npu-smi's 1: ASCEND_RT_VISIBLE_DEVICES=1,9,2)"),
        ("", [], "Ascend310P3, devices 0,1,2"),
        ("1", [1], "--device 1 was asked for, but there are 1, numbered from 0 (npu-smi's 1: "),
        ("9", None, "ASCEND_RT_VISIBLE_DEVICES='9' shows none of the chips that npu-smi lists"),
    ],
)
def test_the_runtime_numbers_only_the_visible_devices(
    machine: Machine, visible: str, wanted: Any, outcome: str
) -> None:
    """What comes behind a word that is not the id of a device does not count, as on the card."""
    from common.ascend.chips import find_all_chips

    import check

    find_all_chips.cache_clear()
    environment = dict(machine.environment, STANDIN_NPU_SMI="310P3_ids")
    with mock.patch.dict(os.environ, environment, ASCEND_RT_VISIBLE_DEVICES=visible):
        row = check.chips_row("", wanted)
    find_all_chips.cache_clear()
    assert row.state.startswith(outcome) and row.good == outcome.startswith("Ascend310P3"), row
    assert not row.good or row.state == outcome
