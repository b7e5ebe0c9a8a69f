#!/usr/bin/env python3
"""What a run found, as one page: WORKDIR/report.html opens in any browser, without a network.

    python3 scripts/report.py work
    python3 scripts/report.py work --class-names names.txt --force

In:  the work folder of pipeline.sh, or any folder with acc_report.json of TResNet_postprocess.py.
     Beside it, as far as they are there: the results and the prepared images that acc_report.json
     names, run.json, perf.json, compare.json, expect.json, forecast.json, speed.json. The page
     leaves out what is not there.
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
from common.results import accuracy, claimed, figures, published, summary
from common.results.results import chunks, percent, result_files
from common.results.work_files import (
    ACCURACY,
    BEFORE_INT8,
    COMPARE,
    EXPECT,
    EXPORTED,
    FORECAST,
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
PARTS = (ACCURACY, *BEFORE_INT8.values(), REPORT, RUN, PERF, COMPARE, EXPECT, FORECAST, SPEED)
MISTAKES = 24  # pictures of wrong answers
CHANGED = 12  # pictures of answers that differ between two runtimes
PAIRS = 15  # most confused pairs of classes
ROWS = 1000  # of the table of classes
LISTED = 20  # images that were left out, operators of a forecast
NAME_SHOWN = 60  # characters of a name; the page stays small for names of any length
CLASS_SHOWN = 32  # of a class's, without its number
PICTURE = 120  # pixels, each side of a thumbnail
QUALITY = 70  # of its JPEG: about 5 kB
CERTAIN = 99.0  # per cent of equal answers, below which a comparison is worth a look
EVALUATION = ("dtype", "crop_pct", "crop_mode", "interpolation", "mean", "std")

Parts = Dict[str, Dict[str, Any]]  # {name of a JSON file of the work folder, less .json: content}
Call = Callable[[int], str]  # what caller() gives


# ---- the work folder -----------------------------------------------------------------------------


def read_part(workdir: str, part: WorkFile) -> Dict[str, Any]:
    """One JSON file of the work folder, {} if it is not there. Raises: Refusal if it is damaged."""
    return part.read_in(workdir) if os.path.lexists(os.path.join(workdir, part.name)) else {}


def read_parts(workdir: str) -> Parts:
    """All PARTS; {} for one that an earlier run left and the last one did not make.

    Raises: Refusal if there is no acc_report.json, or if a file is damaged.
    """
    parts = {part.name[: -len(".json")]: read_part(workdir, part) for part in PARTS}
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
    stems, right = report["evaluated"], [[label] for label in report["true"]]
    if not paths.keys() >= set(stems):
        raise other_results
    summaries: List[figures.Predictions] = []
    done = 0
    with progress.Bar("report", len(stems), "images") as bar:
        for scores in chunks(paths, stems, classes=report["classes"]):
            if scores.shape[1] != report["classes"]:
                raise other_results
            summaries.append(figures.summarise(scores, right[done : done + len(scores)]))
            done += len(scores)
            bar.advance(len(scores))
    joined = figures.join(summaries)
    hits = [int((joined.rank < k).sum()) for k in range(1, len(report["hits"]) + 1)]
    if hits != report["hits"]:
        raise other_results
    return joined


class Pictures:
    """Thumbnails of prepared images, as the network sees them."""

    def __init__(self, folders_of_images: List[str]) -> None:
        self.header: Dict[str, Any] = {}  # the settings of the prepared folder
        self.versions: Dict[str, Any] = {}
        self.known: Dict[str, Tuple[str, str]] = {}  # by stem: folder, source
        for folder in folders_of_images:
            about = prepared.read(folder)
            self.header, self.versions = about.settings, about.versions
            self.known.update((stem, (folder, source)) for stem, source in about.sources.items())

    def source(self, stem: str) -> str:
        """The path of the image that a .bin was made from, or the stem if nobody knows."""
        return self.known.get(stem, ("", stem))[1]

    def picture(self, stem: str) -> str:
        """A data: address of the image; "" if it is gone or not of the expected size."""
        from PIL import Image

        size, dtype = int(self.header.get("img_size") or 0), self.header.get("dtype")
        if stem not in self.known or dtype not in ("uint8", "float32"):
            return ""
        path = os.path.join(self.known[stem][0], stem + ".bin")
        try:
            pixels = np.frombuffer(files.read_regular(path), dtype)
            pixels = pixels.reshape((size, size, 3) if dtype == "uint8" else (3, size, size))
        except (Refusal, ValueError):
            return ""
        if dtype == "float32":
            pixels = self.bytes_of(pixels)
        data = io.BytesIO()
        image = Image.fromarray(np.ascontiguousarray(pixels))
        image.resize((PICTURE, PICTURE), Image.Resampling.LANCZOS).save(
            data, "JPEG", quality=QUALITY, optimize=True
        )
        return "data:image/jpeg;base64," + base64.b64encode(data.getvalue()).decode("ascii")

    def bytes_of(self, pixels: np.ndarray) -> np.ndarray:
        """uint8 [size, size, 3] from prepared float32 [3, size, size]."""
        mean = np.reshape(self.header.get("mean") or [0.0] * 3, (3, 1, 1))
        std = np.reshape(self.header.get("std") or [1.0] * 3, (3, 1, 1))
        levels = np.rint(255 * np.clip(pixels * std + mean, 0, 1))
        return levels.astype(np.uint8).transpose(1, 2, 0)


# ---- what the page says --------------------------------------------------------------------------


def share(hits: int, images: int) -> str:
    """A share in per cent with two decimals; 100 only if it is all of them."""
    return "100 %" if hits == images else f"{percent(hits, images):.2f} %"


def accuracies(parts: Parts) -> List[Dict[str, Any]]:
    """The figures that stand first: {"title", "value", "about": sentences}."""
    report, images = parts["acc_report"], parts["acc_report"]["counts"]["evaluated"]
    hits = report.get("hits")
    if not hits:  # several labels an image: acc.json says what was computed
        return [
            {"title": row["key"], "value": row["value"], "about": []}
            for row in parts["acc"].get("value", ())
            if not row["key"].startswith("Number")
        ]
    other = "float16" if parts["acc_float16"] else "float32"
    before = {row["key"]: row["value"] for row in parts[f"acc_{other}"].get("value", ())}
    cards = []
    for k in dict.fromkeys((1, min(figures.TOP, len(hits)))):
        low, high = interval(hits[k - 1], images)
        about = [f"95 % interval {low:.2f} to {high:.2f} %"]
        about += [f"{other}: {value}" for key, value in before.items() if key == f"Top{k} accuracy"]
        about += [
            f"the checkpoint says {row.claimed:.2f} %"
            for row in claimed.compare(parts["network"], report)
            if row.top == k
        ]
        cards.append(
            {
                "title": f"Top-{k}",
                "value": share(hits[k - 1], images),
                "about": about + known_figures(parts, report, k),
            }
        )
    return cards


def exported_size(network: Dict[str, Any]) -> Optional[int]:
    """Pixels, each side of what the network takes; network: the notes of its record."""
    exported = evaluation.of_notes(network)
    return exported.evaluation.img_size if exported else None


def known_figures(parts: Parts, report: Dict[str, Any], k: int) -> List[str]:
    """Published figures for this network and data set, in words."""
    expect = parts["expect"].get("published") or {}
    if expect.get(f"top{k}"):
        return [f"published for {parts['expect'].get('name')}: {expect[f'top{k}']:.2f} %"]
    network = parts["network"]
    case = network.get("variant"), network.get("lineage"), exported_size(network)
    if (report["counts"]["evaluated"], report["classes"]) != (published.VALIDATION_IMAGES, 1000):
        return []
    values = [
        (name, getattr(weights, f"top{k}"))
        for name, weights in published.WEIGHTS.items()
        if (weights.variant, weights.lineage, weights.img_size) == case
    ]
    if k == 5 and case == ("tresnet_m", "ascend", 224):
        values.append(("an Ascend 310P3", published.CARD_TOP5))
    return [f"published for {name}: {value:.2f} %" for name, value in values if value]


def figure(value: float, decimals: int = 1) -> str:
    """A positive figure; from 100 on without decimals."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.{decimals}f}"


