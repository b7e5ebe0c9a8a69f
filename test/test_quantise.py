"""int8: for the card by the stand-in of AMCT; with --max-drop the spoiled layer is put back."""

import json
import shutil
import sys
from pathlib import Path
from typing import Any, Dict, List, Set
from unittest import mock

from common.ascend import host
from common.core import record
from common.core.cli import Refusal
from common.model import onnx_file, operators, quantisation
from common.model.statistics import cosine_similarity

import infer_om
import numpy as np
import onnx
import onnx2om
import pytest
import quantize_amct
import quantize_onnx
from ascend.helpers import (
    HERE,
    Machine,
    atc_here,
    calls,
    load,
    onnx_outputs,
    save_images,
    save_tiny_tresnet,
    start,
    start_here,
)
from conftest import copy_products, refusal, succeed
from onnx import numpy_helper
from records import write_finished

IMAGES = 20
# Its input comes from a LeakyReLU behind body.layer3.0.conv1.0.
POISONED = "body.layer3.0.conv2.0.0"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with tiny.onnx, poisoned.onnx (the same function), in/ (20 images), images.npy.

    labels.txt holds float32's answers.
    """
    folder = tmp_path_factory.mktemp("tiny")
    save_tiny_tresnet(folder / "tiny.onnx")
    save_images(folder / "in", IMAGES)
    pixels, labels = [], []
    for number in range(1, IMAGES + 1):
        pixels.append(np.fromfile(str(folder / "in" / f"i{number}.bin"), np.float32))
        labels.append(f"i{number} {number % 10}\n")
    images = np.stack(pixels).reshape(IMAGES, 3, 64, 64)
    fit_head(folder / "tiny.onnx", images)
    poison(folder / "tiny.onnx", folder / "poisoned.onnx")
    (folder / "labels.txt").write_text("".join(labels))
    np.save(str(folder / "images.npy"), images)
    return folder


def fit_head(path: Path, images: np.ndarray) -> None:
    """Give the network a head that says number % 10 for image number, by ridge regression."""
    model = onnx.load(str(path))
    body = operators.with_outputs(model, ["head.flatten"])
    features = onnx_outputs(body.SerializeToString(), images)[0]
    centred = (features - features.mean(0)).astype(np.float64)
    wanted = np.eye(10)[np.arange(1, IMAGES + 1) % 10] - 0.1
    gram = centred @ centred.T
    ridge = 0.01 * np.trace(gram) / IMAGES * np.eye(IMAGES)
    weight = wanted.T @ np.linalg.solve(gram + ridge, centred)
    fitted = {"head.fc.weight": weight, "head.fc.bias": -weight @ features.mean(0)}
    for tensor in model.graph.initializer:
        if tensor.name in fitted:
            array = fitted[tensor.name].astype(np.float32)
            tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    onnx.save(model, str(path))


def poison(source: Path, target: Path) -> None:
    """Scale an input channel of POISONED's weights by 500, and the weights that make it by 1/500.

    In float32 it is the same function. In int8 the channel decides the step of every output
    channel, and little is left of the other channels.
    """
    model = onnx.load(str(source))
    nodes = {node.name: node for node in model.graph.node}
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}

    def scale(tensor: str, channel: Any, factor: float) -> None:
        array = numpy_helper.to_array(tensors[tensor]).copy()
        array[channel] *= factor
        tensors[tensor].CopyFrom(numpy_helper.from_array(array, tensor))

    before = nodes["body.layer3.0.conv1.0"]
    scale(before.input[1], 3, 1 / 500)
    scale(before.input[2], 3, 1 / 500)
    scale(nodes[POISONED].input[1], (slice(None), 3), 500)
    onnx.save(model, str(target))


def amct_here(machine: Machine, *words: object, **switches: str) -> Any:
    return start_here(
        load(HERE / "amct.py").main, dict(machine[0], **switches), machine[1], "amct_onnx", *words
    )


def tools_in_this_process(machine: Machine) -> Any:
    """host.run_tool() with the stand-ins and our scripts in this process."""

    def run(command: List[str], log: str, cwd: str = "", **_: Any) -> int:
        here = machine._replace(folder=Path(cwd) if cwd else machine.folder)
        words = list(map(str, command))
        if words[0] == "atc":
            done = atc_here(here, *words[1:])
        elif words[0] == "amct_onnx":
            done = amct_here(here, *words[1:])
        elif words[1].endswith("onnx2om.py"):
            done = start_here(onnx2om.main, machine[0], machine[1], "onnx2om.sh", *words[2:])
        else:
            done = start_here(infer_om.main, machine[0], machine[1], "infer_om.py", *words[2:])
        Path(log).write_text(done.stdout + done.stderr)
        return done.returncode

    return run


def quantise_for_card(machine: Machine, model: Path, *words: object) -> Any:
    """quantize_amct.py, from a model in the folder tiny to int8.onnx in the machine's folder."""
    command = ("quantize_amct.py", model, "int8.onnx", "--calibrate", model.parent / "in", *words)
    with mock.patch.object(host, "run_tool", tools_in_this_process(machine)), mock.patch.object(
        host, "host_versions", return_value={}
    ):
        return start_here(quantize_amct.main, machine[0], machine[1], *command)


