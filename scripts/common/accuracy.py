"""Top-k accuracy as it is written: acc.json from a report's counts, and what is to be noted beside it."""
from typing import Any, Dict, List

from common.results import percent

TITLE = "Overall statistical evaluation"  # how acc.json begins


def percentages(report: Dict[str, Any]) -> List[float]:
    """Top-1, Top-2, ... accuracy in per cent."""
    return [percent(hits, report["counts"]["evaluated"]) for hits in report["hits"]]


def statistics(report: Dict[str, Any]) -> Dict[str, Any]:
    """The content of acc.json."""
    rows = [("Number of images", str(report["counts"]["evaluated"])), ("Number of classes", str(report["classes"]))]
    if "mAP" in report:
        rows += [("Number of classes without an image", str(report["average_precision"].count(None))),
                 ("Mean average precision", f"{round(100 * report['mAP'], 2)}%")]
    rows += [(f"Top{k} accuracy", f"{value}%") for k, value in enumerate(percentages(report), 1)]
    return {"title": TITLE, "value": [{"key": key, "value": value} for key, value in rows]}


def coverage_notes(unpredicted: int, labelled: int, bad: int, images: int) -> List[str]:
    """What the accuracy does not cover, in sentences."""
    subset = f"{unpredicted} of {labelled} labelled names have no prediction: this is a subset"
    return [subset] * bool(unpredicted) + [f"{bad} of {images} images were left out"] * bool(bad)
