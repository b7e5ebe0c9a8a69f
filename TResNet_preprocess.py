#!/usr/bin/env python3
"""Images to network inputs: one .bin for each image, the same bytes as timm's evaluation transform gives.

    python3 TResNet_preprocess.py ./ImageNet/val_union ./prep_dataset
    python3 TResNet_preprocess.py ./ImageNet/val ./prep_uint8 --dtype uint8 --skip-bad -j 8
    python3 TResNet_preprocess.py ./ImageNet/val_union ./prep_448 --img-size 448 --crop-mode squash --crop-pct 1

In:   every image under SRC, in one folder or in class folders, by suffix in any case.
Out:  DST/<stem>.bin          float32 [3, 224, 224], RGB in 0..1, little-endian, no header: 602,112 bytes;
                              or with --dtype uint8 [224, 224, 3], 0..255: 150,528 bytes
      DST/aipp.cfg            only with --dtype uint8: how the card is to scale them, for atc and infer_onnx.py --aipp
      DST/manifest.jsonl      what each .bin was made from, and which images were bad and why
      DST/val_label.txt       only where all images lie in class folders: `<stem> <class index>` lines
A run that was stopped, by whatever, is continued by running the same command again.
Exit status: 0 done, 1 failure or bad images (all others are done), 2 wrong usage, 130 Ctrl-C, 143 SIGTERM.
"""

import argparse
import contextlib
import errno
import logging
import os
import sys
import time
import warnings
from typing import Callable, Dict, Generator, List, NamedTuple, Optional, Set, Union

sys.path.insert(0, os.path.join(os.path.dirname(os.path.realpath(__file__)), "scripts"))
from common.core import cli

if __name__ == "__main__":
    cli.start()  # before what may be missing

from common.core import files, options, progress, record
from common.core.cli import Refusal, shown
from common.core.names import INPUT_SUFFIXES, SUFFIXES, name_bins
from common.core.record import MANIFEST, Draft, Made, Part, Piece, Recipe, Record
from common.core.workers import run_workers
from common.data import evaluation, prepared
from common.data.evaluation import AIPP, Evaluation
from common.data.images import class_folders, find_images
from common.data.labels import class_labels
from common.data.pixels import BYTES, convert_file, fast_path, reason
from common.data.prepared import BESIDE, LABELS

TIMEOUT = 60.0  # seconds for one image
AHEAD = 60 * 10**9  # ns; a .bin from further in the future would always be younger than its result
LISTED = 20  # bad images that are listed on stderr
GOES_ON = "run the same command again, it goes on from here"


class Job(NamedTuple):
    """An image to prepare."""

    source: str  # its path below SRC
    stem: str  # of its .bin
    earlier: Optional[
        Made
    ]  # the .bin of an earlier run that is whole, where only the image was touched


class Converted(NamedTuple):
    """What a worker made of an image."""

    source: str
    image: files.Stamp
    bin: Union[Part, Made]  # a new file, or the earlier one, which is the same


class Bad(NamedTuple):
    """An image of which nothing can be made."""

    source: str
    why: str


class Failed(NamedTuple):
    """A .bin that cannot be written, for a reason that ends the run."""

    source: str
    errno: int


Outcome = Union[Converted, Bad, Failed]


class Plan(NamedTuple):
    """What is to be done in DST."""

    todo: List[Job]
    kept: Dict[str, Piece]  # of earlier runs, by the image's path
    stale: int  # bytes of the files of ours that go
    seconds: float  # that the earlier runs took


# ---- before anything is written --------------------------------------------------------------------------------------


def parse_arguments() -> argparse.Namespace:
    parser = cli.parser(__doc__)
    parser.add_argument(
        "src",
        metavar="SRC",
        type=options.path,
        help="folder of images, or of class folders of images",
    )
    parser.add_argument(
        "dst", metavar="DST", type=options.path, help="folder for the .bin files; made if need be"
    )
    options.add(
        parser,
        "workers",
        "pixels",
        *options.EVALUATION,
        "model",
        "dtype",
        "skip_bad",
        "force",
        "shard",
        "class_map",
        "timeout",
        default={"dtype": "float32", "timeout": TIMEOUT},
        help={
            "model": "take from this model's record what its checkpoint says of the six above",
            "timeout": "an image that takes longer is bad (default: %(default)s)",
        },
    )
    return options.parse(parser)


