#!/usr/bin/env python3
"""Make of a data set as people hold it what the steps take: a folder of images and val_label.txt.

    python3 scripts/prepare_data.py ./downloads ./ImageNet         # ILSVRC2012_img_val.tar and the devkit
    python3 scripts/prepare_data.py ./imagenet-1k/data ./ImageNet  # Hugging Face's Parquet files
    python3 scripts/prepare_data.py ./kaggle ./labels

In:  a folder or an archive: the archives of image-net.org, Kaggle's tree, class folders named by WordNet IDs,
     ImageNet-V2's folders, images with Caffe's val.txt, or Parquet files as Hugging Face's imagenet-1k has them.
Out: DST/val_label.txt, lines `NAME CLASS` in the order of the names, CLASS in training order (0 to 999)
     DST/val_union/, the images, only where they come from an archive; a folder of images is used where it is.
What is there already is kept; a run that was stopped goes on with the same command. meta.mat needs SciPy, Parquet
needs pyarrow.
"""

import os
import tarfile
from collections import Counter
from typing import Dict, Iterator, List, NamedTuple, Tuple

from common.core import cli

if __name__ == "__main__":
    cli.start()  # before what may be missing

from common.core import files, options, progress, recipe, record
from common.core.cli import Refusal, shown, some
from common.core.names import SUFFIXES, natural_key
from common.core.record import Draft, Recipe
from common.data import dataset
from common.data.dataset import Found
from common.data.images import find_images

LABELS_KEY = "val_label.txt"  # the piece of a record that is the labels; no image is called so
LARGEST = 1 << 28  # bytes of one image in an archive
BATCH = 64  # images of a Parquet file that are in memory at once


class Member(NamedTuple):
    """An image in an archive."""

    name: str  # of its file
    size: int  # bytes; of Parquet the average
    label: int  # -1 where the archive does not say


# ---- archives --------------------------------------------------------------------------------------------------------


def list_tar(path: str) -> List[Member]:
    """The images of a tar file, by their base names. Raises: Refusal for an archive that is broken or has none."""
    try:
        with tarfile.open(path) as archive:
            return [
                Member(os.path.basename(member.name), member.size, -1)
                for member in archive
                if member.isfile() and member.name.lower().endswith(SUFFIXES)
            ]
    except dataset.BROKEN as error:
        raise Refusal(
            f"the archive {shown(path)} cannot be read ({cli.why(error)}); fetch it again"
        ) from None


def read_tar(path: str) -> Iterator[Tuple[str, bytes]]:
    """(name, content) of each image that list_tar() lists, in the archive's order."""
    with tarfile.open(path) as archive:
        for member in archive:
            if member.isfile() and member.name.lower().endswith(SUFFIXES):
                yield os.path.basename(member.name), archive.extractfile(member).read()  # type: ignore[union-attr]


