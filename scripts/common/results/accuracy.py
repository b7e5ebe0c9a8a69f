"""Top-k accuracy as it is written: acc.json, the report beside it, and notes about both."""

import json
from typing import Any, Dict, List

from common.core import record
from common.core.files import write_whole
from common.core.names import other_order
from common.results.results import percent
from common.results.texts import ENGLISH, Say

TITLE = "Overall statistical evaluation"  # how acc.json begins
TOOL = "TResNet_postprocess.py"  # how the report begins
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


def notes(report: Dict[str, Any], say: Say = ENGLISH) -> List[str]:
    """What the accuracy does not cover and why it may be wrong, in sentences of a language."""
    counts = report["counts"]
    unpredicted, left_out = len(report["labelled_without_prediction"]), len(report["left_out"])
    sentences = []
    if report.get("all_equal"):
        sentences.append(say("note_all_equal", n=counts["inferred"]))
    sentences += note_on_offsets(report, say) + note_on_orders(report, say)
    for row in report.get("clipped", ()):
        sentences.append(say(f"note_clipped_{row['to']}", n=row["images"], mode=row["mode"]))
    if counts["inferred"] >= CHANCE_IMAGES and near_chance(report):
        sentences.append(say("note_chance"))
    if unpredicted:
        sentences.append(say("note_subset", n=unpredicted, labelled=counts["labelled"]))
    if left_out:
        images = counts["evaluated"] + left_out
        sentences.append(say("note_left_out", n=left_out, images=images))
    return sentences


def note_on_offsets(report: Dict[str, Any], say: Say) -> List[str]:
    """What both label offsets give, where the labels allow both and nobody chose one."""
    top1_hits = report.get("label_offsets")
    if not top1_hits:
        return []
    images, used = report["counts"]["evaluated"], report["label_offset"]
    other = 1 - used
    top1 = {offset: percent(top1_hits[str(offset)], images) for offset in (used, other)}
    return [
        say(
            "note_background" if used else "note_no_background",
            classes=f"{report['classes']:,}",
            top1=top1[used],
            other_top1=top1[other],
            other=other,
        )
    ]


def note_on_orders(report: Dict[str, Any], say: Say) -> List[str]:
    """What the two orders of the class folders give, where they differ; [] where they do not."""
    top1_hits = report.get("class_orders")
    if not top1_hits:
        return []
    images, used = report["counts"]["evaluated"], report["class_order"]
    other = other_order(used)
    top1 = {order: percent(hits, images) for order, hits in top1_hits.items()}
    who = {"natural": "timm", "text": "torchvision"}
    return [
        say(
            "note_orders",
            top1=top1[used],
            order=used,
            who=who[used],
            other_top1=top1[other],
            other=other,
            other_who=who[other],
        )
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
