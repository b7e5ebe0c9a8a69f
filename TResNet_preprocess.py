#!/usr/bin/env python3
"""Images to network inputs: one .bin for each image, with the bytes of timm's evaluation transform.

    python3 TResNet_preprocess.py ./ImageNet/val_union ./prep_dataset
    python3 TResNet_preprocess.py ./ImageNet/val ./prep_uint8 --dtype uint8 --skip-bad -j 8
    python3 TResNet_preprocess.py ./val ./prep_448 --img-size 448 --crop-mode squash --crop-pct 1

In:   every image under SRC, in one folder or in class folders, by suffix in any case.
Out:  DST/<stem>.bin      float32 [3, 224, 224], RGB in 0..1, little-endian, no header: 602,112
                          bytes; or with --dtype uint8 [224, 224, 3], 0..255: 150,528 bytes
      DST/aipp.cfg        only with --dtype uint8: how the card scales them, for atc and for
                          infer_onnx.py --aipp
      DST/manifest.jsonl  what each .bin was made from, and which images are bad and why
      DST/val_label.txt   only if all images lie in class folders: lines `<stem> <class index>`
To continue a run that was stopped, run the same command again.
Exit status: 0 done, 1 failure or bad images (all others are done), 2 wrong usage, 130 Ctrl-C,
143 SIGTERM.
"""

import argparse
import contextlib
import errno
import logging
import os
import sys
import time
import warnings
from collections import Counter
from typing import Callable, Dict, Generator, List, NamedTuple, Optional, Union

sys.path.insert(0, os.path.join(os.path.dirname(os.path.realpath(__file__)), "scripts"))
from common.core import cli

if __name__ == "__main__":
    cli.start()  # before the imports of packages that may be missing

from common.core import files, options, progress, record
from common.core.cli import Refusal, counted, shown
from common.core.names import (
    CLASS_ORDERS,
    COMMON_SUFFIXES,
    INPUT_SUFFIXES,
    SUFFIXES,
    name_bins,
)
from common.core.record import MANIFEST, Draft, Made, Part, Piece, Recipe, Record
from common.core.workers import run_workers
from common.data import evaluation, prepared
from common.data.evaluation import AIPP, Evaluation
from common.data.images import class_folders, describe_others, find_images
from common.data.labels import class_labels, note_on_order
from common.data.pixels import BYTES, convert_file, fast_path, reason
from common.data.prepared import BESIDE, LABELS

TIMEOUT = 60.0  # seconds for one image; the default of --timeout
FUTURE = 60 * 10**9  # ns; a .bin from further in the future would always be newer than its result
LISTED = 20  # bad images that are listed on stderr; the manifest has all
GOES_ON = "run the same command again, it goes on from here"


class Sources(NamedTuple):
    """The images of SRC, or of one shard of it. Each is named by its path below SRC."""

    images: Dict[str, files.Stamp]  # size and times of each
    bad: Dict[str, str]  # what only looks like an image, and why
    stems: Dict[str, str]  # the stem of each .bin, also for other shards
    labels: Optional[bytes]  # content of val_label.txt, if all images lie in class folders
    class_folders: List[str]  # in the order of the classes, if their order numbers them
    others: List[str]  # what was passed over, see Listing


class Target(NamedTuple):
    """What DST is to become."""

    evaluation: Evaluation
    dtype: str  # "float32" or "uint8"
    recipe: Recipe
    about: record.Row  # what else the manifest says: see prepared.Prepared.about
    beside: Dict[str, bytes]  # {name: content} of the files beside the .bin files

    @property
    def bin_size(self) -> int:
        """Bytes of every .bin."""
        return 3 * self.evaluation.img_size**2 * BYTES[self.dtype]


class Job(NamedTuple):
    """An image to prepare."""

    source: str
    stem: str
    earlier: Optional[Made]  # its intact .bin of an earlier run, if the image was only touched


class Plan(NamedTuple):
    """What this run does in DST."""

    todo: List[Job]
    kept: Dict[str, Piece]  # of earlier runs, by the image's path
    stale: int  # bytes of our own files that go


class Failed(NamedTuple):
    """A .bin that cannot be written: this ends the run."""

    errno: int


