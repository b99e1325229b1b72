"""Which scores each bar of a histogram counts."""

import math
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

Scores = NDArray[np.floating]
BARS = 60
CLIPPED = 0.001
"""Share of the scores at each end of a histogram that is counted in its first and last bar."""
FEW = 100
"""Below this number of scores, none is clipped."""
TINY = 1e-300
"""Scores whose difference is smaller than this are drawn as equal; a narrower axis could not be computed."""
EQUAL = 1e-9
"""So are scores whose difference is smaller than this share of their size; labels could not tell them apart."""


def bar_edges(samples: Iterable[Scores], bars: int = BARS) -> NDArray[np.float64]:
    """Edges of equally wide bars for all samples. Scores beyond them belong to the first and last bar.

    Args:
        samples: finite scores, each of shape `(n,)`; at least one score in all.
        bars: their number; for equal scores one more if it is even, so that one bar stands around them.

    Returns:
        Shape `(bars + 1,)`, strictly ascending.
    """
    ordered = np.sort(np.concatenate(list(samples)))
    # Without clipping, a few far outliers would squeeze all other scores into one bar.
    clipped = math.ceil(CLIPPED * len(ordered)) if len(ordered) >= FEW else 0
    low, high = float(ordered[clipped]), float(ordered[-1 - clipped])
    size = max(abs(low), abs(high))
    if high - low < max(TINY, EQUAL * size):
        margin = size / 2 if size > TINY else 0.5
        low, high, bars = low - margin, high + margin, bars | 1
    return np.linspace(low, high, bars + 1)


def shares(scores: Scores, edges: NDArray[np.float64]) -> NDArray[np.float64]:
    """The share of the scores that each bar counts.

    Args:
        scores: shape `(n,)`, not empty.
        edges: of the bars, shape `(bars + 1,)`.

    Returns:
        Shape `(bars,)`; the sum is 1.
    """
    counts, _ = np.histogram(np.clip(scores, edges[0], edges[-1]), edges)
    return counts / len(scores)
