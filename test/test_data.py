"""ImageNet as people hold it: made-up archives of the real layout, all with the same labels."""

import contextlib
import gzip
import io
import json
import os
import shutil
import sys
import tarfile
import zlib
from pathlib import Path
from typing import Any, Callable, Dict, List
from unittest import mock

from common.core.cli import Refusal
from common.core.record import Part, Writer
from common.data import dataset

import check
import numpy as np
import pipeline
import prepare_data
import pytest
from conftest import ROOT, SMALL, copy_products, run
from pictures import fill, pattern
from records import change_rows

NUMBERS = [
    1,
    7,
    12,
    400,
    999,
    *range(30, 55),
]  # of the 30 images among the 50,000 (here: among 1,000)
WNIDS = [
    f"n{number:08d}"
    for number in np.unique(np.random.RandomState(1).randint(0, 10**8, 1100))[:1000]
]
CLASSES = {
    number: int(label)
    for number, label in zip(range(1, 1001), np.random.RandomState(2).randint(0, 1000, 1000))
}  # image: its class in training order
IDS = (
    np.random.RandomState(3).permutation(1000) + 1
)  # ILSVRC2012_ID of each class: another order, as in the devkit


def image_name(number: int) -> str:
    return f"ILSVRC2012_val_{number:08d}.JPEG"


@pytest.fixture(scope="session")
def jpegs() -> Dict[str, bytes]:
    """{file name: content} of 30 images, all different."""
    made = {}
    for place, number in enumerate(NUMBERS):
        file = io.BytesIO()
        pattern(40 + place, 33).save(file, "JPEG")
        made[image_name(number)] = file.getvalue()
    return made


EXPECTED = "".join(f"{image_name(number)} {CLASSES[number]}\n" for number in sorted(NUMBERS))


# ---- the forms -----------------------------------------------------------------------------------


def write_files(folder: Path, files: Dict[str, bytes]) -> None:
    for path, content in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(content)


def add_member(archive: tarfile.TarFile, path: str, content: bytes) -> None:
    member = tarfile.TarInfo(path)
    member.size = len(content)
    archive.addfile(member, io.BytesIO(content))


def devkit() -> Dict[str, bytes]:
    """The devkit's files: the truth, and meta.mat as MATLAB saved it, with inner nodes, too."""
    from scipy.io import savemat

    kinds = [
        ("ILSVRC2012_ID", "O"),
        ("WNID", "O"),
        ("words", "O"),
        ("gloss", "O"),
        ("num_children", "O"),
    ]
    leaves = [
        (int(number), wnid, f"name of {wnid}", "a gloss", 0) for number, wnid in zip(IDS, WNIDS)
    ]
    inner = [(1001 + place, f"n9{place:07d}", "inner", "a gloss", 3) for place in range(5)]
    file = io.BytesIO()
    savemat(
        file,
        {"synsets": np.array(sorted(leaves) + inner, kinds).reshape(-1, 1)},
        do_compression=True,
    )
    truth = "".join(f"{IDS[CLASSES[number]]}\n" for number in sorted(CLASSES))
    return {
        "data/meta.mat": file.getvalue(),
        "data/ILSVRC2012_validation_ground_truth.txt": truth.encode(),
        "readme.txt": b"text",
    }


def image_archive(folder: Path, jpegs: Dict[str, bytes]) -> None:
    with tarfile.open(str(folder / "ILSVRC2012_img_val.tar"), "w") as archive:
        for path in sorted(jpegs):
            add_member(archive, path, jpegs[path])


def archives(folder: Path, jpegs: Dict[str, bytes]) -> None:
    image_archive(folder, jpegs)
    with tarfile.open(str(folder / "ILSVRC2012_devkit_t12.tar.gz"), "w:gz") as archive:
        for path, content in devkit().items():
            add_member(archive, "ILSVRC2012_devkit_t12/" + path, content)


def archive_and_unpacked_devkit(folder: Path, jpegs: Dict[str, bytes]) -> None:
    image_archive(folder, jpegs)
    write_files(folder / "ILSVRC2012_devkit_t12", devkit())


def solution(jpegs: Dict[str, bytes]) -> bytes:
    rows = [
        f"{image[:-5]},{WNIDS[CLASSES[int(image[15:23])]]} 85 1 499 272 n00000000 1 2 3 4 \n"
        for image in jpegs
    ]
    return ("ImageId,PredictionString\n" + "".join(rows)).encode()


