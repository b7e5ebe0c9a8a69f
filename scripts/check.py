#!/usr/bin/env python3
"""Say what is there and what is missing for each backend, with the command that mends it.

    python3 scripts/check.py                       # the table; exit status 0 only if the chosen backend can run
    python3 scripts/check.py --data ./ImageNet --backend ascend

pipeline.sh asks the same questions before it starts. Runs in the host's own Python (3.7 or newer, standard library
only), because ais_bench lives there too.
"""
import argparse
import contextlib
import os
import shutil
from typing import Dict, List, NamedTuple, Optional, Tuple

from common import ascend, cli, dataset, environment, evaluation, files, prepared, record
from common.cli import ROOT, Refusal, shown, some
from common.images import class_folders, find_images
from common.labels import (
    Label,
    check_folders,
    class_labels,
    is_real,
    label_offset,
    match_labels,
    read_class_map,
    read_label_file,
)
from common.names import SUFFIXES, name_bins

VALUE_BYTES = {False: 4, True: 1}  # of a .bin: float32, or uint8 for --uint8
MODEL_BYTES = 130_000_000  # a TResNet-M as .onnx or .om, and the sample data; an XL has 320 MB
CLASS_FOLDERS = ("folders", "wnids", "v2")  # of dataset.Found.labels
ARCHIVED_IMAGE = 100_000  # bytes: ImageNet's validation images have 134,000 on average
RESULT_BYTES = 12_000  # of one image's result, as text of 1,000 classes


class Row(NamedTuple):
    """One line of the table. `backend`: who needs it (both, ascend, cpu, or '' for advice that stops nothing)."""
    backend: str
    item: str
    good: bool
    found: str
    mend: str = ""


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options that decide what is needed; pipeline.sh has them too."""
    add = parser.add_argument
    add("--data", metavar="DIR", type=folder,
        help="folder with val_union/ (images) and val_label.txt, or with class folders in val/; or ImageNet as it "
             "comes (archives, Kaggle's tree, Parquet: docs/data.md) (default: sample data)")
    add("--labels", metavar="FILE", type=cli.path,
        help="other labels than those found with the data: lines NAME INT, or ReaL's real.json")
    add("--multi-label", action="store_true",
        help="labels are lines NAME INT INT …; the figure is the mean average precision")
    add("--checkpoint", metavar="FILE", type=cli.path,
        help="trained TResNet, or a Hugging Face folder with config.json (default: DIR/model_best.pth.tar)")
    add("--class-map", metavar="FILE", type=cli.path, help="numbers of the class folders (default: their order)")
    add("--label-offset", metavar="N", type=int, choices=(-1, 0, 1),
        help="what to add to each label to have the network's class (default: 1 for 1,001 classes, else 0)")
    evaluation.add_options(parser, evaluation.network_size)
    add("--uint8", action="store_true", help="images as bytes, converted on the device (AIPP)")
    add("--workdir", metavar="DIR", type=folder, default="work", help="where all products go (default: ./work)")
    add("--backend", choices=("auto", "ascend", "cpu"), default="auto",
        help="auto (the default) takes ascend if npu-smi, atc and ais_bench are all there, or if a device, a chip or a "
             "soc version is named")
    add("--device", metavar="N[,N…]|all", type=ascend.devices, help="chips to use at the same time (default: 0)")
    add("--shard", metavar="I/N", type=cli.shard, default=prepared.ALL_IMAGES,
        help="only every N-th image, from the I-th on; merge_reports.py joins the parts (default: all)")
    add("--soc-version", metavar="NAME", default="", help="chip that is compiled for (default: what npu-smi says)")
    add("--batch-sizes", metavar="LIST", type=cli.batch_sizes, default=[1, 4, 8, 16, 32],
        help="models to compile and to measure (default: 1,4,8,16,32)")


def folder(text: str) -> str:
    """argparse type: a folder's path, without a slash at its end, that no program can take for an option."""
    path = cli.path(text).rstrip("/") or "/"
    if os.path.realpath(path) == "/":
        raise argparse.ArgumentTypeError("the root folder cannot be meant")
    return os.path.join(".", path) if path.startswith("-") else path


# ---- the machine -----------------------------------------------------------------------------------------------------

