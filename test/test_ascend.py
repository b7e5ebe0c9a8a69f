"""The Ascend side on a machine without Ascend: the stand-ins are strict, and each script tells the truth about them.

The stand-ins (test/ascend/) refuse what npu-smi, atc and ais_bench refuse; the first half of this file holds them to
that. The second half runs npu_info.py, onnx2om.sh, compare_results.py and perf_sweep.py against them,
with a small network.
"""
import json
import os
import platform
import random
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Dict, List, Tuple

import numpy as np
import pytest
from ascend.environment import HERE, ascend_environment
from conftest import DATA, ROOT, refusal, run, succeed
from PIL import Image

Machine = Tuple[Dict[str, str], Path]  # what the fixture machine() gives
SIZE = 32
CONTRACT = ["atc", "--framework=5", "--model=net.onnx", "--output=net_bs1", "--input_format=NCHW",
            f"--input_shape=image:1,3,{SIZE},{SIZE}", "--log=error", "--soc_version=Ascend310P3"]


def save_network(path: Path, opset: int = 11, batch: Any = "batch", dtype: str = "FLOAT", name: str = "image") -> Path:
    """A convolution, a pooling and a linear layer: float32 [batch, 3, 32, 32] -> [batch, 10]."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper
    rng = np.random.RandomState(0)
    weights = {"w": 0.3 * rng.randn(8, 3, 3, 3), "b": 0.1 * rng.randn(8), "head": rng.randn(8, 10)}
    nodes = [helper.make_node("Conv", [name, "w", "b"], ["conv"], pads=[1, 1, 1, 1], strides=[2, 2]),
             helper.make_node("Relu", ["conv"], ["relu"]), helper.make_node("GlobalAveragePool", ["relu"], ["pool"]),
             helper.make_node("Flatten", ["pool"], ["flat"]), helper.make_node("MatMul", ["flat", "head"], ["class"])]
    if dtype != "FLOAT":
        nodes.insert(0, helper.make_node("Cast", [name], ["cast"], to=TensorProto.FLOAT))
        nodes[1].input[0] = "cast"
    graph = helper.make_graph(
        nodes, "net", [helper.make_tensor_value_info(name, getattr(TensorProto, dtype), [batch, 3, SIZE, SIZE])],
        [helper.make_tensor_value_info("class", TensorProto.FLOAT, [batch, 10])],
        [numpy_helper.from_array(value.astype(np.float32), key) for key, value in weights.items()])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])
    model.ir_version = 6
    helper.set_model_props(model, {"variant": "tresnet_m", "img_size": str(SIZE)})
    onnx.save(model, str(path))
    return path


def start(environment: Dict[str, str], folder: Path, *command: object) -> "subprocess.CompletedProcess[str]":
    """Run a command in `folder` under the environment of an Ascend machine."""
    return subprocess.run([str(word) for word in command], cwd=str(folder), env=dict(os.environ, **environment),
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL,
                          universal_newlines=True)


def calls(environment: Dict[str, str], tool: str = "") -> List[Dict[str, Any]]:
    """What the stand-ins were started with so far, oldest first."""
    log = Path(environment["STANDIN_LOG"])
    rows = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    return [row for row in rows if tool in ("", row["tool"])]


def processes() -> str:
    """The command lines of all living processes, from /proc (ps is not on every machine)."""
    lines = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            lines.append(path.read_bytes().replace(b"\0", b" ").decode(errors="replace"))
        except OSError:  # ended in between
            continue
    return "\n".join(lines)


def onnx_scores(model: Path, images: np.ndarray) -> np.ndarray:
    import onnxruntime
    return onnxruntime.InferenceSession(str(model), providers=["CPUExecutionProvider"]).run(None, {"image": images})[0]


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    """(environment of an Ascend machine, a work folder that ais_bench's later versions accept, with net.onnx in it)."""
    work = tmp_path / "work"
    work.mkdir()
    work.chmod(0o750)
    save_network(work / "net.onnx")
    environment = ascend_environment(tmp_path / "machine", HOME=str(tmp_path), TRESNET_PYTHON=sys.executable)
    return environment, work


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """net_bs4.om, made by the contract's command."""
    folder = tmp_path_factory.mktemp("compiled")
    save_network(folder / "net.onnx")
    command = [word.replace("image:1", "image:4").replace("bs1", "bs4") for word in CONTRACT]
    done = start(ascend_environment(folder / "machine", HOME=str(folder)), folder, *command)
    assert done.returncode == 0, done.stdout + done.stderr
    (folder / "net_bs4.om").chmod(0o640)
    return folder / "net_bs4.om"


def prepare(machine: Machine, compiled: Path, count: int = 0) -> np.ndarray:
    """Put net_bs4.om and `count` images i1.bin, i2.bin, ... into the work folder; the images [count, 3, 32, 32]."""
    work = machine[1]
    (work / "net_bs4.om").write_bytes(compiled.read_bytes())
    (work / "net_bs4.om").chmod(0o640)
    (work / "in").mkdir(mode=0o750)
    images = np.random.RandomState(1).rand(count, 3, SIZE, SIZE).astype(np.float32)
    for number, image in enumerate(images, start=1):
        image.tofile(str(work / "in" / f"i{number}.bin"))
    return images


# The stand-ins: npu-smi ---------------------------------------------------------------------------------------------
def test_npu_smi_standin_prints_the_sample_and_refuses_other_arguments(machine: Machine) -> None:
    environment, work = machine
    assert start(environment, work, "npu-smi", "info").stdout == (DATA / "npu-smi" / "310P3.txt").read_text()
    assert start(environment, work, "npu-smi", "infos").returncode != 0
    assert start(environment, work, "npu-smi", "info", "-x").returncode != 0


# The stand-ins: atc -------------------------------------------------------------------------------------------------
def test_atc_standin_writes_all_that_atc_writes(machine: Machine) -> None:
    environment, work = machine
    done = start(environment, work, *CONTRACT)
    assert done.returncode == 0 and "ATC run success" in done.stdout
    assert {path.name for path in work.iterdir()} == {"net.onnx", "net_bs1.om", "fusion_result.json", "kernel_meta"}
    assert not (work / "net_bs1.om").read_bytes().startswith((work / "net.onnx").read_bytes()[:4])
    assert list(Path(environment["HOME"]).glob("ascend/log/debug/plog/plog-*.log"))
    done = start(dict(environment, STANDIN_OM_NAME="host"), work, *CONTRACT)
    assert (work / f"net_bs1_linux_{platform.machine()}.om").exists(), done.stdout


@pytest.mark.parametrize("change, code", [
    ("--optimise=1", "unknown command line flag"),
    ("--framework=3", "E10001"),
    ("--soc_version=", "E10054"),
    ("--soc_version=310P3", "E10001"),
    ("--log=loud", "E10001"),
    ("--input_format=NHWC", "E10001"),
    ("--model=absent.onnx", "E10001"),
    ("--model=half.onnx", "E10001"),
    ("--model=with space.onnx", "E10001"),
    ("--model=uint8.onnx", "E10001"),
    ("--model=opset13.onnx", "E19010"),
    ("--output=absent/net", "E10001"),
    ("--input_shape=", "E10001"),
    ("--input_shape=input:1,3,32,32", "E10016"),
    ("--input_shape=image:1,3,32", "E10001"),
    ("--input_shape=image:1,3,64,64", "E10001"),
    ("--input_shape=image 1,3,32,32", "E10002"),
    ("--insert_op_conf=absent.cfg", "E10001"),
])
def test_atc_standin_refuses(machine: Machine, change: str, code: str) -> None:
    environment, work = machine
    whole = (work / "net.onnx").read_bytes()
    (work / "half.onnx").write_bytes(whole[:len(whole) // 2])
    (work / "with space.onnx").write_bytes(whole)
    save_network(work / "uint8.onnx", dtype="UINT8")
    save_network(work / "opset13.onnx", opset=13)
    flag = change.split("=")[0]
    done = start(environment, work, *[word for word in CONTRACT if not word.startswith(flag + "=")], change)
    assert done.returncode != 0 and code in done.stdout, done.stdout + done.stderr
    assert not list(work.glob("*.om"))


def test_atc_standin_of_a_later_cann_reads_opset_13(machine: Machine) -> None:
    environment, work = machine
    save_network(work / "net.onnx", opset=13)
    assert start(dict(environment, STANDIN_CANN="8.0.RC1"), work, *CONTRACT).returncode == 0


def test_atc_standin_fails_with_a_virtual_environment_first_on_its_path(machine: Machine, tmp_path: Path) -> None:
    environment, work = machine
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(tmp_path / "venv")], check=True)
    path = os.pathsep.join([str(tmp_path / "venv" / "bin"), environment["PATH"]])
    done = start(dict(environment, PATH=path), work, *CONTRACT)
    assert done.returncode != 0 and "EC0010" in done.stdout
    done = start(dict(environment, PATH=path), work, "python3", "-m", "ais_bench", "--model", "net_bs1.om")
    assert done.returncode != 0 and "No module named 'ais_bench'" in done.stderr


AIPP = "aipp_op {\n aipp_mode : static\n input_format : RGB888_U8\n related_input_rank : 0\n"


@pytest.mark.parametrize("lines, complaint", [
    ("src_image_size_w : 64\nsrc_image_size_h : 32", "64 pixels"),
    ("colour : RGB", "no such key"),
    ("mean_chn_0 : 0.5", "of type int"),
    ("min_chn_0 : 300", "between 0 and 255"),
    ("crop : yes", "of type bool"),
    ("csc_switch : true", "RGB888_U8"),
    ("min_chn_1 : 1\nmin_chn_1 : 2", "twice"),
    ("min_chn_1 = 1", "key : value"),
    ("}\naipp_op {", "one block"),
])
def test_atc_standin_refuses_wrong_aipp_settings(machine: Machine, lines: str, complaint: str) -> None:
    environment, work = machine
    (work / "aipp.cfg").write_text(AIPP + lines + "\n}\n")
    done = start(environment, work, *CONTRACT, "--insert_op_conf=aipp.cfg")
    assert done.returncode != 0 and complaint in done.stdout, done.stdout + done.stderr


# The stand-ins: ais_bench -------------------------------------------------------------------------------------------
def infer(machine: Machine, *words: object, **switches: str) -> "subprocess.CompletedProcess[str]":
    return start(dict(machine[0], **switches), machine[1], "python3", "-m", "ais_bench", *words)


CONTRACT_INFER = ["--model", "net_bs4.om", "--input", "in", "--output", "./",
                  "--output_dirname", "result", "--outfmt", "TXT"]


def test_ais_bench_standin_writes_what_ais_bench_writes(machine: Machine, compiled: Path) -> None:
    """Natural order, the last batch filled up, TXT as '%f ' per value, the summary's keys, the two printed lines."""
    work = machine[1]
    images = prepare(machine, compiled, 10)
    (work / "in" / "note.md").write_text("ignored")
    (work / "result").mkdir(mode=0o750)
    (work / "result" / "stranger").write_text("stays")
    done = infer(machine, *CONTRACT_INFER)
    assert done.returncode == 0, done.stderr
    expected = onnx_scores(work / "net.onnx", images)
    names = {f"i{number}_0.txt" for number in range(1, 11)}
    assert {path.name for path in (work / "result").iterdir()} == names | {"stranger"}
    for number in range(1, 11):
        text = (work / "result" / f"i{number}_0.txt").read_text()
        assert re.fullmatch(r"(-?\d+\.\d{6} ){10}\n", text)
        np.testing.assert_allclose(np.array(text.split(), float), expected[number - 1], atol=0.02)
    summary = json.loads((work / "result_summary.json").read_text())
    assert set(summary) == {"filesinfo", "args", "NPU_compute_time", "H2D_latency", "D2H_latency", "throughput",
                            "npu_compute_time_list", "pid"}
    order = [summary["filesinfo"][str(index)]["infiles"] for index in range(10)]
    assert order == [[f"in/i{number}.bin"] for number in range(1, 11)]
    assert summary["filesinfo"]["9"]["outfiles"] == ["./result/i10_0.txt"]
    times = summary["NPU_compute_time"]
    assert set(times) == {"min", "max", "mean", "median", "percentile(99%)", "count"} and times["count"] == 3
    assert summary["throughput"] == pytest.approx(4000 / times["mean"])
    assert f"[INFO] throughput 1000*batchsize.mean(4)/NPU_compute_time.mean({times['mean']}): " in done.stdout
    assert f"[INFO] NPU_compute_time (ms): min = {times['min']}, max = {times['max']}, " in done.stdout


def test_ais_bench_standin_overwrites_what_agrees_up_to_the_first_dot(machine: Machine, compiled: Path) -> None:
    work = machine[1]
    images = prepare(machine, compiled, 2)
    images[0].tofile(str(work / "in" / "a.x.bin"))
    np.save(str(work / "in" / "a.y.npy"), images[1])
    done = infer(machine, *CONTRACT_INFER)
    assert done.returncode == 0, done.stderr
    assert {path.name for path in (work / "result").iterdir()} == {"a_0.txt", "i1_0.txt", "i2_0.txt"}
    assert (work / "result" / "a_0.txt").read_text() == (work / "result" / "i2_0.txt").read_text()


def test_ais_bench_standin_measures_pure_inference(machine: Machine, compiled: Path) -> None:
    prepare(machine, compiled)
    work = machine[1]
    done = infer(machine, "--model=net_bs4.om", "--loop=20", "--batchsize=4", "--output=./", "--output_dirname=pure")
    assert done.returncode == 0, done.stderr
    assert json.loads((work / "pure_summary.json").read_text())["NPU_compute_time"]["count"] == 20
    zeros = onnx_scores(work / "net.onnx", np.zeros((4, 3, SIZE, SIZE), np.float32))
    written = np.fromfile(str(work / "pure" / "pure_infer_data_0.bin"), np.float32)
    np.testing.assert_allclose(written.reshape(4, 10), zeros, atol=0.02)
    assert infer(machine, "--model=net_bs4.om", "--loop=2").returncode == 0
    assert sorted(path.name for path in work.iterdir()) == ["in", "net.onnx", "net_bs4.om", "pure", "pure_summary.json"]


@pytest.mark.parametrize("words, complaint", [
    ("--model net_bs4.om --loop 0", "out of range"),
    ("--model net_bs4.om --loop +5", "digits"),
    ("--model net_bs4.om --loop 1_0", "digits"),
    ("--model net_bs4.om --batchsize 4.0", "digits"),
    ("--model net_bs4.om --warmup_count -1", "digits"),
    ("--model net_bs4.om --device 0,1", "digits"),
    ("--model net_bs4.om --device 256", "out of range"),
    ("--model net_bs4.om --device 2", "107001"),
    ("--model net_bs4.om --debug 1", "unrecognized"),
    ("--model net_bs4.om --aipp_config x", "unrecognized"),
    ("--model net_bs4.om --outfmt txt", "invalid choice"),
    ("--model net_bs4.om --pure_data_type ones", "invalid choice"),
    ("--model net_bs4.om --output_dirname result", "needs --output"),
    ("--model net_bs4.om --output ./ --output_dirname /tmp/x", "abs path"),
    ("--input in", "--model"),
    ("--model absent.om", "does not exist"),
    ("--model half.om", "incomplete"),
    ("--model net_bs4.onnx", "illegal"),
    ("--model link.om", "symbolic link"),
    ("--model open.om", "too open"),
    ("--model net_bs4.om --input in_link", "symbolic link"),
    ("--model net_bs4.om --input in_open", "too open"),
    ("--model net_bs4.om --input in_open,in", "too open"),
    ("--model net_bs4.om --input in,in", "not equal"),
    ("--model net_bs4.om --input empty", "not find valid file"),
    ("--model net_bs4.om --input short", "not match"),
    ("--model net_bs4.om --input names", "invalid characters"),
    ("--model net_bs4.om --input 'in with space'", "not allowed"),
    ("--model net_bs4.om --output out755", "too open"),
    ("--model net_bs4.om --output out770", "too open"),
    ("--model net_bs4.om --output out_link", "symbolic link"),
    ("--model net_bs4.om --output ./ --output_dirname out755", "too open"),
    ("--model net_bs4.om --output ./ --output_dirname 'a b'", "not allowed"),
])
def test_ais_bench_standin_refuses(machine: Machine, compiled: Path, words: str, complaint: str) -> None:
    work = machine[1]
    images = prepare(machine, compiled, 1)
    om = compiled.read_bytes()
    for name, data, mode in (("half.om", om[:-9], 0o640), ("net_bs4.onnx", om, 0o640), ("open.om", om, 0o660)):
        (work / name).write_bytes(data)
        (work / name).chmod(mode)
    (work / "link.om").symlink_to("net_bs4.om")
    (work / "in_link").symlink_to("in")
    (work / "out_link").symlink_to("in")
    for name, mode in (("in_open", 0o770), ("empty", 0o750), ("short", 0o750), ("names", 0o750),
                       ("in with space", 0o750), ("out755", 0o755), ("out770", 0o770)):
        (work / name).mkdir()
        (work / name).chmod(mode)
    (work / "short" / "i1.bin").write_bytes(b"12345")
    images[0].tofile(str(work / "names" / "a b.bin"))
    done = infer(machine, *shlex.split(words))
    assert done.returncode != 0 and complaint in done.stderr, done.stdout + done.stderr


def test_ais_bench_standin_of_0_0_2_checks_no_paths(machine: Machine, compiled: Path) -> None:
    work = machine[1]
    prepare(machine, compiled, 1)
    (work / "link.om").symlink_to("net_bs4.om")
    (work / "out 755").mkdir(mode=0o755)
    words = ["--model", "link.om", "--input", "in", "--output", "out 755", "--output_dirname", "r", "--debug", "1"]
    done = infer(machine, *words, STANDIN_AIS_BENCH="0.0.2")
    assert done.returncode == 0 and (work / "out 755" / "r" / "i1_0.bin").stat().st_size == 40, done.stderr


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_ais_bench_standin_refuses_a_strangers_file(machine: Machine, compiled: Path) -> None:
    prepare(machine, compiled)
    os.chown(str(machine[1] / "net_bs4.om"), 54321, 54321)
    done = infer(machine, "--model", "net_bs4.om")
    assert done.returncode != 0 and "not owned" in done.stderr


def test_ais_bench_standin_refuses_a_model_for_another_chip(machine: Machine, compiled: Path) -> None:
    prepare(machine, compiled)
    done = infer(machine, "--model", "net_bs4.om", STANDIN_NPU_SMI="910B4")
    assert done.returncode != 0 and "compiled for Ascend310P3" in done.stderr


def test_uint8_images_go_through_aipp_on_the_standin(machine: Machine) -> None:
    """Scaled by 1/255 inside the model, they give what the scaled floats give."""
    environment, work = machine
    (work / "aipp.cfg").write_text(AIPP + "".join(f" var_reci_chn_{i} : 0.003921568627451\n" for i in range(3)) + "}\n")
    assert start(environment, work, *CONTRACT, "--insert_op_conf=aipp.cfg").returncode == 0
    (work / "net_bs1.om").chmod(0o640)
    (work / "in").mkdir(mode=0o750)
    pixels = np.random.RandomState(2).randint(0, 256, (1, SIZE, SIZE, 3)).astype(np.uint8)
    pixels.tofile(str(work / "in" / "p.bin"))
    done = infer(machine, "--model", "net_bs1.om", "--input", "in", "--output", "./", "--output_dirname", "r")
    assert done.returncode == 0, done.stderr
    expected = onnx_scores(work / "net.onnx", pixels.transpose(0, 3, 1, 2).astype(np.float32) / 255)
    np.testing.assert_allclose(np.fromfile(str(work / "r" / "p_0.bin"), np.float32), expected[0], atol=0.02)


def test_faults_of_the_ais_bench_standin(machine: Machine, compiled: Path) -> None:
    work = machine[1]
    prepare(machine, compiled, 10)
    done = infer(machine, *CONTRACT_INFER, STANDIN_FAULT="ais-crash=2")
    assert done.returncode != 0 and "507011" in done.stderr
    assert len(list((work / "result").iterdir())) == 8 and not (work / "result_summary.json").exists()
    done = infer(machine, *CONTRACT_INFER[:-3], "fewer", "--outfmt", "TXT", STANDIN_FAULT="ais-missing=3")
    assert done.returncode == 0 and len(list((work / "fewer").iterdir())) == 7


# npu_info.py --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("sample, chip, soc", [
    ("310P3", "310P3", "Ascend310P3"), ("910B4", "910B4", "Ascend910B4"), ("Ascend910", "Ascend910", "Ascend910"),
    ("310P3+no_process_tail", "310P3", "Ascend310P3")])