def synsets() -> bytes:
    return "".join(f"{wnid} some, names\n" for wnid in WNIDS).encode()


def kaggle(folder: Path, jpegs: Dict[str, bytes]) -> None:
    write_files(folder / "ILSVRC" / "Data" / "CLS-LOC" / "val", jpegs)
    write_files(
        folder, {"LOC_val_solution.csv": solution(jpegs), "LOC_synset_mapping.txt": synsets()}
    )


def caffe(folder: Path, jpegs: Dict[str, bytes]) -> None:
    write_files(folder / "val", jpegs)
    write_files(
        folder,
        {
            "val.txt": "".join(
                f"{image_name(number)} {CLASSES[number]}\n" for number in reversed(sorted(CLASSES))
            ).encode()
        },
    )


def caffe_beside_an_archive(folder: Path, jpegs: Dict[str, bytes]) -> None:
    caffe(folder, {})
    (folder / "val").rmdir() if (folder / "val").exists() else None
    image_archive(folder, jpegs)


def wordnet_folders(folder: Path, jpegs: Dict[str, bytes]) -> None:
    for wnid in WNIDS:
        (folder / "val" / wnid).mkdir(parents=True)
    write_files(
        folder / "val",
        {
            f"{WNIDS[CLASSES[int(image[15:23])]]}/{image}": content
            for image, content in jpegs.items()
        },
    )


def some_wordnet_folders_and_the_list(folder: Path, jpegs: Dict[str, bytes]) -> None:
    write_files(
        folder / "val",
        {
            f"{WNIDS[CLASSES[int(image[15:23])]]}/{image}": content
            for image, content in jpegs.items()
        },
    )
    write_files(folder, {"LOC_synset_mapping.txt": synsets()})


def image_net_v2(folder: Path, jpegs: Dict[str, bytes]) -> None:
    write_files(
        folder / "imagenetv2-matched-frequency-format-val",
        {f"{CLASSES[int(image[15:23])]}/{image}": content for image, content in jpegs.items()},
    )


def hugging_face_parquet(folder: Path, jpegs: Dict[str, bytes]) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    rows = [
        (
            {"bytes": content, "path": f"{image[:-5]}_{WNIDS[CLASSES[int(image[15:23])]]}.JPEG"},
            CLASSES[int(image[15:23])],
        )
        for image, content in sorted(jpegs.items(), reverse=True)
    ]
    (folder / "data").mkdir()
    for shard, part in enumerate((rows[:17], rows[17:])):
        table = pyarrow.table(
            {"image": [image for image, _ in part], "label": [label for _, label in part]}
        )
        parquet.write_table(
            table, str(folder / "data" / f"validation-0000{shard}-of-00002.parquet")
        )
    parquet.write_table(
        pyarrow.table({"image": [{"bytes": b"", "path": None}], "label": [-1]}),
        str(folder / "data" / "test-00000-of-00001.parquet"),
    )


def table(folder: Path, jpegs: Dict[str, bytes]) -> None:
    """The archive, and a table of WordNet IDs whose names have no suffix."""
    image_archive(folder, jpegs)
    rows = [f"{image[:-5]};{WNIDS[CLASSES[int(image[15:23])]]}\n" for image in jpegs]
    text = "ImageId;Class\n" + "".join(rows)
    write_files(folder, {"labels.csv": text.encode(), "LOC_synset_mapping.txt": synsets()})


FORMS = (
    table,
    archives,
    archive_and_unpacked_devkit,
    kaggle,
    caffe,
    caffe_beside_an_archive,
    wordnet_folders,
    some_wordnet_folders_and_the_list,
    image_net_v2,
    hugging_face_parquet,
)


# ---- helpers -------------------------------------------------------------------------------------


