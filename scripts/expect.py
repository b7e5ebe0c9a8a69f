#!/usr/bin/env python3
"""Compare a run's accuracy with the published one, and look for the cause of a difference.

    python3 scripts/expect.py work tresnet_m.miil_in1k
    python3 scripts/expect.py work tresnet_m.miil_in1k --checkpoint tresnet_m.pth
    python3 scripts/expect.py work checkpoint --checkpoint model_best.pth.tar
    python3 scripts/expect.py work tresnet_m.miil_in1k --devkit ILSVRC2012_devkit_t12.tar.gz

In:  WORKDIR of pipeline.sh: acc_report.json, and the results, prepared images and tresnet.onnx
     that belong to it.
Out: WORKDIR/expect.json: published and measured accuracy, the 95 % interval around the published
     one for so many images, and whether the measured one lies within it. If not: the cause that
     fits best of those that were tried.
Tried on the results: labels one higher or lower, labels in the devkit's order, labels in any other
     order. Tried on 200 images by ONNX Runtime on the CPU: red and blue swapped, the evaluation
     that the figure was published with, the other lineages of the weights.
"""

import os
from collections import Counter
from typing import Any, Callable, Dict, Iterator, List, NamedTuple, Optional, Tuple

from common.core import cli

if __name__ == "__main__":
    cli.start()  # before what may be missing

from common.core import json_file, options, record
from common.core.cli import Refusal, shown, some
from common.core.names import POOLS
from common.data import dataset, evaluation, prepared
from common.data.evaluation import Evaluation
from common.data.images import spaced
from common.data.inputs import Input, read_aipp, read_batch
from common.data.wnids import training_order
from common.model import claims, onnx_file, operators
from common.model.statistics import interval
from common.results import published
from common.results.figures import share
from common.results.published import CHECKPOINT, EXPECTED, NAMES, Weights
from common.results.results import answers, result_files
from common.results.work_files import EXPECT, EXPORTED, REPORT

import numpy as np

OWN_WORDS = "by the checkpoint itself"  # the source of its own figure
RESULTS = 5000  # at most, evenly spaced, for what is tried on the results alone
IMAGES = 200  # at most, evenly spaced, for what has to be inferred again
BATCH = 8
# Points of Top-1 that a cause must win at least, or half of what is missing if that is less.
CLEAR = 10.0
TYPICAL = 80.0  # per cent: Top-1 of weights for which only Top-5 is published
# So many images must share their label with another before the order of the labels is judged.
REPEATED = 100
ANOTHER_ORDER = (
    "labels in another order than the network's classes (each label has an answer of its own)"
)
Trial = Tuple[str, float]  # (what was tried, Top-1 in per cent)


class Run(NamedTuple):
    """What is known of the run that is judged."""

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


# ---- the figure ----------------------------------------------------------------------------------


def expected(name: str, notes: Dict[str, Any]) -> Weights:
    """The figures of a NAME; notes: of the model's record.

    Raises: Refusal for CHECKPOINT if the checkpoint does not say how accurate it was.
    """
    if name != CHECKPOINT:
        return EXPECTED[name]
    claimed = {row["top"]: float(row["value"]) for row in claims.needed_rows(notes)}
    size = evaluation.recorded(notes.get("evaluation")).img_size
    variant, lineage = str(notes.get("variant")), str(notes.get("lineage"))
    return Weights(variant, lineage, size, claimed.get(1), claimed.get(5), OWN_WORDS)


def compare(name: str, report: Dict[str, Any], weights: Weights) -> Dict[str, Any]:
    """expect.json without a cause."""
    images, hits = report["counts"]["evaluated"], report["hits"]
    measured = {"top1": 100 * hits[0] / images, "top5": 100 * hits[min(5, len(hits)) - 1] / images}
    figures = {"top1": weights.top1, "top5": weights.top5}
    intervals: Dict[str, Optional[List[float]]] = {}
    within = True
    for k, value in figures.items():
        intervals[k] = None
        if value is not None:
            low, high = interval(value / 100 * images, images)
            intervals[k] = [low, high]
            within = within and low <= measured[k] <= high
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


