"""The JSON files of a work folder: what each is called, what makes it, and what it holds.

Only what some program reads is described. Standard library only.
"""

import os
from typing import Any, Callable, Dict, NamedTuple

from common.core import json_file
from common.core.json_file import COUNT, FIGURE, SIZE, Number
from common.core.names import CLASS_ORDERS

EXPORTED = "tresnet.onnx"  # the model
PAGE = "report.html"
PREDICTIONS, CLASSES = "predictions.csv", "classes.csv"  # beside acc.json

PER_CENT = Number(0, 100)
SHARES = dict.fromkeys(("compute", "memory", "overhead", "input"), Number(0, 1))
DURATION = Number(1e-9, 1e9)  # ms; a share is divided by it
SHARD = Number(1, 999_999, True)  # as cli.shard takes it
COSINE = {"min": FIGURE, "mean": FIGURE, "image": str}
MEASURED = {
    "batch_size": SIZE,
    "loop?": SIZE,
    "throughput": FIGURE,
    "latency_mean": FIGURE,
    "latency_p99": FIGURE,
    "throughput_spread?": FIGURE,
    "reference?": FIGURE,
    "ratio?": FIGURE,
}


# ---- contradictions ------------------------------------------------------------------------------


def check_report(report: Dict[str, Any]) -> None:
    """Raises: ValueError for an acc_report.json whose values contradict each other."""
    counts, hits, true = report["counts"], report["hits"], report["true"]
    images, names = counts["evaluated"], report["class_names"]
    if len(report["evaluated"]) != images:
        raise ValueError(
            f"it counts {images} evaluated images, but lists {len(report['evaluated'])}"
        )
    if names is not None and len(names) != report["classes"]:
        raise ValueError(f"it names {len(names)} of {report['classes']} classes")
    offsets = report.get("label_offsets")
    if offsets and (set(offsets) != {"0", "1"} or str(report["label_offset"]) not in offsets):
        raise ValueError("its label offsets are not 0 and 1")
    orders = report.get("class_orders")
    if orders and (set(orders) != set(CLASS_ORDERS) or report.get("class_order") not in orders):
        raise ValueError("it does not say in which order the class folders are numbered")
    if "shard" in report and (report["prep"] is None or None in counts.values()):
        raise ValueError("it is of a shard, but does not say what was prepared")
    if "mAP" in report and not hits:
        return
    if not hits or hits != sorted(hits) or hits[-1] > images:
        raise ValueError(f"its hits cannot be those of {images} images")
    if len(true) != images or max(true) >= report["classes"]:
        raise ValueError(f"its right classes cannot be those of {images} images")


def check_pairs(figures: Dict[str, Any]) -> None:
    """Raises: ValueError if a comparison's or a forecast's names are not as many as its cosines."""
    names, cosines = len(figures["names"]), len(figures["cosines"])
    if names != cosines:
        raise ValueError(f"its cosines are {cosines}, its names are {names}")


def check_promise(report: Dict[str, Any]) -> None:
    """Raises: ValueError for a quantisation's report that lacks a figure of --max-drop."""
    lacking = {"drop", "max_drop", "interval"} - report.keys()
    if "held" in report and lacking:
        raise ValueError(f"it lacks {min(lacking)!a}")
    if "speed" in report and "weights" not in report:
        raise ValueError("it lacks 'weights'")


def check_speed(report: Dict[str, Any]) -> None:
    """Raises: ValueError if a forecast of the speed lacks the row of its best batch size."""
    best = report["best_batch_size"]
    if all(row["batch_size"] != best for row in report["rows"]):
        raise ValueError(f"it lacks the row of its best batch size, {best}")


# ---- the files -----------------------------------------------------------------------------------


class WorkFile(NamedTuple):
    """A JSON file of a work folder."""

    name: str
    made_by: str  # what makes it again
    shape: Dict[Any, Any]  # as json_file.require() takes it
    check: Callable[[Dict[str, Any]], None] = lambda content: None  # raises ValueError

    def read(self, path: str, advice: str = "") -> Dict[str, Any]:
        """The content of such a file. Raises: Refusal if it is missing or damaged.

        advice: what to do then, if that is not to run again what makes it.
        """
        advice = advice or f"run {self.made_by} again"
        return dict(json_file.read(path, self.shape, advice, check=self.check))

    def read_in(self, folder: str) -> Dict[str, Any]:
        """read() of the file in a work folder."""
        return self.read(os.path.join(folder, self.name))


