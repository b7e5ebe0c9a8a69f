"""forecast_fp16.py: the card's arithmetic, computed another way; its report; the verdict later."""

import json
import os
from pathlib import Path
from typing import Any, Callable, Dict, List, Sequence

from common.core import cli
from common.core.cli import Refusal
from common.model import float16, onnx_file, operators
from common.model.statistics import cosine_similarity

import compare_results
import forecast_fp16
import numpy as np
import onnx
import pytest
from ascend.helpers import (
    Machine,
    ais_bench_here,
    atc_here,
    onnx_outputs,
    save_images,
    save_tiny_tresnet,
    start_here,
)
from onnx import helper, numpy_helper

IMAGES = 4
ATC = (
    "--framework=5 --model=tiny.onnx --output=tiny_bs1 --input_format=NCHW "
    "--input_shape=image:1,3,64,64 --soc_version=Ascend310P3"
).split()


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with tiny.onnx, in/ (four images), and labels.txt: float32 is right for three."""
    folder = tmp_path_factory.mktemp("tiny")
    save_tiny_tresnet(folder / "tiny.onnx", "miil")
    save_images(folder / "in", IMAGES)
    lines = []
    for number in range(1, IMAGES + 1):
        label = int(logits(folder / "tiny.onnx", folder / "in", number).argmax())
        lines.append(f"i{number} {(label + 1) % 10 if number == 1 else label}\n")
    (folder / "labels.txt").write_text("".join(lines))
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


# ---- the arithmetic ------------------------------------------------------------------------------


def half(array: Any) -> np.ndarray:
    """Rounded to float16 as on the card, as float64."""
    return np.asarray(array, np.float64).clip(-65504, 65504).astype(np.float16).astype(np.float64)


def model_of(
    nodes: List[onnx.NodeProto], image: List[Any], logits: List[Any], **weights: Any
) -> onnx.ModelProto:
    """A model with the input `image` and the output `class` of these shapes."""
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("image", 1, image)],
        [helper.make_tensor_value_info("class", 1, logits)],
        [numpy_helper.from_array(np.array(value, np.float32), n) for n, value in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 11)], ir_version=6)


def run_rounded(
    model: onnx.ModelProto, image: np.ndarray, tensors: List[str], kept: Sequence[str] = ()
) -> Dict[str, np.ndarray]:
    """These tensors of the model in the card's arithmetic."""
    rounded = operators.with_outputs(float16.rounded(model, kept), tensors)
    return operators.run(operators.session(rounded), {"image": image})


