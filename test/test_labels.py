"""Labels as people have them: tables, other encodings, names that other systems changed."""

import os
import unicodedata
from pathlib import Path
from typing import Dict, List, Tuple

from common.core import options, packages, places
from common.core.cli import Refusal
from common.data import labels, wnids
from common.data.labels import Label, match_labels

import pytest
from test_data import WNIDS, synsets
from test_postprocess import accuracy, call, postprocess_refusal, scores, write


def read(path: Path, text: str, encoding: str = "utf-8") -> List[Tuple[str, int]]:
    """[(NAME, class)] of a labels file with this text."""
    path.write_bytes(text.encode(encoding))
    asked = None if encoding == "utf-8" else encoding
    found = labels.read_label_file(str(path), multi_label=False, encoding=asked)
    return [(label.name, label.classes[0]) for label in found]


def refused(path: Path, text: str) -> str:
    with pytest.raises(Refusal) as raised:
        read(path, text)
    return raised.value.sentence


# ---- tables --------------------------------------------------------------------------------------

CATS = [("a b.jpg", 281), ("c", 7)]


@pytest.mark.parametrize(
    "text",
    [
        "ImageId,Class\na b.jpg,281\nc,7\n",
        "a b.jpg,281\nc,7\n",
        "a b.jpg, 281\r\nc, 7\r\n",
        '"ImageId";"Class"\n"a b.jpg";"281"\n"c";"7"\n',
        "a b.jpg;281\nc;7",
        "\ufeffimage_name,split,label\na b.jpg,val,281\nc,val,7\n",
        "label,filename\n281,a b.jpg\n7,c\n",
        "图片,类别\na b.jpg,281\nc,7\n",
        "id,file_name,class,class_id\n0,a b.jpg,cat,281\n1,c,dog,7\n",
        "filename\tlabel\na b.jpg\t281.0\nc\t7.0\n",
        "281,a b.jpg\n7,c\n",
    ],
)
def test_tables_are_read_with_and_without_a_heading(text: str, tmp_path: Path) -> None:
    assert read(tmp_path / "labels.csv", text) == CATS


@pytest.mark.parametrize(
    "text", ["a b.jpg, 281\nc, 7\n", "a b.jpg;281\nc;7\n", '"a b.jpg",281\nc,7']
)
def test_a_table_is_recognised_without_the_suffix_too(text: str, tmp_path: Path) -> None:
    assert read(tmp_path / "val_label.txt", text) == CATS


def test_lines_whose_names_have_commas_are_no_table(tmp_path: Path) -> None:
    lines = "a,b.jpg 3\nc;d.jpg 4\n5,6 7 8\n"
    found = [("a,b.jpg", 3), ("c;d.jpg", 4), ("5,6 7", 8)]
    assert read(tmp_path / "l.txt", lines) == found


def test_wordnet_ids_get_the_number_of_their_class(tmp_path: Path) -> None:
    (tmp_path / wnids.SYNSETS).write_bytes(synsets())  # Kaggle's list lies beside the labels
    ordered = sorted(WNIDS)
    text = f"ImageId,Class\nx,{ordered[700]}\ny,{ordered[0]} 1 2 3 4\n"
    assert read(tmp_path / "l.csv", text) == [("x", 700), ("y", 0)]
    assert read(tmp_path / "l.txt", f"x.jpg {ordered[999]}\ny 12\n") == [("x.jpg", 999), ("y", 12)]
    assert "names n99999999, which is not among ImageNet's 1,000 WordNet IDs" in refused(
        tmp_path / "l.csv", "x,n99999999\n"
    )


