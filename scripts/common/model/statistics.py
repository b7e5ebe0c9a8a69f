"""Measures that several programs share: how alike two results are, and how sure a share is."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Tuple

if TYPE_CHECKING:
    import numpy as np

# Half the width of the normal distribution's middle 95 %, in standard deviations.
NORMAL_95 = 1.959964


def cosine_similarity(a: np.ndarray, b: np.ndarray) -> float:
    """The cosine of the angle between two arrays of the same shape, computed in float64.

    It is 1 for two arrays of zeros, and 0 if only one of them is all zeros.
    """
    import numpy as np  # here: the pipeline's own Python may lack it

    a, b = a.reshape(-1).astype(np.float64), b.reshape(-1).astype(np.float64)
    lengths = float(np.linalg.norm(a)) * float(np.linalg.norm(b))
    if lengths == 0:
        return 1.0 if np.array_equal(a, b) else 0.0
    return float(np.dot(a, b)) / lengths


def normal_quantile(share: float) -> float:
    """The value below which a normally distributed one lies with this probability, 0.5 to 1.

    In standard deviations, to 9 decimals. (Python 3.7 has no NormalDist.)
    """
    low, high = 0.0, 40.0
    while high - low > 1e-10:
        middle = (low + high) / 2
        if (1 + math.erf(middle / math.sqrt(2))) / 2 < share:
            low = middle
        else:
            high = middle
    return high


def interval(hits: float, images: int) -> Tuple[float, float]:
    """Wilson's 95 % interval of a share, in per cent.

    It is honest for few images too, and near 0 and 100 %.
    Source: https://doi.org/10.1080/01621459.1927.10502953
    """
    share, square = hits / images, NORMAL_95**2
    scale = 1 + square / images
    middle = (share + square / (2 * images)) / scale
    spread = (share * (1 - share) / images + square / (4 * images**2)) ** 0.5
    half = NORMAL_95 / scale * spread
    # rounded: exactly 100 for all of them
    return max(0.0, round(100 * (middle - half), 9)), round(100 * (middle + half), 9)
