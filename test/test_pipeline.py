"""The whole chain on the CPU: right on real photos, wrong when it should be, safe to stop."""

import contextlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Callable, Dict, List, Tuple

from common.core import places
from common.model.checkpoint import find_state_dict, load_checkpoint
from common.results import summary as summary_of
from common.results.results import read_result

import numpy as np
import onnx
import pipeline
import pytest
from conftest import (
    ROOT,
    SMALL,
    copy_products,
    heavy_imports,
    pipeline_command,
    run_here,
    run_pipeline,
    sha256,
)

import TResNet_pth2onnx as export

pytestmark = pytest.mark.slow
SIZE = ("--img-size", str(SMALL))
# Without these a machine with the stand-ins or a real card would choose another backend.
ENVIRONMENT = {
    key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "VIRTUAL_ENV")
}


def chain(*words: object, **options: Any) -> "subprocess.CompletedProcess[str]":
    """Run the whole chain in an environment that cannot choose another backend."""
    return run_pipeline(*words, **{"cwd": str(ROOT), "env": ENVIRONMENT, **options})


def chain_output(*words: object, **options: Any) -> str:
    """What a run of the chain that must succeed prints on stdout."""
    done = chain(*words, **options)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def chain_refusal(*words: object, status: int = 1, **options: Any) -> str:
    """What a run of the chain that must refuse prints on stderr."""
    done = chain(*words, **options)
    assert done.returncode == status, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done.stderr


def accuracy(workdir: Path) -> Dict[str, str]:
    return {
        row["key"]: row["value"] for row in json.loads((workdir / "acc.json").read_text())["value"]
    }


def product_hashes(workdir: Path) -> Dict[str, str]:
    """{path: SHA-256} of all products of a run without notes of times, paths and process ids."""
    notes = {
        ".lock",
        "manifest.jsonl",
        "acc_report.json",
        "result_summary.json",
        "run.json",
        "pipeline.log",
        "report.html",
    }
    return {
        str(path.relative_to(workdir)): sha256(path)
        for path in workdir.rglob("*")
        if path.is_file() and path.name not in notes and not path.name.endswith(".record.jsonl")
    }


@pytest.fixture
def work_copy(small_work: Path, tmp_path: Path) -> Path:
    """A work_copy of the work folder of a finished run on small images, to be changed."""
    copy_products(small_work, tmp_path / "work")
    return tmp_path / "work"


@pytest.fixture
def options(work_copy: Path, small_sample: Path) -> Tuple[object, ...]:
    """The options of the run that made `work_copy`."""
    return ("--workdir", work_copy, "--data", small_sample, *SIZE)


# ---- right, and wrong when it should be ----------------------------------------------------------


def test_the_commands_of_a_dry_run_are_the_steps_and_can_be_pasted(
    small_work: Path, small_model: Path, small_sample: Path, tmp_path: Path
) -> None:
    out = chain_output("--dry-run", "--perf", "--stem", "conv12")
    assert "--data-set '20 sample photos'" in out and "tresnet.onnx --stem conv12\n" in out
    out = chain_output(
        "--dry-run", "--workdir", tmp_path / "by hand", "--data", small_sample, *SIZE
    )
    commands = [line[2:] for line in out.splitlines() if line.startswith("$ ")]
    assert not (tmp_path / "by hand").exists() and len(commands) == 8
    copy_products(small_model, tmp_path / "by hand")
    subprocess.run(
        ["bash", "-ec", "\n".join(commands)],
        cwd=str(ROOT),
        env=ENVIRONMENT,
        check=True,
        stdout=subprocess.DEVNULL,
        stdin=subprocess.DEVNULL,
    )
    assert (tmp_path / "by hand" / "acc.json").read_bytes() == (
        small_work / "acc.json"
    ).read_bytes()


