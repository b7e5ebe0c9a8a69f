"""perf_sweep.py: every figure is the runner's own, table and plot show them, and nothing is
measured twice.
"""

import argparse
import io
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Dict, List, Optional

from common.model import speed
from common.results import plots, summary

import numpy as np
import perf_sweep
import pytest
from ascend.environment import HOST_PYTHON
from ascend.helpers import (
    AIPP,
    SIZE,
    Machine,
    calls,
    compile_net,
    processes,
    put_model_and_images,
    save_tiny_tresnet,
    start,
    start_here,
)
from conftest import ROOT
from PIL import Image


def sweep(
    machine: Machine, *words: object, backend: str = "ascend", status: int = 0, **switches: Any
) -> "subprocess.CompletedProcess[str]":
    """perf_sweep.py's main() without a process; the runners it starts are processes."""
    done = start_here(
        perf_sweep.main,
        dict(machine[0], **switches),
        machine[1],
        "perf_sweep.py",
        "--backend",
        backend,
        "--model",
        "net.onnx",
        *words,
    )
    assert done.returncode == status, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done


def write_accuracy(work: Path, figures: Dict[str, str]) -> None:
    rows = [{"key": key, "value": value} for key, value in figures.items()]
    (work / "acc.json").write_text(json.dumps({"title": "", "value": rows}))


def test_perf_sweep_runs_the_contracts_command_and_writes_table_plot_and_json(
    machine: Machine,
) -> None:
    environment, work = machine
    assert compile_net(machine, "--batch-sizes", "1,4").returncode == 0
    write_accuracy(
        work, {"Top1 accuracy": "80.5%", "Top2 accuracy": "90.0%", "Top5 accuracy": "94.43%"}
    )
    words = "--backend ascend --model net.onnx --batch-sizes 1,4 --repeat 2 --data-set ImageNet"
    program = ROOT / "scripts" / "perf_sweep.py"
    done = start(*machine, sys.executable, program, *words.split(), "--accuracy", "acc.json")
    assert done.returncode == 0 and not done.stderr, done.stdout + done.stderr
    commands = [row["argv"] for row in calls(environment, "ais_bench")]
    by_hand = "python3 -m ais_bench --model=../net_bs{0}.om --loop=20 --batchsize={0}"
    expected = [by_hand.format(batch).split() for batch in (1, 4, 1, 4)]
    assert [row[:6] for row in commands] == expected, "the batch sizes take turns"
    for row in commands:
        assert [word.split("=")[0] for word in row[6:]] == ["--output", "--output_dirname"]
    report = json.loads((work / "perf.json").read_text())
    assert [row["batch_size"] for row in report["rows"]] == [1, 4]
    assert report["best"] == max(report["rows"], key=lambda row: row["throughput"])
    for row in report["rows"]:
        first, second = row["throughput_runs"]
        assert row["throughput"] == pytest.approx((first + second) / 2), "the median of two"
        assert row["latency_p99"] >= row["latency_mean"] * 0.9 > 0
    assert (work / "perf.md").read_text() in done.stdout
    check_table((work / "perf.md").read_text().splitlines(), report)
    with Image.open(work / "perf.png") as plot:
        assert plot.format == "PNG" and plot.size == (960, 600)
    written = {path.name for path in work.glob("perf*")}
    assert written == {"perf.json", "perf.md", "perf.png", "perf.record.jsonl"}


def check_table(table: List[str], report: Dict[str, Any]) -> None:
    """The lines of perf.md show what perf.json has."""
    assert (
        table[0] == "| Chip | Batch size | Data set | Accuracy | images/s | latency mean ms "
        "| latency p99 ms |"
    )
    row = report["rows"][1]
    assert table[3] == (
        f"| 310P3 | 4 | ImageNet | Top-1 80.5%, Top-5 94.43% | {row['throughput']:.1f} ± "
        f"{50 * row['throughput_spread']:.1f} % | {row['latency_mean']:.3f} | "
        f"{row['latency_p99']:.3f} |"
    )
    assert f"Best batch size: {report['best']['batch_size']}, " in table[-1]