def sentences(comparison: Dict[str, Any]) -> List[str]:
    """What expect.json says of Top-1 and of Top-5, as far as they are published."""
    lines = []
    for k, title in (("top1", "Top-1"), ("top5", "Top-5")):
        value, measured = comparison["published"][k], comparison["measured"][k]
        if value is None:
            continue
        low, high = comparison["interval"][k]
        position = "within" if low <= measured <= high else "not within"
        lines.append(
            f"{title}: published {value:.2f} % ({comparison['published']['source']}), measured "
            f"{measured:.2f} % on {comparison['images']:,} images, {measured - value:+.2f} points: "
            f"{position} the 95 % interval {low:.2f}…{high:.2f} %"
        )
    return lines


# ---- what is tried on the results ----------------------------------------------------------------


def shifted(run: Run) -> List[Trial]:
    """Labels that are counted from another number."""
    return [
        ("labels one higher", share(run.answers == run.truth + 1)),
        ("labels one lower", share(run.answers == run.truth - 1)),
    ]


def devkit_order(run: Run, devkit: str) -> List[Trial]:
    """Labels that are the devkit's ILSVRC2012_ID, from 1 or from 0, in place of the class."""
    wnids = dataset.devkit_wnids(devkit)
    classes = training_order(wnids.values(), devkit)
    trials = []
    for first in (1, 0):
        by_id = {number - 1 + first: classes[wnid] for number, wnid in wnids.items()}
        truth = np.array([by_id.get(int(label), -1) for label in run.truth])
        what = f"labels are the devkit's ILSVRC2012_ID, counted from {first}"
        trials.append((what, share(run.answers == truth)))
    return trials


def other_order(run: Run) -> List[Trial]:
    """How often an image gets the answer that most other images with its label get.

    Returns [] if too few images share their label.
    """
    by_label: Dict[int, List[int]] = {}
    for label, answer in zip(run.truth.tolist(), run.answers.tolist()):
        by_label.setdefault(label, []).append(answer)
    hits = []
    for own in by_label.values():
        if len(own) == 1:
            continue
        counts = Counter(own)
        for answer in own:
            others = counts - Counter([answer])
            hits.append(others[answer] == max(others.values()))
    return [(ANOTHER_ORDER, share(hits))] if len(hits) >= REPEATED else []


# ---- what is tried on images ---------------------------------------------------------------------

# from images, float32 [n, 3, h, w], to logits, [n, classes]
Infer = Callable[[np.ndarray], np.ndarray]
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
    """Gives the images prepared again with a setting.

    The reader raises Refusal or OSError if they are not there any more.
    """
    from common.data.pixels import convert_file

    about = prepared.read(run.report["prep"])

    def read(stems: List[str]) -> np.ndarray:
        images = []
        for stem in stems:
            path = os.path.join(about.settings["source"], about.sources[stem])
            converted, _ = convert_file(path, setting, "float32")
            images.append(np.frombuffer(converted.data, "<f4"))
        return np.stack(images).reshape(len(stems), 3, setting.img_size, setting.img_size)

    return read


def other_lineages(run: Run, checkpoint: str) -> Iterator[Tuple[str, Infer]]:
    """The checkpoint's weights in the network of each other lineage. Raises: Refusal."""
    from common.model.checkpoint import find_state_dict, load_checkpoint
    from common.model.graph import build_model
    from common.model.network import LINEAGES, STEM_TODAY, Recognised, load_network

    path = evaluation.weights_file(checkpoint)
    tensors = find_state_dict(load_checkpoint(path), path).tensors
    tried = [run.notes.get("lineage")]
    if STEM_TODAY in tensors:
        tried = ["miil", "miil-bn"]  # the same network, if the weights have timm 0.8's names
    pool = run.notes.get("global_pool")
    pool = pool if pool in POOLS else POOLS[0]
    for lineage in LINEAGES:
        if lineage in tried:
            continue
        seen = Recognised(run.notes["variant"], run.report["classes"], lineage, "", pool=pool)
        network = load_network(tensors, path, seen)
        yield lineage, operators.logits_of(build_model(network, run.img_size, 11))


