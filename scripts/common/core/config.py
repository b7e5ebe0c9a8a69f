"""Options from a file: a JSON object of options, or the run.json that an earlier run wrote.

    {"data": "./ImageNet", "batch_sizes": [1, 8], "uint8": true, "shard": "1/4"}

A key is an option's long word without the dashes; "batch-sizes" and "batch_sizes" are the same.
Options on the command line win. In a run.json the options are below the key "options".
Standard library only.
"""

import argparse
import json
import os
import sys
from difflib import get_close_matches
from typing import Any, Dict, Iterable, List

from common.core import cli, json_file, record
from common.core.cli import Refusal, shown, why

RUN = "run.json"
# Options that say what to do now, not what comes out: a run.json does not repeat them. The work
# folder is the one in which the file lies.
NOT_KEPT = (
    "config",
    "check",
    "clean",
    "dry_run",
    "force",
    "from_step",
    "help",
    "only",
    "version",
    "workdir",
    "yes",
)
PATHS = ("DIR", "FILE", "FOLDER")  # what stands for a path in the help
ADVICE = 'an object of options is expected, such as {"data": "./ImageNet", "batch_sizes": [1, 8]}'


def parse(parser: cli.Parser) -> argparse.Namespace:
    """The options of the command line, and those of the file that its --config names.

    The namespace has as `words` the command line with the file's options instead of --config.
    Ends the program with status 2 for a key that is not an option, or a value that does not fit.
    Raises: Refusal if the file cannot be read or is not JSON.
    """
    command_line = sys.argv[1:]
    given = parser.parse_args(command_line)
    given.words = command_line
    if not given.config:
        return given
    parser.source = shown(given.config)
    from_file = words(parser, given.config)
    parser.parse_args(from_file)  # a mistake in the file is named as such
    parser.source = ""
    own = without_config(command_line)
    given = parser.parse_args([*from_file, *own], argparse.Namespace(config=given.config))
    given.words = [*from_file, *own]
    return given


def without_config(command_line: Iterable[str]) -> List[str]:
    """The words of a command line without --config and its value."""
    kept: List[str] = []
    is_value = False
    for word in command_line:
        name, equals, _ = word.partition("=")
        is_config = len(name) > len("--c") and "--config".startswith(name)
        if not is_config and not is_value:
            kept.append(word)
        is_value = is_config and not equals
    return kept


# ---- reading -------------------------------------------------------------------------------------


def read(path: str) -> Dict[str, Any]:
    """{key: value} of the options in a file.

    Those of a run.json in its work folder have that folder as "workdir".
    Raises: Refusal if the file cannot be read or is not a JSON object.
    """
    try:
        content = json_file.load(path)
        if isinstance(content, dict) and isinstance(content.get("options"), dict):
            content = dict(content["options"])
            if os.path.basename(path) in record.read(path).made:
                content["workdir"] = os.path.dirname(path) or "."
        json_file.require(content, {str: (str, bool, None, json_file.FIGURE, [json_file.FIGURE])})
    except ValueError as error:
        raise Refusal(f"{shown(path)} cannot be used ({why(error)}); {ADVICE}") from None
    return dict(content)


def words(parser: cli.Parser, path: str) -> List[str]:
    """The options in a file as words of a command line.

    Ends the program with status 2 for a key that is not an option.
    """
    actions: Dict[str, argparse.Action] = {}
    for action in parser._actions:
        for word in action.option_strings:
            actions[word.lstrip("-").replace("-", "_")] = action
    for name in ("help", "version", "config"):
        del actions[name]
    command_line: List[str] = []
    for key, value in read(path).items():
        name = key.replace("-", "_")
        if name not in actions:
            meant = get_close_matches(name, actions, 1, cli.ALIKE)
            hint = f" (did you mean {meant[0]}?)" if meant else ""
            parser.error(f"{shown(key)} is not an option that a file can have{hint}")
        command_line += words_of(parser, key, actions[name], value)
    return command_line


def words_of(parser: cli.Parser, key: str, action: argparse.Action, value: Any) -> List[str]:
    """The words that give one option of a file. null and false leave it out."""
    is_switch = action.nargs == 0
    if value is None or value is False:
        return []
    if is_switch != (value is True):
        expected = "true or false" if is_switch else "a text or a number"
        parser.error(f"{shown(key)} is {json.dumps(value)}, {expected} was expected")
    word = next(word for word in action.option_strings if word.startswith("--"))
    if is_switch:
        return [word]
    if isinstance(value, list) and isinstance(action.nargs, int):
        return [word, *map(str, value)]
    text = ",".join(map(str, value)) if isinstance(value, list) else str(value)
    return [f"{word}={text}"]


# ---- writing -------------------------------------------------------------------------------------


def values(parser: argparse.ArgumentParser, given: argparse.Namespace) -> Dict[str, Any]:
    """{option: value} of a run, for its run.json: all that have a value, defaults too.

    Paths are absolute, so that the file serves from any folder.
    """
    found: Dict[str, Any] = {}
    for action in parser._actions:
        value = getattr(given, action.dest, None)
        if action.dest in NOT_KEPT or value is None or value is False or value == "":
            continue
        if action.metavar in PATHS:
            value = os.path.abspath(value)
        if value == [] and action.dest == "device":
            value = "all"
        if action.dest == "shard":
            value = "/".join(map(str, value))
        found[action.dest] = value
    return found