def test_npu_info_names_the_chip(machine: Machine, sample: str, chip: str, soc: str) -> None:
    environment = dict(machine[0], STANDIN_NPU_SMI=sample)
    assert succeed("scripts/npu_info.py", env=environment).stdout == chip + "\n"
    assert succeed("scripts/npu_info.py", "--soc-version", env=environment).stdout == soc + "\n"


def test_npu_info_lists_two_chips_of_one_card_and_no_processes(machine: Machine) -> None:
    """The table of processes looks like that of chips; its numbers are not taken for chips."""
    processes = (DATA / "npu-smi" / "no_process_tail.txt").read_text().replace(
        "| No running processes found in NPU 0                                                            |",
        "| 0       0                 | 4711          | 310P3                    | 1024                    |")
    assert "4711" in processes
    answer = machine[1] / "answer.txt"
    answer.write_text((DATA / "npu-smi" / "Ascend910.txt").read_text() + processes)
    done = succeed("scripts/npu_info.py", "--json", env=dict(machine[0], STANDIN_NPU_SMI=str(answer)))
    assert json.loads(done.stdout) == [
        {"npu": 0, "chip": 0, "name": "Ascend910", "health": "OK", "bus_id": "0000:9D:00.0"},
        {"npu": 0, "chip": 1, "name": "Ascend910", "health": "OK", "bus_id": "0000:9F:00.0"}]


