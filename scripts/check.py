#!/usr/bin/env python3
"""List what each backend needs and what is missing, with the command that fixes it.

    python3 scripts/check.py          # the table; exit status 0 only if the chosen backend can run
    python3 scripts/check.py --data ./ImageNet --backend ascend

pipeline.sh makes the same checks before it starts. Runs in the host's own Python (3.7 or newer,
standard library only), because ais_bench is installed there.
"""

import argparse
import contextlib
import os
import shutil
from typing import Any, Callable, Dict, List, NamedTuple, Optional, Sequence, Tuple

from common.core import cli

if __name__ == "__main__":
    cli.start()  # before imports that may fail

from common.ascend import cann, chips, host
from common.core import environment, files, options
from common.core.cli import Refusal, counted, shown, some
from common.core.names import COMMON_SUFFIXES, name_bins
from common.core.places import Place
from common.data import dataset, evaluation, prepared
from common.data.images import class_folders, find_images
from common.data.labels import (
    IMAGENET_CLASSES,
    Label,
    check_folders,
    class_labels,
    is_real,
    label_offset,
    match_labels,
    read_class_map,
    read_label_file,
)

import timm_source

MODEL_BYTES = 130_000_000  # a TResNet-M as .onnx or .om, and the sample data; an XL has 320 MB
CLASS_FOLDERS = ("folders", "wnids", "v2")  # of dataset.Form.labels
ARCHIVED_IMAGE = 100_000  # bytes: ImageNet's validation images have 134,000 on average
RESULT_BYTES = 12_000  # of one image's result, as text of 1,000 classes
SAMPLE_IMAGES = 20
NO_WHEEL = (3, 13)  # the first Python for which ais_bench has no wheel
SPACE_ADVICE = "free some space, or use --workdir on another disk"

CHIP_ITEM = "NPU (npu-smi)"
LIST_CHIPS = "the chips and their numbers: python3 scripts/npu_info.py --json"
INSTALL_DRIVER = "install the driver and firmware of the card, then: npu-smi info"
CHIP_ADVICE = {  # {code of a chips.ChipProblem: what to do}
    "": LIST_CHIPS,
    chips.ABSENT: INSTALL_DRIVER,
    chips.UNANSWERED: INSTALL_DRIVER,
    chips.UNREADABLE: "--backend cpu computes without the card",
    chips.UNNAMED: "--backend cpu computes without the card",
}
CHIPS, ATC, BENCH = "chips", "atc", "ais_bench"  # codes of the rows that `--backend auto` needs


class Row(NamedTuple):
    """One line of the table."""

    backend: str  # what needs it: both, ascend, cpu; "" if a run does not stop without it
    item: str
    good: bool
    state: str  # what is there, or the problem
    advice: str = ""  # what to do if it is not good
    code: str = ""  # CHIPS, ATC, BENCH, or that of a chips.ChipProblem
    fact: str = ""  # the state in short


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options that decide what is needed; pipeline.sh has them too."""
    options.add(
        parser,
        "data",
        "labels",
        "labels_encoding",
        "multi_label",
        "checkpoint",
        "class_map",
        "class_order",
        "label_offset",
        "img_size",
        *options.EVALUATION,
        "uint8",
        "workdir",
        "venv",
        "offline",
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
    """Which chips a run would take. soc, device: the values of --soc-version and --device."""
    row = Row("ascend", CHIP_ITEM, True, "", code=CHIPS)
    try:
        choice = chips.choose_devices(device, soc)
        state = chips.named(choice.name, choice.soc)
    except chips.ChipProblem as problem:
        advice = CHIP_ADVICE.get(str(problem.code), CHIP_ADVICE[""])
        row = row._replace(good=False, state=problem.sentence, advice=advice)
        return row._replace(code=str(problem.code), fact=problem.fact)
    numbers = ",".join(map(str, choice.devices))
    renumbered = chips.renumbered(choice.devices)
    if len(choice.devices) > 1:
        state += f", devices {numbers}"
    elif renumbered:
        state += f", device {numbers}"
    if renumbered:
        state += f" ({renumbered})"
    return row._replace(state=state, fact=state)


def python_row() -> Row:
    """The host's python3, in which atc compiles operators."""
    is_virtual = host.virtual_python()
    lacking, advice = host.atc_problem()
    paper = host.atc_advice()
    fitness = ", which has all packages that atc needs"
    if is_virtual:
        fitness, advice = ", a virtual environment's, in which atc fails", "deactivate"
    elif lacking:
        fitness = f": {lacking}"
    elif paper:
        fitness += f"; {paper}"
    version = host.host_facts().get("python", "unknown")
    state = f"{shutil.which('python3') or 'none on the PATH'}, Python {version}{fitness}"
    return Row("ascend", "host's python3", not (is_virtual or lacking), state, advice)


