"""How many images ais_bench gets at once: so many that starting it costs little, so few that little is lost.

Starting it (Python, the driver, loading the model) costs seconds, a result less than a millisecond. So the images go to
it in slices, each so long that starting it takes at most a tenth of the time. How long both take is assumed at first,
then learned from each slice that ends.
"""

import math
from typing import List

START = 4.0  # s; what a start costs, assumed: "a few seconds" on real machines
IMAGE = 0.76e-3  # s for an image of 224 pixels in float32, assumed: 38 s for 50,000 were published for one 310P3
IMAGE_BYTES = 602112  # of such an image; a larger one takes longer in proportion
FACTOR = 10  # a slice takes so many starts, so that a start is less than a tenth of it
MOST = 50000  # files; later versions of ais_bench refuse a folder of more than 100,000


class Sizes:
    """The size of the next slice, from what is known of starts and images by now."""

    def __init__(self, batch_size: int, input_bytes: int, fixed: int = 0) -> None:
        self.batch_size, self.fixed = batch_size, fixed
        self.start, self.image, self.learned = (
            START,
            IMAGE * max(input_bytes / IMAGE_BYTES, 0.01),
            False,
        )

    def next(self, waiting: int, chips: int) -> int:
        """How many of the waiting images the next free one of so many chips gets; whole batches but for the end."""
        if self.fixed:
            return min(waiting, self.whole_batches(self.fixed))
        wanted = FACTOR * self.start / self.image
        share = waiting / chips
        if self.learned:
            share = max(
                share, wanted / 4
            )  # at the end of the work the shares become small, and starts dear
        count = self.whole_batches(min(wanted, share, MOST))
        return waiting if waiting < min(1.5 * count, MOST) and chips == 1 else min(waiting, count)

    def whole_batches(self, count: float) -> int:
        return max(1, math.ceil(count / self.batch_size)) * self.batch_size

    def learn(self, images: int, seconds: float, written: List[int]) -> None:
        """From a slice that took so many seconds; written: when each result was, in ns."""
        times = sorted(written)
        rest = images - self.batch_size
        if rest > 0 and times[-1] > times[0]:  # the first batch's results say when it had started
            self.image = (times[-1] - times[0]) / 1e9 / rest
            self.start = max(0.01, seconds - images * self.image)
            self.learned = True
