#!/usr/bin/env python3
"""Run a compiled model over prepared images by ais_bench: exactly one result for each image.

    python3 scripts/infer_om.py --model tresnet_m_bs1.om --input prep_dataset \\
        --output ./ --output_dirname result
    python3 scripts/infer_om.py --model tresnet_m_bs8.om --input prep_dataset \\
        --output ./ --output_dirname result --outfmt NPY --device 0,1,2,3

In:  an .om (onnx2om.sh makes it) and every .bin and .npy of --input; ais_bench runs in the host's
     own python3.
Out: what ais_bench writes: OUTPUT/DIRNAME/STEM_0.txt (or .bin, .npy) and
     OUTPUT/DIRNAME_summary.json.
The images go to ais_bench in slices, one ais_bench for each chip. A slice that ended stays: after
an interruption the same command goes on with the others (OUTPUT/DIRNAME.record.jsonl). A chip that
fails is named, and its slice goes to the others. Files in the result folder that another program
wrote are refused, not mixed in.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from typing import Any, Dict, List, NamedTuple, Set, Tuple

from common.core import cli

if __name__ == "__main__":
    cli.start()  # before what may be missing

from common.ascend import atc, bench, chips, host
from common.ascend.bench import Summary
from common.ascend.slices import Sizes
from common.core import files, options, progress, recipe, record
from common.core.cli import Refusal, counted, shown, some
from common.core.names import om_batch, result_names
from common.core.record import Draft, Part, Piece, State
from common.data import evaluation
from common.data.images import list_inputs
from common.results import result_folder
from common.results.result_folder import SUMMARY, ResultFolder

NUMERIC = b"0123456789+-.eE \n" + b"naifNAIF"  # in a TXT result, also of "nan" and "inf"
POLL = 0.02  # s between two looks at whether an ais_bench has ended


class Slice(NamedTuple):
    """Images that an ais_bench is at work on."""

    device: int
    paths: List[str]
    child: "subprocess.Popen[bytes]"
    begun: float  # s
    log: str
    results: str  # path of the folder that it fills; its summary lies beside it
    watch: host.Watch


def parse_arguments() -> argparse.Namespace:
    parser = cli.parser(__doc__)
    options.add(
        parser,
        "model",
        "input",
        "output",
        "output_dirname",
        "outfmt",
        "devices",
        "slice",
        "host_facts",
        "stall",
        "force",
        required=["model", "input", "output", "output_dirname"],
        default={"outfmt": "TXT"},
        help={
            "model": "the .om file",
            "output": "folder for result folder and summary",
            "devices": "the chips to use, one ais_bench each (default: 0)",
        },
    )
    return options.parse(parser)


# ---- one slice -----------------------------------------------------------------------------------


def lend(path: str, target: str) -> None:
    """Put an input into a slice's folder: as a hard link, or as a copy where that does not work.

    Later versions of ais_bench refuse symbolic links, files that others can write, and files of
    another user and group.
    """
    path = os.path.realpath(path)
    status = os.stat(path)
    is_ours = status.st_uid == os.geteuid() or status.st_gid in os.getgroups()
    if is_ours and not status.st_mode & 0o022:
        try:
            os.link(path, target)
            return
        except OSError:  # another file system, or one without hard links
            pass
    shutil.copyfile(path, target)
    os.chmod(target, 0o640)


def start(arguments: argparse.Namespace, paths: List[str], device: int, private: str) -> Slice:
    """Start ais_bench on a slice.

    It runs in the folder `private` and gets names relative to it: its later versions check the
    whole path, and --output_dirname as seen from the current folder.
    """
    inputs, outputs = f"in{device}", f"out{device}"
    for name in (inputs, outputs):
        shutil.rmtree(os.path.join(private, name), ignore_errors=True)
    os.mkdir(os.path.join(private, inputs), 0o750)
    for path in paths:
        lend(path, os.path.join(private, inputs, os.path.basename(path)))
    command = bench.command(
        os.path.relpath(os.path.realpath(arguments.model), os.path.realpath(private)),
        bench.spelling(),
        input=inputs,
        output=".",
        output_dirname=outputs,
        outfmt=arguments.outfmt,
        device=device or None,
    )
    log = os.path.join(private, f"device{device}.log")
    child = host.start_tool(command, log, cwd=private)
    results = os.path.join(private, outputs)
    watch = host.Watch([log, results], arguments.stall)
    return Slice(device, paths, child, time.monotonic(), log, results, watch)


def ends_line(path: str) -> bool:
    """Whether a text file is whole: its newline comes last."""
    with open(path, "rb") as file:
        return file.read().endswith(b"\n")


def values_in(path: str) -> int:
    """How many numbers a TXT result has in its one line; 0 if that is not all that it has."""
    data = files.read_regular(path)
    is_plain = not data.translate(None, NUMERIC)
    return len(data.split()) if is_plain and data.count(b"\n") == 1 else 0


def check_names(work: Slice, expected: List[str]) -> None:
    """Refuse a slice without exactly one result for each image."""
    names = set(os.listdir(work.results)) if os.path.isdir(work.results) else set()
    wrong = set(expected) - names
    images = counted(len(expected), "image")
    fact = f"{len(wrong)} of {images} have no result"
    if not wrong:
        wrong = names - set(expected)
        fact = f"the results of {images} have {counted(len(wrong), 'file')} too many"
    if wrong:
        raise Refusal(
            f"{fact}: {some(wrong)}; ais_bench ended early, or did something unexpected, and said "
            f"{bench.complaint(work.log)!a}"
        )


def check_whole(work: Slice, expected: List[str], outfmt: str) -> None:
    """Refuse a slice with half a result in it."""
    paths = {name: os.path.join(work.results, name) for name in expected}
    if outfmt == "TXT":
        how = "without a closing newline"
        half = [name for name, path in paths.items() if not ends_line(path)]
        if not half:
            counts = {name: values_in(path) for name, path in paths.items()}
            most = max([1, *counts.values()])
            how = f"that are not one line of {counted(most, 'number')}"
            half = [name for name, count in counts.items() if count != most]
    else:
        sizes = {name: os.path.getsize(path) for name, path in paths.items()}
        largest = max([1, *sizes.values()])
        how = "of different sizes"
        half = [name for name, size in sizes.items() if size != largest]
    if half:
        raise Refusal(f"ais_bench wrote results {how}: {some(half)}; one of them is half a file")


def collect(work: Slice, outfmt: str, prefix: str) -> Tuple[List[Part], Summary]:
    """The results of a slice that ended, to be moved into the folder `prefix`, and its summary.

    Raises: Refusal if ais_bench failed, or if there is not exactly one whole result for each image.
    """
    status = host.status_of(work.child.returncode)
    if status:
        raise Refusal(
            f"ais_bench failed with exit status {status} and said {bench.complaint(work.log)!a}"
        )
    expected: List[str] = []
    for path in work.paths:
        expected += result_names(path, 1, outfmt)
    check_names(work, expected)
    parts = [
        part_of(result_folder.inside(prefix, name), os.path.join(work.results, name))
        for name in expected
    ]
    check_whole(work, expected, outfmt)
    try:
        summary = bench.read_summary(f"{work.results}_summary.json")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise Refusal(
            f"ais_bench ended well, but its summary cannot be read: {cli.why(error)}"
        ) from None
    return parts, summary


def part_of(name: str, path: str) -> Part:
    """A file that ais_bench wrote, to be moved to where the record calls it `name`.

    Raises: Refusal for a link.
    """
    checksum = files.checksum_of(path)
    if not checksum or os.lstat(path).st_nlink != 1:
        raise Refusal(f"ais_bench wrote {shown(path)}, which is a link or not a regular file")
    return Part(name, path, os.lstat(path).st_size, checksum)


# ---- all slices ----------------------------------------------------------------------------------


class Run:
    """Images in slices on several devices: what waits, what runs where, which devices failed."""

    def __init__(
        self,
        arguments: argparse.Namespace,
        folder: ResultFolder,
        devices: List[int],
        images: Dict[str, State],
        writer: record.Writer,
        private: str,
    ) -> None:
        """images: the state of each path; private: the folder in which each ais_bench runs."""
        self.arguments, self.folder, self.devices = arguments, folder, devices
        self.images, self.writer, self.private = images, writer, private
        self.waiting = list(images)
        first = os.path.getsize(self.waiting[0])
        self.sizes = Sizes(om_batch(arguments.model), first, arguments.slice)
        self.running: Dict[int, Slice] = {}
        self.failed: Dict[int, str] = {}  # why, for each device
        self.pieces: List[Piece] = []  # slices that ended

    def under_way(self) -> int:
        """How many images the running slices have."""
        return sum(len(work.paths) for work in list(self.running.values()))

    def done(self) -> int:
        """How many images have a result: those of ended slices, and what the running ones wrote."""
        written = sum(len(os.listdir(work.results)) for work in list(self.running.values()))
        return len(self.images) - len(self.waiting) - self.under_way() + written

    def hand_out(self) -> None:
        """Start a slice on each device that is free, while there are images."""
        busy = {*self.running, *self.failed}
        free = [device for device in self.devices if device not in busy]
        for number, device in enumerate(free):
            if not self.waiting:
                return
            sharing = len(free) - number  # so many devices share the images at the beginning
            if self.pieces:
                sharing = len(self.devices) - len(self.failed)
            count = self.sizes.next(len(self.waiting), sharing)
            paths, self.waiting = self.waiting[:count], self.waiting[count:]
            self.running[device] = start(self.arguments, paths, device, self.private)

    def finish(self, work: Slice, bar: progress.Bar) -> None:
        """An ais_bench has ended: record its results, or give its images to another device."""
        del self.running[work.device]
        cli.end_group(work.child)
        try:
            parts, summary = collect(work, self.arguments.outfmt, self.folder.prefix)
            record.check_unchanged(self.folder.recipe)
        except Refusal as refusal:
            self.give_up(work, refusal.sentence, bar)
            return
        seconds = time.monotonic() - work.begun
        states = [self.images[path] for path in work.paths]
        figures = {"times": summary.times, "throughput": summary.throughput}
        notes = {"device": work.device, **figures}
        key = os.path.basename(work.paths[0])
        (piece,) = self.writer.publish([Draft(key, states, parts, notes)])
        self.pieces.append(piece)
        self.sizes.learn(len(work.paths), seconds, [made.mtime_ns for made in piece.files])
        left = len(self.waiting) + self.under_way()
        images = counted(len(work.paths), "image")
        bar.say(f"device {work.device}: {images} in {seconds:.1f} s, {left} to go")

    def give_up(self, work: Slice, reason: str, bar: progress.Bar) -> None:
        """Leave a device that failed, and put its images back where they were in the order."""
        self.failed[work.device] = reason
        log = self.log(work.device)
        files.write_whole(log, files.read_regular(work.log))
        waiting = {*self.waiting, *work.paths}
        self.waiting = [path for path in self.images if path in waiting]
        if len(self.devices) > 1:
            bar.erase()
            images = counted(len(work.paths), "image")
            cli.say(
                f"device {work.device} failed: {reason}; the whole output: {shown(log)}; "
                f"its {images} go to the others"
            )

    def log(self, device: int) -> str:
        """Where the output of an ais_bench that failed is kept."""
        return f"{self.folder.prefix}.device{device}.log"

    def infer(self, bar: progress.Bar) -> None:
        """Infer everything. Raises: Refusal if images are left that no device could infer."""
        try:
            self.hand_out()
            while self.running:
                for work in list(self.running.values()):
                    if work.child.poll() is not None:
                        self.finish(work, bar)
                    elif work.watch.is_stalled():
                        del self.running[work.device]
                        cli.end_group(work.child)
                        self.give_up(work, work.watch.sentence("ais_bench"), bar)
                self.hand_out()
                time.sleep(POLL)
        finally:
            for work in self.running.values():
                cli.end_group(work.child)
        if self.waiting:
            reasons = [f"device {device}: {reason}" for device, reason in self.failed.items()]
            if len(self.devices) == 1:
                reasons = list(self.failed.values())
            images = counted(len(self.images), "image")
            raise Refusal(
                f"{len(self.waiting)} of {images} are left: {'; '.join(reasons)}; the whole "
                f"output: {shown(self.log(max(self.failed)))}; the same command goes on from here"
            )


def infer(
    arguments: argparse.Namespace,
    folder: ResultFolder,
    devices: List[int],
    images: Dict[str, State],
    writer: record.Writer,
) -> List[Piece]:
    """Infer images, given with their states; the slices as the record has them."""
    with host.run_folder(folder.prefix + "-run") as private:
        run = Run(arguments, folder, devices, images, writer, private)
        with progress.watched("inference", len(images), "images", run.done, lines_every=10) as bar:
            run.infer(bar)
    return run.pieces


def summarise(prefix: str, results: Dict[str, List[str]], pieces: List[Piece]) -> bytes:
    """The content of a summary as one ais_bench would have written it over all slices.

    results: {path of an input: names of its results}. The throughput is that of one chip, and only
    images that were there count: ais_bench counts what fills up the last batch as well.
    """
    times: List[float] = []
    images = 0
    for piece in pieces:
        times += piece.notes["times"]
        images += len(piece.inputs)
    devices = sorted({piece.notes["device"] for piece in pieces})
    summary = bench.summary(
        prefix,
        results,
        times,
        images / max(1, len(times)),
        args=sys.argv,
        devices=devices,
        slices=len(pieces),
    )
    return json.dumps(summary).encode()


def key_of(state: State) -> Tuple[Any, ...]:
    """A state that a set can hold."""
    return tuple(state)


def read_folder(
    arguments: argparse.Namespace, devices: List[int], images: Dict[str, State]
) -> ResultFolder:
    """What an earlier run left: it keeps the slices of these devices whose images are all there."""
    prefix = os.path.join(arguments.output, arguments.output_dirname)
    made_by = recipe.make(
        __file__,
        {"outfmt": arguments.outfmt},
        inputs=[arguments.model],
        host=host.host_versions(arguments.host_facts),
    )
    before = record.read(prefix)
    earlier = before.kept(made_by, arguments.force)
    there = set(map(key_of, images.values()))
    kept = {
        key: piece
        for key, piece in earlier.items()
        if key != SUMMARY
        and piece.notes.get("device") in devices
        and there.issuperset(map(key_of, piece.inputs))
    }
    return ResultFolder(prefix, before, made_by, earlier, kept)


def main() -> None:
    arguments = parse_arguments()
    if not os.path.exists(arguments.model):
        raise Refusal(f"{shown(arguments.model)} is not there; make it with scripts/onnx2om.sh")
    problem = atc.check_model(arguments.model)
    if problem:
        raise Refusal(f"{shown(arguments.model)} {problem}; make it with scripts/onnx2om.sh")
    paths = list_inputs(arguments.input)
    devices = [0]
    if arguments.device is not None:
        devices = arguments.device or chips.choose_devices([]).devices
    evaluation.check_prepared(arguments.model, arguments.input)
    images = {path: record.state(path) for path in paths}
    folder = read_folder(arguments, devices, images)
    done: Set[Tuple[Any, ...]] = set()
    for piece in folder.kept.values():
        done.update(map(key_of, piece.inputs))
    todo = {path: state for path, state in images.items() if key_of(state) not in done}
    if not todo and folder.is_complete():
        folder.say_up_to_date(len(paths))
        return
    changed = folder.before.differences(folder.recipe)
    if not changed and folder.earlier and not folder.kept:
        changed = "other device or inputs"
    if changed:
        print(f"everything is inferred again: {changed}")
    # summarise() needs it: if it is missing, say so now and not after the inference
    import numpy  # noqa: F401

    files.make_folder(arguments.output, "--output")
    names = {path: result_names(path, 1, arguments.outfmt) for path in paths}
    with folder.begin(names) as writer:
        pieces = list(folder.kept.values())
        if todo:
            pieces += infer(arguments, folder, devices, todo, writer)
        folder.end(writer, summarise(folder.prefix, names, pieces))
    there = f" ({result_folder.already_there(len(done))})" if done else ""
    print(f"{counted(len(paths), 'result')}, one for each image{there}")


if __name__ == "__main__":
    cli.run(main, "the same command goes on from here")