# ---- the promise of --max-drop -------------------------------------------------------------------


def test_the_paired_drop_and_its_interval() -> None:
    before = np.array([True] * 80 + [False] * 20)
    after = np.array([True] * 74 + [False] * 6 + [True] * 2 + [False] * 18)
    drop = quantisation.paired_drop(before, after)
    assert (drop.points, drop.images) == (4.0, 100)
    # Agresti and Min: half an image in each cell.
    middle, half = 4 / 102, 1.959964 * (9 - 16 / 102) ** 0.5 / 102
    assert (drop.low, drop.high) == pytest.approx((100 * (middle - half), 100 * (middle + half)))
    unchanged = quantisation.paired_drop(before, before)
    assert unchanged.points == 0 and unchanged.low == -unchanged.high
    assert 1.9 < unchanged.high < 2, "the same answers do not prove that nothing is lost"


def test_layers_go_back_in_the_order_of_their_cost_until_the_promise_holds() -> None:
    right = np.ones(100, bool)
    asked: List[List[str]] = []

    def judge(back: List[str]) -> np.ndarray:
        asked.append(back)
        return np.arange(100) >= 3 - len(back)

    cost = {"a": 0.1, "b": 0.4, "c": 0.2, "d": 0.3, "e": 0.0}
    report = quantisation.keep_promise(1.0, right, judge, lambda: cost, lambda _: None)
    assert asked == [[], ["b"], ["b", "d", "c"]]
    assert report["held"] and [row["name"] for row in report["put_back"]] == ["b", "d", "c"]
    assert [row["drop"] for row in report["rounds"]] == [3.0, 2.0, 0.0]
    never = quantisation.keep_promise(1.0, right, lambda _: ~right, lambda: cost, lambda _: None)
    assert not never["held"] and len(never["put_back"]) == 5
    at_once = quantisation.keep_promise(3.0, right, judge, lambda: {}, lambda _: None)
    assert at_once["held"] and at_once["put_back"] == []
    nothing_to_put_back = quantisation.keep_promise(
        1.0, right, lambda _: ~right, lambda: {}, lambda _: None
    )
    assert not nothing_to_put_back["held"] and len(nothing_to_put_back["rounds"]) == 1


def test_the_poisoned_layer_costs_most(tiny: Path) -> None:
    images = np.load(str(tiny / "images.npy"))[:4]
    costs = {}
    for name in ("tiny", "poisoned"):
        model = onnx_file.load(str(tiny / f"{name}.onnx"))
        costs[name] = quantisation.costs(model, quantisation.groups_of(model), images)
    assert max(costs["poisoned"], key=lambda layer: costs["poisoned"][layer]) == POISONED
    assert costs["poisoned"][POISONED] > 20 * costs["tiny"][POISONED] > 0


def test_layers_that_stay_float_on_the_card(tiny: Path) -> None:
    left = quantisation.float_on_card(onnx_file.load(str(tiny / "tiny.onnx")))
    layers_by_reason: Dict[str, List[str]] = {}
    for name, reason in left.items():
        layers_by_reason.setdefault(reason, []).append(name)
    assert layers_by_reason.pop("stem") == ["body.SpaceToDepth", "body.conv1.0"]
    squeezes = layers_by_reason.pop("squeeze-and-excitation")
    assert squeezes == [name for name in left if ".se." in name]
    assert list(layers_by_reason) == ["few input channels"]
    assert left["body.layer2.0.conv1.1"] == "few input channels" and "head.fc" not in left


# ---- AMCT ----------------------------------------------------------------------------------------

COMMAND = {
    "--model": "poisoned.onnx",
    "--save_path": "amct/net",
    "--input_shape": "image:1,3,64,64",
    "--data_dir": "in",
    "--data_types": "float32",
    "--calibration_config": "quant.cfg",
}


