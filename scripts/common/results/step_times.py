"""How long the steps of a run took, and which of them only kept what was there.

A step kept everything if it left the records of all its products as they were. How long it took
to make a product is noted in run.json, together with what the product was made by. So a later run
can say it, if that run finds the same product. Standard library only.
"""

import contextlib
import json
import os
from typing import Any, Dict, List, NamedTuple, Optional

from common.core import files, record
from common.core.cli import Refusal
from common.results.work_files import RUN

FIRST_ROW = 1 << 20  # bytes that are read of a record to find its first row


class State(NamedTuple):
    """A record as it is now."""

    identity: Optional[record.Identity]  # None if it does not exist
    recipe: str  # checksum of what the product was made by


Making = Dict[str, Dict[str, Any]]  # {record: {"recipe": checksum, "seconds": s or None}}


def state_of(path: str) -> State:
    """The state of the record at a path; only its first row is read."""
    status = record.status_of_regular(path)
    if not status:
        return State(None, "")
    row: Any = {}
    with contextlib.suppress(OSError, Refusal):
        with open(files.open_regular(path, follow_links=False), "rb") as file:
            rows = record.decode([file.readline(FIRST_ROW)])
        row = rows[0].get("recipe", {}) if rows else {}
    text = json.dumps(row, sort_keys=True)
    return State(record.identity(status), files.checksum(text.encode("ascii")))


class StepTimes:
    """The times of a run's steps, and those of making the products in a work folder."""

    def __init__(self, workdir: str, force: bool) -> None:
        """force: nothing is kept, so that each step makes all of its products."""
        self.workdir, self.force = workdir, force
        self.steps: List[Dict[str, Any]] = []  # what run.json says of each step
        self.making: Making = {}
        self.before: Dict[str, State] = {}
        with contextlib.suppress(Refusal):  # a damaged file says nothing
            self.making = dict(RUN.read_in(workdir).get("making", {}))

    def begin(self, records: List[str]) -> None:
        """A step begins that makes the products of these records."""
        self.before = {path: state_of(path) for path in records}

    def end(self, name: str, seconds: float) -> Dict[str, Any]:
        """The step has ended. Returns: what run.json says of it.

        That is "name", "seconds", and "kept": whether it made nothing. Then "made_in" says how
        many seconds it had taken to make its products, or None if that is not known.
        """
        after = {path: state_of(path) for path in self.before}
        made = [path for path, state in after.items() if state != self.before[path]]
        step: Dict[str, Any] = {"name": name, "seconds": seconds, "kept": bool(after) and not made}
        for path in made:
            # An earlier run may have begun this product, and its time is not known.
            resumed = self.before[path].recipe == after[path].recipe and not self.force
            share = None if resumed else seconds / len(made)
            self.making[self.key(path)] = {"recipe": after[path].recipe, "seconds": share}
        if step["kept"]:
            step["made_in"] = self.made_in(after)
        self.steps.append(step)
        return step

    def made_in(self, records: Dict[str, State]) -> Optional[float]:
        """Seconds that it took to make products; None if that of one of them is not known."""
        total = 0.0
        for path, state in records.items():
            noted = self.making.get(self.key(path), {})
            if noted.get("recipe") != state.recipe or noted.get("seconds") is None:
                return None
            total += noted["seconds"]
        return total

    def key(self, path: str) -> str:
        """A record as run.json calls it: relative to the work folder, which may be moved."""
        return os.path.relpath(path, self.workdir)

    def noted(self) -> Making:
        """What run.json says of making the products that are still there."""
        present = {}
        for key, noted in self.making.items():
            if os.path.lexists(os.path.join(self.workdir, key)):
                present[key] = noted
        return present
