"""Groups of exact and near copies: images that are not independent of each other.

Exact copies have equal digests. Near copies (augmented copies, frames of one video, several shots of one part) are
images much nearer to each other than the folder's density around them allows. The nearest of `K` neighbours that lie
evenly around an image, in `m` dimensions, is nearer than `r` times the distance of the `K`-th with a probability of at
most `K r^m` (the model of Levina and Bickel 2004, "Maximum likelihood estimation of intrinsic dimension"). A distance
relative to those of further neighbours is a known test for true matches (Lowe 2004, "Distinctive image features from
scale-invariant keypoints", section 7.1), and depends neither on the features' scale nor on how dense a class is.

The constants are chosen on real folders, see `docs/copies.md` and `benchmarks/copies.py`.
"""

import itertools
import math
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from dlsr.calibration.components import BLOCK, FITTED_TO, SMALLEST, projected, some_of
from dlsr.calibration.neighbours import nearest_neighbours
from dlsr.method.noise import row_digests

SCALES = (0.05, 0.25, 0.5)
"""The dimension follows from the distances within which these shares of the images lie."""
NEIGHBOURS = 30
"""An image's distances are compared with that of its neighbour of this rank, at most an eighth of the images ..."""
FEWEST_NEIGHBOURS = 5
""".. but at least this."""
NEAR = 0.47
"""Near copies are at most this times as far as that neighbour ..."""
STRANGERS = 0.02
""".. and so near that at most this many of an image's neighbours are expected there by chance."""
ROUNDING = 1e-3
"""Distances below this times the usual one are zero."""
FEWEST = 20
"""Near copies are looked for among at least this many distinct images."""
CELL = 50_000
"""Among more images than this, near copies are looked for in cells of at most so many."""
FORESTS = 2
"""Number of divisions into cells. Copies that one division separates may share a cell of the other."""

Array = NDArray[np.float32]
Indices = NDArray[np.intp]


def found_groups(z0: NDArray[np.float32], digests: NDArray[np.uint8]) -> Indices:
    """Groups of exact and near copies.

    The time grows with the square of the number of distinct images up to `CELL`, and linearly beyond, where copies that
    no division into cells leaves together are missed. Which images share a group does not depend on their order.

    Args:
        z0: features, shape `(N, c)`, which may be memory-mapped.
        digests: content digests, shape `(N, 16)`. Images with equal digests are exact copies.

    Returns:
        A whole number from 0 for each image, shape `(N,)`: the same for images of one group.
    """
    # Sorted by content, so that the random images do not depend on the order.
    _, first, by_content = np.unique(digests, axis=0, return_index=True, return_inverse=True)
    _, alike, by_features = np.unique(_keys(z0, first), axis=0, return_index=True, return_inverse=True)
    distinct: Indices = by_features.reshape(-1)[by_content.reshape(-1)].astype(np.intp)
    if len(alike) < FEWEST:
        return distinct
    return _linked(len(alike), *_near_copies(projected(z0, first[alike])))[distinct]


def exact_groups(digests: NDArray[np.uint8]) -> Indices:
    """Groups of exact copies alone: a whole number for each image, shape `(N,)`. Digests as for `found_groups`."""
    numbers: Indices = np.unique(digests, axis=0, return_inverse=True)[1].reshape(-1).astype(np.intp)
    return numbers


def _keys(z0: NDArray[np.float32], rows: Indices) -> NDArray[np.uint8]:
    """Digests of these rows. Equal ones are found before the rest, since rounding sets their projections apart."""
    blocks = np.split(rows, range(BLOCK, len(rows), BLOCK))
    return np.concatenate([row_digests(z0[some]) for some in blocks])


def _near_copies(points: Array) -> tuple[Indices, Indices]:
    """Pairs of near copies."""
    k = min(NEIGHBOURS, max(len(points) // 8, FEWEST_NEIGHBOURS))
    ratio = min(NEAR, (STRANGERS / k) ** (1 / _dimension(points, k)))
    # The distance of the k-th neighbour. A cell shows only some of the neighbours, so the smallest is the truest.
    reach = np.full(len(points), np.inf)
    pairs: list[tuple[Indices, Indices, NDArray[np.float64]]] = []
    for cell in _cells(points):
        all_of_it = np.arange(len(cell))
        neighbours, distances = nearest_neighbours(points[cell], all_of_it, all_of_it, k)
        reach[cell] = np.minimum(reach[cell], distances[:, -1])
        i, rank = np.nonzero(distances <= np.maximum(ratio * distances[:, -1:], ROUNDING * np.median(distances)))
        pairs.append((cell[i], cell[neighbours[i, rank]], distances[i, rank]))
    left, right, distance = (np.concatenate(part) for part in zip(*pairs, strict=True))
    # Near as seen from both: an image in a sparse region must not join a dense one.
    allowed = np.maximum(ratio * np.minimum(reach[left], reach[right]), ROUNDING * np.median(reach))
    return left[distance <= allowed], right[distance <= allowed]


def _linked(n: int, left: Indices, right: Indices) -> Indices:
    """Numbers from 0 of the connected parts of a graph of `n` nodes, shape `(n,)`. Links are pairs of nodes.

    Each part is known by its least node. Linked parts are joined until no link leads out of its part (in the manner of
    Shiloach and Vishkin 1982, "An O(log n) parallel connectivity algorithm").
    """
    part = np.arange(n)
    while (outward := part[left] != part[right]).any():
        ends = np.sort([part[left[outward]], part[right[outward]]], axis=0)
        np.minimum.at(part, ends[1], ends[0])
        while (part[part] != part).any():
            part = part[part]
    numbers: Indices = np.unique(part, return_inverse=True)[1]
    return numbers


def _dimension(points: Array, nearest: int) -> float:
    """Intrinsic dimension of the points: within `r` times the distance lie `r^dimension` times as many neighbours.

    The least of those at two scales, since a curved surface or separate classes seem to have more dimensions at the
    larger one. Still nearer neighbours, or the `nearest`, may be copies.
    """
    some = points[some_of(len(points), FITTED_TO)].astype(np.float64)
    distances = np.sort([np.linalg.norm(some - one, axis=1) for one in some[: FITTED_TO // 2]], axis=1)
    least = max(SCALES[0], nearest / len(points))
    scales = (least, *SCALES[1:]) if 2 * least <= SCALES[1] else SCALES[1:]
    found = []
    for a, b in itertools.pairwise(scales):
        inner, outer = (distances[:, int(share * len(some))] for share in (a, b))
        growth = float(np.median(outer / np.maximum(inner, SMALLEST)))
        found.append(math.log(b / a) / math.log(max(growth, 1 + ROUNDING)))
    return min(found)


def _cells(points: Array) -> Iterator[Indices]:
    """The points, or several divisions of them into cells of near ones, halved along random directions until small."""
    for forest in range(FORESTS if len(points) > CELL else 1):
        random = np.random.default_rng(forest)
        cells = [np.arange(len(points))]
        while len(cells[0]) > CELL:
            direction = random.standard_normal(points.shape[1], np.float32)
            cells = [
                half
                for cell in cells
                for half in np.array_split(cell[np.argsort(points[cell] @ direction, kind="stable")], 2)
            ]
        yield from cells