def open_parquet(path: str):  # type: ignore[no-untyped-def]
    """A pyarrow.parquet.ParquetFile with the columns of imagenet-1k. Raises: Refusal."""
    dataset.need("pyarrow", f"the Parquet file {shown(path)}")
    import pyarrow
    from pyarrow import parquet

    try:
        table = parquet.ParquetFile(path)
    except (pyarrow.ArrowException, OSError) as error:
        raise Refusal(
            f"{shown(path)} is no whole Parquet file ({cli.why(error)}); fetch it again"
        ) from None
    schema = table.schema_arrow
    image = schema.field("image").type if "image" in schema.names else None
    kinds = (
        {field.name: field.type for field in image}
        if image and pyarrow.types.is_struct(image)
        else {}
    )
    if "label" not in schema.names or not pyarrow.types.is_binary(
        kinds.get("bytes", pyarrow.null())
    ):
        raise Refusal(
            f"{shown(path)} should have the columns `image` (a struct of `bytes` and `path`) and `label`, as "
            f"Hugging Face's imagenet-1k, but has {', '.join(map(shown, schema.names[:9]))}"
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
                    f"{shown(path)} has an image with the label {label!r}, so it is not the validation set; "
                    "give its validation-*.parquet files"
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


# ---- the work --------------------------------------------------------------------------------------------------------


def check_members(members: List[Member], path: str) -> None:
    """Refuse an archive whose images cannot all be unpacked under their names."""
    if not members:
        raise Refusal(f"{shown(path)} holds no images: nothing in it ends in {', '.join(SUFFIXES)}")
    names = Counter(member.name for member in members)
    for what, which in (
        ("twice", {name for name, count in names.items() if count > 1}),
        (f"of more than {LARGEST:,} bytes", {one.name for one in members if one.size > LARGEST}),
        (
            "of a name of no image",
            {name for name in names if name.startswith(".") or not name.lower().endswith(SUFFIXES)},
        ),
    ):
        if which:
            raise Refusal(
                f"{shown(path)} holds {len(which)} images {what}: {some(which)}; it is no data set of a "
                "known form"
            )


def unpack(
    found: Found, members: List[Member], target: str, made_by: Recipe, labels: str, text: bytes
) -> None:
    """Write the archive's images into the folder, then the labels beside it; what an earlier run finished is kept."""
    before, base = record.read(target), os.path.basename(target)
    kept = before.kept(made_by)
    kept.pop(LABELS_KEY, None)
    files.check_space(
        target,
        files.occupied(member.size for member in members if member.name not in kept),
        "name another DST",
    )
    expected = [*(f"{base}/{member.name}" for member in members), os.path.basename(labels)]
    bar = progress.Bar("unpacking", len(members), "images", len(kept), lines_every=10)
    with bar, record.begin_folder(before, made_by, expected, kept.values()) as writer:
        for name, content in (
            read_parquet(found.files) if found.images == "parquet" else read_tar(found.place)
        ):
            if name not in kept:
                if len(content) > LARGEST:
                    raise Refusal(
                        f"the image {shown(name)} in {shown(found.place)} has {len(content):,} bytes"
                    )
                writer.publish(
                    [Draft(name, [], [writer.part(f"{base}/{name}", content, durable=False)])]
                )
                bar.advance()
        writer.publish([Draft(LABELS_KEY, [], [writer.part(os.path.basename(labels), text)])])
        writer.finish()
    print(
        f"{len(members)} images unpacked into {shown(target)}"
        + (f" ({len(kept)} were there)" if kept else "")
    )


def label_lines(found: Found, source: str, members: List[Member]) -> Dict[str, int]:
    """{NAME: class} of every image there is, in the order of the names."""
    if found.images == "folder":
        images, _ = find_images(found.place)
        if not images:
            raise Refusal(
                f"there are no images in {shown(found.place)}: no file there ends in {', '.join(SUFFIXES)}"
            )
        names = dataset.plain_names(images)
    else:
        names = {member.name: member.name for member in members}
    numbers = (
        {member.name: member.label for member in members}
        if found.labels == "parquet"
        else dataset.numbers_of(found, source, names)
    )
    lines = {name: numbers.get(image, numbers.get(name, -1)) for image, name in names.items()}
    lacking = [image for image, name in names.items() if lines[name] < 0]
    if lacking:
        raise Refusal(
            f"{len(lacking)} of {len(names)} images have no label in {shown(found.source)}: {some(lacking)}; "
            "do they belong together?"
        )
    return {name: lines[name] for name in sorted(lines, key=natural_key)}


def main() -> None:
    parser = cli.parser(__doc__)
    parser.add_argument(
        "source", metavar="SRC", type=options.path, help="the data set: a folder or an archive"
    )
    parser.add_argument(
        "target", metavar="DST", type=options.path, help="folder for val_label.txt; made if need be"
    )
    arguments = options.parse(parser)
    found = dataset.find(arguments.source)
    print(f"recognised: {dataset.describe(found)}")
    if found.native:
        print("nothing has to be prepared: the steps take it as it is")
        return
    labels, images = (
        os.path.join(arguments.target, name) for name in ("val_label.txt", "val_union")
    )
    sources = [*(found.files or [found.place]), found.source]
    made_by = recipe.make(
        __file__,
        {"form": found.images, "labels": found.labels},
        inputs=sorted(filter(os.path.isfile, set(sources))),
        source=os.path.abspath(found.source),
    )
    members: List[Member] = []
    packed = found.images != "folder"
    before = record.read(images)
    if (
        packed
        and before.finished
        and before.recipe == made_by.row
        and all(map(before.holds, before.pieces.values()))
    ):
        print(f"{shown(images)} and {shown(labels)} are up to date")
        return
    if packed:
        members = list_parquet(found.files) if found.images == "parquet" else list_tar(found.place)
        check_members(members, found.place)
    lines = label_lines(found, arguments.source, members)  # before anything long begins
    text = "".join(f"{name} {label}\n" for name, label in lines.items()).encode(
        "utf-8", "surrogateescape"
    )
    files.make_folder(arguments.target, "DST")
    if packed:
        unpack(found, members, images, made_by, labels, text)
    else:
        record.write(labels, made_by, {labels: text})
    print(f"{len(lines)} labels of {len(set(lines.values()))} classes in {shown(labels)}")


if __name__ == "__main__":
    cli.run(main, "the same command goes on from here")
