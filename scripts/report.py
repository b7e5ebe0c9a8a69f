#!/usr/bin/env python3
"""What a run found, as one page: WORKDIR/report.html opens in any browser, without a network.

    python3 scripts/report.py work
    python3 scripts/report.py work --class-names names.txt --force
    python3 scripts/report.py work --language zh

In:  the work folder of pipeline.sh, or any folder with acc_report.json of TResNet_postprocess.py.
     Beside it, as far as they are there: the results and the prepared images that acc_report.json
     names, run.json, perf.json, compare.json, expect.json, forecast.json, speed.json. The page
     leaves out what is not there. Its language is Chinese where LANG is, or as --language says.
Out: WORKDIR/report.html, at most 1 MB. report.html.record.jsonl says what it was made of: a page
     that is up to date is kept.
"""

import base64
import functools
import hashlib
import io
import os
from typing import Any, Callable, Dict, List, NamedTuple, Optional, Sequence, Tuple

from common.core import cli

if __name__ == "__main__":
    cli.start()  # before what may be missing

from common.core import files, options, progress, recipe, record
from common.core.cli import ROOT, Refusal, shown, some
from common.data import class_names, evaluation, prepared
from common.model import claims
from common.model.network import lineage_is_assumed
from common.model.statistics import interval
from common.results import accuracy, claimed, figures, published, ranks, summary, tables
from common.results.results import percent, read_result, result_files
from common.results.texts import ENGLISH, HTML_NAMES, Say, language_of
from common.results.work_files import (
    ACCURACY,
    BEFORE_INT8,
    COMPARE,
    EXPECT,
    EXPORTED,
    FORECAST,
    INT8,
    PAGE,
    PERF,
    REPORT,
    RUN,
    SPEED,
    WorkFile,
)

import numpy as np

SOURCES = os.path.join(ROOT, "scripts", "common", "results")
TEMPLATE = os.path.join(SOURCES, PAGE)
STYLE, SCRIPT = os.path.join(SOURCES, "report.css"), os.path.join(SOURCES, "report.js")
PARTS = (ACCURACY, *BEFORE_INT8.values(), REPORT, RUN, PERF, COMPARE, EXPECT, FORECAST, SPEED, INT8)
LARGEST = 1_000_000  # bytes of the page
MISTAKES = 24  # pictures of wrong answers
WORST = 200  # mistakes that are listed if the page would be too large with all of them
LINE = 70  # bytes of a listed mistake, without its names
CHANGED = 12  # pictures of answers that differ between two runtimes
PAIRS, MORE_PAIRS = 15, 30  # most confused pairs of classes: beside a matrix, without one
MATRIX = 50  # classes, up to which the confusion matrix is a picture
ROWS = 1000  # of the table of classes
LISTED = 20  # images that were left out, operators of a forecast
WIDE_SPREAD = 10.0  # per cent between runs, above which a throughput is worth a look
NAME_SHOWN = 60  # characters of a name; the page stays small for names of any length
CLASS_SHOWN = 32  # of a class's, without its number
PICTURE = 120  # pixels, each side of a thumbnail
QUALITY = 70  # of its JPEG: about 5 kB
CERTAIN = 99.0  # per cent of equal answers, below which a comparison is worth a look
EVALUATION = ("dtype", "crop_pct", "crop_mode", "interpolation", "mean", "std")

Parts = Dict[str, Dict[str, Any]]  # {name of a JSON file of the work folder, less .json: content}
Call = Callable[[int], str]  # what caller() gives


# ---- the work folder -----------------------------------------------------------------------------


def stem_of(part: WorkFile) -> str:
    return part.name[: -len(".json")]


def read_part(workdir: str, part: WorkFile) -> Dict[str, Any]:
    """One JSON file of the work folder, {} if it is not there. Raises: Refusal if it is damaged."""
    return part.read_in(workdir) if files.is_there(os.path.join(workdir, part.name)) else {}


def read_parts(workdir: str) -> Parts:
    """All PARTS; {} for one that an earlier run left and the last one did not make.

    Raises: Refusal if there is no acc_report.json, or if a file is damaged.
    """
    parts = {stem_of(part): read_part(workdir, part) for part in PARTS}
    if not parts["acc_report"]:
        raise Refusal(
            f"{shown(workdir)} should hold {REPORT.name} of TResNet_postprocess.py, but does not; "
            "run the pipeline, or "
            f"python3 TResNet_postprocess.py RESULT LABELS WORKDIR {ACCURACY.name}"
        )
    for name in set(parts) - {"acc_report", "run", *parts["run"].get("made", parts)}:
        parts[name] = {}
    return parts


def nearby(path: Any, workdir: str) -> str:
    """A recorded folder: where it was, or in the work folder if that was moved; "" if nowhere."""
    if not path:
        return ""
    places = (str(path), os.path.join(workdir, os.path.basename(str(path))))
    return next(filter(os.path.isdir, places), "")


