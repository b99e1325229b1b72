"""Points that differ from each other, by farthest-first traversal.

Gonzalez 1985, "Clustering to minimize the maximum intercluster distance".
"""

import numpy as np
from numpy.typing import NDArray

BLOCK = 4096
"""Points in memory at a time."""

Indices = NDArray[np.intp]


def farthest_first(points: NDArray[np.float32], candidates: Indices, count: int) -> Indices:
    """Choose points one after the other, each as far as possible from the nearest of those before it.

    Args:
        points: shape `(n, d)`; may be memory-mapped.
        candidates: indices of the points to choose among, shape `(m,)`, at least one. The first is chosen first; of
            equally far ones, the earlier.
        count: how many to choose, at least 1; `m` if that is less.

    Returns:
        Indices of points in the order of choice, shape `(min(count, m),)`.
    """
    chosen = np.zeros(min(count, len(candidates)), np.intp)
    nearest = np.full(len(candidates), np.inf)
    for k in range(1, len(chosen)):
        last = points[candidates[chosen[k - 1]]]
        for start in range(0, len(candidates), BLOCK):
            some = slice(start, start + BLOCK)
            squares = np.square(points[candidates[some]] - last).sum(axis=1, dtype=np.float64)
            nearest[some] = np.minimum(nearest[some], squares)
        nearest[chosen[k - 1]] = -np.inf  # so that it is not chosen again among copies
        chosen[k] = nearest.argmax()
    return candidates[chosen]