@pytest.mark.parametrize("answer, complaint", [
    ("no_process_tail", "names no NPU"), ("310P3+910B4", "different kinds (310P3, 910B4)"), ("fail", "status 252"),
    ("hang", "within 0.5 s")])
def test_npu_info_says_what_is_wrong(machine: Machine, answer: str, complaint: str) -> None:
    said = refusal("scripts/npu_info.py", "--timeout", "0.5", env=dict(machine[0], STANDIN_NPU_SMI=answer))
    assert complaint in said and "--soc-version" in said and said.count("\n") == 1


def test_npu_info_without_npu_smi(tmp_path: Path) -> None:
    assert "no npu-smi on the PATH" in refusal("scripts/npu_info.py", env={"PATH": str(tmp_path)})


@pytest.mark.parametrize("damage", ["cut", "row", "binary", "empty"])
def test_npu_info_refuses_an_unreadable_answer(machine: Machine, damage: str) -> None:
    text = (DATA / "npu-smi" / "310P3.txt").read_text()
    answer = machine[1] / "answer.txt"
    row = text.replace("| 0       310P3     | OK ", "| ?                 | OK ")
    answer.write_bytes({"cut": text[:text.index("| 0       0 ")].encode(), "row": row.encode(),
                        "binary": bytes(range(256)) * 9, "empty": b""}[damage])
    said = refusal("scripts/npu_info.py", env=dict(machine[0], STANDIN_NPU_SMI=str(answer)))
    assert ("cannot be read" if damage in ("cut", "row") else "names no NPU") in said and said.count("\n") == 1


