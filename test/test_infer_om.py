"""infer_om.py: slices on one chip or several, with each generation of ais_bench."""

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Dict, Optional

from common.ascend import bench, host
from common.ascend.slices import FACTOR, IMAGE, START, Sizes
from common.core.cli import Refusal

import infer_om
import numpy as np
import pytest
from ascend.helpers import (
    Done,
    Machine,
    calls,
    onnx_scores,
    processes,
    put_model_and_images,
    start_here,
)
from conftest import ROOT

WORDS = "--model net_bs4.om --input in --output ./ --output_dirname result --outfmt NPY".split()
FOUR_CHIPS = {"STANDIN_NPU_SMI": "310P3+310P3"}


def infer_om_here(machine: Machine, *words: object, **switches: str) -> Done:
    """infer_om.py's main() without a process; each ais_bench is one."""
    return start_here(
        infer_om.main,
        dict(machine.environment, **switches),
        machine.folder,
        "infer_om.py",
        *WORDS,
        *words,
    )


def infer_well(machine: Machine, *words: object, **switches: str) -> Done:
    done = infer_om_here(machine, *words, **switches)
    assert done.returncode == 0, done.stdout + done.stderr
    return done


def results_of(machine: Machine, name: str = "result") -> Dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (machine.folder / name).iterdir()}


def check_clean(machine: Machine) -> None:
    """Nothing is left of a run but what it promises."""
    names = {path.name for path in machine.folder.iterdir()} - {"net.onnx", "net_bs4.om", "in"}
    assert names == {"result", "result.record.jsonl", "result_summary.json"}


# ---- every generation ----------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("generation", ["0.0.2", "later", "fork"])
def test_every_generation_gives_each_image_its_result_once(
    machine: Machine, compiled: Path, generation: str
) -> None:
    environment, work = machine
    images = put_model_and_images(machine, compiled, 10)
    work.chmod(0o755)  # a normal clone: later versions refuse it as --output
    (work / "out0").mkdir()
    (work / "out0").chmod(0o755)
    (work / "in" / "note.md").symlink_to("i1.bin")  # what others left in the input folder
    done = infer_well(machine, "--slice", 4, STANDIN_AIS_BENCH=generation)
    (work / "out0").rmdir()
    check_clean(machine)
    assert done.stdout.endswith("10 results, one for each image\n")
    scores = onnx_scores(work / "net.onnx", images)
    for number, expected in enumerate(scores, 1):
        found = np.load(str(work / "result" / f"i{number}_0.npy"))
        assert found.shape == (1, 10) and found.dtype == np.float32
        np.testing.assert_allclose(found[0], expected, atol=0.02)
    summary = json.loads((work / "result_summary.json").read_text())
    assert summary["NPU_compute_time"]["count"] == 3 and summary["slices"] == 3
    assert summary["filesinfo"]["9"] == {
        "infiles": ["in/i10.bin"],
        "outfiles": ["./result/i10_0.npy"],
    }
    images_each = 10 / 3  # two of the 12 places in three batches were only filled up
    assert summary["throughput"] == pytest.approx(
        1000 * images_each / summary["NPU_compute_time"]["mean"]
    )
    words = [call["argv"][3:] for call in calls(environment, "ais_bench")]
    joint = "-" if generation == "fork" else "_"
    assert words == 3 * [
        [
            *"--model ../net_bs4.om --input in0 --output .".split(),
            f"--output{joint}dirname",
            "out0",
            "--outfmt",
            "NPY",
        ]
    ]
    before = results_of(machine)
    done = infer_well(machine, STANDIN_AIS_BENCH=generation)
    assert "10 results in ./result are up to date" in done.stdout
    assert results_of(machine) == before and len(calls(environment, "ais_bench")) == 3


def test_another_package_of_that_name_is_named(machine: Machine, compiled: Path) -> None:
    import check

    put_model_and_images(machine, compiled, 1)
    environment = dict(machine.environment, STANDIN_AIS_BENCH="none")
    done = start_here(check.main, environment, machine.folder, "check.py", "--backend", "ascend")
    assert (
        done.returncode == 1
        and "another package of that name, without ais_bench.infer" in done.stdout
    )


FAULTS = {
    "ais-crash=1": r"said '\[ERROR\] execute model failed, modelId is 1, errorCode is 507011",
    "ais-kill=1": r"ais_bench failed with exit status 137",
    "ais-missing=2": r"2 of 8 images have no result: i7_0.npy, i8_0.npy; ais_bench ended early",
    "ais-half": r"results of different sizes: i8_0.npy; one of them is half a file",
    "ais-device=0": r"errorCode is 507011, device 0",
}


