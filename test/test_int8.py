"""int8 on the CPU, on a network that is really trained: bits, ways, promise, other runtimes."""

import itertools
import json
from pathlib import Path
from typing import Any, Dict, List, Sequence
from unittest import mock

from common.core import processor, progress, record
from common.core.cli import Refusal
from common.core.processor import Processor
from common.model import calibration, onnx_file, operators, quantisation
from common.model.calibration import Quantiser, Speed, Tried, Variant
from common.model.statistics import cosine_similarity
from common.results import published, summary
from common.results.texts import ENGLISH

import infer_onnx
import numpy as np
import onnx
import pytest
import quantize_onnx
import report
from ascend.helpers import onnx_outputs, start_here
from conftest import refusal
from onnx import TensorProto, helper, numpy_helper
from trained import IMAGES, UNSEEN, draw

WITH, WITHOUT = Processor("CPU one", "avx512_vnni"), Processor("CPU two", "")
NO_MEMORY = "there is not enough memory; free some, or take a smaller batch or fewer workers"
PINNED = ("--quant-scales", "channel", "--quant-ranges", "minmax")


def on(cpu: Processor) -> Any:
    """During the block, the programs take this machine for one with this CPU."""
    return mock.patch.object(processor, "this", lambda: cpu)


def quantise(trained: Path, folder: Path, name: str, *words: object) -> Any:
    """quantize_onnx.py from the trained network to NAME.onnx in a folder."""
    command = ("quantize_onnx.py", trained / "tresnet.onnx", f"{name}.onnx")
    more = ("--calibrate", trained / "in", *words)
    return start_here(quantize_onnx.main, {}, folder, *command, *more)