Outcome = Union[Draft, Failed]  # what a worker makes of a job: what the record says of the image


# ---- before anything is written ------------------------------------------------------------------


def parse_arguments() -> argparse.Namespace:
    parser = cli.parser(__doc__)
    parser.add_argument(
        "src",
        metavar="SRC",
        type=options.path,
        help="folder of images, or of class folders of images",
    )
    parser.add_argument(
        "dst",
        metavar="DST",
        type=options.path,
        help="folder for the .bin files; created if it does not exist",
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
        "class_order",
        "timeout",
        default={"dtype": "float32", "timeout": TIMEOUT},
        help={
            "model": "take the six settings above from this model's record or metadata",
            "timeout": "an image that takes longer is bad (default: %(default)s)",
        },
    )
    return options.parse(parser)


def choose_evaluation(args: argparse.Namespace) -> Evaluation:
    """What the options say, else the model of --model, else timm; prints each contradiction."""
    exported, who = evaluation.of_fields({}), ""
    if args.model:
        who = f"the checkpoint of {shown(args.model)}"
        of_model = evaluation.of_model(args.model)
        if not of_model:
            raise Refusal(
                f"{shown(args.model)} has no record of TResNet_pth2onnx.py that says how its "
                "images are prepared; export it again, or leave out --model and give the options"
            )
        exported = of_model
    chosen, contradictions = evaluation.resolve(evaluation.given(args), exported, who)
    for sentence in contradictions:
        print(f"note: {sentence}")
    if args.model or chosen != evaluation.DEFAULT._replace(img_size=chosen.img_size):
        print(f"evaluation: {evaluation.describe(chosen)}")
    return chosen


def check_folders(source: str, target: str) -> None:
    """Refuse a SRC that is not a folder and a DST that cannot be used or is not apart from SRC."""
    if os.path.islink(target.rstrip("/")):
        raise Refusal(
            f"DST, {shown(target)}, is a symbolic link, and nothing is made or removed through a "
            f"link; name {shown(os.path.realpath(target))} itself, or remove the link"
        )
    if not os.path.isdir(source):
        state = "is not a folder" if os.path.lexists(source) else "does not exist"
        raise Refusal(f"SRC must be a folder of images, but {shown(source)} {state}")
    real_source, real_target = os.path.realpath(source), os.path.realpath(target)
    advice = "give DST a folder of its own"
    if real_source == real_target:
        raise Refusal(f"SRC and DST are the same folder, {shown(source)}; {advice}")
    common = os.path.commonpath([real_source, real_target])
    if common == real_source:
        raise Refusal(f"DST is inside SRC ({shown(real_target)} in {shown(real_source)}); {advice}")
    if common == real_target:
        raise Refusal(f"SRC is inside DST ({shown(real_source)} in {shown(real_target)}); {advice}")
    existing = files.existing_part(real_target)
    if not os.path.isdir(existing):
        raise Refusal(f"DST cannot be a folder: {shown(existing)} is a file")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise Refusal(f"DST cannot be written: {shown(existing)} is read-only for this user")


def find_sources(args: argparse.Namespace) -> Sources:
    """The images of SRC that this run prepares. Raises: Refusal if there are none."""
    images, bad, others = find_images(args.src)
    if "." in bad:
        raise Refusal(f"SRC, {shown(args.src)}: {bad['.']}")
    if not images and not bad:
        raise Refusal(f"no images in {shown(args.src)}: no file there ends in {COMMON_SUFFIXES}")
    stems = name_bins(source for source in [*images, *bad] if source.lower().endswith(SUFFIXES))
    labels = class_labels(args.src, images, stems, args.class_map, args.class_order)
    by_order = labels is not None and not args.class_map
    folders = class_folders(args.src, class_order(args)) if by_order else []

    number, shards = args.shard  # names and labels are those of all shards together
    mine = set(sorted([*images, *bad])[number - 1 :: shards])
    if not mine:
        raise Refusal(
            f"shard {number} of {shards} of {shown(args.src)} has no image; take fewer shards"
        )
    images = {source: stamp for source, stamp in images.items() if source in mine}
    bad = {source: why for source, why in bad.items() if source in mine}
    return Sources(images, bad, stems, labels, folders, others)