def folders(report: Dict[str, Any], workdir: str, key: str) -> List[str]:
    """The folders of the results (key "result") or of the prepared images (key "prep").

    There are several for joined shards. Returns [] if one of them is not there.
    """
    if "shards" not in report:
        return list(filter(None, [nearby(report.get(key), workdir)]))
    places = [
        nearby(read_part(shard["folder"], REPORT).get(key), shard["folder"])
        for shard in report["shards"]
    ]
    return places if all(places) else []


def predictions(report: Dict[str, Any], results: List[str]) -> Optional[figures.Predictions]:
    """What the results say about each evaluated image, in the order of acc_report.json.

    Returns None if the results are not there.
    Raises: Refusal if they are not the results that acc_report.json was computed from.
    """
    if not results or not report["hits"]:
        return None
    paths: Dict[str, str] = {}
    for folder in results:
        paths.update(result_files(folder))
    other_results = Refusal(
        f"the results in {some(results)} are not those of {REPORT.name}; run "
        "TResNet_postprocess.py again"
    )
    stems, classes = report["evaluated"], report["classes"]
    if not paths.keys() >= set(stems):
        raise other_results
    in_order = [paths[stem] for stem in stems]
    if len(read_result(in_order[0], classes)) != classes:
        raise other_results
    labels = np.array(report["true"], np.int64)
    ranked = ranks.read(in_order, labels, classes, options.CORES)
    if len(results) == 1:  # of joined shards only the hits are compared
        names = map(os.path.basename, in_order)
        sums = ("%08x" % value for value in ranked.checksums.tolist())
        record.check_results(results[0], dict(zip(names, sums)))
    found = ranked.predictions(labels)
    hits = [int((found.rank < k).sum()) for k in range(1, len(report["hits"]) + 1)]
    if hits != report["hits"]:
        raise other_results
    return found


class Pictures:
    """Thumbnails of prepared images, as the network sees them."""

    def __init__(self, folders_of_images: List[str]) -> None:
        self.header: Dict[str, Any] = {}  # the settings of the prepared folder
        self.versions: Dict[str, Any] = {}
        # by stem: the path of the .bin, the image's path, the checksum of what was prepared
        self.known: Dict[str, Tuple[str, str, str]] = {}
        for folder in folders_of_images:
            about = prepared.read(folder)
            self.header, self.versions = about.settings, about.versions
            for stem, source in about.sources.items():
                name = stem + ".bin"
                path = os.path.join(folder, name)
                self.known[stem] = (path, source, about.checksums[name])

    def source(self, stem: str) -> str:
        """The path of the image that a .bin was made from, or the stem if nobody knows."""
        return self.known.get(stem, ("", stem, ""))[1]

    def picture(self, stem: str) -> str:
        """A data: address of the image; "" if it is gone, or not the one that was prepared.

        Raises: Refusal if it is there but cannot be read.
        """
        from PIL import Image

        path, _, checksum = self.known.get(stem, ("", "", ""))
        if not files.is_file(path):
            return ""
        content = files.read_regular(path)
        pixels = None
        if files.checksum(content) == checksum:
            pixels = self.pixels_of(content)
        if pixels is None:
            return ""
        data = io.BytesIO()
        image = Image.fromarray(np.ascontiguousarray(pixels))
        image.resize((PICTURE, PICTURE), Image.Resampling.LANCZOS).save(
            data, "JPEG", quality=QUALITY, optimize=True
        )
        return "data:image/jpeg;base64," + base64.b64encode(data.getvalue()).decode("ascii")

    def pixels_of(self, content: bytes) -> Optional[np.ndarray]:
        """uint8 [size, size, 3] of a .bin; None if the manifest's settings cannot be its."""
        size: Any = self.header.get("img_size")
        dtype = self.header.get("dtype")
        if dtype not in ("uint8", "float32"):
            return None
        try:
            if dtype == "uint8":
                return np.frombuffer(content, np.uint8).reshape(size, size, 3)
            planes = np.frombuffer(content, np.float32).reshape(3, size, size)
            mean = np.reshape(self.header.get("mean") or [0.0] * 3, (3, 1, 1))
            std = np.reshape(self.header.get("std") or [1.0] * 3, (3, 1, 1))
            levels = np.rint(255 * np.clip(planes * std + mean, 0, 1))
        except (TypeError, ValueError):  # anybody may have written the manifest
            return None
        return levels.astype(np.uint8).transpose(1, 2, 0)


# ---- what the page says --------------------------------------------------------------------------


def share(hits: int, images: int) -> str:
    """A share in per cent with two decimals; 100 only if it is all of them."""
    return "100 %" if hits == images else f"{percent(hits, images):.2f} %"


def second_k(classes: int) -> int:
    """The k of the Top-k that is shown beside Top-1: with few classes Top-5 says nothing; 0: none.

    (Of five classes the right one always is among the five best.)
    """
    if classes > figures.TOP:
        return figures.TOP
    return 2 if classes > 2 else 0