@pytest.fixture(scope="module")
def models(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with eight.onnx and seven.onnx: the trained network in int8, and their reports."""
    folder = tmp_path_factory.mktemp("models")
    for name, bits in (("eight", 8), ("seven", 7)):
        done = quantise(trained, folder, name, "--quant-bits", bits, *PINNED)
        assert done.returncode == 0, done.stderr
    return folder


# ---- which CPU -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text, machine, expected",
    (
        (
            "model name\t: Intel(R) Xeon(R) Gold 6140\nflags\t\t: fpu avx2 avx512bw\n",
            "x86_64",
            Processor("Intel(R) Xeon(R) Gold 6140", ""),
        ),
        (
            "model name\t: Intel(R) Xeon(R) Gold 6230\nflags\t\t: fpu avx512bw avx512_vnni\n",
            "x86_64",
            Processor("Intel(R) Xeon(R) Gold 6230", "avx512_vnni"),
        ),
        (
            "model name\t: 12th Gen Intel(R) Core(TM) i7\nflags\t\t: avx2 avx_vnni\n",
            "x86_64",
            Processor("12th Gen Intel(R) Core(TM) i7", "avx_vnni"),
        ),
        (
            "processor\t: 0\nFeatures\t: fp asimd asimdrdm asimddp\nCPU part\t: 0xd01\n",
            "aarch64",
            Processor("aarch64", "asimddp"),
        ),
        (
            "Features\t: fp asimd evtstrm\nModel\t\t: Raspberry Pi 4 Model B\n",
            "aarch64",
            Processor("Raspberry Pi 4 Model B", ""),
        ),
        # an emulated ARM machine shows the flags of the x86-64 one below it
        ("model name\t: Xeon\nflags\t\t: avx512_vnni\n", "aarch64", Processor("Xeon", "")),
    ),
)
def test_a_cpu_with_exact_products_is_known_by_its_flags(
    text: str, machine: str, expected: Processor
) -> None:
    with mock.patch("platform.processor", return_value=""):
        assert processor.described(text, machine) == expected
    assert expected.weight_bits == (8 if expected.dot_product else 7)


def largest_sum(weight: int) -> float:
    """512 products of 255 and a weight, by ONNX Runtime's int8 kernel on this machine."""
    tensors = {
        "one": np.float32(1),
        "x0": np.uint8(0),
        "w0": np.int8(0),
        "scale": np.float32(512 * 255),
        "weights": np.full((512, 16), weight, np.int8),
    }
    names = ["x", "one", "x0", "weights", "one", "w0", "scale", "x0"]
    graph = helper.make_graph(
        [helper.make_node("QLinearMatMul", names, ["y"])],
        "sum",
        [helper.make_tensor_value_info("x", TensorProto.UINT8, [16, 512])],
        [helper.make_tensor_value_info("y", TensorProto.UINT8, [16, 16])],
        [numpy_helper.from_array(np.asarray(value), key) for key, value in tensors.items()],
    )
    opset = [helper.make_opsetid("", 13)]
    model = helper.make_model(graph, opset_imports=opset, ir_version=7)
    (result,) = operators.session(model).run(None, {"x": np.full((16, 512), 255, np.uint8)})
    return float(result[0, 0])


def test_the_flags_say_what_onnx_runtime_computes_on_this_machine() -> None:
    assert largest_sum(64) == 64
    exact = largest_sum(127) == 127
    is_arm = processor.os.uname().machine == "aarch64"
    assert exact or is_arm or not processor.this().dot_product
    assert processor.this().dot_product or is_arm or not exact


# ---- bits ----------------------------------------------------------------------------------------


def largest_weight(path: Path) -> int:
    """The largest magnitude among the int8 weights of a model."""
    tensors = onnx.load(str(path)).graph.initializer
    arrays = [numpy_helper.to_array(tensor) for tensor in tensors]
    weights = [array for array in arrays if array.dtype == np.int8 and array.ndim > 1]
    assert len(weights) > 15
    return max(int(np.abs(array.astype(int)).max()) for array in weights)


@pytest.mark.slow
def test_a_way_whose_weights_do_not_keep_to_their_bits_is_not_taken(
    trained: Path, tmp_path: Path
) -> None:
    """As ONNX Runtime 1.14, which ignores 7 bits with a scale per tensor."""
    make = Quantiser.make

    def ignore_bits(self: Quantiser, variant: Variant, left: Sequence[str] = ()) -> Any:
        bits = 8 if variant.scales == "tensor" else variant.bits
        return make(self, variant._replace(bits=bits), left)

    with mock.patch.object(Quantiser, "make", ignore_bits):
        words = ("--quant-bits", 7, "--quant-ranges", "minmax", "--images", 8)
        done = quantise(trained, tmp_path, "int8", *words)
        assert done.returncode == 0, done.stderr
        assert "weights of 7 bits, a scale per channel, ranges by minmax" in done.stdout
        done = quantise(trained, tmp_path, "other", *words, "--quant-scales", "tensor")
    assert done.returncode == 1
    assert "cannot make weights of 7 bits with a scale per tensor" in done.stderr


@pytest.mark.slow
def test_weights_of_seven_bits_stay_within_64(models: Path) -> None:
    assert largest_weight(models / "seven.onnx") == 64
    assert largest_weight(models / "eight.onnx") == 127
    for name, bits in (("seven", 7), ("eight", 8)):
        assert record.read(str(models / f"{name}.onnx")).notes["weight_bits"] == str(bits)
        assert json.loads((models / f"{name}.json").read_text())["weight_bits"] == bits


@pytest.mark.slow
def test_a_cpu_without_exact_products_gets_seven_bits_and_is_told(
    trained: Path, tmp_path: Path
) -> None:
    with on(WITHOUT):
        done = quantise(trained, tmp_path, "default", "--images", 8, *PINNED)
        asked = quantise(trained, tmp_path, "asked", "--images", 8, *PINNED, "--quant-bits", 8)
    assert "weights of 7 bits; this CPU has no VNNI" in done.stdout and not done.stderr
    assert "weights of 8 bits; this CPU has no VNNI" in asked.stdout
    assert "warning: this int8 model has weights of 8 bits, and this CPU (CPU two)" in asked.stderr
    with on(WITH):
        done = quantise(trained, tmp_path, "default", "--images", 8, *PINNED)
    assert "up to date" not in done.stdout, "another CPU quantises again"
    assert "weights of 8 bits; this CPU adds products exactly (avx512_vnni)" in done.stdout


@pytest.mark.slow
def test_another_cpu_is_warned_of_a_model_that_it_does_not_compute_exactly(
    trained: Path, models: Path, tmp_path: Path
) -> None:
    image = trained / "in" / "i1.bin"
    said: Dict[str, str] = {}
    for cpu in (WITH, WITHOUT):
        for name in ("eight", "seven"):
            words = ("--model", models / f"{name}.onnx", "--input", image)
            with on(cpu):
                done = start_here(infer_onnx.main, {}, tmp_path, "infer_onnx.py", *words)
            assert done.returncode == 0, done.stderr
            said[f"{cpu.name} {name}"] = done.stderr
    assert "its sums may saturate" in said.pop("CPU two eight")
    assert set(said.values()) == {""}


# ---- accuracy, and other runtimes ----------------------------------------------------------------


def top1(scores: np.ndarray) -> float:
    """Per cent of the unseen images that get their class."""
    return 100 * float(np.mean(scores.argmax(1) == draw(IMAGES, UNSEEN).labels))


def exact_outputs(path: Path, images: np.ndarray) -> np.ndarray:
    """The model as its file says it, operator by operator in float32: nothing is fused."""
    import onnxruntime

    settings = onnxruntime.SessionOptions()
    settings.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(str(path), settings, providers=["CPUExecutionProvider"])
    (result,) = session.run(None, {"image": images})
    return np.asarray(result)


@pytest.mark.slow
def test_int8_answers_as_float32_and_as_the_file_computed_exactly(
    trained: Path, models: Path
) -> None:
    images = draw(IMAGES, UNSEEN).images
    float32 = onnx_outputs(trained / "tresnet.onnx", images)[0]
    assert top1(float32) > 75, "the network has learned its shapes"
    for name in ("eight", "seven"):
        exact = exact_outputs(models / f"{name}.onnx", images)
        assert abs(top1(exact) - top1(float32)) <= 2
        if name == "seven" or processor.this().dot_product:
            int8 = onnx_outputs(models / f"{name}.onnx", images)[0]
            assert np.mean(int8.argmax(1) == exact.argmax(1)) >= 0.98
            assert min(map(cosine_similarity, int8, exact)) > 0.995


@pytest.mark.slow
def test_openvino_runs_the_int8_file_with_the_same_answers(models: Path) -> None:
    openvino = pytest.importorskip("openvino", reason="OpenVINO is not installed")
    images = draw(IMAGES, UNSEEN).images
    for name in ("eight", "seven"):
        core = openvino.Core()
        compiled = core.compile_model(str(models / f"{name}.onnx"), "CPU")
        scores = np.asarray(compiled([images])[0])
        exact = exact_outputs(models / f"{name}.onnx", images)
        assert np.mean(scores.argmax(1) == exact.argmax(1)) >= 0.98
        assert abs(top1(scores) - top1(exact)) <= 1


# ---- the ways ------------------------------------------------------------------------------------

CHANNEL, TENSOR = Variant(8, "channel", "minmax"), Variant(8, "tensor", "minmax")
ENTROPY = Variant(8, "channel", "entropy")


def speed(channel: List[float], tensor: List[float]) -> Speed:
    return Speed(8, {"channel": channel, "tensor": tensor})


def test_of_the_ways_within_the_best_ones_interval_the_fastest_is_taken() -> None:
    rows = [Tried(CHANNEL, 198, 0.999), Tried(TENSOR, 195, 0.998), Tried(ENTROPY, 150, 0.9999)]
    alike = speed([100, 101, 99], [100, 99, 101])
    faster = speed([100, 101, 99], [110, 112, 109])
    assert calibration.choose(rows, 200, alike).variant == CHANNEL, "by its cosine"
    assert calibration.choose(rows, 200, faster).variant == TENSOR
    once = speed([100, 101, 99], [110, 112, 98])
    assert calibration.choose(rows, 200, once).variant == CHANNEL, "one round says otherwise"
    rows[1] = Tried(TENSOR, 180, 0.998)
    assert calibration.choose(rows, 200, faster).variant == CHANNEL, "90 % is not within 99 %'s"
    lines = calibration.explain(rows, rows[0], 200, faster)
    assert len(lines) == 3
    assert lines[0].endswith("the same Top-1 as float32 for 75.00 to 99.00 % of them")
    assert lines[2].startswith("why: 1 way within the interval") and "but not among" in lines[2]


@pytest.mark.slow
def test_the_trial_says_in_three_lines_what_it_took(trained: Path, tmp_path: Path) -> None:
    done = quantise(trained, tmp_path, "int8", "--images", 20, "--quant-scales", "channel")
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "int8.json").read_text())
    rows = {(row["bits"], row["scales"], row["ranges"]): row for row in report["tried"]}
    bits = (8, 7) if processor.this().dot_product else (7,)
    ranges = ("minmax", "entropy", "percentile")
    assert set(rows) == set(itertools.product(bits, ("channel",), ranges))
    taken = rows[report["weight_bits"], report["scales"], report["ranges"]]
    assert report["trial_images"] == 200 and taken["agreement"] >= 190
    lines = done.stdout.splitlines()
    assert lines[0].startswith(f"int8 was tried in {len(rows)} ways on 200 images")
    assert lines[1].startswith("taken: weights of ") and lines[2].startswith("why: ")


