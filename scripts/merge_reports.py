#!/usr/bin/env python3
"""Join the shards of one run, made with --shard I/N on several machines.

    python3 scripts/merge_reports.py work-1 work-2 work-3 work-4
    python3 scripts/merge_reports.py work-* --output merged

In:  the work folders of pipeline.sh --shard 1/N, 2/N, ... N/N, in any order.
Out: OUTPUT/acc.json, the bytes that one run over all images would have written, and
     OUTPUT/acc_report.json, which accounts for every image of all shards. OUTPUT/predictions.csv
     and classes.csv too, if the results of all shards are in their work folders.
Refused: shards that overlap, that are missing, or that were made with another model, other options
     or other labels.
"""

import os
from typing import Any, Dict, List, Optional, Tuple

from common.core import cli

if __name__ == "__main__":
    cli.start()  # before what may be missing

from common.core import files, options, record
from common.core.cli import Refusal, counted, say, shown, some
from common.data import prepared
from common.results import accuracy, ranks, tables
from common.results.results import result_files
from common.results.work_files import ACCURACY, EXPORTED, REPORT

import numpy as np

ON_CARD = "infer_om.py"
VOLATILE = ("shard", "source", "given", "folder")  # what a prepared folder's settings may differ in
SUMMED = ("images", "preprocessed", "bad", "inferred", "evaluated", "left_out")
TRIALS = ("label_offsets", "class_orders")  # {choice: hits} of those that were tried


def read_report(workdir: str) -> Dict[str, Any]:
    """A shard's report. Raises: Refusal if it is missing, or if it is of a whole run."""
    path = os.path.join(workdir, REPORT.name)
    if not os.path.lexists(path):
        raise Refusal(f"there is no {shown(path)}; name the work folders of pipeline.sh")
    report = REPORT.read(path)
    if "shard" not in report:
        raise Refusal(
            f"{shown(path)} is of a whole run, not of a shard; make the shards with "
            "pipeline.sh --shard I/N"
        )
    if "mAP" in report:
        raise Refusal(
            f"{shown(path)} is of labels with several classes an image; the mean average precision "
            "of parts cannot be joined: take all images in one run"
        )
    return report


def identity(workdir: str, report: Dict[str, Any]) -> Dict[str, Any]:
    """What must be the same in all shards: {what it is, in words: its value}."""
    result = os.path.join(workdir, os.path.basename(str(report["result"])))
    prep = os.path.join(workdir, os.path.basename(str(report["prep"])))
    made_by, images = record.read(result).recipe, prepared.read(prep)
    if not made_by or not images.settings:
        raise Refusal(
            f"{shown(workdir)} lacks the record of {shown(result)} or the manifest of "
            f"{shown(prep)}; give the whole work folder, as pipeline.sh made it"
        )
    everything = {**images.settings, **images.about, "versions": images.versions}
    model = made_by["inputs"]
    if made_by["tool"] == ON_CARD:  # the compiler need not give the same bytes on another machine
        exported = record.read(os.path.join(workdir, EXPORTED)).made.values()
        model = [[name for name, _ in model], [[made.size, made.checksum] for made in exported]]
    return {
        "model": model,
        "program": made_by["sources"],
        "backend": made_by["tool"],
        "ais_bench, CANN or driver": made_by.get("host"),
        "options": made_by["options"],
        "versions": made_by["versions"],
        "classes": report["classes"],
        "labels": [report["counts"]["labelled"], report.get("label_offset")],
        "preprocessing": {key: value for key, value in everything.items() if key not in VOLATILE},
    }


def check_same(folders: List[str], reports: List[Dict[str, Any]]) -> None:
    """Raises: Refusal that names what differs, and between which folders."""
    first = identity(folders[0], reports[0])
    for folder, report in zip(folders[1:], reports[1:]):
        other = identity(folder, report)
        differ = [what for what in first if first[what] != other[what]]
        if differ:
            raise Refusal(
                f"{shown(folders[0])} and {shown(folder)} were not made alike, they have another "
                f"{' and another '.join(differ)}; run all shards with one program, one model and "
                "one set of options"
            )