def settings_of(run: Run, weights: Weights) -> List[Evaluation]:
    """The evaluations that the figures may be of: timm's, at 448 pixels the official one too.

    The checkpoint's own figure belongs to the evaluation that it says.
    """
    if weights.source == OWN_WORDS:
        return [evaluation.recorded(run.notes.get("evaluation"))]
    settings = [Evaluation(img_size=weights.img_size)]
    if weights.img_size == 448:
        settings.append(settings[0]._replace(crop_mode="squash", crop_pct=1.0))
    return settings


class Tried(NamedTuple):
    """What was tried on images."""

    before: float  # Top-1 of these images as they were judged, per cent
    trials: List[Trial]
    notes: List[str]  # what could not be tried, and why


def try_images(run: Run, weights: Weights, checkpoint: Optional[str]) -> Tried:
    """Infer some images again with one thing changed at a time."""
    places = spaced(list(range(len(run.stems))), IMAGES)
    stems, truth = [run.stems[place] for place in places], run.truth[places]
    tried = Tried(share(run.answers[places] == truth), [], [])
    read, infer = prepared_reader(run), operators.logits_of(onnx_file.load(run.model))

    def read_swapped(names: List[str]) -> np.ndarray:
        return np.ascontiguousarray(read(names)[:, ::-1])

    swapped = top1(infer, read_swapped, stems, truth)
    tried.trials.append(("red and blue swapped (BGR)", swapped))
    prepared_with = evaluation.recorded(prepared.read(run.report["prep"]).settings)
    for setting in settings_of(run, weights):
        if setting == prepared_with:
            continue
        what = (
            f"the published evaluation ({evaluation.describe(setting)}), "
            f"not ({evaluation.describe(prepared_with)})"
        )
        try:
            tried.trials.append((what, top1(infer, source_reader(run, setting), stems, truth)))
        except (OSError, KeyError, ValueError) as error:
            tried.notes.append(f"the published evaluation could not be tried: {cli.why(error)}")
    try:
        if not checkpoint:
            raise Refusal("give the weights by --checkpoint")
        lineages_of: Dict[float, List[str]] = {}  # by what they give: few images may not decide
        for lineage, infer_other in other_lineages(run, checkpoint):
            lineages_of.setdefault(top1(infer_other, read, stems, truth), []).append(lineage)
        for value, lineages in lineages_of.items():
            tried.trials.append((f"the weights read as {' or '.join(lineages)} lineage", value))
    except Refusal as refusal:
        tried.notes.append(f"the other lineages could not be tried: {refusal.sentence}")
    return tried


# ---- which fits ----------------------------------------------------------------------------------


def best_cause(weights: Weights, baseline: Dict[str, float], trials: List[Trial]) -> Optional[str]:
    """The trial that wins most, in words; None if none wins clearly.

    baseline: {what was tried: Top-1 without it}.
    ANOTHER_ORDER counts only if nothing that is named more exactly fits.
    """
    expected = weights.top1 if weights.top1 is not None else TYPICAL
    clear_wins = []
    for what, value in trials:
        won, missing = value - baseline[what], expected - baseline[what]
        if won >= min(CLEAR, max(1.0, missing / 2)):
            clear_wins.append((what != ANOTHER_ORDER, won, what, value))
    if not clear_wins:
        return None
    _, _, what, value = max(clear_wins)
    return f"{what}: Top-1 is {value:.1f} % then, {baseline[what]:.1f} % as it is"