def accuracies(parts: Parts, say: Say = ENGLISH) -> List[Dict[str, Any]]:
    """The figures that stand first: {"title", "value", "about": sentences}."""
    report, images = parts["acc_report"], parts["acc_report"]["counts"]["evaluated"]
    hits = report.get("hits")
    if not hits:  # several labels an image: acc.json says what was computed
        return [
            {"title": say("mean_average_precision"), "value": row["value"], "about": []}
            for row in parts["acc"].get("value", ())
            if not row["key"].startswith("Number")
        ]
    other = "float16" if parts["acc_float16"] else "float32"
    before = {row["key"]: row["value"] for row in parts[f"acc_{other}"].get("value", ())}
    cards = []
    for k in filter(None, (1, second_k(report["classes"]))):
        low, high = interval(hits[k - 1], images)
        about = [say("interval", low=f"{low:.2f}", high=f"{high:.2f}")]
        if f"Top{k} accuracy" in before:
            about.append(say("named_value", name=other, value=before[f"Top{k} accuracy"]))
        about += [
            say("checkpoint_says", value=f"{row.claimed:.2f} %")
            for row in claimed.compare(parts["network"], report)
            if row.top == k
        ]
        cards.append(
            {
                "title": f"Top-{k}",
                "value": share(hits[k - 1], images),
                "about": about + known_figures(parts, report, k, say),
            }
        )
    return cards


def exported_size(network: Dict[str, Any]) -> Optional[int]:
    """Pixels, each side of what the network takes; network: the notes of its record."""
    exported = evaluation.of_notes(network)
    return exported.evaluation.img_size if exported else None


def known_figures(parts: Parts, report: Dict[str, Any], k: int, say: Say) -> List[str]:
    """Published figures for this network and data set, in words."""
    expect = parts["expect"].get("published") or {}
    values: List[Tuple[Any, Optional[float]]] = []
    is_own = parts["expect"].get("name") == published.CHECKPOINT  # that is said elsewhere
    if expect.get(f"top{k}") and not is_own:
        values = [(parts["expect"].get("name"), expect[f"top{k}"])]
    elif (report["counts"]["evaluated"], report["classes"]) == (published.VALIDATION_IMAGES, 1000):
        network = parts["network"]
        case = network.get("variant"), network.get("lineage"), exported_size(network)
        values = [
            (name, getattr(weights, f"top{k}", None))
            for name, weights in published.WEIGHTS.items()
            if (weights.variant, weights.lineage, weights.img_size) == case
        ]
        if k == 5 and case == ("tresnet_m", "ascend", 224):
            values.append(("an Ascend 310P3", published.CARD_TOP5))
    return [
        say("published_for", name=name, value=f"{value:.2f} %") for name, value in values if value
    ]


def figure(value: float, decimals: int = 1) -> str:
    """A positive figure; from 100 on without decimals."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.{decimals}f}"


def spread(row: Dict[str, Any]) -> float:
    """How far the runs at one batch size are from their middle, in per cent, as perf.md has it."""
    return 50 * float(row.get("throughput_spread") or 0)


def spread_words(row: Dict[str, Any]) -> str:
    return f"{spread(row):.1f} %"


def speed_cards(perf: Dict[str, Any], say: Say) -> List[Dict[str, Any]]:
    """Throughput and latency at the best batch size."""
    if not perf.get("rows"):
        return []
    best = max(perf["rows"], key=lambda row: row["throughput"])
    about = [say("at_batch_size", batch=best["batch_size"])]
    if perf["repeat"] > 1:
        about.append(say("spread_of_runs", spread=spread_words(best), n=perf["repeat"]))
    if "reference" in best:
        ratio = f"{best['ratio']:.2f}"
        about.append(say("published_speed", speed=f"{best['reference']:,.0f}", ratio=ratio))
    return [
        {
            "title": say("throughput"),
            "value": figure(best["throughput"]),
            "unit": say("images_per_s"),
            "about": about,
        },
        {
            "title": say("latency"),
            "value": figure(best["latency_mean"], 2),
            "unit": "ms",
            "about": [
                say("latency_mean_of_batch", batch=best["batch_size"]),
                say("latency_99", latency=figure(best["latency_p99"], 2)),
            ],
        },
    ]


def expected_speed(parts: Parts, say: Say) -> Dict[str, Any]:
    """The forecast of the speed on a card, and what was measured there; {} without a forecast.

    Figures that were measured elsewhere are not shown beside it.
    """
    forecast, perf = parts["speed"], parts["perf"]
    if not forecast:
        return {}
    measured, judged = {}, dict(perf.get("expected") or {})
    if judged:
        measured = {row["batch_size"]: row["throughput"] for row in perf["rows"]}
        judged["verdict"] = verdict_on_speed(judged, measured, say)
    rows = [dict(row, measured=measured.get(row["batch_size"])) for row in forecast["rows"]]
    return {
        "chip": forecast["chip"],
        "limits": say("semicolon").join(map(say.known, forecast["limits"])),
        "best": forecast["best_batch_size"],
        "measured": any(row["measured"] for row in rows),
        **judged,
        "rows": rows,
    }


def verdict_on_speed(judged: Dict[str, Any], measured: Dict[int, float], say: Say) -> str:
    """Whether the card is as fast as the forecast; judged: perf.json's "expected"."""
    if not judged.get("rows"):
        return say("card_is", verdict=judged["verdict"])
    ratios = [row["ratio"] for row in judged["rows"]]
    if not judged["slow"] and len(ratios) == 1:
        return say("card_fast_one", low=f"{ratios[0]:.2f}")
    if not judged["slow"]:
        return say("card_fast", low=f"{min(ratios):.2f}", high=f"{max(ratios):.2f}")
    slow = [row for row in judged["rows"] if measured.get(row["batch_size"], 0) < row["low_90"]]
    worst = min(slow or judged["rows"], key=lambda row: row["ratio"])
    return say(
        "card_slow",
        measured=f"{measured.get(worst['batch_size'], 0):,.0f}",
        batch=worst["batch_size"],
        reach=f"{worst['low_90']:,.0f}",
    )


