#!/usr/bin/env python3
"""What a run found, as one page: WORKDIR/report.html opens in any browser, without a network and without a server.

    python3 scripts/report.py work
    python3 scripts/report.py work --class-names names.txt --force

In:  the work folder of pipeline.sh, or any folder with acc_report.json of TResNet_postprocess.py; beside it, as far as
     they are there: the results and the prepared images that acc_report.json names, run.json, perf.json, compare.json,
     expect.json, forecast.json. What is not there is left out of the page.
Out: WORKDIR/report.html, at most 1 MB; report.html.record.jsonl says what it was made of: what is up to date is kept.
"""

import base64
import functools
import hashlib
import io
import os
from typing import Any, Callable, Dict, List, Optional, Sequence, Tuple

from common.core import cli

if __name__ == "__main__":
    cli.start()  # before what may be missing

from common.core import files, options, progress, recipe, record
from common.core.cli import ROOT, Refusal, shown, some
from common.data import class_names, evaluation, prepared
from common.model.network import lineage_is_assumed
from common.results import accuracy, figures, published
from common.results.results import chunks, percent, result_files
from common.results.work_files import (
    ACCURACY,
    COMPARE,
    EXPECT,
    FORECAST,
    PERF,
    REPORT,
    RUN,
    WorkFile,
)

import numpy as np

PAGE = "report.html"
PARTS_OF_PAGE = os.path.join(ROOT, "scripts", "common", "results")
TEMPLATE, SCRIPT = (os.path.join(PARTS_OF_PAGE, name) for name in (PAGE, "report.js"))
PARTS = (
    ACCURACY,
    ACCURACY._replace(name="acc_float32.json"),
    ACCURACY._replace(name="acc_float16.json"),
    REPORT,
    RUN,
    PERF,
    COMPARE,
    EXPECT,
    FORECAST,
)
MISTAKES = 24  # pictures of wrong answers
CHANGED = 12  # pictures of answers that differ between two runtimes
PAIRS = 15  # most confused pairs of classes
ROWS = 1000  # of the table of classes
LISTED = 20  # images that were left out, operators of a forecast
NAME_SHOWN = 60  # characters of a name; the page stays small whatever the names are
CLASS_SHOWN = 32  # of a class's, without its number
PICTURE = 120  # pixels, each side of a thumbnail
QUALITY = 70  # of its JPEG: about 5 kB
CERTAIN = 99.0  # per cent of equal answers, below which a comparison is worth a look

Call = Callable[[int], str]  # what caller() gives


# ---- the work folder -------------------------------------------------------------------------------------------------


def read_part(workdir: str, part: WorkFile) -> Dict[str, Any]:
    """One JSON file of the work folder, {} if it is not there. Raises: Refusal if it is damaged."""
    return part.read_in(workdir) if os.path.lexists(os.path.join(workdir, part.name)) else {}


def read_parts(workdir: str) -> Dict[str, Dict[str, Any]]:
    """{name less .json: content} of all PARTS; what an earlier run left and the last one did not make is {}.

    Raises: Refusal if there is no acc_report.json, or if a file is damaged.
    """
    parts = {part.name[: -len(".json")]: read_part(workdir, part) for part in PARTS}
    if not parts["acc_report"]:
        raise Refusal(
            f"{shown(workdir)} should hold acc_report.json of TResNet_postprocess.py, but does not; run the "
            "pipeline, or python3 TResNet_postprocess.py RESULT LABELS WORKDIR acc.json"
        )
    for name in set(parts) - {"acc_report", "run", *parts["run"].get("made", parts)}:
        parts[name] = {}
    return parts


def nearby(path: Any, workdir: str) -> str:
    """A folder that was recorded: where it was, or in the work folder, should that have been moved; "" if nowhere."""
    places = [str(path), os.path.join(workdir, os.path.basename(str(path)))] if path else []
    return next(filter(os.path.isdir, places), "")


def folders(report: Dict[str, Any], workdir: str, key: str) -> List[str]:
    """The folders of the results (key "result") or of the prepared images ("prep"): several for joined shards.

    [] if one of them is not there.
    """
    if "shards" not in report:
        return list(filter(None, [nearby(report.get(key), workdir)]))
    places = [
        nearby(read_part(shard["folder"], REPORT).get(key), shard["folder"])
        for shard in report["shards"]
    ]
    return places if all(places) else []