def test_a_models_speed_is_measured_in_turns() -> None:
    order: List[str] = []

    def logits_of(model: str) -> Any:
        return lambda images: order.append(model)

    with mock.patch.object(operators, "logits_of", logits_of), mock.patch.object(
        calibration, "ROUND", 0
    ):
        measured = calibration.measure({"a": "a", "b": "b"}, np.zeros((4, 3, 8, 8)))  # type: ignore
    assert order == ["a", "a", "b", "b"] + ["a", "b"] * calibration.ROUNDS
    assert measured.batch_size == 4 and len(measured.ratios("a", "b")) == calibration.ROUNDS


@pytest.mark.slow
def test_a_calibration_runs_once_for_all_models_that_need_it(trained: Path) -> None:
    model = onnx_file.load(str(trained / "tresnet.onnx"))
    described = onnx_file.describe(str(trained / "tresnet.onnx"))
    sample = quantisation.input_of(described, None, 1)
    quantiser = Quantiser(model, [str(trained / "in" / "i1.bin")], sample)
    first = quantiser.make(CHANNEL)
    with mock.patch.object(quantiser, "run_calibration", side_effect=AssertionError):
        again = quantiser.make(CHANNEL)
        quantiser.make(TENSOR, left=["head.fc"])
    assert first.SerializeToString() == again.SerializeToString()


