"""The chain on the Ascend backend, with stand-ins as strict as npu-smi, atc and ais_bench."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, Dict, List, NamedTuple, Tuple

import pytest
from ascend.environment import HOST_PYTHON, ascend_environment, give_host_packages
from ascend.helpers import Done, calls
from conftest import ROOT, SMALL, Shared, copy_products, heavy_imports
from records import rows_of
from test_npu_info import install_cann

pytestmark = pytest.mark.slow
WITHOUT = ("PYTHONPATH", "VIRTUAL_ENV")
BATCH_SIZES = (1, 4, 8, 16, 32)
# what does not look at tables and comparisons
ONE = ("--batch-size", "1", "--batch-sizes", "1", "--compare", "0")


class Card(NamedTuple):
    """A machine with a card, on which the pipeline runs."""

    home: Path  # the log of calls and the work folder are in it
    data: Path  # the data set

    @property
    def work(self) -> Path:
        return self.home / "work"


def pipeline(card: Card, *arguments: object, **switches: str) -> Done:
    environment = {key: value for key, value in os.environ.items() if key not in WITHOUT}
    environment.update(ascend_environment(card.home, **switches), HOME=str(card.home))
    command = [
        "bash",
        str(ROOT / "scripts" / "pipeline.sh"),
        "--workdir",
        str(card.work),
        "--data",
        str(card.data),
        "--img-size",
        str(SMALL),
        *"--loop 1 --repeat 1".split(),
        *map(str, arguments),
    ]
    return subprocess.run(
        command,
        cwd=str(ROOT),
        env=environment,
        universal_newlines=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
    )


def passed(card: Card, *arguments: object, **switches: str) -> str:
    done = pipeline(card, *arguments, **switches)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def commands_of(card: Card, tool: str) -> List[List[str]]:
    """The commands by which a stand-in was started so far, oldest first."""
    rows = calls({"STANDIN_LOG": str(card.home / "calls.jsonl")}, tool)
    return [row["argv"] for row in rows]


def stamps(card: Card, pattern: str) -> Dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in card.work.glob(pattern)}


@pytest.fixture(scope="session")
def first_run(shared: Shared, small_sample: Path, small_model: Path) -> Path:
    """The work folder of a run on the card that ended well, batch size 1."""

    def make(folder: Path) -> None:
        copy_products(small_model, folder / "work")
        passed(Card(folder, small_sample), *ONE)

    return shared("first_run", make) / "work"


@pytest.fixture
def card(first_run: Path, small_sample: Path, tmp_path: Path) -> Card:
    """A machine of its own, on which that run has ended."""
    copy_products(first_run, tmp_path / "work")
    return Card(tmp_path, small_sample)


def check_products(card: Card, stdout: str) -> None:
    """Accuracy, models, comparison, forecast and the table of a run with all batch sizes."""
    rows = json.loads((card.work / "acc.json").read_text())["value"]
    values = {row["key"]: row["value"] for row in rows}
    assert values["Top1 accuracy"] == "100.0%" and values["Number of images"] == "20"
    assert set(stamps(card, "*.om")) == {f"tresnet_bs{batch}.om" for batch in BATCH_SIZES}
    compared = json.loads((card.work / "compare.json").read_text())
    assert compared["images"] == 20 and "Top-1 agreement: 100.00 % (20 of 20)" in stdout
    assert compared["verdict"].startswith("float16 explains it") and compared["verdict"] in stdout
    forecast = json.loads((card.work / "forecast.json").read_text())
    assert (forecast["images"], forecast["top1"]) == (20, 100.0)
    table = (card.work / "perf.md").read_text()
    accuracy = r"small_sample \| Top-1 100.0%, Top-5 100.0%"
    for batch in BATCH_SIZES:
        row = rf"^\| 310P3 \| {batch} \| {accuracy} \| [\d.]+ \| [\d.]+ \| [\d.]+ \|$"
        assert re.search(row, table, re.MULTILINE), table
    assert "Best batch size" in stdout and (card.work / "perf.png").stat().st_size > 10000


def check_commands(card: Card) -> None:
    """Every command of that run is the contract's."""
    assert commands_of(card, "atc") == [
        [
            "atc",
            "--framework=5",
            f"--model={card.work}/tresnet.onnx",
            f"--output=tresnet_bs{batch}",
            "--input_format=NCHW",
            f"--input_shape=image:{batch},3,{SMALL},{SMALL}",
            "--log=error",
            "--soc_version=Ascend310P3",
        ]
        for batch in BATCH_SIZES
    ]
    inference, *sweep = [" ".join(words) for words in commands_of(card, "ais_bench")]
    assert inference == (
        "python3 -m ais_bench --model ../tresnet_bs8.om --input in0 --output . "
        "--output_dirname out0 --outfmt NPY"
    ), "short names, as seen from a folder of its own"
    assert len(sweep) == len(BATCH_SIZES)
    for words in sweep:
        batch = re.findall("--batchsize=([0-9]+)", words)[0]
        command = f"python3 -m ais_bench --model=../tresnet_bs{batch}.om --loop=1"
        assert words.startswith(f"{command} --batchsize={batch}")
    rows = calls({"STANDIN_LOG": str(card.home / "calls.jsonl")})
    assert not any(".venv" in row["python"] for row in rows), "they run in the host's own Python"
    commands = json.loads((card.work / "run.json").read_text())["commands"]
    with_facts = [words for words in commands if f" --host-facts {card.work}/.host.json" in words]
    assert len(with_facts) == 2, "the inference and the sweep, for this run"
    assert not (card.work / ".host.json").exists()


