"""The patch and the export: lineages and namings, the graph, what is refused."""

import argparse
import functools
import os
import pickle
import shutil
import struct
import subprocess
import sys
import zipfile
from collections import Counter, OrderedDict
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List

from common.core import cli, record
from common.core.names import STEMS
from common.model import graph, network, onnx_file
from common.model.checkpoint import Tensors, load_checkpoint
from common.model.graph import build_model
from common.model.network import Recognised, create_network, load_network, name_today, recognise

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from ascend.helpers import onnx_scores
from conftest import (
    GOLDEN,
    ROOT,
    SMALL,
    copy_products,
    refusal,
    run_here,
    sha256,
    small_network,
)
from fill import fill
from make_sample import load_images
from records import change_recipe, change_rows, rows_of

import TResNet_pth2onnx as export

pytestmark = pytest.mark.slow
VARIANTS = ("tresnet_m", "tresnet_l", "tresnet_xl")
ALLOWED = set(
    "Conv LeakyRelu Relu Add Mul Sigmoid GlobalAveragePool AveragePool Flatten Gemm".split()
)
NODES = {"tresnet_m": 256, "tresnet_l": 369, "tresnet_xl": 447}
REFLECTED = 3  # blurs, each with two times Slice and Concat


@pytest.fixture(scope="module")
def images(photos: Path) -> np.ndarray:
    """The sample photos in file-name order, float32 [20, 3, 224, 224].

    GOLDEN_PHOTOS takes fewer, for a machine that is emulated.
    """
    count = int(os.environ.get("GOLDEN_PHOTOS", "20"))
    return load_images(sorted(map(str, photos.iterdir()))[:count])


class Weights(Dict[str, Tensors]):
    """{variant: the state dict of the golden logits, timm 0.4.5 names}, made when it is needed."""

    def __missing__(self, variant: str) -> Tensors:
        self[variant] = fill(create_network(variant, 1000).state_dict())
        return self[variant]


@pytest.fixture(scope="module")
def weights() -> Weights:
    return Weights()


@pytest.fixture(scope="module")
def networks(weights: Weights) -> Callable[[str, str], torch.nn.Module]:
    """A function (variant, lineage) -> the network with those weights, which nobody may change.

    It keeps the last two.
    """

    @functools.lru_cache(2)
    def loaded(variant: str, lineage: str) -> torch.nn.Module:
        tensors = weights[variant] if lineage == "ascend" else untracked(weights[variant])
        return load_network(tensors, "x.pth", Recognised(variant, 1000, lineage, ""))

    return loaded


@pytest.fixture(autouse=True)
def one_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    """One batch size proves an export here; the chain's tests prove with all."""
    monkeypatch.setattr(export, "VERIFIED_BATCHES", (1,))


@pytest.fixture
def state() -> Iterator[Tensors]:
    """The state dict of a small_network(), ascend lineage, which exists while the test runs."""
    with small_network():
        yield fill(network.create_network("tresnet_m", 1000).state_dict())


