#!/usr/bin/env python3
"""Hold a run's accuracy against the published one, and look for the likeliest cause if it is another.

    python3 scripts/expect.py work tresnet_m.miil_in1k
    python3 scripts/expect.py work tresnet_m.miil_in1k --checkpoint tresnet_m.pth --devkit ILSVRC2012_devkit_t12.tar.gz

In:  WORKDIR of pipeline.sh: acc_report.json, the results, prepared images and tresnet.onnx that it speaks of.
Out: WORKDIR/expect.json: published and measured accuracy, the 95 % interval around the published one for so many
     images, whether the measured one lies within it, and if not the cause that fits best of those that were tried.
Tried on the results as they are: labels one higher or lower, labels in the devkit's order, labels in any other order.
Tried on 200 images by ONNX Runtime on the CPU: red and blue swapped, the crop and the rest of the evaluation that the
figure was published with, the other lineage of the weights.
"""

import os
from collections import Counter
from typing import Any, Callable, Dict, List, NamedTuple, Optional, Tuple

from common.core import cli

if __name__ == "__main__":
    cli.start()  # before what may be missing

from common.core import json_file, options, record
from common.core.cli import Refusal, shown, some
from common.data import dataset, evaluation, prepared
from common.data.evaluation import Evaluation
from common.data.images import spaced
from common.data.inputs import Input, read_aipp, read_batch
from common.model import onnx_file, operators
from common.results.figures import interval, share
from common.results.published import EXPECTED, Weights
from common.results.results import answers, result_files
from common.results.work_files import EXPECT, REPORT

import numpy as np

RESULTS = 5000  # at most, evenly spaced, for what is tried on the results alone
IMAGES = 200  # likewise for what has to be inferred again
BATCH = 8
CLEAR = 10.0  # points of Top-1 that a cause must win at least, or half of what is missing if that is less
TYPICAL = 80.0  # per cent: Top-1 of weights for which only Top-5 is published
REPEATED = 100  # images that share their label with another, at least, to tell that the labels' order is another
ANOTHER_ORDER = (
    "labels in another order than the network's classes (each label has an answer of its own)"
)
Trial = Tuple[str, float]  # (what was tried, Top-1 in per cent)


class Run(NamedTuple):
    """What is known of the run that is judged."""

    workdir: str
    report: Dict[str, Any]  # acc_report.json
    model: str  # the ONNX file
    notes: Dict[str, Any]  # of its record
    stems: List[str]  # of the results that are looked at
    truth: np.ndarray  # int64 [stems]: their right classes
    answers: np.ndarray  # int64 [stems]: the network's

    @property
    def img_size(self) -> int:
        """Pixels, each side of the images that the model takes."""
        return evaluation.recorded(self.notes.get("evaluation")).img_size


# ---- the figure ------------------------------------------------------------------------------------------------------


def compare(name: str, report: Dict[str, Any]) -> Dict[str, Any]:
    """expect.json without a cause."""
    weights, images, hits = EXPECTED[name], report["counts"]["evaluated"], report["hits"]
    measured = {"top1": 100 * hits[0] / images, "top5": 100 * hits[min(5, len(hits)) - 1] / images}
    figures = {"top1": weights.top1, "top5": weights.top5}
    intervals = {
        k: None if value is None else list(interval(value / 100 * images, images))
        for k, value in figures.items()
    }
    within = all(
        bounds is None or bounds[0] <= measured[k] <= bounds[1] for k, bounds in intervals.items()
    )
    return {
        "name": name,
        "published": dict(figures, source=weights.source),
        "measured": measured,
        "interval": intervals,
        "images": images,
        "within": within,
        "cause": None,
        "tried": [],
    }


def sentences(found: Dict[str, Any]) -> List[str]:
    lines = []
    for k, title in (("top1", "Top-1"), ("top5", "Top-5")):
        value, measured, bounds = found["published"][k], found["measured"][k], found["interval"][k]
        if value is not None:
            where = "within" if bounds[0] <= measured <= bounds[1] else "not within"
            lines.append(
                f"{title}: published {value:.2f} % ({found['published']['source']}), measured {measured:.2f} "
                f"% on {found['images']:,} images, {measured - value:+.2f} points: {where} the 95 % interval "
                f"{bounds[0]:.2f}…{bounds[1]:.2f} %"
            )
    return lines


# ---- what is tried on the results ------------------------------------------------------------------------------------


def shifted(run: Run) -> List[Trial]:
    return [
        ("labels one higher", share(run.answers == run.truth + 1)),
        ("labels one lower", share(run.answers == run.truth - 1)),
    ]