def class_order(args: argparse.Namespace) -> str:
    """The order of the class folders, one of names.CLASS_ORDERS."""
    return str(args.class_order or CLASS_ORDERS[0])


def describe_target(args: argparse.Namespace, how: Evaluation, sources: Sources) -> Target:
    settings = dict(
        evaluation.to_json(how._asdict()),
        dtype=args.dtype,
        source=os.path.abspath(args.src),
        shard=args.shard,
    )
    about = {
        "given": sorted(evaluation.given(args)),
        "labels": sources.labels is not None,
        "class_folders": sources.class_folders,
        "class_order": class_order(args),
        "folder": os.path.abspath(args.dst),
    }
    classes = evaluation.known_classes(args.model) if args.model else 0
    if classes:
        about["num_classes"] = classes
    beside = {}
    if sources.labels is not None:
        beside[LABELS] = sources.labels
    if args.dtype == "uint8":
        beside[AIPP] = evaluation.aipp(how)
    recipe = prepared.make_recipe(__file__, settings)
    return Target(how, args.dtype, recipe, about, beside)


# ---- what an earlier run made --------------------------------------------------------------------


def files_there(folder: str) -> Dict[str, os.stat_result]:
    """{name: status} of the files in a folder that inference would read, whoever made them."""
    with contextlib.suppress(FileNotFoundError), os.scandir(folder) as listing:
        return {
            entry.name: entry.stat(follow_symlinks=False)
            for entry in listing
            if entry.name.lower().endswith(INPUT_SUFFIXES)
        }
    return {}


def plan(args: argparse.Namespace, target: Target, sources: Sources, before: Record) -> Plan:
    """What to make, and what an earlier run made that may stay.

    before: the record of DST. Raises: Refusal if DST was made with other settings.
    """
    pieces = {} if starts_again(args, before, target.recipe) else before.pieces
    todo: List[Job] = []
    kept: Dict[str, Piece] = {}
    keep = set()  # names of .bin files
    for source, stamp in sources.images.items():
        stem = sources.stems[source]
        piece = pieces.get(source)
        earlier = intact_bin(before, piece, stem + ".bin", target.bin_size) if piece else None
        if piece and earlier and piece.inputs == [image_state(source, stamp)]:
            kept[source] = piece._replace(files=[earlier])
        else:
            todo.append(Job(source, stem, earlier))
        if earlier:
            keep.add(earlier.name)
    there = files_there(args.dst)
    stale = sum(there[name].st_size for name in there if name in before.made and name not in keep)
    return Plan(todo, kept, stale)


def intact_bin(before: Record, piece: Piece, name: str, size: int) -> Optional[Made]:
    """The .bin of an earlier run, with its present times, if its content is still what was made."""
    made = piece.files[0] if piece.files else None
    if not made or made.name != name or made.size != size or not before.is_intact(made):
        return None
    _, modified, changed = files.stamp(os.lstat(before.file_path(name)))
    in_future = modified > time.time_ns() + FUTURE
    return None if in_future else made._replace(mtime_ns=modified, ctime_ns=changed)


def image_state(source: str, stamp: files.Stamp) -> record.State:
    return [source, *stamp]


def starts_again(args: argparse.Namespace, before: Record, recipe: Recipe) -> bool:
    """Whether nothing in DST may stay; says why. Raises: Refusal if only settings differ."""
    if args.force:
        return True
    if not before.recipe:
        changed = before.differences(recipe)
        if changed:
            print(f"{changed}: converting all images again", file=sys.stderr)
        return bool(changed)
    settings = prepared.changed_settings(before, recipe)
    program = prepared.changed_program(before, recipe)
    bins = prepared.described(before).checksums
    images, seconds = counted(len(bins), "image"), seconds_taken(before)
    took = f" (they took {seconds:.0f} s)" if seconds >= 0.5 else ""
    if settings and bins:
        raise Refusal(
            f"{shown(args.dst)} holds {images}{took}, made with other settings: "
            f"{', '.join(settings)}; to keep them, name another DST; --force makes them again"
        )
    if settings or program:
        changed = ", ".join(settings + program)
        print(f"{changed}: converting {images} again{took}", file=sys.stderr)
    return bool(settings or program)