def test_bytes_with_aipp_give_the_same_logits_and_a_second_run_does_nothing_again(
    small_work: Path, work_copy: Path, options: Tuple[object, ...]
) -> None:
    options += ("--uint8", "--perf", "--batch-sizes", "1", "--loop", "1", "--repeat", "1")
    chain_output(*options)
    (settings,) = work_copy.glob(
        "prep_dataset-*/aipp.cfg"
    )  # beside the folder of the run before, which had other settings
    assert {path.stat().st_size for path in settings.parent.glob("*.bin")} == {3 * SMALL**2}
    for path in (small_work / "result").iterdir():
        difference = np.abs(
            read_result(str(path)) - read_result(str(work_copy / "result" / path.name))
        )
        assert difference.max() <= 1.2e-3  # of a largest logit of 12
    assert accuracy(work_copy)["Top1 accuracy"] == "100.0%"
    clean(options, work_copy)
    before = {name: (work_copy / name).stat().st_mtime_ns for name in product_hashes(work_copy)}
    out = chain_output(*options)
    assert out.count("up to date") == 5 and "already there)\n" in out
    changed = {
        name for name, stamp in before.items() if (work_copy / name).stat().st_mtime_ns != stamp
    }
    assert changed <= {
        "acc.json",
        f"{settings.parent.name}/aipp.cfg",
        "perf.json",
        "perf.md",
        "perf.png",
    }


def test_clean_leaves_a_folder_alone_that_no_run_worked_in(
    small_sample: Path, tmp_path: Path
) -> None:
    (tmp_path / "mine").mkdir()
    words = ("--data", small_sample, *SIZE, "--workdir", tmp_path / "mine", "--clean", "--yes")
    assert "holds nothing that a record calls this program's own" in chain_refusal(*words)
    assert not list((tmp_path / "mine").iterdir())


def clean(options: Tuple[object, ...], work: Path) -> None:
    """--clean lists the images of the run before, which were float32, and --yes removes them."""
    out = chain_output(*options, "--clean")
    assert re.search(rf" \d+ kB  {work}/prep_dataset \(20 files\)\n +\d+ kB  in all\n", out)
    assert out.endswith("nothing was removed; add --yes to remove it\n")
    assert (work / "prep_dataset").exists()
    assert "removed " in chain_output(*options, "--clean", "--yes")
    assert not (work / "prep_dataset").exists()
    assert "needs all that earlier runs left" in chain_output(*options, "--clean")


def test_int8_is_measured_against_float32(
    work_copy: Path, options: Tuple[object, ...], capsys: pytest.CaptureFixture
) -> None:
    out = chain_output(*options, "--precision", "int8")
    assert accuracy(work_copy)["Top1 accuracy"] == "100.0%"
    comparison = json.loads((work_copy / "compare.json").read_text())
    speed = json.loads((work_copy / "tresnet_int8.json").read_text())["speed"]
    summary = out.split("== Summary")[1]
    assert re.search(r"Top5 accuracy +100\.0%, float32 100\.0%\n", summary)
    figures = f"{speed['int8']:.1f} images/s, float32 {speed['float32']:.1f}: {speed['ratio']:.2f}"
    assert f"{figures} times as fast (" in summary, "measured in turns, not two single passes"
    assert comparison["images"] == 20
    agreement, cosine = comparison["top1_agreement"], comparison["cosine"]["min"]
    assert re.search(rf"float32 for {agreement:.2f} % of 20 images, .*{cosine:.4f}", summary)
    said = json.loads((work_copy / "result_summary.json").read_text())
    # as a run leaves it that goes on after its last image
    (work_copy / "result_summary.json").write_text(json.dumps(dict(said, throughput=0.0)))
    words = str(work_copy / "result_int8"), str(work_copy / "result"), {"compare"}, ""
    model, quantised = str(work_copy / "tresnet.onnx"), str(work_copy / "tresnet_int8.onnx")
    summary_of.show(str(work_copy), "cpu", model, quantised, *words)
    assert f"{figures} times as fast (" in capsys.readouterr().out
    (work_copy / "compare.json").unlink()  # as after a run without the step compare
    summary_of.show(str(work_copy), "cpu", model, quantised, *words[:2], (), "")
    assert "agreement" not in capsys.readouterr().out
    metadata = {
        entry.key: entry.value
        for entry in onnx.load(str(work_copy / "tresnet_int8.onnx")).metadata_props
    }
    assert metadata["precision"] == "int8" and metadata["variant"] == "tresnet_m"