def test_without_options_the_card_is_taken_and_a_second_run_does_nothing(
    small_sample: Path, small_model: Path, tmp_path: Path
) -> None:
    card = Card(tmp_path, small_sample)
    copy_products(small_model, card.work)
    stdout = passed(card)
    assert stdout.startswith("backend: ascend: Ascend310P3, atc and ais_bench are there\n")
    check_products(card, stdout)
    check_commands(card)
    before = stamps(card, "*.om"), stamps(card, "result/*.npy")
    done = pipeline(card, PYTHONPROFILEIMPORTTIME="1")
    assert (stamps(card, "*.om"), stamps(card, "result/*.npy")) == before
    assert "20 results in" in done.stdout and done.stdout.count("up to date") == 5 + 7, (
        "five models, export, two forecasts, two inferences, performance, report"
    )
    forecast = r"\nforecast +[0-9,]+ images/s at batch size [0-9]+ on one 310P3, "
    assert re.search(forecast, done.stdout.split("== Summary")[1])
    assert heavy_imports(done.stderr) == [], "what takes a second to import is not needed for that"


def kept_figures(card: Card) -> Dict[str, Any]:
    """Who made the results and the table of the last run."""
    recipe = rows_of(card.work / "result.record.jsonl")[0]["recipe"]
    perf = json.loads((card.work / "perf.json").read_text())
    return {"tool": recipe["tool"], "chip": perf["chip"], "perf": perf["backend"]}


def test_in_one_work_folder_each_runs_figures_are_that_runs(card: Card) -> None:
    """The card, the CPU and the card again: nothing of one is taken for the other's."""

    def results_now() -> Dict[str, bytes]:
        return {path.name: path.read_bytes() for path in (card.work / "result").iterdir()}

    seen, results = [kept_figures(card)], [results_now()]
    for backend in ("cpu", "ascend"):
        out = passed(card, *ONE, "--perf", "--backend", backend)
        assert re.search(f"backend +{backend}\n", out.split("== Summary")[1])
        assert ("20 images inferred" in out.split("== Accuracy")[0]) == (backend == "cpu"), (
            "nothing is kept"
        )
        seen.append(kept_figures(card))
        results.append(results_now())
    assert (
        seen[0] == seen[2]
        and seen[0]["tool"] == "infer_om.py"
        and seen[1]["tool"] == "infer_onnx.py"
    )
    assert seen[0]["chip"] == "310P3" and seen[1]["chip"].startswith("CPU")
    assert results[0] == results[2] != results[1], "float16 rounds other than float32"


