"""The nearest neighbours of points, by comparing all of them."""

import math

import numpy as np
from numpy.typing import NDArray

AT_ONCE = 2**23
"""Distances in memory at a time."""

Array = NDArray[np.float64]
Indices = NDArray[np.intp]


def nearest_neighbours(
    points: NDArray[np.float32], queries: Indices, groups: Indices, count: int
) -> tuple[Indices, Array]:
    """The `count` nearest points of other groups, the nearest first, and their distances.

    Args:
        points: shape `(n, d)`.
        queries: indices of the points whose neighbours are searched, shape `(q,)`.
        groups: a whole number from 0 for each point, shape `(n,)`. Each group must leave at least `count` other points.
        count: number of neighbours, at least 1.

    Returns:
        Indices and Euclidean distances, shape `(q, count)` each.
    """
    squares = np.square(points, dtype=np.float64).sum(axis=1)
    references = np.vstack([-2 * points.T, squares])
    members = np.split(np.argsort(groups, kind="stable"), np.cumsum(np.bincount(groups))[:-1])
    rows = max(AT_ONCE // len(points), 1)
    # Filled again and again, since fresh memory costs as much time as the distances.
    memory = np.empty((min(rows, len(queries)), len(points)))
    neighbours, distances = np.empty((len(queries), count), np.intp), np.empty((len(queries), count))
    for start in range(0, len(queries), rows):
        some = queries[start : start + rows]
        # Squared distances, less the square of the query.
        rough = np.matmul(np.column_stack([points[some], np.ones(len(some))]), references, out=memory[: len(some)])
        own = [members[group] for group in groups[some]]
        rough[np.repeat(np.arange(len(some)), [len(group) for group in own]), np.concatenate(own)] = np.inf
        found = _smallest(rough, count)
        exact = np.linalg.norm(points[found].astype(np.float64) - points[some][:, None], axis=2)
        order = np.argsort(exact, axis=1, kind="stable")
        neighbours[start : start + rows] = np.take_along_axis(found, order, axis=1)
        distances[start : start + rows] = np.take_along_axis(exact, order, axis=1)
    return neighbours, distances


def _smallest(values: Array, count: int) -> Indices:
    """Indices of the `count` smallest values of each row, in no order: shape `(q, n)` to `(q, count)`.

    Values are dealt into columns, like cards. The `count` columns with the smallest minima hold them all, so that most
    values are looked at only for the minima, which is fast.
    """
    rows, n = values.shape
    deep = math.isqrt(n // count)
    columns = n // deep
    minima = values[:, : deep * columns].reshape(rows, deep, columns).min(axis=1)
    chosen = np.argpartition(minima, count - 1, axis=1)[:, :count]
    dealt = (chosen[:, None] + columns * np.arange(deep)[:, None]).reshape(rows, -1)
    left_over = np.tile(np.arange(deep * columns, n), (rows, 1))
    candidates = np.hstack([dealt, left_over])
    # Twice as fast as `np.take_along_axis`.
    taken = np.take(values, candidates + n * np.arange(rows)[:, None])
    best = np.argpartition(taken, count - 1, axis=1)[:, :count]
    return np.take_along_axis(candidates, best, axis=1)
