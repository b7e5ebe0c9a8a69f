"""Several right answers for an image: ImageNet-ReaL's real.json, and the labels of a multi-label data set.

Standard library only.
"""
import json
import re
from typing import Any, List, Optional, Tuple

from common.cli import Refusal, shown
from common.files import read_regular
from common.labels import LARGEST, label_offset, label_shift, read_labels, text_of

VALIDATION_NAME = "ILSVRC2012_val_{:08d}"  # of image N, counted from 1, in ImageNet's validation set
Answers = Tuple[str, Tuple[int, ...], int]  # NAME, its classes, line (or place in the list, from 1)


def is_real(path: str) -> bool:
    """Whether a labels file is one of ReaL's form, by its name."""
    return path.lower().endswith(".json")


def read_real(path: str) -> List[Answers]:
    """ReaL labels: a JSON list with a list of right classes, which may be empty, for each validation image in order.

    Source: https://github.com/google-research/reassessed-imagenet. Raises: Refusal for anything else.
    """
    data = read_regular(path, largest=LARGEST)
    try:
        lists = json.loads(data.decode("utf-8"))
    except (ValueError, RecursionError):
        raise Refusal(f"{shown(path)} is no JSON file; ReaL's real.json was expected, a list of lists of classes"
                      ) from None
    for place, classes in enumerate(lists if isinstance(lists, list) and lists else [None], 1):
        if not isinstance(classes, list) or not all(type(one) is int and 0 <= one < 10**9 for one in classes):
            raise Refusal(f"{shown(path)} is not of the form of ReaL's real.json: entry {place} is no list of classes, "
                          "such as [65, 395]")
    return [(VALIDATION_NAME.format(place), tuple(sorted(set(classes))), place)
            for place, classes in enumerate(lists, 1)]


def read_multi_label(path: str) -> List[Answers]:
    """Lines `NAME 3 17 40`: an image and its classes, in any order; a NAME alone has none. NAME may hold spaces.

    Raises: Refusal for a file that holds no such line.
    """
    answers: List[Answers] = []
    for line, row in enumerate(text_of(path, LARGEST).split("\n"), 1):
        found = re.fullmatch(r"\s*(.*?)((?:\s+[0-9]{1,9})*)\s*", row)
        if found and found.group(1):
            answers.append((found.group(1), tuple(sorted(set(map(int, found.group(2).split())))), line))
    if not any(classes for _, classes, _ in answers):
        raise Refusal(f"{shown(path)} holds no labels; lines 'NAME INT INT …' were expected, as in 'street.jpg 3 17'")
    return answers


def read(path: str, multi_label: bool) -> List[Any]:
    """[(NAME, its class or a tuple of its classes, line)] of a labels file of any form."""
    if multi_label:
        return list(read_multi_label(path))
    return list(read_real(path) if is_real(path) else read_labels(path))


def offset_of(lines: List[Any], classes: int, path: str, multi_label: bool, asked: Optional[int] = None) -> int:
    """What to add to each label of read() to have the network's class; asked: what the user says of that.

    Raises: Refusal for a label that is no class of the network then.
    """
    if not multi_label and not is_real(path):
        return label_offset(lines, classes, path, asked)
    offset = asked if asked is not None else 0 if multi_label else label_shift(classes)
    for _, right, line in lines:
        if right and not 0 <= right[0] + offset <= right[-1] + offset < classes:
            wrong = right[-1] if right[-1] + offset >= classes else right[0]
            raise Refusal(f"{shown(path)}, line {line}: label {wrong} is outside the classes {-offset} to "
                          f"{classes - 1 - offset} of the model")
    return offset
