"""A JSON file whose content may be anything: its shape is as expected, or the file is refused.

A shape is written with values:

    FIGURE, COUNT, SIZE  a number; so does Number(least, most, integer)
    str, bool, None      text that messages and paths can hold; true or false; null
    [shape]              a list of such values; [shape, ...] is a list with at least one
    [shape, shape]       a list of exactly two values
    {"key": shape}       an object with this key; "key?" may be missing; other keys may be there
    {str: shape}         an object with any keys and such values
    (shape, shape)       one or the other

Standard library only.
"""

import itertools
import json
import os
from typing import Any, Callable, Dict, List, NamedTuple, Tuple

from common.core import files
from common.core.cli import Refusal, shown, why


def encode(value: Any) -> bytes:
    """The content of a JSON file that people may read too."""
    return (json.dumps(value, indent=1) + "\n").encode("ascii")


class Number(NamedTuple):
    """The shape of a number within bounds, which NaN and infinity are not."""

    least: float
    most: float
    integer: bool = False

    def __str__(self) -> str:
        kind = "a whole number" if self.integer else "a number"
        return kind if self == FIGURE else f"{kind} from {self.least:,} to {self.most:,}"


FIGURE = Number(-1e40, 1e40)  # no figure here is larger: float32 ends at 3.4e38
COUNT = Number(0, 10**9, True)
SIZE = Number(1, 10**9, True)  # of what cannot be empty
ROOT_NAME = "it"  # what a message calls the whole content
NAMES = {
    str: "a text",
    bool: "true or false",
    type(None): "null",
    dict: "an object",
    list: "a list",
}


def load(path: str, largest: int = files.LARGEST) -> Any:
    """The content of a JSON file, of any shape.

    Raises: Refusal if it cannot be read or is not a regular file, ValueError if it is not JSON.
    """
    data = files.read_regular(path, largest=largest)
    try:
        return json.loads(data.decode("utf-8"))
    except UnicodeDecodeError:
        raise ValueError("it is not UTF-8 text") from None
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def read(
    path: str,
    shape: Any,
    advice: str,
    largest: int = files.LARGEST,
    check: Callable[[Any], None] = lambda content: None,
) -> Any:
    """The content of a JSON file of this shape.

    advice: what to do if the file has another shape.
    check: raises ValueError for values that contradict each other.
    Raises: Refusal, "PATH is damaged (WHY); ADVICE".
    """
    try:
        content = load(path, largest)
        require(content, shape)
        check(content)
    except ValueError as error:
        raise Refusal(f"{shown(path)} is damaged ({why(error)}); {advice}") from None
    return content


def require(content: Any, shape: Any, name: str = ROOT_NAME) -> None:
    """Raises: ValueError that says where `content` is not of this shape. name: of the content."""
    if isinstance(shape, dict) and isinstance(content, dict):
        require_object(content, shape, name)
    elif isinstance(shape, list) and isinstance(content, list):
        require_list(content, shape, name)
    elif type(shape) is tuple:
        require_one_of(content, shape, name)
    elif not fits(content, shape):
        value = NAMES[type(content)] if isinstance(content, (dict, list)) else json.dumps(content)
        expected = name_of(shape)
        if shape is str and isinstance(content, str):
            expected += " that messages and paths can hold"
        raise ValueError(f"{name} is {value[:40]}, {expected} was expected")


def require_object(content: Dict[str, Any], shape: Dict[Any, Any], name: str) -> None:
    if str in shape:
        require(list(content), [str], f"a key of {name}")
        shape = dict.fromkeys(content, shape[str])
    for key, inner in shape.items():
        plain_key = key.rstrip("?")
        if plain_key in content:
            inner_name = plain_key if name == ROOT_NAME else f"{name}.{plain_key}"
            require(content[plain_key], inner, inner_name)
        elif plain_key == key:
            raise ValueError(f"{name} lacks {key!a}")


def require_list(content: List[Any], shape: List[Any], name: str) -> None:
    inner, *more = shape
    if more == [...] and not content:
        raise ValueError(f"{name} is empty")
    if more and more != [...] and len(content) != len(shape):
        raise ValueError(f"{name} has {len(content)} entries, {len(shape)} were expected")
    if all_fit(content, inner):
        return
    of_list = "" if name == ROOT_NAME else f" of {name}"
    for number, value in enumerate(content, 1):
        require(value, inner, f"entry {number}{of_list}")


def all_fit(values: List[Any], shape: Any) -> bool:
    """Whether all values surely are of a shape: a quick test, because some lists are long."""
    types = set(map(type, values))
    if types == {str}:
        return shape is str and fits("".join(values), str)
    if types == {int}:
        return isinstance(shape, Number) and shape.least <= min(values) <= max(values) <= shape.most
    if types == {list} and isinstance(shape, list) and len(shape) == 1:
        return all_fit(list(itertools.chain.from_iterable(values)), shape[0])
    return not values


def require_one_of(content: Any, shapes: Tuple[Any, ...], name: str) -> None:
    alike = [shape for shape in shapes if is_alike(content, shape)]
    if len(alike) == 1:
        return require(content, alike[0], name)  # what is wrong lies inside the value
    reasons = []
    for shape in shapes:
        try:
            return require(content, shape, name)
        except ValueError as error:
            reasons.append(str(error))
    raise ValueError(f"{reasons[0]} (or {' or '.join(map(name_of, shapes[1:]))})")


def fits(content: Any, shape: Any) -> bool:
    """Whether a single value is of a shape."""
    if isinstance(shape, Number):
        right_type = type(content) is int or type(content) is float and not shape.integer
        return right_type and shape.least <= content <= shape.most
    if shape is str:
        try:
            return isinstance(content, str) and b"\0" not in os.fsencode(content)
        except UnicodeEncodeError:  # half of a surrogate pair
            return False
    return type(content) is (type(None) if shape is None else shape)


def is_alike(content: Any, shape: Any) -> bool:
    """Whether a value is a list, an object, a text, … as a shape is; its content may be wrong."""
    if isinstance(shape, Number):
        return type(content) in (int, float)
    return type(content) is (shape if isinstance(shape, type) else type(shape))


def name_of(shape: Any) -> str:
    """What a shape is called."""
    if isinstance(shape, Number):
        return str(shape)
    return NAMES[shape if isinstance(shape, type) else type(shape)]
