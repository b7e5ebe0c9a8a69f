"""How many images ais_bench gets at once.

Starting it (Python, the driver, loading the model) costs seconds, a result less than a millisecond.
So the images go to it in slices, each so long that starting takes at most a tenth of the time. How
long both take is assumed at first, then learned from each slice that ends.
"""

import math
from typing import List

START = 4.0  # s; what a start costs, assumed: "a few seconds" on real machines
# s for an image of 224 pixels in float32, assumed: 38 s for 50,000 were published for one 310P3
IMAGE = 0.76e-3
IMAGE_BYTES = 602112  # of such an image; a larger one takes longer in proportion
FACTOR = 10  # a slice takes so many starts, so that a start is less than a tenth of it
MOST = 50000  # files; later versions of ais_bench refuse a folder of more than 100,000


class Sizes:
    """The size of the next slice, from what starts and images cost so far."""

    def __init__(self, batch_size: int, input_bytes: int, fixed: int = 0) -> None:
        """fixed: so many images for each slice; 0 decides by the costs."""
        self.batch_size, self.fixed = batch_size, fixed
        self.start = START
        self.image = IMAGE * max(input_bytes / IMAGE_BYTES, 0.01)
        self.learned = False

    def next(self, waiting: int, chips: int) -> int:
        """How many of the waiting images the next free chip gets: whole batches, except at the end.

        chips: how many of them share the waiting images.
        """
        if self.fixed:
            return min(waiting, self.whole_batches(self.fixed))
        wanted = FACTOR * self.start / self.image
        share = waiting / chips
        if self.learned:  # at the end the shares become small, and starts expensive
            share = max(share, wanted / 4)
        count = self.whole_batches(min(wanted, share, MOST))
        if chips == 1 and waiting < min(1.5 * count, MOST):
            return waiting
        return min(waiting, count)

    def whole_batches(self, count: float) -> int:
        return max(1, math.ceil(count / self.batch_size)) * self.batch_size

    def learn(self, images: int, seconds: float, written: List[int]) -> None:
        """Learn from a slice that took so many seconds; written: when each result was, ns."""
        times = sorted(written)
        rest = images - self.batch_size
        if rest > 0 and times[-1] > times[0]:  # the first batch's results say when it had started
            self.image = (times[-1] - times[0]) / 1e9 / rest
            self.start = max(0.01, seconds - images * self.image)
            self.learned = True
