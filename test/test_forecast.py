"""forecast_fp16.py: the card's arithmetic, computed another way; what is named; the verdict after a run on the card."""

import json
import os
from pathlib import Path
from typing import Any, Callable, Dict, List

from common.core import cli
from common.model import float16, onnx_file, operators
from common.model.statistics import cosine_similarity

import compare_results
import forecast_fp16
import numpy as np
import onnx
import pytest
from ascend.helpers import (
    Machine,
    atc_here,
    infer_here,
    make_machine,
    onnx_outputs,
    save_images,
    save_tiny_tresnet,
    start_here,
)
from onnx import helper, numpy_helper

machine = pytest.fixture(make_machine)
IMAGES = 4


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with tiny.onnx, in/ (four images) and labels.txt, of which three are what float32 says."""
    folder = tmp_path_factory.mktemp("tiny")
    save_tiny_tresnet(folder / "tiny.onnx", "miil")
    save_images(folder / "in", IMAGES)
    classes = [
        int(logits(folder / "tiny.onnx", folder / "in", number).argmax())
        for number in range(1, IMAGES + 1)
    ]
    classes[0] = (classes[0] + 1) % 10
    (folder / "labels.txt").write_text(
        "".join(f"i{number} {label}\n" for number, label in enumerate(classes, 1))
    )
    return folder


def logits(model: Path, folder: Path, number: int) -> np.ndarray:
    image = np.fromfile(str(folder / f"i{number}.bin"), np.float32).reshape(1, 3, 64, 64)
    return onnx_outputs(model, image)[0][0]


def run_main(main: Callable[[], Any], folder: Path, *words: object) -> Any:
    return start_here(main, {}, folder, *words)


def forecast(folder: Path, *words: object) -> Any:
    return run_main(
        forecast_fp16.main, folder, "forecast_fp16.py", "tiny.onnx", "--input", "in", *words
    )


# ---- the arithmetic --------------------------------------------------------------------------------------------------


def half(array: Any) -> np.ndarray:
    return np.asarray(array, np.float64).clip(-65504, 65504).astype(np.float16).astype(np.float64)


def test_three_layers_agree_with_numpy(tmp_path: Path) -> None:
    """A convolution with bias, a LeakyReLU and a pooling, by loops in float64, rounded where the card rounds."""
    rng = np.random.RandomState(0)
    weight, bias = rng.randn(4, 3, 3, 3).astype(np.float32), rng.randn(4).astype(np.float32)
    image = rng.rand(1, 3, 8, 8).astype(np.float32)
    nodes = [
        helper.make_node("Conv", ["image", "w", "b"], ["conv"], strides=[2, 2], pads=[1, 1, 1, 1]),
        helper.make_node("LeakyRelu", ["conv"], ["leaky"], alpha=0.01),
        helper.make_node("GlobalAveragePool", ["leaky"], ["class"]),
    ]
    graph = helper.make_graph(
        nodes,
        "three",
        [helper.make_tensor_value_info("image", 1, ["batch", 3, 8, 8])],
        [helper.make_tensor_value_info("class", 1, ["batch", 4, 1, 1])],
        [numpy_helper.from_array(weight, "w"), numpy_helper.from_array(bias, "b")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 11)], ir_version=6)
    tensors = ["conv", "leaky", "class"]
    found = operators.run(
        operators.session(operators.with_outputs(float16.rounded(model), tensors)), {"image": image}
    )

    padded = np.pad(half(image)[0], ((0, 0), (1, 1), (1, 1)))
    sums = np.array(
        [
            [
                [
                    np.sum(padded[:, 2 * y : 2 * y + 3, 2 * x : 2 * x + 3] * half(kernel))
                    for x in range(4)
                ]
                for y in range(4)
            ]
            for kernel in weight
        ]
    )
    conv = half(half(sums) + half(bias)[:, None, None])
    leaky = half(np.where(conv < 0, conv * half(0.01), conv))
    expected = {"conv": conv, "leaky": leaky, "class": half(leaky.mean(axis=(1, 2)))[:, None, None]}
    for name in tensors:
        assert np.array_equal(found[name][0], expected[name]), name
    assert not np.array_equal(conv, half(sums + half(bias)[:, None, None])), (
        "the bias addition rounds on its own"
    )


def test_values_beyond_float16_saturate_and_kept_operators_do_not() -> None:
    nodes = [
        helper.make_node("Mul", ["image", "many"], ["mul"], name="mul"),
        helper.make_node("Mul", ["mul", "few"], ["class"], name="back"),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("image", 1, ["batch", 1])],
        [helper.make_tensor_value_info("class", 1, ["batch", 1])],
        [
            numpy_helper.from_array(np.array(value, np.float32), name)
            for name, value in (("many", 2048.0), ("few", 2.0**-11))
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 11)], ir_version=6)

    def result(*kept: str) -> float:
        ready = operators.session(operators.with_outputs(float16.rounded(model, kept), ["class"]))
        return float(operators.run(ready, {"image": np.array([[64.0]], np.float32)})["class"][0, 0])

    assert (result(), result("mul"), result("mul", "back")) == (31.984375, 31.984375, 64.0)


def test_the_forecast_agrees_with_the_float16_device(tiny: Path, machine: Machine) -> None:
    """The stand-in of the card has an implementation of its own."""
    assert forecast(tiny, "--output", machine[1]).returncode == 0
    report = json.loads((machine[1] / "forecast.json").read_text())
    measured = [
        cosine_similarity(half_logits, logits(tiny / "tiny.onnx", tiny / "in", number))
        for number, half_logits in enumerate(on_card(tiny, machine), 1)
    ]
    assert np.abs(np.array(measured) - report["cosines"]).max() <= 1e-4
    losses = 1 - np.array(measured), 1 - np.array(report["cosines"])
    assert 0.8 < losses[0].mean() / losses[1].mean() < 1.25 and losses[1].min() > 1e-8


def on_card(tiny: Path, machine: Machine, *words: object, fault: str = "") -> List[np.ndarray]:
    """Logits of the four images in machine/result, from the stand-ins of atc and ais_bench, with float16 results."""
    work = machine[1]
    for source in (tiny / "in").iterdir():
        (work / "in").mkdir(mode=0o750, exist_ok=True)
        (work / "in" / source.name).write_bytes(source.read_bytes())
    (work / "tiny.onnx").write_bytes((tiny / "tiny.onnx").read_bytes())
    switches = {"STANDIN_DEVICE": "float16", "STANDIN_FAULT": fault}
    done = atc_here(
        machine,
        "--framework=5",
        "--model=tiny.onnx",
        "--output=tiny_bs1",
        "--input_format=NCHW",
        "--input_shape=image:1,3,64,64",
        "--soc_version=Ascend310P3",
        *words,
        **switches,
    )
    assert done.returncode == 0, done.stdout
    (work / "tiny_bs1.om").chmod(0o640)
    done = infer_here(
        machine,
        "--model",
        "tiny_bs1.om",
        "--input",
        "in",
        "--output",
        "./",
        "--output_dirname",
        "result",
        "--outfmt",
        "NPY",
    )
    assert done.returncode == 0, done.stderr
    return [
        np.load(str(work / "result" / f"i{number}_0.npy"))[0] for number in range(1, IMAGES + 1)
    ]


# ---- what it says ----------------------------------------------------------------------------------------------------


def test_the_report_has_every_operator_the_accuracies_and_a_plot(
    tiny: Path, tmp_path: Path
) -> None:
    done = forecast(tiny, "--labels", "labels.txt", "--output", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "out" / "forecast.json").read_text())
    assert (report["tool"], report["version"], report["images"]) == (
        "forecast_fp16.py",
        cli.VERSION,
        IMAGES,
    )
    assert (report["top1_agreement"], report["top1"], report["top1_float32"]) == (100.0, 75.0, 75.0)
    model = onnx_file.load(str(tiny / "tiny.onnx"))
    assert [row["name"] for row in report["operators"]] == [node.name for node in model.graph.node]
    assert [row["type"] for row in report["operators"]] == [
        node.op_type for node in model.graph.node
    ]
    image = np.fromfile(str(tiny / "in" / "i1.bin"), np.float32).reshape(1, 3, 64, 64)
    first = operators.run(
        operators.session(operators.with_outputs(model, ["head.flatten"])), {"image": image}
    )
    row = next(row for row in report["operators"] if row["name"] == "head.flatten")
    assert (
        row["largest"] >= np.abs(first["head.flatten"]).max()
        and row["headroom"] == 65504 - row["largest"]
    )
    assert (
        report["cosine"]["min"] == min(report["cosines"]) < 1 and len(report["cosines"]) == IMAGES
    )
    assert (
        report["overflow"] == []
        and "Top-1 accuracy: 75.00 % expected, float32 75.00 %" in done.stdout
    )
    assert (tmp_path / "out" / "forecast.png").read_bytes()[:4] == b"\x89PNG"
    assert (
        "is up to date"
        in forecast(tiny, "--labels", "labels.txt", "--output", tmp_path / "out").stdout
    )
    assert (
        "forecast for float16 over 2"
        in forecast(tiny, "--images", 2, "--output", tmp_path / "out").stdout
    )


def test_a_fixed_batch_changes_nothing(tiny: Path, tmp_path: Path) -> None:
    model = onnx.load(str(tiny / "tiny.onnx"))
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 4
    onnx.save(model, str(tmp_path / "four.onnx"))
    reports = []
    for name in (tiny / "tiny.onnx", tmp_path / "four.onnx"):
        done = run_main(
            forecast_fp16.main,
            tmp_path,
            "forecast_fp16.py",
            name,
            "--input",
            tiny / "in",
            "--images",
            2,
        )
        assert done.returncode == 0, done.stderr
        reports.append(json.loads((tmp_path / "forecast.json").read_text()))
    assert reports[0] == reports[1]


def overflowing(path: Path, source: Path, node: str) -> None:
    """The model with a node's output times 2^16, undone behind it."""
    model = onnx.load(str(source))
    place = [entry.name for entry in model.graph.node].index(node)
    x, target = model.graph.node[place].input[0], model.graph.node[place].output[0]
    model.graph.initializer.extend(
        [
            numpy_helper.from_array(np.array(value, np.float32), name)
            for name, value in (("up", 2.0**16), ("down", 2.0**-16))
        ]
    )
    model.graph.node.insert(
        place, helper.make_node("Mul", [x, "up"], [x + "/up"], name="too_large")
    )
    model.graph.node.insert(
        place + 1, helper.make_node("Mul", [x + "/up", "down"], [x + "/again"], name="undone")
    )
    model.graph.node[place + 2].input[0] = x + "/again"
    assert target == model.graph.node[place + 2].output[0]
    onnx.save(model, str(path))


