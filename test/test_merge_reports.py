"""--shard and merge_reports.py: the shards of a run give what one run gives; what is not one run is
not merged.
"""

import json
import shutil
from pathlib import Path
from typing import Any, Callable, Dict, List, Tuple

import numpy as np
import pytest
from ascend.helpers import Done, save_network, start_here
from conftest import Shared, refusal, succeed
from records import change_recipe

SHARDS = (1, 2, 3)


def chain(images: Path, labels: Path, model: Path, work: Path, *shard: str) -> None:
    """The steps of a run on the CPU, for a small network of 32 pixels."""
    work.mkdir(mode=0o750)
    for path in (model, Path(f"{model}.record.jsonl")):
        if path.exists():
            shutil.copy2(str(path), str(work / path.name))
    succeed(
        "TResNet_preprocess.py",
        images,
        work / "prep_dataset",
        "--img-size",
        32,
        "-j",
        1,
        "--skip-bad",
        *shard,
    )
    prepared, result = work / "prep_dataset", work / "result"
    succeed(
        "scripts/infer_onnx.py",
        "--model",
        work / "tresnet.onnx",
        "--input",
        prepared,
        "--output",
        work,
        "--output_dirname",
        "result",
        "--outfmt",
        "NPY",
        "--batchsize",
        4,
    )
    succeed("TResNet_postprocess.py", result, labels, work, "acc.json", "--prep", prepared)


def make_runs(folder: Path) -> None:
    """work (all images), work-1, work-2, work-3: eleven images in a folder and one that cannot be
    read, ten classes.
    """
    from PIL import Image

    images = folder / "images"
    images.mkdir()
    for number in range(11):
        Image.new("RGB", (40, 40), (20 * number, 255 - 20 * number, 90)).save(
            str(images / f"i{number}.png")
        )
    (images / "bad.png").write_bytes(b"no image")
    labels = folder / "labels.txt"
    labels.write_text(
        "".join(f"i{number} {number % 10}\n" for number in range(11)) + "bad 3\nabsent 2\n"
    )
    save_network(folder / "tresnet.onnx")
    chain(images, labels, folder / "tresnet.onnx", folder / "work")
    for shard in SHARDS:
        chain(
            images,
            labels,
            folder / "tresnet.onnx",
            folder / f"work-{shard}",
            "--shard",
            f"{shard}/3",
        )


@pytest.fixture
def runs(shared: Shared, tmp_path: Path) -> Path:
    """A copy of make_runs() that a test may change."""
    made = shared("sharded_runs", make_runs)
    for name in ("work", "work-1", "work-2", "work-3"):
        shutil.copytree(str(made / name), str(tmp_path / name))
    return tmp_path


def merge(folder: Path, *names: str) -> Done:
    import merge_reports

    words = [str(folder / name) for name in names or ("work-3", "work-1", "work-2")]
    return start_here(
        merge_reports.main, {}, folder, "merge_reports.py", *words, "--output", "merged"
    )


def read(path: Path) -> Dict[str, Any]:
    return dict(json.loads(path.read_text()))


@pytest.mark.slow
def test_three_shards_give_what_one_run_gives(runs: Path) -> None:
    done = merge(runs)
    assert done.returncode == 0, done.stderr
    assert (runs / "merged" / "acc.json").read_bytes() == (runs / "work" / "acc.json").read_bytes()
    for name in ("predictions.csv", "classes.csv"):
        assert (runs / "merged" / name).read_bytes() == (runs / "work" / name).read_bytes()
    whole, merged = (
        read(runs / "work" / "acc_report.json"),
        read(runs / "merged" / "acc_report.json"),
    )
    shards = merged.pop("shards")
    assert [(entry["shard"], entry["images"]) for entry in shards] == [
        ([3, 3], 4),
        ([1, 3], 3),
        ([2, 3], 4),
    ]
    assert merged == dict(whole, result=None, prep=None)
    assert merged["counts"]["evaluated"] == 11 and merged["left_out"] == [
        {"source": "bad.png", "error": merged["left_out"][0]["error"]}
    ]
    parts = [read(runs / f"work-{shard}" / "acc_report.json") for shard in SHARDS]
    assert [part["shard"] for part in parts] == [[1, 3], [2, 3], [3, 3]]
    for part in parts:
        for stem in part["evaluated"]:
            name = f"result/{stem}_0.npy"
            (found,) = (path for path in runs.glob(f"work-?/{name}"))
            assert found.read_bytes() == (runs / "work" / name).read_bytes()


