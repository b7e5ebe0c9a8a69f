#!/usr/bin/env python3
"""Join the shards of one run, made with --shard I/N on several machines, into one acc.json and one report.

    python3 scripts/merge_reports.py work-1 work-2 work-3 work-4
    python3 scripts/merge_reports.py work-* --output merged

In:  the work folders of pipeline.sh --shard 1/N, 2/N, ... N/N, in any order.
Out: OUTPUT/acc.json, the bytes that one run over all images would have written, and OUTPUT/acc_report.json, which
     accounts for every image of all shards.
Refused: shards that overlap, that are missing, or that were made with another model, other options or other labels.
"""

import os
from typing import Any, Dict, List

from common.core import cli

if __name__ == "__main__":
    cli.start()  # before what may be missing

from common.core import files, options, record
from common.core.cli import Refusal, shown, some
from common.data import prepared
from common.results import accuracy
from common.results.work_files import ACCURACY, REPORT

ON_CARD = "infer_om.py"
VOLATILE = ("shard", "source", "given")  # what a prepared folder's settings may differ in
SUMMED = ("images", "preprocessed", "bad", "inferred", "evaluated", "left_out")


def read_report(workdir: str) -> Dict[str, Any]:
    """A shard's report. Raises: Refusal if there is none, or if it is of a whole run."""
    path = os.path.join(workdir, REPORT.name)
    if not os.path.lexists(path):
        raise Refusal(f"there is no {shown(path)}; name the work folders of pipeline.sh")
    report = REPORT.read(path)
    if "shard" not in report:
        raise Refusal(
            f"{shown(path)} is of a whole run, not of a shard; make the shards with pipeline.sh --shard I/N"
        )
    if "mAP" in report:
        raise Refusal(
            f"{shown(path)} is of labels with several classes an image, and the mean average precision of "
            "parts cannot be put together; take all images in one run"
        )
    return report


def identity(workdir: str, report: Dict[str, Any]) -> Dict[str, Any]:
    """What must be the same in all shards: {what it is, in words: its value}."""
    result, prep = (
        os.path.join(workdir, os.path.basename(str(report[key]))) for key in ("result", "prep")
    )
    made_by, images = record.read(result).recipe, prepared.read(prep)
    if not made_by or not images.settings:
        raise Refusal(
            f"{shown(workdir)} lacks the record of {shown(result)} or the manifest of {shown(prep)}; leave a "
            "work folder as pipeline.sh made it, or copy it whole"
        )
    everything = {**images.settings, **images.about, "versions": images.versions}
    model = made_by["inputs"]
    if made_by["tool"] == ON_CARD:  # the compiler need not give the same bytes on another machine
        exported = record.read(os.path.join(workdir, "tresnet.onnx")).made.values()
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
                f"{' and another '.join(differ)}; run the shards with one program, model and set of options"
            )


def check_complete(folders: List[str], reports: List[Dict[str, Any]]) -> None:
    """Raises: Refusal if the shards are not 1/N to N/N, each once, with different images."""
    owner: Dict[int, str] = {}
    of = {report["shard"][1] for report in reports}
    if len(of) > 1:
        raise Refusal(
            f"the shards are parts of different wholes: {', '.join(f'I/{n}' for n in sorted(of))}; give "
            "those of one run"
        )
    for folder, report in zip(folders, reports):
        other = owner.setdefault(report["shard"][0], folder)
        if other != folder:
            raise Refusal(
                f"{shown(other)} and {shown(folder)} are the same shard, "
                f"{'/'.join(map(str, report['shard']))}; name each once"
            )
    missing = [f"{place}/{max(of)}" for place in range(1, max(of) + 1) if place not in owner]
    if missing:
        raise Refusal(
            f"{len(missing)} of {max(of)} shards are missing: {', '.join(missing[:5])}; run them, or name "
            "their work folders as well"
        )
    seen: Dict[str, str] = {}
    for folder, report in zip(folders, reports):
        twice = [stem for stem in report["evaluated"] if stem in seen]
        if twice:
            raise Refusal(
                f"{shown(seen[twice[0]])} and {shown(folder)} overlap: both evaluated {some(twice)}; were "
                "the images changed between the runs?"
            )
        seen.update(dict.fromkeys(report["evaluated"], folder))


def merge(folders: List[str], reports: List[Dict[str, Any]]) -> Dict[str, Any]:
    """The report over all images, as TResNet_postprocess.py writes it; result and prep are None: there are several."""
    first = reports[0]
    counts = dict(
        first["counts"], **{key: sum(report["counts"][key] for report in reports) for key in SUMMED}
    )
    unpredicted = sorted(
        set.intersection(*(set(report["labelled_without_prediction"]) for report in reports))
    )
    images = sorted(
        (stem + "_0.", true)
        for report in reports
        for stem, true in zip(report["evaluated"], report["true"])
    )
    names = [report["class_names"] for report in reports if report.get("class_names")]
    merged = dict(
        first,
        result=None,
        prep=None,
        counts=counts,
        labelled_without_prediction=unpredicted,
        hits=[sum(hits) for hits in zip(*(report["hits"] for report in reports))],
        left_out=sorted(
            (image for report in reports for image in report["left_out"]),
            key=lambda image: str(image["source"]),
        ),
        evaluated=[stem[: -len("_0.")] for stem, _ in images],
        true=[true for _, true in images],
        # a shard without images of a class may not know what its folder is called
        class_names=[
            next((name for name in each if name != str(label)), each[0])
            for label, each in enumerate(zip(*names))
        ]
        or None,
        shards=[
            {
                "shard": report["shard"],
                "folder": os.path.abspath(folder),
                "images": report["counts"]["evaluated"],
            }
            for folder, report in zip(folders, reports)
        ],
    )
    own = [note for note in first["notes"] if note not in accuracy.notes(first)]
    merged["notes"] = own + accuracy.notes(merged)
    del merged["shard"]
    return merged


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
            f"--output {shown(arguments.output)} is the work folder of a shard, whose files would be "
            "replaced; name another"
        )
    files.make_folder(arguments.output, "--output")
    paths = [os.path.join(arguments.output, name) for name in (ACCURACY.name, REPORT.name)]
    accuracy.claim(*paths)
    accuracy.write(report, *paths)
    print(f"{len(reports)} shards; wrote {' and '.join(map(shown, paths))}")


if __name__ == "__main__":
    cli.run(main)
