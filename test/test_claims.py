"""What a checkpoint says of itself: network, evaluation, accuracy; checkpoints from an NPU."""

import argparse
import enum
import json
import sys
import types
from collections import OrderedDict
from pathlib import Path
from typing import Any, Dict, Iterator, List
from unittest import mock

from common.core import record
from common.core.cli import Refusal
from common.data import evaluation
from common.model import checkpoint, claims, network
from common.model.checkpoint import Tensors, find_state_dict, load_checkpoint
from common.results import claimed, summary

import numpy as np
import onnx
import pytest
import torch
from ascend.helpers import onnx_scores
from conftest import SMALL, copy_products, run_here, small_network, succeed
from fill import fill
from torch.optim import swa_utils

import TResNet_pth2onnx as export

TIMM_ARGS = dict(eval_metric="top1", model_ema=False, model_ema_force_cpu=False)


def of_args(**values: Any) -> Dict[str, Any]:
    """A training checkpoint whose `args` have these values."""
    return {"args": argparse.Namespace(**values)}


def notes_of(**values: Any) -> List[str]:
    return claims.read(of_args(**values), {}, "m.pth").notes


def refusal_of(held: Any, config: Any = None) -> str:
    with pytest.raises(Refusal) as refusing:
        claims.read(held, config or {}, "m.pth")
    return refusing.value.sentence


# ---- the network and the evaluation --------------------------------------------------------------


@pytest.mark.parametrize(
    "said, pool",
    (
        ({"gp": None}, None),
        ({"gp": "avg"}, "avg"),
        ({"gp": "fast"}, "avg"),
        ({"gp": "fastmax"}, "max"),
        ({"gp": "AvgMax"}, "avgmax"),
        ({"gp": None, "model_kwargs": {"global_pool": "catavgmax"}}, "catavgmax"),
    ),
)
def test_the_global_pooling_is_what_args_say(said: Dict[str, Any], pool: Any) -> None:
    assert claims.read(of_args(**said), {}, "m.pth").pool == pool


def test_config_json_says_the_pooling_in_each_of_its_places() -> None:
    for config in (
        {"global_pool": "max"},
        {"model_args": {"global_pool": "max"}},
        {"pretrained_cfg": {"global_pool": "max"}},
    ):
        assert claims.read({}, config, "m.pth").pool == "max"


def test_a_pooling_that_nobody_knows_is_refused_unless_the_user_says_another() -> None:
    assert refusal_of(of_args(gp="gem")) == (
        "m.pth says gp = 'gem', but a global pooling of avg, max, avgmax, catavgmax is expected; "
        "give --gp if that is wrong"
    )
    assert claims.read(of_args(gp="gem"), {}, "m.pth", "max").pool == "max"
    by_option = claims.read(of_args(gp="avg"), {}, "m.pth", "max")
    assert (by_option.pool, by_option.notes) == (
        "max",
        ["gp = avg, which --gp max contradicts: the option is followed"],
    )


def test_arrays_and_tensors_among_the_options_are_numbers_too() -> None:
    said = claims.read(
        of_args(
            img_size=np.int64(96),
            mean=np.array([0.5]),
            std=torch.tensor([0.5, 0.25, 0.5]),
            in_chans=np.int64(3),
            class_map=np.zeros(3),
            model_kwargs={"drop_rate": torch.ones(2)},
            crop_mode=torch.ones(1).expand(10**12),
        ),
        {},
        "m.pth",
    )
    assert said.evaluation == {
        "img_size": 96,
        "mean": (0.5, 0.5, 0.5),
        "std": (0.5, 0.25, 0.5),
        "crop_mode": "'an array of shape [1000000000000]'",
    }


@pytest.mark.parametrize(
    "values, words",
    (
        ({"in_chans": 1}, "says in_chans = 1, but only images of 3 channels"),
        ({"input_size": [1, 224, 224]}, "says input_size = [1, 224, 224], but only images of 3"),
        ({"input_img_mode": "L"}, "says input_img_mode = 'L', but images are always read as RGB"),
    ),
)
def test_images_that_are_not_in_three_colours_are_refused(
    values: Dict[str, Any], words: str
) -> None:
    assert words in refusal_of(of_args(**values))


