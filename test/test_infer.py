"""The CPU runner: ais_bench's files, names, summary and output, and checks that it lacks."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any, Dict, List

import infer_onnx
import numpy as np
import onnx
import onnxruntime
import pytest
from ascend.helpers import SUMMARY_KEYS, start_here
from conftest import PATIENCE, ROOT, refusal, sha256, succeed
from onnx import TensorProto, helper, numpy_helper
from pictures import fill, until
from records import change_file, change_recipe, restart, rows_of, unfinish

RUNNER = "scripts/infer_onnx.py"
SIDE = 4  # pixels of the small model's input
AIPP = (ROOT / "scripts" / "aipp.cfg").read_text().replace("224", str(SIDE))


def make_model(path: Path, batch: Any = "batch", classes: int = 3, scale: float = 1.0) -> Path:
    """`class` = [mean of red, of green, of blue, 0 …] · scale of `image`:
    small enough to know every result by heart.
    """
    weight = np.zeros((3, classes), np.float32)
    weight[:3, :3] = np.eye(3)[:, :classes] * scale
    nodes = [
        helper.make_node("GlobalAveragePool", ["image"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["flat"]),
        helper.make_node("Gemm", ["flat", "weight"], ["class"]),
    ]
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, [batch, 3, SIDE, SIDE])
    means = helper.make_tensor_value_info("class", TensorProto.FLOAT, [batch, classes])
    graph = helper.make_graph(
        nodes, "means", [image], [means], [numpy_helper.from_array(weight, "weight")]
    )
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 11)], ir_version=6),
        str(path),
    )
    return path


def put_images(folder: Path, names: List[str]) -> Path:
    """One .bin per name; image i is red i, green 0.5, blue -i."""
    folder.mkdir(exist_ok=True)
    for index, name in enumerate(names):
        image = np.empty((3, SIDE, SIDE), "<f4")
        image[0], image[1], image[2] = index, 0.5, -index
        (folder / name).write_bytes(image.tobytes())
    return folder


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return make_model(tmp_path / "model.onnx")


def runs(*words: object, status: int = 0, cwd: str = ".") -> "subprocess.CompletedProcess[str]":
    """The runner's main() without a process; its exit status must be `status`."""
    done = start_here(infer_onnx.main, {}, Path(cwd), "infer_onnx.py", *words)
    assert done.returncode == status and "Traceback" not in done.stderr, done.stdout + done.stderr
    return done


def refuses(*words: object, status: int = 1, cwd: str = ".") -> str:
    """What the runner says when it fails."""
    said = runs(*words, status=status, cwd=cwd).stderr
    assert said.strip(), "a refusal says why"
    return said


def infer_images(
    model: Path, images: Path, *options: object, outfmt: str = "TXT"
) -> "subprocess.CompletedProcess[str]":
    return runs(
        "--model",
        model,
        "--input",
        images,
        "--output",
        model.parent,
        "--output_dirname",
        "result",
        "--outfmt",
        outfmt,
        *options,
    )


def test_txt_results_are_ais_benchs_to_the_byte_and_in_natural_order(
    model: Path, tmp_path: Path
) -> None:
    images = put_images(
        tmp_path / "images", ["image_2.bin", "image_10.bin", "image_1.more.dots.bin"]
    )
    (images / "notes.txt").write_text("ignored, as ais_bench does")
    infer_images(model, images, "--batchsize", 2)
    assert {path.name: path.read_bytes() for path in (tmp_path / "result").iterdir()} == {
        "image_2_0.txt": b"0.000000 0.500000 0.000000 \n",
        "image_10_0.txt": b"1.000000 0.500000 -1.000000 \n",
        "image_1_0.txt": b"2.000000 0.500000 -2.000000 \n",
    }
    summary = json.loads((tmp_path / "result_summary.json").read_text())
    inferred = [os.path.basename(entry["infiles"][0]) for entry in summary["filesinfo"].values()]
    assert inferred == ["image_1.more.dots.bin", "image_2.bin", "image_10.bin"]


