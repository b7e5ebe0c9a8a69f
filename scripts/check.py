#!/usr/bin/env python3
"""Say what is there and what is missing for each backend, with the command that mends it.

    python3 scripts/check.py          # the table; exit status 0 only if the chosen backend can run
    python3 scripts/check.py --data ./ImageNet --backend ascend

pipeline.sh asks the same questions before it starts. Runs in the host's own Python (3.7 or newer,
standard library only), because ais_bench lives there too.
"""

import argparse
import contextlib
import os
import shutil
from typing import Dict, List, NamedTuple, Optional, Tuple

from common.core import cli

if __name__ == "__main__":
    cli.start()  # before what may be missing

from common.ascend import chips, host
from common.core import environment, files, options
from common.core.cli import ROOT, Refusal, shown, some
from common.core.names import SUFFIXES, name_bins
from common.data import dataset, evaluation, prepared
from common.data.images import class_folders, find_images
from common.data.labels import (
    Label,
    check_folders,
    class_labels,
    is_real,
    label_offset,
    match_labels,
    read_class_map,
    read_label_file,
)

VALUE_BYTES = {False: 4, True: 1}  # of a .bin: float32, or uint8 for --uint8
MODEL_BYTES = 130_000_000  # a TResNet-M as .onnx or .om, and the sample data; an XL has 320 MB
CLASS_FOLDERS = ("folders", "wnids", "v2")  # of dataset.Form.labels
ARCHIVED_IMAGE = 100_000  # bytes: ImageNet's validation images have 134,000 on average
RESULT_BYTES = 12_000  # of one image's result, as text of 1,000 classes


CHIPS, ATC, BENCH = "chips", "atc", "ais_bench"  # codes of what auto asks for


class Row(NamedTuple):
    """One line of the table."""

    backend: str  # who needs it: both, ascend, cpu, or "" for advice that stops nothing
    item: str
    good: bool
    found: str
    mend: str = ""
    code: str = ""  # of what auto asks for: which it is, or the problem with it
    fact: str = ""  # what was found, in short


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options that decide what is needed; pipeline.sh has them too."""
    options.add(
        parser,
        "data",
        "labels",
        "multi_label",
        "checkpoint",
        "class_map",
        "label_offset",
        "img_size",
        *options.EVALUATION,
        "uint8",
        "workdir",
        "backend",
        "devices",
        "shard",
        "soc_version",
        "batch_sizes",
        help={
            "labels": "other labels than those found with the data: lines NAME INT, or "
            "ReaL's real.json"
        },
    )


# ---- the machine ---------------------------------------------------------------------------------


def chips_row(soc: str, device: Optional[List[int]]) -> Row:
    """Which chips a run would take. soc, device: what --soc-version and --device say."""
    try:
        devices, name = chips.choose_devices(device, soc)
    except chips.ChipProblem as problem:
        mend = "the chips and their numbers: python3 scripts/npu_info.py --json"
        if problem.code == chips.UNANSWERED:
            mend = "install the driver and firmware of the card, then: npu-smi info"
        return Row(
            "ascend", "NPU (npu-smi)", False, problem.sentence, mend, problem.code, problem.fact
        )
    found = soc or chips.soc_version(name)
    if len(devices) > 1:
        found += f", devices {','.join(map(str, devices))}"
    return Row("ascend", "NPU (npu-smi)", True, found, "", CHIPS, found)


def python_row() -> Row:
    """The host's python3, in which atc compiles operators."""
    virtual = host.virtual_python()
    lacking, mend = host.atc_problem()
    state = ", which has what atc needs"
    if virtual:
        state, mend = ", a virtual environment's, in which atc fails", "deactivate"
    elif lacking:
        state = f": {lacking}"
    version = host.host_facts().get("python", "unknown")
    found = f"{shutil.which('python3') or 'none on the PATH'}, Python {version}{state}"
    return Row("ascend", "host's python3", not (virtual or lacking), found, mend)


def ascend_rows(soc: str, device: Optional[List[int]]) -> List[Row]:
    """What the ascend backend needs of the machine."""
    facts, atc, has = host.host_facts(), shutil.which("atc"), host.host_versions()
    source = f"source {shown(host.set_env() or host.SET_ENV)}"
    rows = [
        chips_row(soc, device),
        Row("ascend", "atc", bool(atc), atc or "not on the PATH", source, ATC),
        python_row(),
    ]
    rows += [
        Row("", item, bool(has[item]), has[item] or "no version found")
        for item in ("driver", "CANN")
    ]
    for item, code in (("ais_bench", BENCH), ("aclruntime", "")):
        error = facts.get("errors", {}).get(item, "")
        rows.append(bench_row(item, code, has[item], error, source))
    return rows