def caller(names: Optional[Sequence[str]], say: Say) -> Callable[[int], str]:
    """A function that says what a class is called: its name, if it is known, and its number.

    Of a long list of synonyms, as ImageNet's names are, the first ones are taken.
    """

    def call(label: int) -> str:
        name = plain(names[label], 255) if names and label < len(names) else ""
        while len(name) > CLASS_SHOWN and "," in name:
            name = name.rpartition(",")[0]
        if not name or name == str(label):
            return say("class_number", number=label)
        return f"{plain(name, CLASS_SHOWN)} ({label})"

    return call


def true_classes(report: Dict[str, Any]) -> Dict[str, int]:
    """{stem: its right class}; {} where an image has several, or may have."""
    if not report["hits"] or str(report["labels"]).endswith(".json"):
        return {}
    return dict(zip(report["evaluated"], report["true"]))


def changed_counts(compared: Dict[str, Any], true: Dict[str, int]) -> Dict[str, int]:
    """How many of the changed answers became right, became wrong, and were wrong and stay so.

    compared: compare.json's content, the run that was evaluated second. {} if nobody knows it.
    """
    rows = compared["disagreements"]
    if not rows or any(row["image"] not in true for row in rows):
        return {}
    right = sum(row["b"] == true[row["image"]] for row in rows)
    wrong = sum(row["a"] == true[row["image"]] for row in rows)
    return {"right": right, "wrong": wrong, "other": len(rows) - right - wrong}


def comparison(parts: Parts, pictures: Pictures, call: Call, say: Say) -> Dict[str, Any]:
    """Two runtimes or precisions side by side; {} if nothing was compared."""
    compared, true = parts["compare"], true_classes(parts["acc_report"])
    if not compared:
        return {}
    sides = [os.path.basename(str(compared[side])) for side in "ab"]
    before = "float16" if parts["acc_float16"] else "float32"
    words = {
        "result_onnx": "ONNX Runtime",
        "result_int8": "int8" if "result" in sides else say("the_card_int8"),
        "result": before if "result_int8" in sides else say("the_card"),
    }
    first, second = (words.get(side, side) for side in sides)
    rows = [
        {
            "source": pictures.source(row["image"]),
            "picture": pictures.picture(row["image"]),
            "true": call(true[row["image"]]) if row["image"] in true else "",
            "first": call(row["a"]),
            "second": call(row["b"]),
        }
        for row in compared["disagreements"][:CHANGED]
    ]
    return {
        "first": first,
        "second": second,
        "images": compared["images"],
        "changed": rows,
        "changed_counts": changed_counts(compared, true),
        "differ": len(compared["disagreements"]),
        "agreement": compared["top1_agreement"],
        "cosine": compared["cosine"],
        "largest": compared["largest_difference"],
        "verdict": compared.get("verdict"),
        "worst": pictures.source(compared["cosine"].get("image", "")),
    }


def about_int8(parts: Parts, say: Say) -> List[Tuple[str, str]]:
    """(term, words) of an int8 model: its weights, its speed, what --max-drop found; [] without."""
    about = parts["tresnet_int8"]
    rows = []
    if "weight_bits" in about:
        rows.append(("int8", say("int8_weights", bits=about["weight_bits"])))
    if "speed" in about:
        low, high = (f"{value:.2f}" for value in about["speed"]["spread"])
        values = {key: figure(about["speed"][key]) for key in ("int8", "float32")}
        values.update(ratio=f"{about['speed']['ratio']:.2f}", low=low, high=high)
        rows.append((say("int8_speed"), say("int8_speed_words", **values)))
    if "held" in about:
        low, high = (f"{value:.2f}" for value in about["interval"])
        points = f"{abs(about['drop']):.2f}"
        words = say("int8_loses" if about["drop"] >= 0 else "int8_gains", points=points)
        back = ", ".join(row["name"] for row in about["put_back"]) or say("int8_nothing")
        promise = say("int8_promise", change=words, low=low, high=high, back=plain(back, 300))
        rows.append((f"--max-drop {about['max_drop']:g}", promise))
    return rows


def mistakes(
    report: Dict[str, Any], found: figures.Predictions, pictures: Pictures, call: Call
) -> List[Dict[str, Any]]:
    """The wrong answers that the network was surest of."""
    rows = []
    for place in figures.most_confident_mistakes(found, MISTAKES):
        stem = report["evaluated"][place]
        rows.append(
            {
                "source": pictures.source(stem),
                "picture": pictures.picture(stem),
                "true": call(int(found.true[place])),
                "answer": call(int(found.top[place, 0])),
                "probability": float(found.confidence[place]),
            }
        )
    return rows


