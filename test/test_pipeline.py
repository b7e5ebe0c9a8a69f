"""The chain as a whole on the CPU: right on real photos, wrong when it should be,
and impossible to damage by stopping it.
"""
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
from typing import Dict, List, Optional

import numpy as np
import onnx
import pytest
from conftest import ROOT, listed_sha256, sha256, succeed

STEPS = ("Sample data", "Preprocess", "Export", "Inference", "Accuracy")
# Without these a machine with the stand-ins or a real card would choose another backend.
ENVIRONMENT = {key: value for key, value in os.environ.items() if key not in ("PYTHON", "PYTHONPATH", "VIRTUAL_ENV")}


def pipeline(*arguments: object, cwd: Path = ROOT,
             env: Optional[Dict[str, str]] = None) -> "subprocess.CompletedProcess[str]":
    command = ["bash", str(ROOT / "scripts" / "pipeline.sh"), "--backend", "cpu", *map(str, arguments)]
    return subprocess.run(command, cwd=str(cwd), env=dict(ENVIRONMENT, **env or {}), universal_newlines=True,
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL)


def passed(*arguments: object, **options: object) -> str:
    done = pipeline(*arguments, **options)  # type: ignore[arg-type]
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def refused(*arguments: object, status: int = 1, **options: object) -> str:
    done = pipeline(*arguments, **options)  # type: ignore[arg-type]
    assert done.returncode == status, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done.stderr


def accuracy(workdir: Path) -> Dict[str, str]:
    return {row["key"]: row["value"] for row in json.loads((workdir / "acc.json").read_text())["value"]}


