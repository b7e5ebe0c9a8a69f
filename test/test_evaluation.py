"""The evaluation that belongs to the weights: the pixels of each setting, and whose word counts."""

import argparse
import hashlib
import itertools
import json
import shutil
import sys
from collections import OrderedDict
from pathlib import Path
from typing import Any, Dict, List

from common.core import record
from common.core.cli import Refusal
from common.data import evaluation, inputs, pixels
from common.data.evaluation import DEFAULT, Evaluation
from common.data.prepared import read
from common.model import onnx_file

import numpy as np
import onnxruntime
import pytest
import timm_today
from ascend.helpers import onnx_scores, save_network
from conftest import ROOT, Shared, refusal, run_here, small_network
from pictures import bins, pattern, prepare, prepare_refused
from PIL import Image

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
today = pytest.mark.skipif(
    sys.version_info < (3, 10), reason="today's timm and torchvision need Python 3.10"
)


@pytest.fixture(scope="session")
def wheels(shared: Shared) -> Path:
    """Today's timm and torchvision, unzipped."""
    return shared("timm-today", timm_today.fetch)


@pytest.fixture(scope="session")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """JPEGs of two shapes and a PNG."""
    folder = tmp_path_factory.mktemp("pictures")
    for name, size in (
        ("wide.jpg", (500, 375)),
        ("tall.jpg", (375, 500)),
        ("small.png", (100, 80)),
    ):
        pattern(*size).save(str(folder / name), quality=92)
    return folder


# ---- the pixels ----------------------------------------------------------------------------------


def sha256_of(data: Any) -> str:
    return hashlib.sha256(bytes(memoryview(data).cast("B"))).hexdigest()


def every_setting() -> List[Evaluation]:
    crops = [(0.875, "center"), (0.95, "center"), (1.0, "squash"), (0.875, "squash")]
    scales = [(DEFAULT.mean, DEFAULT.std), IMAGENET]
    settings = itertools.product((224, 288, 448), crops, evaluation.INTERPOLATIONS, scales)
    return [
        Evaluation(size, *crop, interpolation, *scale)
        for size, crop, interpolation, scale in settings
    ]


@today
@pytest.mark.slow
@pytest.mark.parametrize("whose", ("the pinned source package", "today's"))
def test_the_bytes_are_those_of_timms_own_transform(
    whose: str, wheels: Path, shapes: Path, tmp_path: Path
) -> None:
    settings = [
        setting
        for setting in every_setting()
        if whose == "today's" or setting.crop_mode == "center"
    ]
    if whose == "today's":
        settings = [
            setting
            for setting in settings
            if setting.crop_mode == "squash" or setting.crop_pct == 0.95
        ]
    asked, found = [], {}
    for number, setting in enumerate(settings):
        fast = pixels.fast_path(setting, "float32")
        for path in sorted(shapes.iterdir()):
            case = {name: getattr(setting, name) for name in setting._fields if name != "crop_mode"}
            if whose == "today's":
                case["crop_mode"] = setting.crop_mode
            asked.append(dict(case, case=f"{number} {path.name}", path=str(path)))
            with path.open("rb") as file:
                made = {
                    sha256_of(pixels.convert(file, setting, "float32", way)) for way in (None, fast)
                }
            assert len(made) == 1, (setting, path)
            found[f"{number} {path.name}"] = made.pop()
    (tmp_path / "cases.json").write_text(json.dumps(asked))
    timm_today.run_timm(
        wheels / "timm-today" if whose == "today's" else ROOT / "pytorch-image-models",
        wheels,
        "transform",
        tmp_path / "cases.json",
        tmp_path / "out.json",
    )
    assert found == json.loads((tmp_path / "out.json").read_text())


def test_bytes_scaled_by_the_aipp_settings_are_the_floats(shapes: Path, tmp_path: Path) -> None:
    options = ["--img-size", 64, "--mean", *IMAGENET[0], "--std", *IMAGENET[1]]
    prepare(shapes, tmp_path / "floats", *options)
    prepare(shapes, tmp_path / "bytes", "--dtype", "uint8", *options)
    aipp = inputs.read_aipp(str(tmp_path / "bytes" / "aipp.cfg"))
    for name in bins(tmp_path / "floats"):
        image = np.fromfile(str(tmp_path / "bytes" / name), np.uint8).reshape(1, 64, 64, 3)
        floats = np.fromfile(str(tmp_path / "floats" / name), "<f4").reshape(1, 3, 64, 64)
        assert floats.min() < -1 and np.abs(inputs.apply_aipp(image, aipp) - floats).max() < 2e-6
    assert len(bins(tmp_path / "floats")) == 3