def predictions(report: Dict[str, Any], results: List[str]) -> Optional[figures.Predictions]:
    """What the results say about each evaluated image, in acc_report.json's order; None if they are not there.

    Raises: Refusal if they are not the results that acc_report.json was computed from.
    """
    if not results or not report["hits"]:
        return None
    paths = {stem: path for folder in results for stem, path in result_files(folder).items()}
    stems, right = report["evaluated"], [[label] for label in report["true"]]
    parts: List[figures.Predictions] = []
    done, another = (
        0,
        (
            f"the results in {some(results)} are not those of acc_report.json; run "
            "TResNet_postprocess.py again"
        ),
    )
    if not paths.keys() >= set(stems):
        raise Refusal(another)
    with progress.Bar("report", len(stems), "images") as bar:
        for scores in chunks(paths, stems):
            if scores.shape[1] != report["classes"]:
                raise Refusal(another)
            parts.append(figures.summarise(scores, right[done : done + len(scores)]))
            done += len(scores)
            bar.advance(len(scores))
    found = figures.join(parts)
    if [int((found.rank < k).sum()) for k in range(1, len(report["hits"]) + 1)] != report["hits"]:
        raise Refusal(another)
    return found


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
        """A data: address of the image, "" if it is not there any more or of another size than expected."""
        from PIL import Image

        size, dtype = int(self.header.get("img_size") or 0), self.header.get("dtype")
        if stem not in self.known or dtype not in ("uint8", "float32"):
            return ""
        try:
            pixels = np.frombuffer(
                files.read_regular(os.path.join(self.known[stem][0], stem + ".bin")), dtype
            )
            pixels = pixels.reshape((size, size, 3) if dtype == "uint8" else (3, size, size))
        except (Refusal, ValueError):
            return ""
        if dtype == "float32":
            mean, std = (
                np.reshape(self.header.get(key) or [default] * 3, (3, 1, 1))
                for key, default in (("mean", 0.0), ("std", 1.0))
            )
            pixels = (
                np.rint(255 * np.clip(pixels * std + mean, 0, 1))
                .astype(np.uint8)
                .transpose(1, 2, 0)
            )
        data = io.BytesIO()
        image = Image.fromarray(np.ascontiguousarray(pixels))
        image.resize((PICTURE, PICTURE), Image.LANCZOS).save(
            data, "JPEG", quality=QUALITY, optimize=True
        )
        return "data:image/jpeg;base64," + base64.b64encode(data.getvalue()).decode("ascii")


# ---- what the page says ----------------------------------------------------------------------------------------------


def share(hits: int, images: int) -> str:
    """A share in per cent with two decimals; 100 only if it is all of them."""
    return "100 %" if hits == images else f"{percent(hits, images):.2f} %"


def accuracies(parts: Dict[str, Dict[str, Any]]) -> List[Dict[str, Any]]:
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
        low, high = figures.interval(hits[k - 1], images)
        about = [f"95 % interval {low:.2f} to {high:.2f} %"]
        about += [f"{other}: {value}" for key, value in before.items() if key == f"Top{k} accuracy"]
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


def known_figures(parts: Dict[str, Dict[str, Any]], report: Dict[str, Any], k: int) -> List[str]:
    """Published figures for this network and data set, in words."""
    expect = parts["expect"].get("published") or {}
    if expect.get(f"top{k}"):
        return [f"published for {parts['expect'].get('name')}: {expect[f'top{k}']:.2f} %"]
    network = parts["network"]
    case = network.get("variant"), network.get("lineage"), exported_size(network)
    if (report["counts"]["evaluated"], report["classes"]) != (published.VALIDATION_IMAGES, 1000):
        return []
    found = [
        (name, getattr(weights, f"top{k}"))
        for name, weights in published.WEIGHTS.items()
        if (weights.variant, weights.lineage, weights.img_size) == case
    ]
    found += [("an Ascend 310P3", published.CARD_TOP5)] * (
        k == 5 and case == ("tresnet_m", "ascend", 224)
    )
    return [f"published for {name}: {value:.2f} %" for name, value in found if value]


def figure(value: float, decimals: int = 1) -> str:
    """A positive figure: with decimals only where they tell something."""
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


def caller(names: Optional[Sequence[str]]) -> Callable[[int], str]:
    """A function that says what a class is called: its name, if it is known, and its number.

    Of a long list of synonyms, as ImageNet's names are, the first ones are taken.
    """

    def call(label: int) -> str:
        name = plain(names[label], 255) if names and label < len(names) else ""
        while len(name) > CLASS_SHOWN and "," in name:
            name = name.rpartition(",")[0]
        return (
            f"{plain(name, CLASS_SHOWN)} ({label})"
            if name and name != str(label)
            else f"class {label}"
        )

    return call


def comparison(parts: Dict[str, Dict[str, Any]], pictures: Pictures, call: Call) -> Dict[str, Any]:
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
    rows = [
        dict(row, name=call(row["class"]), taken_for=call(row["taken_for"]) if row["times"] else "")
        for row in figures.by_class(found)
    ]
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