def speed_cards(perf: Dict[str, Any]) -> List[Dict[str, Any]]:
    """Throughput and latency at the best batch size."""
    if not perf.get("rows"):
        return []
    best = max(perf["rows"], key=lambda row: row["throughput"])
    batch = f"at batch size {best['batch_size']}"
    about = [batch]
    if "reference" in best:
        about.append(f"published: {best['reference']:,.0f} images/s, ratio {best['ratio']:.2f}")
    return [
        {
            "title": "Throughput",
            "value": figure(best["throughput"]),
            "unit": "images/s",
            "about": about,
        },
        {
            "title": "Latency",
            "value": figure(best["latency_mean"], 2),
            "unit": "ms",
            "about": [
                f"mean of a batch, {batch}",
                f"99 % are quicker than {figure(best['latency_p99'], 2)} ms",
            ],
        },
    ]


def expected_speed(parts: Parts) -> Dict[str, Any]:
    """The forecast of the speed on a card, and what was measured there; {} without a forecast.

    Figures that were measured elsewhere are not shown beside it.
    """
    forecast, perf = parts["speed"], parts["perf"]
    if not forecast:
        return {}
    measured = {}
    if "expected" in perf:
        measured = {row["batch_size"]: row["throughput"] for row in perf["rows"]}
    rows = [dict(row, measured=measured.get(row["batch_size"])) for row in forecast["rows"]]
    return {
        "chip": forecast["chip"],
        "limits": "; ".join(forecast["limits"]),
        "best": forecast["best_batch_size"],
        "measured": any(row["measured"] for row in rows),
        **perf.get("expected", {}),
        "rows": rows,
    }


