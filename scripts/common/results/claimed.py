"""The accuracy that a checkpoint says it had, beside the one that was measured.

Standard library only.
"""

from typing import Any, Dict, List, NamedTuple

from common.model import claims
from common.model.statistics import interval
from common.results.texts import ENGLISH, Say

LONGEST = 80  # characters of the checkpoint's own words


class Comparison(NamedTuple):
    """What the checkpoint says of Top-k, and what was measured."""

    top: int  # k
    claimed: float  # per cent
    said: str  # in the checkpoint's words: "metric = 87.5"
    measured: float  # per cent
    images: int  # that were evaluated
    low: float  # the 95 % interval of the measured share, per cent
    high: float
    of_other_weights: bool  # whether the figure is that of other weights in the same checkpoint
    is_best: bool  # whether it is the best of the training, maybe of another epoch

    @property
    def within(self) -> bool:
        """Whether so few images explain the difference."""
        return self.low <= self.claimed <= self.high

    @property
    def title(self) -> str:
        return f"Top-{self.top}"

    @property
    def words(self) -> str:
        """The sentence about it, in English."""
        return self.sentence(ENGLISH)

    def sentence(self, say: Say) -> str:
        about = ""
        if self.of_other_weights:
            about = say("claimed_other_weights")
        elif self.is_best:
            about = say("claimed_best")
        points = f"{self.measured - self.claimed:+.2f}"
        key = "claimed_within" if self.within else "claimed_outside"
        if float(points) == 0:
            key = "claimed_same"
        return say(
            key,
            k=self.top,
            claimed=f"{self.claimed:.2f} %",
            said=self.said,
            about=about,
            measured=f"{self.measured:.2f} %",
            n=self.images,
            points=points,
            low=f"{self.low:.2f}",
            high=f"{self.high:.2f}",
        )


def compare(notes: Dict[str, Any], report: Dict[str, Any]) -> List[Comparison]:
    """What the checkpoint says beside what was measured, for each Top-k that it names.

    notes: of the model's record; report: acc_report.json. [] if the checkpoint says nothing, and
    where the measured figure is a mean average precision.
    """
    hits, images = report.get("hits") or [], report["counts"]["evaluated"]
    comparisons = []
    for row in claims.rows_of(notes):
        if len(hits) < row["top"]:
            continue
        right = hits[row["top"] - 1]
        low, high = interval(right, images)
        comparisons.append(
            Comparison(
                row["top"],
                float(row["value"]),
                row["said"][:LONGEST],
                100 * right / images,
                images,
                low,
                high,
                bool(row.get("of_other_weights")),
                bool(row.get("is_best")),
            )
        )
    return comparisons