def test_another_device_infers_again_and_results_of_the_users_are_never_removed(
    card: Card,
) -> None:
    out = passed(card, *ONE, "--device", "1")
    assert (
        "everything is inferred again: other device" in out
        and "20 results, one for each image" in out
    )
    notes = card.work / "result" / "notes.txt"
    notes.write_text("mine")
    done = pipeline(card, *ONE)
    assert (
        done.returncode == 1
        and "result/notes.txt: no record says that this program made it" in done.stderr
    )
    assert notes.read_text() == "mine"


def forget_results(card: Card) -> None:
    """Leave the models, and take away what ais_bench made."""
    for path in [*card.work.glob("perf*"), *card.work.glob("result*")]:
        shutil.rmtree(str(path)) if path.is_dir() else path.unlink()


@pytest.mark.parametrize("generation", ["0.0.2", "fork"])  # the other one is in all other tests
def test_each_generation_of_ais_bench_serves(card: Card, generation: str) -> None:
    """Top-1 100 %, the same results and the same table; a second run does nothing again."""
    before = {path.name: path.read_bytes() for path in (card.work / "result").iterdir()}
    forget_results(card)
    passed(card, *ONE, "--min-top1", "100", STANDIN_AIS_BENCH=generation)
    made = stamps(card, "result/*"), stamps(card, "perf.json")
    assert {path.name: path.read_bytes() for path in (card.work / "result").iterdir()} == before
    assert re.search(r"^\| 310P3 \| 1 \|", (card.work / "perf.md").read_text(), re.MULTILINE)
    passed(card, *ONE, STANDIN_AIS_BENCH=generation)
    assert (stamps(card, "result/*"), stamps(card, "perf.json")) == made


def test_two_chips_give_the_accuracy_of_one_even_if_one_of_them_fails(card: Card) -> None:
    accuracy = (card.work / "acc.json").read_bytes()
    forget_results(card)
    out = passed(card, *ONE, "--device", "all", STANDIN_FAULT="ais-device=1:3")
    assert "== Performance " in out and (card.work / "acc.json").read_bytes() == accuracy
    assert (card.work / "result.device1.log").exists()
    table = (card.work / "perf.md").read_text()
    assert (
        "| Batch size | device 0 alone | device 1 alone | all at once, sum | loss of each |"
        in table
    )
    perf = json.loads((card.work / "perf.json").read_text())
    (row,) = perf["together"]
    assert (
        row["throughput"]
        == pytest.approx(sum(row["devices"].values()))
        == perf["best"]["throughput"]
    )
    assert row["alone"] == pytest.approx(
        sum(perf["devices"][device][0]["throughput"] for device in "01")
    )
    assert row["loss"] == pytest.approx(1 - row["throughput"] / row["alone"]) and set(
        row["devices"]
    ) == {"0", "1"}


MIXED = {"STANDIN_NPU_SMI": "910B4+310P3"}  # devices 0 and 1, devices 2 and 3


def test_chips_of_two_kinds_work_with_the_remedy_that_is_shown(card: Card) -> None:
    forget_results(card)
    out = passed(card, *ONE, "--soc-version", "Ascend310P3", **MIXED)
    assert json.loads((card.work / "perf.json").read_text())["chip"] == "310P3"
    assert out.startswith("backend: ascend: a chip was named") and out.count("--device 2") == 2