def operators_row(soc: str) -> Row:
    """The operators of the chip that is compiled for: a package of CANN of its own."""
    operators = cann.operators(soc)
    return Row("", "operators", operators.there, operators.state, operators.advice)


def amct_row(is_needed: bool) -> Row:
    """AMCT, which only int8 needs, and the versions that its guide names."""
    amct = shutil.which("amct_onnx")
    if not amct:
        advice = "pip3 install ./amct_onnx-*.whl (CANN's package AMCT for the host's Python)"
        state = "amct_onnx is not on the PATH; only --precision int8 needs it"
        return Row("ascend" if is_needed else "", "AMCT", False, state, advice)
    paper = host.amct_advice()
    return Row("", "AMCT", True, f"{amct}; {paper}" if paper else amct)


def ascend_rows(soc: str, device: Optional[List[int]], int8: bool = False) -> List[Row]:
    """What the ascend backend needs on this machine. int8: whether the run quantises."""
    atc, versions = shutil.which("atc"), host.host_versions()
    source = cann.source()
    first = chips_row(soc, device)
    rows = [
        first,
        Row("ascend", "atc", bool(atc), atc or "not on the PATH", source, ATC),
        python_row(),
    ]
    for item in ("driver", "CANN"):
        version = versions[item]
        rows.append(Row("", item, bool(version), version or "no version found"))
    compiled_for = first.state.split(",")[0] if first.good else ""
    rows.append(operators_row(compiled_for))
    rows.append(amct_row(int8))
    errors = host.host_facts().get("errors", {})
    for item, code in (("ais_bench", BENCH), ("aclruntime", "")):
        rows.append(bench_row(item, code, versions[item], errors.get(item, ""), source))
    return rows


def bench_row(item: str, code: str, version: str, error: str, source: str) -> Row:
    """ais_bench or aclruntime, imported by the host's python3."""
    install = f"pip3 install the {item} wheel of Ascend's tools for this Python, then: {source}"
    if host.numbers(host.host_facts().get("python", ""))[:2] >= NO_WHEEL:
        install = (
            f"build {item} from the sources of Ascend's tools of 2025-12-10 or later (there is no "
            f"wheel for this Python), then: {source}"
        )
    state = version or f"python3 cannot import it ({error or 'there is no python3'})"
    if "'ais_bench.infer'" in error:
        state = (
            "python3 has another package of that name, without ais_bench.infer: an LLM benchmark"
        )
        install = f"pip3 uninstall ais_bench && {install}"
    return Row("ascend", item, bool(version), state, install, code)


def setup_rows(given: argparse.Namespace, place: Place) -> List[Row]:
    """What would keep the set-up from its work; none if it has been done or can be done."""
    problems = [
        *environment.obstacles(place, given.offline),
        *timm_source.obstacles(place),
    ]
    return [Row("both", "set-up", False, *problem) for problem in dict.fromkeys(problems)]


def packages_row(given: argparse.Namespace, place: Place) -> Row:
    """The Python packages of the steps."""
    row = Row("", "Python packages", True, "all there", "python3 scripts/setup_env.py")
    wanted = [environment.REQUIREMENTS]
    if environment.finished(place, wanted) or environment.satisfied(wanted):
        return row
    comes = environment.coming(given.offline)
    state = f"the first run makes {shown(place.venv)} and downloads {comes}"
    return row._replace(good=False, state=state)


def timm_row(place: Place) -> Row:
    """timm's patched source."""
    row = Row("", "timm v0.4.5", True, "patched", "python3 scripts/timm_source.py")
    if timm_source.is_complete(place.timm):
        return row
    return row._replace(good=False, state="the first run fetches it")


# ---- the data ------------------------------------------------------------------------------------