def load(workdir: str) -> Run:
    """What the work folder knows. Raises: Refusal if a part of it is missing."""
    path, model = os.path.join(workdir, REPORT.name), os.path.join(workdir, EXPORTED)
    report = REPORT.read(path)
    if not (report["hits"] and report["prep"] and report["result"]):
        raise Refusal(
            f"{shown(path)} should be of a run with --prep and one label an image; run the pipeline"
        )
    for key in ("result", "prep"):  # a work folder that was moved or copied since
        beside = os.path.join(workdir, os.path.basename(report[key]))
        if os.path.isdir(beside):
            report[key] = beside
    results = result_files(report["result"])
    places = spaced(list(range(len(report["evaluated"]))), RESULTS)
    stems = [report["evaluated"][place] for place in places]
    missing = [stem for stem in stems if stem not in results]
    if missing:
        raise Refusal(
            f"{shown(report['result'])} lacks results that {shown(path)} names: "
            f"{some(missing)}; run the pipeline again"
        )
    truth = np.array([report["true"][place] for place in places])
    notes = record.read(model).notes
    scored = answers(results, stems, report["classes"])
    return Run(report, model, notes, stems, truth, scored)


def explain(
    run: Run, weights: Weights, devkit: Optional[str], checkpoint: Optional[str]
) -> Dict[str, Any]:
    """The likeliest cause; also prints what could not be tried.

    Returns {"cause": in words or None, "tried": [{"what", "top1"}]}.
    """
    cause = other_network(run, weights)
    if cause:
        return {"cause": cause, "tried": []}
    trials = shifted(run) + other_order(run)
    if devkit:
        trials = devkit_order(run, devkit) + trials
    baseline = dict.fromkeys([what for what, _ in trials], share(run.answers == run.truth))
    tried = try_images(run, weights, checkpoint)
    baseline.update(dict.fromkeys([what for what, _ in tried.trials], tried.before))
    for note in tried.notes:
        print(f"note: {note}")
    trials += tried.trials
    return {
        "cause": best_cause(weights, baseline, trials),
        "tried": [{"what": what, "top1": value} for what, value in trials],
    }


def other_network(run: Run, weights: Weights) -> str:
    """Why the figure is not about this network; "" if it is."""
    if run.notes.get("variant") != weights.variant:
        return f"the network is {run.notes.get('variant')}, the figure is {weights.variant}'s"
    if run.img_size != weights.img_size:
        return f"the images have {run.img_size} pixels, the figure is for {weights.img_size}"
    return ""


def main() -> None:
    parser = cli.parser(__doc__)
    parser.add_argument(
        "workdir", metavar="WORKDIR", type=options.path, help="work folder of pipeline.sh"
    )
    parser.add_argument("name", metavar="NAME", choices=NAMES, help=", ".join(NAMES))
    options.add(
        parser,
        "checkpoint",
        "devkit",
        help={"checkpoint": "the weights, to try them in the other lineage"},
    )
    arguments = options.parse(parser)
    run = load(arguments.workdir)
    published.check_classes(arguments.name, run.report["classes"])
    weights = expected(arguments.name, run.notes)
    comparison = compare(arguments.name, run.report, weights)
    for line in sentences(comparison):
        print(line)
    if not comparison["within"]:
        comparison.update(explain(run, weights, arguments.devkit, arguments.checkpoint))
        for trial in comparison["tried"]:
            print(f"tried: {trial['what']}: Top-1 {trial['top1']:.1f} %")
        cause = comparison["cause"] or "none of those that were tried fits"
        print(f"likeliest cause: {cause}")
    path = os.path.join(arguments.workdir, EXPECT.name)
    made_by = record.Recipe({"tool": os.path.basename(__file__)})
    record.write(path, made_by, {path: json_file.encode(comparison)})


if __name__ == "__main__":
    cli.run(main)