@pytest.mark.slow
def test_the_time_left_is_estimated_without_the_set_up(trained: Path) -> None:
    from onnxruntime.quantization import calibrate

    events: List[str] = []
    create = calibrate.create_calibrator

    class Recorder(progress.Bar):
        def __init__(self, what: str, total: float, *more: Any, **settings: Any) -> None:
            events.append(f"{what}: {total}")
            super().__init__(what, total, *more, **settings)

        def advance(self, count: float = 1) -> None:
            events.append(f"{count} more")

    def set_up(*words: Any, **settings: Any) -> Any:
        events.append("set-up")
        return create(*words, **settings)

    model = onnx_file.load(str(trained / "tresnet.onnx"))
    described = onnx_file.describe(str(trained / "tresnet.onnx"))
    paths = [str(trained / "in" / f"i{number}.bin") for number in range(1, 7)]
    with mock.patch.object(progress, "Bar", Recorder), mock.patch.object(
        calibrate, "create_calibrator", set_up
    ):
        Quantiser(model, paths, quantisation.input_of(described, None, 1)).calibrate("minmax")
        quantisation.answers(model, paths, quantisation.input_of(described, None, 4), "int8")
    calibration_events = ["set-up", "calibrating (minmax): 6", "4 more", "2 more"]
    assert events == [*calibration_events, "int8: 6", "4 more", "2 more"]


