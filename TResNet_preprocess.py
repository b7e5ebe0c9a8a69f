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
import re
import sys
import time
import warnings
from typing import Callable, Dict, List, NamedTuple, Tuple

sys.path.insert(0, os.path.join(os.path.dirname(os.path.realpath(__file__)), "scripts"))
from common import cli, evaluation, files, manifest, progress, record
from common.cli import Refusal, shown, some
from common.evaluation import AIPP, Evaluation
from common.images import class_folders, find_images
from common.inputs import checksum
from common.journal import Journal, Row
from common.labels import class_labels
from common.manifest import LABELS, MANIFEST, WHOLE
from common.names import INPUT_SUFFIXES, SUFFIXES, name_bins
from common.pixels import BYTES, convert_file, fast_path, reason
from common.workers import run_workers

TIMEOUT = 60.0  # seconds for one image
AHEAD = 60 * 10**9  # ns; a .bin from further in the future would always be younger than its result
BESIDE = (LABELS, AIPP)  # what DST may hold beside the .bin files and the manifest
LISTED = 20  # bad images that are listed on stderr
GOES_ON = "run the same command again, it goes on from here"

# An image's path below SRC, the stem of its .bin, and its row of the manifest if the .bin is whole, the image touched.
Job = Tuple[str, str, Row]


class Plan(NamedTuple):
    """What is to be done in DST."""
    todo: List[Job]
    kept: List[Row]  # of the manifest of earlier runs, for images that are done,
    synced: int  # the first so many of which the disk has for certain
    seconds: float  # that the earlier runs took
    stale: Dict[str, int]  # files of ours that go, and their sizes in bytes


# ---- before anything is written --------------------------------------------------------------------------------------

def parse_arguments() -> argparse.Namespace:
    parser = cli.parser(__doc__)
    add = parser.add_argument
    add("src", metavar="SRC", type=cli.path, help="folder of images, or of class folders of images")
    add("dst", metavar="DST", type=cli.path, help="folder for the .bin files; made if need be")
    add("-j", "--workers", type=cli.whole(1, 4096), metavar="N", default=len(os.sched_getaffinity(0)),
        help="processes (default: one for each core, here %(default)s)")
    evaluation.add_options(parser, cli.whole(1, 4096))
    add("--model", metavar="FILE.onnx", type=cli.path,
        help="take from this model's record what its checkpoint says of the six above")
    add("--dtype", choices=sorted(BYTES), default="float32",
        help="float32 CHW, or uint8 HWC for a model with AIPP (default: %(default)s)")
    add("--skip-bad", action="store_true", help="bad images are a warning, not a failure")
    add("--force", action="store_true", help="make every .bin anew, finished or not")
    add("--shard", type=cli.shard, default=WHOLE, metavar="I/N",
        help="only every N-th image, from the I-th on (default: all of them)")
    add("--class-map", metavar="FILE", type=cli.path,
        help="`CLASS_FOLDER INT` lines, or one class folder a line (default: folders in natural order)")
    add("--timeout", type=cli.real(0, 1e6, above=True), metavar="SECONDS", default=TIMEOUT,
        help="an image that takes longer is bad (default: %(default)s)")
    return parser.parse_args()


def choose_evaluation(args: argparse.Namespace) -> Evaluation:
    """What the options say, else what the checkpoint of --model says, else timm's figures; contradictions are told."""
    said, who = {}, ""
    if args.model:
        notes = record.notes(args.model)
        if "evaluation" not in notes:
            raise Refusal(f"{shown(args.model)} has no record of TResNet_pth2onnx.py that tells what its checkpoint "
                          "says of the evaluation; export it again, or leave out --model and give the options")
        said, who = evaluation.from_json(notes["evaluation"]), f"the checkpoint of {shown(args.model)}"
    chosen, contradictions = evaluation.resolve(evaluation.given(args), said, who)
    for sentence in contradictions:
        print(f"note: {sentence}")
    if args.model or chosen != evaluation.DEFAULT._replace(img_size=chosen.img_size):
        print(f"evaluation: {evaluation.describe(chosen)}")
    return chosen