def test_bin_and_npy_results_are_raw_float32_and_numpy_files(model: Path, tmp_path: Path) -> None:
    images = put_images(tmp_path / "images", ["a.bin", "b.bin"])
    infer_images(model, images, outfmt="BIN")
    assert (tmp_path / "result" / "b_0.bin").read_bytes() == np.array([1, 0.5, -1], "<f4").tobytes()
    infer_images(model, images, outfmt="NPY")
    assert np.load(str(tmp_path / "result" / "b_0.npy")).tolist() == [[1, 0.5, -1]]
    assert sorted(os.listdir(str(tmp_path / "result"))) == ["a_0.npy", "b_0.npy"], (
        "results of the earlier format are gone"
    )


def test_npy_inputs_are_read(model: Path, tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    np.save(str(tmp_path / "images" / "a.npy"), np.full((1, 3, SIDE, SIDE), 0.25, np.float32))
    infer_images(model, tmp_path / "images")
    assert (tmp_path / "result" / "a_0.txt").read_bytes() == b"0.250000 0.250000 0.250000 \n"


def test_the_last_batch_is_filled_up_and_the_filling_dropped(tmp_path: Path) -> None:
    fixed = make_model(tmp_path / "fixed.onnx", batch=4)
    images = put_images(tmp_path / "images", [f"{index}.bin" for index in range(6)])
    done = infer_images(fixed, images)
    assert sorted(os.listdir(str(tmp_path / "result"))) == [f"{index}_0.txt" for index in range(6)]
    assert "6 images inferred" in done.stdout and "batchsize.mean(3)" in done.stdout
    assert "is fixed at 4" in refuses("--model", fixed, "--input", images, "--batchsize", 8)


def test_summary_and_printed_lines_are_ais_benchs(model: Path, tmp_path: Path) -> None:
    images = put_images(tmp_path / "images", [f"{index}.bin" for index in range(5)])
    done = infer_images(model, images, "--batchsize", 2, "--loop", 3, "--display_all_summary", "1")
    summary = json.loads((tmp_path / "result_summary.json").read_text())
    assert set(summary) == SUMMARY_KEYS
    for key in ("NPU_compute_time", "H2D_latency", "D2H_latency"):
        assert list(summary[key]) == "min max mean median percentile(99%) count".split()
    times = summary["npu_compute_time_list"]
    assert len(times) == 3 * 3 == summary["NPU_compute_time"]["count"]
    assert summary["NPU_compute_time"]["mean"] == pytest.approx(np.mean(times))
    assert summary["throughput"] == pytest.approx(1000 * (5 / 3) / np.mean(times)), (
        "the filling of the third batch does not count"
    )
    number = r"[0-9.e+-]+"
    for title in ("NPU_compute_time", "H2D_latency", "D2H_latency"):
        assert re.search(
            rf"^\[INFO\] {title} \(ms\): min = {number}, max = {number}, mean = {number}, "
            rf"median = {number}, percentile\(99%\) = {number}$",
            done.stdout,
            re.MULTILINE,
        )
    assert re.search(
        r"^\[INFO\] throughput 1000\*batchsize\.mean\(1\.66667\)/NPU_compute_time\.mean"
        rf"\({number}\): {number}$",
        done.stdout,
        re.MULTILINE,
    )


def test_pure_inference_needs_no_input_and_writes_no_results(model: Path, tmp_path: Path) -> None:
    for data in ("zero", "random"):
        done = runs(
            f"--model={model}",
            "--loop=7",
            "--batchsize=2",
            "--pure_data_type",
            data,
            "--output",
            tmp_path,
            "--output_dirname",
            data,
        )
        summary = json.loads((tmp_path / f"{data}_summary.json").read_text())
        assert (
            len(summary["npu_compute_time_list"]) == 7
            and summary["filesinfo"] == {}
            and "throughput" in done.stdout
        )
        assert not (tmp_path / data).exists()


def test_only_the_first_images_in_natural_order(model: Path, tmp_path: Path) -> None:
    images = put_images(tmp_path / "images", ["10.bin", "9.bin", "8.bin"])
    infer_images(model, images, "--first", 2)
    assert sorted(os.listdir(str(tmp_path / "result"))) == ["8_0.txt", "9_0.txt"]


def test_images_that_are_evenly_spaced(model: Path, tmp_path: Path) -> None:
    images = put_images(tmp_path / "images", [f"{number}.bin" for number in range(6)])
    infer_images(model, images, "--spaced", 3)
    names = sorted(os.listdir(str(tmp_path / "result")))
    assert names == ["0_0.txt", "2_0.txt", "4_0.txt"]


def test_results_of_images_that_are_not_asked_for_any_more_do_not_stay(
    model: Path, tmp_path: Path
) -> None:
    images = put_images(tmp_path / "images", ["10.bin", "9.bin", "8.bin"])
    infer_images(model, images)
    (images / "10.bin").unlink()
    assert "(2 were there already)" in infer_images(model, images).stdout
    assert sorted(os.listdir(str(tmp_path / "result"))) == ["8_0.txt", "9_0.txt"]
    assert "2 results" in infer_images(model, images).stdout, "up to date"
    assert "(1 was there already)" in infer_images(model, images, "--first", 1).stdout
    assert os.listdir(str(tmp_path / "result")) == ["8_0.txt"]


# ---- AIPP ----------------------------------------------------------------------------------------


def test_uint8_images_are_converted_as_the_configuration_says(model: Path, tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    pixels = np.zeros((SIDE, SIDE, 3), np.uint8)
    pixels[..., 0], pixels[..., 1] = 255, 51
    (tmp_path / "images" / "a.bin").write_bytes(pixels.tobytes())
    for text, expected in (
        (AIPP, b"1.000000 0.200000 0.000000 \n"),
        (
            AIPP.replace("swap_switch : false", "swap_switch : true"),
            b"0.000000 0.200000 1.000000 \n",
        ),
        (AIPP.replace("min_chn_1 : 0", "min_chn_1 : 26"), b"1.000000 0.098039 0.000000 \n"),
    ):
        (tmp_path / "aipp.cfg").write_text(text)
        infer_images(model, tmp_path / "images", "--aipp", tmp_path / "aipp.cfg")
        assert (tmp_path / "result" / "a_0.txt").read_bytes() == expected


def test_aipp_crops(model: Path, tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    pixels = np.zeros((SIDE + 2, SIDE + 3, 3), np.uint8)
    pixels[1 : 1 + SIDE, 2 : 2 + SIDE] = 255
    (tmp_path / "images" / "a.bin").write_bytes(pixels.tobytes())
    text = AIPP.replace(f"size_w : {SIDE}", f"size_w : {SIDE + 3}").replace(
        f"size_h : {SIDE}", f"size_h : {SIDE + 2}"
    )
    place = "crop : true\nload_start_pos_w : 2\nload_start_pos_h : 1\n"
    crop = f"{place}crop_size_w : {SIDE}\ncrop_size_h : {SIDE}\n"
    (tmp_path / "aipp.cfg").write_text(text.replace("csc_switch", crop + "csc_switch"))
    infer_images(model, tmp_path / "images", "--aipp", tmp_path / "aipp.cfg")
    assert (tmp_path / "result" / "a_0.txt").read_bytes() == b"1.000000 1.000000 1.000000 \n"


@pytest.mark.parametrize(
    "change, sentence",
    (
        (("RGB888_U8", "YUV420SP_U8"), "input_format : YUV420SP_U8"),
        (("static", "dynamic"), "aipp_mode : dynamic"),
        (("csc_switch : false", "csc_switch : true"), "csc_switch : true"),
        (("aipp_op {", "aipp {"), "is not one AIPP operator"),
        (("min_chn_0 : 0", "min_chn_0 : x"), "lacks a number"),
        (("min_chn_0", "min_chn_9"), "has min_chn_9"),
        ((f"size_w : {SIDE}", f"size_w : {SIDE * 2}"), f"yields images of {SIDE * 2}×{SIDE}"),
        (("min_chn_0 : 0", "min_chn_1 : 0"), "each key once"),
    ),
)
def test_an_aipp_configuration_that_cannot_be_followed_is_refused(
    change: Any, sentence: str, model: Path, tmp_path: Path
) -> None:
    (tmp_path / "aipp.cfg").write_text(AIPP.replace(*change))
    images = put_images(tmp_path / "images", ["a.bin"])
    assert sentence in refuses("--model", model, "--input", images, "--aipp", tmp_path / "aipp.cfg")


# ---- what ais_bench would not notice -------------------------------------------------------------


def test_wrong_sizes_clashing_names_and_nan_are_refused(model: Path, tmp_path: Path) -> None:
    size = 3 * SIDE * SIDE * 4
    for name, content, sentence in (
        (
            "short.bin",
            bytes(size - 1),
            f"has {size - 1} bytes, but one sample of this model is {size} bytes (float32)",
        ),
        ("bytes.bin", bytes(size // 4), "or give --aipp for uint8 images"),
        ("empty.bin", b"", "has 0 bytes"),
        ("three.bin", bytes(3 * size), "that is 3 samples: one file per image is expected"),
        ("bad.npy", b"\x93NUMPY", "is not a NumPy file"),
        ("none.npy", b"", "is not a NumPy file"),
        ("zip.npy", b"PK\x03\x04", "is not a NumPy file"),
        ("nan.bin", np.full(size // 4, np.nan, "<f4").tobytes(), "values that are not finite"),
    ):
        images = put_images(tmp_path / name.replace(".", "_"), ["good.bin"])
        (images / name).write_bytes(content)
        said = refuses(
            "--model",
            model,
            "--input",
            images,
            "--output",
            tmp_path,
            *"--output_dirname result --outfmt TXT".split(),
        )
        assert sentence in said and name in said
        assert not (tmp_path / "result" / f"{name.split('.')[0]}_0.txt").exists()
    clash = put_images(tmp_path / "clash", ["a.1.bin", "a.2.bin"])
    assert "agree up to their first dot" in refuses("--model", model, "--input", clash)


@pytest.mark.parametrize(
    "options, status, sentence",
    (
        (("--loop", "0"), 2, "a whole number from 1"),
        (("--loop", "1e3"), 2, "a whole number"),
        (("--loop", "99999999999"), 2, "a whole number from 1 to"),
        (("--input", ""), 2, "the path is empty"),
        (("--batchsize", "-1"), 2, "a whole number"),
        (("--outfmt", "CSV"), 2, "invalid choice"),
        (("--output_dirname", "x"), 2, "goes with --output"),
        (("--output", ".", "--output_dirname", "../x"), 2, "is not a plain file name"),
        (
            ("--input", "nowhere"),
            1,
            "infer_onnx.py: nowhere should be a folder with .bin",
        ),  # --calibrate says so as well
    ),
)
def test_wrong_usage(options: Any, status: int, sentence: str, model: Path) -> None:
    assert sentence in refuses("--model", model, *options, status=status, cwd=str(model.parent))


def test_models_that_are_not_there_broken_or_of_another_kind(tmp_path: Path) -> None:
    assert "does not exist" in refuses("--model", tmp_path / "nowhere.onnx")
    (tmp_path / "broken.onnx").write_bytes(b"no model")
    assert "broken.onnx is not an ONNX file, or it is damaged" in refuses(
        "--model", tmp_path / "broken.onnx"
    )
    value = helper.make_tensor_value_info("x", TensorProto.INT64, [2])
    copy = helper.make_tensor_value_info("y", TensorProto.INT64, [2])
    constant = helper.make_node(
        "Constant", [], ["y"], value=numpy_helper.from_array(np.zeros(2, np.int64))
    )
    for inputs, node in (([value], helper.make_node("Identity", ["x"], ["y"])), ([], constant)):
        graph = helper.make_graph([node], "g", inputs, [copy])
        onnx.save(
            helper.make_model(graph, opset_imports=[helper.make_opsetid("", 11)], ir_version=6),
            str(tmp_path / "other.onnx"),
        )
        assert "should have one input, float32 [batch, 3, height, width]" in refuses(
            "--model", tmp_path / "other.onnx"
        )


# ---- going on ------------------------------------------------------------------------------------


def times_of(folder: Path) -> Dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}


def test_finished_batches_are_not_inferred_again_unless_something_changed(
    model: Path, tmp_path: Path
) -> None:
    images = put_images(tmp_path / "images", [f"{index}.bin" for index in range(6)])
    infer_images(model, images, "--batchsize", 2)
    first = times_of(tmp_path / "result")
    assert (
        "are up to date" in infer_images(model, images, "--batchsize", 2).stdout
        and times_of(tmp_path / "result") == first
    )
    (tmp_path / "result" / "3_0.txt").unlink()
    assert "2 images inferred" in infer_images(model, images, "--batchsize", 2).stdout
    changed = {
        name for name, stamp in times_of(tmp_path / "result").items() if first.get(name) != stamp
    }
    assert changed == {"2_0.txt", "3_0.txt"}
    (images / "5.bin").write_bytes(np.zeros((3, SIDE, SIDE), "<f4").tobytes())
    assert "2 images inferred" in infer_images(model, images, "--batchsize", 2).stdout
    assert (tmp_path / "result" / "5_0.txt").read_bytes() == b"0.000000 0.000000 0.000000 \n"
    assert "6 images inferred" in infer_images(model, images, "--batchsize", 3).stdout, (
        "another batch size rounds differently"
    )
    assert "6 images inferred" in infer_images(model, images, "--batchsize", 3, "--force").stdout
    make_model(model, scale=2)
    assert "6 images inferred" in infer_images(model, images, "--batchsize", 3).stdout
    assert (tmp_path / "result" / "1_0.txt").read_bytes() == b"2.000000 1.000000 -2.000000 \n"
    (images / "0.bin").unlink()
    infer_images(model, images, "--batchsize", 3)
    assert sorted(os.listdir(str(tmp_path / "result"))) == [
        f"{index}_0.txt" for index in range(1, 6)
    ]


def has_files(folder: Path, count: int) -> bool:
    return folder.exists() and len(os.listdir(str(folder))) >= count


@pytest.mark.slow
def test_a_killed_run_leaves_whole_files_and_the_next_one_completes_them(
    model: Path, tmp_path: Path
) -> None:
    images = put_images(tmp_path / "images", [f"{index}.bin" for index in range(300)])
    infer_images(model, images, "--loop", 1)
    expected = {path.name: path.read_bytes() for path in (tmp_path / "result").iterdir()}
    killed = tmp_path / "killed"
    command = [
        sys.executable,
        str(ROOT / RUNNER),
        "--model",
        str(model),
        "--input",
        str(images),
        "--output",
        str(tmp_path),
        *"--output_dirname killed --outfmt TXT --loop 200".split(),
    ]
    for number, at_least in ((signal.SIGKILL, 5), (signal.SIGTERM, 60), (signal.SIGINT, 120)):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        until(partial(has_files, killed, at_least))
        process.send_signal(number)
        said = process.communicate(timeout=PATIENCE)[1]
        assert process.returncode == {signal.SIGINT: 130, signal.SIGTERM: 143}.get(number, -number)
        assert b"Traceback" not in said
        whole = {
            path.name: path.read_bytes()
            for path in killed.iterdir()
            if not path.name.endswith(".part")
        }
        assert 0 < len(whole) < 300 and all(
            expected[name] == content for name, content in whole.items()
        )
    done = succeed(*[RUNNER, *command[2:]])
    assert re.search(r"\([1-9]\d* were there already\)", done.stdout)
    assert {path.name: path.read_bytes() for path in killed.iterdir()} == expected
    assert len(json.loads((tmp_path / "killed_summary.json").read_text())["filesinfo"]) == 300


def contents(folder: Path) -> Dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize(
    "damage", ("emptied", "cut", "copied over another", "another run's", "zeroed at equal size")
)
def test_damaged_results_are_inferred_again_by_the_same_command(
    damage: str, model: Path, tmp_path: Path
) -> None:
    images = put_images(tmp_path / "images", [f"{index}.bin" for index in range(6)])
    infer_images(model, images, "--batchsize", 2)
    whole = contents(tmp_path / "result")
    one, other = (tmp_path / "result" / f"{index}_0.txt" for index in (2, 5))
    if damage == "copied over another":
        shutil.copy2(str(other), str(one))
    elif damage == "another run's":
        for path in (one, other):
            path.write_bytes(b"9.000000 9.000000 9.000000 \n")
    else:
        one.write_bytes(
            {"emptied": b"", "cut": whole[one.name][:9], "zeroed at equal size": bytes(27)}[damage]
        )
    again = 4 if damage.startswith("another") else 2
    assert f"{again} images inferred" in infer_images(model, images, "--batchsize", 2).stdout
    assert contents(tmp_path / "result") == whole
    assert "are up to date" in infer_images(model, images, "--batchsize", 2).stdout
    (tmp_path / "result_summary.json").write_bytes(b"")
    infer_images(model, images, "--batchsize", 2)
    assert len(json.loads((tmp_path / "result_summary.json").read_text())["filesinfo"]) == 6


@pytest.mark.parametrize(
    "key, value, said",
    (
        ("sources", "0" * 64, "this program was updated"),
        ("versions", {"onnxruntime": "1.14.1"}, "other versions"),
        ("tool", "infer_om.py", "another program made it"),
        ("device", 1, "other device"),
    ),
)
def test_an_update_of_what_computes_makes_everything_again(
    key: str, value: Any, said: str, model: Path, tmp_path: Path
) -> None:
    images = put_images(tmp_path / "images", ["a.bin", "b.bin"])
    infer_images(model, images)
    change_recipe(tmp_path / "result.record.jsonl", **{key: value})
    again = infer_images(model, images).stdout
    assert f"everything is inferred again: {said}" in again and "2 images inferred" in again


def test_the_record_names_what_computed(model: Path, tmp_path: Path) -> None:
    infer_images(model, put_images(tmp_path / "images", ["a.bin"]))
    recipe = rows_of(tmp_path / "result.record.jsonl")[0]["recipe"]
    assert recipe["versions"] == {"onnxruntime": onnxruntime.__version__, "numpy": np.__version__}
    assert recipe["tool"] == "infer_onnx.py" and re.fullmatch("[0-9a-f]{64}", recipe["sources"])
    assert recipe["inputs"] == [["model.onnx", sha256(model)]]


def overwrite(path: Path, content: bytes) -> None:
    """Other bytes in the same file, with its time of modification as it was."""
    status = path.stat()
    path.write_bytes(content)
    os.utime(str(path), ns=(status.st_atime_ns, status.st_mtime_ns))


def test_after_a_restart_an_unfinished_run_is_checked_by_content(
    model: Path, tmp_path: Path
) -> None:
    """Files of the right size and time may hold nothing after a power loss."""
    images = put_images(tmp_path / "images", [f"{index}.bin" for index in range(4)])
    infer_images(model, images)
    path = tmp_path / "result.record.jsonl"
    restart(path)
    assert "are up to date" in infer_images(model, images).stdout, (
        "after a finished run the disk has everything"
    )
    unfinish(path)
    (tmp_path / "result_summary.json").write_bytes(b"")
    result = tmp_path / "result" / "2_0.txt"
    overwrite(result, b"\0" * result.stat().st_size)
    # as if only the content had changed
    change_file(path, "result/2_0.txt", ctime_ns=result.stat().st_ctime_ns)
    assert "1 image inferred" in infer_images(model, images).stdout
    assert result.read_bytes() == b"2.000000 0.500000 -2.000000 \n"
    assert json.loads((tmp_path / "result_summary.json").read_text())["filesinfo"]


def test_files_that_no_record_accounts_for_are_refused_and_stay(
    model: Path, tmp_path: Path
) -> None:
    images = put_images(tmp_path / "images", ["a.bin"])
    (tmp_path / "result").mkdir()
    (tmp_path / "result" / "a_0.txt").write_text("somebody's")
    command = (
        RUNNER,
        "--model",
        model,
        "--input",
        images,
        "--output",
        tmp_path,
        "--output_dirname",
        "result",
    )
    assert "result/a_0.txt: no record says that this program made it; move it away" in refusal(
        *command
    )
    (tmp_path / "result" / "a_0.txt").rename(tmp_path / "kept")
    succeed(*command)
    (tmp_path / "result" / "notes.txt").write_text("mine")
    assert "result/notes.txt: no record says that this program made it" in refusal(
        *command, "--force"
    )
    assert sorted(os.listdir(str(tmp_path / "result"))) == ["a_0.bin", "notes.txt"]


def test_inputs_are_taken_in_ais_benchs_order_and_suffixes_in_any_case(
    model: Path, tmp_path: Path
) -> None:
    images = put_images(tmp_path / "images", "b_2.bin B_10.BIN a_3.bin C_1.bin 5².bin".split())
    np.save(str(images / "d.npy"), np.zeros((3, SIDE, SIDE), np.float32))
    (images / "d.npy").rename(images / "d.NPY")
    infer_images(model, images, "--first", 5)
    summary = json.loads((tmp_path / "result_summary.json").read_text())
    assert [
        os.path.basename(entry["infiles"][0]) for entry in summary["filesinfo"].values()
    ] == "5².bin a_3.bin b_2.bin B_10.BIN C_1.bin".split()
    infer_images(model, images)
    assert len(contents(tmp_path / "result")) == 6


def test_a_prepared_image_that_was_damaged_is_refused_set_aside_and_made_again(
    tmp_path: Path,
) -> None:
    fill(tmp_path / "src", ["a.png", "b.png"])
    command = ("TResNet_preprocess.py", tmp_path / "src", tmp_path / "prep", "--img-size", SIDE)
    succeed(*command)
    (tmp_path / "prep" / "b.bin").write_bytes(b"\0" * (3 * SIDE * SIDE * 4))
    run = (
        RUNNER,
        "--model",
        make_model(tmp_path / "model.onnx"),
        "--input",
        tmp_path / "prep",
        "--output",
        tmp_path,
        "--output_dirname",
        "result",
    )
    said = refusal(*run)
    assert "b.bin was damaged after TResNet_preprocess.py had made it; run that step" in said
    assert f"b.bin: not as this program made it; moved to {tmp_path}/prep/aside" in said
    assert (tmp_path / "prep" / "aside" / "b.bin").read_bytes() == b"\0" * (3 * SIDE * SIDE * 4)
    assert "1 made" in succeed(*command).stdout
    succeed(*run)


def test_a_model_with_two_opsets_of_one_domain_is_refused(tmp_path: Path) -> None:
    """ONNX Runtime takes the last one, other programs the first."""
    model = make_model(tmp_path / "two.onnx")
    images = put_images(tmp_path / "images", ["a.bin"])
    changed = onnx.load(str(model))
    changed.opset_import.append(helper.make_opsetid("ai.onnx", 12))
    onnx.save(changed, str(model))
    said = refuses("--model", model, "--input", images, "--output", tmp_path, "--batchsize", 1)
    assert "(it imports the operators of one domain twice); make it with" in said