def gates(parts: Dict[str, Dict[str, Any]]) -> List[Dict[str, Any]]:
    """The minimums that the run was given: {"what", "least", "found", "good"}; what was not measured is not good."""
    report, perf = parts["acc_report"], parts["perf"].get("rows") or []
    images, hits = report["counts"]["evaluated"], report.get("hits") or []
    known = {
        f"min_top{k}": (
            f"Top-{k} accuracy",
            100 * hits[min(k, len(hits)) - 1] / images if hits else None,
            " %",
        )
        for k in (1, 5)
    }
    known["min_throughput"] = (
        "throughput",
        max((row["throughput"] for row in perf), default=None),
        " images/s",
    )
    known["min_cosine"] = (
        "lowest cosine similarity",
        (parts["compare"].get("cosine") or {}).get("min"),
        "",
    )
    rows = []
    for name, least in (parts["run"].get("gates") or {}).items():
        if name in known and least is not None:
            what, value, unit = known[name]
            good, text = value is not None and value >= least, "not measured"
            if value is not None:
                text = f"{value:.6g}" if (float(f"{value:.6g}") >= least) == good else repr(value)
                text += unit
            rows.append({"what": what, "least": f"{least:g}{unit}", "found": text, "good": good})
    return rows


def verdict(page: Dict[str, Any], parts: Dict[str, Dict[str, Any]]) -> Tuple[str, str, List[str]]:
    """(good, look or bad; the run in one sentence; what one should know of it)."""
    report, images = parts["acc_report"], parts["acc_report"]["counts"]["evaluated"]
    variant = str(parts["network"].get("variant") or "")
    backend, chip = parts["run"].get("backend"), str(parts["perf"].get("chip") or "card")
    chip = chip if "Ascend" in chip else f"Ascend {chip}"
    where = {"cpu": " on the CPU", "ascend": f" on {chip}"}.get(str(backend), "")
    name = (
        "TResNet-" + variant[len("tresnet_") :].replace("_", "-").upper()
        if variant.startswith("tresnet_")
        else variant or "The network"
    )
    hits, compared, expect = report.get("hits"), page["comparison"], parts["expect"]
    sentence = (
        f"{name}{where} gives the right answer for {share(hits[0], images)} of {images:,} images"
        if hits
        else f"{name}{where} was evaluated on {images:,} images"
    )
    sentence += f" and classifies {figure(page['best'])} images a second" if page["best"] else ""
    points, lineage_assumed = [], lineage_is_assumed(parts["network"])
    if compared:
        points.append(
            f"{compared['second']} and {compared['first']} give the same answer for "
            f"{share(compared['images'] - compared['differ'], compared['images'])} of {compared['images']:,} "
            "images"
        )
    if expect:
        points.append(
            f"Top-1 is {'' if expect.get('within') else 'not '}within the 95 % interval of the figure "
            f"published for {expect.get('name')}"
            + (f"; likely cause: {expect['cause']}" if expect.get("cause") else "")
        )
    if lineage_assumed:
        points.append(
            "nothing in the checkpoint tells the lineage of its weights; "
            f"{parts['network']['lineage']} was assumed, and if that is wrong, so is every figure"
        )
    points += report.get("notes") or []
    points += [
        f"{gate['what']}: {gate['found']}, the minimum is {gate['least']}" for gate in page["gates"]
    ]
    doubts = (
        compared and compared["agreement"] < CERTAIN,
        expect and not expect.get("within"),
        lineage_assumed,
        report.get("left_out"),
        accuracy.near_chance(report),
    )
    state = "look" if any(doubts) else "good"
    return state if all(gate["good"] for gate in page["gates"]) else "bad", sentence + ".", points


def settings(
    parts: Dict[str, Dict[str, Any]],
    workdir: str,
    results: List[str],
    header: Dict[str, Any],
    versions_of_images: Dict[str, Any],
) -> List[Tuple[str, str]]:
    """What was run with what: (term, words)."""
    run, network, report = parts["run"], parts["network"], parts["acc_report"]
    made = record.read(results[0]).recipe if results else {}
    exported = record.read(os.path.join(workdir, "tresnet.onnx")).recipe
    size = exported_size(network) or header.get("img_size")
    host = {key: value for key, value in (made.get("host") or {}).items() if value}
    versions = {
        "this program": cli.VERSION,
        **(exported.get("versions") or {}),
        **versions_of_images,
        **(made.get("versions") or {}),
        **host,
    }
    extra = ("dtype", "crop_pct", "crop_mode", "interpolation", "mean", "std")
    rows = [
        ("checkpoint", run.get("checkpoint")),
        ("SHA-256", network.get("checkpoint_sha256")),
        (
            "network",
            ", ".join(
                filter(
                    None,
                    [
                        network.get("variant"),
                        network.get("lineage") and f"{network['lineage']} lineage",
                        f"{report['classes']:,} classes",
                        size and f"{size}×{size} pixels",
                        run.get("precision"),
                    ],
                )
            ),
        ),
        ("preparation", ", ".join(f"{key} {header[key]}" for key in extra if key in header)),
        ("data", run.get("data")),
        ("labels", report.get("labels")),
        (
            "images",
            ", ".join(
                f"{count:,} {key.replace('_', ' ')}"
                for key, count in report["counts"].items()
                if count is not None
            ),
        ),
        ("ran on", run.get("reason") and f"{run.get('backend')}: {run['reason']}"),
        ("chip", parts["perf"].get("chip")),
        (
            "versions",
            ", ".join(f"{name} {version}" for name, version in versions.items() if version),
        ),
        ("began", run.get("began")),
        ("took", run.get("seconds") and progress.duration(run["seconds"])),
    ]
    return [(term, str(words)) for term, words in rows if words]