@pytest.mark.parametrize(
    "words, switches, sentence",
    (
        (("--device", "5"), {}, "--device 5 was asked for, but there are 2"),
        (("--device", "0"), {"STANDIN_NPU_SMI": "fail"}, "npu-smi info failed"),
        (
            ("--soc-version", "Ascend310P3"),
            {"STANDIN_AIS_BENCH": "none"},
            "another package of that name",
        ),
        (
            ("--device", "all"),
            {"STANDIN_NPU_SMI": "fail"},
            "or name devices and chip yourself (--device 0,1 --soc-version NAME)",
        ),
        ((), {"STANDIN_NPU_SMI": "no_process_tail"}, "names no NPU; check that the card is seated"),
        ((), {"STANDIN_NPU_SMI": str(ROOT / "LICENSE")}, "--backend cpu computes without the card"),
        (
            (),
            {"STANDIN_NPU_SMI": "A3", "STANDIN_BOARD": "fail"},
            "name it by --soc-version (Ascend910_9391, Ascend910_9392",
        ),
        (
            ("--soc-version", "Ascend910"),
            {"STANDIN_NPU_SMI": "A3", "STANDIN_BOARD": "fail"},
            "say which one it is: --soc-version (Ascend910_9391, Ascend910_9392",
        ),
        ((), {"ASCEND_RT_VISIBLE_DEVICES": "8"}, "ASCEND_RT_VISIBLE_DEVICES='8' shows none of"),
        (
            (),
            MIXED,
            "choose it by --device 2 (310P3) or --device 0 (910B4), or by --soc-version "
            "Ascend310P3",
        ),
    ),
)
def test_auto_never_takes_the_cpu_when_there_are_chips_to_choose_from(
    card: Card, words: Tuple[str, ...], switches: Dict[str, str], sentence: str
) -> None:
    done = pipeline(card, *ONE, *words, **switches)
    assert done.returncode == 1 and sentence in done.stderr and "==" not in done.stdout, (
        done.stdout + done.stderr
    )


def test_auto_says_why_it_takes_the_cpu(card: Card) -> None:
    done = pipeline(card, *ONE, "--dry-run", STANDIN_NPU_SMI="fail")
    assert done.returncode == 0
    reason = "for ascend, NPU (npu-smi): npu-smi info failed with status 252 and said 'dcmi model"
    assert f"backend: cpu: {reason}" in done.stdout
    warning = "pipeline.sh: this run computes on the CPU, although the machine has npu-smi ("
    assert warning + reason in done.stderr and "--backend ascend" in done.stderr
    done = pipeline(card, *ONE, "--dry-run", "--backend", "cpu", STANDIN_NPU_SMI="fail")
    assert done.stderr == "", "the user chose it"


@pytest.mark.parametrize(
    "sample, soc",
    [
        ("310P3_duo", "Ascend310P3"),
        ("310B4_alarm", "Ascend310B4"),
        ("910B4", "Ascend910B4"),
        ("950", "Ascend950PR_9579"),
    ],
)
def test_check_names_each_chip(card: Card, sample: str, soc: str) -> None:
    out = passed(card, "--check", STANDIN_NPU_SMI=sample)
    assert re.search(rf"ascend +NPU \(npu-smi\) +ok +{soc}\n", out) and "can run" in out


@pytest.mark.parametrize("sample, soc", [("310B4", "Ascend310B4"), ("A3", "Ascend910_9392")])
def test_the_chain_runs_on_each_card(card: Card, sample: str, soc: str) -> None:
    """The card's stand-in refuses a model that was compiled for another chip."""
    forget_results(card)
    switches = {"STANDIN_NPU_SMI": sample, "STANDIN_CANN": "9.2"}
    out = passed(card, *ONE, "--min-top1", "100", **switches)
    assert out.startswith(f"backend: ascend: {soc}, atc and ais_bench are there\n")
    assert commands_of(card, "atc")[-1][-1] == f"--soc_version={soc}"