@pytest.mark.slow
@pytest.mark.parametrize("generation", ["0.0.2", "later", "fork"])
def test_faults_come_out_as_one_sentence_and_the_next_run_completes(
    machine: Machine, compiled: Path, generation: str
) -> None:
    put_model_and_images(machine, compiled, 16)
    infer_well(machine, STANDIN_AIS_BENCH=generation)
    whole = results_of(machine)
    for fault, sentence in FAULTS.items():
        done = infer_om_here(
            machine, "--force", "--slice", 8, STANDIN_FAULT=fault, STANDIN_AIS_BENCH=generation
        )
        assert done.returncode == 1 and done.stderr.count("\n") == 1, done.stderr
        assert re.search(r"infer_om.py: 16 of 16 images are left: .*" + sentence, done.stderr), (
            done.stderr
        )
        assert results_of(machine).items() <= whole.items(), "nothing half, nothing foreign"
        assert "╭" not in done.stderr and (machine.folder / "result.device0.log").stat().st_size
    infer_well(machine, STANDIN_AIS_BENCH=generation)
    assert results_of(machine) == whole


def test_half_a_text_result_is_seen_by_its_missing_newline(
    machine: Machine, compiled: Path
) -> None:
    put_model_and_images(machine, compiled, 2)
    done = infer_om_here(machine, "--outfmt", "TXT", STANDIN_FAULT="ais-half")
    assert done.returncode == 1 and not results_of(machine)
    assert (
        "results without a closing newline: i2_0.txt; one of them is half a file" in done.stderr
    ), done.stderr


# ---- slices --------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("generation", ["0.0.2", "later", "fork"])
def test_a_finished_slice_is_never_inferred_again(
    machine: Machine, compiled: Path, generation: str
) -> None:
    """After each of three SIGKILLs the next run begins with the first slice that did not end."""
    environment, work = machine
    put_model_and_images(machine, compiled, 28)  # seven slices; each killed run may finish two
    infer_well(machine)
    whole = results_of(machine)
    for path in [
        work / "result_summary.json",
        work / "result.record.jsonl",
        *(work / "result").iterdir(),
    ]:
        path.unlink()
    command = [sys.executable, str(ROOT / "scripts" / "infer_om.py"), *WORDS, "--slice", "4"]
    slow = dict(
        os.environ, STANDIN_FAULT="ais-sleep=0.3", STANDIN_AIS_BENCH=generation, **environment
    )
    begun = len(calls(environment, "ais_bench"))
    moments = random.Random(generation)
    for pause in (moments.uniform(0, 0.5) for _ in range(3)):  # after the next slice began
        before = len(calls(environment, "ais_bench"))
        child = subprocess.Popen(command, cwd=str(work), env=slow, stdout=subprocess.DEVNULL)
        while len(calls(environment, "ais_bench")) < before + 2:
            time.sleep(0.01)
        time.sleep(pause)
        child.send_signal(signal.SIGKILL)
        child.wait()
        assert results_of(machine).items() <= whole.items()
    done = infer_well(machine, "--slice", 4, STANDIN_AIS_BENCH=generation)
    kept = re.search(r"28 results, one for each image \((\d+) were there already\)", done.stdout)
    assert kept and int(kept.group(1)) >= 12 and int(kept.group(1)) % 4 == 0
    assert len(calls(environment, "ais_bench")) - begun <= 7 + 3, (
        "at most the slice under way at each kill"
    )
    assert results_of(machine) == whole
    check_clean(machine)


def test_only_what_changed_is_inferred_again(machine: Machine, compiled: Path) -> None:
    environment, work = machine
    images = put_model_and_images(machine, compiled, 8)
    infer_well(machine, "--slice", 4)
    before = results_of(machine)
    images[7].tofile(str(work / "in" / "i1.bin"))
    done = infer_well(machine, "--slice", 4)
    assert "8 results, one for each image (4 were there already)" in done.stdout
    after = results_of(machine)
    assert {name for name in after if after[name] != before[name]} == {"i1_0.npy"}
    assert "other device" in infer_well(machine, "--device", 1).stdout, (
        "another chip's results are not this one's"
    )
    assert (
        "everything is inferred again: other options"
        in infer_well(machine, "--outfmt", "BIN").stdout
    )