def caller(names: Optional[Sequence[str]]) -> Callable[[int], str]:
    """A function that says what a class is called: its name, if it is known, and its number.

    Of a long list of synonyms, as ImageNet's names are, the first ones are taken.
    """

    def call(label: int) -> str:
        name = plain(names[label], 255) if names and label < len(names) else ""
        while len(name) > CLASS_SHOWN and "," in name:
            name = name.rpartition(",")[0]
        if not name or name == str(label):
            return f"class {label}"
        return f"{plain(name, CLASS_SHOWN)} ({label})"

    return call


def comparison(parts: Parts, pictures: Pictures, call: Call) -> Dict[str, Any]:
    """Two runtimes or precisions side by side; {} if nothing was compared."""
    compared = parts["compare"]
    if not compared:
        return {}
    sides = [os.path.basename(str(compared[side])) for side in "ab"]
    before = "float16" if parts["acc_float16"] else "float32"
    words = {
        "result_onnx": "ONNX Runtime",
        "result_int8": "int8" if "result" in sides else "the card, int8,",
        "result": before if "result_int8" in sides else "the card",
    }
    first, second = (words.get(side, side) for side in sides)
    rows = [
        {
            "source": pictures.source(row["image"]),
            "picture": pictures.picture(row["image"]),
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
        "differ": len(compared["disagreements"]),
        "agreement": compared["top1_agreement"],
        "cosine": compared["cosine"],
        "largest": compared["largest_difference"],
        "verdict": compared.get("verdict"),
        "worst": pictures.source(compared["cosine"].get("image", "")),
    }


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


def answered(
    report: Dict[str, Any], found: Optional[figures.Predictions], pictures: Pictures, call: Call
) -> Dict[str, Any]:
    """What the page shows of the answers; {} if the results are not there."""
    if found is None:
        return {}
    rows = figures.weakest_first(figures.every_class(found, report["classes"]))
    for row in rows:
        row["name"] = call(row["class"])
        row["taken_for"] = call(row["taken_for"]) if row["times"] else ""
    return {
        "mistakes": mistakes(report, found, pictures, call),
        "wrong": int((~found.correct).sum()),
        "pairs": [
            {"true": call(true), "answer": call(answer), "images": count}
            for true, answer, count in figures.confused(found)[:PAIRS]
        ],
        "classes": rows[:ROWS],
        "all_classes": len(rows),
        "calibration": figures.calibration(found),
    }


class Gate(NamedTuple):
    """A minimum that the run was given."""

    what: str
    least: str  # the minimum, with its unit
    measured: str  # with its unit
    good: bool  # False too if it was not measured


def measured_with_gates(parts: Parts) -> Dict[str, Tuple[str, Optional[float], str]]:
    """{option of a gate: (what it is about, the value or None, unit)}."""
    report = parts["acc_report"]
    images, hits = report["counts"]["evaluated"], report.get("hits") or []
    throughputs = [row["throughput"] for row in parts["perf"].get("rows") or []]
    cosine = parts["compare"].get("cosine") or {}
    accuracies_of_k = {k: 100 * hits[min(k, len(hits)) - 1] / images for k in (1, 5) if hits}
    return {
        "min_top1": ("Top-1 accuracy", accuracies_of_k.get(1), " %"),
        "min_top5": ("Top-5 accuracy", accuracies_of_k.get(5), " %"),
        "min_throughput": ("throughput", max(throughputs, default=None), " images/s"),
        "min_cosine": ("lowest cosine similarity", cosine.get("min"), ""),
    }


def gates(parts: Parts) -> List[Gate]:
    """The minimums that the run was given, and what was measured."""
    measured = measured_with_gates(parts)
    rows = []
    for name, least in (parts["run"].get("gates") or {}).items():
        if name not in measured or least is None:
            continue
        what, value, unit = measured[name]
        good, text = False, "not measured"
        if value is not None:
            good = value >= least
            rounded = f"{value:.6g}"
            rounding_misleads = (float(rounded) >= least) != good
            text = (repr(value) if rounding_misleads else rounded) + unit
        rows.append(Gate(what, f"{least:g}{unit}", text, good))
    return rows


def network_name(variant: str) -> str:
    """tresnet_v2_l -> TResNet-V2-L."""
    if not variant.startswith("tresnet_"):
        return variant or "The network"
    return "TResNet-" + variant[len("tresnet_") :].replace("_", "-").upper()


def headline(parts: Parts, best: float) -> str:
    """The run in one sentence; best: the highest throughput, images/s, 0 if not measured."""
    report = parts["acc_report"]
    images, hits = report["counts"]["evaluated"], report.get("hits")
    chip = str(parts["perf"].get("chip") or "card")
    places = {"cpu": " on the CPU", "ascend": f" on Ascend {chip}"}
    if "Ascend" in chip:
        places["ascend"] = f" on {chip}"
    subject = network_name(str(parts["network"].get("variant") or ""))
    subject += places.get(str(parts["run"].get("backend")), "")
    if hits:
        text = f"{subject} gives the right answer for {share(hits[0], images)} of {images:,} images"
    else:
        text = f"{subject} was evaluated on {images:,} images"
    if best:
        text += f" and classifies {figure(best)} images a second"
    return text + "."


def remarks(page: Dict[str, Any], parts: Parts) -> List[str]:
    """What one should know of the run."""
    compared, expect = page["comparison"], parts["expect"]
    points = []
    if compared:
        same = share(compared["images"] - compared["differ"], compared["images"])
        points.append(
            f"{compared['second']} and {compared['first']} give the same answer for {same} of "
            f"{compared['images']:,} images"
        )
    if expect:
        position = "within" if expect.get("within") else "not within"
        cause = f"; likely cause: {expect['cause']}" if expect.get("cause") else ""
        points.append(
            f"Top-1 is {position} the 95 % interval of the figure published for "
            f"{expect.get('name')}{cause}"
        )
    if lineage_is_assumed(parts["network"]):
        points.append(
            "the checkpoint does not show the lineage of its weights clearly; "
            f"{parts['network']['lineage']} was assumed, and if that is wrong, so is every figure"
        )
    points += [row.words for row in claimed.compare(parts["network"], parts["acc_report"])]
    points += [f"the checkpoint says {remark}" for remark in claims.remarks_of(parts["network"])]
    if page["expected"].get("slow"):
        points.append(f"the card is {page['expected']['verdict']}")
    points += parts["acc_report"].get("notes") or []
    points += [
        f"{gate.what}: {gate.measured}, the minimum is {gate.least}" for gate in page["gates"]
    ]
    return points


def verdict(page: Dict[str, Any], parts: Parts) -> str:
    """good, look or bad."""
    if not all(gate.good for gate in page["gates"]):
        return "bad"
    compared, expect, report = page["comparison"], parts["expect"], parts["acc_report"]
    doubts = (
        compared and compared["agreement"] < CERTAIN,
        expect and not expect.get("within"),
        lineage_is_assumed(parts["network"]),
        report.get("left_out"),
        accuracy.near_chance(report),
        accuracy.other_order_is_better(report),
        report.get("all_equal"),
        report.get("clipped"),
        not all(row.within for row in claimed.compare(parts["network"], report)),
        page["expected"].get("slow"),
    )
    return "look" if any(doubts) else "good"


def listed(words: Dict[str, Any]) -> str:
    """NAME VALUE, NAME VALUE, …"""
    return ", ".join(f"{name} {value}" for name, value in words.items())


def describe_network(parts: Parts, pictures: Pictures) -> str:
    """Variant, lineage, classes, size and precision, as far as they are known."""
    network, classes = parts["network"], parts["acc_report"]["classes"]
    size, lineage = (
        exported_size(network) or pictures.header.get("img_size"),
        network.get("lineage"),
    )
    words = [
        network.get("variant"),
        lineage and f"{lineage} lineage",
        f"{classes:,} classes",
        size and f"{size}×{size} pixels",
        parts["run"].get("precision"),
    ]
    return ", ".join(filter(None, words))


def settings(
    parts: Parts, workdir: str, results: List[str], pictures: Pictures
) -> List[Tuple[str, str]]:
    """What was run with what: (term, words)."""
    run, network, report = parts["run"], parts["network"], parts["acc_report"]
    inferred = record.read(results[0]).recipe if results else {}
    exported = record.read(os.path.join(workdir, EXPORTED)).recipe
    versions = {
        "this program": cli.VERSION,
        **(exported.get("versions") or {}),
        **pictures.versions,
        **(inferred.get("versions") or {}),
        **(inferred.get("host") or {}),
    }
    counts = {key: count for key, count in report["counts"].items() if count is not None}
    rows = [
        ("checkpoint", run.get("checkpoint")),
        ("SHA-256", network.get("checkpoint_sha256")),
        ("network", describe_network(parts, pictures)),
        (
            "preparation",
            listed({key: pictures.header[key] for key in EVALUATION if key in pictures.header}),
        ),
        ("data", run.get("data")),
        ("labels", report.get("labels")),
        (
            "images",
            ", ".join(f"{count:,} {key.replace('_', ' ')}" for key, count in counts.items()),
        ),
        ("ran on", run.get("reason") and f"{run.get('backend')}: {run['reason']}"),
        ("chip", parts["perf"].get("chip")),
        ("versions", listed({name: version for name, version in versions.items() if version})),
        ("began", run.get("began")),
        ("took", run.get("seconds") and progress.duration(run["seconds"])),
    ]
    return [(term, str(words)) for term, words in rows if words]


def draw(parts: Parts, found: Optional[figures.Predictions]) -> Dict[str, str]:
    """{name: SVG} of all plots for which there are figures."""
    from common.results import plots

    drawn: Dict[str, str] = {}
    if parts["perf"].get("rows"):
        drawn.update(
            speed=plots.speed(parts["perf"]["rows"]), latency=plots.latency(parts["perf"]["rows"])
        )
    if len(parts["compare"].get("cosines") or ()) > 1:
        drawn["cosines"] = plots.cosines(
            parts["compare"]["cosines"], parts["forecast"].get("cosines") or ()
        )
    if found is not None and len(found.true) > 1:
        right = found.correct
        drawn.update(
            reliability=plots.reliability(figures.calibration(found)["bins"]),
            coverage=plots.coverage(figures.coverage(found)),
            confidences=plots.confidences(found.confidence[right], found.confidence[~right]),
        )
    return drawn


def describe(workdir: str, parts: Parts, names_file: Optional[str]) -> Dict[str, Any]:
    """Everything that the template shows."""
    report = parts["acc_report"]
    results = folders(report, workdir, "result")
    pictures, found = Pictures(folders(report, workdir, "prep")), predictions(report, results)
    names = report.get("class_names")
    if names_file:
        background = report["label_offset"] != 0
        names = class_names.read(names_file, report["classes"], background=background)
    call = caller(names)
    best = max((row["throughput"] for row in parts["perf"].get("rows") or ()), default=0)
    page: Dict[str, Any] = {
        "parts": parts,
        "report": report,
        "best": best,
        "cards": accuracies(parts) + speed_cards(parts["perf"]),
        "gates": gates(parts),
        "comparison": comparison(parts, pictures, call),
        "expected": expected_speed(parts),
        **answered(report, found, pictures, call),
        "plots": draw(parts, found),
        "left_out": (report.get("left_out") or [])[:LISTED],
        "settings": settings(parts, workdir, results, pictures),
        "sentence": headline(parts, best),
    }
    page["state"], page["points"] = verdict(page, parts), remarks(page, parts)
    return page


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
        duration=progress.duration,
        two_digits=summary.rounded,
    )
    return environment.get_template(PAGE)