def test_perf_sweep_on_the_cpu(machine: Machine) -> None:
    done = sweep(
        machine,
        "--batch-sizes",
        "1,8",
        "--repeat",
        1,
        "--loop",
        3,
        "--output",
        "out",
        backend="cpu",
    )
    report = json.loads((machine[1] / "out" / "perf.json").read_text())
    assert report["chip"].startswith("CPU (") and [row["batch_size"] for row in report["rows"]] == [
        1,
        8,
    ]
    assert "Best batch size: " in done.stdout and not calls(machine[0])


def fake_runner(machine: Machine, folder: Path, throughputs: List[float], count: int = 0) -> str:
    """A `python3` that writes the summary of runs of the given throughput, one after the other; a
    PATH with it first.

    count: of batches, by default as many as were asked for. Asked by `python3 -c`, it is the host's
    Python.
    """
    folder.mkdir()
    script = folder / "runner.py"
    script.write_text(f"""
import json, os, sys
if sys.argv[1] == "-c":
    exec(sys.argv[2])
    sys.exit()
if sys.argv[3] == "--help":
    sys.exit("--output_dirname")
flags = dict(word[2:].split("=") for word in sys.argv[3:])
prefix = os.path.join(flags["output"], flags["output_dirname"])
log = {str(folder / "runs")!r}
done = open(log).read().count("x") if os.path.exists(log) else 0
open(log, "a").write("x")
throughput = {throughputs!r}[done]
mean = 1000 * int(flags["batchsize"]) / throughput
times = {{"mean": mean, "percentile(99%)": 2 * mean, "count": {count} or int(flags["loop"])}}
summary = {{"throughput": throughput, "NPU_compute_time": times}}
json.dump(summary, open(prefix + "_summary.json", "w"))
""")
    python = (
        folder / "python3"
    )  # by way of sh: the first line of a script may not name a path with a space
    python.write_text(
        f'#!/bin/sh\nexec {shlex.quote(HOST_PYTHON)} {shlex.quote(str(script))} "$@"\n'
    )
    python.chmod(0o755)
    return os.pathsep.join([str(folder), machine[0]["PATH"]])


def test_perf_sweep_takes_the_median_and_the_spread(machine: Machine, tmp_path: Path) -> None:
    (machine[1] / "net_bs8.om").write_text("never opened: the runner is a double")
    path = fake_runner(machine, tmp_path / "fake", [900.0, 1000.0, 1400.0])
    words = ["--batch-sizes", "8", "--chip", "X"]
    done = sweep(machine, *words, PATH=path)
    row = json.loads((machine[1] / "perf.json").read_text())["rows"][0]
    assert (
        row["throughput"],
        row["latency_mean"],
        row["latency_p99"],
        row["throughput_spread"],
    ) == (1000, 8, 16, 0.5)
    assert (
        "| X | 8 | - | - | 1000.0 ± 25.0 % | 8.000 | 16.000 |"
        in (machine[1] / "perf.md").read_text()
    )
    warning = (
        "the runs differ by more than ± 10 % at batch size 8 (± 25.0 % at 8): something else used "
        "this machine; measure again with --force when it is idle"
    )
    assert json.loads((machine[1] / "perf.json").read_text())["warnings"] == [warning]
    assert f"\n**WARNING**: {warning}.\n" in (machine[1] / "perf.md").read_text()
    assert f"**WARNING**: {warning}.\n" in done.stdout
    assert summary.speed_lines(str(machine[1]), ["perf"]) == [("WARNING", warning)]
    path = fake_runner(machine, tmp_path / "again", [900.0, 1000.0, 1400.0] * 2)
    assert (
        "perf_sweep.py: the best throughput is 1000.0 images/s (batch size 8), below "
        "--min-throughput 1000.5"
        in (
            sweep(
                machine, *words, "--force", "--min-throughput", 1000.5, status=3, PATH=path
            ).stderr
        )
    )
    sweep(machine, *words, "--min-throughput", 999.5, PATH=path)
    assert (
        "below --min-throughput 1000000000.0\n"
        in sweep(machine, *words, "--min-throughput", "1e9", status=3, PATH=path).stderr
    )


def test_steady_figures_have_no_warning(machine: Machine, tmp_path: Path) -> None:
    (machine[1] / "net_bs8.om").write_text("never opened: the runner is a double")
    path = fake_runner(machine, tmp_path / "fake", [900.0, 1000.0, 1100.0])
    done = sweep(machine, "--batch-sizes", "8", "--chip", "X", PATH=path)
    assert json.loads((machine[1] / "perf.json").read_text())["warnings"] == []
    assert "WARNING" not in done.stderr + (machine[1] / "perf.md").read_text()
    assert "a batch of 8 takes 8.9 ms: 3 runs of 20 batches, about " in done.stdout