def test_an_operator_that_overflows_is_named_and_atc_takes_the_file_that_helps(
    tiny: Path, machine: Machine
) -> None:
    work = machine[1]
    overflowing(work / "tiny.onnx", tiny / "tiny.onnx", "body.layer3.0.conv2.0.0")
    done = forecast(work, "--input", tiny / "in", "--output", work)
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads((work / "forecast.json").read_text())
    assert (
        report["overflow"] == ["too_large"]
        and "overflows: too_large (Mul), largest value" in done.stdout
    )
    assert "too_large" in (work / "keep_dtype.txt").read_text().splitlines()
    assert report["cosine"]["min"] < 0.99 < report["cosine_kept"]
    done = atc_here(
        machine,
        "--framework=5",
        "--model=tiny.onnx",
        "--output=tiny_bs1",
        "--soc_version=Ascend310P3",
        "--input_shape=image:1,3,64,64",
        "--keep_dtype=keep_dtype.txt",
        STANDIN_DEVICE="float16",
    )
    assert done.returncode == 0, done.stdout
    done = forecast(work, "--input", tiny / "in", "--output", work, "--min-cosine", "0.999")
    assert done.returncode == 3 and "float16 will lower the cosine similarity to" in done.stderr


def test_the_file_for_atc_goes_when_it_would_not_help_any_more(tiny: Path, tmp_path: Path) -> None:
    """What lies there otherwise is of another model; what somebody has changed is set aside."""
    words = ("--input", tiny / "in", "--images", 1, "--output", tmp_path)
    overflowing(tmp_path / "tiny.onnx", tiny / "tiny.onnx", "body.layer3.0.conv2.0.0")
    bad, sound = (tmp_path / "tiny.onnx").read_bytes(), (tiny / "tiny.onnx").read_bytes()
    for content, written in ((bad, True), (sound, False), (bad, True)):
        (tmp_path / "tiny.onnx").write_bytes(content)
        done = forecast(tmp_path, *words)
        assert done.returncode == 0, done.stderr
        assert (tmp_path / "keep_dtype.txt").exists() == written
    (tmp_path / "keep_dtype.txt").write_text("mine")
    (tmp_path / "tiny.onnx").write_bytes(sound)
    done = forecast(tmp_path, *words)
    assert done.returncode == 0 and not (tmp_path / "keep_dtype.txt").exists()
    assert (tmp_path / "forecast.aside" / "keep_dtype.txt").read_text() == "mine"
    assert (
        f"keep_dtype.txt is not what this program made there, and lies in {tmp_path}/forecast.aside"
        in done.stderr
    )