def test_npu_info_reads_or_refuses_any_answer() -> None:
    """1,000 damaged answers: chips with all their keys, or the one error that is meant for it."""
    from npu_info import parse_npu_smi
    rng = random.Random(0)
    texts = [path.read_text() for path in sorted((DATA / "npu-smi").iterdir())]
    outcomes = set()
    for _ in range(1000):
        letters = list(rng.choice(texts))
        for _ in range(rng.randrange(1, 30)):
            letters[rng.randrange(len(letters))] = rng.choice("| \n+=0AP:\x00\u00e9")
        try:
            for chip in parse_npu_smi("".join(letters)):
                assert set(chip) == {"npu", "chip", "name", "health", "bus_id"}
                outcomes.add("chips")
        except ValueError:
            outcomes.add("refused")
    assert outcomes == {"chips", "refused"}


# onnx2om.sh ---------------------------------------------------------------------------------------------------------
def compile_net(machine: Machine, *words: object, **switches: str
                ) -> "subprocess.CompletedProcess[str]":
    """scripts/onnx2om.sh net.onnx in the work folder."""
    return start(dict(machine[0], **switches), machine[1], "bash", ROOT / "scripts" / "onnx2om.sh", "net.onnx", *words)


def test_onnx2om_runs_the_contracts_command_for_each_batch_size(machine: Machine) -> None:
    environment, work = machine
    done = compile_net(machine)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = calls(environment, "atc")
    assert [row["argv"] for row in rows] == [
        [word.replace("image:1", f"image:{batch}").replace("bs1", f"bs{batch}").replace("=net.", f"={work}/net.")
         for word in CONTRACT] for batch in (1, 4, 8, 16, 32)]
    for row in rows:
        assert Path(row["cwd"]).parent == work and not Path(row["cwd"]).exists(), "a folder of its own, gone afterwards"
        assert row["python"] == str(Path(environment["PATH"].split(os.pathsep)[1]) / "python3"), "the host's Python"
    assert {path.name for path in work.iterdir()} == {"net.onnx"} | {
        f"net_bs{batch}.{suffix}" for batch in (1, 4, 8, 16, 32) for suffix in ("om", "om.json", "atc.log")}
    assert (work / "net_bs8.om").stat().st_mode & 0o777 == 0o640
    assert "ATC run success" in (work / "net_bs8.atc.log").read_text()
    assert "atc starts" in (work / "net_bs8.atc.log").read_text(), "CANN's own log is kept with it"
    assert not (Path(environment["HOME"]) / "ascend").exists(), "and nowhere else"
    assert re.search(r"net_bs8\.om: compiled in \d+ s, \d+\.\d KB\n", done.stdout)
    assert infer(machine, "--model", "net_bs8.om").returncode == 0