@pytest.fixture
def small(state: Tensors, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`state` as a bare checkpoint."""
    path = tmp_path_factory.mktemp("checkpoint") / "small.pth"
    torch.save(state, path)
    return path


def untracked(state: Dict[str, torch.Tensor]) -> Dict[str, torch.Tensor]:
    """As InplaceABN saves it."""
    return OrderedDict(
        (name, tensor) for name, tensor in state.items() if not name.endswith("num_batches_tracked")
    )


def today(state: Dict[str, torch.Tensor]) -> Dict[str, torch.Tensor]:
    """As timm 0.8 and newer name the official weights, the absolute value taken."""
    norms = {
        name[: -len("running_var")] + "weight" for name in state if name.endswith("running_var")
    }
    return OrderedDict(
        (name_today(name), tensor.abs() + 1e-5 if name in norms else tensor)
        for name, tensor in untracked(state).items()
    )


def save_safetensors(path: Path, state: Dict[str, torch.Tensor], dtype: str = "F32") -> None:
    """Write a .safetensors file by its package, as float32, float16 or bfloat16."""
    if sys.version_info < (3, 8):
        pytest.skip("the package's writer needs a later PyTorch than 1.6")
    import safetensors.torch

    kind = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}[dtype]
    tensors = {name: tensor.to(kind).contiguous() for name, tensor in state.items()}
    safetensors.torch.save_file(tensors, str(path), {"format": "pt"})


def export_small(checkpoint: Path, folder: Path, *options: object) -> onnx.ModelProto:
    """Export a checkpoint for 64 pixels to network.onnx in a folder; returns the model."""
    run_here(export.main, checkpoint, folder / "network.onnx", "--img-size", SMALL, *options)
    return onnx.load(str(folder / "network.onnx"))


# ---- the patch -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "tool", (["patch", "--fuzz=0", "-p1", "-i"], ["git", "apply", "-p1"]), ids=lambda tool: tool[0]
)
def test_the_patch_applies_to_the_unpatched_source_without_fuzz(
    tool: List[str], tmp_path: Path
) -> None:
    if not shutil.which(tool[0]):
        pytest.skip(f"{tool[0]} is not installed")
    source = tmp_path / "source"
    shutil.copytree(str(ROOT / "pytorch-image-models"), str(source))
    (source / ".patched-with").unlink()
    environment = dict(os.environ, GIT_CEILING_DIRECTORIES=str(tmp_path))
    subprocess.run(
        ["git", "apply", "-p1", "--reverse", str(ROOT / "TResNet.patch")],
        cwd=str(source),
        env=environment,
        check=True,
    )
    assert "InplaceAbn(nf" in (source / "timm/models/tresnet.py").read_text()
    done = subprocess.run(
        [*tool, str(ROOT / "TResNet.patch")],
        cwd=str(source),
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    assert done.returncode == 0 and b"fuzz" not in done.stdout and b"offset" not in done.stdout, (
        done.stdout
    )
    patched = ROOT / "pytorch-image-models/timm/models/tresnet.py"
    assert (source / "timm/models/tresnet.py").read_bytes() == patched.read_bytes()


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_patched_network_has_the_names_and_logits_of_the_original_environment(
    variant: str, networks: Any, images: np.ndarray
) -> None:
    network = networks(variant, "ascend")
    tensors = [
        f"{name} {str(tensor.dtype)[6:]} {list(tensor.shape)}"
        for name, tensor in network.state_dict().items()
    ]
    assert tensors == (GOLDEN / f"{variant}.keys.txt").read_text().splitlines()
    expected = np.load(str(GOLDEN / f"{variant}.ascend.npy"))[: len(images)]
    with torch.no_grad():
        logits = network(torch.from_numpy(images[: len(expected)])).numpy()
    assert np.abs(logits - expected).max() <= 1e-4


# ---- every lineage and naming, through the ONNX file ---------------------------------------------

FORMS = {
    "ascend training checkpoint": (
        "ascend",
        lambda state: {
            "epoch": 3,
            "arch": None,
            "metric": np.float64(77.5),
            "args": argparse.Namespace(lr=0.1),
            "state_dict": OrderedDict(("module." + name, t) for name, t in state.items()),
        },
    ),
    "miil bare, timm 0.4.5 names": ("miil", untracked),
    "miil's own repository": ("miil", lambda state: {"model": untracked(state)}),
    "timm 0.8 names": ("miil", today),
}


@pytest.mark.parametrize(
    "variant, form",
    [
        *(("tresnet_m", form) for form in FORMS),
        ("tresnet_l", "timm 0.8 names"),
        ("tresnet_xl", "ascend training checkpoint"),
    ],
)
def test_golden_logits_through_the_onnx_file(
    variant: str,
    form: str,
    weights: Any,
    images: np.ndarray,
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
) -> None:
    lineage, wrap = FORMS[form]
    checkpoint = wrap(weights[variant])
    if "arch" in checkpoint:
        checkpoint["arch"] = variant
    torch.save(checkpoint, tmp_path / "checkpoint.pth.tar")
    run_here(export.main, tmp_path / "checkpoint.pth.tar", tmp_path / "network.onnx")
    assert f"{variant}, 1000 classes, {lineage} lineage" in capsys.readouterr().out
    expected = np.load(str(GOLDEN / f"{variant}.{lineage}.npy"))[: min(4, len(images))]
    session = onnxruntime.InferenceSession(
        str(tmp_path / "network.onnx"), providers=["CPUExecutionProvider"]
    )
    (logits,) = session.run(None, {"image": images[: len(expected)]})
    assert np.abs(logits - expected).max() <= 1e-4
    shutil.rmtree(str(tmp_path))  # a gigabyte for all of these


@pytest.mark.parametrize("dtype, tolerance", (("F32", 0), ("F16", 2e-3), ("BF16", 2e-2)))
def test_safetensors_are_read_in_every_precision(
    dtype: str, tolerance: float, state: Tensors, tmp_path: Path
) -> None:
    state = today(state)
    save_safetensors(tmp_path / "weights.safetensors", state, dtype)
    read = load_checkpoint(str(tmp_path / "weights.safetensors"))
    assert list(read) == sorted(state)
    for name, tensor in state.items():
        assert read[name].dtype in (torch.float32, torch.float16)
        scale = float(tensor.abs().max())
        assert float((read[name].float() - tensor.float()).abs().max()) <= tolerance * scale


def test_a_safetensors_file_and_half_precision_are_exported(
    state: Tensors, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    save_safetensors(tmp_path / "half.safetensors", today(state), "F16")
    export_small(tmp_path / "half.safetensors", tmp_path)
    output = capsys.readouterr().out
    assert "tresnet_m, 1000 classes, miil lineage, named as by timm 0.8 or newer" in output
    assert "verified: ONNX Runtime differs from PyTorch by at most" in output


def test_averaged_weights_are_taken_only_when_asked_for(
    state: Tensors, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    averaged = OrderedDict(state, **{"head.fc.bias": torch.full_like(state["head.fc.bias"], 7.0)})
    torch.save({"state_dict": state, "state_dict_ema": averaged}, tmp_path / "both.pth")
    biases = {}
    for options in ((), ("--ema",)):
        weights = export_small(tmp_path / "both.pth", tmp_path, *options).graph.initializer
        (bias,) = [weight for weight in weights if weight.name == "head.fc.bias"]
        biases[options] = onnx.numpy_helper.to_array(bias)
    assert np.array_equal(biases[()], state["head.fc.bias"].numpy())
    assert set(biases[("--ema",)]) == {7.0}
    assert "it also holds averaged weights" in capsys.readouterr().out


def test_any_number_of_classes_and_a_larger_image(state: Tensors, tmp_path: Path) -> None:
    head = {"head.fc.weight": state["head.fc.weight"][:7], "head.fc.bias": torch.rand(7)}
    torch.save(OrderedDict(state, **head), tmp_path / "tuned.pth")
    run_here(export.main, tmp_path / "tuned.pth", tmp_path / "tuned.onnx", "--img-size", 448)
    model = onnx.load(str(tmp_path / "tuned.onnx"))
    assert shape_of(model.graph.input[0]) == ["batch", 3, 448, 448]
    assert shape_of(model.graph.output[0]) == ["batch", 7]
    metadata = onnx_file.describe(str(tmp_path / "tuned.onnx"))["metadata"]
    keys = ("variant", "num_classes", "lineage", "checkpoint_sha256")
    assert [metadata[key] for key in keys] == [
        "tresnet_m",
        "7",
        "ascend",
        sha256(tmp_path / "tuned.pth"),
    ]
    properties = {entry.key: entry.value for entry in model.metadata_props}
    assert properties["version"] == cli.VERSION and metadata.items() <= properties.items()
    notes = record.read(str(tmp_path / "tuned.onnx")).notes
    assert notes["num_classes"] == "7" and notes["evaluation"]["img_size"] == 448


@pytest.mark.parametrize("lineage_is_known", (True, False))
def test_the_record_and_the_file_say_whether_the_lineage_is_known(
    lineage_is_known: bool, state: Tensors, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    torch.save(state if lineage_is_known else untracked(state), tmp_path / "x.pth")
    model = export_small(tmp_path / "x.pth", tmp_path)
    warning = "x.pth shows the lineage of its weights; miil is assumed"
    assert (warning in capsys.readouterr().err) == (not lineage_is_known)
    notes = record.read(str(tmp_path / "network.onnx")).notes
    assert notes["lineage_told"] is lineage_is_known
    (text,) = [entry.value for entry in model.metadata_props if entry.key == "lineage_told"]
    assert text == str(lineage_is_known)


def test_for_ascend_weights_without_counters_the_user_says_the_lineage(state: Tensors) -> None:
    tensors = untracked(state)
    assert recognise(tensors, "x.pth", None, None, None).lineage == "miil"
    assert recognise(tensors, "x.pth", None, None, "ascend").lineage == "ascend"


# ---- the graph -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def models(networks: Any) -> Dict[str, onnx.ModelProto]:
    """{"tresnet_m ascend": the model at 224 pixels, …}; large weights of L and XL are left out."""
    models_by_name = {}
    for variant in VARIANTS:
        for lineage in ("ascend", "miil"):
            model = build_model(networks(variant, lineage), 224, 11)
            for weight in () if variant == "tresnet_m" else model.graph.initializer:
                if len(weight.raw_data) > 1 << 10:
                    weight.ClearField("raw_data")
            models_by_name[f"{variant} {lineage}"] = model
    return models_by_name


def shape_of(value: onnx.ValueInfoProto) -> List[Any]:
    """The sides of a tensor; the name of one that is not fixed."""
    return [side.dim_param or side.dim_value for side in value.type.tensor_type.shape.dim]


def attributes(node: onnx.NodeProto) -> Dict[str, Any]:
    return {
        attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in node.attribute
    }


def test_the_graph_has_only_operators_that_an_npu_runs_as_they_are(
    models: Dict[str, onnx.ModelProto],
) -> None:
    for name, model in models.items():
        variant, lineage = name.split()
        counts = Counter(node.op_type for node in model.graph.node)
        moved = [counts.pop(operator, 0) for operator in ("Slice", "Concat")]
        assert set(counts) == ALLOWED, name
        assert moved == [2 * REFLECTED if lineage == "miil" else 0] * 2, name
        assert sum(counts.values()) == NODES[variant], name


def test_every_operator_is_written_as_cann_takes_it_without_more_work(
    models: Dict[str, onnx.ModelProto],
) -> None:
    """According to CANN's sources.

    No auto_pad, the average without a Mul behind it, Gemm's factors 1, one set of operators.
    """
    for model in models.values():
        assert len(model.opset_import) == 1
        averages = 0
        for node in model.graph.node:
            values = attributes(node)
            assert "auto_pad" not in values
            if node.op_type == "AveragePool":
                assert values["count_include_pad"] == 1
                averages += 1
            if node.op_type == "Gemm":
                assert not {"alpha", "beta"} & set(values)
        assert averages == 3


def test_the_graph_has_no_dead_weights_and_an_old_ir(models: Dict[str, onnx.ModelProto]) -> None:
    for name, model in models.items():
        read = set().union(*(node.input for node in model.graph.node))
        computed = {node.output[0] for node in model.graph.node}
        weights = {weight.name for weight in model.graph.initializer}
        assert weights == read - computed - {"image"}, name
        assert model.ir_version <= 8, name
        assert [version.version for version in model.opset_import] == [11], name


def test_only_the_batch_of_every_shape_is_open(models: Dict[str, onnx.ModelProto]) -> None:
    for name, model in models.items():
        inferred = onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True)
        values = [*inferred.graph.value_info, *inferred.graph.output]
        shapes = {value.name: shape_of(value) for value in values}
        for node in model.graph.node:
            batch, *sides = shapes[node.output[0]]
            assert batch == "batch", (name, node.name)
            assert all(isinstance(side, int) and side > 0 for side in sides), (name, node.name)


def test_a_second_runtime_agrees(
    models: Dict[str, onnx.ModelProto], images: np.ndarray, tmp_path: Path
) -> None:
    openvino = pytest.importorskip("openvino", reason="OpenVINO has no build for this Python")
    for lineage in ("ascend", "miil"):
        path = tmp_path / f"{lineage}.onnx"
        onnx.save(models[f"tresnet_m {lineage}"], str(path))
        core = openvino.Core()
        compiled = core.compile_model(
            core.read_model(str(path)), "CPU", {"INFERENCE_PRECISION_HINT": "f32"}
        )
        logits = compiled(images[:4])[0]
        assert np.abs(logits - np.load(str(GOLDEN / f"tresnet_m.{lineage}.npy"))[:4]).max() <= 1e-3


@pytest.mark.parametrize("opset", export.OPSETS)
def test_every_opset_is_verified(opset: int, small: Path, tmp_path: Path) -> None:
    model = export_small(small, tmp_path, "--opset", opset)
    assert [version.version for version in model.opset_import] == [opset] and model.ir_version <= 8
    onnx.checker.check_model(model, full_check=True)


@pytest.mark.parametrize("lineage", ("ascend", "miil"))
@pytest.mark.parametrize("variant", VARIANTS)
def test_golden_logits_with_every_stem(
    variant: str, lineage: str, networks: Any, images: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Within 1e-5 of the largest; the miil lineage's with both ways to reflect."""
    monkeypatch.setattr(
        graph, "folded", functools.lru_cache(None)(graph.folded)
    )  # most of it is the same for all
    network = networks(variant, lineage)
    expected = np.load(str(GOLDEN / f"{variant}.{lineage}.npy"))[:1]
    for stem in STEMS:
        reflect = "pad" if stem == "space-to-depth" else "slice"
        logits = onnx_scores(
            build_model(network, 224, 11, None, stem, reflect).SerializeToString(), images[:1]
        )
        assert np.abs(logits - expected).max() <= 1e-5 * np.abs(expected).max(), stem


@pytest.mark.parametrize(
    "stem, kernels, first",
    (
        ("conv4", [[4, 4], [3, 3]], "Conv"),
        ("conv12", [[12, 12]], "Conv"),
        ("conv", [[12, 12]], "Conv"),
        ("space-to-depth", [[3, 3]], "SpaceToDepth"),
    ),
)
def test_the_stem_is_the_one_asked_for(
    stem: str, kernels: Any, first: str, small: Path, tmp_path: Path
) -> None:
    nodes = list(export_small(small, tmp_path, "--stem", stem).graph.node)
    before = nodes[: [node.op_type for node in nodes].index("LeakyRelu")]
    assert before[0].op_type == first
    convolutions = [node for node in before if node.op_type == "Conv"]
    assert [attributes(node)["kernel_shape"] for node in convolutions] == kernels


def test_reflect_padding_is_one_pad_on_request(state: Tensors, tmp_path: Path) -> None:
    torch.save(untracked(state), tmp_path / "official.pth")
    model = export_small(tmp_path / "official.pth", tmp_path, "--reflect", "pad")
    counts = Counter(node.op_type for node in model.graph.node)
    assert (counts["Pad"], counts["Slice"], counts["Concat"]) == (REFLECTED, 0, 0)


def test_a_checkpoint_of_zeros_is_refused(state: Tensors, tmp_path: Path) -> None:
    zeros = {name: torch.zeros_like(tensor) for name, tensor in state.items()}
    torch.save(zeros, tmp_path / "zeros.pth")
    with pytest.raises(cli.Refusal, match="every logit of the network is 0"):
        export_small(tmp_path / "zeros.pth", tmp_path)
    assert not (tmp_path / "network.onnx").exists()


def test_an_opset_that_cann_6_refuses_comes_with_a_warning(
    small: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    export_small(small, tmp_path, "--opset", 15)
    assert capsys.readouterr().err == ""
    export_small(small, tmp_path, "--opset", 16)
    warning = "TResNet_pth2onnx.py: CANN 6 refuses opset 16 (it reads up to 15"
    assert capsys.readouterr().err.startswith(warning)


def test_a_fixed_batch(small: Path, tmp_path: Path) -> None:
    model = export_small(small, tmp_path, "--batch-size", 3)
    assert shape_of(model.graph.input[0])[0] == 3


# ---- doing it once, and not leaving a wrong file -------------------------------------------------


def test_a_second_export_finds_the_first_unless_something_changed(
    small: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    target = tmp_path / "network.onnx"

    def run_again(*options: object) -> str:
        export_small(small, tmp_path, *options)
        return capsys.readouterr().out

    assert "verified" in run_again()
    first, stamp = target.read_bytes(), target.stat().st_mtime_ns
    assert "is up to date" in run_again() and target.stat().st_mtime_ns == stamp
    assert "verified" in run_again("--force") and target.read_bytes() == first
    assert "verified" in run_again("--opset", 13)
    target.write_bytes(first[:1000] + bytes(len(first) - 1000))
    assert "verified" in run_again() and target.read_bytes() == first


@pytest.mark.parametrize("changed", ("sources", "versions", "settings"))
def test_an_update_of_the_program_exports_again(
    changed: str, small: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    export_small(small, tmp_path)
    path = tmp_path / "network.onnx.record.jsonl"
    recipe = rows_of(path)[0]["recipe"]
    assert torch.__version__.startswith(recipe["versions"]["torch"].split("+")[0])
    assert ["TResNet.patch", sha256(ROOT / "TResNet.patch")] in recipe["settings"]
    change_recipe(path, **{changed: "0"})
    capsys.readouterr()
    export_small(small, tmp_path)
    assert "verified" in capsys.readouterr().out


def test_a_file_that_this_program_did_not_make_is_not_overwritten(
    small: Path, tmp_path: Path
) -> None:
    (tmp_path / "network.onnx").write_text("somebody's")
    for force in ((), ("--force",)):
        with pytest.raises(cli.Refusal, match="no record says that this program made it"):
            export_small(small, tmp_path, *force)
    assert (tmp_path / "network.onnx").read_text() == "somebody's"


def test_a_graph_that_differs_from_the_network_is_refused_and_not_written(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = graph.folded

    def wrong(convolution: Any, norm: Any) -> Any:
        weight, bias = right(convolution, norm)
        return weight, bias + 1e-2

    monkeypatch.setattr(graph, "folded", wrong)
    with pytest.raises(SystemExit, match="differ by .* on a batch of 1"):
        export_small(small, tmp_path)
    assert os.listdir(str(tmp_path)) == []


# ---- what is refused -----------------------------------------------------------------------------


class Evil:
    """Unpickled naively, makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self) -> Any:
        return os.mkdir, (self.path,)


def write_files_that_are_no_checkpoint(folder: Path, state: Tensors) -> Dict[str, str]:
    """Write one file per way to be unreadable; returns {file name: words of the message}."""
    torch.save({"state_dict": state, "extra": Evil(folder / "executed")}, folder / "evil_zip.pth")
    with open(folder / "evil_pickle.pth", "wb") as file:
        pickle.dump({"state_dict": Evil(folder / "executed")}, file, protocol=2)
    torch.save(state, folder / "truncated.pth")
    os.truncate(str(folder / "truncated.pth"), os.path.getsize(str(folder / "truncated.pth")) // 2)
    header = b'{"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}    '
    contents = {
        "page.pth": b"<!DOCTYPE html><html>404</html>",
        "empty.pth": b"",
        "zeros.pth": b"PK\x03\x04" + bytes(100000),
        "short.safetensors": struct.pack("<Q", 1 << 40) + b"{}",
        "outside.safetensors": struct.pack("<Q", len(header)) + header,
    }
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    with zipfile.ZipFile(str(folder / "zipped_zeros.pth"), "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(1000))
    return {
        "evil_zip.pth": "mkdir, which weights do not need",
        "evil_pickle.pth": "mkdir, which weights do not need",
        "truncated.pth": "cannot be read as a checkpoint",
        "page.pth": "is not a PyTorch checkpoint: it begins with b'<!DOCTYPE html><'",
        "empty.pth": "is not a PyTorch checkpoint",
        "zeros.pth": "cannot be read as a checkpoint",
        "zipped_zeros.pth": "holds compressed files",
        "short.safetensors": "more than the file has",
        "outside.safetensors": "cannot be read as a checkpoint",
    }


def write_checkpoints_of_other_networks(folder: Path, state: Tensors) -> Dict[str, str]:
    """Write one checkpoint per way not to fit; returns {file name: words of the message}."""

    def state_with(name: str, tensor: torch.Tensor) -> Tensors:
        return OrderedDict(state, **{name: tensor})

    without_bias = OrderedDict(state)
    del without_bias["body.layer1.0.se.fc1.bias"]
    resnet = {"conv1.weight": torch.zeros(64, 3, 7, 7), "fc.weight": torch.zeros(10, 512)}
    bottleneck = "body.layer4.0.conv3.0.weight"
    cases = {
        "no_weights.pth": ({"weights": 5, "note": "x"}, "should hold a state dict"),
        "resnet.pth": (resnet, "is not a TResNet"),
        "width_65.pth": (
            state_with("body.conv1.0.weight", torch.zeros(65, 48, 3, 3)),
            "has 65 channels",
        ),
        "nan.pth": (
            state_with("head.fc.bias", state["head.fc.bias"] * float("nan")),
            "head.fc.bias has values that are not finite",
        ),
        "variance.pth": (
            state_with("body.conv1.1.running_var", -state["body.conv1.1.running_var"]),
            "body.conv1.1.running_var has negative values, but it is a variance",
        ),
        "unexpected.pth": (state_with("head.extra", torch.zeros(3)), "head.extra is not expected"),
        "misshapen.pth": (
            state_with(bottleneck, torch.zeros(512, 256, 1, 1)),
            f"{bottleneck} has shape [512, 256, 1, 1] instead of [512, 128, 1, 1]",
        ),
        "missing.pth": (without_bias, "body.layer1.0.se.fc1.bias is missing"),
        "arch.pth": (
            {"arch": "tresnet_l", "state_dict": state},
            "says tresnet_l, but the tensors of",
        ),
        "twice.pth": (
            {"module.a": torch.zeros(1), "a": torch.zeros(1)},
            "holds some tensors twice",
        ),
    }
    for name, (checkpoint, _) in cases.items():
        torch.save(checkpoint, folder / name)
    return {name: words for name, (_, words) in cases.items()}


@pytest.mark.parametrize(
    "write_files", (write_files_that_are_no_checkpoint, write_checkpoints_of_other_networks)
)
def test_broken_and_hostile_files_are_refused_in_one_line_and_nothing_runs(
    write_files: Callable[[Path, Tensors], Dict[str, str]], state: Tensors, tmp_path: Path
) -> None:
    for name, words in write_files(tmp_path, state).items():
        with pytest.raises(cli.Refusal) as error:
            export_small(tmp_path / name, tmp_path)
        message = str(error.value)
        assert words in message and "\n" not in message, (name, message)
    assert not (tmp_path / "executed").exists(), "code in a checkpoint was executed"
    assert not list(tmp_path.glob("network.onnx*"))


def test_a_torchscript_archive_is_refused(tmp_path: Path) -> None:
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), str(tmp_path / "scripted.pt"))
    with pytest.raises(SystemExit, match="is a TorchScript archive"):
        export_small(tmp_path / "scripted.pt", tmp_path)


@pytest.mark.parametrize(
    "options, words",
    (
        (("--model", "tresnet_l"), "--model says tresnet_l, but the tensors of"),
        (("--lineage", "miil"), "--lineage miil contradicts"),
        (("--ema",), "has no averaged weights"),
    ),
)
def test_what_the_user_says_against_the_evidence_is_refused(
    options: Any, words: str, small: Path, tmp_path: Path
) -> None:
    with pytest.raises(SystemExit) as error:
        run_here(export.main, small, tmp_path / "network.onnx", *options)
    assert words in str(error.value)


@pytest.mark.parametrize(
    "arguments, status, words",
    (
        (("nowhere.pth", "x.onnx"), 1, "the checkpoint nowhere.pth does not exist"),
        ((".", "x.onnx"), 1, "the folder . should hold model.safetensors or pytorch_model.bin"),
        (("nowhere.pth", "x.pb"), 2, "'x.pb' does not end in .onnx"),
        (("nowhere.pth", "x.onnx", "--img-size", "225"), 2, "is not a multiple of 32"),
        (("nowhere.pth", "x.onnx", "--batch-size", "0"), 2, "a whole number from 1 to 4,096"),
    ),
)
def test_wrong_usage(arguments: Any, status: int, words: str, tmp_path: Path) -> None:
    assert words in refusal("TResNet_pth2onnx.py", *arguments, status=status, cwd=str(tmp_path))


def test_an_output_folder_that_is_not_there_is_named(small: Path, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="cannot be written"):
        export_small(small, tmp_path / "nowhere")


@pytest.mark.slow
def test_a_record_that_does_not_say_what_the_network_is_is_not_believed(
    small_sample: Path, small_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """Somebody else may have written it: the model is exported again."""
    copy_products(small_model, tmp_path / "copy")
    path = tmp_path / "copy" / "tresnet.onnx.record.jsonl"
    words = [small_sample / "model_best.pth.tar", path.with_name("tresnet.onnx"), "--img-size", 64]
    with small_network():
        run_here(export.main, *words)
        assert "is up to date: tresnet_m, 1000 classes" in capsys.readouterr().out
        change_rows(path, lambda rows: [row.pop("notes", None) for row in rows])
        run_here(export.main, *words)
        assert "verified: ONNX Runtime differs" in capsys.readouterr().out
        run_here(export.main, *words)
        assert "is up to date: tresnet_m, 1000 classes" in capsys.readouterr().out