def test_the_aipp_file_for_hand_use_is_that_of_the_default_evaluation(tmp_path: Path) -> None:
    (tmp_path / "aipp.cfg").write_bytes(evaluation.aipp(DEFAULT))
    made, by_hand = (
        inputs.read_aipp(str(path))
        for path in (tmp_path / "aipp.cfg", ROOT / "scripts" / "aipp.cfg")
    )
    assert made == dict(by_hand, mean_chn_0="0", mean_chn_1="0", mean_chn_2="0")


def test_aipp_subtracts_whole_numbers_and_their_rests() -> None:
    lines = evaluation.aipp(DEFAULT._replace(mean=IMAGENET[0], std=IMAGENET[1])).decode()
    assert "mean_chn_0 : 123\n" in lines and "min_chn_0 : 0.675\n" in lines  # 0.485 · 255
    assert "var_reci_chn_2 : 0.017429193899782\n" in lines  # 1 / (0.225 · 255)


def test_other_settings_are_named_and_make_everything_again_if_that_is_wanted(
    shapes: Path, tmp_path: Path
) -> None:
    prepare(shapes, tmp_path / "prep", "--img-size", 32)
    before = bins(tmp_path / "prep")
    said = prepare(
        shapes, tmp_path / "prep", "--img-size", 32, "--crop-mode", "squash", status=1
    ).stderr
    assert "made with other settings: crop_mode was center; to keep them, name another DST" in said
    prepare(shapes, tmp_path / "prep", "--img-size", 32, "--crop-mode", "squash", "--force")
    assert (
        set(bins(tmp_path / "prep")) == set(before)
        and bins(tmp_path / "prep")["wide.bin"] != before["wide.bin"]
    )
    prepare(shapes, tmp_path / "prep", "--img-size", 32, "--dtype", "uint8", "--force")
    assert (tmp_path / "prep" / "aipp.cfg").exists()
    prepare(shapes, tmp_path / "prep", "--img-size", 32, "--force")
    assert not (tmp_path / "prep" / "aipp.cfg").exists(), "it belongs to bytes alone"
    assert bins(tmp_path / "prep") == before


# ---- whose word counts ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "source, expected",
    (
        ({"img_size": None, "crop_pct": None, "mean": None, "interpolation": "", "lr": 0.1}, {}),
        (
            {"input_size": [3, 448, 448], "crop_mode": "squash", "crop_pct": 1.0},
            {"img_size": 448, "crop_mode": "squash", "crop_pct": 1.0},
        ),
        (
            {"img_size": 288, "mean": [0.5], "std": [0.5, 0.4, 0.3]},
            {"img_size": 288, "mean": (0.5, 0.5, 0.5), "std": (0.5, 0.4, 0.3)},
        ),
        (
            {"interpolation": "lanczos", "mean": [1, 2]},
            {"interpolation": "'lanczos'", "mean": "(1, 2)"},
        ),
    ),
)
def test_what_a_checkpoint_says(source: Dict[str, Any], expected: Dict[str, Any]) -> None:
    assert evaluation.said_by(source) == expected
    assert evaluation.from_json(json.loads(json.dumps(evaluation.to_json(expected)))) == expected


def test_the_option_is_followed_and_the_contradiction_said_once() -> None:
    said = {"img_size": 448, "crop_pct": 1.0, "interpolation": "bicubic"}
    options = {"crop_pct": 0.875, "interpolation": "bicubic", "crop_mode": "squash"}
    chosen, contradictions = evaluation.resolve(
        options, evaluation.of_fields(said), "the checkpoint m.pth"
    )
    assert chosen == Evaluation(448, 0.875, "squash", "bicubic")
    assert contradictions == [
        "--crop-pct 0.875 contradicts the checkpoint m.pth, which says 1; the option is followed"
    ]