def test_onnx2om_keeps_what_the_same_command_made(machine: Machine) -> None:
    environment, work = machine
    counts = []

    def compile_and_count(*words: object) -> None:
        done = compile_net(machine, "--batch-sizes", "1,8", *words)
        assert done.returncode == 0, done.stderr
        counts.append(len(calls(environment, "atc")))

    compile_and_count()
    compile_and_count()
    assert counts == [2, 2], "the second run starts no atc"
    compile_and_count("--force")
    compile_and_count("--soc-version", "Ascend310P1")
    compile_and_count("--soc-version", "Ascend310P1", "--", "--precision_mode=force_fp32")
    assert calls(environment, "atc")[-1]["argv"][-1] == "--precision_mode=force_fp32"
    compile_and_count()
    assert counts[2:] == [4, 6, 8, 10], "another command makes other models"
    later = time.time_ns() + 10**9
    os.utime(str(work / "net.onnx"), ns=(later, later))
    compile_and_count()
    assert counts[-1] == 12, "a newer ONNX file"
    os.utime(str(work / "net.onnx"), ns=(later - 10**10, later - 10**10))
    compile_and_count()
    (work / "net_bs8.om").write_bytes((work / "net_bs8.om").read_bytes()[:-5])
    compile_and_count()
    (work / "net_bs1.om.json").write_text("{")
    compile_and_count()
    assert counts[-3:] == [14, 15, 16], "another ONNX file; a damaged model; a damaged manifest"


def test_onnx2om_hands_aipp_settings_to_atc_and_sees_them_change(machine: Machine) -> None:
    environment, work = machine
    (work / "aipp.cfg").write_text(AIPP + "}\n")
    for expected in (1, 1):
        done = compile_net(machine, "--batch-sizes", "1", "--aipp", "aipp.cfg")
        assert done.returncode == 0 and len(calls(environment, "atc")) == expected, done.stdout + done.stderr
    assert calls(environment, "atc")[-1]["argv"][-1] == f"--insert_op_conf={work}/aipp.cfg"
    (work / "aipp.cfg").write_text(AIPP + " min_chn_0 : 1\n}\n")
    assert compile_net(machine, "--batch-sizes", "1", "--aipp", "aipp.cfg").returncode == 0
    assert len(calls(environment, "atc")) == 2


def test_onnx2om_accepts_the_other_name_that_atc_gives(machine: Machine) -> None:
    done = compile_net(machine, "--batch-sizes", "1", "--output-dir", "models", STANDIN_OM_NAME="host")
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in (machine[1] / "models").glob("*.om")) == ["net_bs1.om"]
    assert (machine[1] / "models").stat().st_mode & 0o777 == 0o750


def test_onnx2om_dry_run_prints_pasteable_commands_and_does_nothing(machine: Machine) -> None:
    environment, work = machine
    done = compile_net(machine, "--dry-run", "--batch-sizes", "1,8", "--output-dir", "om")
    assert done.stdout == "".join(
        f"atc --framework=5 --model={work}/net.onnx --output=om/net_bs{batch} --input_format=NCHW "
        f'--input_shape="image:{batch},3,32,32" --log=error --soc_version=Ascend310P3\n' for batch in (1, 8))
    assert [path.name for path in work.iterdir()] == ["net.onnx"] and not calls(environment)


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
        f"--output=net_bs{batch}" for batch in (1, 4, 8, 8, 16, 32)], "the two that were made are not made again"


def test_onnx2om_leaves_no_half_model_when_atc_is_killed(machine: Machine) -> None:
    work = machine[1]
    done = compile_net(machine, "--batch-sizes", "4", STANDIN_FAULT="atc-kill=4")
    assert done.returncode == 1 and "atc was ended by signal KILL at batch size 4" in done.stderr
    assert sorted(path.name for path in work.iterdir()) == ["net.onnx", "net_bs4.atc.log"]
    assert compile_net(machine, "--batch-sizes", "4").returncode == 0
    good = (work / "net_bs4.om").read_bytes()
    assert compile_net(machine, "--batch-sizes", "4", "--force", STANDIN_FAULT="atc-kill=4").returncode == 1
    assert (work / "net_bs4.om").read_bytes() == good, "what was there stays"
    assert infer(machine, "--model", "net_bs4.om").returncode == 0