class Data(NamedTuple):
    """Where the images, their labels and the checkpoint are."""

    given: argparse.Namespace  # the options
    folder: str  # the data set
    form: Optional[dataset.Form]  # None: the sample, or an unknown form (see check_images)
    unpacked: str  # where prepare_data.py puts the images and labels that it makes
    images: str
    labels: str
    checkpoint: str
    prepared: str = ""
    prepares: bool = True  # whether this run makes the prepared folder, or takes what is there
    sources: Dict[str, files.Stamp] = {}  # the images, as far as they exist already

    @property
    def is_sample(self) -> bool:
        return not self.given.data

    @property
    def packed(self) -> bool:
        """Whether the images are in archives or Parquet files."""
        return bool(self.form and self.form.images != "folder")

    @property
    def to_prepare(self) -> bool:
        """Whether prepare_data.py has to make images or labels from the data first."""
        if not self.form or self.form.native:
            return False
        has_other_labels = self.given.labels and not self.packed
        numbers_folders = self.given.class_map or self.given.class_order
        has_own_numbers = numbers_folders and self.form.labels in CLASS_FOLDERS
        return not (has_other_labels or has_own_numbers)

    @property
    def from_folders(self) -> bool:
        """Whether the labels are the class folders' numbers, which preprocessing gives them."""
        has_class_folders = self.form is not None and self.form.labels in CLASS_FOLDERS
        return has_class_folders and not self.given.labels and not self.to_prepare

    @property
    def workdir_is_inside(self) -> bool:
        """Whether the work folder lies among the images."""
        workdir, images = map(os.path.realpath, (self.given.workdir, self.images))
        return os.path.commonpath([workdir, images]) == images


def locate(given: argparse.Namespace) -> Data:
    """Where everything is that the options name, as far as it is known before the first step."""
    folder = given.data or os.path.join(given.workdir, "sample")
    form, checkpoint_folder = None, folder
    if given.data:
        checkpoint_folder = dataset.folder_of(folder)
        with contextlib.suppress(Refusal):
            form = dataset.find(folder)
    data = Data(
        given,
        folder,
        form,
        unpacked=os.path.join(given.workdir, "data"),
        images=form.path if form else os.path.join(folder, "val_union"),
        labels=given.labels or os.path.join(folder, "val_label.txt"),
        checkpoint=given.checkpoint or default_checkpoint(checkpoint_folder),
    )
    if form and form.labels_file and not given.labels:
        data = data._replace(labels=form.labels_file)
    if data.to_prepare and not given.labels:
        data = data._replace(labels=os.path.join(data.unpacked, "val_label.txt"))
    if data.to_prepare and data.packed:
        data = data._replace(images=os.path.join(data.unpacked, "val_union"))
    if form and not data.packed and not data.workdir_is_inside:
        data = data._replace(sources=find_images(data.images).images)
    return choose_prepared(data)


def default_checkpoint(folder: str) -> str:
    """The checkpoint in the folder of a data set; beside it, if that is its folder of images."""
    places = [folder]
    if os.path.basename(folder) in dataset.VALIDATION_FOLDERS:
        places.append(os.path.dirname(folder))
    paths = [os.path.join(place, "model_best.pth.tar") for place in places]
    return next(filter(os.path.exists, paths), paths[0])


def choose_prepared(data: Data) -> Data:
    """The same data with their prepared folder.

    The pipeline calls it again after the export, which knows the checkpoint's evaluation.
    """
    given, chosen = data.given, evaluation.DEFAULT
    model = os.path.join(given.workdir, "tresnet.onnx")
    exported = evaluation.of_record(model) or evaluation.of_fields({})
    with contextlib.suppress(Refusal):  # the step that needs the evaluation will refuse
        chosen, _ = evaluation.resolve(evaluation.given(given), exported, "")
    settings = dict(
        evaluation.to_json(chosen._asdict()),
        shard=given.shard,
        dtype="uint8" if given.uint8 else "float32",
        source=os.path.abspath(data.images),
    )
    folder = prepared.place_for(given.workdir, settings)
    if not data.prepares and not os.path.isdir(folder):
        folder = prepared.place_of_others(given.workdir, settings) or folder
    if data.from_folders:  # preprocessing writes their labels
        return data._replace(prepared=folder, labels=os.path.join(folder, prepared.LABELS))
    return data._replace(prepared=folder)


