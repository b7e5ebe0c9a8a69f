"""The stand-ins of npu-smi, atc and ais_bench are strict: they refuse what the real tools refuse.

Most tests call their main() without a process; some, for each of them, use the command line.
"""

import json
import os
import platform
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from ascend.helpers import (
    AIPP,
    CONTRACT,
    CONTRACT_INFER,
    SIZE,
    SUMMARY_KEYS,
    Machine,
    ais_bench_here,
    atc_here,
    onnx_outputs,
    onnx_scores,
    put_model_and_images,
    save_network,
    start,
    start_ais_bench,
)
from ascend.python.ascend_standin import read_om
from conftest import DATA

# ---- npu-smi -------------------------------------------------------------------------------------


def test_npu_smi_standin_prints_the_sample_and_refuses_other_arguments(machine: Machine) -> None:
    environment, work = machine
    assert (
        start(environment, work, "npu-smi", "info").stdout
        == (DATA / "npu-smi" / "310P3.txt").read_text()
    )
    assert start(environment, work, "npu-smi", "infos").returncode != 0
    assert start(environment, work, "npu-smi", "info", "-x").returncode != 0


def test_npu_smi_standin_describes_the_board_of_an_npu_that_is_there(machine: Machine) -> None:
    environment, work = dict(machine.environment, STANDIN_NPU_SMI="A3"), machine.folder
    question = "npu-smi info -t board -i 0 -c 1".split()
    assert "NPU Name                       : 9392\n" in start(environment, work, *question).stdout
    assert start(environment, work, *"npu-smi info -t board -i 7".split()).returncode == 255
    environment["STANDIN_BOARD"] = "old"
    assert "NPU Name" not in start(environment, work, *question).stdout
    environment.update(STANDIN_BOARD="answer", STANDIN_NPU_SMI="950")
    assert start(environment, work, *question).returncode == 255, "a 950 has no chip numbers"
    assert "9579" in start(environment, work, *question[:-2]).stdout


# ---- atc -----------------------------------------------------------------------------------------


def test_atc_standin_writes_all_that_atc_writes(machine: Machine) -> None:
    environment, work = machine
    done = start(environment, work, *CONTRACT)
    assert done.returncode == 0 and "ATC run success" in done.stdout
    assert {path.name for path in work.iterdir()} == {
        "net.onnx",
        "net_bs1.om",
        "fusion_result.json",
        "kernel_meta",
    }
    assert not (work / "net_bs1.om").read_bytes().startswith((work / "net.onnx").read_bytes()[:4])
    assert list(Path(environment["HOME"]).glob("ascend/log/debug/plog/plog-*.log"))
    done = start(dict(environment, STANDIN_OM_NAME="host"), work, *CONTRACT)
    assert (work / f"net_bs1_linux_{platform.machine()}.om").exists(), done.stdout


def save_odd_networks(work: Path) -> None:
    """One ONNX file per thing that CANN's parsers refuse."""

    def change(name: str, operator: str, **attributes: Any) -> None:
        model = onnx.load(str(work / "net.onnx"))
        model.graph.node[1].CopyFrom(
            onnx.helper.make_node(operator, ["conv"], ["relu"], name="relu", **attributes)
        )
        onnx.save(model, str(work / name))

    change("pool.onnx", "AveragePool", kernel_shape=[16, 16], strides=[1, 1])
    change("stride.onnx", "AveragePool", kernel_shape=[1, 1], strides=[64, 64])
    change("quant.onnx", "AscendQuant", scale=2.0, offset=0)
    model = onnx.load(str(work / "net.onnx"))
    model.opset_import.append(onnx.helper.make_opsetid("ai.onnx.ml", 2))
    onnx.save(model, str(work / "opsets.onnx"))
    model = onnx.load(str(work / "net.onnx"))
    model.graph.node[2].name = model.graph.node[1].name
    onnx.save(model, str(work / "names.onnx"))
    model = onnx.load(str(work / "net.onnx"))
    del model.graph.node[0].attribute[:]
    model.graph.node[0].attribute.append(onnx.helper.make_attribute("auto_pad", "SAME_UPPER"))
    onnx.save(model, str(work / "auto_pad.onnx"))


