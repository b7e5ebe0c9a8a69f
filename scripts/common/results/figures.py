"""Figures about predictions: intervals, classes, confusion, calibration, coverage.

All are computed from Predictions, which keep a few numbers for each image, however many classes
there are.
"""

from typing import Any, Dict, List, NamedTuple, Optional, Sequence, Tuple

import numpy as np

TOP = 5
BINS = 15  # of the calibration error, as in Guo and others, 2017: https://arxiv.org/abs/1706.04599


class Predictions(NamedTuple):
    """What is kept of the scores of n images."""

    # int32 [n, up to 5]: classes by falling score; of equal scores the lower class comes first
    top: np.ndarray
    probability: np.ndarray  # float32 [n, up to 5]: their softmax probabilities, 0 to 1
    # int32 [n]: the right class; where several are right, the one with the highest score
    true: np.ndarray
    rank: np.ndarray  # int32 [n]: how many classes come before the right one

    @property
    def correct(self) -> np.ndarray:
        """bool [n]: whether the first answer is right."""
        return self.rank == 0

    @property
    def confidence(self) -> np.ndarray:
        """float32 [n]: the probability of the first answer."""
        return self.probability[:, 0]


def top_classes(scores: np.ndarray) -> np.ndarray:
    """int32 [n, up to 5]: the classes of the highest scores, float64 [n, classes]."""
    images = np.arange(len(scores))
    rest = scores.copy()
    top = np.empty((len(scores), min(TOP, scores.shape[1])), np.int32)
    for place in range(top.shape[1]):  # a few searches are quicker than sorting all classes
        top[:, place] = rest.argmax(1)
        rest[images, top[:, place]] = -np.inf
    return top


def softmax(scores: np.ndarray) -> np.ndarray:
    """float64 [n, classes]: probabilities, 0 to 1, from logits of the same shape."""
    shifted = np.exp(scores - scores.max(1, keepdims=True))
    return shifted / shifted.sum(1, keepdims=True)


def best_classes(scores: np.ndarray) -> Tuple[np.ndarray, np.ndarray]:
    """(top, probability) as Predictions have them, of the scores, float64 [n, classes]."""
    images = np.arange(len(scores))[:, None]
    top = top_classes(scores)
    return top, softmax(scores)[images, top].astype(np.float32)


def preferred(scores: np.ndarray, classes: Sequence[int]) -> int:
    """Of several classes the one with the highest score; of equal scores the lower class."""
    return max(classes, key=lambda label: (scores[label], -label))


def summarise(scores: np.ndarray, right: Sequence[Sequence[int]]) -> Predictions:
    """Predictions of a few images.

    scores: float [n, classes], logits; right: the right classes of each image, one or more.
    """
    images = np.arange(len(scores))[:, None]
    top, probability = best_classes(scores.astype(np.float64))
    true = np.array([[preferred(row, classes)] for row, classes in zip(scores, right)], np.int32)
    own = scores[images, true]
    lower_class = np.arange(scores.shape[1]) < true
    rank = (scores > own).sum(1) + ((scores == own) & lower_class).sum(1)
    return Predictions(top, probability, true[:, 0], rank.astype(np.int32))


def join(parts: Sequence[Predictions]) -> Predictions:
    """The predictions of all parts, one after the other."""
    return Predictions(*(np.concatenate(arrays) for arrays in zip(*parts)))


def share(hits: Any) -> float:
    """Per cent of the hits, bool [n], that are true."""
    return 100 * float(np.mean(hits))


def confused(predictions: Predictions) -> List[Tuple[int, int, int]]:
    """(right class, class of the answer, images) of the wrong answers, the most frequent first."""
    wrong = ~predictions.correct
    pairs, counts = np.unique(
        np.stack([predictions.true[wrong], predictions.top[wrong, 0]], 1),
        axis=0,
        return_counts=True,
    )
    rows = [(int(true), int(answer), int(count)) for (true, answer), count in zip(pairs, counts)]
    return sorted(rows, key=lambda row: (-row[2], row[:2]))


def confusion_matrix(predictions: Predictions, classes: int) -> np.ndarray:
    """int [classes, classes]: how many images of each right class (row) had each answer."""
    cells = predictions.true.astype(np.int64) * classes + predictions.top[:, 0]
    return np.bincount(cells, minlength=classes * classes).reshape(classes, classes)