def test_performance_is_measured_and_drawn(work_copy: Path, options: Tuple[object, ...]) -> None:
    out = chain_output(*options, "--perf", "--batch-sizes", "1,2", "--loop", "1", "--repeat", "1")
    assert {"perf.json", "perf.md", "perf.png"} <= set(os.listdir(str(work_copy)))
    rows = json.loads((work_copy / "perf.json").read_text())["rows"]
    assert [row["batch_size"] for row in rows] == [1, 2] and "best" in out.lower()
    assert "perf.png" in out.split("== Summary")[1]
    assert "perf.png" not in chain_output(*options).split("== Summary")[1], "that was another run's"


@pytest.mark.parametrize(
    "words, note",
    (
        ((), summary_of.SAMPLE_NOTE),
        (("--img-size", "224"), summary_of.SAMPLE_NOTE),
        (("--img-size", "448"), summary_of.PREPARED_OTHERWISE),
        (("--checkpoint", "mine.pth"), ""),
    ),
)
def test_the_samples_accuracy_is_a_proof_only_with_its_own_evaluation(
    words: Tuple[str, ...], note: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["pipeline.sh", *words])
    arguments = pipeline.parse_arguments()
    data = pipeline.check.locate(arguments)
    run = pipeline.Run(arguments, data, "cpu", "", places.checkout(), sys.executable, 0.0)
    assert run.note == note


# ---- a user's own data ---------------------------------------------------------------------------


@pytest.fixture
def class_folders(small_sample: Path, tmp_path: Path) -> Path:
    """Four class folders, each with a photo of the same name, and the sample's checkpoint."""
    data = tmp_path / "my data"
    for number, photo in enumerate(sorted((small_sample / "val_union").iterdir())[:4]):
        folder = data / "val" / f"class {number}"
        folder.mkdir(parents=True)
        shutil.copy(str(photo), str(folder / "photo (1).JPEG"))
    os.link(str(small_sample / "model_best.pth.tar"), str(data / "model_best.pth.tar"))
    return data


def test_class_folders_spaces_in_names_and_a_bad_image(
    class_folders: Path, small_sample: Path, small_model: Path, tmp_path: Path
) -> None:
    (class_folders / "val" / "class 0" / "broken.jpg").write_bytes(b"\xff\xd8 no image")
    numbers = [
        line.split()[1] for line in (small_sample / "val_label.txt").read_text().splitlines()[:4]
    ]
    (tmp_path / "map.txt").write_text(
        "".join(f"class {place} {number}\n" for place, number in enumerate(numbers))
    )
    copy_products(small_model, tmp_path / "w o r k")
    options = (
        "--data",
        class_folders,
        "--workdir",
        tmp_path / "w o r k",
        "--class-map",
        tmp_path / "map.txt",
        *SIZE,
    )
    said = chain_refusal(*options)
    assert (
        "broken.jpg" in said
        and "the step 'Preprocess' failed with exit status 1 (see above)" in said
    )
    out = chain_output(*options, "--skip-bad")
    assert "1 of 5 images were left out" in out
    report = json.loads((tmp_path / "w o r k" / "acc_report.json").read_text())
    assert (
        report["counts"]["evaluated"] == 4
        and report["left_out"][0]["source"] == "class 0/broken.jpg"
    )
    assert accuracy(tmp_path / "w o r k")["Top1 accuracy"] == "100.0%"


def test_gates_end_with_status_3_and_one_sentence(
    small_sample: Path, work_copy: Path, options: Tuple[object, ...]
) -> None:
    data = work_copy.parent / "data"
    copy_products(small_sample, data)
    labels = (data / "val_label.txt").read_text().splitlines()
    (data / "val_label.txt").write_text(
        "\n".join([labels[0].rsplit(" ", 1)[0] + " 7", *labels[1:]])
    )
    options += ("--data", data)
    said = chain_refusal(*options, "--min-top1", "95.5", status=3)
    assert "95.0" in said and "95.5" in said and len(said.strip().splitlines()) == 1
    assert "below a minimum" in (work_copy / "report.html").read_text(), (
        "the report is made all the same"
    )
    said = chain_refusal(
        *options,
        "--min-top1",
        "95",
        "--min-top5",
        "95",
        "--min-throughput",
        "1e9",
        "--batch-sizes",
        "1",
        "--loop",
        "1",
        "--repeat",
        "1",
        status=3,
    )
    (line,) = [line for line in said.strip().splitlines() if not line.startswith("\r")]
    assert "below --min-throughput 1000000000.0" in line, "the other two hold"