def devkit_order(run: Run, devkit: str) -> List[Trial]:
    """Labels that are the devkit's ILSVRC2012_ID, from 1 or from 0, in place of the class."""
    wnids = dataset.devkit_wnids(devkit)
    classes = dataset.training_order(wnids.values(), devkit)
    trials = []
    for first in (1, 0):
        by_id = {number - 1 + first: classes[wnid] for number, wnid in wnids.items()}
        truth = np.array([by_id.get(int(label), -1) for label in run.truth])
        trials.append(
            (
                f"labels are the devkit's ILSVRC2012_ID, counted from {first}",
                share(run.answers == truth),
            )
        )
    return trials


def other_order(run: Run) -> List[Trial]:
    """How often an image gets the answer that most other images with its label get; [] without such images."""
    by_label: Dict[int, List[int]] = {}
    for label, answer in zip(run.truth.tolist(), run.answers.tolist()):
        by_label.setdefault(label, []).append(answer)
    hits = []
    for own in by_label.values():
        counts = Counter(own)
        for answer in own if len(own) > 1 else ():
            others = counts - Counter([answer])
            hits.append(others[answer] == max(others.values()))
    return [(ANOTHER_ORDER, share(hits))] if len(hits) >= REPEATED else []


# ---- what is tried on images -----------------------------------------------------------------------------------------

Infer = Callable[
    [np.ndarray], np.ndarray
]  # from images, float32 [n, 3, h, w], to logits, [n, classes]
Reader = Callable[[List[str]], np.ndarray]  # from stems to images


def top1(infer: Infer, images: Reader, stems: List[str], truth: np.ndarray) -> float:
    """Top-1 in per cent over the stems."""
    batches = [stems[at : at + BATCH] for at in range(0, len(stems), BATCH)]
    return share(np.concatenate([infer(images(batch)).argmax(1) for batch in batches]) == truth)


def prepared_reader(run: Run) -> Reader:
    """Gives the prepared images as the network takes them."""
    prep = run.report["prep"]
    aipp_path, size = os.path.join(prep, evaluation.AIPP), run.img_size
    aipp = read_aipp(aipp_path) if os.path.exists(aipp_path) else {}
    return lambda stems: read_batch(
        [os.path.join(prep, stem + ".bin") for stem in stems],
        Input("image", (3, size, size), len(stems), aipp),
    )


def source_reader(run: Run, setting: Evaluation) -> Reader:
    """Gives the images prepared anew with a setting; raises Refusal or OSError if they are not there any more."""
    from common.data.pixels import convert_file

    about = prepared.read(run.report["prep"])

    def read(stems: List[str]) -> np.ndarray:
        images = []
        for stem in stems:
            data, _ = convert_file(
                os.path.join(about.settings["source"], about.sources[stem]), setting, "float32"
            )
            images.append(np.frombuffer(data, "<f4"))
        return np.stack(images).reshape(len(stems), 3, setting.img_size, setting.img_size)

    return read


def other_lineage(run: Run, checkpoint: str) -> Tuple[str, Infer]:
    """The checkpoint's weights in the network of the other lineage. Raises: Refusal."""
    from common.model.checkpoint import find_state_dict, load_checkpoint
    from common.model.graph import build_model
    from common.model.network import Recognised, load_network

    other = {"miil": "ascend", "ascend": "miil"}[run.notes["lineage"]]
    path = evaluation.weights_file(checkpoint)
    seen = Recognised(run.notes["variant"], int(run.notes["num_classes"]), other, "")
    network = load_network(find_state_dict(load_checkpoint(path), path).tensors, path, seen)
    return other, operators.logits_of(build_model(network, run.img_size, 11))


def settings_of(weights: Weights) -> List[Evaluation]:
    """The evaluations that the weights' figures may come from: timm's, and at 448 pixels the official one."""
    timm = Evaluation(img_size=weights.img_size)
    return [timm] + [timm._replace(crop_mode="squash", crop_pct=1.0)] * (weights.img_size == 448)


def try_images(
    run: Run, weights: Weights, checkpoint: Optional[str]
) -> Tuple[float, List[Trial], List[str]]:
    """(Top-1 of these images as they were judged, the trials, what could not be tried and why)."""
    places = spaced(list(range(len(run.stems))), IMAGES)
    stems, truth, trials, notes = [run.stems[place] for place in places], run.truth[places], [], []
    read, infer = prepared_reader(run), operators.logits_of(onnx_file.load(run.model))
    trials.append(
        (
            "red and blue swapped (BGR)",
            top1(infer, lambda names: np.ascontiguousarray(read(names)[:, ::-1]), stems, truth),
        )
    )
    made = evaluation.recorded(prepared.read(run.report["prep"]).settings)
    for setting in settings_of(weights):
        if setting != made:
            what = f"the published evaluation ({evaluation.describe(setting)}), not ({evaluation.describe(made)})"
            try:
                trials.append((what, top1(infer, source_reader(run, setting), stems, truth)))
            except (OSError, KeyError, ValueError) as error:
                notes.append(f"the published evaluation could not be tried: {cli.why(error)}")
    try:
        if not checkpoint:
            raise Refusal("give the weights by --checkpoint")
        lineage, other = other_lineage(run, checkpoint)
        trials.append((f"the weights read as {lineage} lineage", top1(other, read, stems, truth)))
    except Refusal as refusal:
        notes.append(f"the other lineage could not be tried: {refusal.sentence}")
    return share(run.answers[places] == truth), trials, notes