def products(workdir: Path) -> Dict[str, str]:
    """{path: SHA-256} of everything that a run leaves but its notes about times, paths and process ids."""
    notes = {".lock", ".python", "manifest.jsonl", "acc_report.json", "result_journal.jsonl", "result_summary.json"}
    return {str(path.relative_to(workdir)): sha256(path) for path in workdir.rglob("*")
            if path.is_file() and path.name not in notes}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The work folder of an undisturbed run without options."""
    workdir = tmp_path_factory.mktemp("finished") / "work"
    out = passed("--workdir", workdir)
    assert [line[3:-3] for line in out.splitlines() if line.startswith("== ")][:-1] == list(STEPS)
    return workdir


@pytest.fixture
def copy(finished: Path, tmp_path: Path) -> Path:
    """A copy of that folder, to be changed."""
    shutil.copytree(str(finished), str(tmp_path / "work"))
    return tmp_path / "work"


# ---- right, and wrong when it should be ------------------------------------------------------------------------------

def test_the_sample_reaches_100_percent_and_every_image_is_accounted_for(finished: Path) -> None:
    expected = {"Number of images": "20", "Number of classes": "1000"}
    expected.update({f"Top{k} accuracy": "100.0%" for k in range(1, 6)})
    assert json.loads((finished / "acc.json").read_text())["title"] == "Overall statistical evaluation"
    assert accuracy(finished) == expected
    counts = json.loads((finished / "acc_report.json").read_text())["counts"]
    assert counts == {"labelled": 20, "images": 20, "preprocessed": 20, "bad": 0, "inferred": 20, "evaluated": 20,
                      "left_out": 0}
    prepared = {path.name: sha256(path) for path in (finished / "prep_dataset").glob("*.bin")}
    assert prepared == listed_sha256("sample.sha256")


@pytest.mark.parametrize("damage, highest", (("swapped channels", 60), ("scale of 255", 30)))
def test_a_wrong_preparation_loses_photos(damage: str, highest: float, finished: Path, tmp_path: Path) -> None:
    prepared = tmp_path / "prepared"
    prepared.mkdir()
    for path in (finished / "prep_dataset").glob("*.bin"):
        image = np.fromfile(str(path), "<f4").reshape(3, 224, 224)
        (image[::-1] if damage == "swapped channels" else image * 255).tofile(str(prepared / path.name))
    succeed("scripts/infer_onnx.py", "--model", finished / "tresnet.onnx", "--input", prepared, "--output", tmp_path,
            "--output_dirname", "result", "--outfmt", "TXT", "--batchsize", 8)
    succeed("TResNet_postprocess.py", tmp_path / "result", finished / "sample" / "val_label.txt", tmp_path, "acc.json")
    assert float(accuracy(tmp_path)["Top1 accuracy"].rstrip("%")) <= highest


def test_the_commands_of_a_dry_run_are_the_steps_and_can_be_pasted(finished: Path, tmp_path: Path) -> None:
    out = passed("--dry-run", "--workdir", tmp_path / "by hand")
    commands = [line[2:] for line in out.splitlines() if line.startswith("$ ")]
    assert not (tmp_path / "by hand").exists() and len(commands) == 7
    script = "set -e\n" + "\n".join(commands)
    subprocess.run(["bash", "-c", script], cwd=str(ROOT), env=ENVIRONMENT, check=True, stdout=subprocess.DEVNULL,
                   stdin=subprocess.DEVNULL)
    assert (tmp_path / "by hand" / "acc.json").read_bytes() == (finished / "acc.json").read_bytes()


def test_bytes_in_quotes_with_aipp_give_the_same_logits(finished: Path, copy: Path) -> None:
    passed("--workdir", copy, "--uint8")
    assert all(path.stat().st_size == 150528 for path in (copy / "prep_dataset").glob("*.bin"))
    for path in (finished / "result").iterdir():
        difference = np.abs(np.array(path.read_text().split(), float)
                            - np.array((copy / "result" / path.name).read_text().split(), float))
        assert difference.max() <= 1e-4
    assert accuracy(copy)["Top1 accuracy"] == "100.0%"


def test_int8_is_measured_against_float32(copy: Path) -> None:
    out = passed("--workdir", copy, "--precision", "int8")
    assert accuracy(copy)["Top1 accuracy"] == "100.0%"
    comparison = json.loads((copy / "compare.json").read_text())
    speed = {name: json.loads((copy / f"{name}_summary.json").read_text())["throughput"]
             for name in ("result", "result_int8")}
    summary = out.split("== Summary")[1]
    assert re.search(r"Top5 accuracy +100\.0%, float32 100\.0%\n", summary)
    assert f"{speed['result_int8']:.1f} images/s, float32 {speed['result']:.1f}: " in summary
    assert comparison["images"] == 20
    assert re.search(rf"float32 for {comparison['top1_agreement']:.2f} % .*{comparison['cosine']['min']:.4f}", summary)
    (copy / "result_summary.json").unlink()  # as a run leaves it that is killed after its last image
    assert "speed               not measured: " in passed("--workdir", copy, "--precision", "int8")
    metadata = {entry.key: entry.value for entry in onnx.load(str(copy / "tresnet_int8.onnx")).metadata_props}
    assert metadata["precision"] == "int8" and metadata["variant"] == "tresnet_m"


def test_performance_is_measured_and_drawn(copy: Path) -> None:
    out = passed("--workdir", copy, "--perf", "--batch-sizes", "1,2", "--loop", "3", "--repeat", "2",
                 "--min-throughput", "0.001")
    assert {"perf.json", "perf.md", "perf.png"} <= set(os.listdir(str(copy)))
    rows = json.loads((copy / "perf.json").read_text())["rows"]
    assert [row["batch_size"] for row in rows] == [1, 2] and "best" in out.lower()
    assert "perf.png" in out.split("== Summary")[1]
    assert "perf.png" not in passed("--workdir", copy).split("== Summary")[1], "that was another run's"


# ---- a user's own data -----------------------------------------------------------------------------------------------

def test_class_folders_spaces_in_names_and_a_bad_image(finished: Path, tmp_path: Path) -> None:
    data = tmp_path / "my data"
    photos = sorted((finished / "sample" / "val_union").iterdir())[:4]
    for number, photo in enumerate(photos):
        folder = data / "val" / f"class {number}"
        folder.mkdir(parents=True)
        shutil.copy(str(photo), str(folder / "photo (1).JPEG"))  # four times the same name
    (data / "val" / "class 0" / "broken.jpg").write_bytes(b"\xff\xd8 no image")
    shutil.copy(str(finished / "sample" / "model_best.pth.tar"), str(data))
    said = refused("--data", data, "--workdir", tmp_path / "w o r k")
    assert "broken.jpg" in said and "the step 'Preprocess' failed with exit status 1" in said
    out = passed("--data", data, "--workdir", tmp_path / "w o r k", "--skip-bad")
    assert "1 of 5 images were left out" in out
    report = json.loads((tmp_path / "w o r k" / "acc_report.json").read_text())
    assert report["counts"]["evaluated"] == 4 and report["left_out"][0]["source"] == "class 0/broken.jpg"
    assert accuracy(tmp_path / "w o r k")["Top1 accuracy"] == "0.0%", (
        "class folders are numbered from 0, the sample's labels are not")


def test_gates_end_with_status_3_and_one_sentence(copy: Path) -> None:
    labels = (copy / "sample" / "val_label.txt").read_text().splitlines()
    (copy / "sample" / "val_label.txt").write_text("\n".join([labels[0].rsplit(" ", 1)[0] + " 7", *labels[1:]]))
    passed("--workdir", copy, "--min-top1", "95", "--min-top5", "95")
    said = refused("--workdir", copy, "--min-top1", "95.5", status=3)
    assert "95.0" in said and "95.5" in said and len(said.strip().splitlines()) == 1
    said = refused("--workdir", copy, "--min-throughput", "1000000000", "--batch-sizes", "1", "--loop", "1",
                   "--repeat", "1", status=3)
    assert len([line for line in said.strip().splitlines() if not line.startswith("\r")]) == 1


@pytest.mark.parametrize("arguments, status, sentence", (
    (("--frobnicate",), 2, "unknown option or argument '--frobnicate'"),
    (("work",), 2, "unknown option or argument 'work'"),
    (("--data",), 2, "--data needs a value"), (("--backend=gpu",), 2, "--backend is auto, ascend or cpu, not 'gpu'"),
    (("--img-size", "225"), 2, "--img-size is a multiple of 32"),
    (("--min-top1", "high"), 2, "--min-top1 takes a number, not 'high'"),
    (("--batch-sizes", "1,,2"), 2, "--batch-sizes is a list such as 1,4,8"),
    (("--data", "/nowhere"), 1, "should hold a folder val_union/"),
    (("--workdir", "/proc/work"), 1, "cannot be made or written"),
))
def test_wrong_usage(arguments: List[str], status: int, sentence: str, tmp_path: Path) -> None:
    assert sentence in refused(*arguments, status=status, cwd=tmp_path)


def test_a_failing_step_is_named_with_its_own_error(finished: Path, tmp_path: Path) -> None:
    (tmp_path / "checkpoint.pth").write_text("<html>")
    said = refused("--data", finished / "sample", "--checkpoint", tmp_path / "checkpoint.pth",
                   "--workdir", tmp_path / "work")
    assert "is not a PyTorch checkpoint" in said and "the step 'Export' failed with exit status 1" in said


def test_check_tells_what_is_missing_for_each_backend(tmp_path: Path) -> None:
    done = pipeline("--check", "--workdir", tmp_path / "work")
    assert done.returncode == 0 and "backend cpu (as --backend says): can run" in done.stdout
    assert not (tmp_path / "work").exists()
    done = pipeline("--check", "--data", tmp_path, "--workdir", tmp_path / "work")
    assert done.returncode == 1
    missing = [line for line in done.stdout.splitlines() if " missing " in line]
    found = {line.split("  ")[1].strip() if line.startswith(("both", "cpu")) else "" for line in missing}
    assert {"images", "labels", "checkpoint"} <= {word for line in missing for word in line.split()}, found


# ---- once, one at a time, and resumed --------------------------------------------------------------------------------

def test_a_second_run_does_nothing_again(copy: Path) -> None:
    passed("--workdir", copy)  # the copy's .bin files have new modification times, which counts as a change once
    before = {name: (copy / name).stat().st_mtime_ns for name in products(copy) if name != "acc.json"}
    start = time.time()
    out = passed("--workdir", copy)
    assert {name: (copy / name).stat().st_mtime_ns for name in products(copy) if name != "acc.json"} == before
    assert out.count("up to date") == 2 and time.time() - start < 20


def test_a_second_run_at_the_same_time_is_told_who_is_at_work(copy: Path) -> None:
    command = ["bash", str(ROOT / "scripts" / "pipeline.sh"), "--backend", "cpu", "--workdir", str(copy), "--force"]
    first = subprocess.Popen(command, cwd=str(ROOT), env=ENVIRONMENT, stdout=subprocess.PIPE,
                             stderr=subprocess.DEVNULL)
    assert first.stdout is not None
    wait_for(first, "Preprocess")
    said = refused("--workdir", copy)
    assert f"in use by the run with process id {first.pid}" in said
    first.send_signal(signal.SIGINT)
    first.communicate()
    assert first.returncode == 130
    passed("--workdir", copy)


def wait_for(process: "subprocess.Popen[bytes]", step: str) -> bool:
    """Read the pipeline's output up to a step's header; False if it ended before."""
    assert process.stdout is not None
    for line in process.stdout:
        if line.decode().strip() == f"== {step} ==":
            return True
    return False


def session(leader: int) -> List[int]:
    """Process ids of a session: the pipeline and all that it started, whatever process groups they are in."""
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


def start(workdir: Path) -> "subprocess.Popen[bytes]":
    command = ["bash", str(ROOT / "scripts" / "pipeline.sh"), "--backend", "cpu", "--workdir", str(workdir)]
    return subprocess.Popen(command, cwd=str(ROOT), env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                            stdin=subprocess.DEVNULL, start_new_session=True)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_killed_anywhere_it_goes_on_and_ends_with_the_same_bytes(finished: Path, tmp_path: Path) -> None:
    workdir = tmp_path / "work"
    generator = random.Random(5)
    longest = {"Sample data": 3.0, "Preprocess": 0.6, "Export": 4.0, "Inference": 2.0, "Accuracy": 0.5}
    kills = {step: 0 for step in STEPS}
    for step in STEPS:
        for attempt in range(4):
            if step == "Preprocess":
                shutil.rmtree(str(workdir / "prep_dataset"), ignore_errors=True)
            elif step == "Inference":
                shutil.rmtree(str(workdir / "result"), ignore_errors=True)
            process = start(workdir)
            if wait_for(process, step):
                time.sleep(generator.uniform(0, longest[step]) * (attempt + 1) / 4)
                for number in session(process.pid):
                    os.kill(number, signal.SIGKILL)
                kills[step] += 1
            process.communicate()
            deadline = time.time() + 10
            while session(process.pid) and time.time() < deadline:
                time.sleep(0.01)
            assert not session(process.pid)
    assert min(kills.values()) >= 4 and sum(kills.values()) >= 20, kills
    passed("--workdir", workdir)
    assert products(workdir) == products(finished)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize("number, status", ((signal.SIGINT, 130), (signal.SIGTERM, 143)))
@pytest.mark.parametrize("step", ("Preprocess", "Export", "Inference"))
def test_ctrl_c_ends_all_within_two_seconds_with_one_line(step: str, number: signal.Signals, status: int,
                                                          tmp_path: Path, finished: Path) -> None:
    workdir = tmp_path / "work"
    shutil.copytree(str(finished / "sample"), str(workdir / "sample"))
    if step == "Inference":
        shutil.copy(str(finished / "tresnet.onnx"), str(workdir))
    process = start(workdir)
    assert wait_for(process, step)
    time.sleep(0.1 if step == "Preprocess" else 0.3)  # preprocessing 20 photos is over after 0.3 s
    began = time.time()
    process.send_signal(number)
    said = process.communicate()[1].decode()
    assert time.time() - began < 2.5 and process.returncode == status
    assert not session(process.pid)
    assert f"stopped during {step}; the same command goes on from there" in said and "Traceback" not in said
    assert len(said.strip().splitlines()) == 1, said
