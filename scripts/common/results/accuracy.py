"""Top-k accuracy as it is written: acc.json, the report beside it, and notes about both."""

import json
from typing import Any, Dict, List

from common.core import record
from common.core.files import write_whole
from common.core.names import other_order
from common.data import prepared
from common.results.results import percent

TITLE = "Overall statistical evaluation"  # how acc.json begins
TOOL = "TResNet_postprocess.py"  # how the report begins
BACKGROUND = 'class 0 is taken for "background", so each label is one lower than its class'
NO_BACKGROUND = 'class 0 is not taken for "background", so each label is its class'
CHANCE_IMAGES, CHANCE_CLASSES = 200, 5  # from so many on, chance is a sign of something wrong


def percentages(report: Dict[str, Any]) -> List[float]:
    """Top-1, Top-2, ... accuracy in per cent."""
    return [percent(hits, report["counts"]["evaluated"]) for hits in report["hits"]]


def statistics(report: Dict[str, Any]) -> Dict[str, Any]:
    """The content of acc.json."""
    rows = [
        ("Number of images", str(report["counts"]["evaluated"])),
        ("Number of classes", str(report["classes"])),
    ]
    if "mAP" in report:
        rows += [
            ("Number of classes without an image", str(report["average_precision"].count(None))),
            ("Mean average precision", f"{percent(report['mAP'], 1)}%"),
        ]
    rows += [(f"Top{k} accuracy", f"{value}%") for k, value in enumerate(percentages(report), 1)]
    return {"title": TITLE, "value": [{"key": key, "value": value} for key, value in rows]}


def near_chance(report: Dict[str, Any]) -> bool:
    """Whether Top-1 is at most twice what guessing gives; few classes prove nothing."""
    hits, classes = report.get("hits"), report["classes"]
    if not hits or classes < CHANCE_CLASSES:
        return False
    return bool(hits[0] * classes <= 2 * report["counts"]["evaluated"])


def notes(report: Dict[str, Any]) -> List[str]:
    """What the accuracy does not cover and why it may be wrong, in sentences."""
    counts = report["counts"]
    unpredicted, left_out = len(report["labelled_without_prediction"]), len(report["left_out"])
    sentences = []
    if report.get("all_equal"):
        sentences.append(
            f"all {counts['inferred']} results are the same: the network's answer does not depend "
            "on the image, so the inference is wrong, or all images are one"
        )
    sentences += note_on_offsets(report)
    sentences += note_on_orders(report) + prepared.describe_clipped(report.get("clipped", ()))
    if counts["inferred"] >= CHANCE_IMAGES and near_chance(report):
        sentences.append(
            "Top-1 is at the level of chance: usually the labels are numbered otherwise than the "
            "network's classes (from 1, or in another order), or the images were prepared "
            "otherwise than in training"
        )
    if unpredicted:
        sentences.append(
            f"{unpredicted} of {counts['labelled']} labelled names have no prediction: this is a "
            "subset"
        )
    if left_out:
        sentences.append(f"{left_out} of {counts['evaluated'] + left_out} images were left out")
    return sentences


def note_on_offsets(report: Dict[str, Any]) -> List[str]:
    """What both label offsets give, where the labels allow both and nobody chose one."""
    top1_hits = report.get("label_offsets")
    if not top1_hits:
        return []
    images, used = report["counts"]["evaluated"], report["label_offset"]
    other = 1 - used
    top1 = {offset: percent(top1_hits[str(offset)], images) for offset in (used, other)}
    return [
        f"of {report['classes']:,} classes {BACKGROUND if used else NO_BACKGROUND}: Top-1 is "
        f"{top1[used]}%, and {top1[other]}% with --label-offset {other}"
    ]


def note_on_orders(report: Dict[str, Any]) -> List[str]:
    """What the two orders of the class folders give, where they differ; [] where they do not."""
    top1_hits = report.get("class_orders")
    if not top1_hits:
        return []
    images, used = report["counts"]["evaluated"], report["class_order"]
    other = other_order(used)
    top1 = {order: percent(hits, images) for order, hits in top1_hits.items()}
    who = {"natural": "timm", "text": "torchvision"}
    return [
        f"Top-1 is {top1[used]}% with the class folders in {used} order, as {who[used]} numbers "
        f"them, and {top1[other]}% in {other} order, as {who[other]} does (--class-order {other})"
    ]


def other_order_is_better(report: Dict[str, Any]) -> bool:
    """Whether the order of the class folders that was not used gives a higher Top-1."""
    top1_hits: Dict[str, int] = report.get("class_orders") or {}
    return max(top1_hits.values(), default=0) > top1_hits.get(report.get("class_order", ""), 0)


def claim(accuracy_path: str, report_path: str) -> None:
    """Refuse to replace files that this program did not write."""
    record.claim_like(accuracy_path, f'"title": "{TITLE}"')
    record.claim_like(report_path, f'"tool": "{TOOL}"')


def write(report: Dict[str, Any], accuracy_path: str, report_path: str) -> None:
    """Write acc.json and the report, and print what they say."""
    table = statistics(report)
    write_whole(report_path, json.dumps(report).encode("ascii"))
    write_whole(accuracy_path, json.dumps(table).encode("ascii"))  # last: its report is there then
    lines = [f"{row['key']}: {row['value']}" for row in table["value"]]
    print("\n".join(lines + report["notes"]))
