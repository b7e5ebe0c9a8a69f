"""The chain on the Ascend backend, with stand-ins for npu-smi, atc and ais_bench that are as strict as
the real ones.
"""
import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any, Dict, List

import pytest
from ascend.environment import ascend_environment
from conftest import ROOT

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("ascend")]  # they share a work folder
WITHOUT = ("PYTHON", "PYTHONPATH", "VIRTUAL_ENV")
BATCH_SIZES = (1, 4, 8, 16, 32)
SHORT = ("--batch-sizes", "1,8", "--compare", "0")  # what does not look at tables and comparisons


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for the machine with a card: its home, its log of calls, and the work folder of all tests here."""
    return tmp_path_factory.mktemp("ascend")


def pipeline(machine: Path, *arguments: object, **switches: str) -> "subprocess.CompletedProcess[str]":
    environment = {key: value for key, value in os.environ.items() if key not in WITHOUT}
    environment.update(ascend_environment(machine, **switches), HOME=str(machine))
    command = ["bash", str(ROOT / "scripts" / "pipeline.sh"), "--workdir", str(machine / "work"), "--loop", "1",
               "--repeat", "1", *map(str, arguments)]
    return subprocess.run(command, cwd=str(ROOT), env=environment, universal_newlines=True, stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE, stdin=subprocess.DEVNULL)


def passed(machine: Path, *arguments: object, **switches: str) -> str:
    done = pipeline(machine, *arguments, **switches)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def calls(machine: Path) -> List[Dict[str, Any]]:
    return [json.loads(line) for line in (machine / "calls.jsonl").read_text().splitlines()]


def stamps(machine: Path, pattern: str) -> Dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in (machine / "work").glob(pattern)}


@pytest.fixture(scope="module")
def finished(machine: Path, sample: Path) -> None:
    """A first run in the machine's work folder has ended well."""
    link_sample(machine, sample)
    passed(machine, *SHORT)


def link_sample(machine: Path, sample: Path) -> None:
    """Put the sample data where the pipeline would make them."""
    (machine / "work").mkdir(mode=0o750)
    shutil.copytree(str(sample), str(machine / "work" / "sample"))


def test_without_options_the_card_is_taken_every_command_is_the_contracts_and_a_second_run_does_nothing_again(
        sample: Path, tmp_path: Path) -> None:
    machine = tmp_path
    link_sample(machine, sample)
    finished = passed(machine)
    assert finished.startswith("backend: ascend: Ascend310P3, atc and ais_bench are there\n")
    values = {row["key"]: row["value"] for row in json.loads((machine / "work" / "acc.json").read_text())["value"]}
    assert values["Top1 accuracy"] == "100.0%" and values["Number of images"] == "20"
    assert set(stamps(machine, "*.om")) == {f"tresnet_bs{batch}.om" for batch in BATCH_SIZES}
    compared = json.loads((machine / "work" / "compare.json").read_text())
    assert compared["images"] == 20 and "Top-1 agreement: 100.00 % (20 of 20)" in finished
    assert compared["verdict"].startswith("float16 explains it") and compared["verdict"] in finished
    forecast = json.loads((machine / "work" / "forecast.json").read_text())
    assert (forecast["images"], forecast["top1"]) == (20, 100.0)
    table = (machine / "work" / "perf.md").read_text()
    for batch, reference in zip(BATCH_SIZES, (1154, 2552, 3158, 3249, 2756)):
        row = rf"^\| 310P3 \| {batch} \| 20 sample photos \| Top-1 100.0%, Top-5 100.0% \|.*\| {reference} \|"
        assert re.search(row, table, re.MULTILINE), table
    assert "Best batch size" in finished and (machine / "work" / "perf.png").stat().st_size > 10000

    work = str(machine / "work")
    found = calls(machine)
    atc = [call["argv"] for call in found if call["tool"] == "atc"]
    assert atc == [["atc", "--framework=5", f"--model={work}/tresnet.onnx", f"--output=tresnet_bs{batch}",
                    "--input_format=NCHW", f"--input_shape=image:{batch},3,224,224", "--log=error",
                    "--soc_version=Ascend310P3"] for batch in BATCH_SIZES]
    bench = [call["argv"] for call in found if call["tool"] == "ais_bench"]
    assert bench[0] == ["python3", "-m", "ais_bench", "--model", f"{work}/tresnet_bs1.om",
                        "--input", f"{work}/prep_dataset", "--output", work, "--output_dirname", "result",
                        "--outfmt", "TXT"]
    for words in bench[1:]:
        batch = words[5].split("=")[1]
        assert words[:6] == ["python3", "-m", "ais_bench", f"--model={work}/tresnet_bs{batch}.om", "--loop=1",
                             f"--batchsize={batch}"]
    assert len(bench) == 1 + len(BATCH_SIZES)
    assert not any(".venv" in call["python"] for call in found), "atc and ais_bench run in the host's own Python"

    before = stamps(machine, "*.om"), stamps(machine, "result/*.txt")
    out = passed(machine)
    assert (stamps(machine, "*.om"), stamps(machine, "result/*.txt")) == before
    assert "20 results in" in out and out.count("up to date") == 5 + 5, (
        "five models, export, forecast, two inferences, performance")