# ---- the promise ---------------------------------------------------------------------------------


def test_with_a_thousand_images_one_half_chooses_and_the_other_one_judges() -> None:
    images = 1200
    right = np.ones(images, bool)
    is_even = np.arange(images) % 2 == 0

    def judge(back: List[str]) -> np.ndarray:
        """Wrong for 60 of the choosing half until two layers are back, for 6 of the judging one."""
        lost = 60 if len(back) < 2 else 0
        after = right.copy()
        after[np.flatnonzero(is_even)[:lost]] = False
        after[np.flatnonzero(~is_even)[:6]] = False
        return after

    cost = {"a": 0.1, "b": 0.4, "c": 0.2}
    said: List[str] = []
    report = quantisation.keep_promise(1.0, right, judge, lambda: cost, said.append)
    assert report["drop"] == 1.0 and (report["images"], report["chosen_on"]) == (600, 600)
    assert [row["drop"] for row in report["rounds"]] == [10.0, 10.0, 0.0]
    assert report["looks"] == 1 and report["held"]
    lone = quantisation.paired_drop(right[~is_even], judge([])[~is_even])
    assert report["interval"][1] > lone.high, "it was looked at until it was small enough"
    assert said[1].startswith("int8 with 1 layer put back to float loses 10.00 points of Top-1 (")


@pytest.mark.slow
def test_the_images_that_judge_calibrate_nothing(trained: Path, tmp_path: Path) -> None:
    words = ["--calibrate", str(trained / "in"), "--labels", str(trained / "labels.txt")]
    arguments = quantisation.parser("", 100).parse_args(
        [str(trained / "tresnet.onnx"), str(tmp_path / "a.onnx"), *words, "--max-drop", "1"]
    )
    with mock.patch.object(quantisation, "LEAST_FOR_HALVES", 200):
        task = quantisation.Task(quantize_onnx.__file__, arguments, 40)
        judging = quantisation.halves(len(task.paths)).judging
    judges = {path for path, is_judge in zip(task.paths, judging) if is_judge}
    assert len(judges) == 150 and not judges.intersection([*task.chosen, *task.tried])
    assert len(task.chosen) == 100 and len(task.tried) == 40
    assert not set(task.chosen).intersection(task.tried), "there are enough other images"


def test_a_gain_and_several_groups_are_said_in_words() -> None:
    names = ["body.conv1", quantisation.OTHERS]
    assert quantisation.words_of(names) == "1 layer and all other operators"
    assert quantisation.words_of(["a", "b"]) == "2 layers"
    assert quantisation.change_words(-0.07) == "gains 0.07 points of Top-1"
    right = np.array([True] * 50 + [False] * 50)
    gained = quantisation.paired_drop(right, right | (np.arange(100) == 99))
    assert str(gained).startswith("gains 1.00 points of Top-1 (95 % interval of the loss ")


# ---- what is said of it --------------------------------------------------------------------------

REPORT = {
    "put_back": [{"name": "head.fc", "cost": 0.25}],
    "held": True,
    "drop": -0.07,
    "max_drop": 0.5,
    "interval": [-0.4, 0.3],
    "images": 720,
    "weights": "weights of 7 bits",
    "weight_bits": 7,
    "speed": {
        "batch_size": 8,
        "int8": 90.0,
        "float32": 100.0,
        "ratio": 0.9,
        "spread": [0.85, 0.95],
    },
}


