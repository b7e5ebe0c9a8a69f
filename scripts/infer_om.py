#!/usr/bin/env python3
"""Run a compiled model over prepared images by ais_bench, so that the result folder holds exactly their results.

    python3 scripts/infer_om.py --model tresnet_m_bs1.om --input prep_dataset --output ./ --output_dirname result
    python3 scripts/infer_om.py --model tresnet_m_bs8.om --input prep_dataset --output ./ --output_dirname result \\
        --outfmt NPY --device 0,1,2,3

In:  an .om (onnx2om.sh makes it) and every .bin and .npy of --input; ais_bench runs in the host's own python3.
Out: what ais_bench writes: OUTPUT/DIRNAME/STEM_0.txt (or .bin, .npy) and OUTPUT/DIRNAME_summary.json.
The images go to ais_bench in slices, one ais_bench for each chip. A slice that ended stays: after an interruption the
same command goes on with the others (OUTPUT/DIRNAME.record.jsonl). A chip that fails is named, and its slice goes to
the others. Afterwards there is one result for each image and nothing else; files of others are refused, not mixed in.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from typing import Any, Dict, List, NamedTuple, Tuple

from common.core import cli

if __name__ == "__main__":
    cli.start()  # before what may be missing

from common.ascend import bench, chips, host
from common.ascend.slices import Sizes
from common.core import files, options, progress, recipe, record
from common.core.cli import Refusal, shown, some
from common.core.names import om_batch, result_names
from common.core.record import Draft, Part, Piece, Recipe, Writer
from common.data import evaluation, prepared
from common.data.images import list_inputs

SUMMARY = ""  # the key of the piece that is the summary
POLL = 0.02  # s between two looks at whether an ais_bench has ended


class Slice(NamedTuple):
    """Images that an ais_bench is at work on."""

    paths: List[str]
    child: "subprocess.Popen[bytes]"
    begun: float  # s
    log: str


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


# ---- one slice -------------------------------------------------------------------------------------------------------


def lend(path: str, target: str) -> None:
    """Put an input into a slice's folder as a hard link; as a copy where ais_bench would refuse that, or none can be.

    Its later versions refuse symbolic links, and files that others can write or that are not the user's or a group's.
    """
    path = os.path.realpath(path)
    status = os.stat(path)
    if not status.st_mode & 0o022 and (
        status.st_uid == os.geteuid() or status.st_gid in os.getgroups()
    ):
        try:
            os.link(path, target)
            return
        except OSError:  # another file system, or one without hard links
            pass
    shutil.copyfile(path, target)
    os.chmod(target, 0o640)


def start(arguments: argparse.Namespace, paths: List[str], device: int, folder: str) -> Slice:
    """Start ais_bench on a slice. It runs in `folder`, which is ours alone, and gets names relative to it: its later
    versions look at the whole path, and at --output_dirname from the current folder.
    """
    inputs, outputs = f"in{device}", f"out{device}"
    for name in (inputs, outputs):
        shutil.rmtree(os.path.join(folder, name), ignore_errors=True)
    os.mkdir(os.path.join(folder, inputs), 0o750)
    for path in paths:
        lend(path, os.path.join(folder, inputs, os.path.basename(path)))
    model = os.path.relpath(os.path.realpath(arguments.model), os.path.realpath(folder))
    words = bench.command(
        model,
        bench.spelling(),
        input=inputs,
        output=".",
        output_dirname=outputs,
        outfmt=arguments.outfmt,
        device=device or None,
    )
    log = os.path.join(folder, f"device{device}.log")
    return Slice(paths, host.start_tool(words, log, cwd=folder), time.monotonic(), log)


def ends_line(path: str) -> bool:
    """Whether a text file is whole: its newline comes last."""
    with open(path, "rb") as file:
        return file.read().endswith(b"\n")


def collect(
    arguments: argparse.Namespace, work: Slice, device: int, folder: str, prefix: str
) -> Tuple[List[Part], Dict[str, Any]]:
    """The results of a slice that ended.

    Returns: the files, which are to be moved into the folder `prefix`, and the slice's summary. Raises: Refusal if
    ais_bench failed, or if there is not exactly one whole result for each image.
    """
    status = host.status_of(work.child.returncode)
    if status:
        raise Refusal(
            f"ais_bench failed with exit status {status} and said {bench.complaint(work.log)!a}"
        )
    made = os.path.join(folder, f"out{device}")
    expected = [name for path in work.paths for name in result_names(path, 1, arguments.outfmt)]
    found = set(os.listdir(made)) if os.path.isdir(made) else set()
    missing, foreign = set(expected) - found, found - set(expected)
    if missing or foreign:
        what = (
            f"{len(missing)} of {len(expected)} images have no result"
            if missing
            else (f"{len(foreign)} files are no result of any of the {len(expected)} images")
        )
        raise Refusal(
            f"{what}: {some(missing or foreign)}; ais_bench ended early, or did not do what was expected, "
            f"and said {bench.complaint(work.log)!a}"
        )
    if arguments.outfmt == "TXT":
        how, half = (
            "without a closing newline",
            [name for name in expected if not ends_line(os.path.join(made, name))],
        )
    else:
        sizes = {name: os.path.getsize(os.path.join(made, name)) for name in expected}
        whole = max([1, *sizes.values()])
        how, half = "of different sizes", [name for name in expected if sizes[name] != whole]
    if half:
        raise Refusal(f"ais_bench wrote results {how}: {some(half)}; one of them is half a file")
    try:
        summary = bench.read_summary(f"{made}_summary.json")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise Refusal(
            f"ais_bench ended well, but its summary cannot be read: {cli.why(error)}"
        ) from None
    base = os.path.basename(prefix)
    return [part_of(f"{base}/{name}", os.path.join(made, name)) for name in expected], summary


def part_of(name: str, path: str) -> Part:
    """A file that ais_bench wrote, to be moved to where the record calls it `name`. Raises: Refusal for a link."""
    checksum = files.checksum_of(path)
    if not checksum:
        raise Refusal(f"ais_bench wrote {shown(path)}, which is a link or not a regular file")
    return Part(name, path, os.lstat(path).st_size, checksum)


# ---- all of them -----------------------------------------------------------------------------------------------------


class Run:
    """All images, in slices, on all devices: what waits, what runs where, which devices failed and why."""

    def __init__(
        self,
        arguments: argparse.Namespace,
        devices: List[int],
        paths: List[str],
        states: Dict[str, record.State],
        prefix: str,
        made_by: Recipe,
        writer: Writer,
    ) -> None:
        self.arguments, self.devices, self.states = arguments, devices, states
        self.prefix, self.made_by, self.writer = prefix, made_by, writer
        self.sizes = Sizes(om_batch(arguments.model), os.path.getsize(paths[0]), arguments.slice)
        self.waiting, self.place = list(paths), {path: place for place, path in enumerate(paths)}
        self.running: Dict[int, Slice] = {}
        self.failed: Dict[int, str] = {}
        self.pieces: List[Piece] = []  # slices that ended

    def count(self, folder: str) -> int:
        """How many images have a result by now: those of the slices that ended, and what the running ones wrote."""
        running = list(self.running.items())
        written = sum(
            len(os.listdir(os.path.join(folder, f"out{device}"))) for device, _ in running
        )
        return (
            len(self.place)
            - len(self.waiting)
            - sum(len(work.paths) for _, work in running)
            + written
        )

    def hand_out(self, folder: str) -> None:
        """A slice for each device that is free, while there are images."""
        free = [
            device
            for device in self.devices
            if device not in self.running and device not in self.failed
        ]
        for number, device in enumerate(free):
            if self.waiting:
                chips = len(self.devices) - len(self.failed) if self.pieces else len(free) - number
                count = self.sizes.next(len(self.waiting), chips)
                self.running[device] = start(self.arguments, self.waiting[:count], device, folder)
                del self.waiting[:count]

    def finish(self, device: int, folder: str) -> None:
        """The ais_bench on a device has ended: its results are recorded, or its images wait for another device."""
        work = self.running.pop(device)
        cli.end_group(work.child)
        try:
            parts, summary = collect(self.arguments, work, device, folder, self.prefix)
            record.check_unchanged(self.made_by)
        except Refusal as refusal:
            self.failed[device] = refusal.sentence
            shutil.copyfile(work.log, self.log(device))
            self.waiting = sorted(self.waiting + work.paths, key=self.place.__getitem__)
            if len(self.devices) > 1:
                self.bar.erase()
                cli.say(
                    f"device {device} failed: {refusal.sentence}; the whole output: {shown(self.log(device))}; "
                    f"its {len(work.paths)} images go to the others"
                )
            return
        seconds = time.monotonic() - work.begun
        inputs = [self.states[path] for path in work.paths]
        notes = {"device": device, "times": summary["times"], "throughput": summary["throughput"]}
        self.pieces += self.writer.publish(
            [Draft(os.path.basename(work.paths[0]), inputs, parts, notes)]
        )
        self.sizes.learn(
            len(work.paths), seconds, [made.mtime_ns for made in self.pieces[-1].files]
        )
        left = len(self.waiting) + sum(len(other.paths) for other in self.running.values())
        self.bar.say(f"device {device}: {len(work.paths)} images in {seconds:.1f} s, {left} to go")

    def log(self, device: int) -> str:
        """Where the output of an ais_bench that failed is kept."""
        return f"{self.prefix}.device{device}.log"

    def all(self) -> None:
        """Raises: Refusal if images are left that no device could infer."""
        with host.run_folder(self.prefix + "-run") as folder, progress.watched(
            "inference", len(self.place), "images", lambda: self.count(folder), lines_every=10
        ) as self.bar:
            try:
                self.hand_out(folder)
                while self.running:
                    for device in [
                        device
                        for device, work in self.running.items()
                        if work.child.poll() is not None
                    ]:
                        self.finish(device, folder)
                    self.hand_out(folder)
                    time.sleep(POLL)
            finally:
                for work in self.running.values():
                    cli.end_group(work.child)
        if self.waiting:
            one = len(self.devices) == 1
            reasons = [
                reason if one else f"device {device}: {reason}"
                for device, reason in self.failed.items()
            ]
            raise Refusal(
                f"{len(self.waiting)} of {len(self.place)} images are left: {'; '.join(reasons)}; the whole "
                f"output: {shown(self.log(max(self.failed)))}; the same command goes on from here"
            )


def summarise(prefix: str, results: Dict[str, List[str]], pieces: List[Piece]) -> bytes:
    """The content of a summary as one ais_bench would have written it over all slices; throughput is one chip's."""
    import numpy as np  # here: results that are up to date do not need it

    slices = [piece.notes for piece in pieces]
    times = [time for notes in slices for time in notes["times"]]
    batch = float(
        np.mean([notes["throughput"] * np.mean(notes["times"]) / 1000 for notes in slices])
    )
    devices = sorted({notes["device"] for notes in slices})
    summary = bench.summary(
        prefix, results, times, batch, args=sys.argv, devices=devices, slices=len(slices)
    )
    return json.dumps(summary).encode()