def check_images(data: Data) -> str:
    """Describe the images.

    Raises: Refusal if there are no images, or if the work folder is among them.
    """
    form = dataset.find(data.folder)
    if data.packed:
        return dataset.describe(form)
    if data.workdir_is_inside:
        raise Refusal(
            f"the work folder {shown(data.given.workdir)} is inside "
            f"{shown(data.images)}; name another folder with --workdir"
        )
    if not data.sources:
        raise Refusal(
            f"there are no images in {shown(data.images)}: no file there ends in {COMMON_SUFFIXES}"
        )
    return f"{len(data.sources)} in {shown(data.images)}"


def archive_bytes(data: Data) -> int:
    if not data.form or not data.packed:
        return 0
    return sum(map(os.path.getsize, data.form.files or [data.form.path]))


def number_of_images(data: Data) -> int:
    """How many images there are at most, before an archive is opened."""
    return -(-archive_bytes(data) // ARCHIVED_IMAGE) or len(data.sources) or SAMPLE_IMAGES


def check_labels(data: Data) -> str:
    """Describe where the labels come from.

    Raises: Refusal if an image has no label, as far as the images exist already.
    """
    given = data.given
    if (given.class_map or given.class_order) and not data.from_folders:
        if not data.sources:
            option = "--class-map" if given.class_map else "--class-order"
            raise Refusal(
                f"{option} is for images in class folders, and these images are not in class "
                "folders; leave it out"
            )
        stems = name_bins(data.sources)
        class_labels(data.images, data.sources, stems, given.class_map, given.class_order)
    if not data.given.labels and data.to_prepare:
        return dataset.describe(dataset.find(data.folder))
    state, classes = check_lines(data), configured_classes(data)
    if classes:
        check_classes(data, classes)
    return state


def check_lines(data: Data) -> str:
    """Describe the labels. Raises: Refusal if an image that exists already has no label."""
    if data.packed or data.is_sample:
        return f"{len(read_labels(data))} in {shown(data.labels)}"
    if not data.sources:
        raise Refusal("there are no images for the labels")
    stems = name_bins(data.sources)
    if data.from_folders:
        given = data.given
        text = class_labels(data.images, data.sources, stems, given.class_map, given.class_order)
        if text is None:
            expected = os.path.join(data.folder, "val_label.txt")
            outside = [source for source in data.sources if source.count("/") != 1]
            raise Refusal(
                f"{shown(expected)} does not exist, and not all images are in class folders, "
                f"which would give them labels: {some(outside)}"
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
    return read_label_file(data.labels, data.given.multi_label, data.given.labels_encoding)


def check_checkpoint(data: Data) -> str:
    weights = evaluation.weights_file(data.checkpoint)
    if not os.path.lexists(weights):
        raise Refusal(f"the checkpoint {shown(data.checkpoint)} does not exist")
    if not os.path.isfile(weights):
        raise Refusal(f"the checkpoint {shown(data.checkpoint)} is not a regular file")
    if data.is_sample and not data.given.labels:
        classes = evaluation.read_config(weights).get("num_classes")
        if classes is not None:  # elsewhere the export knows it first
            check_sample(classes)
    return data.checkpoint


def img_size(data: Data) -> int:
    """The image size in pixels, from options or config.json: the checkpoint is not read yet."""
    with contextlib.suppress(Refusal):
        config = evaluation.read_config(evaluation.weights_file(data.checkpoint))
        configured = evaluation.of_fields(evaluation.of_config(config))
        return evaluation.resolve(evaluation.given(data.given), configured, "")[0].img_size
    return evaluation.DEFAULT.img_size


def check_sample(classes: Any) -> None:
    """Raises: Refusal if a network with so many classes cannot know the sample photos' classes."""
    if classes not in (IMAGENET_CLASSES, IMAGENET_CLASSES + 1):
        raise Refusal(
            f"the checkpoint has {classes!a} classes, but the sample photos have classes of "
            f"ImageNet's {IMAGENET_CLASSES:,}; give images of its own classes: --data DIR"
        )


def configured_classes(data: Data) -> int:
    """How many classes config.json beside the checkpoint says, before that is read; 0 if none."""
    with contextlib.suppress(Refusal):
        config = evaluation.read_config(evaluation.weights_file(data.checkpoint))
        classes = config.get("num_classes")
        return classes if isinstance(classes, int) and classes > 0 else 0
    return 0


def check_classes(data: Data, classes: int) -> None:
    """Check that labels are classes of the network; class folders without a map must be all.

    classes: how many the network has. Raises: Refusal.
    """
    given = data.given
    if data.is_sample and not given.labels:
        check_sample(classes)
        return
    if not data.from_folders:
        label_offset(read_labels(data), classes, data.labels, given.multi_label, given.label_offset)
    elif given.class_map:
        folders = set(map(os.path.dirname, data.sources))
        numbers = read_class_map(given.class_map)
        too_large = [name for name in folders if numbers.get(name, 0) >= classes]
        if too_large:
            raise Refusal(
                f"{shown(given.class_map)} gives {some(too_large)} numbers that the network "
                f"does not have: it has {classes} classes, numbered from 0"
            )
    else:
        check_folders(data.images, class_folders(data.images), classes)


def bytes_there(data: Data) -> int:
    """Bytes that products of these settings take up in the work folder already."""
    total = 0
    for folder, subfolders, names in os.walk(data.given.workdir):
        for name in list(subfolders):
            of_other_settings = os.path.join(folder, name) != data.prepared
            if name.startswith("prep_dataset") and of_other_settings:
                subfolders.remove(name)
        for name in names:
            with contextlib.suppress(FileNotFoundError):  # another run may work there
                total += files.occupied([os.lstat(os.path.join(folder, name)).st_size])
    return total


def needed_space(data: Data, images: int, on_ascend: bool) -> int:
    """Bytes that a run will add to the work folder."""
    given, model_bytes = data.given, MODEL_BYTES
    with contextlib.suppress(Refusal, OSError):
        weights = evaluation.weights_file(data.checkpoint)
        model_bytes = max(model_bytes, os.path.getsize(weights))
    precisions = 2 if is_int8(given) else 1
    compiled = len(given.batch_sizes) if on_ascend else 0
    models = 1 + precisions * (1 + compiled)  # the sample's checkpoint, .onnx, .om
    value_bytes = 1 if given.uint8 else 4
    bin_bytes = 3 * img_size(data) ** 2 * value_bytes
    image_bytes = files.occupied([bin_bytes, *[RESULT_BYTES] * precisions])
    total = archive_bytes(data) + images * image_bytes + models * model_bytes
    return max(0, total - bytes_there(data))


def data_row(item: str, check: Callable[[Data], str], data: Data, advice: str) -> Row:
    """The row of one check_…() function."""
    try:
        return Row("both", item, True, check(data))
    except Refusal as refusal:
        return Row("both", item, False, refusal.sentence, advice)


def space_row(data: Data, on_ascend: bool) -> Row:
    """The disk space for all that a run makes."""
    workdir = data.given.workdir
    images = -(-number_of_images(data) // data.given.shard[1])
    needed, free = needed_space(data, images, on_ascend), files.free_space(workdir)
    state = (
        f"{free / 1e6:,.0f} MB are free for {shown(workdir)}, {needed / 1e6:,.0f} MB are needed "
        f"for {counted(images, 'image')} and the models"
    )
    return Row("both", "disk space", free >= needed, state, SPACE_ADVICE)


def data_rows(data: Data, on_ascend: bool) -> List[Row]:
    """Images, labels, checkpoint, and disk space. The sample's are made by the first step."""
    given, rows = data.given, []
    if data.is_sample:
        sample = "the sample: 20 photos and a checkpoint, made by the first step"
        rows.append(Row("both", "data", True, sample))
    else:
        advice = "name a folder: --data DIR"
        if os.path.isdir(data.folder):
            advice = f"put the images into {shown(os.path.join(data.folder, 'val_union'))}"
        rows.append(data_row("images", check_images, data, advice))
    if not data.is_sample or given.labels or given.class_map or given.class_order:
        rows.append(data_row("labels", check_labels, data, "one line per image: NAME INT"))
    if not data.is_sample or given.checkpoint:
        advice = "name it: --checkpoint FILE"
        rows.append(data_row("checkpoint", check_checkpoint, data, advice))
    return [*rows, space_row(data, on_ascend)]


# ---- all of it -----------------------------------------------------------------------------------


def choose(
    given: argparse.Namespace, rows: List[Row], unneeded: Sequence[str] = ()
) -> Tuple[str, str]:
    """(backend, why): auto takes ascend if npu-smi, atc and ais_bench are all there.

    unneeded: codes of rows that this run does not need.

    auto also takes ascend if the user names a device or a chip, or has to choose between chips:
    then the run stops with a message instead of computing for hours on the CPU.
    """
    if given.backend != "auto":
        return given.backend, "as --backend says"
    if given.device is not None:
        return "ascend", "a device was named"
    if given.soc_version:
        return "ascend", "a chip was named"
    missing = [row for row in rows if row.code and not row.good and row.code not in unneeded]
    codes = [row.code for row in missing]
    facts = "; ".join(f"{row.item}: {row.fact or row.state}" for row in missing)
    if chips.UNREADABLE in codes or len(codes) == 1 and codes[0] in chips.TO_CHOOSE:
        return "ascend", facts
    if missing:
        return "cpu", f"for ascend, {facts}"
    there = " and ".join(code for code in (ATC, BENCH) if code not in unneeded)
    verb = "is" if unneeded else "are"
    return "ascend", f"{rows[0].state}, {there} {verb} there"


def overlooked(given: argparse.Namespace, findings: "Findings") -> str:
    """What to say if a run takes the CPU by itself on a machine that has a card; "" otherwise."""
    codes = [row.code for row in findings.rows if row.item == CHIP_ITEM]
    is_automatic = given.backend == "auto" and findings.backend == "cpu"
    if not is_automatic or not codes or codes[0] == chips.ABSENT:
        return ""
    return (
        "this run computes on the CPU, although the machine has npu-smi "
        f"({findings.reason}); stop it and use --backend ascend if you want the card"
    )


def workdir_row(workdir: str) -> Row:
    """Whether the work folder can be used, and whether ais_bench will accept it."""
    backend, advice = "both", "name another folder with --workdir"
    problem = files.unusable(workdir)
    if not problem:
        backend = "ascend"
        problem, advice = files.path_problem(workdir)
    state = f"{shown(os.path.abspath(workdir))} {problem or 'fits the rules of ais_bench'}"
    return Row(backend, "work folder", not problem, state, advice)


class Findings(NamedTuple):
    """What a backend needs, and what there is."""

    backend: str
    reason: str  # why this backend was chosen
    rows: List[Row]

    @property
    def missing(self) -> List[Row]:
        """The rows without which the backend cannot run."""
        needed = ("both", self.backend)
        return [row for row in self.rows if not row.good and row.backend in needed]


def is_int8(given: argparse.Namespace) -> bool:
    """Whether a run quantises; --precision is an option of pipeline.sh."""
    return getattr(given, "precision", "") == "int8"


def examine(given: argparse.Namespace, data: Data, unneeded: Sequence[str] = ()) -> Findings:
    """Choose the backend, and check all that it needs.

    unneeded: codes of rows that do not decide about the backend of this run.
    """
    rows = []
    if given.backend != "cpu":
        rows = ascend_rows(given.soc_version, given.device, is_int8(given))
    backend, reason = choose(given, rows, unneeded)
    rows.append(workdir_row(given.workdir))
    rows += setup_rows(given, environment.choose(given.venv, given.workdir))
    return Findings(backend, reason, rows + data_rows(data, backend == "ascend"))


def print_table(given: argparse.Namespace) -> int:
    """Print what is there and what is missing. Returns: the exit status."""
    findings = examine(given, locate(given))
    rows = findings.rows
    if given.backend == "cpu":
        rows = ascend_rows(given.soc_version, given.device, is_int8(given)) + rows
    place = environment.choose(given.venv, given.workdir)
    rows += [packages_row(given, place), timm_row(place)]
    widest = max(len(row.item) for row in rows)
    for row in rows:
        mark = "missing" if row.backend else "-"
        advice = f"   → {row.advice}" if row.advice else ""
        if row.good:
            mark, advice = "ok", ""
        print(f"{row.backend or '-':<7}  {row.item:<{widest}}  {mark:<7}  {row.state}{advice}")
    missing = len(findings.missing)
    outcome = f"cannot run, {missing} missing" if missing else "can run"
    print(f"backend {findings.backend} ({findings.reason}): {outcome}")
    return 1 if missing else 0


def main() -> int:
    parser = cli.parser(__doc__)
    add_options(parser)
    return print_table(options.parse(parser))


if __name__ == "__main__":
    cli.run(main)