def check_complete(folders: List[str], reports: List[Dict[str, Any]]) -> None:
    """Raises: Refusal if the shards are not 1/N to N/N, each once, with different images."""
    totals = {report["shard"][1] for report in reports}
    total = max(totals)
    if len(totals) > 1:
        named = ", ".join(f"I/{number}" for number in sorted(totals))
        raise Refusal(f"the shards are parts of different runs: {named}; give those of one run")
    owner: Dict[int, str] = {}
    for folder, report in zip(folders, reports):
        place = report["shard"][0]
        other = owner.setdefault(place, folder)
        if other != folder:
            raise Refusal(
                f"{shown(other)} and {shown(folder)} are the same shard, {place}/{total}; name "
                "each shard once"
            )
    missing = [f"{place}/{total}" for place in range(1, total + 1) if place not in owner]
    if missing:
        raise Refusal(
            f"{len(missing)} of {total} shards are missing: {', '.join(missing[:5])}; run them, or "
            "name their work folders as well"
        )
    folder_of: Dict[str, str] = {}
    for folder, report in zip(folders, reports):
        twice = [stem for stem in report["evaluated"] if stem in folder_of]
        if twice:
            raise Refusal(
                f"{shown(folder_of[twice[0]])} and {shown(folder)} overlap: both evaluated "
                f"{some(twice)}; run all shards again on the same images"
            )
        folder_of.update(dict.fromkeys(report["evaluated"], folder))


def join_class_names(reports: List[Dict[str, Any]]) -> Optional[List[str]]:
    """What the classes are called; None if no shard knows it.

    A shard without images of a class may not know what its folder is called: then the name is the
    number, and another shard's is taken.
    """
    names = [report["class_names"] for report in reports if report.get("class_names")]
    if not names:
        return None
    joined = list(names[0])
    for label in range(len(joined)):
        named = [of_shard[label] for of_shard in names if of_shard[label] != str(label)]
        joined[label] = (named + [joined[label]])[0]
    return joined


def join_clipped(reports: List[Dict[str, Any]]) -> List[Dict[str, Any]]:
    """How many images of all shards lost their content, by mode."""
    counts: Dict[Tuple[str, str], int] = {}
    for report in reports:
        for row in report.get("clipped", ()):
            key = row["mode"], row["to"]
            counts[key] = counts.get(key, 0) + row["images"]
    return [
        {"mode": mode, "to": to, "images": images} for (mode, to), images in sorted(counts.items())
    ]


def order_of_run(image: Tuple[str, int]) -> str:
    """The key that sorts (stem, class) as one run lists them: by the names of their results."""
    return image[0] + "_0."


def add_up(hits_of_shards: List[Dict[str, int]]) -> Dict[str, int]:
    """The sums over shards of hits that were counted for each of the same choices."""
    total = dict.fromkeys(hits_of_shards[0], 0)
    for hits in hits_of_shards:
        for choice in total:
            total[choice] += hits[choice]
    return total