def test_inputs_that_ais_bench_refuses_as_they_are_are_lent_as_copies(
    machine: Machine, compiled: Path
) -> None:
    """A link and a file that others can write: both are read, none is changed."""
    work = machine.folder
    put_model_and_images(machine, compiled, 3)
    (work / "i9.bin").write_bytes((work / "in" / "i1.bin").read_bytes())
    (work / "in" / "i1.bin").unlink()
    (work / "in" / "i1.bin").symlink_to(work / "i9.bin")
    (work / "in" / "i2.bin").chmod(0o666)
    infer_well(machine)
    assert (
        len(results_of(machine)) == 3 and (work / "in" / "i2.bin").stat().st_mode & 0o777 == 0o666
    )


@pytest.mark.parametrize(
    "batch_size, images, start_cost, image_cost",
    [
        (8, 50000, START, IMAGE),
        (8, 10**6, 3.0, 0.001),
        (1, 300000, 5.0, 0.003),
        (32, 10**6, 2.0, 0.0002),
    ],
)
def test_starting_costs_less_than_a_tenth_once_both_times_are_known(
    batch_size: int, images: int, start_cost: float, image_cost: float
) -> None:
    sizes, waiting, starts, seconds = Sizes(batch_size, 602112), images, 0.0, 0.0
    sizes.start, sizes.image, sizes.learned = start_cost, image_cost, True
    while waiting:
        count = sizes.next(waiting, 1)
        assert count == waiting or (count % batch_size == 0 and count <= 100000)
        waiting, starts, seconds = (
            waiting - count,
            starts + start_cost,
            seconds + start_cost + count * image_cost,
        )
    assert (
        starts < seconds / 10
        or images * image_cost < FACTOR * start_cost
        or image_cost * 50000 < 10 * start_cost
    )


def test_both_times_are_learned_from_a_slice() -> None:
    sizes = Sizes(4, 602112)
    sizes.learn(104, 7.0, [int(1e9 * (10 + 0.02 * n)) for n in range(101)])  # 2 s of writing
    assert sizes.image == pytest.approx(0.02) and sizes.start == pytest.approx(7 - 104 * 0.02)
    assert sizes.next(10**6, 1) == pytest.approx(FACTOR * sizes.start / sizes.image, abs=4)


# ---- several chips -------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("device, chips", [("0,1", 2), ("all", 4)])
def test_several_chips_give_what_one_gives(
    machine: Machine, compiled: Path, device: str, chips: int
) -> None:
    environment, work = machine
    put_model_and_images(machine, compiled, 32)
    infer_well(machine, **FOUR_CHIPS)
    alone, slow = results_of(machine), dict(FOUR_CHIPS, STANDIN_FAULT="ais-sleep=0.1")
    done = infer_well(machine, "--device", device, "--force", "--slice", 8, **slow)
    used = [call["argv"][-1] for call in calls(environment, "ais_bench")[1:]]
    assert len(used) == 4 and set(used) == {"NPY", *map(str, range(1, chips))}, (
        "NPY: the last word for device 0"
    )
    assert results_of(machine) == alone and "device 1: 8 images in " in done.stdout
    assert json.loads((work / "result_summary.json").read_text())["devices"] == list(range(chips))
    check_clean(machine)


@pytest.mark.slow
def test_a_chip_that_fails_half_way_is_named_and_the_others_do_its_work(
    machine: Machine, compiled: Path
) -> None:
    put_model_and_images(machine, compiled, 32)
    infer_well(machine)
    alone = results_of(machine)
    done = infer_well(
        machine, *"--device 0,1 --force --slice".split(), 8, STANDIN_FAULT="ais-device=1:1"
    )
    assert re.fullmatch(
        r"infer_om.py: device 1 failed: ais_bench failed with exit status 1 and said '\[ERROR\] .* "
        r"device 1'; the whole output: \./result\.device1\.log; its 8 images go to the others\n",
        done.stderr,
    )
    assert results_of(machine) == alone
    done = infer_om_here(
        machine, *"--device 0,1 --force --slice".split(), 8, STANDIN_FAULT="ais-crash=0"
    )
    assert (
        done.returncode == 1 and "32 of 32 images are left: device " in done.stderr.splitlines()[-1]
    )


def test_an_ais_bench_that_writes_nothing_any_more_is_ended(
    machine: Machine, compiled: Path
) -> None:
    put_model_and_images(machine, compiled, 4)
    done = infer_om_here(machine, "--stall", 0.5, STANDIN_FAULT="ais-hang=0")
    assert done.returncode == 1 and re.fullmatch(
        r"infer_om.py: 4 of 4 images are left: ais_bench was ended: for 0.5 s it gave no output "
        r"and no result; if it only needs longer, give --stall SECONDS; the whole output: .*; the "
        r"same command goes on from here\n",
        done.stderr,
    ), done.stderr
    assert "--output_dirname out0" not in processes(machine.folder)
    infer_well(machine)
    assert len(results_of(machine)) == 4