def check_folders(source: str, target: str) -> None:
    """Refuse a SRC and DST that cannot be meant."""
    if not os.path.isdir(source):
        raise Refusal(f"SRC must be a folder of images, but {shown(source)} "
                      + ("is not a folder" if os.path.lexists(source) else "does not exist"))
    real_source, real_target = os.path.realpath(source), os.path.realpath(target)
    if real_source == real_target:
        raise Refusal(f"SRC and DST are the same folder, {shown(source)}; give DST a folder of its own")
    for inner, outer, text in ((real_target, real_source, "DST is inside SRC"),
                               (real_source, real_target, "SRC is inside DST")):
        if os.path.commonpath([inner, outer]) == outer:
            raise Refusal(f"{text} ({shown(inner)} in {shown(outer)}); give DST a folder of its own")
    existing = files.existing_part(real_target)
    if not os.path.isdir(existing):
        raise Refusal(f"DST cannot be a folder: {shown(existing)} is a file")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise Refusal(f"DST cannot be written: {shown(existing)} is read-only for this user")


def files_there(folder: str) -> Dict[str, files.Stamp]:
    """{name: its stamp} of what a later step would read from the folder, by whomever it was made."""
    with contextlib.suppress(FileNotFoundError), os.scandir(folder) as listing:
        return {entry.name: files.stamp(entry.stat(follow_symlinks=False)) for entry in listing
                if entry.name.lower().endswith(INPUT_SUFFIXES) or entry.name in BESIDE}
    return {}


def plan(args: argparse.Namespace, recipe: Row, images: Dict[str, files.Stamp], stems: Dict[str, str],
         beside: Dict[str, bytes]) -> Plan:
    """What is to be made, and what an earlier run made that still holds.

    images: {source: its stamp}; stems: {source: stem of its .bin}; beside: {name: content} of what this run writes
    beside the .bin files.
    Raises: Refusal if there are files in DST that are not ours, or that were made with other settings.
    """
    header, rows, synced, trusted = manifest.read(args.dst)
    there, bins = files_there(args.dst), {source: stem + ".bin" for source, stem in stems.items()}
    ours = manifest.owned(rows) | set(bins.values()) if header else set()
    ours |= ({LABELS} if header.get("labels") else set()) | ({AIPP} if header.get("dtype") == "uint8" else set())
    foreign = [name for name in there if name not in ours and (name in beside or name not in BESIDE)]
    if not header and os.path.lexists(os.path.join(args.dst, MANIFEST)):
        foreign.append(MANIFEST)
    if foreign:
        raise Refusal(f"{shown(args.dst)} holds files that this program did not make or cannot account for "
                      f"({some(foreign, 5)}); move them away or choose another DST")
    rows = [] if made_anew(args, header, recipe, rows) else rows
    last = {row["source"]: index for index, row in enumerate(rows)
            if "bin" in row and row["bin"] == bins.get(row["source"])}
    whole = {}  # {source: its row} where the .bin is what it was when it was made
    for source in last.keys() & images.keys():
        row = rows[last[source]]
        found = there.get(row["bin"], (0, 0, 0))
        if found[0] == bin_size(args) and found[1] < time.time_ns() + AHEAD and (
                last[source] < trusted and found[1:] == (row.get("bin_mtime_ns"), row.get("bin_ctime_ns"))
                or checksum_of(os.path.join(args.dst, row["bin"])) == row.get("checksum")):
            whole[source] = dict(row, bin_mtime_ns=found[1], bin_ctime_ns=found[2])
    done = {source for source, row in whole.items()
            if images[source] == (row.get("size"), row.get("mtime_ns"), row.get("ctime_ns"))}
    keep = {row["bin"] for row in whole.values()} | set(beside)
    return Plan([(source, stems[source], whole.get(source, {})) for source in images if source not in done],
                [whole[source] for source in sorted(done, key=last.__getitem__)],
                sum(last[source] < synced or last[source] >= trusted for source in done), manifest.seconds_taken(rows),
                {name: stamp[0] for name, stamp in there.items() if name in ours and name not in keep})