def bench_row(item: str, code: str, version: str, error: str, source: str) -> Row:
    """ais_bench or aclruntime, imported by the host's python3."""
    install = f"pip3 install the {item} wheel of Ascend's tools for this Python, then: {source}"
    found = version
    if not version:
        found = f"python3 cannot import it ({error or 'there is no python3'})"
    if "'ais_bench.infer'" in error:
        found = (
            "python3 has another package of that name, without ais_bench.infer: an LLM benchmark"
        )
        install = f"pip3 uninstall ais_bench && {install}"
    return Row("ascend", item, bool(version), found, install, code)


def python_rows() -> List[Row]:
    wanted = [environment.REQUIREMENTS]
    there = environment.finished(wanted) or environment.satisfied(wanted)
    timm = all(
        os.path.exists(os.path.join(ROOT, "pytorch-image-models", name))
        for name in (".patched-with", "timm/models/tresnet.py")
    )
    return [
        Row(
            "",
            "Python packages",
            there,
            "all there"
            if there
            else f"the first run makes .venv and downloads {environment.coming()}",
            "python3 scripts/setup_env.py",
        ),
        Row(
            "",
            "timm v0.4.5",
            timm,
            "patched" if timm else "the first run fetches it",
            "python3 scripts/timm_source.py",
        ),
    ]


# ---- the data ------------------------------------------------------------------------------------


class Data(NamedTuple):
    """Where the images, their labels and the checkpoint are."""

    given: argparse.Namespace  # the options
    folder: str  # the data set
    form: Optional[dataset.Form]  # None: the sample, or no known form, which check_images() tells
    unpacked: str  # what prepare_data.py makes of forms that need it
    images: str
    labels: str
    checkpoint: str
    prepared: str = ""
    sources: Dict[str, files.Stamp] = {}  # the images, as far as they are there already

    @property
    def is_sample(self) -> bool:
        return not self.given.data

    @property
    def packed(self) -> bool:
        """Whether the images are in archives or Parquet files."""
        return bool(self.form and self.form.images != "folder")

    @property
    def to_prepare(self) -> bool:
        """Whether prepare_data.py has to make images or labels of the data first."""
        if not self.form or self.form.native or (self.given.labels and not self.packed):
            return False
        return not (self.given.class_map and self.form.labels in CLASS_FOLDERS)

    @property
    def from_folders(self) -> bool:
        """Whether the labels are the class folders' numbers, which preprocessing gives them."""
        numbered = self.form and self.form.labels in CLASS_FOLDERS
        return bool(numbered and not self.given.labels and not self.to_prepare)

    @property
    def workdir_is_inside(self) -> bool:
        """Whether the work folder lies among the images."""
        workdir, images = map(os.path.realpath, (self.given.workdir, self.images))
        return os.path.commonpath([workdir, images]) == images


def locate(given: argparse.Namespace) -> Data:
    """Where everything is that the options name, as far as it can be told before the first step."""
    folder, form = given.data or os.path.join(given.workdir, "sample"), None
    if given.data:
        with contextlib.suppress(Refusal):
            form = dataset.find(folder)
    beside = dataset.folder_of(folder) if given.data else folder  # the sample is not made yet
    data = Data(
        given,
        folder,
        form,
        unpacked=os.path.join(given.workdir, "data"),
        images=form.path if form else os.path.join(folder, "val_union"),
        labels=os.path.join(folder, "val_label.txt"),
        checkpoint=given.checkpoint or os.path.join(beside, "model_best.pth.tar"),
    )
    if data.to_prepare:
        data = data._replace(labels=os.path.join(data.unpacked, "val_label.txt"))
        if data.packed:
            data = data._replace(images=os.path.join(data.unpacked, "val_union"))
    if given.labels:
        data = data._replace(labels=given.labels)
    if form and not data.packed and not data.workdir_is_inside:
        data = data._replace(sources=find_images(data.images)[0])
    return choose_prepared(data)


def choose_prepared(data: Data) -> Data:
    """The same with its prepared folder: again after the export, which knows the checkpoint."""
    given, chosen = data.given, evaluation.DEFAULT
    model = os.path.join(given.workdir, "tresnet.onnx")
    exported = evaluation.of_record(model) or evaluation.of_fields({})
    with contextlib.suppress(Refusal):  # the preprocessing says it
        chosen, _ = evaluation.resolve(evaluation.given(given), exported, "")
    settings = dict(
        evaluation.to_json(chosen._asdict()),
        shard=given.shard,
        dtype="uint8" if given.uint8 else "float32",
        source=os.path.abspath(data.images),
    )
    folder = prepared.place_for(given.workdir, settings)
    if data.from_folders:  # preprocessing writes their labels
        return data._replace(prepared=folder, labels=os.path.join(folder, prepared.LABELS))
    return data._replace(prepared=folder)