def choose_evaluation(args: argparse.Namespace) -> Evaluation:
    """What the options say, else what the checkpoint of --model says, else timm's figures; contradictions are told."""
    said, who = {}, ""
    if args.model:
        notes = record.read(args.model).notes
        if "evaluation" not in notes:
            raise Refusal(
                f"{shown(args.model)} has no record of TResNet_pth2onnx.py that tells what its checkpoint "
                "says of the evaluation; export it again, or leave out --model and give the options"
            )
        said, who = (
            evaluation.from_json(notes["evaluation"]),
            f"the checkpoint of {shown(args.model)}",
        )
    chosen, contradictions = evaluation.resolve(evaluation.given(args), said, who)
    for sentence in contradictions:
        print(f"note: {sentence}")
    if args.model or chosen != evaluation.DEFAULT._replace(img_size=chosen.img_size):
        print(f"evaluation: {evaluation.describe(chosen)}")
    return chosen


def check_folders(source: str, target: str) -> None:
    """Refuse a SRC and DST that cannot be meant."""
    if os.path.islink(target.rstrip("/")):
        raise Refusal(
            f"DST, {shown(target)}, is a symbolic link, and nothing is made or removed through one; name "
            f"{shown(os.path.realpath(target))} itself"
        )
    if not os.path.isdir(source):
        raise Refusal(
            f"SRC must be a folder of images, but {shown(source)} "
            + ("is not a folder" if os.path.lexists(source) else "does not exist")
        )
    real_source, real_target = os.path.realpath(source), os.path.realpath(target)
    if real_source == real_target:
        raise Refusal(
            f"SRC and DST are the same folder, {shown(source)}; give DST a folder of its own"
        )
    for inner, outer, text in (
        (real_target, real_source, "DST is inside SRC"),
        (real_source, real_target, "SRC is inside DST"),
    ):
        if os.path.commonpath([inner, outer]) == outer:
            raise Refusal(
                f"{text} ({shown(inner)} in {shown(outer)}); give DST a folder of its own"
            )
    existing = files.existing_part(real_target)
    if not os.path.isdir(existing):
        raise Refusal(f"DST cannot be a folder: {shown(existing)} is a file")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise Refusal(f"DST cannot be written: {shown(existing)} is read-only for this user")


def files_there(folder: str) -> Dict[str, os.stat_result]:
    """{name: status} of what the inference would read from the folder, by whomever it was made."""
    with contextlib.suppress(FileNotFoundError), os.scandir(folder) as listing:
        return {
            entry.name: entry.stat(follow_symlinks=False)
            for entry in listing
            if entry.name.lower().endswith(INPUT_SUFFIXES)
        }
    return {}


def plan(
    args: argparse.Namespace,
    recipe: Recipe,
    images: Dict[str, files.Stamp],
    stems: Dict[str, str],
    before: Record,
) -> Plan:
    """What is to be made, and what an earlier run made that still holds.

    images: {source: its stamp}; stems: {source: stem of its .bin}.
    Raises: Refusal if the folder was made with other settings.
    """
    start_again = starts_again(args, before, recipe)
    todo: List[Job] = []
    kept: Dict[str, Piece] = {}
    keep: Set[str] = set()
    for source, stamp in images.items():
        piece = None if start_again else before.pieces.get(source)
        earlier = (
            whole_bin(before, piece, stems[source] + ".bin", bin_size(args)) if piece else None
        )
        if piece and earlier and piece.inputs == [image_state(source, stamp)]:
            kept[source] = piece._replace(files=[earlier])
        else:
            todo.append(Job(source, stems[source], earlier))
        keep |= {earlier.name} if earlier else set()
    stale = sum(
        status.st_size
        for name, status in files_there(args.dst).items()
        if name in before.made and name not in keep
    )
    return Plan(todo, kept, stale, 0.0 if start_again else seconds_taken(before))


def whole_bin(before: Record, piece: Piece, name: str, size: int) -> Optional[Made]:
    """The .bin of an earlier run if it is still what was made, with its times of now; None if it is not."""
    made = piece.files[0] if piece.files else None
    if not made or made.name != name or made.size != size or not before.same(made):
        return None
    _, modified, changed = files.stamp(os.lstat(before.place(name)))
    in_future = modified > time.time_ns() + AHEAD
    return None if in_future else made._replace(mtime_ns=modified, ctime_ns=changed)


def image_state(source: str, stamp: files.Stamp) -> record.State:
    return [source, *stamp]


def starts_again(args: argparse.Namespace, before: Record, recipe: Recipe) -> bool:
    """Whether nothing in DST can be kept. Raises: Refusal if only other settings are the reason, without --force."""
    if args.force:
        return True
    if not before.recipe:
        reason_to_start = before.differences(recipe)
        if reason_to_start:
            print(f"everything is made again: {reason_to_start}", file=sys.stderr)
        return bool(reason_to_start)
    settings, program = (
        prepared.changed_settings(before, recipe),
        prepared.changed_program(before, recipe),
    )
    count = sum(bool(piece.files) for key, piece in before.pieces.items() if key != BESIDE)
    seconds = seconds_taken(before)
    took = f"{count} images" + (f", which took {seconds:.0f} s" if seconds >= 0.5 else "")
    if settings and count:
        raise Refusal(
            f"{shown(args.dst)} holds {took}, made with other settings: {', '.join(settings)}; to keep them, "
            "name another DST; --force makes all of them again"
        )
    if settings or program:
        print(
            f"everything is made again ({took}): {', '.join(settings + program)}", file=sys.stderr
        )
    return bool(settings or program)


