"""The result folder that an inference fills, on the CPU as on the card.

An inference into FOLDER makes the results FOLDER/STEM_0.txt, …, the summary FOLDER_summary.json,
and the record FOLDER.record.jsonl, in which the summary is a piece of its own.
"""

import contextlib
import json
import os
from typing import Dict, List, NamedTuple

from common.core import record
from common.core.cli import Refusal, counted, shown
from common.core.files import read_regular
from common.core.record import Draft, Piece, Recipe, Record, Writer
from common.data import evaluation

SUMMARY = ""  # the key of the piece that is the summary


class ResultFolder(NamedTuple):
    """A result folder before it is filled."""

    prefix: str  # its path; the names of summary and record begin with it
    before: Record  # of the earlier run
    recipe: Recipe
    earlier: Dict[str, Piece]  # the intact pieces of the earlier run that this recipe would make
    kept: Dict[str, Piece]  # those of them that stay, without the summary

    def is_complete(self) -> bool:
        """Whether the earlier run finished, with the kept pieces and a summary, nothing else."""
        count = len(self.kept) + 1
        return self.before.finished and SUMMARY in self.earlier and len(self.earlier) == count

    def say_up_to_date(self, images: int) -> None:
        results = counted(images, "result")
        verb = "is" if images == 1 else "are"
        print(f"{results} in {shown(self.prefix)} {verb} up to date; --force infers again")

    def begin(self, names: Dict[str, List[str]]) -> Writer:
        """Begin to fill the folder.

        names: {path of an input: names of its results}.
        Raises: Refusal, for files that another program wrote.
        """
        expected = [summary_name(self.prefix)]
        for result_names in names.values():
            expected += [inside(self.prefix, name) for name in result_names]
        return record.begin_folder(self.before, self.recipe, expected, self.kept.values())

    def end(self, writer: Writer, summary: bytes) -> None:
        """Write the summary: the last piece of a run."""
        part = writer.part(summary_name(self.prefix), summary)
        writer.publish([Draft(SUMMARY, [], [part])])
        writer.finish()


def already_there(images: int) -> str:
    return f"{images} {'was' if images == 1 else 'were'} there already"


def inside(prefix: str, name: str) -> str:
    """A result as the record names it: relative to the folder in which the result folder lies."""
    return f"{os.path.basename(prefix)}/{name}"


def summary_name(prefix: str) -> str:
    """The summary as the record names it."""
    return os.path.basename(prefix) + "_summary.json"


# ---- the model that filled it --------------------------------------------------------------------


def model_of(result: str) -> str:
    """The model that RESULT_summary.json says was run; "" if it does not, or if it is gone.

    A compiled model may be gone if its ONNX file is still where it was.
    The runners and ais_bench note their command line there. Its paths are those of the folder where
    the inference ran: that may have been this one, or the result folder's parent.
    """
    result = os.path.abspath(result)
    with contextlib.suppress(Refusal, OSError, ValueError, LookupError, TypeError, RecursionError):
        summary = read_regular(result + "_summary.json").decode("utf-8", "surrogateescape")
        # Only the command line: to parse all of the file takes 0.15 s for 50,000 images.
        start = summary.index("[", summary.index('"args"'))
        words = json.JSONDecoder().raw_decode(summary, start)[0]
        model = model_among(words)
        parent = os.path.dirname(result)
        beside = [os.path.join(parent, model), os.path.join(parent, os.path.basename(model))]
        for path in (os.path.abspath(model), *beside):
            if os.path.isfile(path) or os.path.isfile(evaluation.onnx_of(path)):
                return path
    return ""


def model_among(words: List[str]) -> str:
    """The value of --model (or -m) on a command line. Raises: LookupError."""
    for place, word in enumerate(words):
        if word in ("--model", "-m"):
            return words[place + 1]
        if word.startswith("--model="):
            return word[len("--model=") :]
    raise LookupError("no --model")