def mistakes_by_class(
    report: Dict[str, Any],
    found: figures.Predictions,
    pictures: Pictures,
    call: Call,
    most: Optional[int],
) -> List[Dict[str, Any]]:
    """The wrong answers by right class, the class with most of them first.

    most: how many, those that the network was surest of; None for all.
    Each: {"name", "images" (of the class), "wrong" (all of them), "rows" (the listed ones)}.
    """
    images = np.bincount(found.true)
    wrong = np.bincount(found.true[~found.correct], minlength=len(images))
    groups: Dict[int, List[Dict[str, Any]]] = {}
    for place in figures.most_confident_mistakes(found, most):
        row = {
            "source": pictures.source(report["evaluated"][place]),
            "answer": call(int(found.top[place, 0])),
            "probability": float(found.confidence[place]),
        }
        groups.setdefault(int(found.true[place]), []).append(row)
    in_order = sorted(groups, key=lambda label: (-wrong[label], label))
    return [
        {
            "name": call(label),
            "images": int(images[label]),
            "wrong": int(wrong[label]),
            "rows": groups[label],
        }
        for label in in_order
    ]


def size_of(groups: List[Dict[str, Any]]) -> int:
    """How many bytes the listed mistakes will take in the page, roughly."""
    size = 0
    for group in groups:
        for row in group["rows"]:
            names = plain(row["source"]) + row["answer"]
            size += LINE + len(names.encode("utf-8", "replace"))
    return size


def matrix_picture(
    found: figures.Predictions, classes: int, names: List[str], say: Say
) -> Optional[str]:
    """The confusion matrix as SVG; None if there are too many classes for a picture."""
    from common.results import plots

    if not 1 < classes <= MATRIX:
        return None
    return plots.confusion(say, figures.confusion_matrix(found, classes), names)


def answered(
    report: Dict[str, Any],
    found: Optional[figures.Predictions],
    pictures: Pictures,
    call: Call,
    say: Say,
) -> Dict[str, Any]:
    """What the page shows of the answers; {} if the results are not there."""
    if found is None:
        return {}
    classes, k = report["classes"], second_k(report["classes"])
    all_rows = figures.every_class(found, classes, k or 1)
    rows = figures.weakest_first(all_rows)
    for row in rows:
        row["name"] = call(row["class"])
        row["taken_for"] = call(row["taken_for"]) if row["times"] else ""
    matrix = matrix_picture(found, classes, list(map(call, range(min(classes, MATRIX)))), say)
    pairs = figures.confused(found)
    all_mistakes = mistakes_by_class(report, found, pictures, call, None)
    return {
        "mistakes": mistakes(report, found, pictures, call),
        "mistake_groups": all_mistakes,
        "worst_groups": mistakes_by_class(report, found, pictures, call, WORST),
        "mistakes_listed": None,
        "wrong": int((~found.correct).sum()),
        "matrix": matrix,
        "pairs": [
            {"true": call(true), "answer": call(answer), "images": count}
            for true, answer, count in pairs[: PAIRS if matrix else MORE_PAIRS]
        ],
        "all_pairs": len(pairs),
        "second_k": k,
        "classes": rows[:ROWS],
        "all_classes": len(rows),
        "averages": figures.averages(all_rows),
        "calibration": figures.calibration(found),
    }


class Gate(NamedTuple):
    """A minimum that the run was given."""

    what: str
    least: str  # the minimum, with its unit
    measured: str  # with its unit
    good: bool  # False too if it was not measured


def measured_with_gates(parts: Parts, say: Say) -> Dict[str, Tuple[str, Optional[float], str]]:
    """{option of a gate: (what it is about, the value or None, unit)}."""
    report = parts["acc_report"]
    images, hits = report["counts"]["evaluated"], report.get("hits") or []
    throughputs = [row["throughput"] for row in parts["perf"].get("rows") or []]
    cosine = parts["compare"].get("cosine") or {}
    accuracies_of_k = {k: 100 * hits[min(k, len(hits)) - 1] / images for k in (1, 5) if hits}
    unit = f" {say('images_per_s')}"
    return {
        "min_top1": (say("gate_top1"), accuracies_of_k.get(1), " %"),
        "min_top5": (say("gate_top5"), accuracies_of_k.get(5), " %"),
        "min_throughput": (say("gate_throughput"), max(throughputs, default=None), unit),
        "min_cosine": (say("gate_cosine"), cosine.get("min"), ""),
    }


def gates(parts: Parts, say: Say = ENGLISH) -> List[Gate]:
    """The minimums that the run was given, and what was measured."""
    measured = measured_with_gates(parts, say)
    rows = []
    for name, least in (parts["run"].get("gates") or {}).items():
        if name not in measured or least is None:
            continue
        what, value, unit = measured[name]
        good, text = False, say("not_measured")
        if value is not None:
            good = value >= least
            rounded = f"{value:.6g}"
            rounding_misleads = (float(rounded) >= least) != good
            text = (repr(value) if rounding_misleads else rounded) + unit
        rows.append(Gate(what, f"{least:g}{unit}", text, good))
    return rows


