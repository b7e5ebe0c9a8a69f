"""Faults of the system: a call fails at the N-th time with EIO, ENOSPC, ESTALE, …

The library faults.c is preloaded. The step may end well or with a sentence; the same command must
then give the bytes of an undisturbed run.
"""

import random
from typing import Dict, Tuple

from attacks import bed as ground
from attacks import faults, trial
from attacks.bed import Bed
from attacks.faults import Order
from attacks.trial import Outcome, Skip

# Which errors a call can have; those of writing come with a full or broken disk.
WRITING = ("EIO", "ENOSPC", "EDQUOT", "EROFS", "ESTALE")
READING = ("EIO", "ESTALE", "EACCES", "EINTR", "ENOMEM")
ERRORS: Dict[str, Tuple[str, ...]] = {
    "read": READING[:2] + ("EINTR",),
    "write": WRITING + ("EINTR",),
    "open": READING + WRITING[1:4] + ("EMFILE",),
    "rename": WRITING + ("EACCES",),
    "fsync": ("EIO", "ENOSPC", "EDQUOT", "EROFS"),
    "close": ("EIO", "ENOSPC", "EDQUOT", "EINTR"),
    "stat": ("EIO", "ESTALE", "EACCES"),
    "unlink": ("EIO", "EROFS", "EACCES", "ESTALE"),
    "mmap": ("ENOMEM", "EACCES"),
    "mkdir": WRITING + ("EACCES",),
    "list": ("EIO", "ESTALE", "EACCES"),
    "link": ("EIO", "ENOSPC", "EROFS"),
    "chmod": ("EIO", "EROFS", "EACCES"),
    "flock": ("EIO", "ESTALE"),
}
WEIGHTS = [5, 5, 5, 3, 2, 2, 5, 3, 1, 1, 2, 1, 1, 1]
MOST_CALLS = 400  # of one kind in a try


def attack(bed: Bed, dice: random.Random) -> Tuple[str, Outcome]:
    """One try. Returns: what was done, and the judgement."""
    if bed.page is None:
        raise Skip("no C compiler for the preloaded library")
    page = bed.page
    step = ground.choose(dice, ground.STEPS)
    fresh, lasting = dice.random() < 0.6, dice.random() < 0.3
    bed.restore()
    if fresh:
        bed.remove_products(step)
    kind, calls = "", 0
    while not calls:
        kind = dice.choices(list(ERRORS), WEIGHTS)[0]
        calls = ground.counted(bed, step, Order(str(bed.here), (kind,)), fresh)
    error = dice.choice(ERRORS[kind])
    lasting = lasting and error != "EINTR"  # a call that a signal interrupts is rightly repeated
    nth = dice.randint(1, min(calls, MOST_CALLS))
    here = str(bed.here)
    page.give(Order(here, [kind], nth, error=faults.ERRORS[error], lasting=lasting))
    ended = bed.run(step, lambda: faults.use(page))
    page.end()
    what = f"{step.name}{' afresh' if fresh else ''}: {error} at {kind} {nth} of {calls}"
    if lasting:
        what += " and after"
    made = bed.products(step)
    outcome = trial.judge(ended, made, bed.expected[step.name])
    return what, ground.judge_after(bed, step, outcome)