@pytest.mark.slow
def test_doubts_of_the_shards_are_added_up(runs: Path) -> None:
    for shard, text_hits in zip(SHARDS, (3, 0, 2)):
        path = runs / f"work-{shard}" / "acc_report.json"
        report = read(path)
        natural = report["hits"][0]
        report["class_order"] = "natural"
        report["class_orders"] = {"natural": natural, "text": text_hits}
        report["clipped"] = [{"mode": "I;16", "to": "white", "images": shard}]
        path.write_text(json.dumps(report))
    done = merge(runs)
    assert done.returncode == 0, done.stderr
    merged = read(runs / "merged" / "acc_report.json")
    assert merged["class_orders"] == {"natural": merged["hits"][0], "text": 5}
    assert merged["clipped"] == [{"mode": "I;16", "to": "white", "images": 6}]
    assert "45.45% in text order" in merged["notes"][0]
    assert merged["notes"][1].startswith("6 images of mode I;16 are clipped to white")


def other_report(runs: Path, change: Callable[[Dict[str, Any]], None]) -> None:
    report = read(runs / "work-2" / "acc_report.json")
    change(report)
    (runs / "work-2" / "acc_report.json").write_text(json.dumps(report))


def other_record(runs: Path, key: str, value: Any) -> None:
    change_recipe(runs / "work-2" / "result.record.jsonl", **{key: value})


REFUSED: List[Tuple[str, Callable[[Path], Any], Tuple[str, ...], str]] = [
    ("missing", lambda runs: None, ("work-1", "work-3"), "1 of 3 shards are missing: 2/3"),
    ("twice", lambda runs: None, ("work-1", "work-1", "work-2"), "shards are missing: 3/3"),
    ("whole", lambda runs: None, ("work", "work-1"), "is of a whole run, not of a shard"),
    (
        "copy",
        lambda runs: other_report(runs, lambda report: report.update(shard=[1, 3])),
        (),
        "are the same shard, 1/3",
    ),
    (
        "of another run",
        lambda runs: other_report(runs, lambda report: report.update(shard=[2, 4])),
        (),
        "parts of different runs: I/3, I/4",
    ),
    (
        "overlap",
        lambda runs: other_report(runs, lambda report: report["evaluated"].__setitem__(0, "i1")),
        (),
        "overlap: both evaluated i1",
    ),
    (
        "model",
        lambda runs: other_record(runs, "inputs", [["tresnet.onnx", "0"]]),
        (),
        "they have another model",
    ),
    ("options", lambda runs: other_record(runs, "options", {}), (), "they have another options"),
    (
        "labels",
        lambda runs: other_report(runs, lambda report: report["counts"].update(labelled=9)),
        (),
        "they have another labels",
    ),
    (
        "half",
        lambda runs: (runs / "work-2" / "acc_report.json").write_text('{"tool": "TResNet'),
        (),
        "acc_report.json is damaged (Unterminated string",
    ),
    (
        "absent",
        lambda runs: (runs / "work-2" / "acc_report.json").unlink(),
        (),
        "acc_report.json; name the work folders of pipeline.sh",
    ),
    (
        "without preparation",
        lambda runs: other_report(runs, lambda report: report.update(prep=None)),
        (),
        "is damaged (it is of a shard, but does not say what was prepared); run TResNet_post",
    ),
    (
        "mean average precision",
        lambda runs: other_report(runs, lambda report: report.update(mAP=0.5, hits=[], true=[])),
        (),
        "the mean average precision of parts cannot be joined",
    ),
    (
        "no record",
        lambda runs: (runs / "work-2" / "result.record.jsonl").unlink(),
        (),
        "lacks the record of",
    ),
]