def seconds_taken(before: Record) -> float:
    """What it took to make the folder; 0 if it was never finished."""
    seconds = (before.ending or {}).get("seconds")
    return float(seconds) if isinstance(seconds, (int, float)) else 0.0


def bin_size(args: argparse.Namespace) -> int:
    """Bytes of every .bin."""
    return 3 * args.evaluation.img_size**2 * BYTES[args.dtype]


# ---- the work --------------------------------------------------------------------------------------------------------


def make_work(args: argparse.Namespace) -> Callable[[Job], Outcome]:
    """The function that a worker does for each job: write the .bin, which the parent lets appear."""
    warnings.simplefilter("ignore")  # doubtful metadata is no news for someone who wants the pixels
    logging.getLogger("PIL").setLevel(logging.CRITICAL)
    fast = None
    try:
        fast = fast_path(args.evaluation, args.dtype)
    except RuntimeError as error:
        print(f"note: the fast path is not used, Pillow does it all: {error}", file=sys.stderr)

    def work(job: Job) -> Outcome:
        try:
            data, status = convert_file(
                os.path.join(args.src, job.source), args.evaluation, args.dtype, fast
            )
        except (
            Exception
        ) as error:  # Pillow raises a dozen kinds for broken files, SyntaxError among them
            return Bad(job.source, reason(error))
        image, checksum = files.stamp(status), files.checksum(data)
        if (
            job.earlier and job.earlier.checksum == checksum
        ):  # the same image: its .bin, and its result, may stay
            return Converted(job.source, image, job.earlier)
        name = job.stem + ".bin"
        try:
            path = files.write_part(os.path.join(args.dst, name), data)
        except OSError as error:
            return Failed(job.source, error.errno or errno.EIO)
        return Converted(job.source, image, Part(name, path, memoryview(data).nbytes, checksum))

    return work


def draft_of(outcome: Outcome) -> Draft:
    """What the record is to say of an image."""
    if isinstance(outcome, Failed):
        raise OSError(outcome.errno, os.strerror(outcome.errno))
    if isinstance(outcome, Bad):
        return Draft(outcome.source, [], [], {"error": outcome.why})
    inputs = [image_state(outcome.source, outcome.image)]
    if isinstance(outcome.bin, Part):
        return Draft(outcome.source, inputs, [outcome.bin])
    return Draft(outcome.source, inputs, [], stay=[outcome.bin])


def outcomes(args: argparse.Namespace, todo: List[Job]) -> Generator[List[Outcome], None, None]:
    """What the workers made, in lists as they finish them."""
    if todo:
        workers = min(args.workers, len(todo))
        yield from run_workers(
            todo, make_work(args), workers, args.timeout, lambda job, why: Bad(job.source, why)
        )


def is_done(
    before: Record, about: record.Row, task: Plan, beside: Dict[str, bytes], bad: Dict[str, str]
) -> bool:
    """Whether DST is what it would become already."""
    if task.todo or task.stale or not before.finished or before.about != about:
        return False
    known_bad = {
        key: piece.notes["error"] for key, piece in before.pieces.items() if "error" in piece.notes
    }
    there = before.pieces.get(BESIDE)
    wanted = {name: files.checksum(content) for name, content in beside.items()}
    same_beside = there is not None and {made.name: made.checksum for made in there.files} == wanted
    return same_beside and before.holds(before.pieces[BESIDE]) and known_bad == bad


