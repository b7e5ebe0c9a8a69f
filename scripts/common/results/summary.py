"""What a run of the pipeline found and where its files are, in lines to read."""

import os
from typing import Any, Collection, Dict, List, Optional, Tuple

from common.core import record
from common.core.cli import counted, shown
from common.model import claims
from common.model.network import lineage_is_assumed
from common.results import claimed
from common.results.texts import ENGLISH
from common.results.work_files import (
    ACCURACY,
    BEFORE_INT8,
    CLASSES,
    COMPARE,
    INT8,
    PAGE,
    PERF,
    PREDICTIONS,
    REPORT,
    SPEED,
    SUMMARY,
)

COUNTS = ("images", "labelled", "preprocessed", "inferred", "evaluated", "left_out")
SAMPLE_NOTE = ENGLISH("sample_note")
PREPARED_OTHERWISE = ENGLISH("sample_prepared_otherwise")


def accuracy(workdir: str, name: str) -> Dict[str, str]:
    """{"Top1 accuracy": "93.75%", ...} of one of the work folder's accuracy files."""
    rows = ACCURACY.read(os.path.join(workdir, name))["value"]
    return {row["key"]: row["value"] for row in rows if row["value"].endswith("%")}


def precision_before(backend: str) -> str:
    """In what the model that was quantised computes."""
    return "float16" if backend == "ascend" else "float32"


def put_back(model: str) -> List[Tuple[str, str]]:
    """The lines about layers that --max-drop put back to float; [] if it was not asked for."""
    report = INT8.read(model[: -len(".onnx")] + ".json")
    if "held" not in report:
        return []
    layers = ", ".join(
        f"{row['name']} (alone it costs {row['cost']:.1e} of the cosine)"
        for row in report["put_back"]
    )
    low, high = report["interval"]
    verb = "gains" if report["drop"] < 0 else "loses"
    images = f", {counted(report['images'], 'image')}" if "images" in report else ""
    return [
        (
            f"int8 {verb}",
            f"{abs(report['drop']):.2f} points of Top-1 against float32 (95 % interval of the loss "
            f"{low:.2f} to {high:.2f}{images}), --max-drop {report['max_drop']:g}",
        ),
        ("put back", layers or "nothing"),
    ]


def int8_speed(model: str, backend: str, before: float, now: float) -> List[Tuple[str, str]]:
    """The lines about the speed of an int8 model, and about its weights.

    before, now: images/s of the two inferences; they ran at different times, so their ratio says
    little, and only what was measured in turns is given as one.
    """
    report = INT8.read(model[: -len(".onnx")] + ".json")
    if "speed" not in report:  # the card
        figures = f"{now:.1f} images/s, {precision_before(backend)} {before:.1f}"
        if not (now and before):  # a run that was stopped after its last image
            return [("speed", "not measured: nothing was left to infer; --force measures it")]
        return [("speed", f"{figures} (one pass each; --tune measures them in turns)")]
    lines = [("int8", report["weights"]), ("speed", speed_words(report["speed"]))]
    if report["speed"]["ratio"] < 1:
        lines.append(("WARNING", "int8 is slower than float32 on this CPU: use float32"))
    return lines


def speed_words(row: Dict[str, Any]) -> str:
    """int8's speed beside float32's, measured in turns; row: of the quantisation's report."""
    low, high = row["spread"]
    return (
        f"{row['int8']:.1f} images/s, float32 {row['float32']:.1f}: {row['ratio']:.2f} times as "
        f"fast ({low:.2f} to {high:.2f}), measured in turns at batch size {row['batch_size']}"
    )


def against_float32(result: str, float32: str, backend: str, model: str) -> List[Tuple[str, str]]:
    """(what, value) of the lines about speed of a quantised model and of what it was made from."""
    before, now = (
        SUMMARY.read(folder + "_summary.json")["throughput"] for folder in (float32, result)
    )
    return int8_speed(model, backend, before, now)


def agreement(workdir: str, backend: str) -> Tuple[str, str]:
    """The line that sets the answers of a quantised model beside those of the other one."""
    comparison = COMPARE.read_in(workdir)
    with_float32 = os.path.basename(comparison["a"]) == "result_onnx"
    other = "float32" if with_float32 else precision_before(backend)
    return (
        "agreement",
        f"the same Top-1 as {other} for {comparison['top1_agreement']:.2f} % of "
        f"{counted(comparison['images'], 'image')}, cosine similarity of the logits "
        f"{comparison['cosine']['min']:.4f} at least",
    )