@pytest.mark.parametrize("number, status", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_onnx2om_ends_atc_with_itself(machine: Machine, number: int, status: int) -> None:
    environment, work = machine
    command = ["bash", str(ROOT / "scripts" / "onnx2om.sh"), "net.onnx", "--batch-sizes", "1"]
    with subprocess.Popen(command, cwd=str(work), env=dict(os.environ, STANDIN_FAULT="atc-sleep=60", **environment),
                          stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, universal_newlines=True) as child:
        deadline = time.time() + 20
        while not calls(environment, "atc") and time.time() < deadline:
            time.sleep(0.05)
        assert f"--model={work}/net.onnx" in processes()
        child.send_signal(number)
        begun = time.time()
        said = child.communicate()[1]
        assert time.time() - begun < 2
    assert child.returncode == status
    expected = "onnx2om.sh: interrupted; the model being compiled is dropped, .*\n" if status == 130 else ""
    assert re.fullmatch(expected, said), said
    assert sorted(path.name for path in work.iterdir()) == ["net.onnx", "net_bs1.atc.log"]
    assert f"--model={work}/net.onnx" not in processes()


def test_onnx2om_clears_away_what_a_killed_run_left(machine: Machine) -> None:
    work = machine[1]
    gone = subprocess.Popen(["true"])
    gone.wait()
    (work / f"net_bs1.atc-run-{gone.pid}" / "kernel_meta").mkdir(parents=True)
    (work / f"net_bs4.atc-run-{os.getpid()}").mkdir()
    assert compile_net(machine, "--batch-sizes", "1").returncode == 0
    assert [path.name for path in work.glob("*run*")] == [f"net_bs4.atc-run-{os.getpid()}"], "a living run's stays"


@pytest.mark.parametrize("words, switches, status, complaint", [
    (["--batch-sizes", "1,x"], {}, 2, "whole numbers"),
    (["--batch-sizes", "0"], {}, 2, "whole numbers"),
    (["--optimise"], {}, 2, "needs a value"),
    (["--optimise", "1"], {}, 2, "unknown option --optimise"),
    (["second.onnx"], {}, 2, "another argument"),
    (["--aipp", "absent.cfg"], {}, 1, "no readable AIPP file"),
    (["--output-dir", "with space"], {}, 1, "move or rename"),
    (["--output-dir", "net.onnx/x"], {}, 1, "cannot be made"),
    (["--", "--fusion_switch_file=net.onnx"], {}, 1, "absolute path"),
    ([], {"STANDIN_NPU_SMI": "no_process_tail"}, 1, "names no NPU"),
    ([], {"STANDIN_NPU_SMI": "310P3+910B4"}, 1, "different kinds"),
    ([], {"TRESNET_PYTHON": "/absent/python"}, 1, "no Python at"),
])
def test_onnx2om_refuses(machine: Machine, words: List[str], switches: Dict[str, str], status: int,
                         complaint: str) -> None:
    done = compile_net(machine, *words, **switches)
    assert done.returncode == status and complaint in done.stderr.splitlines()[-1], done.stdout + done.stderr
    assert not calls(machine[0], "atc")


@pytest.mark.parametrize("content, complaint", [
    (b"", "must have one input"), (b"not a model", "no ONNX file"), (None, "no readable ONNX file"),
    ("name", "--input_shape takes only"), ("fixed", "give --batch-sizes 2")])
def test_onnx2om_refuses_what_is_no_such_model(machine: Machine, content: Any, complaint: str) -> None:
    path = machine[1] / "net.onnx"
    if content is None:
        path.unlink()
    elif isinstance(content, bytes):
        path.write_bytes(content)
    else:
        save_network(path, **({"name": 'a"; rm -rf "'} if content == "name" else {"batch": 2}))
    done = compile_net(machine)
    assert done.returncode == 1 and complaint in done.stderr and "Traceback" not in done.stderr, done.stderr
    assert not calls(machine[0], "atc")


def test_onnx2om_without_atc_says_how_to_get_it(machine: Machine, tmp_path: Path) -> None:
    """With no CANN at all, and with one that is installed but not sourced."""
    environment, work = machine
    path = os.pathsep.join(part for part in environment["PATH"].split(os.pathsep) if part != str(HERE / "bin"))
    done = compile_net(machine, PATH=path)
    assert done.returncode == 1 and "source /usr/local/Ascend/ascend-toolkit/set_env.sh" in done.stderr
    script = tmp_path / "Ascend" / "ascend-toolkit" / "set_env.sh"
    script.parent.mkdir(parents=True)
    script.write_text("")
    assert f"source {script}" in compile_net(machine, PATH=path, HOME=str(tmp_path)).stderr


def test_onnx2om_names_a_virtual_environment_on_atcs_path(machine: Machine, tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(tmp_path / "venv")], check=True)
    path = os.pathsep.join([str(tmp_path / "venv" / "bin"), machine[0]["PATH"]])
    done = compile_net(machine, PATH=path)
    assert done.returncode == 1 and "EC0010" in done.stderr
    assert f"virtual environment's ({tmp_path}/venv/bin/python3): deactivate it" in done.stderr


# compare_results.py -------------------------------------------------------------------------------------------------
def write_results(folder: Path, scores: Dict[str, List[float]], suffix: str = "txt") -> Path:
    folder.mkdir()
    for name, values in scores.items():
        path = str(folder / f"{name}_0.{suffix}")
        if suffix == "txt":
            Path(path).write_text("".join(f"{value:f} " for value in values) + "\n")
        elif suffix == "npy":
            np.save(path, np.array([values], np.float32))
        else:
            np.array(values, np.float32).tofile(path)
    return folder


def test_comparison_of_known_scores(tmp_path: Path) -> None:
    """Formats may differ; cosine, difference, agreement and names are exact."""
    a = write_results(tmp_path / "a", {"i1": [3, 4, 0], "i2": [1, 0, 0], "i10": [0, 2, 1], "extra": [1, 1, 1]}, "txt")
    b = write_results(tmp_path / "b", {"i1": [3, 4, 0], "i2": [1, 1, 0], "i10": [0, 1, 2.5]}, "npy")
    done = succeed("scripts/compare_results.py", a, b, "--json", tmp_path / "c.json")
    report = json.loads((tmp_path / "c.json").read_text())
    assert report["cosine"]["min"] == pytest.approx(0.5 ** 0.5) and report["cosine"]["image"] == "i2"
    assert report["cosine"]["mean"] == pytest.approx((1 + 0.5 ** 0.5 + 4.5 / (5 * 7.25) ** 0.5) / 3)
    assert report["largest_difference"] == {"value": 1.5, "image": "i10"}
    assert report["disagreements"] == [{"image": "i10", "a": 1, "b": 2}], "of equal scores in i2 the lower class counts"
    assert (report["images"], report["classes"], report["only_in_a"], report["only_in_b"]) == (3, 3, ["extra"], [])
    assert "Top-1 agreement: 66.67 % (2 of 3)" in done.stdout and "'i10': class 1, but 2" in done.stdout
    assert "1 images are only in the first folder and were left out, for instance 'extra'" in done.stdout


def test_comparison_of_the_first_images_in_the_runners_order(tmp_path: Path) -> None:
    scores = {f"i{number}": [1.0, number] for number in (1, 2, 10)}
    a, b = write_results(tmp_path / "a", scores), write_results(tmp_path / "b", dict(scores, i10=[9, 1]), "bin")
    succeed("scripts/compare_results.py", a, b, "--first", 2, "--min-agreement", 100)
    assert "below --min-agreement" in refusal("scripts/compare_results.py", a, b, "--min-agreement", 100, status=3)