def made_anew(args: argparse.Namespace, header: Row, recipe: Row, rows: List[Row]) -> bool:
    """Whether nothing in DST can be kept. Raises: Refusal if only other settings are the reason, without --force."""
    if args.force or not header:
        return args.force
    settings, program = manifest.differences(header, recipe)
    count, seconds = len({row["bin"] for row in rows if "bin" in row}), manifest.seconds_taken(rows)
    took = f"{count} images" + (f", which took {seconds:.0f} s" if seconds >= 0.5 else "")
    if settings and count:
        raise Refusal(f"{shown(args.dst)} holds {took}, made with other settings: {', '.join(settings)}; to keep them, "
                      "name another DST; --force makes all of them anew")
    if settings or program:
        print(f"everything is made anew ({took}): {', '.join(settings + program)}", file=sys.stderr)
    return bool(settings or program)


def checksum_of(path: str) -> str:
    """The checksum of a .bin; "" if it cannot be read."""
    with contextlib.suppress(OSError), open(path, "rb") as file:
        return checksum(file.read())
    return ""


def bin_size(args: argparse.Namespace) -> int:
    """Bytes of every .bin."""
    return 3 * args.evaluation.img_size ** 2 * BYTES[args.dtype]


# ---- the work --------------------------------------------------------------------------------------------------------

def make_work(args: argparse.Namespace) -> Callable[[Job], Row]:
    """The function that a worker does for each job: write the .bin, return its row of the manifest."""
    warnings.simplefilter("ignore")  # doubtful metadata is no news for someone who wants the pixels
    logging.getLogger("PIL").setLevel(logging.CRITICAL)
    fast = None
    try:
        fast = fast_path(args.evaluation, args.dtype)
    except RuntimeError as error:
        print(f"note: the fast path is not used, Pillow does it all: {error}", file=sys.stderr)

    def work(job: Job) -> Row:
        source, stem, whole = job
        try:
            data, status = convert_file(os.path.join(args.src, source), args.evaluation, args.dtype, fast)
        except Exception as error:  # Pillow raises a dozen kinds for broken files, SyntaxError among them
            if whole:
                os.unlink(os.path.join(args.dst, stem + ".bin"))
            return {"source": source, "error": reason(error)}
        row = {"bin": stem + ".bin", "source": source, "size": status.st_size, "mtime_ns": status.st_mtime_ns,
               "ctime_ns": status.st_ctime_ns, "checksum": checksum(data)}
        if whole.get("checksum") == row["checksum"]:  # the same image as before: its .bin, and its result, may stay
            return dict(whole, **row)
        try:
            _, written, changed = files.write_whole(os.path.join(args.dst, stem + ".bin"), data)
        except OSError as error:
            return {"source": source, "write_error": error.errno}
        return dict(row, bin_mtime_ns=written, bin_ctime_ns=changed)

    return work


def process(args: argparse.Namespace, todo: List[Job], bad: Dict[str, str], journal: Journal, kept: int) -> None:
    """Make the .bin of every job and note it in the manifest; bad images are added to `bad`."""
    def lost(job: Job, why: str) -> Row:
        with contextlib.suppress(FileNotFoundError):  # it may have been finished, but nobody can tell
            os.unlink(os.path.join(args.dst, job[1] + ".bin"))
        return {"source": job[0], "error": why}

    bar = progress.Bar("preprocessing", kept + len(todo), "images", kept, lines_every=10)
    results = run_workers(todo, make_work(args), min(args.workers, len(todo)), args.timeout, lost)
    with bar, contextlib.closing(results):
        for rows in results:
            for row in rows:
                if "write_error" in row:
                    raise OSError(row["write_error"], os.strerror(row["write_error"]))
                if "error" in row:
                    bad[row["source"]] = row["error"]
            journal.add(rows)
            bar.advance(len(rows))