@pytest.mark.slow
def test_wordnet_ids_without_a_list_take_the_one_of_the_registry(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(places, "ROOT", str(tmp_path))
    text = "ImageId,Class\ntench,n01440764\ntissue,n15075141\n"
    assert read(tmp_path / "l.csv", text) == [("tench", 0), ("tissue", 999)]
    monkeypatch.setattr(packages, "fetch", None)  # a second time nobody is asked
    assert read(tmp_path / "l.csv", "cat,n02123045\n") == [("cat", 281)]


@pytest.mark.slow
def test_without_a_list_of_wordnet_ids_one_sentence_says_what_helps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(places, "ROOT", str(tmp_path))
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_NO_CACHE_DIR", "1")
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    said = refused(tmp_path / "l.csv", "x,n01440764\n")
    assert said.endswith("could not be fetched; put Kaggle's LOC_synset_mapping.txt beside it")


@pytest.mark.parametrize(
    "text, said",
    [
        ("ImageId,Class\nx,1\ny,cat\n", "line 3: the name of an image and its class, a whole"),
        ("ImageId,Class\nx\n", "line 2: the name of an image and its class"),
        ("ImageId,Class\n,3\n", "line 2: the name of an image and its class"),
        ("a,b,c\nx,y,3\n", "has 3 columns (a, b, c), but none is known to have the images"),
        ("ImageId,Class\n", "holds no labels"),
        ("ImageId,Class\n\n\n", "holds no labels"),
    ],
)
def test_a_table_that_cannot_be_read_is_refused_by_its_line(
    text: str, said: str, tmp_path: Path
) -> None:
    assert said in refused(tmp_path / "l.csv", text)


def test_the_accuracy_over_a_table_is_that_over_lines(tmp_path: Path) -> None:
    write(tmp_path / "result", {"a": scores(10, 3), "b": scores(10, 0), "c": scores(10, 7, 2)})
    (tmp_path / "labels.txt").write_text("ImageId,Class\na,3\nb.JPEG,0\n./c.jpg,2\n")
    assert call(tmp_path)[0] == 0
    assert accuracy(tmp_path)["Top1 accuracy"] == "66.67%"
    assert accuracy(tmp_path)["Top2 accuracy"] == "100.0%"


# ---- encodings -----------------------------------------------------------------------------------

NAMES = {"螺栓/图一.jpg": "a", "螺母/图二.jpg": "b"}


def match(images: Dict[str, str], lines: List[Label]) -> Dict[str, int]:
    found = match_labels(images, lines, "l.txt")
    return {stem: label.classes[0] for stem, label in found.items()}


@pytest.mark.parametrize("encoding", ["gbk", "gb18030", "big5", "utf-16"])
def test_labels_of_another_encoding_are_read_as_it_is_named(encoding: str, tmp_path: Path) -> None:
    text = "一一/中文.jpg 0\r\n中/大小.jpg 1\r\n"
    assert read(tmp_path / "l.txt", text, encoding) == [("一一/中文.jpg", 0), ("中/大小.jpg", 1)]
    assert read(tmp_path / "l.csv", "中文,3\n大,4\n", encoding) == [("中文", 3), ("大", 4)]


def test_labels_in_gbk_are_recognised_and_the_option_is_named(tmp_path: Path) -> None:
    (tmp_path / "l.txt").write_bytes("螺栓/图一.jpg 0\n螺母/图二.jpg 1\n".encode("gbk"))
    images = {stem: source for source, stem in NAMES.items()}
    lines = labels.read_labels(str(tmp_path / "l.txt"))
    with pytest.raises(Refusal) as raised:
        match(images, lines)
    assert raised.value.sentence.endswith(
        "; the file seems to be GBK, not UTF-8: --labels-encoding gb18030"
    )
    assert match(images, labels.read_labels(str(tmp_path / "l.txt"), "gb18030")) == {"a": 0, "b": 1}


def test_gbk_that_is_good_utf8_as_well_is_recognised_by_its_names(tmp_path: Path) -> None:
    content = "图片0.jpg 0\n".encode("gbk")
    assert content.decode("utf-8") == "ͼƬ0.jpg 0\n"
    (tmp_path / "l.txt").write_bytes(content)
    with pytest.raises(Refusal, match="seems to be GBK, not UTF-8: --labels-encoding gb18030"):
        match({"stem": "图片0.jpg"}, labels.read_labels(str(tmp_path / "l.txt")))


def test_text_of_another_encoding_than_the_named_one_is_refused_by_its_line(tmp_path: Path) -> None:
    (tmp_path / "l.txt").write_bytes(b"a 0\nb\xff\xff 1\n")
    with pytest.raises(Refusal, match="l.txt, line 2 is not gb18030 text; give its --labels-enc"):
        labels.read_labels(str(tmp_path / "l.txt"), "gb18030")


@pytest.mark.parametrize("name", ["klingon", "hex", "a\0b", ""])
def test_what_is_not_an_encoding_of_texts_is_refused(name: str) -> None:
    with pytest.raises(options.Wrong, match="is not an encoding of texts"):
        options.text_encoding(name)


def test_the_step_by_hand_takes_the_encoding(tmp_path: Path) -> None:
    write(tmp_path / "result", {"图一": scores(3, 1), "图二": scores(3, 2)})
    (tmp_path / "labels.txt").write_bytes("图一.jpg 1\n图二.jpg 2\n".encode("gbk"))
    assert (
        "; the file seems to be GBK, not UTF-8: --labels-encoding gb18030"
        in postprocess_refusal(tmp_path)
    )
    assert call(tmp_path, "--labels-encoding", "gbk")[0] == 0
    assert accuracy(tmp_path)["Top1 accuracy"] == "100.0%"


# ---- names that other systems changed ------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        unicodedata.normalize("NFD", "café/école.jpg"),
        "café\\école.jpg",
        ".\\café\\école.JPG",
        "C:\\photos\\café\\école.jpg",
        '"café/école.jpg"',
        "'café/école.jpg'",
        "café/école.jpg,",
        "./café/école",
    ],
)
def test_a_name_is_found_as_other_systems_write_it(name: str) -> None:
    images = {"stem-1": "café/école.jpg", "stem-2": "thé/école.jpg"}
    lines = [Label(name, (3,), 1), Label("thé/école.jpg", (4,), 2)]
    assert match(images, lines) == {"stem-1": 3, "stem-2": 4}