def test_comparison_below_a_minimum_is_status_3(tmp_path: Path) -> None:
    a = write_results(tmp_path / "a", {f"i{number}": [1, 0] for number in range(30)})
    b = write_results(tmp_path / "b", {f"i{number}": [0, 1] if number < 25 else [1, 0] for number in range(30)})
    done = run("scripts/compare_results.py", a, b, "--min-cosine", 0.99, "--min-agreement", 99)
    assert done.returncode == 3 and "falls to 0.000000" in done.stderr and "16.67 %, below" in done.stderr
    assert done.stdout.count("class 0, but 1") == 20 and "... and 5 more" in done.stdout


@pytest.mark.parametrize("b, complaint", [
    ({"z": [1, 0]}, "no image in common"), ({"i1": [1, 0, 0]}, "3; compare results"),
    ({"i1": [float("nan"), 0]}, "nan"), ({}, "no results")])
def test_comparison_refuses(tmp_path: Path, b: Dict[str, List[float]], complaint: str) -> None:
    a = write_results(tmp_path / "a", {"i1": [1, 0]})
    said = refusal("scripts/compare_results.py", a, write_results(tmp_path / "b", b))
    assert said.startswith("compare_results.py: ") and complaint in said and said.count("\n") == 1
    refusal("scripts/compare_results.py", a, tmp_path / "absent")


def test_comparison_catches_a_lossy_compilation(machine: Machine) -> None:
    """float16 weights pass, hard-rounded ones do not: the figure users are warned by."""
    environment, work = machine
    (work / "in").mkdir(mode=0o750)
    rng = np.random.RandomState(3)
    for number in range(8):  # images that differ in contrast and colour, so that their classes differ
        image = rng.rand(3, 1, 1) * rng.rand(3, SIZE, SIZE) ** rng.randint(1, 5)
        image.astype(np.float32).tofile(str(work / "in" / f"i{number}.bin"))
    succeed("scripts/infer_onnx.py", "--model", work / "net.onnx", "--input", work / "in", "--output", work,
            "--output_dirname", "onnx", "--outfmt", "TXT")
    outcome = {}
    for fault in ("", "atc-lossy"):
        done = compile_net(machine, "--batch-sizes", "4", "--force", STANDIN_FAULT=fault)
        assert done.returncode == 0, done.stderr
        name = "result" + fault
        assert infer(machine, *CONTRACT_INFER[:-3], name, "--outfmt", "TXT").returncode == 0
        outcome[fault] = run("scripts/compare_results.py", work / name, work / "onnx", "--min-cosine", 0.999).returncode
    assert outcome == {"": 0, "atc-lossy": 3}


# perf_sweep.py ------------------------------------------------------------------------------------------------------
def sweep(machine: Machine, *words: object, backend: str = "ascend", status: int = 0, **switches: str
          ) -> "subprocess.CompletedProcess[str]":
    done = run("scripts/perf_sweep.py", "--backend", backend, "--model", "net.onnx", *words, cwd=str(machine[1]),
               env=dict(machine[0], **switches))
    assert done.returncode == status, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done


def test_perf_sweep_runs_the_contracts_command_and_writes_table_plot_and_json(machine: Machine) -> None:
    environment, work = machine
    assert compile_net(machine, "--batch-sizes", "1,4").returncode == 0
    (work / "acc.json").write_text(json.dumps({"title": "Overall statistical evaluation", "value": [
        {"key": "Number of images", "value": "20"}, {"key": "Top1 accuracy", "value": "80.5%"},
        {"key": "Top2 accuracy", "value": "90.0%"}, {"key": "Top5 accuracy", "value": "94.43%"}]}))
    done = sweep(machine, "--batch-sizes", "1,4", "--repeat", 2, "--data-set", "ImageNet", "--accuracy", "acc.json")
    words = [row["argv"] for row in calls(environment, "ais_bench")]
    assert [row[:6] for row in words] == [
        ["python3", "-m", "ais_bench", f"--model={work}/net_bs{batch}.om", "--loop=20", f"--batchsize={batch}"]
        for batch in (1, 4, 1, 4)], "the batch sizes take turns"
    assert all(re.match(r"--(output|output_dirname)=", word) for row in words for word in row[6:])
    report = json.loads((work / "perf.json").read_text())
    assert [row["batch_size"] for row in report["rows"]] == [1, 4]
    assert report["best"] == max(report["rows"], key=lambda row: row["throughput"])
    for row in report["rows"]:
        assert len(row["throughput_runs"]) == 2 and row["latency_p99"] >= row["latency_mean"] * 0.9 > 0
        assert row["throughput"] == pytest.approx(sum(row["throughput_runs"]) / 2), "the median of two"
    table = (work / "perf.md").read_text().splitlines()
    assert table[0] == "| Chip | Batch size | Data set | Accuracy | images/s | latency mean ms | latency p99 ms |"
    row = report["rows"][1]
    assert table[3] == (f"| 310P3 | 4 | ImageNet | Top-1 80.5%, Top-5 94.43% | {row['throughput']:.1f} ± "
                        f"{50 * row['throughput_spread']:.1f} % | {row['latency_mean']:.3f} | "
                        f"{row['latency_p99']:.3f} |")
    assert f"Best batch size: {report['best']['batch_size']}, " in table[-1] and table[-1] in done.stdout
    with Image.open(work / "perf.png") as plot:
        assert plot.format == "PNG" and plot.size == (960, 600)
    assert not list(work.glob("perf_runs*")), "the runs' own folder is gone"


def test_perf_sweep_on_the_cpu(machine: Machine) -> None:
    done = sweep(machine, "--batch-sizes", "1,8", "--repeat", 1, "--loop", 3, "--output", "out", backend="cpu")
    report = json.loads((machine[1] / "out" / "perf.json").read_text())
    assert report["chip"].startswith("CPU (") and [row["batch_size"] for row in report["rows"]] == [1, 8]
    assert "Best batch size: " in done.stdout and not calls(machine[0])


def fake_runner(folder: Path, throughputs: List[float], count: int = 20) -> str:
    """A `python3` that writes the summary of runs of the given throughput, one after the other; a PATH with it."""
    folder.mkdir()
    script = folder / "runner.py"
    script.write_text(f"""
import json, os, sys
flags = dict(word[2:].split("=") for word in sys.argv[3:])
prefix = os.path.join(flags["output"], flags["output_dirname"])
log = {str(folder / "runs")!r}
done = open(log).read().count("x") if os.path.exists(log) else 0
open(log, "a").write("x")
throughput = {throughputs!r}[done]
mean = 1000 * int(flags["batchsize"]) / throughput
times = {{"mean": mean, "percentile(99%)": 2 * mean, "count": {count}}}
json.dump({{"throughput": throughput, "NPU_compute_time": times}}, open(prefix + "_summary.json", "w"))
""")
    python = folder / "python3"  # by way of sh: the first line of a script may not name a path with a space
    python.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} {shlex.quote(str(script))} "$@"\n')
    python.chmod(0o755)
    return os.pathsep.join([str(folder), os.environ["PATH"]])