def merge(folders: List[str], reports: List[Dict[str, Any]]) -> Dict[str, Any]:
    """The report over all images, as TResNet_postprocess.py writes it.

    result and prep are None, because there are several.
    """
    first = reports[0]
    counts = dict(first["counts"])
    for key in SUMMED:
        counts[key] = sum(report["counts"][key] for report in reports)
    unpredicted = set(first["labelled_without_prediction"])
    images: List[Tuple[str, int]] = []
    left_out: List[Dict[str, str]] = []
    for report in reports:
        unpredicted &= set(report["labelled_without_prediction"])
        images += zip(report["evaluated"], report["true"])
        left_out += report["left_out"]
    images.sort(key=order_of_run)
    left_out.sort(key=lambda image: str(image["source"]))
    hits_of_shards = [report["hits"] for report in reports]
    merged = dict(
        first,
        result=None,
        prep=None,
        counts=counts,
        labelled_without_prediction=sorted(unpredicted),
        hits=[sum(hits) for hits in zip(*hits_of_shards)],
        left_out=left_out,
        evaluated=[stem for stem, _ in images],
        true=[true for _, true in images],
        class_names=join_class_names(reports),
        shards=[describe_shard(folder, report) for folder, report in zip(folders, reports)],
    )
    for key in TRIALS:
        if all(key in report for report in reports):
            merged[key] = add_up([report[key] for report in reports])
    merged["clipped"] = join_clipped(reports)
    merged["all_equal"] = all(report.get("all_equal") for report in reports)
    own = [note for note in first["notes"] if note not in accuracy.notes(first)]
    merged["notes"] = own + accuracy.notes(merged)
    del merged["shard"]
    return merged


def describe_shard(folder: str, report: Dict[str, Any]) -> Dict[str, Any]:
    return {
        "shard": report["shard"],
        "folder": os.path.abspath(folder),
        "images": report["counts"]["evaluated"],
    }


def images_of(
    folders: List[str], reports: List[Dict[str, Any]], merged: Dict[str, Any]
) -> Optional[tables.Images]:
    """What the network answered for all images.

    Returns None, and says why, if the results of a shard are not in its folder, or are others than
    those that its report is about.
    """
    without = f"so there is no {tables.PREDICTIONS} of all shards"
    paths: Dict[str, str] = {}
    sources: Dict[str, str] = {}
    for folder, report in zip(folders, reports):
        result, prep = (
            os.path.join(folder, os.path.basename(str(report[key]))) for key in ("result", "prep")
        )
        if not os.path.isdir(result):
            say(f"{shown(result)} is not there, {without}")
            return None
        paths.update(result_files(result))
        sources.update(prepared.read(prep).sources)
    stems = merged["evaluated"]
    lacking = set(stems) - paths.keys()
    if lacking:
        say(
            f"there are no results of {counted(len(lacking), 'image')} ({some(lacking)}), {without}"
        )
        return None
    labels = np.array(merged["true"], np.int64)
    ranked = ranks.read([paths[stem] for stem in stems], labels, merged["classes"], options.CORES)
    hits = [int((ranked.ranks < k).sum()) for k in range(1, len(merged["hits"]) + 1)]
    if hits != merged["hits"]:
        say(f"the results in {some(folders)} are not those of their {REPORT.name}, {without}")
        return None
    named = [sources.get(stem, stem) for stem in stems]
    return tables.Images(stems, named, ranked.predictions(labels))


def main() -> None:
    parser = cli.parser(__doc__)
    parser.add_argument(
        "folders",
        nargs="+",
        type=options.path,
        metavar="WORKDIR",
        help="the work folders of all shards",
    )
    options.add(parser, "output")
    arguments = options.parse(parser)
    reports = [read_report(folder) for folder in arguments.folders]
    check_complete(arguments.folders, reports)
    check_same(arguments.folders, reports)
    report = merge(arguments.folders, reports)
    if os.path.realpath(arguments.output) in map(os.path.realpath, arguments.folders):
        raise Refusal(
            f"--output {shown(arguments.output)} is the work folder of a shard, and its files "
            "would be replaced; name another folder"
        )
    files.make_folder(arguments.output, "--output")
    paths = [os.path.join(arguments.output, name) for name in (ACCURACY.name, REPORT.name)]
    accuracy.claim(*paths)
    tables.claim(paths[0])
    images = images_of(arguments.folders, reports, report)
    reports_read = [os.path.join(folder, REPORT.name) for folder in arguments.folders]
    written = tables.write(__file__, paths[0], report, images, reports_read)
    accuracy.write(report, *paths)
    print(f"{len(reports)} shards; wrote {', '.join(map(shown, [*paths, *written]))}")


if __name__ == "__main__":
    cli.run(main)
