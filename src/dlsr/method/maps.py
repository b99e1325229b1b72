"""From the gradient of a score to a map of where an image deviates. Arrays only, so that it needs no PyTorch.

The gradient says how much the score would rise with each pooled feature. It is spread over the positions that the
feature was pooled from:

- mean: in proportion to the map's value there. This is exact, since the mean is linear.
- std: in proportion to the squared deviation from the mean there, of which the variance is the mean.
- max: not at all. The largest value lies at a single position, which is often not the one that people see as odd; maps
  with it point to pasted patches less often (docs/maps.md).
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from dlsr.method.layers import DELTA, Pooling, layer_slices

SIDE = 28
"""Side of a map, in cells. The earliest stages have finer maps, which are averaged, and the latest coarser ones."""
TINY = 1e-12
"""Divisors are at least this."""

Array = NDArray[np.float32]


def odd_places(
    maps: Sequence[Array], gradient: Array, channels: Sequence[int], pooling: Pooling, side: int = SIDE
) -> Array:
    """How much each place of an image raises its score, relative to its other places.

    Args:
        maps: of M stages, of shapes `(k_m, h_m, w_m)`.
        gradient: of the score with respect to `z0`, shape `(c,)`.
        channels: dimensions of each layer, M numbers that sum to `c`.
        pooling: what was kept of each map.
        side: of the result.

    Returns:
        Shape `(side, side)`, at least 0, with mean 1: all stages' contributions, those that lower the score cut off.
        1 everywhere if no place stands out.
    """
    total = np.zeros((side, side), np.float32)
    for feature_map, layer in zip(maps, layer_slices(channels), strict=True):
        total += resized(_contributions(feature_map, gradient[layer], pooling), side)
    raising = total.clip(min=0)
    mean = float(raising.mean())
    return np.asarray(raising / mean, np.float32) if mean > TINY else np.ones_like(raising)


def _contributions(feature_map: Array, gradient: Array, pooling: Pooling) -> Array:
    """Of each position of a stage's map, shape `(k, h, w)` to `(h, w)`; their mean is nearly 0, see `before_zscore`."""
    k, h, w = feature_map.shape
    values = feature_map.reshape(k, h * w)
    mean = values.mean(axis=1)
    deviations = values - mean[:, None]
    parts = dict(zip(pooling.split("+"), gradient.reshape(-1, k), strict=True))
    found = before_zscore(parts["mean"], mean) @ deviations
    if "std" in parts:
        squares = np.square(deviations)
        std = np.sqrt(squares.mean(axis=1))
        of_std = before_zscore(parts["std"], std)
        found = found + (of_std / std.clip(min=TINY)) @ squares - of_std @ std
    contributions: Array = found.reshape(h, w)
    return contributions


def before_zscore(gradient: Array, pooled: Array, delta: float = DELTA) -> Array:
    """From the gradient with respect to z-scored features to that with respect to the pooled ones, shape `(k,)`.

    The z-score does not change if all features grow by the same number or factor, so this gradient is orthogonal to
    both changes (but for `delta`).
    """
    std = np.sqrt(pooled.var() + delta)
    z = (pooled - pooled.mean()) / std
    changed: Array = (gradient - gradient.mean() - z * (gradient * z).mean()) / std
    return changed


def resized(values: Array, side: int) -> Array:
    """A map, shape `(h, w)`, at another size: interpolated linearly, or averaged with triangular weights."""
    height, width = values.shape
    return np.asarray(_weights(height, side) @ values @ _weights(width, side).T, np.float32)


def _weights(before: int, after: int) -> Array:
    """Rows of weights that sum to 1, shape `(after, before)`."""
    at = (np.arange(after) + 0.5) * before / after - 0.5
    distances = np.abs(at[:, None] - np.arange(before)) / max(before / after, 1)
    weights = (1 - distances).clip(min=0)
    return np.asarray(weights / weights.sum(axis=1, keepdims=True), np.float32)