@pytest.mark.slow
@pytest.mark.parametrize(
    "damage, names, sentence", [row[1:] for row in REFUSED], ids=[row[0] for row in REFUSED]
)
def test_what_is_not_one_run_is_refused(
    runs: Path, damage: Callable[[Path], None], names: Tuple[str, ...], sentence: str
) -> None:
    damage(runs)
    done = merge(runs, *names)
    assert done.returncode == 1 and sentence in done.stderr and done.stderr.count("\n") == 1, (
        done.stderr
    )
    assert not (runs / "merged").exists()


@pytest.mark.slow
def test_what_the_accuracy_does_not_cover_is_counted_over_all_shards(runs: Path) -> None:
    """Images without a right class (of real.json) are left out as bad ones are; a shard may lack
    names of classes.
    """
    for shard in SHARDS:
        path = runs / f"work-{shard}" / "acc_report.json"
        report = read(path)
        stem, true = report["evaluated"].pop(), report["true"].pop()
        scores = np.load(str(runs / f"work-{shard}" / "result" / f"{stem}_0.npy"))[0]
        rank = int((scores > scores[true]).sum() + (scores[:true] == scores[true]).sum())
        report["hits"] = [hits - (rank < k) for k, hits in enumerate(report["hits"], 1)]
        report["left_out"].append({"source": f"{stem}.png", "error": "no right class in real.json"})
        report["counts"]["evaluated"] -= 1
        report["counts"]["left_out"] += 1
        report["notes"] = [
            f"{len(report['left_out'])} of {report['counts']['images']} images were left out"
        ]
        report["class_names"] = [
            f"c{label}" if label % 3 == shard - 1 else str(label) for label in range(10)
        ]
        path.write_text(json.dumps(report))
    done = merge(runs)
    assert done.returncode == 0, done.stderr
    merged = read(runs / "merged" / "acc_report.json")
    assert merged["notes"] == [
        "2 of 13 labelled names have no prediction: this is a subset",
        "4 of 12 images were left out",
    ]
    assert merged["counts"]["left_out"] == len(merged["left_out"]) == 4
    assert merged["class_names"] == [f"c{label}" for label in range(10)]


@pytest.mark.slow
def test_without_the_results_of_a_shard_there_is_no_table_of_images(runs: Path) -> None:
    assert merge(runs).returncode == 0
    shutil.rmtree(str(runs / "work-2" / "result"))
    done = merge(runs)
    assert done.returncode == 0 and "so there is no predictions.csv of all shards" in done.stderr
    assert sorted(path.suffix for path in (runs / "merged").iterdir()) == [
        ".json",
        ".json",
        ".jsonl",
    ]


@pytest.mark.slow
def test_a_shard_s_own_files_are_not_replaced(runs: Path) -> None:
    import merge_reports

    words = [str(runs / f"work-{shard}") for shard in SHARDS]
    before = (runs / "work-1" / "acc.json").read_bytes()
    done = start_here(
        merge_reports.main, {}, runs / "work-1", "merge_reports.py", *words
    )  # --output is this folder
    assert done.returncode == 1 and "is the work folder of a shard" in done.stderr, done.stderr
    assert (runs / "work-1" / "acc.json").read_bytes() == before


def test_shards_that_cannot_be_meant(tmp_path: Path) -> None:
    for text in ("0/3", "4/3", "1", "1/0", "a/b"):
        assert "is not I/N" in refusal(
            "TResNet_preprocess.py", tmp_path, tmp_path, "--shard", text, status=2
        )