# ---- what can be known at the start --------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments, status, sentence",
    (
        (("--frobnicate",), 2, "unrecognized arguments: --frobnicate; see pipeline.sh --help"),
        (("work",), 2, "unrecognized arguments: work"),
        (("--data",), 2, "--data: expected one argument"),
        (("--backend=gpu",), 2, "--backend: invalid choice: 'gpu'"),
        (("--data", ""), 2, "--data: the path is empty"),
        (("--workdir", ""), 2, "--workdir: the path is empty"),
        (("--workdir", "/"), 2, "the root folder / is not allowed here"),
        (("--img-size", "225"), 2, "a multiple of 32"),
        (
            ("--min-top1", "high"),
            2,
            "--min-top1: 'high' is not a number of at least 0 and at most 100",
        ),
        (("--min-top1", "150"), 2, "'150' is not a number of at least 0 and at most 100"),
        (("--batch-sizes", "1,,2"), 2, "'1,,2' is not a list of batch sizes joined by commas"),
        (("--loop", "99999999999"), 2, "a whole number"),
        (("--min-cosine", "0.9"), 2, "--min-cosine needs a comparison"),
        (("--max-drop", "1"), 2, "--max-drop is a promise about int8"),
        (("--tune", "--precision", "int8", "--max-drop", "1"), 2, "--tune does not try --max-drop"),
        (
            ("--small-channel", "--backend", "cpu"),
            2,
            "--small-channel is for a first convolution behind AIPP on the card",
        ),
        (("--only", "exprt"), 2, "exprt is not a step; there are sample, data, export, speed"),
        (("--only", "export,"), 2, "'export,' is not a step, or several joined by commas"),
        (("--from", "compile"), 2, "a run on cpu does not have the step compile, only sample, exp"),
        (("--only", "export", "--from", "export"), 2, "--only and --from contradict each other"),
        (
            ("--only", "export", "--min-top1", "50"),
            2,
            "--min-top1 is decided by the step accuracy, which --only or --from leaves out",
        ),
        (("--data", "/nowhere"), 1, "/nowhere does not exist; give the folder or the archive"),
        (("--workdir", "/proc/work"), 1, "cannot be made or written"),
    ),
)
def test_wrong_usage(arguments: List[str], status: int, sentence: str, tmp_path: Path) -> None:
    assert sentence in chain_refusal(*arguments, status=status, cwd=tmp_path)
    assert not list(tmp_path.iterdir())


def no_labels(data: Path) -> str:
    (data / "val_label.txt").unlink()
    return "labels: .*val_label.txt does not exist, and not all images are in class folders"


def labels_of_other_images(data: Path) -> str:
    (data / "val_label.txt").write_text("ILSVRC2012_val_00000001.JPEG 65\n")
    return "labels: 20 of 20 images have no label in .*val_label.txt: imagenet_00_243.jpg, "


def a_line_that_is_no_label(data: Path) -> str:
    (data / "val_label.txt").write_text("image,label\n" + (data / "val_label.txt").read_text())
    return "labels: .*val_label.txt, line 1: 'image,label' is not a label"


def no_checkpoint(data: Path) -> str:
    (data / "model_best.pth.tar").unlink()
    return (
        "checkpoint: the checkpoint .*model_best.pth.tar does not exist; name it: --checkpoint FILE"
    )


def no_images(data: Path) -> str:
    shutil.rmtree(str(data / "val_union"))
    (data / "val_union").mkdir()
    return "images: there are no images in .*val_union: no file there ends in .jpg, "


@pytest.mark.parametrize(
    "spoil", (no_labels, labels_of_other_images, a_line_that_is_no_label, no_checkpoint, no_images)
)
def test_data_that_cannot_be_evaluated_are_refused_before_anything_is_made(
    spoil: Callable[[Path], str], small_sample: Path, tmp_path: Path
) -> None:
    data = tmp_path / "data"
    copy_products(small_sample, data)
    assert re.search(spoil(data), chain_refusal("--data", data, "--workdir", tmp_path / "work"))
    assert not (tmp_path / "work").exists()