def kept_figures(out: str, machine: Path) -> Dict[str, Any]:
    """What a run says of its results and speed: images/s in the summary's files, and who made the results."""
    record = json.loads((machine / "work" / "result.record.jsonl").read_text().splitlines()[0])
    perf = json.loads((machine / "work" / "perf.json").read_text())
    assert re.search(f"backend +{perf['backend']}\n", out.split("== Summary")[1])
    return {"tool": record["tool"], "device": record["device"], "chip": perf["chip"], "perf": perf["backend"]}


def test_in_one_work_folder_each_runs_figures_are_that_runs(finished: None, machine: Path) -> None:
    """The CPU, the card and the CPU again: nothing of one is taken for the other's."""
    options = ("--batch-sizes", "1", "--perf", "--compare", "0")
    seen, results = [], []
    for backend in ("cpu", "ascend", "cpu"):
        out = passed(machine, "--backend", backend, *options)
        seen.append(kept_figures(out, machine))
        results.append({path.name: path.read_bytes() for path in (machine / "work" / "result").iterdir()})
        assert ("20 images inferred" in out.split("== Accuracy")[0]) == (backend == "cpu"), "nothing is kept"
    assert seen[0] == seen[2] and seen[0]["tool"] == "infer_onnx.py" and seen[1]["tool"] == "infer_om.py"
    assert seen[0]["chip"].startswith("CPU") and seen[1]["chip"] == "310P3"
    assert results[0] == results[2] != results[1], "float16 rounds other than float32"


def test_another_device_infers_again_and_results_of_the_users_are_never_removed(
        finished: None, machine: Path) -> None:
    out = passed(machine, *SHORT, "--device", "1")
    assert "everything is inferred anew: other device" in out and "20 results, one for each image" in out
    notes = machine / "work" / "result" / "notes.txt"
    notes.write_text("mine")
    done = pipeline(machine, *SHORT)
    assert done.returncode == 1 and "holds notes.txt, and no record says that this program made it" in done.stderr
    assert notes.read_text() == "mine"
    notes.unlink()


@pytest.mark.parametrize("fault, sentence", (
    ("atc-fail=8", r"atc failed with status \d+ at batch size 8\n(.*\n)*?.*E[0-9A-Z]{5}"),
    ("atc-kill=8", r"atc was ended by signal KILL at batch size 8"),
))
def test_a_failing_compiler_is_reported_and_the_next_run_compiles_only_what_is_missing(
        fault: str, sentence: str, finished: None, machine: Path) -> None:
    (machine / "work" / "tresnet_bs8.om").unlink()
    before = stamps(machine, "*.om")
    done = pipeline(machine, *SHORT, STANDIN_FAULT=fault)
    assert done.returncode == 1 and re.search(sentence, done.stderr), done.stderr
    assert "the step 'Compile' failed" in done.stderr and "Traceback" not in done.stderr
    assert stamps(machine, "*.om") == before, "no half-written model"
    passed(machine, *SHORT)
    after = stamps(machine, "*.om")
    assert {name: after[name] for name in before} == before and "tresnet_bs8.om" in after