def seconds_taken(before: Record) -> float:
    """Seconds that it took to make the folder; 0 if no run finished."""
    seconds = (before.ending or {}).get("seconds")
    return float(seconds) if isinstance(seconds, (int, float)) else 0.0


def is_done(before: Record, target: Target, planned: Plan, bad: Dict[str, str]) -> bool:
    """Whether DST already is what it is to become."""
    if planned.todo or planned.stale or not before.finished or before.about != target.about:
        return False
    beside = before.pieces.get(BESIDE)
    if beside is None or not before.is_piece_intact(beside):
        return False
    checksums = {made.name: made.checksum for made in beside.files}
    wanted = {name: files.checksum(content) for name, content in target.beside.items()}
    return checksums == wanted and prepared.described(before).bad == bad


# ---- the work ------------------------------------------------------------------------------------


def make_work(args: argparse.Namespace, target: Target) -> Callable[[Job], Outcome]:
    """The function that a worker calls for each job: it writes the .bin under a temporary name."""
    warnings.simplefilter("ignore")  # about metadata, where only the pixels matter
    logging.getLogger("PIL").setLevel(logging.CRITICAL)
    fast = None
    try:
        fast = fast_path(target.evaluation, target.dtype)
    except RuntimeError as error:
        print(f"note: the fast path is not used, Pillow does it all: {error}", file=sys.stderr)

    def work(job: Job) -> Outcome:
        path, name = os.path.join(args.src, job.source), job.stem + ".bin"
        try:
            converted, status = convert_file(path, target.evaluation, target.dtype, fast)
        except Exception as error:  # Pillow raises a dozen kinds for broken files, even SyntaxError
            return bad_image(job.source, reason(error))
        data, notes = converted.data, {}
        if converted.clipped:
            notes = {"mode": converted.mode, "clipped": converted.clipped}
        inputs, checksum = [image_state(job.source, files.stamp(status))], files.checksum(data)
        if job.earlier and job.earlier.checksum == checksum:
            return Draft(job.source, inputs, [], notes, [job.earlier])  # its result may stay, too
        try:
            part = files.write_part(os.path.join(args.dst, name), data)
        except OSError as error:
            return Failed(error.errno or errno.EIO)
        size = memoryview(data).nbytes
        return Draft(job.source, inputs, [Part(name, part, size, checksum)], notes)

    return work


def bad_image(source: str, why: str) -> Draft:
    """What the record says of an image that cannot be prepared."""
    return Draft(source, [], [], {"error": why})


def draft_of(outcome: Outcome) -> Draft:
    """What the record says of an image. Raises: OSError if its .bin cannot be written."""
    if isinstance(outcome, Failed):
        raise OSError(outcome.errno, os.strerror(outcome.errno))
    return outcome


def convert_all(
    args: argparse.Namespace, target: Target, todo: List[Job]
) -> Generator[List[Outcome], None, None]:
    """What the workers made, in lists as they finish them."""
    if todo:
        work, workers = make_work(args, target), min(args.workers, len(todo))
        yield from run_workers(
            todo, work, workers, args.timeout, lambda job, why: bad_image(job.source, why)
        )


def carry_out(
    args: argparse.Namespace, target: Target, planned: Plan, before: Record, bad: Dict[str, str]
) -> Dict[str, str]:
    """Turn DST, which this run holds, into the target.

    bad: what only looks like an image. Returns: {source: why} of the images that are bad, too.
    Raises: OSError if DST cannot be written.
    """
    started = time.monotonic()
    found_bad: Dict[str, str] = {}
    expected = [job.stem + ".bin" for job in planned.todo] + list(target.beside)
    spared = {job.source: job.earlier.name for job in planned.todo if job.earlier}
    there = files_there(args.dst)
    kept = planned.kept.values()
    with record.begin(
        before, target.recipe, expected, kept, spared.values(), there, target.about
    ) as writer:
        beside = [writer.part(*file, durable=False) for file in target.beside.items()]
        known_bad = [bad_image(*item) for item in sorted(bad.items())]
        writer.publish([Draft(BESIDE, [], beside), *known_bad])
        bar = progress.Bar(
            "preprocessing", len(kept) + len(planned.todo), "images", len(kept), lines_every=10
        )
        results = convert_all(args, target, planned.todo)
        try:
            with bar, contextlib.closing(results):
                for finished in results:
                    drafts = list(map(draft_of, finished))
                    writer.publish(drafts)
                    for draft in drafts:
                        if "error" in draft.notes:
                            found_bad[draft.key] = draft.notes["error"]
                            if draft.key in spared:  # the .bin of what the image was before
                                os.unlink(os.path.join(args.dst, spared[draft.key]))
                    bar.advance(len(finished))
        finally:
            files.remove_parts(args.dst, expected)  # of workers that were ended
        earlier = seconds_taken(before) if kept else 0.0
        writer.finish(seconds=round(earlier + time.monotonic() - started, 3))
    return found_bad