def convolution_sums(image: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """[channels, 4, 4] of an image [3, 8, 8], kernel 3×3, stride 2, padding 1: by loops."""
    padded = np.pad(image, ((0, 0), (1, 1), (1, 1)))
    sums = np.zeros((len(weight), 4, 4))
    for channel, y, x in np.ndindex(sums.shape):
        patch = padded[:, 2 * y : 2 * y + 3, 2 * x : 2 * x + 3]
        sums[channel, y, x] = np.sum(patch * weight[channel])
    return sums


def test_three_layers_agree_with_numpy() -> None:
    """A convolution with bias, a LeakyReLU, a pooling: in float64, rounded where the card does."""
    rng = np.random.RandomState(0)
    weight, bias = rng.randn(4, 3, 3, 3).astype(np.float32), rng.randn(4).astype(np.float32)
    image = rng.rand(1, 3, 8, 8).astype(np.float32)
    nodes = [
        helper.make_node("Conv", ["image", "w", "b"], ["conv"], strides=[2, 2], pads=[1, 1, 1, 1]),
        helper.make_node("LeakyRelu", ["conv"], ["leaky"], alpha=0.01),
        helper.make_node("GlobalAveragePool", ["leaky"], ["class"]),
    ]
    model = model_of(nodes, ["batch", 3, 8, 8], ["batch", 4, 1, 1], w=weight, b=bias)
    values = run_rounded(model, image, ["conv", "leaky", "class"])
    sums = convolution_sums(half(image)[0], half(weight))
    bias = half(bias)[:, None, None]
    conv = half(half(sums) + bias)
    leaky = half(np.where(conv < 0, conv * half(0.01), conv))
    expected = {"conv": conv, "leaky": leaky, "class": half(leaky.mean(axis=(1, 2)))[:, None, None]}
    for name, value in expected.items():
        assert np.array_equal(values[name][0], value), name
    assert not np.array_equal(conv, half(sums + bias)), "the bias addition rounds on its own"


def test_values_beyond_float16_saturate_and_kept_operators_do_not() -> None:
    nodes = [
        helper.make_node("Mul", ["image", "many"], ["mul"], name="mul"),
        helper.make_node("Mul", ["mul", "few"], ["class"], name="back"),
    ]
    model = model_of(nodes, ["batch", 1], ["batch", 1], many=2048.0, few=2.0**-11)
    image = np.array([[64.0]], np.float32)
    for kept, result in (((), 31.984375), (("mul",), 31.984375), (("mul", "back"), 64.0)):
        assert run_rounded(model, image, ["class"], kept)["class"][0, 0] == result


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


def on_card(tiny: Path, machine: Machine, fault: str = "") -> List[np.ndarray]:
    """Logits of the images from the stand-ins of atc and ais_bench, with float16 results."""
    work = machine[1]
    for source in (tiny / "in").iterdir():
        (work / "in").mkdir(mode=0o750, exist_ok=True)
        (work / "in" / source.name).write_bytes(source.read_bytes())
    (work / "tiny.onnx").write_bytes((tiny / "tiny.onnx").read_bytes())
    done = atc_here(machine, *ATC, STANDIN_DEVICE="float16", STANDIN_FAULT=fault)
    assert done.returncode == 0, done.stdout
    (work / "tiny_bs1.om").chmod(0o640)
    done = ais_bench_here(
        machine,
        *"--model tiny_bs1.om --input in --output ./ --output_dirname result --outfmt NPY".split(),
    )
    assert done.returncode == 0, done.stderr
    return [
        np.load(str(work / "result" / f"i{number}_0.npy"))[0] for number in range(1, IMAGES + 1)
    ]


# ---- what it says --------------------------------------------------------------------------------


def test_the_report_has_every_operator_the_accuracies_and_a_plot(
    tiny: Path, tmp_path: Path
) -> None:
    words = ("--labels", "labels.txt", "--output", tmp_path / "out")
    done = forecast(tiny, *words)
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "out" / "forecast.json").read_text())
    expected = {
        "tool": "forecast_fp16.py",
        "version": cli.VERSION,
        "images": IMAGES,
        "top1_agreement": 100.0,
        "top1": 75.0,
        "top1_float32": 75.0,
        "overflow": [],
    }
    assert {key: report[key] for key in expected} == expected
    model = onnx_file.load(str(tiny / "tiny.onnx"))
    rows = [(row["name"], row["type"]) for row in report["operators"]]
    assert rows == [(node.name, node.op_type) for node in model.graph.node]
    assert report["cosine"]["min"] == min(report["cosines"]) < 1
    assert len(report["cosines"]) == IMAGES
    # Wilson's interval of 3 in 4
    said = "Top-1 of 4 images, not of the whole set: 75.00 % (95 % interval 30.06 to 95.44 %)"
    assert f"{said}, float32 75.00 %" in done.stdout
    agreement = "Top-1 agreement with float32: 100.00 % (95 % interval 51.01 to 100.00 %)"
    assert done.stdout.splitlines()[1] == agreement
    assert (tmp_path / "out" / "forecast.png").read_bytes()[:4] == b"\x89PNG"
    assert "is up to date" in forecast(tiny, *words).stdout
    done = forecast(tiny, "--images", 2, "--output", tmp_path / "out")
    assert "forecast for float16 over 2 images" in done.stdout


def test_the_largest_value_of_an_operator_is_that_of_all_images(tiny: Path, tmp_path: Path) -> None:
    assert forecast(tiny, "--images", 1, "--output", tmp_path).returncode == 0
    report = json.loads((tmp_path / "forecast.json").read_text())
    row = next(row for row in report["operators"] if row["name"] == "head.flatten")
    model = onnx_file.load(str(tiny / "tiny.onnx"))
    image = np.fromfile(str(tiny / "in" / "i1.bin"), np.float32).reshape(1, 3, 64, 64)
    ready = operators.session(operators.with_outputs(model, ["head.flatten"]))
    largest = np.abs(operators.run(ready, {"image": image})["head.flatten"]).max()
    assert row["largest"] == pytest.approx(float(largest), rel=1e-5)
    assert row["headroom"] == 65504 - row["largest"]