def test_an_image_that_is_not_square_is_refused_by_name_until_an_option_says_the_size() -> None:
    said = claims.read(of_args(input_size=[3, 256, 192], img_size=224), {}, "m.pth").evaluation
    exported = evaluation.of_fields(said)
    with pytest.raises(Refusal) as refusing:
        evaluation.resolve({}, exported, "m.pth")
    assert refusing.value.sentence == (
        "m.pth says img_size = [256, 192], but these are height and width of input_size, and only "
        "square images are supported; say --img-size"
    )
    assert evaluation.resolve({"img_size": 192}, exported, "m.pth")[0].img_size == 192


def test_input_size_goes_before_img_size_as_in_timm() -> None:
    """Source: timm/data/config.py, resolve_data_config."""
    said = claims.read(of_args(input_size=[3, 448, 448], img_size=224), {}, "m.pth").evaluation
    assert said == {"img_size": 448}


@pytest.mark.parametrize(
    "values, words",
    (
        ({"class_map": "maps/mine.txt"}, "class_map = maps/mine.txt: training numbered its class"),
        ({"dataset": "torch/image_folder"}, "torchvision numbered the class folders in text order"),
        ({"dataset": "tfds/imagenet2012"}, "the classes are numbered as in that data set"),
        ({"tta": 3}, "tta = 3: its accuracy is of so many views"),
        ({"bn_eps": 1e-3}, "bn_eps = 0.001: timm ignores it"),
        ({"bn_tf": True}, "bn_tf = True: timm ignores it"),
        ({"model_kwargs": {"norm_layer": "x"}}, "norm_layer: this program builds the network with"),
    ),
)
def test_what_this_program_does_not_follow_is_named_once(
    values: Dict[str, Any], words: str
) -> None:
    (note,) = notes_of(**values)
    assert words in note


def test_what_changes_neither_network_nor_evaluation_is_not_named() -> None:
    """Defaults of timm 0.4.5's and today's train.py, and what is for training alone."""
    harmless = dict(
        class_map="",
        dataset="",
        tta=0,
        bn_eps=None,
        bn_tf=False,
        model_kwargs={"drop_rate": 0.1},
        in_chans=None,
        input_img_mode=None,
        drop=0.2,
        smoothing=0.1,
        amp=True,
        sync_bn=True,
        channels_last=True,
        interpolation="",
        eval_metric="top1",
    )
    assert claims.read(of_args(**harmless), {}, "m.pth") == claims.Claims(
        {}, None, None, None, None, [], []
    )


def test_sizes_that_figures_may_belong_to_are_named() -> None:
    config = {"pretrained_cfg": {"input_size": [3, 224, 224], "test_input_size": [3, 288, 288]}}
    said = claims.read({}, config, "m.pth")
    assert said.evaluation == {"img_size": 224}
    assert said.notes[0].startswith("test_input_size = [3, 288, 288]: published figures may be")


# ---- the accuracy --------------------------------------------------------------------------------


def accuracies(averaged: bool = False, **held: Any) -> List[Any]:
    """(k, per cent, words, whether it is that of other weights) as the model's record has them."""
    own = held.pop("args", {})
    rows = claims.to_notes(claims.read({"args": own, **held}, {}, "").accuracies, averaged)
    return [(row["top"], row["value"], row["said"], row["of_other_weights"]) for row in rows]


@pytest.mark.parametrize(
    "held, expected",
    (
        ({"metric": np.float64(87.5), "args": TIMM_ARGS}, [(1, 87.5, "metric = 87.5", False)]),
        ({"metric": 0.5, "args": TIMM_ARGS}, [(1, 0.5, "metric = 0.5", False)]),
        (
            {"metric": 95.0, "args": dict(TIMM_ARGS, eval_metric="top5")},
            [(5, 95.0, "metric = 95", False)],
        ),
        ({"metric": 1.2, "args": dict(TIMM_ARGS, eval_metric="loss")}, []),
        (
            {"metric": 80.0, "args": dict(TIMM_ARGS, model_ema=True)},
            [(1, 80.0, "metric = 80", True)],
        ),
        ({"best_acc1": torch.tensor(76.25)}, [(1, 76.25, "best_acc1 = 76.25", False)]),
        ({"best_acc1": torch.tensor([76.25])}, [(1, 76.25, "best_acc1 = 76.25", False)]),
        ({"best_prec1": 0.7625}, [(1, 76.25, "best_prec1 = 0.7625", False)]),
        ({"max_accuracy": 81, "acc@5": 95.5}, [(1, 81.0, "max_accuracy = 81", False),
                                               (5, 95.5, "acc@5 = 95.5", False)]),
        ({"metrics": {"val_acc": 0.5}}, [(1, 50.0, "val_acc = 0.5", False)]),
        (
            {"callbacks": {"x": {"monitor": "val_acc", "best_model_score": torch.tensor(0.5)}}},
            [(1, 50.0, "best_val_acc = 0.5", False)],
        ),
        ({"metric": float("nan"), "acc1": True, "train_acc": 99.0, "loss": 1.0, "acc": 101}, []),
        ({"metric": None, "best_acc": "90", "acc5": torch.ones(2), "best_acc1": 0}, []),
    ),
)  # fmt: skip
def test_the_accuracy_that_the_checkpoint_says_it_had(
    held: Dict[str, Any], expected: List[Any]
) -> None:
    assert accuracies(**held) == expected