# ---- the verdict after a run on the card -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fault, words",
    (
        ("", "float16 explains it: the cosine is "),
        ("atc-weight=body.layer2.0.conv2.0", "the conversion is at fault: the cosine is "),
    ),
)
def test_the_comparison_says_whether_float16_explains_the_loss(
    fault: str, words: str, tiny: Path, machine: Machine
) -> None:
    work = machine[1]
    assert forecast(tiny, "--output", work).returncode == 0
    on_card(tiny, machine, fault=fault)
    (work / "onnx").mkdir()
    for number in range(1, IMAGES + 1):
        np.save(
            str(work / "onnx" / f"i{number}_0.npy"),
            logits(tiny / "tiny.onnx", tiny / "in", number)[None],
        )
    done = run_main(
        compare_results.main,
        work,
        "compare_results.py",
        "result",
        "onnx",
        "--forecast",
        "forecast.json",
        "--json",
        "compare.json",
    )
    assert done.returncode == 0 and words in done.stdout, done.stdout + done.stderr
    report: Dict[str, Any] = json.loads((work / "compare.json").read_text())
    assert report["verdict"].startswith(words) and len(report["cosines"]) == IMAGES


OTHER: Dict[str, Any] = {
    "images": 1,
    "cosine": {"min": 1.0, "mean": 1.0, "image": "other"},
    "cosines": [1.0],
    "names": ["other"],
    "top1_agreement": 100.0,
    "overflow": [],
    "operators": [],
}