def test_labels_that_the_network_does_not_have_are_refused_before_the_inference(
    class_folders: Path, small_sample: Path, small_model: Path, tmp_path: Path
) -> None:
    data = tmp_path / "data"
    copy_products(small_sample, data)
    (data / "val_label.txt").write_text(
        (data / "val_label.txt").read_text().replace(" 243\n", " 1000\n")
    )
    copy_products(small_model, tmp_path / "work")
    done = chain("--data", data, "--workdir", tmp_path / "work", *SIZE)
    assert (
        done.returncode == 1
        and "line 1: label 1000 is outside the classes 0 to 999 of the model" in done.stderr
    )
    assert "== Preprocess " not in done.stdout
    done = chain("--data", class_folders, "--workdir", tmp_path / "work", *SIZE)
    assert (
        done.returncode == 1
        and "4 class folders ('class 0', 'class 1', 'class 2' and 1 more)" in done.stderr
    )
    assert "but the network has 1000 classes; give the number of each folder" in done.stderr
    assert "== Preprocess " not in done.stdout


def test_a_disk_too_small_for_the_chain_is_refused_in_one_sentence(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=10m,mode=750", "tmpfs", str(disk)],
        stderr=subprocess.PIPE,
    )
    if done.returncode:
        pytest.skip(f"this user may not mount a tmpfs: {os.fsdecode(done.stderr).strip()}")
    try:
        said = chain_refusal("--workdir", disk / "work")
        assert re.fullmatch(
            r"pipeline.sh: disk space: 1[01] MB are free for \S+, 2\d\d MB are needed for 20 "
            r"images and the models; free some space, or use --workdir on another disk; `--check` "
            r"shows all that is missing\n",
            said,
        )
        assert not list(disk.iterdir())
    finally:
        subprocess.run(["umount", str(disk)], check=True)


PROGRAMS = [*ROOT.glob("TResNet_*.py"), *ROOT.glob("scripts/*.py")]
SCRIPTS = sorted(str(path.relative_to(ROOT)) for path in PROGRAMS)


