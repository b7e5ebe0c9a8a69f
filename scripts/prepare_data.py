#!/usr/bin/env python3
"""Prepare a data set as people hold it for the steps: a folder of images and val_label.txt.

    python3 scripts/prepare_data.py ./downloads ./ImageNet     # ILSVRC2012_img_val.tar, the devkit
    python3 scripts/prepare_data.py ./imagenet-1k/data ./ImageNet     # Hugging Face's Parquet files
    python3 scripts/prepare_data.py ./kaggle ./labels

In:  a folder or an archive: the archives of image-net.org, Kaggle's tree, class folders named by
     WordNet IDs, ImageNet-V2's folders, images with Caffe's val.txt, Tiny-ImageNet, an archive with
     a table of labels, or Parquet files as Hugging Face's imagenet-1k has them.
Out: DST/val_label.txt, lines `NAME CLASS`, sorted by NAME; CLASS is 0..999, in training order
     DST/val_union/, the images, if they come from an archive; a folder of images stays where it is
What is there already is kept; to continue a run that was stopped, run the same command again.
meta.mat needs SciPy, Parquet needs pyarrow.
"""

import os
import tarfile
from collections import Counter
from typing import Any, Dict, Iterator, List, NamedTuple, Tuple

from common.core import cli

if __name__ == "__main__":
    cli.start()  # before the imports of packages that may be missing

from common.core import files, options, progress, recipe, record
from common.core.cli import Refusal, counted, shown, some
from common.core.names import COMMON_SUFFIXES, SUFFIXES, natural_key
from common.core.record import Draft, Recipe
from common.data import dataset
from common.data.dataset import Form
from common.data.images import find_images, is_foreign
from common.data.images import is_image as is_image_name

LABELS_KEY = "val_label.txt"  # of the labels' piece in the record; no image has that name
LARGEST = 1 << 28  # bytes of one image in an archive
BATCH = 64  # images of a Parquet file that are in memory at once


class Member(NamedTuple):
    """An image in an archive."""

    name: str  # of its file
    size: int  # bytes; of Parquet the average
    label: int  # -1 where the archive does not say


# ---- archives ------------------------------------------------------------------------------------


def is_image(member: tarfile.TarInfo) -> bool:
    """Whether a member of an archive is an image, and not what macOS puts beside it."""
    folder, name = os.path.split(member.name)
    folders = [part for part in folder.split("/") if part not in ("", ".", "..")]
    return is_image_name(name) and not member.isdir() and not any(map(is_foreign, folders))


def list_tar(path: str) -> List[Member]:
    """The images of a tar file, by their base names.

    Raises: Refusal for a broken archive, and for one with links or devices among its images.
    """
    try:
        with tarfile.open(path) as archive:
            images = list(filter(is_image, archive))
    except dataset.BROKEN as error:
        raise Refusal(
            f"the archive {shown(path)} cannot be read ({cli.why(error)}); fetch it again"
        ) from None
    special = [member.name for member in images if not member.isfile()]
    if special:
        verb = "is a link or a device" if len(special) == 1 else "are links or devices"
        raise Refusal(
            f"{shown(path)} has {counted(len(special), 'image')} that {verb}: {some(special)}; "
            "pack the files themselves (tar --dereference --hard-dereference)"
        )
    return [Member(os.path.basename(member.name), member.size, -1) for member in images]


def read_tar(path: str) -> Iterator[Tuple[str, bytes]]:
    """(name, content) of each image that list_tar() lists, in the archive's order."""
    with tarfile.open(path) as archive:
        for member in filter(is_image, archive):
            content = archive.extractfile(member)
            if content:  # always, for a regular file
                yield os.path.basename(member.name), content.read()


def open_parquet(path: str) -> Any:
    """A pyarrow.parquet.ParquetFile with the columns of imagenet-1k. Raises: Refusal."""
    dataset.need("pyarrow", f"the Parquet file {shown(path)}")
    import pyarrow
    from pyarrow import parquet

    try:
        table = parquet.ParquetFile(path)
    except (pyarrow.ArrowException, OSError) as error:
        raise Refusal(
            f"{shown(path)} is not a complete Parquet file ({cli.why(error)}); fetch it again"
        ) from None
    schema = table.schema_arrow
    types = {}
    if "image" in schema.names and pyarrow.types.is_struct(schema.field("image").type):
        types = {field.name: field.type for field in schema.field("image").type}
    has_bytes = pyarrow.types.is_binary(types.get("bytes", pyarrow.null()))
    if "label" not in schema.names or not has_bytes:
        raise Refusal(
            f"{shown(path)} should have the columns `image` (a struct of `bytes` and `path`) and "
            f"`label`, as Hugging Face's imagenet-1k, but has "
            f"{', '.join(map(shown, schema.names[:9]))}"
        )
    return table


def list_parquet(paths: List[str]) -> List[Member]:
    """The images of Parquet files and their labels; the bytes are not read."""
    members: List[Member] = []
    for path in paths:
        table = open_parquet(path)
        size = os.path.getsize(path) // max(1, table.metadata.num_rows)
        for row in table.read(["image.path", "label"]).to_pylist():
            label = row["label"]
            if not isinstance(label, int) or label < 0:
                raise Refusal(
                    f"{shown(path)} has an image with the label {label!r}, so it is not the "
                    "validation set; give its validation-*.parquet files"
                )
            name = (row.get("image") or {}).get("path")
            members.append(Member(dataset.official_name(name, len(members)), size, label))
    return members


def read_parquet(paths: List[str]) -> Iterator[Tuple[str, bytes]]:
    """(name, content) of each image that list_parquet() lists, a few in memory at once."""
    place = 0
    for path in paths:
        for batch in open_parquet(path).iter_batches(BATCH, columns=["image"]):
            for row in batch.column(0).to_pylist():
                yield dataset.official_name(row.get("path"), place), row.get("bytes") or b""
                place += 1