def test_what_cannot_be_done_is_refused_unless_an_option_replaces_it() -> None:
    said = evaluation.of_fields({"interpolation": "'lanczos'"})
    with pytest.raises(
        Refusal,
        match="m.pth says interpolation = 'lanczos', but bilinear or bicubic is expected; "
        "say --interpolation",
    ):
        evaluation.resolve({}, said, "m.pth")
    assert (
        evaluation.resolve({"interpolation": "bicubic"}, said, "m.pth")[0].interpolation
        == "bicubic"
    )


@pytest.mark.parametrize(
    "words, sentence",
    (
        (["--crop-pct", "0"], "--crop-pct: '0' is not a number of more than 0 and at most 1"),
        (["--crop-pct", "87.5"], "--crop-pct: '87.5' is not a number of more than 0 and at most 1"),
        (["--mean", "0.5"], "--mean: expected 3 arguments"),
        (["--mean", "1", "2", "3"], "--mean: '2' is not a number of at least 0"),
        (["--std", "0", "1", "1"], "--std: '0' is not a number of more than 0"),
        (["--crop-mode", "border"], "invalid choice"),
        (["--interpolation", "lanczos"], "invalid choice"),
    ),
)
def test_wrong_settings_are_wrong_usage(
    words: List[str], sentence: str, shapes: Path, tmp_path: Path
) -> None:
    assert sentence in prepare_refused(shapes, tmp_path / "prep", *words, status=2)


# ---- from the checkpoint to the images -----------------------------------------------------------


def hugging_face_folder(folder: Path, checkpoint: Path, **settings: Any) -> Path:
    """A folder as Hugging Face has them, with the weights of a checkpoint."""
    torch = pytest.importorskip("torch")
    from common.model.checkpoint import find_state_dict, load_checkpoint

    folder.mkdir()
    torch.save(
        find_state_dict(load_checkpoint(str(checkpoint)), "").tensors,
        str(folder / "pytorch_model.bin"),
    )
    (folder / "config.json").write_text(
        json.dumps(
            {
                "architecture": "tresnet_m",
                "num_classes": 1000,
                "pretrained_cfg": {"input_size": [3, 64, 64], **settings},
            }
        )
    )
    return folder