@pytest.mark.parametrize(
    "content, complaint",
    (
        ("{}", "f.json is damaged (it lacks 'images'); run scripts/forecast_fp16.py again"),
        ("[", "f.json is damaged (Expecting value"),
        pytest.param("[" * 100_000, "f.json is damaged (it is nested too deeply)", id="deep"),
        (
            json.dumps(dict(OTHER, cosines=[1.0, 1.0])),
            "f.json is damaged (it has 2 cosines of 1 images)",
        ),
        (json.dumps(OTHER), "is about other images than these, such as a"),
    ),
)
def test_a_wrong_forecast_is_refused(content: str, complaint: str, tmp_path: Path) -> None:
    (tmp_path / "r").mkdir()
    (tmp_path / "r" / "a_0.txt").write_text("1.0 2.0 \n")
    (tmp_path / "f.json").write_text(content)
    done = run_main(
        compare_results.main, tmp_path, "compare_results.py", "r", "r", "--forecast", "f.json"
    )
    assert done.returncode == 1 and complaint in done.stderr


@pytest.mark.parametrize(
    "words, complaint",
    (
        (["tiny.onnx", "--input", "absent"], "holds none; prepare them"),
        (["absent.onnx", "--input", "in"], "there is no readable ONNX file absent.onnx"),
        (
            ["tiny.onnx", "--input", "in", "--labels", "few.txt"],
            "3 of 4 images have no label in few.txt",
        ),
        (
            ["tiny.onnx", "--input", "in", "--aipp", "aipp.cfg"],
            "gives images of 32×32, but the model takes 64×64",
        ),
        (
            ["tiny.onnx", "--input", "short"],
            "i1.bin has 4 bytes, but one sample of this model is 49152 bytes",
        ),
    ),
)
def test_what_cannot_be_forecast_is_refused(
    words: List[str], complaint: str, tiny: Path, tmp_path: Path
) -> None:
    for name in ("tiny.onnx", "in"):
        os.symlink(str(tiny / name), str(tmp_path / name))
    (tmp_path / "few.txt").write_text("i1 0\n")
    (tmp_path / "short").mkdir()
    (tmp_path / "short" / "i1.bin").write_bytes(b"1234")
    (tmp_path / "aipp.cfg").write_text(
        "aipp_op {\naipp_mode : static\ninput_format : RGB888_U8\n"
        "src_image_size_w : 32\nsrc_image_size_h : 32\n}\n"
    )
    done = run_main(forecast_fp16.main, tmp_path, "forecast_fp16.py", *words, "--output", "out")
    assert done.returncode == 1 and complaint in done.stderr, done.stderr
    assert not list(tmp_path.glob("out/forecast*"))