def test_a_fixed_batch_changes_nothing(tiny: Path, tmp_path: Path) -> None:
    model = onnx.load(str(tiny / "tiny.onnx"))
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 4
    onnx.save(model, str(tmp_path / "four.onnx"))
    reports = []
    for name in (tiny / "tiny.onnx", tmp_path / "four.onnx"):
        words = ("forecast_fp16.py", name, "--input", tiny / "in", "--images", 2)
        done = run_main(forecast_fp16.main, tmp_path, *words)
        assert done.returncode == 0, done.stderr
        reports.append(json.loads((tmp_path / "forecast.json").read_text()))
    assert reports[0] == reports[1]


def overflowing(path: Path, source: Path, node: str) -> None:
    """The model in which a node's input is multiplied by 2^16 and by 2^-16."""
    model = onnx.load(str(source))
    graph = model.graph
    index = [entry.name for entry in graph.node].index(node)
    x = graph.node[index].input[0]
    graph.node[index].input[0] = x + "/again"
    graph.node.insert(index, helper.make_node("Mul", [x, "up"], [x + "/up"], name="too_large"))
    back = helper.make_node("Mul", [x + "/up", "down"], [x + "/again"], name="undone")
    graph.node.insert(index + 1, back)
    for name, value in (("up", 2.0**16), ("down", 2.0**-16)):
        graph.initializer.append(numpy_helper.from_array(np.array(value, np.float32), name))
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
    done = atc_here(machine, *ATC, "--keep_dtype=keep_dtype.txt", STANDIN_DEVICE="float16")
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
        f"keep_dtype.txt: not as this program made it; moved to {tmp_path}/forecast.aside"
        in done.stderr
    )


# ---- the verdict after a run on the card ---------------------------------------------------------


@pytest.mark.parametrize(
    "fault, verdict",
    (
        ("", "float16 explains it: the cosine is "),
        ("atc-weight=body.layer2.0.conv2.0", "the conversion is at fault: the cosine is "),
    ),
)
def test_the_comparison_says_whether_float16_explains_the_loss(
    fault: str, verdict: str, tiny: Path, machine: Machine
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
    words = "compare_results.py result onnx --forecast forecast.json --json compare.json".split()
    done = run_main(compare_results.main, work, *words)
    assert done.returncode == 0 and verdict in done.stdout, done.stdout + done.stderr
    report: Dict[str, Any] = json.loads((work / "compare.json").read_text())
    assert report["verdict"].startswith(verdict) and len(report["cosines"]) == IMAGES


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
            "f.json is damaged (its cosines are 2, its names are 1)",
        ),
        (json.dumps(OTHER), "is about other images than these, such as a"),
    ),
)
def test_a_wrong_forecast_is_refused(content: str, complaint: str, tmp_path: Path) -> None:
    (tmp_path / "r").mkdir()
    (tmp_path / "r" / "a_0.txt").write_text("1.0 2.0 \n")
    (tmp_path / "f.json").write_text(content)
    words = "compare_results.py r r --forecast f.json".split()
    done = run_main(compare_results.main, tmp_path, *words)
    assert done.returncode == 1 and complaint in done.stderr


@pytest.mark.parametrize(
    "words, complaint",
    (
        (["tiny.onnx", "--input", "absent"], "holds none; prepare them"),
        (["absent.onnx", "--input", "in"], "cannot read the ONNX file absent.onnx"),
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


@pytest.mark.parametrize("text", (b"image", b"lineage", b"miil", b"Conv", b"head.fc.weight"))
def test_a_model_with_a_text_that_is_not_utf_8_is_refused(
    text: bytes, tiny: Path, tmp_path: Path
) -> None:
    content = (tiny / "tiny.onnx").read_bytes()
    assert text in content
    (tmp_path / "tiny.onnx").write_bytes(content.replace(text, b"\xff" + text[1:]))
    done = forecast(tmp_path, "--input", tiny / "in")
    assert done.returncode == 1, done.stderr
    assert "tiny.onnx is not an ONNX file, or it is damaged" in done.stderr


def test_an_int8_model_is_refused(tiny: Path) -> None:
    """It has no float32 arithmetic that float16 would replace."""
    model = onnx.load(str(tiny / "tiny.onnx"))
    assert float16.rounded(model).graph.node
    node = onnx.helper.make_node("QuantizeLinear", ["image", "s", "z"], ["int8"])
    model.graph.node.insert(0, node)
    with pytest.raises(Refusal, match="is an int8 one \\(it has QuantizeLinear\\)"):
        float16.rounded(model)