@pytest.fixture(scope="module")
def exported(small_sample: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """tresnet.onnx of a Hugging Face folder that asks for 64 pixels, squash, crop 1, bicubic."""
    import TResNet_pth2onnx as export

    folder = tmp_path_factory.mktemp("exported")
    source = hugging_face_folder(
        folder / "hf",
        small_sample / "model_best.pth.tar",
        crop_mode="squash",
        crop_pct=1.0,
        interpolation="bicubic",
        mean=[0, 0, 0],
        std=[1, 1, 1],
    )
    with small_network():
        run_here(export.main, source, folder / "tresnet.onnx")
    return folder / "tresnet.onnx"


@pytest.mark.slow
def test_a_hugging_face_folders_own_evaluation_is_the_default_down_to_the_images(
    exported: Path, shapes: Path, tmp_path: Path
) -> None:
    shape = onnxruntime.InferenceSession(str(exported)).get_inputs()[0].shape
    assert shape[2:] == [64, 64]
    done = prepare(shapes, tmp_path / "prep", "--model", exported)
    assert "evaluation: 64×64, crop 1 squash, bicubic, mean 0 0 0, std 1 1 1\n" in done.stdout
    with Image.open(str(shapes / "wide.jpg")) as image:
        expected = np.asarray(
            image.resize((64, 64), Image.Resampling.BICUBIC), np.float32
        ).transpose(2, 0, 1) / np.float32(255)
    assert (tmp_path / "prep" / "wide.bin").read_bytes() == expected.tobytes("C")
    settings = read(str(tmp_path / "prep")).settings
    expected_settings = {
        "img_size": 64,
        "crop_pct": 1.0,
        "crop_mode": "squash",
        "interpolation": "bicubic",
    }
    assert {**settings, **expected_settings} == settings
    said = prepare(shapes, tmp_path / "other", "--model", exported, "--crop-mode", "center").stdout
    assert (
        f"note: --crop-mode center contradicts the checkpoint of {exported}, which says squash; "
        "the option is followed\n"
    ) in said


@pytest.mark.slow
def test_images_made_for_another_evaluation_than_the_checkpoints_are_refused(
    exported: Path, shapes: Path, tmp_path: Path
) -> None:
    runner = ("scripts/infer_onnx.py", "--model", exported, "--input", tmp_path / "prep")
    prepare(shapes, tmp_path / "prep", "--img-size", 64)
    said = refusal(*runner)
    assert (
        f"the images in {tmp_path}/prep were made with crop_mode = center, but the checkpoint of "
        f"{exported} says squash; make them again: python3 TResNet_preprocess.py SRC" in said
    )
    options = ("--crop-mode", "center", "--crop-pct", 0.875, "--interpolation", "bilinear")
    prepare(shapes, tmp_path / "chosen", "--img-size", 64, *options)
    evaluation.check_prepared(str(exported), str(tmp_path / "chosen"))


@pytest.mark.slow
def test_the_evaluation_stands_once_in_the_record_and_once_in_the_metadata(exported: Path) -> None:
    expected = dict(
        img_size=64,
        crop_pct=1.0,
        crop_mode="squash",
        interpolation="bicubic",
        mean=[0.0, 0.0, 0.0],
        std=[1.0, 1.0, 1.0],
    )
    notes = record.read(str(exported)).notes
    assert notes["evaluation"] == expected and set(notes["said"]) == set(expected)
    assert json.dumps(notes).count('img_size": ') == 1, "beside its name among the said ones"
    metadata = onnx_file.read(str(exported))["metadata"]
    assert json.loads(metadata["evaluation"]) == expected and "img_size" not in metadata


@pytest.mark.slow
def test_a_model_without_a_record_says_its_evaluation_by_its_metadata(
    exported: Path, shapes: Path, tmp_path: Path
) -> None:
    shutil.copy(str(exported), str(tmp_path / "moved.onnx"))
    alone = evaluation.of_model(str(tmp_path / "moved.onnx"))
    assert alone and alone == evaluation.of_model(str(exported))
    stdout = prepare(shapes, tmp_path / "prep", "--model", tmp_path / "moved.onnx").stdout
    assert "evaluation: 64×64, crop 1 squash, bicubic, mean 0 0 0, std 1 1 1\n" in stdout
    (tmp_path / "moved.onnx.record.jsonl").write_bytes(
        Path(record.path_of(str(exported))).read_bytes()
    )
    assert evaluation.of_record(str(tmp_path / "moved.onnx")) == alone
    save_network(tmp_path / "moved.onnx")
    assert evaluation.of_model(str(tmp_path / "moved.onnx")) is None, "its record is of another"


def test_a_record_of_an_earlier_version_holds_only_what_the_checkpoint_said() -> None:
    exported = evaluation.of_notes({"evaluation": {"img_size": 64, "mean": [0, 0, 1]}})
    assert exported == (DEFAULT._replace(img_size=64, mean=(0.0, 0.0, 1.0)), ("img_size", "mean"))


@pytest.mark.parametrize(
    "spoil, sentence",
    (
        (
            lambda f: (f / "config.json").write_text("{"),
            "config.json is damaged (Expecting property name",
        ),
        (
            lambda f: (f / "config.json").write_text("[]"),
            "config.json is damaged (it is a list, an object was expected); copy it again",
        ),
        (
            lambda f: (f / "pytorch_model.bin").unlink(),
            "should hold model.safetensors or pytorch_model.bin beside",
        ),
    ),
)
def test_a_broken_folder_is_refused(spoil: Any, sentence: str, tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    (tmp_path / "config.json").write_text("{}")
    spoil(tmp_path)
    with pytest.raises(Refusal) as error:
        evaluation.read_config(evaluation.weights_file(str(tmp_path)))
    assert sentence in error.value.sentence


def test_a_model_without_a_record_is_refused(shapes: Path, tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(b"")
    assert "m.onnx has no record of TResNet_pth2onnx.py" in prepare_refused(
        shapes, tmp_path / "prep", "--model", tmp_path / "m.onnx"
    )


@pytest.mark.slow
def test_a_training_checkpoints_args_count_and_a_size_that_does_not_fit_is_refused(
    small_sample: Path, tmp_path: Path
) -> None:
    torch = pytest.importorskip("torch")
    from common.model.checkpoint import load_checkpoint

    import TResNet_pth2onnx as export

    checkpoint = load_checkpoint(str(small_sample / "model_best.pth.tar"))
    target = tmp_path / "m.onnx"
    for size, options in ((64, []), (100, ["--img-size", "96"])):
        checkpoint["args"] = argparse.Namespace(img_size=size, crop_pct=0.9, mean=[0.5], std=None)
        torch.save(checkpoint, str(tmp_path / "m.pth"))
        with small_network():
            run_here(export.main, tmp_path / "m.pth", target, *options)
        notes = record.read(str(target)).notes
        said = {"img_size": 96 if options else 64, "crop_pct": 0.9, "mean": [0.5, 0.5, 0.5]}
        assert {name: notes["evaluation"][name] for name in notes["said"]} == said
    with small_network(), pytest.raises(
        Refusal, match="says img_size = 100, which is not a multiple of 32 "
    ):
        run_here(export.main, tmp_path / "m.pth", target)


# ---- the whole family ----------------------------------------------------------------------------


@today
@pytest.mark.slow
def test_tresnet_v2_l_has_the_logits_of_todays_timm(wheels: Path, tmp_path: Path) -> None:
    from common.model.checkpoint import load_checkpoint
    from common.model.graph import build_model
    from common.model.network import load_network, recognise

    timm_today.run_timm(wheels / "timm-today", wheels, "logits", "tresnet_v2_l", tmp_path)
    tensors = load_checkpoint(str(tmp_path / "weights.pth"))
    seen = recognise(tensors, "weights.pth", "tresnet_v2_l.miil_in21k", None, None)
    assert seen[:3] == ("tresnet_v2_l", 11221, "miil")
    network = load_network(OrderedDict(tensors), "weights.pth", seen)
    model = build_model(network, 224, 11, None).SerializeToString()
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    (logits,) = session.run(None, {"image": np.load(str(tmp_path / "images.npy"))})
    expected = np.load(str(tmp_path / "logits.npy"))
    assert np.abs(logits - expected).max() <= 1e-5 * np.abs(expected).max()
    shutil.rmtree(str(tmp_path))


@today
@pytest.mark.slow
def test_the_official_network_with_plain_batch_norm_has_the_logits_of_todays_timm(
    wheels: Path, tmp_path: Path
) -> None:
    """Its weights have both signs, counters, and here timm 0.4.5's names: --lineage miil-bn."""
    from common.model.checkpoint import load_checkpoint
    from common.model.graph import build_model
    from common.model.network import create_network, load_network, name_today, recognise

    timm_today.run_timm(wheels / "timm-today", wheels, "logits", "tresnet_m", tmp_path)
    today_tensors = load_checkpoint(str(tmp_path / "weights.pth"))
    names = create_network("tresnet_m", timm_today.CLASSES).state_dict()
    old_names = OrderedDict((name, today_tensors[name_today(name)]) for name in names)
    expected = np.load(str(tmp_path / "logits.npy"))
    images = np.load(str(tmp_path / "images.npy"))
    worst = {}
    for lineage, tensors in (
        ("miil-bn", old_names),
        ("ascend", old_names),
        (None, today_tensors),
    ):
        seen = recognise(tensors, "weights.pth", None, None, lineage)
        model = build_model(load_network(tensors, "weights.pth", seen), 224, 11)
        logits = onnx_scores(model.SerializeToString(), images)
        worst[lineage] = np.abs(logits - expected).max() / np.abs(expected).max()
    assert worst["miil-bn"] <= 1e-5 and worst[None] <= 1e-5
    assert worst["ascend"] > 0.01, "this is what a wrong lineage does"
    shutil.rmtree(str(tmp_path))


@pytest.mark.parametrize(
    "arch, variant",
    (
        ("tresnet_l_448", "tresnet_l"),
        ("tresnet_m_miil_in21k", "tresnet_m"),
        ("tresnet_m.miil_in1k_448", "tresnet_m"),
        ("tresnet_v2_l.miil_in21k_ft_in1k", "tresnet_v2_l"),
        ("tresnet_l_v2", "tresnet_v2_l"),
        ("tresnet_xl", "tresnet_xl"),
    ),
)
def test_a_models_name_less_what_tells_of_its_training(arch: str, variant: str) -> None:
    from common.model.network import base_name

    assert base_name(arch) == variant