@pytest.mark.parametrize("fault, sentence", (
    ("ais-crash=5", r"the step 'Inference' failed with exit status [1-9]"),
    ("ais-missing=3", r"3 of 20 images have no result in .*: imagenet_"),
))
def test_an_incomplete_inference_is_never_evaluated(fault: str, sentence: str, finished: None, machine: Path) -> None:
    for path in [*(machine / "work" / "result").iterdir()][:1]:
        path.write_bytes(path.read_bytes()[:50])  # as a power loss may leave it
    done = pipeline(machine, *SHORT, STANDIN_FAULT=fault)
    assert done.returncode == 1 and re.search(sentence, done.stderr), done.stderr
    assert "== Accuracy " not in done.stdout
    before = stamps(machine, "*.om")
    assert "== Accuracy " in passed(machine, *SHORT)
    assert stamps(machine, "*.om") == before


def test_silent_loss_in_conversion_is_seen_in_the_comparison(finished: None, machine: Path) -> None:
    for path in (machine / "work").glob("*_bs1.om"):
        path.unlink()
    done = pipeline(machine, "--min-cosine", "0.99", "--batch-sizes", "1", STANDIN_FAULT="atc-lossy")
    assert done.returncode == 3 and "cosine" in done.stderr, done.stdout + done.stderr
    (machine / "work" / "tresnet_bs1.om").unlink()
    passed(machine, "--min-cosine", "0.99", "--batch-sizes", "1")


def test_bytes_and_aipp_on_the_card(finished: None, machine: Path) -> None:
    passed(machine, "--uint8", "--batch-sizes", "1", "--min-top1", "100", "--min-cosine", "0.999")
    settings, = (machine / "work").glob("prep_dataset*/aipp.cfg")
    assert any(f"--insert_op_conf={settings}" in call["argv"] for call in calls(machine))


@pytest.mark.parametrize("switches, arguments, sentence", (
    ({"STANDIN_NPU_SMI": "310P3+910B4"}, (), "chips of different kinds"),
    ({"STANDIN_NPU_SMI": "fail"}, ("--backend", "ascend"), "npu-smi info failed"),
    ({}, ("--backend", "ascend", "--device", "9"), "--device 9 was asked for, but there are 2"),
))
def test_a_machine_that_cannot_run_is_refused_in_one_sentence(
        switches: Dict[str, str], arguments: List[str], sentence: str, finished: None, machine: Path) -> None:
    done = pipeline(machine, *arguments, "--backend", "ascend", "--force", **switches)
    assert done.returncode == 1 and sentence in done.stderr and "Traceback" not in done.stderr, done.stderr


def test_path_and_permission_rules_are_checked_before_anything_long(machine: Path) -> None:
    environment = {key: value for key, value in os.environ.items() if key not in WITHOUT}
    environment.update(ascend_environment(machine), HOME=str(machine))
    open_folder = machine / "open"
    open_folder.mkdir()
    open_folder.chmod(0o777)
    link = machine / "link"
    link.symlink_to(machine / "work")
    refusals = ((open_folder, "chmod 750"), (machine / "w o r k", "only letters, digits and _ / . - are accepted"),
                (link, "is a symbolic link"))
    for workdir, sentence in refusals:
        done = subprocess.run(["bash", str(ROOT / "scripts" / "pipeline.sh"), "--workdir", str(workdir)],
                              env=environment, cwd=str(ROOT), universal_newlines=True, stdout=subprocess.PIPE,
                              stderr=subprocess.PIPE)
        assert done.returncode == 1 and sentence in done.stderr and "==" not in done.stdout, done.stdout + done.stderr


def test_check_names_chip_and_tools(finished: None, machine: Path) -> None:
    done = pipeline(machine, "--check")
    assert done.returncode == 0, done.stdout + done.stderr
    for item in ("Ascend310P3", "atc", "ais_bench", "aclruntime", "can run"):
        assert item in done.stdout
    done = pipeline(machine, "--check", "--backend", "ascend", STANDIN_NPU_SMI="fail")
    assert done.returncode == 1 and "cannot run" in done.stdout