def list_members(form: Form) -> List[Member]:
    """The images of an archive. Raises: Refusal if one cannot be unpacked under its name."""
    members = list_parquet(form.files) if form.images == "parquet" else list_tar(form.path)
    path = shown(form.path)
    if not members:
        raise Refusal(f"{path} has no images: nothing in it ends in {COMMON_SUFFIXES}")
    names = Counter(member.name for member in members)
    repeated = [name for name, count in names.items() if count > 1]
    large = [member.name for member in members if member.size > LARGEST]
    strange = [
        name for name in names if name.startswith(".") or not name.lower().endswith(SUFFIXES)
    ]
    for wrong, what in (
        (repeated, "that it has more than once"),
        (large, f"of more than {LARGEST:,} bytes"),
        (strange, "without the name of an image"),
    ):
        if wrong:
            raise Refusal(
                f"{path} has {counted(len(wrong), 'image')} {what}: {some(wrong)}; it is not a "
                "data set of a known form"
            )
    return members


# ---- the work ------------------------------------------------------------------------------------


def unpack(
    form: Form, members: List[Member], target: str, made_by: Recipe, labels: str, text: bytes
) -> None:
    """Write the archive's images into a folder, then the labels beside it.

    target: the folder; images that an earlier run finished there are kept.
    labels, text: path and content of the labels' file.
    """
    before, base = record.read(target), os.path.basename(target)
    kept = before.kept(made_by)
    kept.pop(LABELS_KEY, None)
    sizes = [member.size for member in members if member.name not in kept]
    files.check_space(target, files.occupied(sizes), "name another DST")
    expected = [*(f"{base}/{member.name}" for member in members), os.path.basename(labels)]
    contents = read_parquet(form.files) if form.images == "parquet" else read_tar(form.path)
    bar = progress.Bar("unpacking", len(members), "images", len(kept), lines_every=10)
    with bar, record.begin_folder(before, made_by, expected, kept.values()) as writer:
        for name, content in contents:
            if name in kept:
                continue
            if len(content) > LARGEST:
                raise Refusal(
                    f"the image {shown(name)} in {shown(form.path)} has {len(content):,} bytes, "
                    f"but at most {LARGEST:,} are expected; fetch the archive again"
                )
            part = writer.part(f"{base}/{name}", content, durable=False)
            writer.publish([Draft(name, [], [part])])
            bar.advance()
        writer.publish([Draft(LABELS_KEY, [], [writer.part(os.path.basename(labels), text)])])
        writer.finish()
    already = f" ({len(kept)} already there)" if kept else ""
    print(f"{counted(len(members), 'image')} unpacked into {shown(target)}{already}")


def label_lines(form: Form, source: str, members: List[Member]) -> Dict[str, int]:
    """{NAME: class} of every image, in the order of the names.

    source: what the user named; members: of the archive, if there is one.
    Raises: Refusal if there are no images, or if one has no label.
    """
    if form.images == "folder":
        images = find_images(form.path).images
        if not images:
            raise Refusal(
                f"no images in {shown(form.path)}: no file there ends in {COMMON_SUFFIXES}"
            )
        names = dataset.plain_names(images)
    else:
        names = {member.name: member.name for member in members}
    if form.labels == "parquet":
        numbers = {member.name: member.label for member in members}
    else:
        numbers = dataset.numbers_of(form, source, names)
    lines = {name: numbers.get(image, numbers.get(name, -1)) for image, name in names.items()}
    lacking = [image for image, name in names.items() if lines[name] < 0]
    if lacking:
        raise Refusal(
            f"{len(lacking)} of {len(names)} images have no label in {shown(form.source)}: "
            f"{some(lacking)}; check that the labels belong to these images"
        )
    return {name: lines[name] for name in sorted(lines, key=natural_key)}


def main() -> None:
    parser = cli.parser(__doc__)
    parser.add_argument(
        "source", metavar="SRC", type=options.path, help="the data set: a folder or an archive"
    )
    parser.add_argument(
        "target",
        metavar="DST",
        type=options.path,
        help="folder for val_label.txt; created if it does not exist",
    )
    arguments = options.parse(parser)
    form = dataset.find(arguments.source)
    print(f"recognised: {dataset.describe(form)}")
    if form.native:
        print("nothing has to be prepared: the steps take it as it is")
        return
    labels = os.path.join(arguments.target, "val_label.txt")
    images = os.path.join(arguments.target, "val_union")
    is_packed = form.images != "folder"
    sources = {*(form.files or [form.path]), form.source}
    made_by = recipe.make(
        __file__,
        {"form": form.images, "labels": form.labels},
        inputs=sorted(filter(files.is_file, sources)),
        source=os.path.abspath(form.source),
    )
    before = record.read(images)
    is_unpacked = before.finished and before.recipe == made_by.row
    if is_packed and is_unpacked and all(map(before.is_piece_intact, before.pieces.values())):
        print(f"{shown(images)} and {shown(labels)} are up to date")
        return
    members = list_members(form) if is_packed else []
    lines = label_lines(form, arguments.source, members)  # before the images, which take long
    text = "".join(f"{name} {label}\n" for name, label in lines.items())
    content = text.encode("utf-8", "surrogateescape")
    files.make_folder(arguments.target, "DST")
    if is_packed:
        unpack(form, members, images, made_by, labels, content)
    else:
        record.write(labels, made_by, {labels: content})
    classes = len(set(lines.values()))
    print(f"{counted(len(lines), 'label')} of {classes} classes in {shown(labels)}")


if __name__ == "__main__":
    cli.run(main, "the same command goes on from here")