ACCURACY = WorkFile("acc.json", "TResNet_postprocess.py", {"value": [{"key": str, "value": str}]})
BEFORE_INT8 = {  # the accuracy of the model that was quantised, by what it computes in
    precision: ACCURACY._replace(name=f"acc_{precision}.json")
    for precision in ("float32", "float16")
}
REPORT = WorkFile(
    "acc_report.json",
    "TResNet_postprocess.py",
    {
        "tool": str,
        "version": str,
        "result": (str, None),
        "prep": (str, None),
        "labels": str,
        "classes": SIZE,
        "label_offset": Number(-1, 1, True),
        "hits": [COUNT],
        "true": [COUNT],
        "mAP?": FIGURE,
        "average_precision?": [(FIGURE, None)],
        "counts": {
            "labelled": COUNT,
            "inferred": COUNT,
            "evaluated": SIZE,
            "images": (COUNT, None),
            "preprocessed": (COUNT, None),
            "bad": (COUNT, None),
            "left_out": (COUNT, None),
        },
        "notes": [str],
        "left_out": [{"source": str, "error": str}],
        "evaluated": [str],
        "labelled_without_prediction": [str],
        "class_names": ([str], None),
        "label_offsets?": {str: COUNT},
        "class_order?": str,
        "class_orders?": {str: COUNT},
        "clipped?": [{"mode": str, "to": str, "images": SIZE}],
        "all_equal?": bool,
        "shard?": [SHARD, SHARD],
        "shards?": [{"shard": [SHARD, SHARD], "folder": str, "images": COUNT}],
    },
    check_report,
)
PERF = WorkFile(
    "perf.json",
    "scripts/perf_sweep.py",
    {
        "chip": str,
        "loop": SIZE,
        "batches?": str,
        "repeat": SIZE,
        "warnings?": [str],
        "rows": [MEASURED, ...],
        "devices?": {str: [MEASURED]},
        "together?": [
            {"batch_size": SIZE, "throughput": FIGURE, "alone": FIGURE, "loss": FIGURE},
            ...,
        ],
        "expected?": {
            "slow": bool,
            "verdict": str,
            "look_at": [str],
            "rows?": [{"batch_size": SIZE, "low_90": FIGURE, "ratio": FIGURE}],
        },
    },
)
COMPARE = WorkFile(
    "compare.json",
    "scripts/compare_results.py",
    {
        "a": str,
        "b": str,
        "images": SIZE,
        "cosine": COSINE,
        "cosines": [FIGURE, ...],
        "names": [str],
        "largest_difference": {"value": FIGURE, "image": str},
        "top1_agreement": PER_CENT,
        "verdict?": str,
        "disagreements": [{"image": str, "a": COUNT, "b": COUNT}],
    },
    check_pairs,
)
FORECAST = WorkFile(
    "forecast.json",
    "scripts/forecast_fp16.py",
    {
        "images": SIZE,
        "cosine": COSINE,
        "cosines": [FIGURE, ...],
        "names": [str],
        "top1_agreement": PER_CENT,
        "overflow": [str],
        "operators": [{"name": str, "type": str, "largest": FIGURE, "cosine": FIGURE}],
    },
    check_pairs,
)
EXPECT = WorkFile(
    "expect.json",
    "scripts/expect.py",
    {
        "name": str,
        "published": {"top1": (FIGURE, None), "top5": (FIGURE, None)},
        "within": bool,
        "cause": (str, None),
    },
)
TUNE = WorkFile("tune.json", "scripts/tune.py", {"options": [str]})
RUN = WorkFile(
    "run.json",
    "the pipeline",
    {
        "backend": str,
        "reason": str,
        "precision": str,
        "note": str,
        "data": str,
        "checkpoint": str,
        "gates": {str: FIGURE},
        "made": [str],
        "commands": [str],
        "began": str,
        "seconds": FIGURE,
        "steps": [{"name": str, "seconds": FIGURE, "kept?": bool, "made_in?": (FIGURE, None)}],
        "options?": {str: (str, bool, FIGURE, [FIGURE])},
        "making?": {str: {"recipe": str, "seconds": (FIGURE, None)}},
    },
)
INT8 = WorkFile(
    "tresnet_int8.json",
    "the quantisation",
    {
        "put_back": [{"name": str, "cost": FIGURE}],
        "held?": bool,
        "drop?": FIGURE,
        "max_drop?": FIGURE,
        "interval?": [FIGURE, FIGURE],
        "images?": SIZE,
        "chosen_on?": SIZE,
        "weights?": str,
        "weight_bits?": Number(7, 8, True),
        "scales?": str,
        "ranges?": str,
        "trial?": [str],
        "speed?": {
            "batch_size": SIZE,
            "int8": FIGURE,
            "float32": FIGURE,
            "ratio": FIGURE,
            "spread": [FIGURE, FIGURE],
        },
    },
    check_promise,
)
SUMMARY = WorkFile("result_summary.json", "the inference", {"throughput": FIGURE})
SPEED = WorkFile(
    "speed.json",
    "scripts/forecast_speed.py",
    {
        "chip": str,
        "model": str,
        "size": [SIZE, SIZE],
        "limits": [str],
        "best_batch_size": SIZE,
        "rows": [
            {
                "batch_size": SIZE,
                "images_per_s": FIGURE,
                "low_80": FIGURE,
                "high_80": FIGURE,
                "ms_per_batch": DURATION,
                "shares": SHARES,
            },
            ...,
        ],
        "kernels": [{"name": str, "operators": [str], "us": FIGURE, "mostly": str}, ...],
    },
    check_speed,
)