# ---- the report ----------------------------------------------------------------------------------


def list_bad(bad: Dict[str, str]) -> None:
    """Say on stderr which images were left out."""
    for source, why in sorted(bad.items())[:LISTED]:
        print(f"bad image {shown(source)}: {why}", file=sys.stderr)
    if len(bad) > LISTED:
        more = counted(len(bad) - LISTED, "more bad image")
        print(f"... and {more}, all in {MANIFEST}", file=sys.stderr)


def print_labels(folder: str, sources: Sources, order: str) -> None:
    """Print where the labels come from, if the folder has labels.

    order: of the class folders, one of names.CLASS_ORDERS.
    """
    if sources.labels is None:
        return
    origin, count = "--class-map", len(sources.class_folders)
    if count:
        origin = f"{counted(count, 'class folder')}, 0 to {count - 1} by their order"
    print(f"labels from {origin}, in {shown(os.path.join(folder, LABELS))}")
    note = note_on_order(sources.class_folders, order)
    if note:
        print(f"note: {note}")


def print_clipped(folder: str) -> None:
    """Print how many images of the folder lost their content, see prepared.Clipped."""
    counts = Counter(prepared.read(folder).clipped.values())
    rows = [{**clipped._asdict(), "images": count} for clipped, count in sorted(counts.items())]
    for sentence in prepared.describe_clipped(rows):
        print(f"note: {sentence}")


def print_counts(folder: str, kept: int, made: int, bad: int, seconds: float) -> None:
    """Print how many images there are: of earlier runs, of this run, and bad ones."""
    line = f"{counted(kept + made, 'image')} in {shown(folder)}"
    if kept:
        line += f" ({kept} already there)"
    if bad:
        line += f", {counted(bad, 'bad image')} left out"
    if made:
        line += f": {made} made in {seconds:.1f} s, {made / seconds:.1f} images/s"
    print(line)


def main() -> int:
    args = parse_arguments()
    started = time.monotonic()
    how = choose_evaluation(args)
    check_folders(args.src, args.dst)
    sources = find_sources(args)
    exists = os.path.isdir(args.dst)
    if exists:
        files.hold(args.dst)
    target = describe_target(args, how, sources)
    before = prepared.open_record(args.dst)
    before.refuse_others([*files_there(args.dst), *target.beside])
    planned = plan(args, target, sources, before)
    needed = files.occupied([target.bin_size] * len(planned.todo)) - planned.stale
    files.check_space(args.dst, needed, "choose a DST on another disk")

    bad = dict(sources.bad)
    try:
        if not exists:
            files.make_folder(args.dst, "DST")
            files.hold(args.dst)
        if not is_done(before, target, planned, bad):
            bad.update(carry_out(args, target, planned, before, bad))
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        advice = "free some space" if full else "fix that"
        raise Refusal(
            f"cannot write to {shown(args.dst)}: {error.strerror}; {advice} and {GOES_ON}"
        ) from None

    kept, made = len(planned.kept), sum(job.source not in bad for job in planned.todo)
    list_bad(bad)
    if sources.others:
        print(describe_others(sources.others))
    print_labels(args.dst, sources, class_order(args))
    print_clipped(args.dst)
    print_counts(args.dst, kept, made, len(bad), time.monotonic() - started)
    accepted = args.skip_bad and kept + made > 0
    if not bad or accepted:
        return 0
    if not args.skip_bad:
        print("to go on without the bad images, add --skip-bad", file=sys.stderr)
    return 1


if __name__ == "__main__":
    cli.run(main, GOES_ON)