def test_of_several_accuracies_that_of_the_weights_taken_counts() -> None:
    held: Dict[str, Any] = dict(best_acc1=80.0, acc1=78.0, metric_ema=81.0)
    assert accuracies(**held) == [(1, 78.0, "acc1 = 78", False)]
    assert accuracies(averaged=True, **held) == [(1, 81.0, "metric_ema = 81", False)]
    held = dict(best_metric_ema=82.0, acc1=78.0)
    assert accuracies(averaged=True, **held) == [(1, 82.0, "best_metric_ema = 82", False)]


def report_of(right: int, images: int) -> Dict[str, Any]:
    return {"hits": [right] * 5, "counts": {"evaluated": images}}


def test_the_difference_and_whether_the_interval_explains_it() -> None:
    """Wilson's interval of 16 of 20 as SciPy gives it: 58.398 to 91.934 %."""
    notes = {"claimed": claims.to_notes(claims.accuracies_of({"metric": 87.5}, TIMM_ARGS), False)}
    (row,) = claimed.compare(notes, report_of(16, 20))
    assert row.within and row.words == (
        "Top-1: the checkpoint says 87.50 % (metric = 87.5), measured 80.00 % on 20 images: -7.50 "
        "points, which chance explains (95 % interval 58.40 to 91.93 %)"
    )
    (row,) = claimed.compare(notes, report_of(800, 1000))
    assert not row.within and row.words.endswith(
        "measured 80.00 % on 1000 images: -7.50 points, which chance does not explain (95 % "
        "interval 77.41 to 82.36 %); compare images, labels, preparation and lineage with those of "
        "training"
    )
    assert not claimed.compare(notes, report_of(950, 1000))[0].within, "better is strange as well"
    assert claimed.compare(notes, {"hits": [], "counts": {"evaluated": 9}}) == [], "it is an mAP"


def test_a_record_of_somebody_else_cannot_say_nonsense() -> None:
    good = {"top": 1, "value": 80.0, "said": "x"}
    bad: List[Any] = [{}, 7, "x", dict(good, value="80"), dict(good, top=2), dict(good, value=101)]
    bad += [dict(good, said=5), dict(good, value=True), dict(good, said="a\x1b[31m")]
    assert claims.rows_of({"claimed": [*bad, good]}) == [good]
    assert claims.rows_of({"claimed": "x"}) == []
    assert claims.remarks_of({"remarks": ["a", 5, "b\n"]}) == ["a"]
    assert claims.remarks_of({"remarks": 5}) == []


@pytest.mark.slow
def test_summary_and_report_show_it_beside_the_measured_accuracy(
    small_work: Path, capsys: pytest.CaptureFixture
) -> None:
    """The sample's checkpoint says metric = 100. Wilson's interval of 20 of 20: 83.887 to 100 %."""
    model, result = str(small_work / "tresnet.onnx"), str(small_work / "result")
    summary.show(str(small_work), "cpu", model, model, result, None, (), "")
    words = (
        "Top-1: the checkpoint says 100.00 % (metric = 100), and 20 images give the same (95 % "
        "interval 83.89 to 100.00 %)"
    )
    assert f"checkpoint     {words}\n" in capsys.readouterr().out
    page = (small_work / "report.html").read_text(encoding="utf-8")
    assert words in page.replace("\u00a0", " ")