def main() -> None:
    arguments = parse_arguments()
    if not os.path.exists(arguments.model):
        raise Refusal(f"{shown(arguments.model)} is not there; make it with scripts/onnx2om.sh")
    paths = list_inputs(arguments.input)
    devices = [0] if arguments.device is None else arguments.device or chips.choose_devices([])[0]
    evaluation.check_prepared(
        prepared.read(arguments.input),
        record.read(arguments.model).notes.get("evaluation"),
        arguments.input,
        arguments.model,
    )
    prefix = os.path.join(arguments.output, arguments.output_dirname)
    made_by = recipe.make(
        __file__,
        {"outfmt": arguments.outfmt},
        inputs=[arguments.model],
        host=host.host_versions(arguments.host_facts),
    )
    before = record.read(prefix)
    earlier = before.kept(made_by, arguments.force)
    states = {path: record.state(path) for path in paths}
    there = set(map(tuple, states.values()))
    kept = {
        key: piece
        for key, piece in earlier.items()
        if key != SUMMARY
        and piece.notes.get("device") in devices
        and there.issuperset(map(tuple, piece.inputs))
    }
    done = {tuple(state) for piece in kept.values() for state in piece.inputs}
    todo = [path for path in paths if tuple(states[path]) not in done]
    if before.finished and SUMMARY in earlier and not todo and len(earlier) == len(kept) + 1:
        print(f"{len(paths)} results in {shown(prefix)} are up to date; --force infers again")
        return
    changed = before.differences(made_by)
    if not changed and earlier and not kept:
        changed = "other device or inputs"
    if changed:
        print(f"everything is inferred again: {changed}")
    import numpy  # noqa: F401 (summarise needs it: if it is missing, that is said now and not after the inference)

    files.make_folder(arguments.output, "--output")
    names = {path: result_names(path, 1, arguments.outfmt) for path in paths}
    folder, summary_name = os.path.basename(prefix), os.path.basename(prefix) + "_summary.json"
    expected = [f"{folder}/{name}" for path in paths for name in names[path]]
    with record.begin_folder(before, made_by, [*expected, summary_name], kept.values()) as writer:
        pieces = list(kept.values())
        if todo:
            run = Run(arguments, devices, todo, states, prefix, made_by, writer)
            run.all()
            pieces += run.pieces
        summary = writer.part(summary_name, summarise(prefix, names, pieces))
        writer.publish([Draft(SUMMARY, [], [summary])])
        writer.finish()
    print(
        f"{len(paths)} results, one for each image"
        + (f" ({len(done)} were there already)" if done else "")
    )


if __name__ == "__main__":
    cli.run(main, "the same command goes on from here")