def test_the_summary_says_a_gain_and_warns_of_a_ratio_below_1(tmp_path: Path) -> None:
    (tmp_path / "m.json").write_text(json.dumps(REPORT))
    model = str(tmp_path / "m.onnx")
    assert summary.put_back(model) == [
        (
            "int8 gains",
            "0.07 points of Top-1 against float32 (95 % interval of the loss -0.40 to 0.30, "
            "720 images), --max-drop 0.5",
        ),
        ("put back", "head.fc (alone it costs 2.5e-01 of the cosine)"),
    ]
    assert summary.int8_speed(model, "cpu", 50, 100) == [
        ("int8", "weights of 7 bits"),
        (
            "speed",
            "90.0 images/s, float32 100.0: 0.90 times as fast (0.85 to 0.95), measured in turns "
            "at batch size 8",
        ),
        ("WARNING", "int8 is slower than float32 on this CPU: use float32"),
    ]
    (tmp_path / "m.json").write_text(json.dumps({"put_back": []}))
    words = "100.0 images/s, float16 50.0 (one pass each; --tune measures them in turns)"
    assert summary.int8_speed(model, "ascend", 50, 100) == [("speed", words)]
    stopped = summary.int8_speed(model, "ascend", 0, 100)
    assert stopped == [("speed", "not measured: nothing was left to infer; --force measures it")]


def test_the_page_says_what_int8_costs_and_how_fast_it_is() -> None:
    parts: Dict[str, Any] = {"tresnet_int8": REPORT}
    assert report.about_int8(parts, ENGLISH) == [
        ("int8", "weights of 7 bits"),
        (
            "speed",
            "90.0 images/s, float32 100: 0.90 times as fast (0.85 to 0.95), measured in turns",
        ),
        (
            "--max-drop 0.5",
            "gains 0.07 points of Top-1 (95 % interval of the loss -0.40 to 0.30); put back: "
            "head.fc",
        ),
    ]
    assert report.is_int8_slower(parts) and not report.is_int8_slower({"tresnet_int8": {}})
    assert report.about_int8({"tresnet_int8": {}}, ENGLISH) == []


def test_a_figure_of_imagenet_is_not_for_twelve_classes() -> None:
    for classes in (1000, 1001):
        published.check_classes("tresnet_m.miil_in1k", classes)
    with pytest.raises(Refusal) as refused:
        published.check_classes("tresnet_m.miil_in1k", 12)
    assert "is about ImageNet's 1,000 classes, but the network has 12" in str(refused.value)


# ---- models that nobody can run ------------------------------------------------------------------


@pytest.mark.slow
def test_a_model_that_asks_for_terabytes_is_refused_in_one_sentence(tmp_path: Path) -> None:
    """A constant of 4 TB, which a file of 300 bytes can ask for."""
    shape = numpy_helper.from_array(np.array([1 << 20, 1 << 20], np.int64), "shape")
    nodes = [
        helper.make_node("ConstantOfShape", ["shape"], ["huge"], name="huge"),
        helper.make_node("ReduceMax", ["huge"], ["largest"], keepdims=0, name="largest"),
        helper.make_node("Conv", ["image", "w"], ["conv"], name="conv"),
        helper.make_node("GlobalAveragePool", ["conv"], ["pool"], name="pool"),
        helper.make_node("Flatten", ["pool"], ["flat"], name="flat"),
        helper.make_node("Add", ["flat", "largest"], ["class"], name="add"),
    ]
    weights = numpy_helper.from_array(np.ones((2, 3, 3, 3), np.float32), "w")
    image = helper.make_tensor_value_info("image", 1, ["batch", 3, 64, 64])
    scores = helper.make_tensor_value_info("class", 1, ["batch", 2])
    graph = helper.make_graph(nodes, "net", [image], [scores], [shape, weights])
    opset = [helper.make_opsetid("", 11)]
    model = tmp_path / "huge.onnx"
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=6), str(model))
    image_file = tmp_path / "a.bin"
    np.zeros((3, 64, 64), np.float32).tofile(str(image_file))
    commands: List[List[object]] = [
        ["infer_onnx.py", "--model", model, "--input", image_file],
        ["quantize_onnx.py", model, tmp_path / "int8.onnx", "--calibrate", image_file],
    ]
    for script, *words in commands:
        said = refusal(f"scripts/{script}", *words)
        assert said == f"{script}: {NO_MEMORY}\n"