def draw(parts: Dict[str, Dict[str, Any]], found: Optional[figures.Predictions]) -> Dict[str, str]:
    """{name: SVG} of all plots for which there are figures."""
    from common.results import plots

    drawn = {}
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


def describe(
    workdir: str, parts: Dict[str, Dict[str, Any]], given_names: Optional[str]
) -> Dict[str, Any]:
    """Everything that the template shows."""
    report = parts["acc_report"]
    results = folders(report, workdir, "result")
    pictures, found = Pictures(folders(report, workdir, "prep")), predictions(report, results)
    call = caller(
        class_names.read(given_names, report["classes"])
        if given_names
        else report.get("class_names")
    )
    best = max((row["throughput"] for row in parts["perf"].get("rows") or ()), default=0)
    page: Dict[str, Any] = {
        "parts": parts,
        "report": report,
        "best": best,
        "cards": accuracies(parts) + speed_cards(parts["perf"]),
        "gates": gates(parts),
        "comparison": comparison(parts, pictures, call),
        **answered(report, found, pictures, call),
        "plots": draw(parts, found),
        "left_out": (report.get("left_out") or [])[:LISTED],
        "settings": settings(parts, workdir, results, pictures.header, pictures.versions),
    }
    page["state"], page["sentence"], page["points"] = verdict(page, parts)
    return page


# ---- the page --------------------------------------------------------------------------------------------------------


def plain(name: Any, most: int = NAME_SHOWN) -> str:
    """A name as text that is safe to read: what does not print is escaped, what is long is cut in its middle."""
    text = str(name)
    text = text if text.isprintable() else shown(text)
    return (
        text if len(text) <= most else text[: most // 2] + "…" + text[len(text) - most // 2 + 1 :]
    )


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
        name=plain, sentence=sentence, share=share, figure=figure, duration=progress.duration
    )
    return environment.get_template(PAGE)


def render(page: Dict[str, Any]) -> bytes:
    """The page as HTML; its own policy forbids it to load anything."""
    script = files.read_regular(SCRIPT)
    digest = base64.b64encode(hashlib.sha256(script).digest()).decode("ascii")
    policy = (
        "default-src 'none'; style-src 'unsafe-inline'; img-src data:; "
        f"script-src 'sha256-{digest}'"
    )
    text: str = template().render(page, script=script.decode("utf-8"), policy=policy)
    return text.encode("utf-8", "backslashreplace")


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
    workdir, product = arguments.workdir, os.path.join(arguments.workdir, PAGE)
    parts, exported = read_parts(workdir), os.path.join(workdir, "tresnet.onnx")
    parts["network"] = record.read(exported).notes
    texts = [os.path.join(workdir, part.name) for part in PARTS if part is not RUN]
    texts += [TEMPLATE, SCRIPT] + [arguments.class_names] * bool(arguments.class_names)
    results, images = (folders(parts["acc_report"], workdir, key) for key in ("result", "prep"))
    texts += map(record.path_of, [*results, exported])
    run = {
        key: value
        for key, value in parts["run"].items()
        if key in ("backend", "gates", "made", "data", "commands")
    }
    made_by = recipe.make(
        __file__,
        {"run": run, "results": bool(results), "pictures": bool(images)},
        ("numpy", "Pillow", "matplotlib", "Jinja2"),
        settings=filter(os.path.isfile, texts),
    )
    if record.is_up_to_date(product, made_by, force=arguments.force):
        print(f"{shown(product)} is up to date")
        return
    page = render(describe(workdir, parts, arguments.class_names))
    record.write(product, made_by, {product: page})
    print(f"wrote {shown(product)} ({len(page) / 1e3:,.0f} kB): open it in a browser")


if __name__ == "__main__":
    cli.run(main, "no page was written")