def share_of(part: float, total: float) -> Optional[float]:
    """A share, 0 to 1; None of nothing."""
    return part / total if total else None


def every_class(predictions: Predictions, classes: int, k: int = TOP) -> List[Dict[str, Any]]:
    """A row for each class of the network.

    Each: {"class", "images", "answers" (how often it was the answer), "top1", "top_k" (counts),
    "precision", "recall", "f1" (0 to 1, None if it is a share of nothing), "taken_for" (class or
    None), "times"}.
    """
    most: Dict[int, Tuple[int, int]] = {}
    for right, answer, count in confused(predictions):
        most.setdefault(right, (answer, count))
    true, rank = predictions.true, predictions.rank
    images = np.bincount(true, minlength=classes).tolist()
    answers = np.bincount(predictions.top[:, 0], minlength=classes).tolist()
    top1 = np.bincount(true[rank < 1], minlength=classes).tolist()
    top_k = np.bincount(true[rank < k], minlength=classes).tolist()
    rows = []
    for label in range(classes):
        taken_for, times = most.get(label, (None, 0))
        rows.append(
            {
                "class": label,
                "images": images[label],
                "answers": answers[label],
                "top1": top1[label],
                "top_k": top_k[label],
                "precision": share_of(top1[label], answers[label]),
                "recall": share_of(top1[label], images[label]),
                "f1": share_of(2 * top1[label], images[label] + answers[label]),
                "taken_for": taken_for,
                "times": times,
            }
        )
    return rows


def weakest_first(rows: Sequence[Dict[str, Any]]) -> List[Dict[str, Any]]:
    """Those of every_class()'s rows that have images, the one with the lowest Top-1 first."""
    shown = [row for row in rows if row["images"]]
    return sorted(shown, key=lambda row: (row["recall"], -row["images"], row["class"]))


def averages(rows: Sequence[Dict[str, Any]]) -> Dict[str, Dict[str, float]]:
    """{"macro", "weighted": {"precision", "recall", "f1": 0 to 1}} of every_class()'s rows.

    As in scikit-learn's classification_report: over the classes that have an image or were an
    answer; a share of nothing counts as 0; the weights are the numbers of images.
    """
    counted = [row for row in rows if row["images"] or row["answers"]]
    images = sum(row["images"] for row in counted)
    macro, weighted = {}, {}
    for key in ("precision", "recall", "f1"):
        values = [(row[key] or 0.0, row["images"]) for row in counted]
        macro[key] = sum(value for value, _ in values) / len(values)
        weighted[key] = sum(value * weight for value, weight in values) / images
    return {"macro": macro, "weighted": weighted}


def calibration(predictions: Predictions) -> Dict[str, Any]:
    """The expected calibration error and what it is made of.

    {"error": 0 to 1, "bins": [{"low", "high", "images", "confidence", "accuracy"}]}.
    A bin holds the images with low < confidence <= high; the means of an empty bin are None.
    """
    edges = np.linspace(0, 1, BINS + 1)
    place = np.searchsorted(edges[1:-1], predictions.confidence)
    images = np.bincount(place, minlength=BINS)
    confidence, right = (
        np.bincount(place, weights=values, minlength=BINS)
        for values in (predictions.confidence, predictions.correct)
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


def coverage(predictions: Predictions) -> List[Tuple[float, float]]:
    """What is right if only the most confident answers are given.

    [(share of the images that are answered, Top-1 accuracy on them)], each 0 to 1.
    """
    order = np.argsort(-predictions.confidence, kind="stable")
    right = np.cumsum(predictions.correct[order])
    counts = np.unique(np.ceil(np.linspace(0.01, 1, 100) * len(order)).astype(int))
    return [(float(count / len(order)), float(right[count - 1] / count)) for count in counts]


def most_confident_mistakes(predictions: Predictions, most: Optional[int]) -> List[int]:
    """Places of the wrong answers that the network was surest of, the surest first.

    most: how many; None for all.
    """
    wrong = np.flatnonzero(~predictions.correct)
    surest_first = np.argsort(-predictions.confidence[wrong], kind="stable")
    return [int(place) for place in wrong[surest_first][:most]]