@pytest.mark.parametrize(
    "change, complaint",
    (
        ({"--model": "absent.onnx"}, "cannot load absent.onnx"),
        ({"--model": "opset15.onnx"}, "the opset 15"),
        ({"--input_shape": "input:1,3,64,64"}, "does not match"),
        ({"--input_shape": "image:1,3,32,32"}, "does not match"),
        ({"--input_shape": "image"}, "expected input_name"),
        ({"--data_types": "uint8"}, "is not the type"),
        ({"--data_dir": "short"}, "is not a .bin file of [1, 3, 64, 64] float32 values"),
        ({"--data_dir": "absent"}, "is not a folder"),
        ({"--calibration_config": "much.cfg"}, "batch_num is 99"),
        ({"--calibration_config": "typo.cfg"}, "cannot parse the line"),
        ({"--optimise": "1"}, "unrecognized arguments"),
        (
            {"--calibration_config": "layer.cfg"},
            "the layer absent of skip_layers is not in the model",
        ),
    ),
)
def test_amct_standin_refuses(
    change: Dict[str, str], complaint: str, tiny: Path, machine: Machine
) -> None:
    work = machine[1]
    shutil.copytree(str(tiny / "in"), str(work / "in"))
    shutil.copy(str(tiny / "poisoned.onnx"), str(work))
    model = onnx.load(str(tiny / "tiny.onnx"))
    model.opset_import[0].version = 15
    onnx.save(model, str(work / "opset15.onnx"))
    (work / "short").mkdir()
    (work / "short" / "i1.bin").write_bytes(b"1234")
    for name, text in (
        ("quant", "batch_num : 2\n"),
        ("much", "batch_num : 99\n"),
        ("typo", "batchnum : 2\n"),
        ("layer", 'skip_layers : "absent"\n'),
    ):
        (work / f"{name}.cfg").write_text(text)
    words = sum({**COMMAND, **change}.items(), ())
    done = amct_here(machine, "calibration", *words)
    assert done.returncode == 1 and complaint in done.stderr, done.stderr
    assert not (work / "amct").exists()


def card_logits(machine: Machine, model: str, images: np.ndarray) -> np.ndarray:
    """The logits of an ONNX file on the stand-in of the card, compiled as the pipeline does it."""
    words = (
        f"--framework=5 --model={model} --output=net --soc_version=Ascend310P3 "
        f"--input_shape=image:{len(images)},3,64,64"
    )
    done = atc_here(machine, *words.split(), STANDIN_DEVICE="float16")
    assert done.returncode == 0, done.stdout
    from ascend.python.ascend_standin import read_om

    return onnx_outputs(read_om(str(machine[1] / "net.om"))[1], images)[0]


@pytest.mark.parametrize(
    "flavour, name, attributes",
    [
        ("onnx", "_quant", {"scale", "offset", "quant_bit"}),
        ("torch", ".quant", {"scale", "offset", "dst_type"}),
    ],
)
def test_an_int8_model_for_the_card_is_near_float32(
    tiny: Path, machine: Machine, flavour: str, name: str, attributes: Set[str]
) -> None:
    """In both forms in which AMCT writes a deploy model."""
    machine.environment["STANDIN_AMCT"] = flavour
    done = quantise_for_card(machine, tiny / "tiny.onnx", "--images", 8)
    assert done.returncode == 0, done.stdout + done.stderr
    nodes = onnx_file.load(str(machine[1] / "int8.onnx")).graph.node
    quants = [node for node in nodes if node.op_type == "AscendQuant"]
    assert all(node.name.endswith(name) for node in quants) and quants
    assert {attribute.name for attribute in quants[0].attribute} == attributes
    (call,) = calls(machine[0], "amct_onnx")
    assert call["argv"][:3] == ["amct_onnx", "calibration", "--model"]
    assert "image:1,3,64,64" in call["argv"]
    images = np.load(str(tiny / "images.npy"))
    right = onnx_outputs(tiny / "tiny.onnx", images)[0]
    int8 = card_logits(machine, "int8.onnx", images)
    cosines = [cosine_similarity(a, b) for a, b in zip(right, int8)]
    assert 0.97 < min(cosines) < 0.9999, "int8 rounds more than float16"
    assert np.array_equal(int8.argmax(1), right.argmax(1))
    done = quantise_for_card(machine, tiny / "tiny.onnx", "--images", 8)
    assert "is up to date" in done.stdout


