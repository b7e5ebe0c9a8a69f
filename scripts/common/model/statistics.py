"""Measures that several programs share: how alike two results are, and how sure a share is."""

import numpy as np

# Half the width of the normal distribution's middle 95 %, in standard deviations.
NORMAL_95 = 1.959964


def cosine_similarity(a: np.ndarray, b: np.ndarray) -> float:
    """The cosine of the angle between two arrays of the same shape, computed in float64.

    It is 1 for two arrays of zeros, and 0 if only one of them is all zeros.
    """
    a, b = a.reshape(-1).astype(np.float64), b.reshape(-1).astype(np.float64)
    lengths = float(np.linalg.norm(a)) * float(np.linalg.norm(b))
    if lengths == 0:
        return 1.0 if np.array_equal(a, b) else 0.0
    return float(np.dot(a, b)) / lengths