# ---- how many batches, and how long --------------------------------------------------------------


def namespace(loop: Optional[int], repeat: int = 3) -> argparse.Namespace:
    sizes = [1, 4, 8, 16, 32]
    return argparse.Namespace(batch_sizes=sizes, loop=loop, repeat=repeat, device=[0])


SLOW = perf_sweep.Trial(batch_size=8, batch=3.2, begin=0.5)  # 2.5 images/s


def test_where_a_batch_takes_long_a_run_has_fewer() -> None:
    choose = perf_sweep.choose_loops
    assert choose(namespace(None), SLOW) == {1: 20, 4: 6, 8: 3, 16: 2, 32: 2}
    quick = perf_sweep.Trial(8, 0.08, 0.5)
    assert set(choose(namespace(None), quick).values()) == {20}
    assert set(choose(namespace(None), None).values()) == {20}
    assert set(choose(namespace(50), SLOW).values()) == {50}, "--loop decides"


def test_the_estimate_counts_each_batch_and_each_start(capsys: pytest.CaptureFixture) -> None:
    loops = {1: 20, 4: 6, 8: 3, 16: 2, 32: 2}
    perf_sweep.say_plan(namespace(None), loops, SLOW)
    images = 1 * 21 + 4 * 7 + 8 * 4 + 16 * 3 + 32 * 3  # each run has one batch to warm up
    seconds = 3 * (images * 0.4 + 5 * 0.5)
    assert seconds == 277.5
    assert capsys.readouterr().out == (
        "a batch of 8 takes 3.2 s: 15 runs of 2 to 20 batches, about 4:38 min in all\n"
    )