def about_lineage(about: Dict[str, Any]) -> str:
    """The warning for an assumed lineage; about: the notes of the model's record."""
    if about["lineage"] == "ascend":
        return (
            "the checkpoint may be of the lineage miil-bn (see the export): ascend is assumed. If "
            "BatchNorm replaced InplaceABN in the official network, every figure here is wrong: "
            "--lineage miil-bn"
        )
    return (
        f"nothing in the checkpoint says its lineage: {about['lineage']} is assumed. If it was "
        "trained with the patched timm, every figure here is wrong: --lineage ascend"
    )


def rounded(images_per_s: float) -> str:
    """A forecast with the two digits that it can have: 2915 gives "2,900"."""
    return f"{int(float(f'{images_per_s:.2g}')):,}"


def speed_lines(workdir: str, made: Collection[str]) -> List[Tuple[str, str]]:
    """(what, value) of the lines about the forecast of the speed on a card.

    made: names of the JSON files that this run made.
    """
    lines: List[Tuple[str, str]] = []
    if "speed" in made:
        forecast = SPEED.read_in(workdir)
        best_size = forecast["best_batch_size"]
        best = {row["batch_size"]: row for row in forecast["rows"]}[best_size]
        low, high = rounded(best["low_80"]), rounded(best["high_80"])
        lines.append(
            (
                "forecast",
                f"{rounded(best['images_per_s'])} images/s at batch size {best_size} on one "
                f"{forecast['chip']}, {low} to {high} with 80 % (docs/speed.md)",
            )
        )
    if "perf" in made:
        perf = PERF.read_in(workdir)
        lines += [("WARNING", warning) for warning in perf.get("warnings", ())]
        expected = perf.get("expected")
        if expected and expected["slow"]:
            lines.append(("WARNING", expected["verdict"]))
            lines += [("look at", cause) for cause in expected["look_at"]]
    return lines


def accuracies(workdir: str, backend: str, is_int8: bool) -> List[Tuple[str, str]]:
    """The lines of acc.json; of int8 with the accuracy of what it was made from."""
    now = accuracy(workdir, ACCURACY.name)
    if not is_int8:
        return list(now.items())
    other = precision_before(backend)
    before = accuracy(workdir, BEFORE_INT8[other].name)
    return [(key, f"{value}, {other} {before[key]}") for key, value in now.items()]


def show(
    workdir: str,
    backend: str,
    exported: str,
    model: str,
    result: str,
    float32: Optional[str],
    made: Collection[str],
    note: str,
) -> None:
    """Print the summary.

    exported: the ONNX file; model: it, or the int8 one; result: the folder that was evaluated;
    float32: the float32 model's results, if this one is quantised.
    made: names of the JSON files that this run made (an earlier run's files are not named).
    note: the last line, if there is one.
    """
    about = record.read(exported).notes
    report = REPORT.read_in(workdir)
    counts = report["counts"]
    size, classes = about["evaluation"]["img_size"], about["num_classes"]
    network = f"{about['variant']}, {classes} classes, {size}×{size}, {about['lineage']} lineage"
    known = [
        f"{counts[key]} {key.replace('_', ' ')}" for key in COUNTS if counts.get(key) is not None
    ]
    lines = [
        ("backend", backend),
        ("network", network + ", int8" if float32 else network),
        ("images", ", ".join(known)),
    ]
    if lineage_is_assumed(about):
        lines.append(("WARNING", about_lineage(about)))
    lines += accuracies(workdir, backend, bool(float32))
    lines += [("note", sentence) for sentence in report["notes"]]
    if float32:
        lines += against_float32(result, float32, backend, model)
        if "compare" in made:
            lines.append(agreement(workdir, backend))
        lines += put_back(model)
    for comparison in claimed.compare(about, report):
        lines.append(("checkpoint", comparison.words))
    lines += [("note", f"the checkpoint says {remark}") for remark in claims.remarks_of(about)]
    lines += speed_lines(workdir, made)
    lines += file_lines(workdir, made)
    lines += [("predictions", result), ("model", model)]
    width = max(len(what) for what, _ in lines)
    for what, value in lines:
        print(f"{what:<{width}}  {value if value.isprintable() else shown(value)}")
    if note:
        print(note)


def file_lines(workdir: str, made: Collection[str]) -> List[Tuple[str, str]]:
    """(what, path) of the files that this run made."""
    names = [("report", PAGE), ("accuracy", ACCURACY.name), ("each image", REPORT.name)]
    if os.path.exists(os.path.join(workdir, PREDICTIONS)):  # not with labels of several classes
        names += [("its answer", PREDICTIONS), ("each class", CLASSES)]
    if "compare" in made:
        names.append(("comparison", COMPARE.name))
    if "perf" in made:
        names += [("throughput", "perf.md"), ("its plot", "perf.png")]
    return [(what, os.path.join(workdir, name)) for what, name in names]