@pytest.mark.parametrize(
    "change, code",
    [
        ("--optimise=1", "unknown command line flag"),
        ("--framework=4", "E10007"),
        ("--framework=3", "[stand-in] --framework=3 is not ONNX"),
        ("--soc_version=", "E10054"),
        ("--soc_version=310P3", "E10001"),
        ("--soc_version=Ascend910_9391", "E10001"),
        ("--log=loud", "E10010"),
        ("--input_format=NHWC", "E10001"),
        ("--model=absent.onnx", "E10001"),
        ("--model=half.onnx", "E19005"),
        ("--model=with space.onnx", "E10001"),
        ("--model=uint8.onnx", "E10001"),
        ("--model=opset16.onnx", "E19010"),
        ("--model=opsets.onnx", "E16005"),
        ("--model=auto_pad.onnx", "E10001: Value [auto_pad]"),
        ("--model=pool.onnx", "[stand-in] Kernel [16, 16]"),
        ("--model=stride.onnx", "[stand-in] Kernel [1, 1] or stride [64, 64]"),
        ("--model=quant.onnx", "[stand-in] Scale and offset"),
        ("--model=names.onnx", "E19009: Op [relu] has a name conflict"),
        ("--input_fp16_nodes=absent", "E10001"),
        ("--keep_dtype=keep_conv.txt", "conv has no float32 kernel"),
        ("--keep_dtype=keep_absent.txt", "absent is not an operator"),
        ("--out_nodes=conv:0;class", "mixed"),
        ("--out_nodes=conv:1", "E10016: Opname [conv:1]"),
        ("--precision_mode=must_keep_origin_dtype", "E40021"),
        ("--output=absent/net", "E10001"),
        ("--input_shape=", "E10001"),
        ("--input_shape=input:1,3,32,32", "E10016"),
        ("--input_shape=image:1,3,32", "E10001"),
        ("--input_shape=image:1,3,64,64", "[stand-in] --input_shape [1, 3, 64, 64] contradicts"),
        ("--input_shape=image:1,3,32,32;", "E10002"),
        ("--input_shape=image:-1,3,32,32", "E10011"),
        ("--input_shape=image 1,3,32,32", "E10002"),
        ("--insert_op_conf=absent.cfg", "E10001"),
    ],
)
def test_atc_standin_refuses(machine: Machine, change: str, code: str) -> None:
    work = machine.folder
    whole = (work / "net.onnx").read_bytes()
    (work / "half.onnx").write_bytes(whole[: len(whole) // 2])
    (work / "with space.onnx").write_bytes(whole)
    save_network(work / "uint8.onnx", dtype="UINT8")
    save_network(work / "opset16.onnx", opset=16)
    save_odd_networks(work)
    (work / "keep_conv.txt").write_text("conv\n")
    (work / "keep_absent.txt").write_text("absent\n")
    flag = change.split("=")[0]
    done = atc_here(
        machine, *[word for word in CONTRACT[1:] if not word.startswith(flag + "=")], change
    )
    assert done.returncode != 0 and code in done.stdout, done.stdout + done.stderr
    assert not list(work.glob("*.om"))


# What CANN 9.2's own option checks, ONNX parser and AIPP parser answered when they were run on such
# input; of 8.1 its table of errors.
GENERATIONS = [
    ("--model=opset19.onnx", "E19010: [PID", "Not_Supported_Operator(E13010): No operator plugin"),
    ("--model=operator.onnx", "E19010: [PID", "E13010): No operator plugin is registered for Op: "),
    ("--model=names.onnx", "E19009: [PID", "Invalid_Argument_Operator_Name(E13009): Operator relu"),
    ("--model=opsets.onnx", "E16005: [PID", ""),
    ("--model=concat.onnx", "[stand-in] the model is not valid ONNX", "Inner_Error(EZ9999): "),
    ("--log=warn", "E10010: [PID", "Invalid_Argument(E10010): Value warn for parameter --log"),
    ("--framework=4", "E10007: [PID", "Invalid_Argument(E10007): --framework is required."),
    ("--soc_version=", "E10054: [PID", "Invalid_Argument(E10054): The required parameter"),
    ("--soc_version=Ascend950PR_9579", "E10001: [PID", ""),
    ("--soc_version=Ascend910_9391", "", ""),
    ("--input_shape=image:1,3,32,32;", "E10002: [PID", "_Tensor_Input_Shape(E10002): Value  for"),
    ("--input_shape=image:-1,3,32,32", "E10011: [PID", "_Tensor_Input_Shape(E10011): Value image:"),
    ("--input_shape=input:1,3,32,32", "E10001: [PID", "(E10001): Value NULL for parameter --input"),
    ("--input_shape=image:1,3,32", "E10001: [PID", "Inner_Error(E19999): image has too few dim"),
    ("--input_shape=image:1,3,64,64", "[stand-in]", "[stand-in]"),
    ("--out_nodes=conv:1", "E10016: [PID", "_Operator_Name(E10016): Op name conv:1 specified in"),
    ("--insert_op_conf=syntax.cfg", "E19018: [PID", "File_Operation_Error_Parse(E13005): Failed"),
    ("--insert_op_conf=content.cfg", "E10052: [PID", "(E10052): AIPP configuration is invalid."),
    ("--insert_op_conf=range.cfg", "[stand-in]", "[stand-in]"),
]


@pytest.mark.parametrize("cann, place", [("8.1.RC1", 1), ("9.2", 2)])
@pytest.mark.parametrize("row", GENERATIONS, ids=lambda row: str(row[0]))
def test_atc_standin_plays_a_generation(
    machine: Machine, row: "tuple[str, str, str]", cann: str, place: int
) -> None:
    work = machine.folder
    save_odd_networks(work)
    save_network(work / "opset19.onnx", opset=19)
    for name, operator in (("operator", "Gelu"), ("concat", "Concat")):
        model = onnx.load(str(work / "net.onnx"))
        model.graph.node[1].op_type = operator
        onnx.save(model, str(work / f"{name}.onnx"))
    (work / "syntax.cfg").write_text(AIPP + "colour : RGB\n}\n")
    (work / "content.cfg").write_text(AIPP + "}\n" + AIPP + "}\n")
    (work / "range.cfg").write_text(AIPP + " min_chn_0 : 300\n}\n")
    flag = row[0].split("=")[0]
    words = [word for word in CONTRACT[1:] if not word.startswith(flag + "=")]
    done = atc_here(machine, *words, row[0], STANDIN_CANN=cann)
    refused = row[place]
    assert done.returncode == (255 if refused else 0), done.stdout + done.stderr
    assert refused in done.stdout


@pytest.mark.parametrize(
    "opset, cann, status",
    ((15, "6.0.RC1", 0), (16, "6.0.RC1", 255), (18, "8.0.RC1", 0), (19, "9.2", 255)),
)
def test_atc_standin_reads_the_opsets_of_its_cann(
    machine: Machine, opset: int, cann: str, status: int
) -> None:
    save_network(machine.folder / "net.onnx", opset=opset)
    assert atc_here(machine, *CONTRACT[1:], STANDIN_CANN=cann).returncode == status


def test_atc_standin_refuses_float16_input_behind_aipp(machine: Machine) -> None:
    (machine.folder / "aipp.cfg").write_text(AIPP + "}\n")
    words = [*CONTRACT[1:], "--input_fp16_nodes=image"]
    assert atc_here(machine, *words).returncode == 0
    assert "E10034" in atc_here(machine, *words, "--insert_op_conf=aipp.cfg").stdout


def test_atc_standin_says_where_each_operator_runs(machine: Machine) -> None:
    assert (
        "[PLACE] conv: Conv2D, AI Core\n[PLACE] relu: Relu, AI Core\n"
        in atc_here(machine, *CONTRACT[1:]).stdout
    )


def test_the_float16_device_rounds_every_result_and_hands_out_any_node(
    machine: Machine,
) -> None:
    (machine.folder / "keep.txt").write_text("OpType::Relu\n")
    images = np.random.RandomState(2).rand(1, 3, SIZE, SIZE).astype(np.float32)
    found = {}
    for name, words in (("half", []), ("kept", ["--keep_dtype=keep.txt"])):
        done = atc_here(
            machine, *CONTRACT[1:], "--out_nodes=conv:0;class:0", *words, STANDIN_DEVICE="float16"
        )
        assert done.returncode == 0, done.stdout + done.stderr
        model = read_om(str(machine.folder / "net_bs1.om"))[1]
        found[name] = onnx_outputs(model, images)
    conv, logits = found["half"]
    assert conv.shape == (1, 8, 16, 16) and np.array_equal(
        conv, conv.astype(np.float16).astype(np.float32)
    )
    assert np.array_equal(logits, logits.astype(np.float16).astype(np.float32))
    assert not np.array_equal(logits, onnx_scores(machine.folder / "net.onnx", images))
    assert np.abs(logits - onnx_scores(machine.folder / "net.onnx", images)).max() < 0.01
    assert np.array_equal(found["kept"][0], conv)


def test_atc_standin_fails_with_a_virtual_environment_first_on_its_path(
    machine: Machine, tmp_path: Path
) -> None:
    environment, work = machine
    subprocess.run(
        [sys.executable, "-m", "venv", "--without-pip", str(tmp_path / "venv")], check=True
    )
    path = os.pathsep.join([str(tmp_path / "venv" / "bin"), environment["PATH"]])
    done = start(dict(environment, PATH=path), work, *CONTRACT)
    assert done.returncode != 0 and "EC0010" in done.stdout
    done = start(
        dict(environment, PATH=path), work, *"python3 -m ais_bench --model net_bs1.om".split()
    )
    assert done.returncode != 0 and "No module named 'ais_bench'" in done.stderr


@pytest.mark.parametrize(
    "lines, complaint",
    [
        ("src_image_size_w : 64\nsrc_image_size_h : 32", "64 pixels"),
        ("colour : RGB", "no such key"),
        ("mean_chn_0 : 0.5", "of type int"),
        ("min_chn_0 : 300", "between 0 and 255"),
        ("crop : yes", "of type bool"),
        ("csc_switch : true", "RGB888_U8"),
        ("min_chn_1 : 1\nmin_chn_1 : 2", "twice"),
        ("min_chn_1 = 1", "key : value"),
        ("}\naipp_op {", "one block"),
    ],
)
def test_atc_standin_refuses_wrong_aipp_settings(
    machine: Machine, lines: str, complaint: str
) -> None:
    (machine.folder / "aipp.cfg").write_text(AIPP + lines + "\n}\n")
    done = atc_here(machine, *CONTRACT[1:], "--insert_op_conf=aipp.cfg")
    assert done.returncode != 0 and complaint in done.stdout, done.stdout + done.stderr


# ---- ais_bench -----------------------------------------------------------------------------------


def test_ais_bench_standin_writes_what_ais_bench_writes(machine: Machine, compiled: Path) -> None:
    """Natural order, a full last batch, TXT as '%f ' per value, summary keys, printed lines."""
    work = machine.folder
    images = put_model_and_images(machine, compiled, 10)
    (work / "in" / "note.md").write_text("ignored")
    (work / "result").mkdir(mode=0o750)
    (work / "result" / "stranger").write_text("stays")
    done = start_ais_bench(machine, *CONTRACT_INFER)
    assert done.returncode == 0, done.stderr
    expected = onnx_scores(work / "net.onnx", images)
    names = {f"i{number}_0.txt" for number in range(1, 11)}
    assert {path.name for path in (work / "result").iterdir()} == names | {"stranger"}
    for number in range(1, 11):
        text = (work / "result" / f"i{number}_0.txt").read_text()
        assert re.fullmatch(r"(-?\d+\.\d{6} ){10}\n", text)
        np.testing.assert_allclose(np.array(text.split(), float), expected[number - 1], atol=0.02)
    summary = json.loads((work / "result_summary.json").read_text())
    assert set(summary) == SUMMARY_KEYS
    order = [summary["filesinfo"][str(index)]["infiles"] for index in range(10)]
    assert order == [[f"in/i{number}.bin"] for number in range(1, 11)]
    assert summary["filesinfo"]["9"]["outfiles"] == ["./result/i10_0.txt"]
    times = summary["NPU_compute_time"]
    assert (
        set(times) == set("min max mean median percentile(99%) count".split())
        and times["count"] == 3
    )
    assert summary["throughput"] == pytest.approx(4000 / times["mean"])
    assert (
        f"[INFO] throughput 1000*batchsize.mean(4)/NPU_compute_time.mean({times['mean']}): "
        in done.stdout
    )
    assert (
        f"[INFO] NPU_compute_time (ms): min = {times['min']}, max = {times['max']}, " in done.stdout
    )


def test_ais_bench_standin_overwrites_what_agrees_up_to_the_first_dot(
    machine: Machine, compiled: Path
) -> None:
    work = machine.folder
    images = put_model_and_images(machine, compiled, 2)
    images[0].tofile(str(work / "in" / "a.x.bin"))
    np.save(str(work / "in" / "a.y.npy"), images[1])
    done = start_ais_bench(machine, *CONTRACT_INFER)
    assert done.returncode == 0, done.stderr
    assert {path.name for path in (work / "result").iterdir()} == {
        "a_0.txt",
        "i1_0.txt",
        "i2_0.txt",
    }
    assert (work / "result" / "a_0.txt").read_text() == (work / "result" / "i2_0.txt").read_text()


def test_ais_bench_standin_measures_pure_inference(machine: Machine, compiled: Path) -> None:
    put_model_and_images(machine, compiled)
    work = machine.folder
    done = start_ais_bench(
        machine,
        *"--model=net_bs4.om --loop=20 --batchsize=4 --output=./ --output_dirname=pure".split(),
    )
    assert done.returncode == 0, done.stderr
    assert json.loads((work / "pure_summary.json").read_text())["NPU_compute_time"]["count"] == 20
    zeros = onnx_scores(work / "net.onnx", np.zeros((4, 3, SIZE, SIZE), np.float32))
    written = np.fromfile(str(work / "pure" / "pure_infer_data_0.bin"), np.float32)
    np.testing.assert_allclose(written.reshape(4, 10), zeros, atol=0.02)
    assert start_ais_bench(machine, "--model=net_bs4.om", "--loop=2").returncode == 0
    assert (
        sorted(path.name for path in work.iterdir())
        == "in net.onnx net_bs4.om pure pure_summary.json".split()
    )


@pytest.mark.parametrize(
    "words, complaint",
    [
        ("--model net_bs4.om --loop 0", "out of range"),
        ("--model net_bs4.om --loop +5", "digits"),
        ("--model net_bs4.om --loop 1_0", "digits"),
        ("--model net_bs4.om --batchsize 4.0", "digits"),
        ("--model net_bs4.om --warmup_count -1", "digits"),
        ("--model net_bs4.om --device 0,+1", "digits"),
        ("--model net_bs4.om --device 256", "out of range"),
        ("--model net_bs4.om --device 2", "107001"),
        ("--model net_bs4.om --debug", "expected one argument"),
        ("--model net_bs4.om --aipp_config x", "unrecognized"),
        ("--model net_bs4.om --outfmt txt", "invalid choice"),
        ("--model net_bs4.om --pure_data_type ones", "invalid choice"),
        ("--model net_bs4.om --output_dirname result", "needs the parameter --output"),
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
        ("--model net_bs4.om --input names", "not allowed"),
        ("--model net_bs4.om --input 'in with space'", "not allowed"),
        ("--model net_bs4.om --output out755", "too open"),
        ("--model net_bs4.om --output out770", "too open"),
        ("--model net_bs4.om --output out_link", "symbolic link"),
        ("--model net_bs4.om --output ./ --output_dirname out755", "too open"),
        ("--model net_bs4.om --output ./ --output_dirname 'a b'", "not allowed"),
    ],
)
def test_ais_bench_standin_refuses(
    machine: Machine, compiled: Path, words: str, complaint: str
) -> None:
    work = machine.folder
    images = put_model_and_images(machine, compiled, 1)
    om = compiled.read_bytes()
    for name, data, mode in (
        ("half.om", om[:-9], 0o640),
        ("net_bs4.onnx", om, 0o640),
        ("open.om", om, 0o660),
    ):
        (work / name).write_bytes(data)
        (work / name).chmod(mode)
    (work / "link.om").symlink_to("net_bs4.om")
    (work / "in_link").symlink_to("in")
    (work / "out_link").symlink_to("in")
    for name, mode in (
        ("in_open", 0o770),
        ("empty", 0o750),
        ("short", 0o750),
        ("names", 0o750),
        ("in with space", 0o750),
        ("out755", 0o755),
        ("out770", 0o770),
    ):
        (work / name).mkdir()
        (work / name).chmod(mode)
    (work / "short" / "i1.bin").write_bytes(b"12345")
    images[0].tofile(str(work / "names" / "a b.bin"))
    done = ais_bench_here(machine, *shlex.split(words))
    assert done.returncode != 0 and complaint in done.stdout + done.stderr, (
        done.stdout + done.stderr
    )


def test_the_standins_refuse_on_the_command_line_too(machine: Machine, compiled: Path) -> None:
    put_model_and_images(machine, compiled, 1)
    (machine.folder / "link.om").symlink_to("net_bs4.om")
    done = start(*machine, *CONTRACT[:-1], "--soc_version=310P3")
    assert done.returncode == 255 and "E10001" in done.stdout
    done = start_ais_bench(machine, "--model", "link.om")
    assert done.returncode == 2 and "symbolic link" in done.stdout
    done = start_ais_bench(machine, *"--model net_bs4.om --device 2".split())
    assert (
        done.returncode == 1
        and "107001" in done.stdout
        and done.stderr.endswith("\nRuntimeError\n")
    )


def test_ais_bench_standin_of_the_fork(machine: Machine, compiled: Path) -> None:
    """Hyphens, bare switches, P99, a table, refusals in a box."""
    work = machine.folder
    put_model_and_images(machine, compiled, 5)
    fork = {"STANDIN_AIS_BENCH": "fork", "COLUMNS": "100"}
    words = "--model net_bs4.om --input in --output ./".split()
    done = start_ais_bench(
        machine,
        *words,
        *"--output-dirname r --display-all-summary --outfmt NPY".split(),
        **fork,
    )
    assert done.returncode == 0 and "[INFO] Throughput 1000*" in done.stdout, (
        done.stdout + done.stderr
    )
    assert (
        re.search(r"│ NPU_compute_time \(ms\) +│", done.stdout) and "percentile" not in done.stdout
    )
    times = json.loads((work / "r_summary.json").read_text())["NPU_compute_time"]
    assert set(times) == set("min max mean median P99 count".split())
    assert np.load(str(work / "r" / "i5_0.npy")).shape == (1, 10)
    done = start_ais_bench(machine, *words, "--output_dirname", "s", **fork)
    assert done.returncode == 2 and re.search(
        r"╭─ Error ─+╮\n│ No such option: --output_dirname +│", done.stderr
    )
    done = start_ais_bench(machine, *words, "--device", "7", **fork)
    assert (
        done.returncode == 1
        and "107001" in done.stdout
        and done.stderr.endswith("╯\nRuntimeError\n")
    )


@pytest.mark.parametrize(
    "stray, complaint", [("link", "symbolic link"), ("open", "too open"), ("a b.md", "not allowed")]
)
def test_ais_bench_standin_refuses_a_stray_file_in_the_input_folder(
    machine: Machine, compiled: Path, stray: str, complaint: str
) -> None:
    work = machine.folder
    put_model_and_images(machine, compiled, 1)
    if stray == "link":
        (work / "in" / stray).symlink_to("i1.bin")
    else:
        (work / "in" / stray).write_text("")
        (work / "in" / stray).chmod(0o660 if stray == "open" else 0o640)
    done = ais_bench_here(machine, *CONTRACT_INFER)
    assert (
        done.returncode == 1
        and complaint in done.stdout
        and f"in/{stray} is illegal" in done.stderr
    )


def test_ais_bench_standin_looks_at_the_result_folder_from_the_current_one(
    machine: Machine, compiled: Path
) -> None:
    work = machine.folder
    put_model_and_images(machine, compiled, 1)
    (work / "out").mkdir(mode=0o750)
    (work / "result").mkdir()
    (work / "result").chmod(0o755)
    words = [*CONTRACT_INFER[:5], "out", *CONTRACT_INFER[6:]]
    done = ais_bench_here(machine, *words)
    assert done.returncode == 2 and f"path {work}/result is too open" in done.stdout


@pytest.mark.parametrize(
    "generation, names",
    [
        ("0.0.2", {"i1_0.bin", "i2_0.bin"}),
        (
            "later",
            {"device0_0", "device1_1"} | {"device0_0_summary.json", "device1_1_summary.json"},
        ),
    ],
)
def test_ais_bench_standin_infers_everything_on_each_of_several_devices(
    machine: Machine, compiled: Path, generation: str, names: "set[str]"
) -> None:
    put_model_and_images(machine, compiled, 2)
    done = start_ais_bench(
        machine, *CONTRACT_INFER[:-2], "--device", "0,1", STANDIN_AIS_BENCH=generation
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert {path.name for path in (machine.folder / "result").iterdir()} == names
    for word in (
        "i:0 device_0 throughput:",
        "i:1 device_1 throughput:",
        "[INFO] summary throughput:",
    ):
        assert word in done.stdout


def test_ais_bench_standin_of_0_0_2_checks_no_paths(machine: Machine, compiled: Path) -> None:
    work = machine.folder
    put_model_and_images(machine, compiled, 1)
    (work / "link.om").symlink_to("net_bs4.om")
    (work / "out 755").mkdir(mode=0o755)
    words = [
        *"--model link.om --input in --output".split(),
        "out 755",
        *"--output_dirname r --debug 1".split(),
    ]
    done = start_ais_bench(machine, *words, STANDIN_AIS_BENCH="0.0.2")
    assert done.returncode == 0 and (work / "out 755" / "r" / "i1_0.bin").stat().st_size == 40, (
        done.stderr
    )


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_ais_bench_standin_refuses_a_strangers_file(machine: Machine, compiled: Path) -> None:
    put_model_and_images(machine, compiled)
    os.chown(str(machine.folder / "net_bs4.om"), 54321, 54321)
    done = ais_bench_here(machine, "--model", "net_bs4.om")
    assert done.returncode != 0 and "not owned" in done.stdout


def test_ais_bench_standin_refuses_a_model_for_another_chip(
    machine: Machine, compiled: Path
) -> None:
    put_model_and_images(machine, compiled)
    done = ais_bench_here(machine, "--model", "net_bs4.om", STANDIN_NPU_SMI="910B4")
    assert done.returncode != 0 and "compiled for Ascend310P3" in done.stdout


def test_uint8_images_go_through_aipp_on_the_standin(machine: Machine) -> None:
    """Scaled by 1/255 inside the model, they give what the scaled floats give."""
    work = machine.folder
    (work / "aipp.cfg").write_text(
        AIPP + "".join(f" var_reci_chn_{i} : 0.003921568627451\n" for i in range(3)) + "}\n"
    )
    assert atc_here(machine, *CONTRACT[1:], "--insert_op_conf=aipp.cfg").returncode == 0
    (work / "net_bs1.om").chmod(0o640)
    (work / "in").mkdir(mode=0o750)
    pixels = np.random.RandomState(2).randint(0, 256, (1, SIZE, SIZE, 3)).astype(np.uint8)
    pixels.tofile(str(work / "in" / "p.bin"))
    done = ais_bench_here(
        machine, *"--model net_bs1.om --input in --output ./ --output_dirname r".split()
    )
    assert done.returncode == 0, done.stderr
    expected = onnx_scores(work / "net.onnx", pixels.transpose(0, 3, 1, 2).astype(np.float32) / 255)
    np.testing.assert_allclose(
        np.fromfile(str(work / "r" / "p_0.bin"), np.float32), expected[0], atol=0.02
    )


def test_faults_of_the_ais_bench_standin(machine: Machine, compiled: Path) -> None:
    work = machine.folder
    put_model_and_images(machine, compiled, 10)
    done = start_ais_bench(machine, *CONTRACT_INFER, STANDIN_FAULT="ais-crash=2")
    assert done.returncode != 0 and "507011" in done.stdout
    assert (
        len(list((work / "result").iterdir())) == 8 and not (work / "result_summary.json").exists()
    )
    done = ais_bench_here(
        machine, *CONTRACT_INFER[:-3], "fewer", "--outfmt", "TXT", STANDIN_FAULT="ais-missing=3"
    )
    assert done.returncode == 0 and len(list((work / "fewer").iterdir())) == 7
