"""The bench's data are what README says they are, and a contest measures real runs and reports
their ratio.
"""

import io
import json
import os
import statistics
from pathlib import Path

import bench
import numpy as np
import pytest
from conftest import sha256, succeed
from PIL import Image

pytestmark = pytest.mark.slow


def test_the_images_are_like_imagenet_s_and_the_same_every_time(
    small_sample: Path, tmp_path: Path
) -> None:
    first, second = (
        Path(bench.make_images(str(tmp_path / name), count, str(small_sample)))
        for name, count in (("a", 50), ("b", 6))
    )
    paths = sorted(first.iterdir())
    assert [path.name for path in paths] == [f"bench_{index:05}.jpg" for index in range(50)]
    again = {path.name: sha256(path) for path in second.iterdir()}
    assert again == {path.name: sha256(path) for path in paths[:6]}
    assert len({sha256(path) for path in paths}) == 50
    found = []
    for path in paths:
        with Image.open(path) as image:
            image.load()
            assert image.format == "JPEG"
            found.append((*image.size, image.mode == "L"))
    assert found == bench.SIZES
    usual = [path.stat().st_size for path, size in zip(paths, found) if size == (500, 375, False)]
    assert len(usual) == 35 and 80_000 < statistics.median(usual) < 110_000
    large = [path.stat().st_size for path, size in zip(paths, found) if size[0] > 1000]
    assert min(large) > max(usual)  # as detailed, so as slow to decode per pixel


def test_each_image_has_the_label_of_the_photo_it_was_cut_from(small_sample: Path) -> None:
    lines = [line.split() for line in (small_sample / "val_label.txt").read_text().splitlines()]
    photos = [Image.open(small_sample / "val_union" / name).convert("RGB") for name, _ in lines]
    # photos that are each of one colour tell which one an image was cut from
    plain = [Image.new("RGB", photo.size, (12 * index, 0, 0)) for index, photo in enumerate(photos)]
    for index in (0, 35, 41, 44, 48, 49):
        data, shown = bench.make_image(index, plain, [95] * len(plain))
        red = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))[5, 5, 0]
        assert round(red / 12) == shown


def test_a_contest_reports_times_and_ratios(tmp_path: Path) -> None:
    report = tmp_path / "bench.json"
    done = succeed(
        "test/bench.py",
        "postprocess",
        "--rounds",
        2,
        "--results",
        200,
        "--workdir",
        tmp_path / "work",
        "--json",
        report,
    )
    written = json.loads(report.read_text())
    contest = written["contests"]["postprocess"]
    ours, plain = (
        contest["contestants"]["TResNet_postprocess.py"],
        contest["contestants"]["float() and argsort"],
    )
    assert (
        len(ours["runs"]) == len(plain["runs"]) == written["rounds"] == 2 and min(ours["runs"]) > 0
    )
    (ratio,) = contest["ratios"]
    assert ratio["goal"] == 12 and ratio["met"] == (ratio["median"] >= 12)
    ratios = sorted(b / a for a, b in zip(ours["runs"], plain["runs"]))
    assert sorted([ratio["min"], ratio["max"]]) == pytest.approx(ratios)
    assert (
        f"| postprocess | TResNet_postprocess.py : float() and argsort | {ratio['median']:.2f}"
        in done.stdout
    )
    assert (
        written["machine"]["cores"] == len(os.sched_getaffinity(0))
        and written["machine"]["cpu"] in done.stdout
    )


def test_times_of_different_results_are_not_compared(tmp_path: Path) -> None:
    for name, data in (("a", b"1"), ("b", b"2")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x.bin").write_bytes(data)
    with pytest.raises(SystemExit, match="1 of 1 files differ"):
        bench.same_files(str(tmp_path / "a"), str(tmp_path / "b"))
    (tmp_path / "b" / "x.bin").write_bytes(b"1")
    assert bench.same_files(str(tmp_path / "a"), str(tmp_path / "b")) == 1