def test_what_atc_needs_of_the_hosts_python_is_looked_at(card: Card) -> None:
    def check(*lacking: str, numpy: str = "1.24.4", cann: str = "") -> str:
        user = card.home / "other"
        shutil.rmtree(str(user), ignore_errors=True)
        give_host_packages(user, numpy)
        for name in lacking:
            (path,) = user.glob(f"lib/*/site-packages/{name}-*.dist-info")
            shutil.rmtree(str(path))
        (card.home / "version.cfg").write_text(f"version={cann}\n")
        return pipeline(
            card,
            "--check",
            "--backend",
            "ascend",
            PYTHONUSERBASE=str(user),
            ASCEND_TOOLKIT_HOME=str(card.home),
        ).stdout

    assert "which has all packages that atc needs" in check() and "can run" in check()
    code = (
        "import sys; sys.path.append(sys.argv[1]); from common.core import recipe as r; "
        "print(r.versions(sys.argv[2:]))"
    )
    names = ("decorator", "psutil")
    own = subprocess.check_output([HOST_PYTHON, "-s", "-c", code, str(ROOT / "scripts"), *names])
    lacking = [name for name in names if f"'{name}': ''" in own.decode()]
    assert f"atc needs {', '.join(lacking)} in it   → pip3 install {' '.join(lacking)}" in check(
        *lacking
    )
    paper = check(numpy="1.26.0", cann="8.0.RC1")
    assert "NumPy below 1.25, here is 1.26.0" in paper and "can run" in paper, "that is advice"
    assert ("Python 3.11.4 at most" in paper) == (sys.version_info[:3] > (3, 11, 4))
    assert "below" not in check(numpy="1.26.0", cann="8.5.0")
    assert "NumPy below 2.0, here is 2.1.0" in check(numpy="2.1.0", cann="8.5.0")


def test_check_names_the_operators_of_the_chip_and_the_versions_for_amct(card: Card) -> None:
    """Both are advice, unless the run quantises and there is no AMCT."""
    cann = install_cann(card.home, "9.0.0", "Ascend-cann-910b-ops")
    out = pipeline(card, "--check", ASCEND_TOOLKIT_HOME=str(cann)).stdout
    assert re.search(r"- +CANN +ok +9\.0\.0\n", out)
    assert re.search(r"- +operators +- +Ascend-cann-310p-ops was not found in .*910b-ops", out)
    assert re.search(
        r"- +AMCT +ok .*/amct_onnx; AMCT's guide names for Python 3\.[0-9]+: onnx ", out
    )
    assert "can run" in out
    environment = dict(os.environ, **ascend_environment(card.home), HOME=str(card.home))
    path = environment["PATH"].split(os.pathsep)
    (card.home / "bin").mkdir()
    for tool in ("atc", "npu-smi"):
        (card.home / "bin" / tool).symlink_to(Path(path[0]) / tool)
    without = os.pathsep.join([str(card.home / "bin"), *path[1:]])
    out = pipeline(card, "--check", PATH=without).stdout
    assert re.search(r"- +AMCT +- +amct_onnx is not on the PATH; only --precision int8", out)
    assert "can run" in out
    done = pipeline(card, "--precision", "int8", PATH=without)
    assert done.returncode == 1 and "AMCT: amct_onnx is not on the PATH" in done.stderr
    assert "==" not in done.stdout, "it is said at the start"


def test_after_a_failing_compiler_only_what_is_missing_is_compiled(
    card: Card,
) -> None:
    options = ("--batch-size", "1", "--batch-sizes", "1,8", "--compare", "0")
    before = stamps(card, "*.om")
    for fault, sentence in (
        ("atc-fail=8", r"atc failed with status \d+ at batch size 8\n(.*\n)*?.*E[0-9A-Z]{5}"),
        ("atc-kill=8", r"atc was ended by signal KILL at batch size 8"),
    ):
        done = pipeline(card, *options, STANDIN_FAULT=fault)
        assert done.returncode == 1 and re.search(sentence, done.stderr), done.stderr
        assert "the step 'Compile' failed" in done.stderr and "Traceback" not in done.stderr
        assert stamps(card, "*.om") == before, "no half-written model"
    passed(card, *options)
    after = stamps(card, "*.om")
    assert (
        set(after) == {"tresnet_bs1.om", "tresnet_bs8.om"}
        and after["tresnet_bs1.om"] == before["tresnet_bs1.om"]
    )