def test_the_report_names_the_layers_that_stay_float(tiny: Path, machine: Machine) -> None:
    done = quantise_for_card(machine, tiny / "tiny.onnx", "--images", 1)
    assert "int8 for the card, calibrated on 1 image, " in done.stdout, done.stderr
    nodes = onnx_file.load(str(machine[1] / "int8.onnx")).graph.node
    layers = {node.name for node in nodes if node.op_type in ("Conv", "Gemm")}
    dequantised = {node.input[0] for node in nodes if node.op_type == "AscendDequant"}
    quantised = {node.name for node in nodes if node.output[0] in dequantised}
    report = json.loads((machine[1] / "int8.json").read_text())
    assert quantised == layers - set(report["float"]) and len(quantised) >= 10


@pytest.mark.slow
def test_with_max_drop_0_the_poisoned_layer_is_put_back_on_the_card(
    tiny: Path, machine: Machine
) -> None:
    words = ("--images", 8, "--labels", tiny / "labels.txt", "--max-drop", 0)
    done = quantise_for_card(machine, tiny / "poisoned.onnx", *words)
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads((machine[1] / "int8.json").read_text())
    assert [row["name"] for row in report["put_back"]] == [POISONED]
    assert report["held"] and report["drop"] <= 0
    assert report["rounds"][0]["drop"] > 0 and len(calls(machine[0], "amct_onnx")) == 2
    assert "int8 with 1 layer put back to float loses" in done.stdout


def test_the_int8_file_has_the_same_bytes_each_time(tiny: Path, tmp_path: Path) -> None:
    contents = []
    for seed in (1, 2):  # of Python's hashes, which decide the order of sets
        folder = tmp_path / str(seed)
        folder.mkdir()
        succeed(
            "scripts/quantize_onnx.py",
            tiny / "tiny.onnx",
            folder / "int8.onnx",
            "--calibrate",
            tiny / "in",
            "--images",
            4,
            env={"PYTHONHASHSEED": str(seed)},
        )
        contents.append((folder / "int8.onnx").read_bytes())
    assert contents[0] == contents[1]


def quantise_for_cpu(folder: Path, model: object, images: object, *words: object) -> Any:
    """quantize_onnx.py in a folder, to int8.onnx."""
    command = ("quantize_onnx.py", model, "int8.onnx", "--calibrate", images, *words)
    return start_here(quantize_onnx.main, {}, folder, *command)


def test_a_model_with_a_fixed_batch_is_quantised(tiny: Path, tmp_path: Path) -> None:
    model = onnx.load(str(tiny / "tiny.onnx"))
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = 4
    onnx.save(model, str(tmp_path / "four.onnx"))
    done = quantise_for_cpu(tmp_path, "four.onnx", tiny / "in", "--images", 3)
    assert done.returncode == 0, done.stderr
    images = np.load(str(tiny / "images.npy"))[:4]
    right = onnx_outputs(tmp_path / "four.onnx", images)[0]
    int8 = onnx_outputs(tmp_path / "int8.onnx", images)[0]
    assert min(map(cosine_similarity, right, int8)) > 0.97


def test_the_int8_model_has_the_evaluation_of_its_float32_model(tiny: Path, tmp_path: Path) -> None:
    shutil.copy(str(tiny / "tiny.onnx"), str(tmp_path))
    model, said = tmp_path / "tiny.onnx", {"img_size": 64, "crop_pct": 0.95}
    write_finished(
        Path(f"{model}.record.jsonl"),
        {"tool": "TResNet_pth2onnx.py"},
        {"": ["tiny.onnx"]},
        notes={"": {"evaluation": said, "said": ["crop_pct"]}},
    )
    done = quantise_for_cpu(tmp_path, "tiny.onnx", tiny / "in", "--images", 2)
    assert done.returncode == 0, done.stderr
    notes = record.read(str(tmp_path / "int8.onnx")).notes
    assert {**notes["evaluation"], **said} == notes["evaluation"]
    assert notes["said"] == ["crop_pct"], "infer_onnx.py compares the images with it"


def test_aipp_settings_for_another_size_are_refused(tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "aipp.cfg").write_text(
        "aipp_op {\naipp_mode : static\ninput_format : RGB888_U8\n"
        "src_image_size_w : 32\nsrc_image_size_h : 32\n}\n"
    )
    np.zeros((32, 32, 3), np.uint8).tofile(str(tmp_path / "a.bin"))
    done = quantise_for_cpu(tmp_path, tiny / "tiny.onnx", "a.bin", "--aipp", "aipp.cfg")
    assert done.returncode == 1
    assert "aipp.cfg gives images of 32×32, but the model takes 64×64" in done.stderr


