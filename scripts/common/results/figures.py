"""What a report says about predictions, computed from them: intervals, classes, confusion, calibration, coverage.

Everything is computed from Predictions, which keep a few numbers for each image whatever the number of classes.
"""

from typing import Any, Dict, List, NamedTuple, Sequence, Tuple

from common.model.statistics import NORMAL_95

import numpy as np

TOP = 5
BINS = 15  # of the calibration error, as in Guo and others, 2017: https://arxiv.org/abs/1706.04599


class Predictions(NamedTuple):
    """What is kept of the scores of n images."""

    top: (
        np.ndarray
    )  # int32 [n, up to 5]: classes by falling score; of equal scores the lower class comes first
    probability: np.ndarray  # float32 [n, up to 5]: their softmax probabilities, 0 to 1
    true: (
        np.ndarray
    )  # int32 [n]: the right class; where several are right, the one with the highest score
    rank: np.ndarray  # int32 [n]: how many classes come before it

    @property
    def correct(self) -> np.ndarray:
        """bool [n]: whether the first answer is right."""
        return self.rank == 0

    @property
    def confidence(self) -> np.ndarray:
        """float32 [n]: the probability of the first answer."""
        return self.probability[:, 0]


def summarise(scores: np.ndarray, right: Sequence[Sequence[int]]) -> Predictions:
    """Predictions of a few images.

    scores: float [n, classes], logits; right: the right classes of each image, one or more.
    """
    rows = np.arange(len(scores))
    order = np.empty((len(scores), min(TOP, scores.shape[1])), np.int32)
    rest = scores.astype(np.float64)  # a copy
    shifted = np.exp(rest - rest.max(1, keepdims=True))
    shares = shifted / shifted.sum(1, keepdims=True)
    for place in range(order.shape[1]):  # a few searches are quicker than sorting all classes
        order[:, place] = rest.argmax(1)
        rest[rows, order[:, place]] = -np.inf
    true = np.array(
        [
            max(classes, key=lambda label: (row[label], -label))
            for row, classes in zip(scores, right)
        ]
    )
    own = scores[rows, true][:, None]
    before = (scores > own).sum(1) + (
        (scores == own) & (np.arange(scores.shape[1]) < true[:, None])
    ).sum(1)
    return Predictions(
        order,
        shares[rows[:, None], order].astype(np.float32),
        true.astype(np.int32),
        before.astype(np.int32),
    )


def join(parts: Sequence[Predictions]) -> Predictions:
    """The predictions of all parts, one after the other."""
    return Predictions(*(np.concatenate(arrays) for arrays in zip(*parts)))


def share(hits: Any) -> float:
    """Per cent of the hits, bool [n], that are true."""
    return 100 * float(np.mean(hits))


def interval(hits: float, images: int) -> Tuple[float, float]:
    """Wilson's 95 % interval of a share, in per cent: honest for few images and near 0 and 100 % too.

    Source: https://doi.org/10.1080/01621459.1927.10502953
    """
    share, square = hits / images, NORMAL_95**2
    middle = (share + square / (2 * images)) / (1 + square / images)
    half = (
        NORMAL_95
        / (1 + square / images)
        * (share * (1 - share) / images + square / (4 * images**2)) ** 0.5
    )
    return max(0.0, round(100 * (middle - half), 9)), round(
        100 * (middle + half), 9
    )  # exactly 100 for all of them


def confused(found: Predictions) -> List[Tuple[int, int, int]]:
    """(right class, class of the answer, images) of the wrong answers, the most frequent first."""
    wrong = ~found.correct
    pairs, counts = np.unique(
        np.stack([found.true[wrong], found.top[wrong, 0]], 1), axis=0, return_counts=True
    )
    rows = [(int(true), int(answer), int(count)) for (true, answer), count in zip(pairs, counts)]
    return sorted(rows, key=lambda row: (-row[2], row[:2]))


def by_class(found: Predictions) -> List[Dict[str, Any]]:
    """{"class", "images", "top1", "top5" (counts), "taken_for" (class or None), "times"} of each class with images,

    the class with the lowest Top-1 accuracy first.
    """
    most: Dict[int, Tuple[int, int]] = {}
    for true, answer, count in confused(found):
        most.setdefault(true, (answer, count))
    classes, places = np.unique(found.true, return_inverse=True)
    images = np.bincount(places)
    top1, top5 = (np.bincount(places, weights=found.rank < k).astype(int) for k in (1, TOP))
    rows = [
        {
            "class": int(label),
            "images": int(images[place]),
            "top1": int(top1[place]),
            "top5": int(top5[place]),
            "taken_for": most.get(int(label), (None, 0))[0],
            "times": most.get(int(label), (None, 0))[1],
        }
        for place, label in enumerate(classes)
    ]
    return sorted(rows, key=lambda row: (row["top1"] / row["images"], -row["images"], row["class"]))


def calibration(found: Predictions) -> Dict[str, Any]:
    """{"error": the expected calibration error, 0 to 1, "bins": [{"low", "high", "images", "confidence", "accuracy"}]}.

    A bin holds the images with low < confidence <= high; the means of an empty one are None.
    """
    edges = np.linspace(0, 1, BINS + 1)
    place = np.searchsorted(edges[1:-1], found.confidence)
    images = np.bincount(place, minlength=BINS)
    confidence, right = (
        np.bincount(place, weights=values, minlength=BINS)
        for values in (found.confidence, found.correct)
    )
    bins = [
        {
            "low": float(edges[i]),
            "high": float(edges[i + 1]),
            "images": int(images[i]),
            "confidence": float(confidence[i] / images[i]) if images[i] else None,
            "accuracy": float(right[i] / images[i]) if images[i] else None,
        }
        for i in range(BINS)
    ]
    return {"error": float(np.abs(right - confidence).sum() / len(place)), "bins": bins}


def coverage(found: Predictions) -> List[Tuple[float, float]]:
    """(share of the images that are answered, Top-1 accuracy on them) if only the most confident are; each 0 to 1."""
    order = np.argsort(-found.confidence, kind="stable")
    right = np.cumsum(found.correct[order])
    counts = np.unique(np.ceil(np.linspace(0.01, 1, 100) * len(order)).astype(int))
    return [(float(count / len(order)), float(right[count - 1] / count)) for count in counts]


def most_confident_mistakes(found: Predictions, most: int) -> List[int]:
    """Places of the wrong answers that the network was surest of, the surest first."""
    wrong = np.flatnonzero(~found.correct)
    return [
        int(place) for place in wrong[np.argsort(-found.confidence[wrong], kind="stable")][:most]
    ]