def carry_out(
    args: argparse.Namespace,
    recipe: Recipe,
    about: record.Row,
    before: Record,
    task: Plan,
    beside: Dict[str, bytes],
    bad: Dict[str, str],
) -> None:
    """Bring DST, which this run holds, to what was planned; bad images are added to `bad`. Raises: OSError."""
    expected = [job.stem + ".bin" for job in task.todo] + list(beside)
    spared = {job.source: job.earlier.name for job in task.todo if job.earlier}
    started = time.monotonic()
    with record.begin(
        before, recipe, expected, task.kept.values(), spared.values(), files_there(args.dst), about
    ) as writer:
        parts = [writer.part(name, content, durable=False) for name, content in beside.items()]
        known_bad = [Draft(source, [], [], {"error": why}) for source, why in sorted(bad.items())]
        writer.publish([Draft(BESIDE, [], parts), *known_bad])
        bar = progress.Bar(
            "preprocessing",
            len(task.kept) + len(task.todo),
            "images",
            len(task.kept),
            lines_every=10,
        )
        try:
            with bar, contextlib.closing(outcomes(args, task.todo)) as results:
                for finished in results:
                    writer.publish([draft_of(outcome) for outcome in finished])
                    for outcome in finished:
                        if isinstance(outcome, Bad):
                            bad[outcome.source] = outcome.why
                            if outcome.source in spared:
                                os.unlink(os.path.join(args.dst, spared[outcome.source]))
                    bar.advance(len(finished))
        finally:
            files.remove_parts(args.dst, expected)  # a worker that was ended may have left one
        writer.finish(seconds=round(task.seconds + time.monotonic() - started, 3))


def list_bad(bad: Dict[str, str]) -> None:
    """Tell which images were left out, on stderr."""
    for source, why in sorted(bad.items())[:LISTED]:
        print(f"bad image {shown(source)}: {why}", file=sys.stderr)
    if len(bad) > LISTED:
        print(f"... and {len(bad) - LISTED} more bad images, all in {MANIFEST}", file=sys.stderr)


def main() -> int:
    args = parse_arguments()
    started = time.monotonic()
    args.evaluation = choose_evaluation(args)
    check_folders(args.src, args.dst)
    images, bad = find_images(args.src)
    if "." in bad:
        raise Refusal(f"SRC, {shown(args.src)}: {bad['.']}")
    if not images and not bad:
        raise Refusal(
            f"no images in {shown(args.src)}: no file there ends in {', '.join(SUFFIXES)}"
        )
    stems = name_bins(source for source in [*images, *bad] if source.lower().endswith(SUFFIXES))
    labels = class_labels(args.src, images, stems, args.class_map)

    mine = set(
        sorted([*images, *bad])[args.shard[0] - 1 :: args.shard[1]]
    )  # names and numbers are those of the whole
    images = {source: stamp for source, stamp in images.items() if source in mine}
    bad = {source: why for source, why in bad.items() if source in mine}
    if not mine:
        raise Refusal(
            f"shard {args.shard[0]} of {args.shard[1]} of {shown(args.src)} has no image; take fewer shards"
        )
    folders = (
        class_folders(args.src) if labels is not None and not args.class_map else []
    )  # numbered by their order
    exists = os.path.isdir(args.dst)
    if exists:
        files.hold(args.dst)
    settings = dict(
        evaluation.to_json(args.evaluation._asdict()),
        dtype=args.dtype,
        source=os.path.abspath(args.src),
        shard=args.shard,
    )
    recipe = prepared.make_recipe(__file__, settings)
    about = {
        "given": sorted(evaluation.given(args)),
        "labels": labels is not None,
        "class_folders": folders,
    }
    beside = {LABELS: labels} if labels is not None else {}
    if args.dtype == "uint8":
        beside[AIPP] = evaluation.aipp(args.evaluation)
    before = prepared.open_record(args.dst)
    before.refuse_others([*files_there(args.dst), *beside])
    task = plan(args, recipe, images, stems, before)
    files.check_space(
        args.dst,
        files.occupied([bin_size(args)] * len(task.todo)) - task.stale,
        "choose a DST on another disk",
    )
    try:
        if not exists:
            files.make_folder(args.dst, "DST")
            files.hold(args.dst)
        if not is_done(before, about, task, beside, bad):
            carry_out(args, recipe, about, before, task, beside, bad)
    except OSError as error:
        advice = "make room" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "put that right"
        raise Refusal(
            f"cannot write to {shown(args.dst)}: {error.strerror}; {advice} and {GOES_ON}"
        ) from None

    kept, todo = task.kept, task.todo
    seconds = time.monotonic() - started
    made = len(todo) - sum(job.source in bad for job in todo)
    list_bad(bad)
    if labels is not None:
        numbered = (
            f"{len(folders)} class folders, 0 to {len(folders) - 1} by their order"
            if folders
            else "--class-map"
        )
        print(f"labels from {numbered}, in {shown(os.path.join(args.dst, LABELS))}")
    print(
        f"{made + len(kept)} images in {shown(args.dst)}"
        + (f" ({len(kept)} were there already)" if kept else "")
        + (f", {len(bad)} bad ones left out" if bad else "")
        + f": {made} made in {seconds:.1f} s, {made / seconds:.1f} images/s"
    )
    return 1 if bad and not (args.skip_bad and made + len(kept)) else 0


if __name__ == "__main__":
    cli.run(main, GOES_ON)