def test_an_incomplete_inference_is_never_evaluated(card: Card) -> None:
    before = stamps(card, "*.om")
    cut = next((card.work / "result").iterdir())
    cut.write_bytes(cut.read_bytes()[:50])  # as a power loss may leave it
    for fault, sentence in (
        ("ais-crash=5", r"said '\[ERROR\] execute model failed, .*errorCode is 507011"),
        ("ais-missing=3", r"3 of 20 images have no result: imagenet_"),
    ):
        done = pipeline(card, *ONE, STANDIN_FAULT=fault)
        assert done.returncode == 1 and re.search(sentence, done.stderr), done.stderr
        assert "== Accuracy " not in done.stdout
    assert "== Accuracy " in passed(card, *ONE)
    assert stamps(card, "*.om") == before


def test_silent_loss_in_conversion_is_seen_in_the_comparison(card: Card) -> None:
    (card.work / "tresnet_bs1.om").unlink()
    words = ("--min-cosine", "0.99", "--batch-size", "1", "--batch-sizes", "1")
    done = pipeline(card, *words, STANDIN_FAULT="atc-lossy")
    assert done.returncode == 3 and "cosine" in done.stderr, done.stdout + done.stderr


def test_bytes_and_aipp_on_the_card(card: Card) -> None:
    passed(card, *"--uint8 --batch-sizes 1 --min-top1 100 --min-cosine 0.999".split())
    (settings,) = card.work.glob("prep_dataset*/aipp.cfg")
    assert any(f"--insert_op_conf={settings}" in words for words in commands_of(card, "atc"))


@pytest.mark.parametrize(
    "switches, arguments, sentence",
    (
        ({"STANDIN_NPU_SMI": "310P3+910B4"}, (), "chips of different kinds"),
        ({"STANDIN_NPU_SMI": "fail"}, ("--backend", "ascend"), "npu-smi info failed"),
        ({}, ("--backend", "ascend", "--device", "9"), "--device 9 was asked for, but there are 2"),
    ),
)
def test_a_machine_that_cannot_run_is_refused_in_one_sentence(
    switches: Dict[str, str], arguments: List[str], sentence: str, card: Card
) -> None:
    done = pipeline(card, *arguments, "--backend", "ascend", "--force", **switches)
    assert done.returncode == 1 and sentence in done.stderr and "Traceback" not in done.stderr, (
        done.stderr
    )