def network_name(variant: str, say: Say) -> str:
    """tresnet_v2_l -> TResNet-V2-L."""
    if not variant.startswith("tresnet_"):
        return variant or say("the_network")
    return "TResNet-" + variant[len("tresnet_") :].replace("_", "-").upper()


def card_name(parts: Parts, say: Say) -> str:
    """Ascend 310P3; or only that it is a card."""
    chip = str(parts["perf"].get("chip") or say("card"))
    return chip if "Ascend" in chip else f"Ascend {chip}"


def headline(parts: Parts, best: float, say: Say) -> str:
    """The run in one sentence; best: the highest throughput, images/s, 0 if not measured."""
    report = parts["acc_report"]
    images, hits = report["counts"]["evaluated"], report.get("hits")
    subject = network_name(str(parts["network"].get("variant") or ""), say)
    backend = parts["run"].get("backend")
    if backend == "cpu":
        subject = say("on_cpu", network=subject)
    elif backend == "ascend":
        subject = say("on_card", network=subject, chip=card_name(parts, say))
    if hits:
        share_right = share(hits[0], images)
        text = say("right_answers", subject=subject, share=share_right, n=images)
    else:
        text = say("was_evaluated", subject=subject, n=images)
    if best:
        text = say("and_speed", sentence=text, speed=figure(best))
    return say("full_stop", sentence=text)


def widest_spread(parts: Parts) -> Optional[Dict[str, Any]]:
    """The row of perf.json whose runs are furthest apart, if that is too far; else None."""
    rows = parts["perf"].get("rows") or []
    widest = max(rows, key=spread, default=None)
    return widest if widest and spread(widest) > WIDE_SPREAD else None


def notes(report: Dict[str, Any], say: Say) -> List[str]:
    """acc_report.json's notes; those that this program knows in the language of the page."""
    known = dict(zip(accuracy.notes(report), accuracy.notes(report, say)))
    return [known.get(note, note) for note in report.get("notes") or []]


def remarks(page: Dict[str, Any], parts: Parts, say: Say) -> List[str]:
    """What one should know of the run."""
    compared, expect, network = page["comparison"], parts["expect"], parts["network"]
    points = []
    if compared:
        same = share(compared["images"] - compared["differ"], compared["images"])
        first, second = compared["first"], compared["second"]
        points.append(
            say("same_answer_for", first=first, second=second, share=same, n=compared["images"])
        )
    own = [row.sentence(say) for row in claimed.compare(network, parts["acc_report"])]
    if expect:
        is_own = expect.get("name") == published.CHECKPOINT and own
        key = "published_within" if expect.get("within") else "published_not_within"
        sentence_on_it = own.pop(0) if is_own else say(key, name=expect.get("name"))
        if expect.get("cause"):
            sentence_on_it = say("likely_cause", sentence=sentence_on_it, cause=expect["cause"])
        points.append(sentence_on_it)
    if lineage_is_assumed(network):
        points.append(say("lineage_assumed", lineage=network["lineage"]))
    points += own
    points += [say("claim_remark", remark=remark) for remark in claims.remarks_of(network)]
    if is_int8_slower(parts):
        points.append(say("int8_slower"))
    if page["expected"].get("slow"):
        points.append(page["expected"]["verdict"])
    points += notes(parts["acc_report"], say)
    widest = widest_spread(parts)
    if widest:
        batch, spread_of_it = widest["batch_size"], spread_words(widest)
        points.append(say("spread_wide", spread=spread_of_it, batch=batch))
    points += [
        say("gate", what=gate.what, measured=gate.measured, least=gate.least)
        for gate in page["gates"]
    ]
    return points


def is_int8_slower(parts: Parts) -> bool:
    """Whether int8 was measured to be slower than float32."""
    return bool(parts["tresnet_int8"].get("speed", {"ratio": 1})["ratio"] < 1)


def verdict(page: Dict[str, Any], parts: Parts) -> str:
    """good, look or bad."""
    if not all(gate.good for gate in page["gates"]):
        return "bad"
    compared, expect, report = page["comparison"], parts["expect"], parts["acc_report"]
    doubts = (
        compared and compared["agreement"] < CERTAIN,
        expect and not expect.get("within"),
        lineage_is_assumed(parts["network"]),
        is_int8_slower(parts),
        report.get("left_out"),
        accuracy.near_chance(report),
        accuracy.other_order_is_better(report),
        report.get("all_equal"),
        report.get("clipped"),
        not all(row.within for row in claimed.compare(parts["network"], report)),
        page["expected"].get("slow"),
        widest_spread(parts),
    )
    return "look" if any(doubts) else "good"


def listed(words: Dict[str, Any]) -> str:
    """NAME VALUE, NAME VALUE, …"""
    return ", ".join(f"{name} {value}" for name, value in words.items())


