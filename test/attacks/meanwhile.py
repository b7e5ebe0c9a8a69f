"""Inputs that change while a step runs: replaced, edited in place or removed at an exact moment.

The preloaded library faults.c does it just before the N-th open, read, stat or mmap of the file, so
nothing depends on a race. The step may refuse, or take the old or the new file. Afterwards the same
command must give what it gives in a fresh folder with the file as it is now.
"""

import random
import shutil
from pathlib import Path
from typing import Dict, Tuple

from attacks import bed as ground
from attacks import faults, trial
from attacks.bed import Bed
from attacks.faults import Order
from attacks.trial import Outcome, Products, Skip, Step

KINDS = ("open", "read", "stat", "mmap")
ACTIONS = {"replaced": faults.REPLACE, "edited": faults.EDIT, "removed": faults.REMOVE}


def attack(bed: Bed, dice: random.Random) -> Tuple[str, Outcome]:
    """One try. Returns: what was done, and the judgement."""
    if bed.page is None:
        raise Skip("no C compiler for the preloaded library")
    bed.restore()
    step = ground.choose(dice, ground.STEPS)
    fresh = dice.random() < 0.6
    if fresh:
        bed.remove_products(step)
    path = choose_file(bed, step, dice)
    calls = ground.counted(bed, step, Order(str(path), KINDS), fresh)
    if not calls:  # an up-to-date step does not read everything
        bed.restore()
        bed.remove_products(step)
        path, fresh = choose_file(bed, step, dice), True
        calls = ground.counted(bed, step, Order(str(path), KINDS), fresh)
    name = str(path.relative_to(bed.here))
    spare, content = make_spare(bed, path, dice)
    way = dice.choice(sorted(ACTIONS))
    nth = dice.randint(1, max(1, calls))
    what = f"{step.name}{' afresh' if fresh else ''}: {name} {way} ({content}) at {nth} of {calls}"
    order = Order(str(path), KINDS, nth, ACTIONS[way], source=str(spare), target=str(path))
    page = bed.page
    page.give(order)
    ended = bed.run(step, lambda: faults.use(page))
    page.end()
    if not page.fired:
        what += " (never came)"
    return what, judge(bed, step, name, ended)


def choose_file(bed: Bed, step: Step, dice: random.Random) -> Path:
    """An input of the step; each kind equally often."""
    kinds: Dict[Tuple[str, str], list] = {}
    made = set(bed.expected[step.name])
    for path in bed.readable(step):
        if str(path.relative_to(bed.here)) not in made:
            kinds.setdefault((str(path.parent), path.suffix), []).append(path)
    return Path(dice.choice(kinds[dice.choice(sorted(kinds))]))


def make_spare(bed: Bed, path: Path, dice: random.Random) -> Tuple[Path, str]:
    """The file that comes in the place of another: (its path, what it is)."""
    spare = bed.folder / "spare"
    others = [other for other in path.parent.glob(f"*{path.suffix}") if other.is_file()]
    others = [other for other in others if other != path]
    choice = dice.random()
    if others and choice < 0.4:
        other = dice.choice(sorted(others))
        shutil.copyfile(str(other), str(spare))
        return spare, f"content of {other.name}"
    shutil.copyfile(str(path), str(spare))
    if choice < 0.7:
        return spare, trial.flip_bit(spare, dice)
    if choice < 0.8:
        return spare, "the same content"
    if choice < 0.9:
        spare.write_bytes(b"")
        return spare, "empty"
    return spare, trial.truncate(spare, dice)


def judge(bed: Bed, step: Step, name: str, ended: trial.Ended) -> Outcome:
    """Compare with the old products, with a second run and with a run in a fresh folder."""
    outcome, first = trial.judge_end(ended), bed.products(step)
    if outcome.kind in trial.BAD:
        return outcome
    again, second = bed.run(step), bed.products(step)
    second_outcome = trial.judge_end(again)
    if second_outcome.kind in trial.BAD:
        return second_outcome._replace(details=f"in the second run: {second_outcome.details}")
    bed.remove_products(step)
    from_new, fresh = bed.run(step), bed.products(step)
    fresh_outcome = trial.judge_end(from_new)
    if fresh_outcome.kind in trial.BAD:
        return fresh_outcome._replace(details=f"in a fresh folder: {fresh_outcome.details}")
    if is_not_an_input(step, name):
        return outcome
    if again.status == 0 and from_new.status == 0:
        difference = trial.different(second, fresh)
        if difference:
            return Outcome(
                trial.WRONG, f"a second run keeps what a fresh one does not: {difference}"
            )
    if again.status == 0 and from_new.status in (1, 2):
        details = f"the second run ends well, a fresh one says: {from_new.last}"
        return Outcome(trial.WRONG, details)
    if outcome.kind == trial.SURVIVED:
        return judge_mixture(first, bed.expected[step.name], fresh, outcome)
    return outcome


def is_not_an_input(step: Step, name: str) -> bool:
    """Whether another content of a file rightly gives the same products, or others.

    A record decides what is made again; acc.json is replaced; without its archive a folder needs no
    unpacking; the page shows the images and results that it was made from.
    """
    is_decision = name.endswith((".jsonl", "acc.json", ".tar"))
    return is_decision or (step.name == "report" and name.startswith(("prep/", "result/")))


def judge_mixture(first: Products, old: Products, new: Products, outcome: Outcome) -> Outcome:
    """Each product of a run that ended well is made of the old or of the new file."""
    mixed = [name for name in first if first[name] not in (old.get(name), new.get(name))]
    if mixed:
        return Outcome(trial.WRONG, f"of neither the old nor the new file: {sorted(mixed)[:4]}")
    return outcome