def carry_out(args: argparse.Namespace, task: Plan, header: Row, beside: Dict[str, bytes], bad: Dict[str, str]
              ) -> None:
    """Bring DST, which this run holds, to what was planned. Raises: OSError."""
    parts = "|".join([r".*\.bin", *map(re.escape, (MANIFEST, *BESIDE))])
    files.remove_parts(args.dst, parts)
    expected = {job[1] + ".bin" for job in task.todo} | {row["bin"] for row in task.kept}
    expected |= set(task.stale) - set(BESIDE)
    started = time.monotonic()
    with contextlib.closing(manifest.begin(args.dst, header, expected, bad, task.kept, task.synced,
                                           task.seconds)) as journal:
        for name in task.stale:
            os.unlink(os.path.join(args.dst, name))
        for name, content in beside.items():
            files.write_whole(os.path.join(args.dst, name), content)
        try:
            if task.todo:
                process(args, task.todo, bad, journal, len(task.kept))
                journal.add([{"seconds": round(task.seconds + time.monotonic() - started, 3)}])
        finally:
            files.remove_parts(args.dst, parts)  # a worker that was ended may have left one
        journal.finish()


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
        raise Refusal(f"no images in {shown(args.src)}: no file there ends in {', '.join(SUFFIXES)}")
    stems = name_bins(source for source in [*images, *bad] if source.lower().endswith(SUFFIXES))
    labels = class_labels(args.src, images, stems, args.class_map)

    mine = set(sorted([*images, *bad])[args.shard[0] - 1::args.shard[1]])  # names and numbers are those of the whole
    images, bad = ({source: value for source, value in found.items() if source in mine} for found in (images, bad))
    if not mine:
        raise Refusal(f"shard {args.shard[0]} of {args.shard[1]} of {shown(args.src)} has no image; take fewer shards")
    folders = class_folders(args.src) if labels is not None and not args.class_map else []  # numbered by their order
    exists = os.path.isdir(args.dst)
    if exists:
        files.hold(args.dst)
    recipe = manifest.recipe(__file__, **evaluation.to_json(args.evaluation._asdict()), dtype=args.dtype,
                             source=os.path.abspath(args.src), shard=args.shard)
    beside = {LABELS: labels} if labels is not None else {}
    beside.update({AIPP: evaluation.aipp(args.evaluation)} if args.dtype == "uint8" else {})
    task = plan(args, recipe, images, stems, beside)
    todo, kept = task.todo, task.kept
    files.check_space(args.dst, files.occupied([bin_size(args)] * len(todo)) - sum(task.stale.values()),
                      "choose a DST on another disk")
    try:
        if not exists:
            files.make_folder(args.dst, "DST")
            files.hold(args.dst)
        header = dict(recipe, given=sorted(evaluation.given(args)), labels=labels is not None, class_folders=folders)
        carry_out(args, task, header, beside, bad)
    except OSError as error:
        advice = "make room" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "put that right"
        raise Refusal(f"cannot write to {shown(args.dst)}: {error.strerror}; {advice} and {GOES_ON}") from None

    seconds = time.monotonic() - started
    made = len(todo) - sum(job[0] in bad for job in todo)
    list_bad(bad)
    if labels is not None:
        numbered = f"{len(folders)} class folders, 0 to {len(folders) - 1} by their order" if folders else "--class-map"
        print(f"labels from {numbered}, in {shown(os.path.join(args.dst, LABELS))}")
    print(f"{made + len(kept)} images in {shown(args.dst)}"
          + (f" ({len(kept)} were there already)" if kept else "") + (f", {len(bad)} bad ones left out" if bad else "")
          + f": {made} made in {seconds:.1f} s, {made / seconds:.1f} images/s")
    return 1 if bad and not (args.skip_bad and made + len(kept)) else 0


if __name__ == "__main__":
    cli.run(main, GOES_ON)