def ascend_rows(soc: str, device: Optional[List[int]]) -> List[Row]:
    """What the ascend backend needs of the machine."""
    found, problem = "", ""
    try:
        devices, name = ascend.choose_devices(device, soc)
        found = soc or ascend.soc_version(name)
        found += f", devices {','.join(map(str, devices))}" if len(devices) > 1 else ""
    except Refusal as refusal:
        problem = refusal.sentence
    facts, atc, virtual = ascend.host_facts(), shutil.which("atc"), ascend.virtual_python()
    lacking, mend = ascend.atc_problem()
    source = f"source {shown(ascend.set_env() or ascend.SET_ENV)}"
    python = f"{shutil.which('python3') or 'none on the PATH'}, Python {facts.get('python', 'unknown')}"
    driver = "install the driver and firmware of the card, then: npu-smi info"
    rows = [Row("ascend", "NPU (npu-smi)", bool(found), found or problem,
                driver if "npu-smi" in problem else "the chips and their numbers: python3 scripts/npu_info.py --json"),
            Row("ascend", "atc", bool(atc), atc or "not on the PATH", source),
            Row("ascend", "host's python3", not (virtual or lacking), python + (
                ", a virtual environment's, in which atc fails" if virtual else f": {lacking}" if lacking else
                ", which has what atc needs"), "deactivate" if virtual else mend)]
    has = ascend.host_versions()
    rows += [Row("", item, bool(has[item]), has[item] or "no version found") for item in ("driver", "CANN")]
    return rows + [bench_row(item, has[item], facts.get("errors", {}).get(item, ""), source)
                   for item in ("ais_bench", "aclruntime")]


def bench_row(item: str, version: str, error: str, source: str) -> Row:
    """ais_bench or aclruntime, imported by the host's python3."""
    found, install = version, f"pip3 install the {item} wheel of Ascend's tools for this Python, then: {source}"
    if not version:
        found = f"python3 cannot import it ({error or 'there is no python3'})"
    if "'ais_bench.infer'" in error:
        found = "python3 has another package of that name, without ais_bench.infer: an LLM benchmark"
        install = f"pip3 uninstall ais_bench && {install}"
    return Row("ascend", item, bool(version), found, install)


def python_rows() -> List[Row]:
    wanted = [environment.REQUIREMENTS]
    there = environment.finished(wanted) or environment.satisfied(wanted)
    timm = all(os.path.exists(os.path.join(ROOT, "pytorch-image-models", name))
               for name in (".patched-with", "timm/models/tresnet.py"))
    return [Row("", "Python packages", there, "all there" if there else
                f"the first run makes .venv and downloads {environment.coming()}",
                "python3 scripts/setup_env.py"),
            Row("", "timm v0.4.5", timm, "patched" if timm else "the first run fetches it",
                "python3 scripts/timm_source.py")]


# ---- the data --------------------------------------------------------------------------------------------------------