def check_images(data: Data) -> str:
    """What is known of the images.

    Raises: Refusal if there are none, or the work folder is among them.
    """
    form = dataset.find(data.folder)
    if data.packed:
        return dataset.describe(form)
    if data.workdir_is_inside:
        raise Refusal(
            f"the work folder {shown(data.given.workdir)} is inside "
            f"{shown(data.images)}; name another by --workdir"
        )
    if not data.sources:
        raise Refusal(
            f"there are no images in {shown(data.images)}: no file there ends in "
            f"{', '.join(SUFFIXES)}"
        )
    return f"{len(data.sources)} in {shown(data.images)}"


def archive_bytes(data: Data) -> int:
    if not data.form or not data.packed:
        return 0
    return sum(map(os.path.getsize, data.form.files or [data.form.path]))


def number_of_images(data: Data) -> int:
    """How many there are, at most, before an archive is opened."""
    return -(-archive_bytes(data) // ARCHIVED_IMAGE) or len(data.sources) or 20


def check_labels(data: Data) -> str:
    """Where the labels come from.

    Raises: Refusal if an image has none, as far as the images are there already.
    """
    class_map = data.given.class_map
    if class_map and not data.from_folders:
        if not data.sources:
            raise Refusal(
                "--class-map is for images in class folders, and there are none here; leave it out"
            )
        class_labels(data.images, data.sources, name_bins(data.sources), class_map)
    if data.given.labels or not data.to_prepare:
        return check_lines(data)
    return dataset.describe(dataset.find(data.folder))


def check_lines(data: Data) -> str:
    """That each image has a label, as far as the images are there already."""
    if data.packed or data.is_sample:
        return f"{len(read_labels(data))} in {shown(data.labels)}"
    if not data.sources:
        raise Refusal("there are no images that they could belong to")
    stems = name_bins(data.sources)
    if data.from_folders:
        text = class_labels(data.images, data.sources, stems, data.given.class_map)
        if text is None:
            expected = os.path.join(data.folder, "val_label.txt")
            raise Refusal(
                f"there is no {shown(expected)}, and the images do not all lie in class "
                "folders, which would be numbered"
            )
        return f"from the {len(class_folders(data.images))} class folders"
    labels = read_labels(data)
    match_labels({stem: source for source, stem in stems.items()}, labels, data.labels)
    return f"{len(labels)} in {shown(data.labels)}"


def has_several_classes(data: Data) -> bool:
    """Whether an image may have several right classes."""
    return bool(data.given.multi_label or is_real(data.labels))


def read_labels(data: Data) -> List[Label]:
    """The labels file's content."""
    return read_label_file(data.labels, data.given.multi_label)


def check_checkpoint(data: Data) -> str:
    if not os.path.isfile(evaluation.weights_file(data.checkpoint)):
        raise Refusal(f"the checkpoint {shown(data.checkpoint)} is not there")
    return data.checkpoint


def img_size(data: Data) -> int:
    """Pixels, as far as it is known before the checkpoint is read: from options or config.json."""
    with contextlib.suppress(Refusal):
        config = evaluation.read_config(evaluation.weights_file(data.checkpoint))
        said = evaluation.of_fields(evaluation.of_config(config))
        return evaluation.resolve(evaluation.given(data.given), said, "")[0].img_size
    return evaluation.DEFAULT.img_size


def check_classes(data: Data, classes: int) -> None:
    """Before inference: labels must be classes of the network.

    Class folders without a map must be all of its classes. Raises: Refusal.
    """
    given = data.given
    if data.is_sample and not given.labels:
        return
    if not data.from_folders:
        label_offset(read_labels(data), classes, data.labels, given.multi_label, given.label_offset)
    elif given.class_map:
        names, numbers = set(map(os.path.dirname, data.sources)), read_class_map(given.class_map)
        beyond = [name for name, index in numbers.items() if name in names and index >= classes]
        if beyond:
            raise Refusal(
                f"{shown(given.class_map)} gives {some(beyond)} numbers that the network "
                f"does not have: it has {classes} classes, numbered from 0"
            )
    else:
        check_folders(data.images, class_folders(data.images), classes)


def needed_room(data: Data, images: int, ascend_runs: bool) -> int:
    """Bytes that the work folder will take up, less what is there of it already."""
    given, model = data.given, MODEL_BYTES
    with contextlib.suppress(Refusal, OSError):
        model = max(model, os.path.getsize(evaluation.weights_file(data.checkpoint)))
    kinds = 2 if vars(given).get("precision") == "int8" else 1  # check.py itself has no --precision
    compiled = len(given.batch_sizes) if ascend_runs else 0
    models = 1 + kinds * (1 + compiled)  # the sample, .onnx, .om
    per_image = [3 * img_size(data) ** 2 * VALUE_BYTES[given.uint8], *[RESULT_BYTES] * kinds]
    there = 0
    for path, folders, names in os.walk(given.workdir):
        folders[:] = [
            name
            for name in folders
            if not name.startswith("prep_dataset") or os.path.join(path, name) == data.prepared
        ]  # others are of other settings
        for name in names:
            with contextlib.suppress(FileNotFoundError):  # another run may be at work there
                there += files.occupied([os.lstat(os.path.join(path, name)).st_size])
    return max(0, archive_bytes(data) + images * files.occupied(per_image) + models * model - there)


def data_rows(data: Data, ascend_runs: bool) -> List[Row]:
    """Images, labels, checkpoint, and the disk space for what will be made of them."""
    place, given = os.path.join(data.folder, "val_union"), data.given
    checks = [
        ("images", check_images, f"put the images into {shown(place)}"),
        ("labels", check_labels, "one line per image: NAME INT"),
        ("checkpoint", check_checkpoint, "name it: --checkpoint FILE"),
    ]
    rows = []
    if data.is_sample:
        rows = [
            Row(
                "both",
                "data",
                True,
                "the sample: 20 photos and a checkpoint, made by the first step",
            )
        ]
        named = {"labels": given.labels or given.class_map, "checkpoint": given.checkpoint}
        checks = [check for check in checks if named.get(check[0])]
    for item, check, mend in checks:
        try:
            rows.append(Row("both", item, True, check(data)))
        except Refusal as refusal:
            rows.append(Row("both", item, False, refusal.sentence, mend))
    images = -(-number_of_images(data) // given.shard[1])
    needed, free = needed_room(data, images, ascend_runs), files.free_space(given.workdir)
    rows.append(
        Row(
            "both",
            "disk space",
            free >= needed,
            f"{free / 1e6:,.0f} MB are free for {shown(given.workdir)}, "
            f"{needed / 1e6:,.0f} MB are needed for {images} images and the models",
            "make room, or --workdir on another disk",
        )
    )
    return rows


# ---- all of it -----------------------------------------------------------------------------------


def choose(arguments: argparse.Namespace, rows: List[Row]) -> Tuple[str, str]:
    """(backend, why): auto takes ascend if npu-smi, atc and ais_bench are all there.

    It also does if a device or a chip is named, or if there are chips of which one must be chosen:
    then what is wrong is said instead of computing for hours on the CPU.
    """
    if arguments.backend != "auto":
        return arguments.backend, "as --backend says"
    if arguments.device is not None:
        return "ascend", "a device was named"
    if arguments.soc_version:
        return "ascend", "a chip was named"
    missing = [row for row in rows if row.code and not row.good]
    if missing and [row.code for row in missing] != [chips.KINDS]:
        facts = [f"{row.item}: {row.fact or row.found}" for row in missing]
        return "cpu", "for ascend, " + "; ".join(facts)
    return "ascend", f"{rows[0].found}, atc and ais_bench are there"


def examine(arguments: argparse.Namespace, data: Data) -> Tuple[str, str, List[Row]]:
    """(backend, why it was chosen, what it needs and what there is)."""
    rows = []
    if arguments.backend != "cpu":
        rows = ascend_rows(arguments.soc_version, arguments.device)
    backend, why = choose(arguments, rows)
    wrong, mend = files.path_problem(arguments.workdir)
    unusable = files.unusable(arguments.workdir)
    if unusable:
        wrong, mend = unusable, "name another by --workdir"
    place = shown(os.path.abspath(arguments.workdir))
    rows.append(
        Row(
            "both" if unusable else "ascend",
            "work folder",
            not wrong,
            f"{place} {wrong or 'fits the rules of ais_bench'}",
            mend,
        )
    )
    return backend, why, rows + data_rows(data, backend == "ascend")


def lacks(backend: str, rows: List[Row]) -> List[Row]:
    return [row for row in rows if not row.good and row.backend in ("both", backend)]


def print_table(arguments: argparse.Namespace) -> int:
    """Print what is there and what is missing; the exit status."""
    backend, why, rows = examine(arguments, locate(arguments))
    if arguments.backend == "cpu":
        rows = ascend_rows(arguments.soc_version, arguments.device) + rows
    rows += python_rows()
    widest = max(len(row.item) for row in rows)
    for row in rows:
        state = "missing" if row.backend else "-"
        mend = f"   → {row.mend}" if row.mend else ""
        if row.good:
            state, mend = "ok", ""
        print(f"{row.backend or '-':<7}  {row.item:<{widest}}  {state:<7}  {row.found}{mend}")
    missing = lacks(backend, rows)
    outcome = f"cannot run, {len(missing)} missing" if missing else "can run"
    print(f"backend {backend} ({why}): {outcome}")
    return 1 if missing else 0


def main() -> int:
    parser = cli.parser(__doc__)
    add_options(parser)
    return print_table(options.parse(parser))


if __name__ == "__main__":
    cli.run(main)
