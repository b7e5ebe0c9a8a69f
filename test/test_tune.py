"""tune.py: with scripted speeds the right combination wins, and a lossy one is refused."""

import itertools
import json
from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional
from unittest import mock

from common.ascend import bench, host
from common.core import places

import compare_results
import infer_om
import infer_onnx
import numpy as np
import onnx2om
import perf_sweep
import pipeline
import pytest
import quantize_amct
import quantize_onnx
import tune
from ascend.helpers import (
    HERE,
    Machine,
    ais_bench_here,
    atc_here,
    calls,
    load,
    save_images,
    save_tiny_tresnet,
    start_here,
)
from conftest import ROOT

pytestmark = pytest.mark.slow
STEMS = ("conv4", "conv12", "space-to-depth")
MAINS = {
    "compare_results.py": compare_results,
    "infer_om.py": infer_om,
    "infer_onnx.py": infer_onnx,
    "onnx2om.py": onnx2om,
    "perf_sweep.py": perf_sweep,
    "quantize_amct.py": quantize_amct,
    "quantize_onnx.py": quantize_onnx,
}


@pytest.fixture(scope="module")
def stems(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the three stems of a tiny network, and in/: images whose pixels are bytes."""
    folder = tmp_path_factory.mktemp("stems")
    for stem in STEMS:
        save_tiny_tresnet(folder / f"{stem}.onnx", stem=stem)
    save_images(folder / "in", 8)
    for path in (folder / "in").iterdir():
        (np.rint(np.fromfile(str(path), np.float32) * 255) / np.float32(255)).astype(
            np.float32
        ).tofile(str(path))
    return folder


class Ended:
    """What infer_om.py and perf_sweep.py see of an ais_bench that has run in this process."""

    def __init__(self, returncode: int) -> None:
        self.returncode, self.pid = returncode, 0

    def poll(self) -> int:
        return self.returncode

    def wait(self, timeout: Optional[float] = None) -> int:
        return self.returncode


def run_tune(
    machine: Machine, stems: Path, speeds: Mapping[str, float], *words: object, fault: str = ""
) -> Any:
    """tune.py with our scripts and the stand-ins in this process."""
    switches = {
        "STANDIN_DEVICE": "float16",
        "STANDIN_FAULT": fault,
        "STANDIN_SPEEDS": json.dumps(speeds),
    }

    def start_tool(command: List[str], log: str, cwd: str = "", **_: Any) -> Ended:
        words = list(map(str, command))
        here = machine._replace(folder=Path(cwd) if cwd else machine.folder)
        script = Path(words[1]).name
        if words[0] == "atc":
            done = atc_here(here, *words[1:], **switches)
        elif words[0] == "amct_onnx":
            done = start_here(load(HERE / "amct.py").main, machine[0], here[1], *words)
        elif "ais_bench" in words:
            done = ais_bench_here(here, *words[3:], **switches)
        else:
            done = start_here(MAINS[script].main, machine[0], here[1], script, *words[2:])
        Path(log).write_text(done.stdout + done.stderr)
        return Ended(done.returncode)

    with mock.patch.object(host, "start_tool", start_tool), mock.patch.object(
        host, "end_group", lambda child: None
    ), mock.patch.object(infer_om.cli, "end_group", lambda child: None), mock.patch.object(
        bench, "spelling", return_value="_"
    ), mock.patch.object(host, "host_versions", return_value={}):
        return start_here(
            tune.main,
            dict(machine[0], **switches),
            machine[1],
            "tune.py",
            *[stems / f"{stem}.onnx" for stem in STEMS],
            "--input",
            stems / "in",
            "--repeat",
            1,
            "--loop",
            2,
            *words,
        )


def report(machine: Machine) -> Dict[str, Any]:
    return json.loads((machine[1] / "tune.json").read_text())


def test_the_fastest_combination_wins_and_the_lossy_one_is_refused(
    stems: Path, machine: Machine
) -> None:
    """SpaceToDepth has its channels swapped here, and would be the fastest."""
    speeds = {
        "tune/": 1000,
        "tune/conv12-uint8-small-float16/": 3000,
        "tune/space-to-depth-uint8-float16/": 4000,
        "tune/conv12-uint8-small-float16/conv12_bs4": 3500,
    }
    done = run_tune(
        machine, stems, speeds, "--batch-sizes", "4,8", fault="atc-channels=body.SpaceToDepth"
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = report(machine)
    assert found["winner"] == "conv12-uint8-small-float16"
    rows = {row["name"]: row for row in found["rows"]}
    pairs = itertools.product(STEMS, ("float32", "uint8", "uint8-small"))
    names = {f"{stem}-{kind}-float16" for stem, kind in pairs}
    assert set(rows) == names - {"space-to-depth-uint8-small-float16"}
    assert (
        found["rows"][0]["name"] == "space-to-depth-uint8-float16"
        and found["rows"][0]["throughput"] == 4000
    )
    assert found["rows"][0]["refused"].startswith(("cosine", "Top-1 agreement"))
    assert (
        rows["conv12-uint8-small-float16"]["throughput"] == 3000
        and rows["conv4-float32-float16"]["cosine"] > 0.9999
    )
    assert found["best"]["batch_size"] == 4 and found["best"]["throughput"] == 3500
    assert found["options"] == [
        "--stem",
        "conv12",
        "--uint8",
        "--small-channel",
        "--batch-size",
        "4",
    ]
    assert "| 1 | space-to-depth-uint8-float16 | 4000.0 |" in (machine[1] / "tune.md").read_text()
    assert (machine[1] / "tune.png").read_bytes()[:4] == b"\x89PNG"
    compiled = [" ".join(call["argv"]) for call in calls(machine[0], "atc")]
    small = [words for words in compiled if "--enable_small_channel=1" in words]
    assert len(compiled) == 8 + 2 + 1 and len(small) == 2 + 1 + 1, (
        "each for batch size 8; 16 only for the two that can win; of the best also 4"
    )
    skipped = {name for name, row in rows.items() if row["skipped"]}
    assert skipped == set(rows) - {"conv12-uint8-small-float16", "space-to-depth-uint8-float16"}
    assert rows["conv4-float32-float16"]["skipped"].startswith("cannot win: at most ")
    assert rows["conv4-float32-float16"]["throughput"] == 1000
    assert "| 1000.0 | 8 |" in (machine[1] / "tune.md").read_text()
    assert all("--insert_op_conf=" in words for words in small) and not any(
        "Sigmoid" in words for words in compiled
    )


def test_what_is_nearly_as_fast_is_measured_at_all_batch_sizes(
    stems: Path, machine: Machine
) -> None:
    speeds = {
        "tune/": 1000,
        "tune/conv12-float32-float16/": 3000,
        "tune/conv4-float32-float16/conv4_bs8": 2900,
        "tune/conv4-float32-float16/conv4_bs16": 3100,
    }
    done = run_tune(machine, stems, speeds, "--batch-sizes", "8,16")
    assert done.returncode == 0, done.stdout + done.stderr
    found = report(machine)
    assert (found["winner"], found["best"]["throughput"]) == ("conv4-float32-float16", 3100)


@pytest.mark.parametrize("chip, batch_sizes", [("910B4", "8"), ("310P3", "8,128")])
def test_without_a_forecast_nothing_is_left_out(
    stems: Path, machine: Machine, chip: str, batch_sizes: str
) -> None:
    """The forecast is for the 310P3 only, and for batch sizes up to 64."""
    pair = [tune.Variant(stem, False, False, "float16") for stem in ("conv4", "conv12")]
    speeds = {"tune/": 1000, "tune/conv12-float32-float16/": 3000}
    with mock.patch.object(tune, "variants", lambda *_: pair):
        machine[0]["STANDIN_NPU_SMI"] = chip
        done = run_tune(machine, stems, speeds, "--batch-sizes", batch_sizes)
    assert done.returncode == 0, done.stdout + done.stderr
    assert [row["skipped"] for row in report(machine)["rows"]] == [None, None]
    assert [row["batch_size"] for row in report(machine)["rows"]] == [8, 8]


def test_int8_is_tried_when_asked_for_and_nothing_wins_below_the_minimum(
    stems: Path, machine: Machine
) -> None:
    speeds = {"tune/": 1000, "-float32-int8/": 9000}
    one = ("--batch-sizes", "8", "--images", "4")
    with mock.patch.object(
        tune,
        "variants",
        lambda names, *_: [
            tune.Variant("conv4", False, False, precision) for precision in ("float16", "int8")
        ],
    ):
        done = run_tune(machine, stems, speeds, *one, "--precision", "int8", "--min-agreement", 0)
        assert done.returncode == 0 and report(machine)["winner"] == "conv4-float32-int8", (
            done.stdout + done.stderr
        )
        assert "For pipeline.sh: --precision int8\n" in done.stdout
        done = run_tune(machine, stems, speeds, *one, "--min-cosine", 1)
    assert done.returncode == 3 and "no combination runs and keeps the cosine" in done.stderr
    assert report(machine)["winner"] is None


def test_images_of_an_earlier_tuning_are_not_compared(stems: Path, machine: Machine) -> None:
    with mock.patch.object(
        tune, "variants", lambda names, *_: [tune.Variant("conv4", True, False, "float16")]
    ):
        for images in (5, 3):
            done = run_tune(
                machine, stems, {"tune/": 1000}, "--batch-sizes", "8", "--images", images
            )
            assert done.returncode == 0, done.stdout + done.stderr
            compared = json.loads(
                (machine[1] / "tune" / "conv4-uint8-float16" / "compare.json").read_text()
            )
            assert compared["images"] == images


def test_a_combination_that_atc_refuses_stands_in_the_table_with_the_reason(
    stems: Path, machine: Machine
) -> None:
    with mock.patch.object(
        tune, "variants", lambda names, *_: [tune.Variant("conv4", False, False, "float16")]
    ):
        done = run_tune(machine, stems, {}, fault="atc-fail")
    assert (
        done.returncode == 3
        and "onnx2om.py failed and said" in report(machine)["rows"][0]["refused"]
    )


def test_on_the_cpu_it_tries_batch_sizes_and_precisions(stems: Path, machine: Machine) -> None:
    done = run_tune(
        machine,
        stems,
        {},
        "--backend",
        "cpu",
        "--batch-sizes",
        "1,4",
        "--min-cosine",
        0.5,
        "--min-agreement",
        0,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = report(machine)
    assert {row["precision"] for row in found["rows"]} == {"float32", "int8"} and len(
        found["rows"]
    ) == 2
    size = ["--batch-size", str(found["best"]["batch_size"])]
    int8 = ["--precision", "int8", *size, *"--quant-bits 8 --quant-scales channel".split()]
    is_int8 = found["winner"] == "conv4-float32-int8"
    assert found["options"] == ([*int8, "--quant-ranges", "minmax"] if is_int8 else size)
    assert not calls(machine[0])


def test_images_that_are_no_bytes_are_refused(stems: Path, machine: Machine) -> None:
    save_images(machine[1] / "odd", 1)
    image = np.fromfile(str(machine[1] / "odd" / "i1.bin"), np.float32)
    (image * 3).tofile(str(machine[1] / "odd" / "i1.bin"))
    done = start_here(
        tune.main, machine[0], machine[1], "tune.py", stems / "conv4.onnx", "--input", "odd"
    )
    assert done.returncode == 1 and "does not hold what bytes become" in done.stderr


def test_the_pipelines_command_of_the_best_can_be_pasted(
    tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tune.json").write_text(
        json.dumps({"options": ["--stem", "conv4", "--uint8", "--batch-size", "16"]})
    )
    words = ["pipeline.sh", "--data", "my images", "--workdir", str(tmp_path), "--tune", "--uint8"]
    monkeypatch.setattr("sys.argv", words)
    monkeypatch.chdir(ROOT)
    given = pipeline.parse_arguments()
    data = pipeline.check.locate(given)
    pipeline.say_best(pipeline.Run(given, data, "cpu", "", places.checkout(), "python3", 0.0))
    expected = (
        f"bash scripts/pipeline.sh --data 'my images' --workdir {tmp_path} --stem conv4 --uint8 "
        "--batch-size 16"
    )
    assert f"    {expected}\n" in capsys.readouterr().out