def describe_network(parts: Parts, pictures: Pictures, say: Say) -> str:
    """Variant, lineage, classes, size and precision, as far as they are known."""
    network, classes = parts["network"], parts["acc_report"]["classes"]
    size = exported_size(network) or pictures.header.get("img_size")
    lineage = network.get("lineage")
    words = [
        network.get("variant"),
        lineage and say("lineage", name=lineage),
        say("classes_count", n=classes),
        size and say("pixels", size=size),
        parts["run"].get("precision"),
    ]
    return say("list_separator").join(filter(None, words))


def where_it_ran(parts: Parts, say: Say) -> str:
    """On what the inference ran; "" if nobody knows. Why no card was used is in run.json."""
    backend = parts["run"].get("backend")
    if backend == "cpu":
        return say("ran_on_cpu")
    return say("ran_on_card", chip=card_name(parts, say)) if backend == "ascend" else ""


def versions(workdir: str, results: List[str], pictures: Pictures, say: Say) -> str:
    """The versions of all that a run used, as far as its records have them."""
    inferred = record.read(results[0]).recipe if results else {}
    exported = record.read(os.path.join(workdir, EXPORTED)).recipe
    known = {
        say("this_program"): cli.VERSION,
        **(exported.get("versions") or {}),
        **pictures.versions,
        **(inferred.get("versions") or {}),
        **(inferred.get("host") or {}),
    }
    return listed({name: version for name, version in known.items() if version})


def settings(
    parts: Parts, workdir: str, results: List[str], pictures: Pictures, say: Say
) -> List[Tuple[str, str]]:
    """What was run with what: (term, words)."""
    run, network, report = parts["run"], parts["network"], parts["acc_report"]
    counts = [
        say(f"count_{key}", count=f"{count:,}")
        for key, count in report["counts"].items()
        if count is not None and f"count_{key}" in say.table
    ]
    prepared_as = {key: pictures.header[key] for key in EVALUATION if key in pictures.header}
    rows = [
        ("checkpoint", run.get("checkpoint")),
        ("SHA-256", network.get("checkpoint_sha256")),
        ("network", describe_network(parts, pictures, say)),
        ("preparation", listed(prepared_as)),
        ("data", run.get("data")),
        ("labels", report.get("labels")),
        ("images", say("list_separator").join(counts)),
        ("ran_on", where_it_ran(parts, say)),
        ("chip", parts["perf"].get("chip")),
        ("versions", versions(workdir, results, pictures, say)),
        ("began", run.get("began")),
        ("took", run.get("seconds") and progress.duration(run["seconds"])),
    ]
    return [(say(term) if term in say.table else term, str(words)) for term, words in rows if words]


def draw(parts: Parts, found: Optional[figures.Predictions], say: Say) -> Dict[str, str]:
    """{name: SVG} of all plots for which there are figures."""
    from common.results import plots

    drawn: Dict[str, str] = {}
    rows = parts["perf"].get("rows")
    if rows:
        drawn.update(speed=plots.speed(say, rows), latency=plots.latency(say, rows))
    cosines = parts["compare"].get("cosines") or ()
    if len(cosines) > 1:
        drawn["cosines"] = plots.cosines(say, cosines, parts["forecast"].get("cosines") or ())
    if found is not None and len(found.true) > 1:
        right = found.correct
        drawn.update(
            reliability=plots.reliability(say, figures.calibration(found)["bins"]),
            coverage=plots.coverage(say, figures.coverage(found)),
            confidences=plots.confidences(say, found.confidence[right], found.confidence[~right]),
        )
    return drawn


def files_beside(workdir: str, parts: Parts) -> List[str]:
    """The names of the files of the run that have the figures of the page."""
    names = [part.name for part in (ACCURACY, REPORT, PERF, COMPARE) if parts[stem_of(part)]]
    written = record.read(os.path.join(workdir, tables.PREDICTIONS)).made
    return names + [name for name in (tables.PREDICTIONS, tables.CLASSES) if name in written]


def describe(workdir: str, parts: Parts, names_file: Optional[str], say: Say) -> Dict[str, Any]:
    """Everything that the template shows."""
    report = parts["acc_report"]
    results = folders(report, workdir, "result")
    pictures, found = Pictures(folders(report, workdir, "prep")), predictions(report, results)
    names = report.get("class_names")
    if names_file:
        background = report["label_offset"] != 0
        names = class_names.read(names_file, report["classes"], background=background)
    call = caller(names, say)
    best = max((row["throughput"] for row in parts["perf"].get("rows") or ()), default=0)
    page: Dict[str, Any] = {
        "say": say,
        "language": HTML_NAMES[say.language],
        "parts": parts,
        "report": report,
        "best": best,
        "cards": accuracies(parts, say) + speed_cards(parts["perf"], say),
        "gates": gates(parts, say),
        "comparison": comparison(parts, pictures, call, say),
        "int8": about_int8(parts, say),
        "expected": expected_speed(parts, say),
        **answered(report, found, pictures, call, say),
        "plots": draw(parts, found, say),
        "left_out": (report.get("left_out") or [])[:LISTED],
        "settings": settings(parts, workdir, results, pictures, say),
        "sentence": headline(parts, best, say),
        "note": sample_note(parts["run"].get("note") or "", say),
        "files": files_beside(workdir, parts),
    }
    page["state"], page["points"] = verdict(page, parts), remarks(page, parts, say)
    return page


