"""Workers that die or hang: they cost the image that they were at, and no other."""

import os
import re
import signal
import time
from pathlib import Path
from typing import Any, Dict, List

from common.core.cli import Refusal
from common.core.workers import run_workers

import pytest
from conftest import Shared
from pictures import (
    bins,
    children,
    fill,
    prepare,
    prepare_refused,
    start_preparing,
    until,
    write_slow_images,
)

import TResNet_preprocess as step


@pytest.mark.slow
@pytest.mark.parametrize(
    "number, options, why",
    [
        (
            signal.SIGKILL,
            [],
            r"its worker process was ended by signal 9 \(9 often means: out of memory\)",
        ),
        (signal.SIGSTOP, ["--timeout", "1.5"], r"took longer than 1\.5 s"),
    ],
)
def test_an_image_whose_worker_dies_or_hangs_is_named_and_all_others_made(
    number: int, options: List[str], why: str, shared: Shared, tmp_path: Path
) -> None:
    slow_images = shared("slow images", write_slow_images)
    slow_bins: Dict[str, str] = bins(
        shared("slow images prepared", lambda to: prepare(slow_images, to) and None)
    )
    for attempt in range(8):
        target = tmp_path / f"prep{attempt}"
        process = start_preparing(slow_images, target, "-j", 2, *options)
        until(lambda: len(children(process.pid)) == 2)  # noqa: B023 - called at once
        time.sleep(0.05 * (attempt + 1))
        os.kill(children(process.pid)[0], number)
        output, errors = process.communicate(timeout=60)
        if process.returncode:
            break  # otherwise it was between two images, and nothing is lost
        assert errors == "" and bins(target) == slow_bins
    match = re.match(rf"bad image (s\d\d)\.png: {why}\n", errors)
    assert process.returncode == 1 and match, errors
    assert output.startswith("23 images in")
    assert bins(target) == {
        name: value for name, value in slow_bins.items() if name != match[1] + ".bin"
    }
    assert not list(target.glob("*.part"))
    prepare(slow_images, target)  # and the next run makes it
    assert bins(target) == slow_bins


def test_an_image_that_always_kills_its_worker_costs_only_itself() -> None:
    def work(job: int) -> int:
        if job % 10 == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        return job

    results: List[Any] = []
    for some in run_workers(range(100), work, 3, 20, lambda job, why: (job, why)):
        results += some
    lost = [result for result in results if isinstance(result, tuple)]
    assert sorted(job for job, _ in lost) == list(range(3, 100, 10)) and "signal 9" in lost[0][1]
    assert sorted(set(r for r in results if isinstance(r, int))) == [
        job for job in range(100) if job % 10 != 3
    ]


def test_an_image_that_always_hangs_costs_only_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    convert_file = step.convert_file

    def stuck(path: str, *settings: Any) -> Any:
        if os.path.basename(path) == "b.png":
            time.sleep(50)
        return convert_file(path, *settings)

    monkeypatch.setattr(step, "convert_file", stuck)
    said = prepare_refused(
        fill(tmp_path / "src", ["a.png", "b.png", "c.png"]), tmp_path / "prep", "--timeout", 0.5
    )
    assert said.splitlines()[0] == "bad image b.png: took longer than 0.5 s"
    assert sorted(bins(tmp_path / "prep")) == ["a.bin", "c.bin"]


@pytest.mark.slow
def test_workers_that_end_before_any_work_are_refused_in_one_sentence(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("common.core.workers.serve", lambda *_: os._exit(7))
    with pytest.raises(
        Refusal, match="keep being ended from outside .*exit status 7.*Try fewer --workers"
    ):
        list(run_workers(range(100), str, 2, 20, lambda job, why: why))


def test_when_the_work_is_given_up_no_worker_is_left(tmp_path: Path) -> None:
    def work(job: int) -> int:
        if job:
            (tmp_path / str(os.getpid())).write_bytes(b"")
            time.sleep(50)
        return job

    results = run_workers([0, *range(1, 9)], work, 4, 60, lambda job, why: why)
    assert next(results) == [0]
    until(lambda: len(os.listdir(str(tmp_path))) == 4)
    results.close()  # type: ignore[attr-defined]
    assert not any(os.path.exists(f"/proc/{pid}") for pid in os.listdir(str(tmp_path)))