@pytest.mark.slow
def test_fewer_batches_are_said_wherever_the_figures_are(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    loops = {1: 3, 8: 2}
    monkeypatch.setattr(perf_sweep, "choose_loops", lambda arguments, trial: loops)
    monkeypatch.setattr(perf_sweep, "FEW", 0)
    done = sweep(machine, "--batch-sizes", "1,8", "--repeat", 2, backend="cpu")
    assert re.search(r"^a batch of 8 takes [\d.]+ m?s: 4 runs of 2 to 3 batches, ", done.stdout)
    report = json.loads((machine[1] / "perf.json").read_text())
    assert {row["batch_size"]: row["loop"] for row in report["rows"]} == loops
    assert (report["loop"], report["batches"]) == (3, "2 to 3 batches")
    text = (machine[1] / "perf.md").read_text()
    assert "median of 2 runs of 2 to 3 batches each, ± half the span" in text
    assert "Batches in a run: 3 at batch size 1, 2 at batch size 8; --loop sets" in text
    assert (
        "up to date" in sweep(machine, "--batch-sizes", "1,8", "--repeat", 2, backend="cpu").stdout
    )


def test_one_run_is_called_one_run(machine: Machine, tmp_path: Path) -> None:
    """Not a median, and with no spread."""
    (machine[1] / "net_bs8.om").write_text("never opened: the runner is a double")
    for loop, words in ((20, "one run of 20 batches"), (1, "one run of one batch")):
        path = fake_runner(machine, tmp_path / str(loop), [1000.0])
        sweep(
            machine, "--batch-sizes", "8", "--chip", "X", "--repeat", 1, "--loop", loop, PATH=path
        )
        table = (machine[1] / "perf.md").read_text()
        assert (
            f"Pure inference (zeros in, no files): {words}. Latency is that of a whole batch.\n"
            in table
        )
        assert "| X | 8 | - | - | 1000.0 | 8.000 | 16.000 |" in table and "±" not in table


# ---- what is up to date is not measured again ----------------------------------------------------


def test_figures_that_are_up_to_date_are_kept(machine: Machine, compiled: Path) -> None:
    environment, work = machine
    put_model_and_images(machine, compiled)
    words = ["--batch-sizes", "4", "--repeat", 1, "--loop", 2]
    sweep(machine, *words)
    before = {
        path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in work.glob("perf.*")
    }
    done = sweep(machine, *words)
    assert (
        f"the figures in {work}/perf.json are up to date; --force measures again\n" in done.stdout
    )
    assert done.stdout.endswith("s)\n") and "Best batch size: 4" in done.stdout, (
        "the table is printed all the same"
    )
    assert len(calls(environment, "ais_bench")) == 1
    assert {
        path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in work.glob("perf.*")
    } == before
    sweep(machine, *words, "--force")
    assert len(calls(environment, "ais_bench")) == 2


def test_kept_figures_get_the_accuracy_and_data_set_of_today(
    machine: Machine, tmp_path: Path
) -> None:
    (machine[1] / "net_bs8.om").write_text("never opened: the runner is a double")
    path = fake_runner(machine, tmp_path / "fake", [1000.0])  # a second run would fail
    words = ["--batch-sizes", "8", "--chip", "X", "--repeat", 1]
    sweep(machine, *words, PATH=path)
    (machine[1] / "acc.json").write_text(
        json.dumps({"value": [{"key": "Top1 accuracy", "value": "80.5%"}]})
    )
    done = sweep(machine, *words, "--data-set", "ImageNet", "--accuracy", "acc.json", PATH=path)
    line = "| X | 8 | ImageNet | Top-1 80.5% | 1000.0 | 8.000 | 16.000 |"
    assert line in (machine[1] / "perf.md").read_text() and line in done.stdout
    report = json.loads((machine[1] / "perf.json").read_text())
    assert (report["data_set"], report["accuracy"]) == ("ImageNet", {"Top1 accuracy": "80.5%"})
    several = [
        {"key": "Number of images", "value": "9"},
        {"key": "Mean average precision", "value": "81.2%"},
    ]
    (machine[1] / "acc.json").write_text(json.dumps({"value": several}))
    done = sweep(machine, *words, "--data-set", "MS-COCO", "--accuracy", "acc.json", PATH=path)
    assert (
        "| X | 8 | MS-COCO | Mean average precision 81.2% | 1000.0 | 8.000 | 16.000 |"
        in done.stdout
    )
    assert "up to date" in sweep(machine, *words, PATH=path).stdout
    assert "| X | 8 | - | - | 1000.0 |" in (machine[1] / "perf.md").read_text()


@pytest.mark.parametrize("backend", ["ascend", "cpu"])
def test_aipp_settings_count_by_what_they_say(
    machine: Machine, compiled: Path, backend: str
) -> None:
    """The pipeline writes them again in each run."""
    if backend == "ascend":
        put_model_and_images(machine, compiled)
    settings = machine[1] / "aipp.cfg"
    kept: List[bool] = []
    for factor in ("0.003921569", "0.003921569", "0.5"):
        settings.write_text(
            f"{AIPP} src_image_size_w : {SIZE}\n src_image_size_h : {SIZE}\n"
            f" var_reci_chn_0 : {factor}\n}}\n"
        )
        os.utime(str(settings), ns=(0, 10**18 + len(kept) * 10**9))
        done = sweep(
            machine,
            "--batch-sizes",
            "4",
            "--repeat",
            1,
            "--loop",
            1,
            "--aipp",
            "aipp.cfg",
            backend=backend,
        )
        kept.append("are up to date" in done.stdout)
    assert kept == [False, True, False]


@pytest.mark.slow
def test_figures_of_another_case_are_never_taken(
    machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another device, chip, number of batches, runs, batch sizes, model, ais_bench, CANN or
    backend.
    """
    environment, work = machine
    for batch in (4, 8):
        (work / f"net_bs{batch}.om").write_text("never opened: the runner is a double")
    packages, cann = tmp_path / "packages", tmp_path / "cann"
    for folder in (packages / "ais_bench-0.0.2.dist-info", cann):
        folder.mkdir(parents=True)
    (packages / "ais_bench-0.0.2.dist-info" / "METADATA").write_text(
        "Name: ais_bench\nVersion: 0.0.2\n"
    )
    (cann / "version.cfg").write_text("version=7.0.1\n")
    monkeypatch.setattr(plots, "speed_png", lambda report: b"drawing takes time")
    other_bench = {"PYTHONPATH": os.pathsep.join([environment["PYTHONPATH"], str(packages)])}
    path = fake_runner(machine, tmp_path / "fake", 50 * [1000.0])

    def measures(*words: object, backend: str = "ascend", **switches: Any) -> bool:
        usual = ["--batch-sizes", 4, "--repeat", 1, "--loop", 1]
        return (
            "up to date"
            not in sweep(machine, *usual, *words, backend=backend, PATH=path, **switches).stdout
        )

    assert (measures(), measures()) == (True, False)
    for words in (
        ("--device", 1),
        ("--chip", "X"),
        ("--loop", 2),
        ("--repeat", 2),
        ("--batch-sizes", "4,8"),
    ):
        assert measures(*words), words
    for switches in (other_bench, {"ASCEND_TOOLKIT_HOME": str(cann)}):
        assert measures(**switches), switches
    assert (measures(**switches), measures()) == (False, True)
    later = time.time_ns() + 10**9
    os.utime(str(work / "net_bs4.om"), ns=(later, later))
    assert not measures(), "the same model, copied or touched"
    (work / "net_bs4.om").write_text("another one")
    assert measures(), "another model"
    assert (measures(backend="cpu"), measures(backend="cpu"), measures()) == (True, False, True)


def test_figures_of_another_onnx_runtime_are_never_taken(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["--batch-sizes", "4", "--repeat", 1, "--loop", 1]
    sweep(machine, *words, backend="cpu")
    assert "up to date" in sweep(machine, *words, backend="cpu").stdout
    monkeypatch.setattr(
        perf_sweep.recipe, "versions", lambda packages: {name: "1.2.3" for name in packages}
    )
    assert "up to date" not in sweep(machine, *words, backend="cpu").stdout


def test_a_file_that_it_did_not_write_is_not_replaced(machine: Machine, compiled: Path) -> None:
    put_model_and_images(machine, compiled)
    (machine[1] / "perf.md").write_text("my notes")
    said = sweep(machine, "--batch-sizes", "4", "--force", status=1).stderr
    assert "perf.md: no record says that this program made it" in said
    assert (machine[1] / "perf.md").read_text() == "my notes" and not calls(machine[0], "ais_bench")


# ---- the plot ------------------------------------------------------------------------------------


def test_perf_sweep_sets_the_published_figures_beside_those_of_the_same_case(
    machine: Machine, tmp_path: Path
) -> None:
    import onnx

    path = machine[1] / "net.onnx"
    model = onnx.load(str(path))
    for place in (2, 3):
        model.graph.input[0].type.tensor_type.shape.dim[place].dim_value = 224
    onnx.save(model, str(path))
    for batch in (8, 64):
        (machine[1] / f"net_bs{batch}.om").write_text("never opened: the runner is a double")
    words = ["--batch-sizes", "8,64", "--repeat", 1]
    sweep(
        machine,
        *words,
        "--chip",
        "310P3",
        PATH=fake_runner(machine, tmp_path / "fake", [1579.0, 2000.0]),
    )
    table = (machine[1] / "perf.md").read_text().splitlines()
    assert table[0].endswith("| latency p99 ms | reference images/s | ratio |")
    assert table[2].endswith(" | 3158 | 0.50 |") and table[3].endswith(" | - | - |")
    sweep(
        machine,
        *words,
        "--chip",
        "910B4",
        PATH=fake_runner(machine, tmp_path / "again", [1579.0, 2000.0]),
    )
    assert "reference" not in (machine[1] / "perf.md").read_text(), (
        "another chip has no published figure"
    )


def test_what_a_run_left_does_not_reach_the_next_one(machine: Machine, tmp_path: Path) -> None:
    """A link in the folder of the runs would lead the next run out of it."""
    for batch in (1, 4):
        (machine[1] / f"net_bs{batch}.om").write_text("never opened: the runner is a double")
    path = fake_runner(machine, tmp_path / "fake", [100.0, 200.0])
    script = tmp_path / "fake" / "runner.py"
    (tmp_path / "letter").write_text("of somebody else")
    script.write_text(
        script.read_text()
        + f"""
link = os.path.join(flags["output"], "left")
with open(link, "w") as file:
    file.write("written by this run")
os.unlink(link)
os.symlink({str(tmp_path / "letter")!r}, link)
"""
    )
    sweep(machine, "--batch-sizes", "1,4", "--repeat", 1, "--chip", "310P3", PATH=path)
    assert (tmp_path / "letter").read_text() == "of somebody else"


@pytest.mark.parametrize("share, is_slow", [(0.5, True), (0.9, False)])
def test_a_310p3_is_held_against_the_forecast(
    machine: Machine, tmp_path: Path, share: float, is_slow: bool
) -> None:
    network = speed.read_network(str(save_tiny_tresnet(machine[1] / "net.onnx")))
    forecasts = speed.forecast(network, [8, 16], speed.read_data())
    for row in forecasts:
        (machine[1] / f"net_bs{row.batch_size}.om").write_text("never opened: a double runs")
    path = fake_runner(machine, tmp_path / "fake", [row.images_per_s * share for row in forecasts])
    words = ("--batch-sizes", "8,16", "--repeat", 1)
    sweep(machine, *words, "--chip", "310P3", PATH=path)
    expected = json.loads((machine[1] / "perf.json").read_text())["expected"]
    assert expected["slow"] == is_slow
    assert [row["ratio"] for row in expected["rows"]] == pytest.approx([share, share])
    text = (machine[1] / "perf.md").read_text()
    assert f"Compared with the forecast (docs/speed.md): {expected['verdict']}." in text
    assert ("slower than networks of this kind run there" in text) == is_slow
    assert ("- its clock and temperature (npu-smi" in text) == is_slow
    table = [line for line in text.splitlines() if line.startswith("|")]
    assert "orecast" not in table[0], "a forecast never stands among measured values"
    path = fake_runner(machine, tmp_path / "again", [row.images_per_s * share for row in forecasts])
    sweep(machine, *words, "--chip", "910B4", PATH=path)
    assert "expected" not in json.loads((machine[1] / "perf.json").read_text()), (
        "there is a forecast for the 310P3 only"
    )


def draw(throughputs: Dict[int, float], chip: str = "X") -> np.ndarray:
    """The plot of a report as pixels [height, width, 3], and so that it can be opened."""
    rows = [
        {"batch_size": batch, "throughput": throughput, "latency_mean": 1.0, "latency_p99": 1.1}
        for batch, throughput in throughputs.items()
    ]
    report = {"chip": chip, "variant": "tresnet_m", "img_size": 224, "rows": rows}
    perf_sweep.add_reference(report)
    with Image.open(io.BytesIO(plots.speed_png(report))) as plot:
        assert plot.format == "PNG" and plot.size == (960, 600)
        return np.asarray(plot.convert("RGB"), int)


def where(pixels: np.ndarray, color: str) -> np.ndarray:
    """bool [height, width] between the axes: where the plot has a colour, given as #rrggbb."""
    inner = pixels[100:500, 85:880]
    return np.abs(inner - [int(color[i : i + 2], 16) for i in (1, 3, 5)]).sum(axis=2) < 12


@pytest.mark.parametrize(
    "throughputs",
    [{8: 1000.0}, {1: 1000.0, 8: 3000.0}, {1: 600.0, 4: 1200.0, 8: 1800.0, 16: 2400.0, 32: 3000.0}],
)
def test_plot_shows_a_bar_for_each_batch_size_in_proportion_to_throughput(
    throughputs: Dict[int, float],
) -> None:
    heights = where(draw(throughputs), plots.FIRST).sum(axis=0)
    edges = np.flatnonzero(np.diff((heights > 0).astype(int))) + 1
    bars = [int(heights[start:end].max()) for start, end in zip(edges[::2], edges[1::2])]
    assert len(bars) == len(throughputs) and max(bars) > 300
    largest = max(throughputs.values())
    for bar, throughput in zip(bars, throughputs.values()):
        assert bar == pytest.approx(max(bars) * throughput / largest, abs=12)


def test_plot_marks_published_figures_where_they_exist() -> None:
    throughputs = {8: 1579.0, 64: 3000.0}
    assert not where(draw(throughputs, "910B4"), plots.INK).any()
    marked = where(draw(throughputs, "310P3"), plots.INK)
    rows, columns = np.nonzero(marked)
    assert columns.max() < marked.shape[1] / 2 and columns.max() - columns.min() > 150, (
        "only over batch size 8"
    )
    bar = (
        where(draw(throughputs, "310P3"), plots.FIRST)[:, : marked.shape[1] // 2].sum(axis=0).max()
    )
    assert marked.shape[0] - rows.mean() == pytest.approx(2 * bar, rel=0.05), (
        "at twice the height of the bar"
    )


def test_plot_takes_any_name() -> None:
    draw({1: 1.0}, "a chip named $x_{$ \\ %s \n" + 200 * "long ")


# ---- refusals ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "words, switches, complaint",
    [
        (
            ["--batch-sizes", "1,2"],
            {},
            "there is no {work}/net_bs2.om; make it: bash scripts/onnx2om.sh",
        ),
        (
            ["--batch-sizes", "1", "--device", "7"],
            {},
            "--device 7 was asked for, but there are 2, numbered from 0",
        ),
        (["--batch-sizes", "1"], {"STANDIN_FAULT": "ais-crash=0"}, "507011"),
        (
            ["--batch-sizes", "1", "--stall", "0.5"],
            {"STANDIN_FAULT": "ais-hang=0"},
            "at batch size 1 ais_bench was ended: for 0.5 s it gave no output and no result; if",
        ),
        (["--batch-sizes", "1"], {"STANDIN_NPU_SMI": "no_process_tail"}, "names no NPU"),
        (["--batch-sizes", "1", "--accuracy", "net.onnx"], {}, "net.onnx is damaged"),
        (["--batch-sizes", "1", "--output", "a b"], {}, "ais_bench accept only"),
        (["--batch-sizes", "1", "--output", "net.onnx"], {}, "cannot be made or written"),
    ],
)
def test_perf_sweep_refuses(
    machine: Machine, compiled: Path, words: List[str], switches: Dict[str, str], complaint: str
) -> None:
    work = machine[1]
    (work / "net_bs1.om").write_bytes(compiled.read_bytes())
    (work / "net_bs1.om").chmod(0o640)
    said = sweep(machine, *words, status=1, **switches).stderr
    assert complaint.format(work=work) in said and said.count("\n") == 1, said
    assert not list(work.glob("perf.*")) and not list(work.glob("perf_runs*"))


@pytest.mark.parametrize(
    "words, complaint",
    [
        (["--device", "256"], "is not a device (0 to 255), several joined by commas, or all"),
        (["--loop", "0"], "a whole number from 1"),
        (["--repeat", "x"], "a whole number from 1"),
        (["--batch-sizes", "1,,2"], "batch sizes joined by commas"),
        (["--min-throughput", "-1"], "a number of at least 0"),
        (["--min-throughput", "nan"], "a number of at least 0"),
        (["--accuracy", ""], "is a shell variable unset?"),
    ],
)
def test_perf_sweep_refuses_wrong_usage(machine: Machine, words: List[str], complaint: str) -> None:
    assert complaint in sweep(machine, *words, status=2).stderr


@pytest.mark.parametrize(
    "throughputs, count, complaint",
    [([-1000.0], 20, "cannot be true"), ([1000.0], 19, "19 runs"), ([], 20, "status 1")],
)
def test_perf_sweep_believes_no_strange_summary(
    machine: Machine, tmp_path: Path, throughputs: List[float], count: int, complaint: str
) -> None:
    (machine[1] / "net_bs8.om").write_text("never opened: the runner is a double")
    path = fake_runner(machine, tmp_path / "fake", throughputs, count)
    assert (
        complaint in sweep(machine, "--batch-sizes", "8", "--chip", "X", status=1, PATH=path).stderr
    )


def test_perf_sweep_ends_its_runner_with_itself(machine: Machine, compiled: Path) -> None:
    environment, work = machine
    put_model_and_images(machine, compiled)
    command = [
        sys.executable,
        str(ROOT / "scripts" / "perf_sweep.py"),
        "--backend",
        "ascend",
        "--model",
        "net.onnx",
        "--batch-sizes",
        "4",
    ]
    with subprocess.Popen(
        command,
        cwd=str(work),
        env=dict(os.environ, STANDIN_FAULT="ais-sleep=60", **environment),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        universal_newlines=True,
    ) as child:
        deadline = time.time() + 20
        while not calls(environment, "ais_bench") and time.time() < deadline:
            time.sleep(0.05)
        assert "--model=../net_bs4.om" in processes(work)
        child.send_signal(signal.SIGINT)
        said = child.communicate(timeout=50)[1]  # the runner would go on for 60 s
    assert (
        child.returncode == 130
        and said == "\nperf_sweep.py: interrupted; no figures were written\n"
    )
    assert not list(work.glob("perf_runs*"))
    assert not processes(work)