def sample_note(note: str, say: Say) -> str:
    """run.json's note in the language of the page, if this program knows it."""
    for key in ("sample_note", "sample_prepared_otherwise"):
        if note == ENGLISH(key):
            return say(key)
    return note


# ---- the page ------------------------------------------------------------------------------------


def plain(name: Any, most: int = NAME_SHOWN) -> str:
    """A name as text that is safe to read.

    What does not print is escaped, and what is longer than `most` is cut in its middle.
    """
    text = str(name)
    if not text.isprintable():
        text = shown(text)
    if len(text) <= most:
        return text
    half = most // 2
    return text[:half] + "…" + text[len(text) - half + 1 :]


def sentence(text: Any) -> str:
    """plain() for whole sentences; no line ends before a per cent sign."""
    return plain(text, 400).replace(" %", "\u00a0%")


@functools.lru_cache(maxsize=None)
def template() -> Any:
    """The page's template, compiled: every text in it is escaped."""
    import jinja2

    loader = jinja2.FileSystemLoader(os.path.dirname(TEMPLATE))
    environment = jinja2.Environment(
        loader=loader,
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.ChainableUndefined,
    )
    environment.filters.update(
        name=plain,
        sentence=sentence,
        share=share,
        figure=figure,
        percent=per_cent,
        spread=spread_words,
        duration=progress.duration,
        two_digits=summary.rounded,
    )
    return environment.get_template(PAGE)


def per_cent(share_of_one: Optional[float], decimals: int = 1) -> str:
    """A share of 0 to 1 in per cent; a dash without one."""
    return "–" if share_of_one is None else f"{100 * share_of_one:.{decimals}f}\u00a0%"


def fill(page: Dict[str, Any]) -> bytes:
    """The page as HTML, style and script in it; its own policy forbids it to load anything."""
    style, script = files.read_regular(STYLE), files.read_regular(SCRIPT)
    digest = base64.b64encode(hashlib.sha256(script).digest()).decode("ascii")
    policy = (
        "default-src 'none'; style-src 'unsafe-inline'; img-src data:; "
        f"script-src 'sha256-{digest}'"
    )
    text: str = template().render(
        page, style=style.decode("utf-8"), script=script.decode("utf-8"), policy=policy
    )
    return text.encode("utf-8", "backslashreplace")


def render(page: Dict[str, Any]) -> bytes:
    """The page with all mistakes; with the surest ones if it would be too large."""
    if size_of(page.get("mistake_groups", [])) < LARGEST:
        content = fill(page)
        if len(content) <= LARGEST:
            return content
    return fill(dict(page, mistake_groups=page.get("worst_groups"), mistakes_listed=WORST))


def make_recipe(
    workdir: str, parts: Parts, exported: str, names_file: Optional[str], language: str
) -> record.Recipe:
    """All that the page depends on."""
    results = folders(parts["acc_report"], workdir, "result")
    images = folders(parts["acc_report"], workdir, "prep")
    texts = [os.path.join(workdir, part.name) for part in PARTS if part is not RUN]
    texts += [TEMPLATE, STYLE, SCRIPT]
    texts += map(record.path_of, [*results, exported])
    texts.append(record.path_of(os.path.join(workdir, tables.PREDICTIONS)))
    if names_file:
        texts.append(names_file)
    shown_of_run = ("backend", "gates", "made", "data", "commands")
    run = {key: value for key, value in parts["run"].items() if key in shown_of_run}
    return recipe.make(
        __file__,
        {
            "run": run,
            "results": bool(results),
            "pictures": bool(images),
            "language": language,
        },
        ("numpy", "Pillow", "matplotlib", "Jinja2"),
        settings=filter(files.is_file, texts),
    )


def main() -> None:
    parser = cli.parser(__doc__)
    parser.add_argument(
        "workdir", metavar="WORKDIR", type=options.path, help="the work folder of a run"
    )
    options.add(
        parser,
        "class_names",
        "language",
        "force",
        help={
            "class_names": "names of the classes, one a line or lines `FOLDER NAME` "
            "(default: acc_report.json's)"
        },
    )
    arguments = options.parse(parser)
    workdir = arguments.workdir
    product, exported = os.path.join(workdir, PAGE), os.path.join(workdir, EXPORTED)
    parts = read_parts(workdir)
    parts["network"] = record.read(exported).notes
    language = arguments.language or language_of(os.environ)
    made_by = make_recipe(workdir, parts, exported, arguments.class_names, language)
    if record.is_up_to_date(product, made_by, force=arguments.force):
        print(f"{shown(product)} is up to date")
        return
    page = render(describe(workdir, parts, arguments.class_names, Say(language)))
    record.write(product, made_by, {product: page})
    print(f"wrote {shown(product)} ({len(page) / 1e3:,.0f} kB): open it in a browser")


if __name__ == "__main__":
    cli.run(main, "no page was written")