def test_perf_sweep_takes_the_median_and_the_spread(machine: Machine, tmp_path: Path) -> None:
    (machine[1] / "net_bs8.om").write_text("never opened: the runner is a double")
    path = fake_runner(tmp_path / "fake", [900.0, 1000.0, 1400.0])
    words = ["--batch-sizes", "8", "--chip", "X"]
    sweep(machine, *words, PATH=path)
    row = json.loads((machine[1] / "perf.json").read_text())["rows"][0]
    assert (row["throughput"], row["latency_mean"], row["latency_p99"], row["throughput_spread"]) == (1000, 8, 16, 0.5)
    assert "| X | 8 | - | - | 1000.0 ± 25.0 % | 8.000 | 16.000 |" in (machine[1] / "perf.md").read_text()
    path = fake_runner(tmp_path / "again", [900.0, 1000.0, 1400.0] * 2)
    assert "1000.0 images/s (batch size 8), below --min-throughput 1000.5" in sweep(
        machine, *words, "--min-throughput", 1000.5, status=3, PATH=path).stderr
    sweep(machine, *words, "--min-throughput", 999.5, PATH=path)


def test_perf_sweep_sets_the_published_figures_beside_those_of_the_same_case(machine: Machine, tmp_path: Path) -> None:
    import onnx
    path = machine[1] / "net.onnx"
    model = onnx.load(str(path))
    for place in (2, 3):
        model.graph.input[0].type.tensor_type.shape.dim[place].dim_value = 224
    onnx.save(model, str(path))
    for batch in (8, 64):
        (machine[1] / f"net_bs{batch}.om").write_text("never opened: the runner is a double")
    words = ["--batch-sizes", "8,64", "--repeat", 1]
    sweep(machine, *words, "--chip", "310P3", PATH=fake_runner(tmp_path / "fake", [1579.0, 2000.0]))
    table = (machine[1] / "perf.md").read_text().splitlines()
    assert table[0].endswith("| latency p99 ms | reference images/s | ratio |")
    assert table[2].endswith(" | 3158 | 0.50 |") and table[3].endswith(" | - | - |")
    sweep(machine, *words, "--chip", "910B4", PATH=fake_runner(tmp_path / "again", [1579.0, 2000.0]))
    assert "reference" not in (machine[1] / "perf.md").read_text(), "another chip has no published figure"


def test_plot_shows_bars_in_proportion_to_throughput(tmp_path: Path) -> None:
    from io import BytesIO

    from perf_sweep import BAR, draw_plot
    rows = [{"batch_size": batch, "throughput": throughput, "latency_mean": 1.0, "latency_p99": 1.1}
            for batch, throughput in ((1, 1000.0), (8, 3000.0))]
    plot = Image.open(BytesIO(draw_plot({"chip": "310P3", "variant": "tresnet_m", "img_size": 224, "rows": rows})))
    bar = np.array([int(BAR[i:i + 2], 16) for i in (1, 3, 5)])
    blue = (np.abs(np.asarray(plot.convert("RGB"), int) - bar).sum(axis=2) < 12)[:500]
    heights = blue[:, 150:860].sum(axis=0)
    left, right = heights[:355].max(), heights[355:].max()
    assert right == pytest.approx(3 * left, rel=0.1) and right > 200


@pytest.mark.parametrize("words, switches, complaint", [
    (["--batch-sizes", "1,2"], {}, "no '{work}/net_bs2.om'; make it: bash scripts/onnx2om.sh"),
    (["--batch-sizes", "1", "--device", "7"], {}, "107001"),
    (["--batch-sizes", "1"], {"STANDIN_FAULT": "ais-crash=0"}, "507011"),
    (["--batch-sizes", "1"], {"STANDIN_NPU_SMI": "no_process_tail"}, "names no NPU"),
    (["--batch-sizes", "1", "--accuracy", "net.onnx"], {}, "not an accuracy file"),
    (["--batch-sizes", "1", "--output", "a b"], {}, "ais_bench accepts only"),
    (["--batch-sizes", "1", "--output", "net.onnx"], {}, "cannot be made"),
])
def test_perf_sweep_refuses(machine: Machine, compiled: Path, words: List[str],
                            switches: Dict[str, str], complaint: str) -> None:
    work = machine[1]
    (work / "net_bs1.om").write_bytes(compiled.read_bytes())
    (work / "net_bs1.om").chmod(0o640)
    said = sweep(machine, *words, status=1, **switches).stderr
    assert complaint.format(work=work) in said and said.count("\n") == 1, said
    assert not list(work.glob("perf.*")) and not list(work.glob("perf_runs*"))


@pytest.mark.parametrize("throughputs, count, complaint", [
    ([-1000.0], 20, "cannot be true"), ([1000.0], 19, "19 runs"), ([], 20, "status 1")])
def test_perf_sweep_believes_no_strange_summary(machine: Machine, tmp_path: Path,
                                                throughputs: List[float], count: int, complaint: str) -> None:
    (machine[1] / "net_bs8.om").write_text("never opened: the runner is a double")
    path = fake_runner(tmp_path / "fake", throughputs, count)
    assert complaint in sweep(machine, "--batch-sizes", "8", "--chip", "X", status=1, PATH=path).stderr


def test_perf_sweep_ends_its_runner_with_itself(machine: Machine, compiled: Path) -> None:
    environment, work = machine
    prepare(machine, compiled)
    command = [sys.executable, str(ROOT / "scripts" / "perf_sweep.py"), "--backend", "ascend", "--model", "net.onnx",
               "--batch-sizes", "4"]
    with subprocess.Popen(command, cwd=str(work), env=dict(os.environ, STANDIN_FAULT="ais-sleep=60", **environment),
                          stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, universal_newlines=True) as child:
        deadline = time.time() + 20
        while not calls(environment, "ais_bench") and time.time() < deadline:
            time.sleep(0.05)
        assert "--model=" + str(work / "net_bs4.om") in processes()
        child.send_signal(signal.SIGINT)
        begun = time.time()
        said = child.communicate()[1]
        assert time.time() - begun < 2
    assert child.returncode == 130 and said == "perf_sweep.py: interrupted\n"
    assert f"--model={work}/net_bs4.om" not in processes()