def test_path_and_permission_rules_are_checked_before_anything_long(tmp_path: Path) -> None:
    environment = {key: value for key, value in os.environ.items() if key not in WITHOUT}
    environment.update(ascend_environment(tmp_path), HOME=str(tmp_path))
    open_folder = tmp_path / "open"
    open_folder.mkdir()
    open_folder.chmod(0o777)
    link = tmp_path / "link"
    link.symlink_to(tmp_path)
    refusals = (
        (open_folder, "chmod 750"),
        (tmp_path / "w o r k", "only letters, digits and _ / . - are accepted"),
        (link, "is a symbolic link"),
    )
    for workdir, sentence in refusals:
        done = subprocess.run(
            ["bash", str(ROOT / "scripts" / "pipeline.sh"), "--workdir", str(workdir)],
            env=environment,
            cwd=str(ROOT),
            universal_newlines=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        assert done.returncode == 1 and sentence in done.stderr and "==" not in done.stdout, (
            done.stdout + done.stderr
        )


def test_check_names_chip_and_tools(card: Card) -> None:
    done = pipeline(card, "--check")
    assert done.returncode == 0, done.stdout + done.stderr
    for item in ("Ascend310P3", "atc", "ais_bench", "aclruntime", "can run"):
        assert item in done.stdout
    done = pipeline(card, "--check", "--backend", "ascend", STANDIN_NPU_SMI="fail")
    assert done.returncode == 1 and "cannot run" in done.stdout


def test_int8_on_the_card_stands_beside_float16_and_keeps_its_promise(card: Card) -> None:
    out = passed(card, *ONE, *"--precision int8 --max-drop 100 --uint8 --small-channel".split())
    summary = out.split("== Summary")[1]
    assert re.search(r"Top1 accuracy +[0-9.]+%, float16 100.0%\n", summary)
    assert re.search(r"speed +[0-9.]+ images/s, float16 [0-9.]+ \(one pass each;", summary)
    assert re.search(
        r"int8 loses +[0-9.]+ points of Top-1 against float32 \(95 % interval of the loss .*\), "
        r"--max-drop 100\n"
        r"put back +nothing\n",
        summary,
    )
    assert "--calibration_config" in commands_of(card, "amct_onnx")[0]
    last = commands_of(card, "atc")[-1]
    assert f"--model={card.work}/tresnet_int8.onnx" in last
    assert last[-1] == "--enable_small_channel=1"
    assert (card.work / "tresnet_int8_bs1.om").exists()
    assert (card.work / "acc_float16.json").exists()


# ---- some of the steps, on several hosts ---------------------------------------------------------


def only_with(card: Card, *tools: str) -> Dict[str, str]:
    """The switches of a host that has only these of the stand-ins on its PATH."""
    folder = card.home / "tools"
    folder.mkdir(parents=True)
    for tool in tools:
        (folder / tool).symlink_to(ROOT / "test" / "ascend" / "bin" / tool)
    standins = str(ROOT / "test" / "ascend" / "bin")
    path = ascend_environment(card.home)["PATH"].replace(standins, str(folder))
    return {"PATH": path}


def test_a_host_without_a_card_compiles_and_another_goes_on_with_a_copy(
    small_sample: Path, small_model: Path, tmp_path: Path
) -> None:
    first = Card(tmp_path / "first", tmp_path / "nothing here")
    copy_products(small_model, first.work)
    switches = dict(only_with(first, "atc"), STANDIN_AIS_BENCH="none")
    checkpoint = ("--checkpoint", small_sample / "model_best.pth.tar")
    words = ("--only", "export,compile", *checkpoint, *ONE)
    done = pipeline(first, *words, **switches)
    assert done.returncode == 2 and "name its chip: --soc-version" in done.stderr
    out = passed(first, *words, "--soc-version", "Ascend310P3", **switches)
    assert "== export, compile: done (" in out and re.findall("^== (.*) .step", out, re.M) == [
        "Export",
        "Compile",
    ]
    assert len(commands_of(first, "atc")) == 1 and not commands_of(first, "ais_bench")
    (rest,) = re.findall("^the rest of this run: --only (.*)$", out, re.M)
    assert {"preprocess", "inference"} <= set(rest.split(",")) and "compile" not in rest
    compiled = (first.work / "tresnet_bs1.om").read_bytes()

    second = Card(tmp_path / "second", small_sample)
    shutil.copytree(str(first.work), str(second.work))
    others = ("--only", "preprocess,inference,accuracy,performance,report", *ONE)
    out = passed(second, *others, "--min-top1", "100", **only_with(second, "npu-smi"))
    assert not commands_of(second, "atc") and "network        tresnet_m, 1000 classes" in out
    assert (second.work / "tresnet_bs1.om").read_bytes() == compiled
    made = json.loads((second.work / "run.json").read_text())["made"]
    assert made == ["run", "acc", "acc_report", "perf"]


def test_a_step_that_this_run_does_not_have_is_refused(card: Card) -> None:
    done = pipeline(card, "--only", "quantise")
    assert done.returncode == 2 and "does not have the step quantise, only export" in done.stderr