def test_names_that_differ_only_by_their_normal_form_are_not_guessed() -> None:
    composed, apart = (unicodedata.normalize(form, "é.jpg") for form in ("NFC", "NFD"))
    images = {"one": composed, "two": apart}
    exact = [Label(composed, (0,), 1), Label(apart, (1,), 2)]
    assert match(images, exact) == {"one": 0, "two": 1}
    with pytest.raises(Refusal, match="line 2: .* may be .* or .*; give each its path"):
        match(images, [Label(composed, (0,), 1), Label('"é.jpg"', (1,), 2)])


# ---- large files ---------------------------------------------------------------------------------


def test_a_labels_file_that_is_too_large_is_refused_before_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "l.txt"
    with open(str(path), "wb") as file:
        file.truncate(229_000_000)
    with pytest.raises(Refusal, match="l.txt has 229 MB, but at most 67 MB are read as labels"):
        labels.read_labels(str(path))


def test_files_with_names_in_gbk_are_found_by_labels_in_utf8() -> None:
    source = os.fsdecode("螺栓/图一.jpg".encode("gbk"))
    assert match({"stem": source}, [Label("螺栓/图一.jpg", (5,), 1)]) == {"stem": 5}


def test_a_class_map_in_gbk_is_recognised(tmp_path: Path) -> None:
    (tmp_path / "map.txt").write_bytes("螺栓 0\n螺母 1\n".encode("gbk"))
    with pytest.raises(Refusal, match="folder 螺母; the file seems to be GBK: save it as UTF-8"):
        labels.class_labels(
            str(tmp_path), ["螺母/a.png"], {"螺母/a.png": "a"}, str(tmp_path / "map.txt")
        )
