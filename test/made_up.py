"""A made-up run: results whose figures are known beforehand, drawn pictures, and what the other
steps leave beside.
"""

import json
import os
from pathlib import Path
from typing import Any, Dict, List, Optional, Tuple

import numpy as np
import records

SIDE = 32  # pixels of the prepared images
CARD_ROWS = [
    {
        "batch_size": size,
        "throughput": speed,
        "reference": reference,
        "ratio": speed / reference,
        "latency_mean": 1000 * size / speed,
        "latency_p99": 1060 * size / speed,
        "throughput_spread": 0.01,
        "throughput_runs": [speed],
    }
    for size, speed, reference in (
        (1, 1131.2, 1154.0),
        (4, 2548.9, 2552.0),
        (8, 3171.5, 3158.0),
        (16, 3262.0, 3249.0),
        (32, 2779.4, 2756.0),
    )
]


def scores(true: np.ndarray, top1: int, top5: int, classes: int, seed: int = 0) -> np.ndarray:
    """float32 [len(true), classes]: exactly the first `top1` images right, the first `top5` within
    five.
    """
    random = np.random.RandomState(seed)
    rows = np.arange(len(true))
    logits = random.normal(0, 1, (len(true), classes)).astype(np.float32)
    logits[rows, true] = -9
    second = (
        true + 1 + (random.rand(len(true)) < 0.3)
    ) % classes  # a class is mostly taken for the next one
    logits[rows, second] = np.where(rows < top1, 5.5, random.uniform(6, 14, len(true)))
    fourth = -np.sort(-np.delete(logits, [], 1), 1)[:, 3] if classes > 4 else np.zeros(len(true))
    inside = rows < top5
    logits[rows[inside], true[inside]] = fourth[inside] + 0.001
    logits[rows[:top1], true[:top1]] = random.uniform(7, 19, min(top1, len(true)))
    return logits


def picture(place: int, side: int = SIDE) -> np.ndarray:
    """uint8 [side, side, 3]: a drawn thing, another for each number."""
    y, x = np.mgrid[0:side, 0:side] / side - 0.5
    angle, ring = np.arctan2(y, x), np.hypot(x, y)
    wave = np.sin((3 + place % 5) * angle + 9 * ring + place)
    return np.stack(
        [
            127 + 127 * np.sin(wave * (1 + channel) + 0.7 * place + 2 * channel)
            for channel in range(3)
        ],
        2,
    ).astype(np.uint8)


def write_results(folder: Path, stems: List[str], logits: np.ndarray) -> None:
    """One file for each stem; of more stems than logits the later ones are links to the same files
    again.
    """
    folder.mkdir(mode=0o750)
    for place, stem in enumerate(stems):
        if place < len(logits):
            np.save(str(folder / f"{stem}_0.npy"), logits[place][None])
        else:
            os.link(
                str(folder / f"{stems[place % len(logits)]}_0.npy"), str(folder / f"{stem}_0.npy")
            )


def write_prepared(folder: Path, sources: Dict[str, str], different: int) -> None:
    """The prepared folder of images, {stem: source}; of them so many differ, the others are links
    to them.
    """
    folder.mkdir(mode=0o750)
    stems = list(sources)
    for place, stem in enumerate(stems):
        if place < different:
            (folder / f"{stem}.bin").write_bytes(picture(place).tobytes())
        else:
            os.link(str(folder / f"{stems[place % different]}.bin"), str(folder / f"{stem}.bin"))
    records.write_prepared(folder, sources, img_size=SIDE, dtype="uint8")


def make_run(
    work: Path,
    images: int,
    classes: int,
    top1: int,
    top5: int,
    names: Optional[List[str]] = None,
    sources: Optional[List[str]] = None,
    copies: int = 1,
) -> Tuple[np.ndarray, np.ndarray]:
    """Results, prepared images, labels and acc_report.json in `work`, all `copies` times; (true
    classes, scores).
    """
    from common.results.accuracy import statistics

    import TResNet_postprocess as post

    stems = [f"i{place:05d}" for place in range(images * copies)]
    true = np.random.RandomState(1).permutation(np.arange(images) % classes)
    logits = scores(true, top1, top5, classes)
    write_prepared(
        work / "prep_dataset",
        dict(zip(stems, sources or [f"{stem}.jpg" for stem in stems])),
        images,
    )
    write_results(work / "result", stems, logits)
    labels = zip(stems, np.tile(true, copies))
    (work / "val_label.txt").write_text("".join(f"{stem} {label}\n" for stem, label in labels))
    if names:
        (work / "names.txt").write_text("\n".join(names) + "\n", encoding="utf-8")
    report = post.evaluate(
        str(work / "result"),
        str(work / "val_label.txt"),
        str(work / "prep_dataset"),
        2,
        str(work / "names.txt") if names else None,
    )
    (work / "acc_report.json").write_text(json.dumps(report))
    (work / "acc.json").write_text(json.dumps(statistics(report)))
    return true, logits


def report(stems: List[str], true: List[int]) -> Dict[str, Any]:
    """What acc_report.json says of these images if every answer is right."""
    counts = dict.fromkeys(
        ("labelled", "images", "preprocessed", "inferred", "evaluated"), len(stems)
    )
    return {
        "tool": "TResNet_postprocess.py",
        "version": "1",
        "result": "result",
        "prep": "prep",
        "labels": "labels.txt",
        "classes": max(true) + 1,
        "label_offset": 0,
        "hits": [len(stems)],
        "counts": dict(counts, bad=0, left_out=0),
        "notes": [],
        "left_out": [],
        "labelled_without_prediction": [],
        "evaluated": stems,
        "true": true,
        "class_names": None,
    }


def on_card(work: Path, logits: np.ndarray, images: int = 64) -> None:
    """Beside a run: a comparison with slightly other scores, a sweep of the card, what the pipeline
    says of itself.
    """
    import compare_results

    random = np.random.RandomState(2)
    stems = [f"i{place:05d}" for place in range(images)]
    noise = random.normal(0, 1, logits[:images].shape) * 10 ** random.uniform(-3.2, -2, (images, 1))
    other = (logits[:images] + noise).astype(np.float32)
    for row in other[:2]:  # two answers change
        row[row.argmax()] = np.sort(row)[-2] - 0.01
    write_results(work / "result_onnx", stems, other)
    compared = compare_results.compare(str(work / "result_onnx"), str(work / "result"))
    (work / "compare.json").write_text(json.dumps(compared))
    (work / "perf.json").write_text(
        json.dumps(
            {
                "tool": "perf_sweep.py",
                "version": "1",
                "backend": "ascend",
                "chip": "Ascend 310P3",
                "loop": 20,
                "repeat": 3,
                "rows": CARD_ROWS,
                "best": CARD_ROWS[3],
            }
        )
    )
    (work / "run.json").write_text(
        json.dumps(
            {
                "backend": "ascend",
                "reason": "npu-smi, atc and ais_bench are there",
                "precision": "float32",
                "note": "",
                "data": os.path.abspath(str(work)),
                "checkpoint": "model_best.pth.tar",
                "gates": {"min_top1": 70.0},
                "made": ["acc", "acc_report", "run", "perf", "compare"],
                "began": "2026-01-01 12:00",
                "seconds": 754,
                "commands": ["python3 TResNet_pth2onnx.py model_best.pth.tar work/tresnet.onnx"],
                "steps": [
                    {"name": "Export", "seconds": 14.2},
                    {"name": "Inference", "seconds": 38.0},
                ],
            }
        )
    )