@pytest.mark.parametrize(
    "content, problem",
    [
        (b"random bytes", "is not a compiled model: it begins with b'random b' and not with"),
        (None, "but its header says"),
    ],
)
def test_what_is_not_a_whole_model_is_refused_before_ais_bench_starts(
    machine: Machine, compiled: Path, content: Optional[bytes], problem: str
) -> None:
    put_model_and_images(machine, compiled, 1)
    (machine.folder / "net_bs4.om").write_bytes(content or compiled.read_bytes()[:-9])
    done = infer_om_here(machine)
    assert done.returncode == 1 and problem in done.stderr and done.stderr.count("\n") == 1
    assert not calls(machine.environment, "ais_bench")


@pytest.mark.parametrize(
    "device, status, sentence",
    [
        ("0,x", 2, "'0,x' is not a device (0 to 255), several joined by commas, or all"),
        ("5", 1, "107001"),
        ("all", 1, "npu-smi info failed"),
    ],
)
def test_devices_that_do_not_exist_are_refused(
    machine: Machine, compiled: Path, device: str, status: int, sentence: str
) -> None:
    put_model_and_images(machine, compiled, 1)
    done = infer_om_here(
        machine, "--device", device, **({"STANDIN_NPU_SMI": "fail"} if device == "all" else {})
    )
    assert done.returncode == status and sentence in done.stderr


def test_a_result_that_is_a_hard_link_to_somebodys_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "letter").write_text("somebody's")
    (tmp_path / "i1_0.txt").write_text("1.000000 \n")
    assert infer_om.part_of("result/i1_0.txt", str(tmp_path / "i1_0.txt")).size == 10
    os.link(str(tmp_path / "letter"), str(tmp_path / "i2_0.txt"))
    with pytest.raises(Refusal, match="i2_0.txt, which is a link or not a regular file"):
        infer_om.part_of("result/i2_0.txt", str(tmp_path / "i2_0.txt"))


def test_a_result_that_is_a_fifo_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    results = tmp_path / "out0"
    results.mkdir()
    os.mkfifo(str(results / "i1_0.txt"))
    child = subprocess.Popen(["true"])
    child.wait()
    log = str(tmp_path / "log")
    watch = host.Watch([log], 0)
    work = infer_om.Slice(0, ["in/i1.bin"], child, 0.0, log, str(results), watch)
    with pytest.raises(Refusal, match="i1_0.txt, which is a link or not a regular file"):
        infer_om.collect(work, "TXT", "result")


def test_a_summary_with_a_figure_that_is_not_finite_is_none(tmp_path: Path) -> None:
    path, times = tmp_path / "out_summary.json", {"mean": 2.0, "percentile(99%)": 3.0, "count": 1}
    content: Dict[str, object] = {"throughput": 500.0, "NPU_compute_time": times}
    path.write_text(json.dumps(content))
    assert bench.read_summary(str(path)).throughput == 500.0
    path.write_text(json.dumps(dict(content, throughput=float("nan"))))
    with pytest.raises(ValueError, match="not finite"):
        bench.read_summary(str(path))


@pytest.mark.parametrize(
    "content, is_whole",
    (
        ("1.500000 2.500000 \n", True),
        ("nan -inf \n", True),
        ("1.500000 \n", False),
        ("1.500000 2.500000 \n2.500000 \n", False),
        ("<html>503 Unavailable</html>\n", False),
        ("\n", False),
    ),
)
def test_a_txt_result_is_one_line_of_as_many_numbers_as_the_others(
    content: str, is_whole: bool, tmp_path: Path
) -> None:
    for name, text in (("i1_0.txt", "0.000000 1.000000 \n"), ("i2_0.txt", content)):
        (tmp_path / name).write_text(text)
    child = subprocess.Popen(["true"])
    child.wait()
    watch = host.Watch([], 0)
    work = infer_om.Slice(0, ["i1.bin", "i2.bin"], child, 0.0, "log", str(tmp_path), watch)
    if is_whole:
        infer_om.check_whole(work, ["i1_0.txt", "i2_0.txt"], "TXT")
        return
    with pytest.raises(Refusal, match="results that are not one line of 2 numbers: i2_0.txt"):
        infer_om.check_whole(work, ["i1_0.txt", "i2_0.txt"], "TXT")