class Data:
    """Where the images, their labels and the checkpoint are; each check raises Refusal or says what it found."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.arguments, self.is_sample = arguments, not arguments.data
        self.folder = arguments.data or os.path.join(arguments.workdir, "sample")
        self.images, self.labels = os.path.join(self.folder, "val_union"), os.path.join(self.folder, "val_label.txt")
        self.form: Optional[dataset.Found] = None
        self.unpacked = os.path.join(arguments.workdir, "data")  # what prepare_data.py makes of forms that need it
        if not self.is_sample:
            with contextlib.suppress(Refusal):  # check_images() tells
                self.form = dataset.find(self.folder)
        if self.form:
            self.images = self.form.place
        self.packed = bool(self.form and self.form.images != "folder")
        if self.to_prepare():
            self.labels = os.path.join(self.unpacked, "val_label.txt")
            self.images = os.path.join(self.unpacked, "val_union") if self.packed else self.images
        self.labels = arguments.labels or self.labels
        beside = self.folder if self.is_sample else dataset.folder_of(self.folder)  # the sample is not made yet
        self.checkpoint = arguments.checkpoint or os.path.join(beside, "model_best.pth.tar")
        self.sources: Dict[str, files.Stamp] = {}
        self.find_prepared()

    def find_prepared(self) -> None:
        """Choose the prepared folder; again after the export, when it is known what the checkpoint says."""
        model = os.path.join(self.arguments.workdir, "tresnet.onnx")
        said, chosen = evaluation.from_json(record.read(model).notes.get("evaluation")), evaluation.DEFAULT
        with contextlib.suppress(Refusal):  # the step that comes to it will say it
            chosen, _ = evaluation.resolve(evaluation.given(self.arguments), said, "")
        self.prepared = prepared.place_for(self.arguments.workdir, dict(
            evaluation.to_json(chosen._asdict()), dtype="uint8" if self.arguments.uint8 else "float32",
            source=os.path.abspath(self.images), shard=self.arguments.shard))
        if self.from_folders():  # preprocessing writes their labels
            self.labels = os.path.join(self.prepared, prepared.LABELS)

    def to_prepare(self) -> bool:
        """Whether prepare_data.py has to make images or labels of the data first."""
        if not self.form or self.form.native or (self.arguments.labels and not self.packed):
            return False
        return not (self.arguments.class_map and self.form.labels in CLASS_FOLDERS)

    def from_folders(self) -> bool:
        """Whether the labels are the class folders' numbers, which preprocessing gives them."""
        return bool(self.form and self.form.labels in CLASS_FOLDERS and not self.arguments.labels
                    and not self.to_prepare())

    def check_images(self) -> str:
        form = dataset.find(self.folder)
        if self.packed:
            return dataset.describe(form)
        workdir, images = map(os.path.realpath, (self.arguments.workdir, self.images))
        if os.path.commonpath([workdir, images]) == images:
            raise Refusal(f"the work folder {shown(self.arguments.workdir)} is inside {shown(self.images)}; name "
                          "another by --workdir")
        self.sources, _ = find_images(self.images)
        if not self.sources:
            raise Refusal(f"there are no images in {shown(self.images)}: no file there ends in {', '.join(SUFFIXES)}")
        return f"{len(self.sources)} in {shown(self.images)}"

    def number_of_images(self) -> int:
        """How many there are, at most, before an archive is opened."""
        return -(-self.archive_bytes() // ARCHIVED_IMAGE) or len(self.sources) or 20

    def archive_bytes(self) -> int:
        archives = self.form.files or [self.form.place] if self.form and self.packed else []
        return sum(map(os.path.getsize, archives))

    def check_labels(self) -> str:
        class_map = self.arguments.class_map
        if class_map and not self.from_folders():
            if not self.sources:
                raise Refusal("--class-map is for images in class folders, and there are none here; leave it out")
            class_labels(self.images, self.sources, name_bins(self.sources), class_map)
        if self.arguments.labels or not self.to_prepare():
            return self.check_lines()
        return dataset.describe(dataset.find(self.folder))

    def check_lines(self) -> str:
        """That each image has a label, as far as the images are there already."""
        if self.packed or self.is_sample:
            return f"{len(self.read())} in {shown(self.labels)}"
        if not self.sources:
            raise Refusal("there are no images that they could belong to")
        stems = name_bins(self.sources)
        if self.from_folders():
            text = class_labels(self.images, self.sources, stems, self.arguments.class_map)
            if text is None:
                raise Refusal(f"there is no {shown(os.path.join(self.folder, 'val_label.txt'))}, and the images do not "
                              "all lie in class folders, which would be numbered")
            return f"from the {len(class_folders(self.images))} class folders"
        labels = self.read()
        match_labels({stem: source for source, stem in stems.items()}, labels, self.labels)
        return f"{len(labels)} in {shown(self.labels)}"

    def several_classes(self) -> bool:
        """Whether an image may have several right classes."""
        return bool(self.arguments.multi_label or is_real(self.labels))

    def read(self) -> List[Label]:
        """The labels file's content."""
        return read_label_file(self.labels, self.arguments.multi_label)

    def check_checkpoint(self) -> str:
        if not os.path.isfile(evaluation.weights_file(self.checkpoint)):
            raise Refusal(f"the checkpoint {shown(self.checkpoint)} is not there")
        return self.checkpoint

    def img_size(self) -> int:
        """Pixels, as far as it is known before the checkpoint is read: from the option or from config.json."""
        with contextlib.suppress(Refusal):
            said = evaluation.of_config(evaluation.read_config(evaluation.weights_file(self.checkpoint)))
            return evaluation.resolve(evaluation.given(self.arguments), said, "")[0].img_size
        return evaluation.DEFAULT.img_size

    def check_classes(self, classes: int) -> None:
        """Before inference: labels must be classes of the network, class folders without a map all of its classes."""
        class_map = self.arguments.class_map
        if self.is_sample and not self.arguments.labels:
            return
        if not self.from_folders():
            label_offset(self.read(), classes, self.labels, self.arguments.multi_label,
                         self.arguments.label_offset)
        elif class_map:
            names = set(map(os.path.dirname, self.sources))
            beyond = [name for name, index in read_class_map(class_map).items() if name in names and index >= classes]
            if beyond:
                raise Refusal(f"{shown(class_map)} gives {some(beyond)} numbers that the network does not have: it has "
                              f"{classes} classes, numbered from 0")
        else:
            check_folders(self.images, class_folders(self.images), classes)


def needed_room(data: Data, images: int, ascend_runs: bool) -> int:
    """Bytes that the work folder will take up, less what is there of it already."""
    arguments, model = data.arguments, MODEL_BYTES
    with contextlib.suppress(Refusal, OSError):
        model = max(model, os.path.getsize(evaluation.weights_file(data.checkpoint)))
    kinds = 1 + (vars(arguments).get("precision") == "int8")  # check.py itself has no --precision
    models = 1 + kinds * (1 + len(arguments.batch_sizes) * ascend_runs)  # the sample, .onnx, .om
    per_image = [3 * data.img_size() ** 2 * VALUE_BYTES[arguments.uint8], *[RESULT_BYTES] * kinds]
    there = 0
    for path, folders, names in os.walk(arguments.workdir):
        folders[:] = [name for name in folders if not name.startswith("prep_dataset")
                      or os.path.join(path, name) == data.prepared]  # others are of other settings
        for name in names:
            with contextlib.suppress(FileNotFoundError):  # another run may be at work there
                there += files.occupied([os.lstat(os.path.join(path, name)).st_size])
    return max(0, data.archive_bytes() + images * files.occupied(per_image) + models * model - there)


def data_rows(data: Data, ascend_runs: bool) -> List[Row]:
    """Images, labels, checkpoint, and the disk space for what will be made of them."""
    checks = [("images", data.check_images, f"put the images into {shown(os.path.join(data.folder, 'val_union'))}"),
              ("labels", data.check_labels, "one line per image: NAME INT"),
              ("checkpoint", data.check_checkpoint, "name it: --checkpoint FILE")]
    rows = []
    if data.is_sample:
        rows = [Row("both", "data", True, "the sample: 20 photos and a checkpoint, made by the first step")]
        given = {"labels": data.arguments.labels or data.arguments.class_map, "checkpoint": data.arguments.checkpoint}
        checks = [check for check in checks if given.get(check[0])]
    for item, check, mend in checks:
        try:
            rows.append(Row("both", item, True, check()))
        except Refusal as refusal:
            rows.append(Row("both", item, False, refusal.sentence, mend))
    images, workdir = -(-data.number_of_images() // data.arguments.shard[1]), data.arguments.workdir
    needed, free = needed_room(data, images, ascend_runs), files.free_space(workdir)
    rows.append(Row("both", "disk space", free >= needed,
                    f"{free / 1e6:,.0f} MB are free for {shown(workdir)}, {needed / 1e6:,.0f} MB are needed for "
                    f"{images} images and the models", "make room, or --workdir on another disk"))
    return rows


# ---- all of it -------------------------------------------------------------------------------------------------------

def choose(arguments: argparse.Namespace, rows: List[Row]) -> Tuple[str, str]:
    """(backend, why): auto takes ascend if npu-smi, atc and ais_bench are all there.

    It also does if a device or a chip is named, or if there are chips of which one must be chosen: then what is amiss
    is said instead of computing for hours on the CPU.
    """
    if arguments.backend != "auto":
        return arguments.backend, "as --backend says"
    if arguments.device is not None:
        return "ascend", "a device was named"
    if arguments.soc_version:
        return "ascend", "a chip was named"
    missing = [row for row in rows if row.item in ("NPU (npu-smi)", "atc", "ais_bench") and not row.good]
    if missing and not (len(missing) == 1 and "of different kinds" in missing[0].found):
        return "cpu", "for ascend, " + "; ".join(f"{row.item}: {row.found.split(';')[0]}" for row in missing)
    return "ascend", f"{rows[0].found}, atc and ais_bench are there"


def examine(arguments: argparse.Namespace, data: Data) -> Tuple[str, str, List[Row]]:
    """(backend, why it was chosen, what it needs and what there is)."""
    rows = [] if arguments.backend == "cpu" else ascend_rows(arguments.soc_version, arguments.device)
    backend, why = choose(arguments, rows)
    wrong, mend = files.path_problem(arguments.workdir)
    unusable = files.unusable(arguments.workdir)
    if unusable:
        wrong, mend = unusable, "name another by --workdir"
    rows.append(Row("both" if unusable else "ascend", "work folder", not wrong,
                    f"{shown(os.path.abspath(arguments.workdir))} {wrong or 'fits the rules of ais_bench'}", mend))
    return backend, why, rows + data_rows(data, backend == "ascend")


def lacks(backend: str, rows: List[Row]) -> List[Row]:
    return [row for row in rows if not row.good and row.backend in ("both", backend)]


def print_table(arguments: argparse.Namespace) -> int:
    backend, why, rows = examine(arguments, Data(arguments))
    if arguments.backend == "cpu":
        rows = ascend_rows(arguments.soc_version, arguments.device) + rows
    rows += python_rows()
    widths = [max(len(str(row[column])) for row in rows) for column in (0, 1)]
    for row in rows:
        state = "ok" if row.good else "missing" if row.backend else "-"
        mend = f"   → {row.mend}" if not row.good and row.mend else ""
        print(f"{row.backend or '-':<{max(widths[0], 7)}}  {row.item:<{widths[1]}}  {state:<7}  {row.found}{mend}")
    bad = lacks(backend, rows)
    print(f"backend {backend} ({why}): " + (f"cannot run, {len(bad)} missing" if bad else "can run"))
    return 1 if bad else 0


def main() -> int:
    parser = cli.parser(__doc__)
    add_options(parser)
    return print_table(parser.parse_args())


if __name__ == "__main__":
    cli.run(main)