def render(page: Dict[str, Any]) -> bytes:
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


def make_recipe(
    workdir: str, parts: Parts, exported: str, names_file: Optional[str]
) -> record.Recipe:
    """All that the page depends on."""
    results = folders(parts["acc_report"], workdir, "result")
    images = folders(parts["acc_report"], workdir, "prep")
    texts = [os.path.join(workdir, part.name) for part in PARTS if part is not RUN]
    texts += [TEMPLATE, STYLE, SCRIPT]
    texts += map(record.path_of, [*results, exported])
    if names_file:
        texts.append(names_file)
    shown_of_run = ("backend", "gates", "made", "data", "commands")
    run = {key: value for key, value in parts["run"].items() if key in shown_of_run}
    return recipe.make(
        __file__,
        {"run": run, "results": bool(results), "pictures": bool(images)},
        ("numpy", "Pillow", "matplotlib", "Jinja2"),
        settings=filter(os.path.isfile, texts),
    )


def main() -> None:
    parser = cli.parser(__doc__)
    parser.add_argument(
        "workdir", metavar="WORKDIR", type=options.path, help="the work folder of a run"
    )
    options.add(
        parser,
        "class_names",
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
    made_by = make_recipe(workdir, parts, exported, arguments.class_names)
    if record.is_up_to_date(product, made_by, force=arguments.force):
        print(f"{shown(product)} is up to date")
        return
    page = render(describe(workdir, parts, arguments.class_names))
    record.write(product, made_by, {product: page})
    print(f"wrote {shown(product)} ({len(page) / 1e3:,.0f} kB): open it in a browser")


if __name__ == "__main__":
    cli.run(main, "no page was written")