@pytest.mark.slow
def test_with_max_drop_0_the_poisoned_layer_is_put_back_on_the_cpu(
    tiny: Path, tmp_path: Path
) -> None:
    words = ("--images", 8, "--labels", tiny / "labels.txt", "--max-drop", 0)
    done = quantise_for_cpu(tmp_path, tiny / "poisoned.onnx", tiny / "in", *words)
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads((tmp_path / "int8.json").read_text())
    assert report["put_back"][0]["name"] == POISONED and report["held"]
    assert report["rounds"][0]["drop"] > 0
    nodes = onnx_file.load(str(tmp_path / "int8.onnx")).graph.node
    (layer,) = [node for node in nodes if node.name == POISONED]
    rounded = [name.endswith("DequantizeLinear_Output") for name in layer.input]
    if sys.version_info < (3, 8):
        del rounded[0]  # ONNX Runtime 1.14 rounds an operator's output for all that read it
    assert not any(rounded)


@pytest.mark.slow
def test_a_run_whose_int8_is_below_a_minimum_reports_its_own_accuracy(
    small_work: Path, small_sample: Path, tmp_path: Path
) -> None:
    copy_products(small_work, tmp_path / "work")
    (tmp_path / "work" / "acc.json").unlink()  # so the page can only have this run's accuracy
    (tmp_path / "work" / "acc_report.json").unlink()
    options = "--backend cpu --img-size 64 --precision int8 --min-cosine 1".split()
    folders = ("--data", small_sample, "--workdir", tmp_path / "work")
    message = refusal("scripts/pipeline.py", *folders, *options, status=3)
    assert message.splitlines()[-1].endswith("below --min-cosine 1.0"), message
    page = (tmp_path / "work" / "report.html").read_text()
    assert "below a minimum" in page and (tmp_path / "work" / "acc_float32.json").exists()


@pytest.mark.parametrize(
    "words, status, message",
    (
        (["--max-drop", "0"], 2, "--max-drop and --labels go together"),
        (
            ["--device", "first"],
            2,
            "is not a device (0 to 255), several joined by commas, or all",
        ),
        ([], 1, "there is no amct_onnx on the PATH"),
    ),
)
def test_what_quantising_for_the_card_needs(
    words: List[str], status: int, message: str, tiny: Path, machine: Machine, tmp_path: Path
) -> None:
    done = start_here(
        quantize_amct.main,
        {"PATH": str(tmp_path)},
        machine[1],
        "quantize_amct.py",
        tiny / "tiny.onnx",
        "int8.onnx",
        "--calibrate",
        tiny / "in",
        *words,
    )
    assert done.returncode == status and message in done.stderr


def test_an_empty_file_in_place_of_a_model_is_refused(machine: Machine, tmp_path: Path) -> None:
    (tmp_path / "empty.onnx").touch()
    done = start_here(
        quantize_amct.main,
        {"PATH": str(tmp_path)},
        machine[1],
        "quantize_amct.py",
        tmp_path / "empty.onnx",
        "int8.onnx",
        "--calibrate",
        tmp_path,
    )
    assert (
        done.returncode == 1 and "empty.onnx has opset 0, but AMCT reads 8 to 14" in done.stderr
    ), done.stderr


def test_amct_that_fails_is_reported(tiny: Path, machine: Machine) -> None:
    command = [
        machine[0]["TRESNET_PYTHON"],
        quantize_amct.__file__,
        tiny / "tiny.onnx",
        "int8.onnx",
        "--calibrate",
        tiny / "in",
    ]
    done = start(dict(machine[0], STANDIN_FAULT="amct-fail"), machine[1], *command)
    assert done.returncode == 1 and "amct_onnx failed with status 1 and said" in done.stderr, (
        done.stderr
    )
    assert "the data overflow" in done.stderr and "Traceback" not in done.stderr


def test_a_deploy_model_that_is_damaged_or_of_another_network_is_refused(
    tiny: Path, tmp_path: Path
) -> None:
    model, deploy, other = tiny / "tiny.onnx", tmp_path / "deploy.onnx", tmp_path / "other.onnx"
    shutil.copy(str(model), str(deploy))
    assert quantize_amct.read_deploy(str(deploy), str(model), "x.log").graph.node
    deploy.write_bytes(model.read_bytes()[:-1000])
    with pytest.raises(Refusal, match="a deploy model that is half a file; .* output: x.log"):
        quantize_amct.read_deploy(str(deploy), str(model), "x.log")
    deploy.write_bytes(b"")
    with pytest.raises(Refusal, match="a deploy model of another network"):
        quantize_amct.read_deploy(str(deploy), str(model), "x.log")
    other.symlink_to(model)
    with pytest.raises(Refusal, match="a link in the place of its deploy model"):
        quantize_amct.read_deploy(str(other), str(model), "x.log")