@pytest.mark.parametrize("script", SCRIPTS)
def test_outside_the_environment_each_script_says_which_package_is_missing(
    script: str, tmp_path: Path
) -> None:
    bare = os.path.join(sys.base_prefix, "bin", "python%d.%d" % sys.version_info[:2])
    done = subprocess.run(
        [
            bare,
            "-I",
            "-c",
            f"import sys, runpy; sys.argv = [{str(ROOT / script)!r}, '--help'];"
            "sys.path = [p for p in sys.path if 'site-packages' not in p];"
            f"sys.path.insert(0, {str((ROOT / script).parent)!r});"
            f"runpy.run_path({str(ROOT / script)!r}, run_name='__main__')",
        ],
        universal_newlines=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    if done.returncode == 0:  # this one runs in a bare Python
        assert "usage: " in done.stdout and done.stderr == ""
        return
    assert done.returncode == 1 and len(done.stderr.splitlines()) == 1, done.stderr
    packages = "numpy|onnx|Pillow|onnxruntime|matplotlib"
    name = Path(script).name.replace("onnx2om.py", "onnx2om.sh")  # what its user types
    assert re.match(
        rf"{name}: the package ({packages}) is not installed for \S+; use the environment "
        r"that has it: ",
        done.stderr,
    ), done.stderr


def test_a_failing_step_is_named_with_its_own_error(small_sample: Path, tmp_path: Path) -> None:
    (tmp_path / "checkpoint.pth").write_text("<html>")
    said = chain_refusal(
        "--data",
        small_sample,
        "--checkpoint",
        tmp_path / "checkpoint.pth",
        "--workdir",
        tmp_path / "work",
    )
    assert (
        "is not a PyTorch checkpoint" in said
        and "the step 'Export' failed with exit status 1 (see above)" in said
    )


def test_check_says_what_is_missing_for_each_backend(tmp_path: Path) -> None:
    done = chain("--check", "--workdir", tmp_path / "work")
    assert done.returncode == 0 and "backend cpu (as --backend says): can run" in done.stdout
    assert not (tmp_path / "work").exists()
    done = chain("--check", "--data", tmp_path, "--workdir", tmp_path / "work")
    assert done.returncode == 1
    missing = [line for line in done.stdout.splitlines() if " missing " in line]
    assert {"images", "labels", "checkpoint"} <= set(" ".join(missing).split())


# ---- once, one at a time, and resumed ------------------------------------------------------------


def test_a_second_run_does_nothing_again(work_copy: Path, options: Tuple[object, ...]) -> None:
    chain_output(*options)  # the work_copy's report names other paths
    before = {
        name: (work_copy / name).stat().st_mtime_ns
        for name in product_hashes(work_copy)
        if name != "acc.json"
    }
    done = chain(*options, env={**ENVIRONMENT, "PYTHONPROFILEIMPORTTIME": "1"})
    assert {
        name: (work_copy / name).stat().st_mtime_ns
        for name in product_hashes(work_copy)
        if name != "acc.json"
    } == before
    assert done.stdout.count("up to date") == 4 and "(20 already there)\n" in done.stdout
    assert heavy_imports(done.stderr) == [], (
        "what takes a second to import is not needed to see that nothing is to do"
    )


def steps_of(workdir: Path) -> Dict[str, Dict[str, Any]]:
    """{name: what run.json says} of the steps of the last run."""
    steps = json.loads((workdir / "run.json").read_text())["steps"]
    return {step.pop("name"): step for step in steps}


def test_a_step_that_kept_what_was_there_says_how_long_that_had_taken(
    work_copy: Path, options: Tuple[object, ...]
) -> None:
    some_steps = ("--only", "export,preprocess,inference")
    out = chain_output(*options, "--only", "preprocess,inference", "--force")
    assert "\nkept" not in out
    first = steps_of(work_copy)
    assert not first["Preprocess"]["kept"] and not first["Inference"]["kept"]
    out = chain_output(*options, *some_steps)
    second = steps_of(work_copy)
    assert second["Export"]["kept"] and out.count("\nkept (made in ") == 2
    for name in ("Preprocess", "Inference"):
        assert second[name]["kept"] and second[name]["made_in"] == first[name]["seconds"]
    bins = sorted((work_copy / "prep_dataset").glob("*.bin"))
    bins[0].unlink()
    chain_output(*options, *some_steps)
    assert not steps_of(work_copy)["Preprocess"]["kept"]
    chain_output(*options, *some_steps)
    third = steps_of(work_copy)["Preprocess"]
    assert third["kept"] and third["made_in"] is None, "19 of the images were made before that run"


def test_from_a_step_on_and_without_what_comes_before(
    work_copy: Path, options: Tuple[object, ...], tmp_path: Path
) -> None:
    (work_copy / "acc.json").unlink()
    out = chain_output(*options, "--from", "Accuracy")
    assert re.findall(r"^== (.*) \(step", out, re.MULTILINE) == ["Accuracy", "Report"]
    assert accuracy(work_copy)["Top1 accuracy"] == "100.0%" and "== Summary (" in out
    elsewhere = (*options, "--workdir", tmp_path / "empty")
    out = chain_output(*elsewhere, "--perf", "--only", "performance", "--dry-run")
    assert "perf_sweep.py" in out and "--accuracy" not in out, "there is no acc.json to show"
    said = chain_refusal(*elsewhere, "--only", "inference")
    assert "tresnet.onnx, which the step inference needs; add the step export\n" in said


def test_a_work_folder_that_moved_is_up_to_date_with_its_images(
    small_sample: Path, small_model: Path, tmp_path: Path
) -> None:
    """The images lie in the work folder, as the sample's and unpacked archives do."""
    before, after = tmp_path / "before", tmp_path / "after"
    copy_products(small_model, before)
    copy_products(small_sample, before / "data")
    words = ("--only", "export,preprocess,inference", *SIZE)
    chain_output("--workdir", before, "--data", before / "data", *words)
    before.rename(after)
    out = chain_output("--workdir", after, "--data", after / "data", *words)
    assert "(20 already there)" in out and "20 results in" in out
    assert [path.name for path in after.glob("prep_dataset*")] == ["prep_dataset"]


def test_prepared_images_serve_where_their_originals_are_elsewhere(
    work_copy: Path, options: Tuple[object, ...], small_sample: Path, tmp_path: Path
) -> None:
    copy_products(small_sample, tmp_path / "elsewhere")
    words = ("--data", tmp_path / "elsewhere", "--from", "inference")
    out = chain_output(*options, *words)
    assert "20 results in" in out and f"--prep {work_copy}/prep_dataset\n" in out


def test_run_json_gives_the_options_of_the_run_again(
    work_copy: Path, options: Tuple[object, ...], tmp_path: Path
) -> None:
    chain_output(*options)
    words = ("--config", work_copy / "run.json", "--only", "inference")
    (tmp_path / "elsewhere").mkdir()
    out = chain_output(*words, cwd=str(tmp_path / "elsewhere"))
    assert f"20 results in {work_copy}/result are up to date" in out
    assert not list((tmp_path / "elsewhere").iterdir())


def test_figures_of_another_evaluation_are_not_shown_beside_those_of_some_steps(
    work_copy: Path, options: Tuple[object, ...]
) -> None:
    """Of the run before, which measured the speed, only what is alike stays in the report."""
    run = json.loads((work_copy / "run.json").read_text())
    measured = dict(run, made=[*run["made"], "perf"], options={**run["options"], "uint8": True})
    (work_copy / "run.json").write_text(json.dumps(measured))
    chain_output(*options, "--only", "accuracy")
    assert "perf" not in json.loads((work_copy / "run.json").read_text())["made"]
    del measured["options"]["uint8"]
    (work_copy / "run.json").write_text(json.dumps(measured))
    chain_output(*options, "--only", "accuracy")
    assert "perf" in json.loads((work_copy / "run.json").read_text())["made"]


def test_the_log_has_what_all_steps_printed(
    small_model: Path, small_sample: Path, tmp_path: Path
) -> None:
    copy_products(small_model, tmp_path / "work")
    words = ("--workdir", tmp_path / "work", "--data", small_sample, *SIZE)
    done = chain(*words, stderr=subprocess.STDOUT)
    shutil.rmtree(str(tmp_path / "work" / "result"))
    failed = chain(*words, "--from", "accuracy", stderr=subprocess.STDOUT)
    assert (done.returncode, failed.returncode) == (0, 1)
    log = (tmp_path / "work" / "pipeline.log").read_text()
    lines = [line for line in log.splitlines(keepends=True) if not line.startswith("==== ")]
    assert "".join(lines) == f"{done.stdout}\n{failed.stdout}\n"
    assert "$ " in done.stdout and "the step 'Accuracy' failed" in failed.stdout
    assert "==== ended with status 1 after " in log


def test_a_second_run_at_the_same_time_learns_which_process_is_at_work(
    sample: Path, work_copy: Path, options: Tuple[object, ...]
) -> None:
    command = pipeline_command(*options, "--force", "--checkpoint", sample / "model_best.pth.tar")
    first = subprocess.Popen(
        command, cwd=str(ROOT), env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    assert first.stdout is not None
    wait_for(first, "Export")
    said = chain_refusal(*options)
    assert f"{work_copy} is in use by another run, process {first.pid}; wait for it" in said
    first.send_signal(signal.SIGINT)
    first.communicate()
    assert first.returncode == 130
    chain_output(*options)


def wait_for(process: "subprocess.Popen[bytes]", step: str) -> bool:
    """Read the pipeline's output up to a step's header; False if it ended before."""
    assert process.stdout is not None
    for line in process.stdout:
        if line.decode().startswith(f"== {step} (step "):
            return True
    return False


def session(leader: int) -> List[int]:
    """Process ids of a session: the pipeline and all that it started, in any process group."""
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                fields = Path(f"/proc/{entry}/stat").read_text().rsplit(")", 1)[1].split()
            except (OSError, IndexError):
                continue
            if int(fields[3]) == leader and fields[0] != "Z":
                found.append(int(entry))
    return found


def start_chain(workdir: Path, *options: object) -> "subprocess.Popen[bytes]":
    return subprocess.Popen(
        pipeline_command("--workdir", workdir, *options),
        cwd=str(ROOT),
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
        start_new_session=True,
    )


def kill_all(process: "subprocess.Popen[bytes]") -> None:
    """End the pipeline and all that it started at once, and wait until nothing of it lives."""
    for number in session(process.pid):
        with contextlib.suppress(ProcessLookupError):
            os.kill(number, signal.SIGKILL)
    process.communicate()
    deadline = time.time() + 10
    while session(process.pid) and time.time() < deadline:
        time.sleep(0.01)
    assert not session(process.pid)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_killed_anywhere_it_goes_on_and_ends_with_the_same_bytes(
    small_sample: Path, small_model: Path, small_work: Path, tmp_path: Path
) -> None:
    workdir, options = tmp_path / "work", ("--data", small_sample, *SIZE)
    copy_products(small_model, workdir)
    generator = random.Random(5)
    longest = {"Preprocess": 0.6, "Inference": 1.2, "Accuracy": 0.5}  # s
    kills = 0
    for step in longest:
        for attempt in range(1 if step == "Accuracy" else 2):
            if step == "Preprocess":
                shutil.rmtree(str(workdir / "prep_dataset"), ignore_errors=True)
            elif step == "Inference":
                shutil.rmtree(str(workdir / "result"), ignore_errors=True)
            process = start_chain(workdir, *options)
            if wait_for(process, step):
                time.sleep(generator.uniform(0, longest[step]) * (attempt + 1) / 2)
                kills += 1
            kill_all(process)
    assert kills == 5
    chain_output("--workdir", workdir, *options)
    assert product_hashes(workdir) == product_hashes(small_work)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_killed_in_the_export_it_exports_the_same_file(sample: Path, tmp_path: Path) -> None:
    generator = random.Random(5)
    for _ in range(2):
        process = start_chain(tmp_path / "work", "--data", sample, *SIZE)
        assert wait_for(process, "Export")
        time.sleep(generator.uniform(0, 4))
        kill_all(process)
    for model in (tmp_path / "work" / "tresnet.onnx", tmp_path / "undisturbed.onnx"):
        run_here(export.main, sample / "model_best.pth.tar", model, *SIZE)
    assert sha256(tmp_path / "work" / "tresnet.onnx") == sha256(tmp_path / "undisturbed.onnx")
    assert {path.name for path in (tmp_path / "work").glob("tresnet*")} == {
        "tresnet.onnx",
        "tresnet.onnx.record.jsonl",
    }


def test_killed_while_the_sample_is_made_it_makes_the_same_sample(
    small_sample: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "sample"
    program = "import sys, pathlib, conftest; conftest.make_small_sample(pathlib.Path(sys.argv[1]))"
    for seen in (
        "val_union",
        "val_label.txt",
    ):  # before the photos are complete, and before the checkpoint is
        process = subprocess.Popen(
            [sys.executable, "-c", program, str(folder)], cwd=str(ROOT / "test")
        )
        while not (folder / seen).exists() and process.poll() is None:
            time.sleep(0.01)
        process.kill()
        assert process.wait() == -signal.SIGKILL
    subprocess.run([sys.executable, "-c", program, str(folder)], cwd=str(ROOT / "test"), check=True)
    made, expected = product_hashes(folder), product_hashes(small_sample)
    checkpoint = "model_best.pth.tar"  # PyTorch 1.6 names its parts by addresses in memory
    assert made.pop(checkpoint) and expected.pop(checkpoint) and made == expected
    found, right = (
        find_state_dict(load_checkpoint(str(place / checkpoint)), checkpoint).tensors
        for place in (folder, small_sample)
    )
    assert list(found) == list(right)
    assert all(
        np.array_equal(tensor.numpy(), right[name].numpy()) for name, tensor in found.items()
    )


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize(
    "number, status", ((signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129))
)
@pytest.mark.parametrize("step", ("Preprocess", "Export", "Inference"))
def test_a_signal_ends_all_processes_with_one_line(
    step: str,
    number: signal.Signals,
    status: int,
    sample: Path,
    small_sample: Path,
    small_work: Path,
    tmp_path: Path,
) -> None:
    workdir = tmp_path / "work"
    if step != "Export":
        copy_products(small_work, workdir)
        shutil.rmtree(str(workdir / "prep_dataset"))
    process = start_chain(workdir, "--data", sample if step == "Export" else small_sample, *SIZE)
    assert wait_for(process, step)
    time.sleep(0.3 if step == "Export" else 0.1)  # the other steps take 0.3 s in all
    process.send_signal(number)
    errors = process.communicate()[1].decode()
    assert process.returncode == status
    assert not session(process.pid)
    sentence = f"pipeline.sh: stopped during {step}; the same command goes on from there\n"
    assert errors.lstrip() == sentence