@pytest.fixture
def prepare_here(monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """prepare_data.py in this process: what it prints, or the sentence of its refusal."""

    def start(*words: object) -> str:
        monkeypatch.setattr(sys, "argv", ["prepare_data.py", *map(str, words)])
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            try:
                prepare_data.main()
            except Refusal as refusal:
                return "refused: " + refusal.sentence
        return printed.getvalue()

    return start


PrepareHere = Callable[..., str]


# ---- each form -----------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
def test_each_form_gives_the_same_labels_and_images(
    form: Any, jpegs: Dict[str, bytes], tmp_path: Path, prepare_here: PrepareHere
) -> None:
    (tmp_path / "data").mkdir()
    form(tmp_path / "data", jpegs)
    said = prepare_here(tmp_path / "data", tmp_path / "out")
    assert said.startswith("recognised: ") and "30 labels of " in said, said
    assert (tmp_path / "out" / "val_label.txt").read_text() == EXPECTED
    found = dataset.find(str(tmp_path / "data"))
    if found.images != "folder":
        unpacked = {
            path.name: path.read_bytes() for path in (tmp_path / "out" / "val_union").iterdir()
        }
        assert unpacked == jpegs
        assert "are up to date" in prepare_here(tmp_path / "data", tmp_path / "out")
    else:
        assert not (tmp_path / "out" / "val_union").exists(), "a folder is used where it is"


@pytest.mark.parametrize(
    "form, sentence",
    (
        (
            archives,
            "the archive DATA/ILSVRC2012_img_val.tar; labels by the devkit's ground truth and "
            "meta.mat in DATA/ILSVRC2012_devkit_t12.tar.gz",
        ),
        (
            kaggle,
            "images in DATA/ILSVRC/Data/CLS-LOC/val; labels by Kaggle's table "
            "DATA/LOC_val_solution.csv",
        ),
        (caffe, "images in DATA/val; labels by Caffe's list DATA/val.txt"),
        (
            wordnet_folders,
            "images in DATA/val; labels by WordNet IDs that name the folders of DATA/val",
        ),
        (hugging_face_parquet, "2 Parquet files of DATA; labels by the column `label` of DATA"),
    ),
)
def test_it_says_what_it_recognised(
    form: Any, sentence: str, jpegs: Dict[str, bytes], tmp_path: Path
) -> None:
    form(tmp_path, jpegs)
    assert dataset.describe(dataset.find(str(tmp_path))) == sentence.replace("DATA", str(tmp_path))


def test_the_archive_itself_may_be_named(
    jpegs: Dict[str, bytes], tmp_path: Path, prepare_here: PrepareHere
) -> None:
    (tmp_path / "data").mkdir()
    archives(tmp_path / "data", jpegs)
    prepare_here(tmp_path / "data" / "ILSVRC2012_img_val.tar", tmp_path / "out")
    assert (tmp_path / "out" / "val_label.txt").read_text() == EXPECTED


def test_the_identifier_of_the_devkit_is_not_taken_for_the_class(
    jpegs: Dict[str, bytes], tmp_path: Path, prepare_here: PrepareHere
) -> None:
    (tmp_path / "data").mkdir()
    archives(tmp_path / "data", jpegs)
    prepare_here(tmp_path / "data", tmp_path / "out")
    found = dict(
        line.split() for line in (tmp_path / "out" / "val_label.txt").read_text().splitlines()
    )
    by_identifier = {image_name(number): str(IDS[CLASSES[number]] - 1) for number in NUMBERS}
    assert sum(found[image] == by_identifier[image] for image in found) <= 1


def test_what_the_steps_take_is_left_as_it_is(
    jpegs: Dict[str, bytes], tmp_path: Path, prepare_here: PrepareHere
) -> None:
    write_files(tmp_path / "data" / "val_union", jpegs)
    write_files(tmp_path / "data", {"val_label.txt": EXPECTED.encode()})
    image_archive(tmp_path / "data", jpegs)
    assert "the steps take it as it is" in prepare_here(tmp_path / "data", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    write_files(
        tmp_path / "own" / "val", {"n00000001/a.jpg": b"", "n00000002/b.jpg": b""}
    )  # two classes of somebody's own
    assert dataset.find(str(tmp_path / "own")).native


# ---- interrupted, and full disks -----------------------------------------------------------------


@pytest.mark.parametrize("form", (archives, hugging_face_parquet))
def test_a_run_that_was_stopped_goes_on(
    form: Any,
    jpegs: Dict[str, bytes],
    tmp_path: Path,
    prepare_here: PrepareHere,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "data").mkdir()
    form(tmp_path / "data", jpegs)
    written: List[str] = []
    write_part = Writer.part

    def counting(writer: Writer, name: str, data: Any, durable: bool = True) -> Part:
        written.append(os.path.basename(name))
        return write_part(writer, name, data, durable)

    def stopping(writer: Writer, name: str, data: Any, durable: bool = True) -> Part:
        if len(written) == 11:
            raise KeyboardInterrupt
        return counting(writer, name, data, durable)

    monkeypatch.setattr(Writer, "part", stopping)
    with pytest.raises(KeyboardInterrupt):
        prepare_here(tmp_path / "data", tmp_path / "out")
    assert not (tmp_path / "out" / "val_label.txt").exists(), (
        "labels appear when all images are there"
    )
    assert len(written) == 11
    monkeypatch.setattr(Writer, "part", counting)
    assert "30 images unpacked into" in prepare_here(tmp_path / "data", tmp_path / "out")
    assert sorted(written[:30]) == sorted(jpegs) and written[30:] == ["val_label.txt"], (
        "none was unpacked twice"
    )
    assert {
        path.name: path.read_bytes() for path in (tmp_path / "out" / "val_union").iterdir()
    } == jpegs


def test_an_image_that_was_damaged_since_is_unpacked_again(
    jpegs: Dict[str, bytes], tmp_path: Path, prepare_here: PrepareHere
) -> None:
    (tmp_path / "data").mkdir()
    archives(tmp_path / "data", jpegs)
    prepare_here(tmp_path / "data", tmp_path / "out")
    damaged = tmp_path / "out" / "val_union" / image_name(7)
    damaged.write_bytes(b"")
    assert "(29 already there)" in prepare_here(tmp_path / "data", tmp_path / "out")
    assert damaged.read_bytes() == jpegs[image_name(7)]


def test_hidden_folders_are_no_classes(
    jpegs: Dict[str, bytes], tmp_path: Path, prepare_here: PrepareHere
) -> None:
    wordnet_folders(tmp_path, jpegs)
    assert dataset.find(str(tmp_path)).labels == "wnids"
    (tmp_path / "val" / ".ipynb_checkpoints").mkdir()
    assert dataset.find(str(tmp_path)).labels == "wnids"


def test_an_archive_that_is_unpacked_beside_itself_goes_on(
    jpegs: Dict[str, bytes], tmp_path: Path, prepare_here: PrepareHere
) -> None:
    """After a kill, half of the images are in val_union without labels: not the data set."""
    archives(tmp_path, jpegs)
    prepare_here(tmp_path, tmp_path)
    record, labels = tmp_path / "val_union.record.jsonl", tmp_path / "val_label.txt"
    finished = labels.read_bytes()
    labels.unlink()
    for number in NUMBERS[10:]:
        (tmp_path / "val_union" / image_name(number)).unlink()
    change_rows(record, lambda rows: rows.__setitem__(slice(22, None), []))
    assert "30 images unpacked into" in prepare_here(tmp_path, tmp_path)
    assert labels.read_bytes() == finished and len(os.listdir(str(tmp_path / "val_union"))) == 30


def test_a_disk_too_small_is_refused_before_anything_is_unpacked(
    jpegs: Dict[str, bytes], tmp_path: Path, prepare_here: PrepareHere, monkeypatch: Any
) -> None:
    (tmp_path / "data").mkdir()
    archives(tmp_path / "data", jpegs)
    monkeypatch.setattr(prepare_data.files, "free_space", lambda folder: 1000.0)
    assert "MB are needed in" in prepare_here(tmp_path / "data", tmp_path / "out")
    assert not (tmp_path / "out" / "val_union").exists()


# ---- what is refused -----------------------------------------------------------------------------


def replaced_in(path: str, old: bytes, new: bytes) -> Callable[[Path], None]:
    return lambda folder: write_files(
        folder, {path: (folder / path).read_bytes().replace(old, new, 1)}
    )


def removed(path: str) -> Callable[[Path], None]:
    return lambda folder: (folder / path).unlink()


def spoil_compressed(folder: Path) -> None:
    """Damage the devkit's compressed archive after the beginning of its first file, meta.mat."""
    path = folder / "ILSVRC2012_devkit_t12.tar.gz"
    packer = zlib.compressobj(wbits=31)
    packed = packer.compress(gzip.decompress(path.read_bytes())[:10_000]) + packer.flush(
        zlib.Z_FULL_FLUSH
    )
    path.write_bytes(packed + b"\xff" * 100)


TRUTH = "ILSVRC2012_devkit_t12/data/ILSVRC2012_validation_ground_truth.txt"


@pytest.mark.parametrize(
    "form, spoil, sentence",
    (
        (
            archives,
            removed("ILSVRC2012_devkit_t12.tar.gz"),
            "has no labels beside it; put ILSVRC2012_devkit_t12.tar.gz",
        ),
        (
            archives,
            lambda f: write_files(f, {"ILSVRC2012_devkit_t12.tar.gz": b"<html>"}),
            "the devkit",
        ),
        (
            archives,
            spoil_compressed,
            "the devkit DATA/ILSVRC2012_devkit_t12.tar.gz cannot be read (Error -3 while",
        ),
        (archive_and_unpacked_devkit, removed(TRUTH), "cannot read"),
        (
            archive_and_unpacked_devkit,
            lambda f: write_files(f, {TRUTH: b"1\n2000\n"}),
            "an ILSVRC2012_ID from 1 to 1000",
        ),
        (
            archive_and_unpacked_devkit,
            lambda f: write_files(f, {TRUTH: b"1\n2\n"}),
            "29 of 30 images have no label in",
        ),
        (
            archive_and_unpacked_devkit,
            lambda f: write_files(
                f, {"ILSVRC2012_devkit_t12/data/meta.mat": b"MATLAB 5.0 MAT-file"}
            ),
            "the meta.mat of",
        ),
        (
            archives,
            lambda f: write_files(
                f, {"ILSVRC2012_img_val.tar": (f / "ILSVRC2012_img_val.tar").read_bytes()[:2000]}
            ),
            "cannot be read (unexpected end of data)",
        ),
        (
            kaggle,
            removed("LOC_synset_mapping.txt"),
            "but a class's number is its place among all 1,000",
        ),
        (
            kaggle,
            replaced_in("LOC_val_solution.csv", b",n", b",x"),
            "LOC_val_solution.csv, line 2: `ImageId,n01440764 …`",
        ),
        (
            kaggle,
            replaced_in("LOC_val_solution.csv", b",n", b'"' + b"x" * 200_000 + b",n"),
            "1 of 30 images have no label in DATA/LOC_val_solution.csv",
        ),
        (
            kaggle,
            replaced_in("LOC_synset_mapping.txt", WNIDS[5].encode(), WNIDS[6].encode()),
            "names 999 WordNet IDs",
        ),
        (
            caffe,
            replaced_in("val.txt", image_name(400).encode() + b" ", b"other.JPEG "),
            f"1 of 30 images have no label in DATA/val.txt: {image_name(400)}; check that the",
        ),
        (
            wordnet_folders,
            lambda f: write_files(f, {"val/stray.JPEG": b"x"}),
            "stray.JPEG in DATA/val does not lie in a class",
        ),
    ),
)
def test_broken_data_are_refused_in_one_sentence(
    form: Any,
    spoil: Any,
    sentence: str,
    jpegs: Dict[str, bytes],
    tmp_path: Path,
    prepare_here: PrepareHere,
) -> None:
    (tmp_path / "data").mkdir()
    form(tmp_path / "data", jpegs)
    spoil(tmp_path / "data")
    said = prepare_here(tmp_path / "data", tmp_path / "out")
    assert "refused: " in said and sentence.replace("DATA", str(tmp_path / "data")) in said, said
    assert not (tmp_path / "out" / "val_label.txt").exists()


def test_what_is_not_known_is_refused_with_the_list_of_what_is(
    tmp_path: Path, prepare_here: PrepareHere
) -> None:
    write_files(tmp_path / "data", {"notes.txt": b"x"})
    said = prepare_here(tmp_path / "data", tmp_path / "out")
    assert f"refused: {tmp_path}/data is not a data set of a known form; " in said
    assert all(form in said for form in dataset.KNOWN)
    write_files(tmp_path, {"file.zip": b"PK"})
    assert "is not a data set of a known form" in prepare_here(
        tmp_path / "file.zip", tmp_path / "out"
    )


def test_hostile_names_in_an_archive_stay_in_the_folder(
    jpegs: Dict[str, bytes], tmp_path: Path, prepare_here: PrepareHere
) -> None:
    (tmp_path / "data").mkdir()
    with tarfile.open(str(tmp_path / "data" / "ILSVRC2012_img_val.tar"), "w") as archive:
        add_member(archive, "../../../evil.jpg", b"x")
    write_files(tmp_path / "data", {"val.txt": b"evil.jpg 3\n"})
    prepare_here(tmp_path / "data", tmp_path / "out")
    assert os.listdir(str(tmp_path / "out" / "val_union")) == ["evil.jpg"]
    with tarfile.open(str(tmp_path / "data" / "ILSVRC2012_img_val.tar"), "w") as archive:
        add_member(archive, "a/same.jpg", b"x")
        add_member(archive, "b/same.jpg", b"y")
    assert "has 1 image that it has more than once: same.jpg" in prepare_here(
        tmp_path / "data", tmp_path / "out2"
    )


def test_links_and_devices_in_an_archive_are_named_and_not_left_out(
    jpegs: Dict[str, bytes], tmp_path: Path, prepare_here: PrepareHere
) -> None:
    (tmp_path / "data").mkdir()
    with tarfile.open(str(tmp_path / "data" / "ILSVRC2012_img_val.tar"), "w") as archive:
        add_member(archive, "a.jpg", b"x")
        for name, kind in (("b.jpg", tarfile.SYMTYPE), ("c.jpg", tarfile.CHRTYPE)):
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, "/etc/passwd"
            archive.addfile(member)
    write_files(tmp_path / "data", {"val.txt": b"a.jpg 3\nb.jpg 4\nc.jpg 4\n"})
    said = prepare_here(tmp_path / "data", tmp_path / "out")
    assert "has 2 images that are links or devices: b.jpg, c.jpg; pack the files themselves" in said
    assert not (tmp_path / "out" / "val_union").exists()


@pytest.mark.parametrize(
    "rows, sentence",
    (
        (
            {"picture": [b"x"], "label": [1]},
            "should have the columns `image` (a struct of `bytes` and `path`) and `label`",
        ),
        ({"image": [b"x"], "label": [1]}, "should have the columns `image`"),
        (
            {"image": [{"bytes": b"x", "path": "a.jpg"}], "label": [-1]},
            "has an image with the label -1, so it is not the",
        ),
    ),
)
def test_parquet_of_another_kind_is_refused(
    rows: Dict[str, Any], sentence: str, tmp_path: Path, prepare_here: PrepareHere
) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    parquet.write_table(pyarrow.table(rows), str(tmp_path / "validation.parquet"))
    assert sentence in prepare_here(tmp_path / "validation.parquet", tmp_path / "out")
    (tmp_path / "validation.parquet").write_bytes(b"PAR1")
    assert "is not a complete Parquet file" in prepare_here(
        tmp_path / "validation.parquet", tmp_path / "out"
    )


@pytest.mark.parametrize("package, form", (("scipy", archives), ("pyarrow", hugging_face_parquet)))
def test_a_package_that_only_this_data_needs_is_asked_for(
    package: str,
    form: Any,
    jpegs: Dict[str, bytes],
    tmp_path: Path,
    prepare_here: PrepareHere,
    monkeypatch: Any,
) -> None:
    form(tmp_path, jpegs)
    monkeypatch.setitem(sys.modules, package, None)
    real = __import__("importlib.util").util.find_spec
    monkeypatch.setattr(
        "importlib.util.find_spec", lambda n, *a: None if n == package else real(n, *a)
    )
    assert f"needs the package {package}, which is not installed; " in prepare_here(
        tmp_path, tmp_path / "out"
    )


# ---- through the pipeline ------------------------------------------------------------------------


@pytest.mark.slow
def test_the_pipeline_takes_an_archive_and_other_labels(
    small_sample: Path, small_model: Path, tmp_path: Path
) -> None:
    lines = [line.split() for line in (small_sample / "val_label.txt").read_text().splitlines()][:4]
    data = tmp_path / "data"
    data.mkdir()
    with tarfile.open(str(data / "ILSVRC2012_img_val.tar"), "w") as archive:
        for number, (photo, _) in enumerate(lines, 1):
            add_member(
                archive, image_name(number), (small_sample / "val_union" / photo).read_bytes()
            )
    (data / "val.txt").write_text(
        "".join(f"{image_name(number)} {label}\n" for number, (_, label) in enumerate(lines, 1))
    )
    shutil.copy(str(small_sample / "model_best.pth.tar"), str(data))
    real = [[int(label)] if number else [] for number, (_, label) in enumerate(lines)]
    (tmp_path / "real.json").write_text(json.dumps(real))
    copy_products(small_model, tmp_path / "work")
    for options, count in (([], "4"), (["--labels", str(tmp_path / "real.json")], "3")):
        done = run(
            "scripts/pipeline.py",
            "--backend",
            "cpu",
            "--data",
            data,
            "--workdir",
            tmp_path / "work",
            "--img-size",
            SMALL,
            *options,
            cwd=str(ROOT),
        )
        assert done.returncode == 0, done.stdout + done.stderr
        assert "labels by Caffe's list" in done.stdout
        found = {
            row["key"]: row["value"]
            for row in json.loads((tmp_path / "work" / "acc.json").read_text())["value"]
        }
        assert (found["Number of images"], found["Top1 accuracy"]) == (count, "100.0%")


# ---- the owner of photos -------------------------------------------------------------------------


def located(*words: object) -> check.Data:
    """What the pipeline knows of the data before its first step."""
    with mock.patch.object(sys, "argv", ["pipeline.sh", *map(str, words)]):
        return check.locate(pipeline.parse_arguments())


def refused_labels(*words: object) -> str:
    with pytest.raises(Refusal) as raised:
        check.check_labels(located(*words))
    return raised.value.sentence


@pytest.mark.parametrize("inside", ["", "val", "photos"])
def test_the_root_of_class_folders_may_be_named_itself(
    inside: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = fill(tmp_path / "my" / inside, ["bolt/a.png", "nut/b.png", "washer/c.png"])
    data = located("--data", root, "--workdir", tmp_path / "work")
    assert (data.images, data.from_folders) == (str(root), True)
    assert check.check_images(data) == f"3 in {root}"
    assert check.check_labels(data) == "from the 3 class folders"
    monkeypatch.chdir(root.parent)
    data = located("--data", root.name + "/", "--workdir", tmp_path / "work")
    assert check.check_labels(data) == "from the 3 class folders"


def test_a_folder_with_splits_names_the_one_that_has_class_folders(tmp_path: Path) -> None:
    fill(tmp_path, ["train/bolt/a.png", "test/bolt/b.png"])
    with pytest.raises(Refusal, match=f"; perhaps {tmp_path}/test, which has class folders$"):
        dataset.find(str(tmp_path))


def test_the_validation_folder_itself_finds_labels_and_checkpoint_beside_it(
    tmp_path: Path,
) -> None:
    fill(tmp_path, ["val/a.png", "val/b.png"])
    (tmp_path / "val_label.txt").write_text("a 0\nb 1\n")
    (tmp_path / "model_best.pth.tar").write_bytes(b"")
    data = located("--data", tmp_path / "val", "--workdir", tmp_path / "work")
    assert check.check_labels(data) == f"2 in {tmp_path}/val_label.txt"
    assert data.checkpoint == str(tmp_path / "model_best.pth.tar")
    assert data.images == str(tmp_path / "val")


def test_a_folder_of_images_with_a_table_needs_no_preparation(tmp_path: Path) -> None:
    fill(tmp_path / "photos", ["a.png", "b.png"])
    (tmp_path / "photos" / "labels.csv").write_text("ImageId,Class\na,0\nb,1\n")
    data = located("--data", tmp_path / "photos", "--workdir", tmp_path / "work")
    assert not data.to_prepare
    assert check.check_labels(data) == f"2 in {tmp_path}/photos/labels.csv"
    other = tmp_path / "other.csv"
    other.write_text("b.png,1\na.png,0\n")
    data = located("--data", tmp_path / "photos", "--labels", other)
    assert check.check_labels(data) == f"2 in {other}"


def test_images_without_any_labels_are_refused_by_what_is_missing(tmp_path: Path) -> None:
    fill(tmp_path / "photos", ["a.png"])
    assert refused_labels("--data", tmp_path / "photos", "--workdir", tmp_path / "work") == (
        f"{tmp_path}/photos/val_label.txt does not exist, and not all images are in class folders, "
        "which would give them labels: a.png"
    )


@pytest.mark.parametrize(
    "make, said",
    [
        (lambda path: os.mkfifo(str(path)), "is neither a folder nor a regular file"),
        (lambda path: path.symlink_to("/dev/null"), "is neither a folder nor a regular file"),
        (lambda path: path.write_bytes(b"x"), "is not a data set of a known form"),
    ],
)
def test_what_is_neither_folder_nor_archive_is_refused_in_one_sentence(
    make: Any, said: str, tmp_path: Path
) -> None:
    make(tmp_path / "data")
    data = located("--data", tmp_path / "data", "--workdir", tmp_path / "work")
    with pytest.raises(Refusal, match=said):
        check.check_images(data)


def test_class_folders_that_are_numbers_may_be_in_text_order(tmp_path: Path) -> None:
    for number in range(1000):
        (tmp_path / "val" / str(number)).mkdir(parents=True)
    fill(tmp_path / "val", ["10/a.png", "9/b.png"])
    assert located("--data", tmp_path, "--workdir", tmp_path / "work").to_prepare
    data = located("--data", tmp_path, "--class-order", "text", "--workdir", tmp_path / "work")
    assert data.from_folders and not data.to_prepare


def test_the_labels_are_compared_with_config_json_before_the_export(tmp_path: Path) -> None:
    fill(tmp_path / "val", ["bolt/a.png", "nut/b.png"])
    hub = tmp_path / "hub"
    hub.mkdir()
    (hub / "config.json").write_text(json.dumps({"architecture": "tresnet_m", "num_classes": 5}))
    (hub / "model.safetensors").write_bytes(b"")
    words = ("--data", tmp_path, "--checkpoint", hub, "--workdir", tmp_path / "work")
    assert "has 2 class folders (bolt, nut)" in refused_labels(*words)
    (hub / "config.json").write_text(json.dumps({"architecture": "tresnet_m", "num_classes": 2}))
    assert check.check_labels(located(*words)) == "from the 2 class folders"
    (tmp_path / "l.txt").write_text("a 0\nb 2\n")
    said = refused_labels(*words, "--labels", tmp_path / "l.txt")
    assert "line 2: label 2 is outside the classes 0 to 1 of the model" in said


# ---- Tiny-ImageNet -------------------------------------------------------------------------------

TINY = ["n02124075", "n04067472", "n04540053", "n01443537"]  # as wnids.txt has them: in no order


@pytest.mark.parametrize("inside", ["", "val"])
def test_tiny_imagenet_is_numbered_in_the_order_of_its_training_folders(
    inside: str, tmp_path: Path, prepare_here: PrepareHere
) -> None:
    root = fill(tmp_path / "tiny", [f"val/images/val_{number}.JPEG" for number in range(4)])
    (root / "wnids.txt").write_text("".join(f"{wnid}\n" for wnid in TINY))
    rows = [f"val_{number}.JPEG\t{wnid}\t0\t32\t44\t62\n" for number, wnid in enumerate(TINY)]
    (root / "val" / "val_annotations.txt").write_text("".join(rows))
    said = prepare_here(root / inside, tmp_path / "out")
    assert f"labels by WordNet IDs in {root / 'val'}/val_annotations.txt" in said
    assert (tmp_path / "out" / "val_label.txt").read_text() == "".join(
        f"val_{number}.JPEG {label}\n" for number, label in enumerate([1, 2, 3, 0])
    )
    data = located("--data", root / inside, "--workdir", tmp_path / "work")
    assert data.to_prepare and data.images == str(root / "val" / "images")


def test_annotations_that_are_not_tiny_imagenets_are_refused(
    tmp_path: Path, prepare_here: PrepareHere
) -> None:
    root = fill(tmp_path / "tiny", ["val/images/val_0.JPEG"])
    (root / "val" / "val_annotations.txt").write_text("val_0.JPEG\tn0\n")
    assert "line 1: the name of an image, a tab and a WordNet ID were" in prepare_here(
        root, tmp_path / "out"
    )


def test_what_macos_puts_into_an_archive_is_passed_over(
    jpegs: Dict[str, bytes], tmp_path: Path, prepare_here: PrepareHere
) -> None:
    (tmp_path / "data").mkdir()
    archives(tmp_path / "data", jpegs)
    image = min(jpegs)
    with tarfile.open(str(tmp_path / "data" / "ILSVRC2012_img_val.tar"), "a") as archive:
        add_member(archive, f"./._{image}", b"\0\x05\x16\x07")
        add_member(archive, f"__MACOSX/{image}", b"\0\x05\x16\x07")
    prepare_here(tmp_path / "data", tmp_path / "out")
    unpacked = {path.name: path.read_bytes() for path in (tmp_path / "out/val_union").iterdir()}
    assert unpacked == jpegs