@pytest.mark.slow
def test_the_summary_says_what_may_be_wrong_with_the_accuracy(
    small_work: Path, small_sample: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """Whoever reads only the end sees the accuracy's notes: here an image without a result."""
    work = tmp_path / "work"
    copy_products(small_work, work)
    labels = tmp_path / "labels.txt"
    labels.write_text((small_sample / "val_label.txt").read_text() + "other 3\n")
    succeed("TResNet_postprocess.py", work / "result", labels, work, "acc.json")
    model, result = str(work / "tresnet.onnx"), str(work / "result")
    summary.show(str(work), "cpu", model, model, result, None, (), "")
    (note,) = json.loads((work / "acc_report.json").read_text())["notes"]
    assert "1 of 21" in note
    assert f"note           {note}\n" in capsys.readouterr().out


# ---- saved on an NPU -----------------------------------------------------------------------------


class OnNpu:
    """A tensor as torch_npu pickles it. Source: torch_npu/utils/storage.py, _reduce_ex."""

    def __init__(self, tensor: torch.Tensor, storage_format: Any) -> None:
        self.tensor, self.storage_format = tensor, storage_format

    def __reduce__(self) -> Any:
        tensor = self.tensor
        layout = (tensor.storage_offset(), tuple(tensor.size()), tensor.stride())
        rebuild = vars(sys.modules["torch_npu.utils.storage"])["_rebuild_npu_tensor"]
        more: Any = (tensor.requires_grad, OrderedDict(), self.storage_format)
        return rebuild, (tensor.storage(), *layout, *more)


@pytest.fixture
def npu_formats() -> Iterator[Any]:
    """torch_npu's Format; while the test runs, its modules can be named in a pickle."""
    names = "torch_npu torch_npu.utils torch_npu.npu torch_npu.utils.storage torch_npu.npu._format"
    modules = {name: types.ModuleType(name) for name in names.split()}

    def _rebuild_npu_tensor(*_: Any) -> None:
        raise AssertionError("nothing of torch_npu runs")

    _rebuild_npu_tensor.__module__ = "torch_npu.utils.storage"
    _rebuild_npu_tensor.__qualname__ = "_rebuild_npu_tensor"
    vars(modules["torch_npu.utils.storage"])["_rebuild_npu_tensor"] = _rebuild_npu_tensor
    formats: Any = enum.IntEnum(  # type: ignore[misc]
        "Format", {"ND": 2, "NZ": 29}, module="torch_npu.npu._format"
    )
    vars(modules["torch_npu.npu._format"])["Format"] = formats
    with mock.patch.dict(sys.modules, modules):
        yield formats


@pytest.mark.parametrize("is_zip", (True, False))
@pytest.mark.parametrize("names_globals", (checkpoint.NAMES_GLOBALS, (99, 0)))
def test_tensors_that_an_npu_saved_are_read_by_each_reader(
    names_globals: Any,
    is_zip: bool,
    npu_formats: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(checkpoint, "NAMES_GLOBALS", names_globals)
    values = torch.arange(12.0).reshape(3, 4)
    state = {
        "a": OnNpu(values.t(), npu_formats.NZ),  # with an offset and strides of its own
        "b": OnNpu(values[1:], 2),
        "c": OnNpu(values.half(), True),
    }
    path = str(tmp_path / "npu.pth")
    torch.save({"state_dict": state}, path, _use_new_zipfile_serialization=is_zip)
    read = load_checkpoint(path)["state_dict"]
    assert torch.equal(read["a"], values.t()) and torch.equal(read["b"], values[1:])
    assert torch.equal(read["c"], values.half()) and read["c"].device.type == "cpu"


def test_another_object_of_torch_npu_is_refused_with_advice_that_helps(
    npu_formats: Any, tmp_path: Path
) -> None:
    storage = sys.modules["torch_npu.utils.storage"]

    class Other:
        pass

    Other.__module__, Other.__qualname__ = "torch_npu.utils.storage", "Other"
    vars(storage)["Other"] = Other
    torch.save({"state_dict": {"a": Other()}}, str(tmp_path / "npu.pth"))
    with pytest.raises(Refusal, match=r"save only the state dict: .*tensor\.cpu\(\) for name"):
        load_checkpoint(str(tmp_path / "npu.pth"))


# ---- averaged weights, other heads ---------------------------------------------------------------


def test_the_averaged_model_of_torch_is_read_without_its_counter() -> None:
    """AveragedModel itself makes the state dict."""
    averaged = swa_utils.AveragedModel(torch.nn.Linear(2, 3))
    averaged.update_parameters(torch.nn.Linear(2, 3))
    state = find_state_dict(averaged.state_dict(), "x.pth")
    assert (sorted(state.tensors), state.prefix) == (["bias", "weight"], "module.")
    assert state.averaged
    fresh = swa_utils.AveragedModel(torch.nn.Linear(2, 3))
    with pytest.raises(Refusal, match="were never updated .n_averaged is 0."):
        find_state_dict(fresh.state_dict(), "x.pth")


def body() -> Tensors:
    """What shows that a network is a TResNet: its first convolution and a block of layer4."""
    return {network.STEM: torch.zeros(64, 48, 3, 3), "body.layer4.0.conv3.0.weight": torch.ones(1)}


@pytest.mark.parametrize(
    "names, kind",
    (
        (("head.decoder.layers.0.linear1.weight", "head.duplicate_pooling"), "ML-Decoder"),
        (("head.fc.embedding_generator.0.weight", "head.fc.FC.weight"), "ASL's bottleneck head"),
        (("head.1.weight",), "a head of another kind"),
    ),
)
def test_another_head_is_named_as_what_it_is(names: Any, kind: str) -> None:
    tensors = {**body(), **{name: torch.zeros(3, 3) for name in names}}
    with pytest.raises(Refusal) as refusing:
        network.recognise(tensors, "x.pth", None, None, None)
    assert refusing.value.sentence.startswith(
        f"the body in x.pth is a TResNet, but the head is not supported: {kind} ({names[0]}"
    )


def test_a_body_without_a_head_is_named() -> None:
    with pytest.raises(Refusal, match="holds the body of a TResNet without its head"):
        network.recognise(body(), "x.pth", None, None, None)


# ---- signs of the lineage ------------------------------------------------------------------------


def norm_layers(weight: torch.Tensor, **more: torch.Tensor) -> Tensors:
    """A state dict with counters and one layer of BatchNorm with these weights."""
    stem = "body.conv1.1."
    zeros = torch.zeros(len(weight))
    names = {"weight": weight, "running_var": zeros, "num_batches_tracked": torch.zeros(1)}
    return {**{stem + name: tensor for name, tensor in names.items()}, **more}


def test_counters_and_the_old_names_may_be_of_the_replaced_normalisation() -> None:
    """Nothing is said of weights of both signs, nor of those that nobody trained."""
    trained = torch.linspace(0.1, 2, 2000)
    assert network.lineage_of(norm_layers(trained), "x", None) == ("ascend", False)
    assert "all 2,000 weights" in network.signs_of_replacement(norm_layers(trained))[0]
    assert network.lineage_of(norm_layers(trained - 0.5), "x", None) == ("ascend", True)
    assert network.lineage_of(norm_layers(torch.ones(2000)), "x", None) == ("ascend", True)
    blurred = norm_layers(trained - 0.5, **{"body.layer2.0.conv1.1.op.filt": torch.zeros(1)})
    assert network.lineage_of(blurred, "x", None) == ("ascend", False)
    for lineage in ("ascend", "miil-bn"):
        assert network.lineage_of(blurred, "x", lineage) == (lineage, True)
    with pytest.raises(Refusal, match="give --lineage miil-bn"):
        network.lineage_of(blurred, "x", "miil")


# ---- through the export --------------------------------------------------------------------------


@pytest.fixture
def state() -> Iterator[Tensors]:
    """The state dict of a small_network(), ascend lineage, which exists while the test runs."""
    with small_network():
        yield fill(network.create_network("tresnet_m", 12).state_dict())


def small_timm(**options: Any) -> torch.nn.Module:
    """timm 0.4.5's own small network with its own global pooling."""
    with mock.patch.object(sys, "path", [network.TIMM, *sys.path]):
        from timm.models.tresnet import TResNet
    made: torch.nn.Module = TResNet([1, 1, 1, 1], num_classes=12, width_factor=0.25, **options)
    return made.eval()


def export_here(path: Path, *options: object) -> onnx.ModelProto:
    with mock.patch.object(export, "VERIFIED_BATCHES", (1,)):
        run_here(export.main, path, path.with_suffix(".onnx"), "--img-size", SMALL, *options)
    return onnx.load(str(path.with_suffix(".onnx")))


IMAGES = np.random.RandomState(0).uniform(0, 1, (2, 3, SMALL, SMALL)).astype(np.float32)
POOLING_NODES = {
    "avg": ["GlobalAveragePool"],
    "max": ["GlobalMaxPool"],
    "avgmax": ["GlobalAveragePool", "GlobalMaxPool", "Add", "Mul"],
    "catavgmax": ["GlobalAveragePool", "GlobalMaxPool", "Concat"],
}


@pytest.mark.slow
@pytest.mark.parametrize("pool", POOLING_NODES)
def test_each_global_pooling_has_the_logits_of_timms_own(
    pool: str, state: Tensors, tmp_path: Path
) -> None:
    expected_network = small_timm(global_pool=pool)
    state = fill(expected_network.state_dict())
    expected_network.load_state_dict(state)
    with torch.no_grad():
        expected = expected_network(torch.from_numpy(IMAGES)).numpy()
    torch.save({"state_dict": state, **of_args(gp=pool)}, tmp_path / "x.pth")
    model = export_here(tmp_path / "x.pth")
    logits = onnx_scores(model.SerializeToString(), IMAGES)
    assert np.abs(logits - expected).max() <= 1e-5 * np.abs(expected).max()
    nodes = [node.op_type for node in model.graph.node if "global_pool" in node.name]
    assert nodes == POOLING_NODES[pool]
    notes = record.read(str(tmp_path / "x.onnx")).notes
    assert notes.get("global_pool", "avg") == pool


@pytest.mark.slow
def test_a_bare_state_dict_shows_its_pooling_as_far_as_it_can_or_the_user_says_it(
    state: Tensors, tmp_path: Path
) -> None:
    torch.save(state, tmp_path / "x.pth")
    average = export_here(tmp_path / "x.pth").graph.SerializeToString()
    torch.save({"state_dict": state, **of_args(gp="fast")}, tmp_path / "y.pth")
    assert export_here(tmp_path / "y.pth").graph.SerializeToString() == average
    by_option = export_here(tmp_path / "x.pth", "--gp", "max").graph.node
    assert "GlobalMaxPool" in {node.op_type for node in by_option}
    with pytest.raises(Refusal, match="should be catavgmax, but its head takes 512 features"):
        export_here(tmp_path / "x.pth", "--gp", "catavgmax")
    doubled = torch.cat([state["head.fc.weight"]] * 2, 1)
    torch.save(dict(state, **{"head.fc.weight": doubled}), tmp_path / "z.pth")
    assert "Concat" in {node.op_type for node in export_here(tmp_path / "z.pth").graph.node}


@pytest.mark.slow
def test_auxiliary_norms_of_split_bn_are_left_out_as_in_evaluation(
    state: Tensors, tmp_path: Path
) -> None:
    torch.save(state, tmp_path / "x.pth")
    auxiliary = {
        name.replace("running_mean", "aux_bn.0.running_mean"): tensor + 1
        for name, tensor in state.items()
        if name.endswith("running_mean")
    }
    torch.save(dict(state, **auxiliary), tmp_path / "y.pth")
    plain, split = (export_here(tmp_path / name).graph for name in ("x.pth", "y.pth"))
    assert plain.SerializeToString() == split.SerializeToString()


@pytest.mark.slow
def test_what_the_checkpoint_says_is_in_the_record_and_said_again(
    state: Tensors, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    said = of_args(class_map="map.txt", eval_metric="top1", num_classes=1000)
    torch.save({"state_dict": state, "metric": 87.5, **said}, tmp_path / "x.pth")
    for _ in range(2):  # the second export is up to date
        export_here(tmp_path / "x.pth")
        output = capsys.readouterr().out
        assert "it says that it had Top-1 87.50 % (metric = 87.5)\n" in output
        assert "says class_map = map.txt: training numbered its class folders" in output
        assert "says num_classes = 1000: its head has 12, which is what counts" in output
    (row,) = claims.rows_of(record.read(str(tmp_path / "x.onnx")).notes)
    assert (row["top"], row["value"], row["said"]) == (1, 87.5, "metric = 87.5")