# ---- which fits ------------------------------------------------------------------------------------------------------


def best_cause(weights: Weights, baseline: Dict[str, float], trials: List[Trial]) -> Optional[str]:
    """The trial that wins most, in words; None if none wins clearly. baseline: {what was tried: Top-1 without it}.

    ANOTHER_ORDER counts only if nothing that is named more exactly fits.
    """
    expected = weights.top1 if weights.top1 is not None else TYPICAL
    won = [
        (what != ANOTHER_ORDER, value - baseline[what], what, value)
        for what, value in trials
        if value - baseline[what] >= min(CLEAR, max(1.0, (expected - baseline[what]) / 2))
    ]
    if not won:
        return None
    _, _, what, value = max(won)
    return f"{what}: Top-1 is {value:.1f} % then, {baseline[what]:.1f} % as it is"


def load(workdir: str) -> Run:
    """What the work folder knows. Raises: Refusal if something of it is not there."""
    path, model = os.path.join(workdir, REPORT.name), os.path.join(workdir, "tresnet.onnx")
    report = REPORT.read(path)
    if not (report["hits"] and report["prep"] and report["result"]):
        raise Refusal(
            f"{shown(path)} should be of a run with --prep and one label an image; run the pipeline"
        )
    for key in ("result", "prep"):  # a work folder that was moved or copied since
        beside = os.path.join(workdir, os.path.basename(report[key]))
        report[key] = beside if os.path.isdir(beside) else report[key]
    results = result_files(report["result"])
    places = spaced(list(range(len(report["evaluated"]))), RESULTS)
    stems = [report["evaluated"][place] for place in places]
    missing = [stem for stem in stems if stem not in results]
    if missing:
        raise Refusal(
            f"{shown(path)} tells of results that {shown(report['result'])} does not "
            f"hold: {some(missing)}; run the pipeline again"
        )
    truth = np.array([report["true"][place] for place in places])
    return Run(
        workdir, report, model, record.read(model).notes, stems, truth, answers(results, stems)
    )


def explain(
    run: Run, weights: Weights, devkit: Optional[str], checkpoint: Optional[str]
) -> Dict[str, Any]:
    """{"cause": the likeliest one or None, "tried": [{"what", "top1"}]}; also prints what could not be tried."""
    if run.notes.get("variant") != weights.variant:
        return {
            "cause": f"the network is {run.notes.get('variant')}, the figure is {weights.variant}'s",
            "tried": [],
        }
    if run.img_size != weights.img_size:
        cause = f"the images have {run.img_size} pixels, the figure is for {weights.img_size}"
        return {"cause": cause, "tried": []}
    trials = (devkit_order(run, devkit) if devkit else []) + shifted(run) + other_order(run)
    baseline = dict.fromkeys((what for what, _ in trials), share(run.answers == run.truth))
    before, more, notes = try_images(run, weights, checkpoint)
    baseline.update(dict.fromkeys((what for what, _ in more), before))
    for note in notes:
        print(f"note: {note}")
    return {
        "cause": best_cause(weights, baseline, trials + more),
        "tried": [{"what": what, "top1": value} for what, value in trials + more],
    }


def main() -> None:
    parser = cli.parser(__doc__)
    parser.add_argument(
        "workdir", metavar="WORKDIR", type=options.path, help="work folder of pipeline.sh"
    )
    parser.add_argument(
        "name", metavar="NAME", choices=sorted(EXPECTED), help=", ".join(sorted(EXPECTED))
    )
    options.add(
        parser,
        "checkpoint",
        "devkit",
        help={"checkpoint": "the weights, to try them in the other lineage"},
    )
    arguments = options.parse(parser)
    run, weights = load(arguments.workdir), EXPECTED[arguments.name]
    found = compare(arguments.name, run.report)
    for line in sentences(found):
        print(line)
    if not found["within"]:
        found.update(explain(run, weights, arguments.devkit, arguments.checkpoint))
        for trial in found["tried"]:
            print(f"tried: {trial['what']}: Top-1 {trial['top1']:.1f} %")
        print(f"likeliest cause: {found['cause'] or 'none of those that were tried fits'}")
    path = os.path.join(arguments.workdir, EXPECT.name)
    made_by = record.Recipe({"tool": os.path.basename(__file__)})
    record.write(path, made_by, {path: json_file.encode(found)})


if __name__ == "__main__":
    cli.run(main)
