"""Whether the images of a fit look exchangeable, which the false-alarm rate assumes.

Frames of one video, shots of one part and augmented copies resemble each other more than a new image resembles any of
them, so the calibration scores come out too low and the threshold too tight. If a share `s` of the images has such a
sibling in another group, a rate of `a` can become `a / (1 - s)`. Three tests look for signs of it:

1. **Neighbours by name.** If names were given at random, the image most like another one would stand next to it, in the
   order of names, as often as any other. Over pairs of images the number of such neighbours is then close to a Poisson
   variable (Chen 1975; Arratia, Goldstein and Gordon 1989).
2. **Drift by name.** The cumulative sum of the ranks of scores in the order of names is then close to a Brownian
   bridge, whose largest value has Kolmogorov's distribution (Pettitt 1979, "A non-parametric approach to the
   change-point problem").
3. **Near copies**, for names that carry no order: images whose nearest other image is less than half as far as the
   20th nearest (in folders of less than 400 images, fewer). In `D` dimensions the ratio of these distances to the
   power `D` follows Beta(1, 19) (Levina and Bickel 2004, "Maximum likelihood estimation of intrinsic dimension"), so
   few images have such a copy by chance; where `D` is small, the limit is lower than half.

Names are compared only among images of one folder whose names start alike (up to the first digit): a folder that is
sorted by class is exchangeable all the same. A change that shows in none of the three goes unseen.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from dlsr.calibration.components import projected
from dlsr.calibration.neighbours import nearest_neighbours

ALARMS = 0.01
"""Largest probability that any of the three tests fires for exchangeable images; they share it equally."""
MATERIAL = 0.1
"""Shares of images, and shifts of the mean rank, below this do not fire, however certain they are: a share of 10 %
turns a rate of 5 % into at most 5.6 %."""
FEWEST = 20
"""Fewest groups of images that are checked."""
QUERIES = 2000
"""Groups of images, drawn at random, whose nearest images are searched."""
NEAREST, FEWEST_NEAREST = 20, 6
"""Largest and smallest rank of the neighbour whose distance the nearest one's is compared with. In between it is a
twentieth of the images, so that small classes are not taken for copies. The dimension is estimated from neighbours up
to three times that rank."""
BY_CHANCE = 0.01
"""Share of images that may have a near copy by chance."""

Array = NDArray[np.float64]
Indices = NDArray[np.intp]


class _Evidence(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    p_value: float
    """Small = not exchangeable."""

    @property
    def significant(self) -> bool:
        return self.p_value <= ALARMS / 3


class NamedNeighbours(_Evidence):
    """Images whose nearest image, outside their group, stands next to them by name."""

    images: int
    """Images whose nearest image was searched."""
    adjacent: int
    """Those among them that stand next to their nearest image."""
    by_chance: float
    """How many would if names were given at random."""

    @property
    def fired(self) -> bool:
        """Whether there are too many for chance, and enough to matter."""
        return self.significant and self.adjacent - self.by_chance >= MATERIAL * self.images


class NamedDrift(_Evidence):
    """A change of scores along the order of names."""

    at: float
    """Where scores change most, as a share of the images in the order of names."""
    shift: float
    """Mean rank of the scores after this place minus that before, in (-1, 1); positive if scores rise."""

    @property
    def fired(self) -> bool:
        """Whether the change is too large for chance, and large enough to matter."""
        return self.significant and abs(self.shift) >= MATERIAL


class NearCopies(_Evidence):
    """Images that have a near copy outside their group. The p-value is of a share of at most `MATERIAL`."""

    images: int
    """Images whose nearest image was searched."""
    copies: int
    """Those among them that have a near copy."""

    @property
    def fired(self) -> bool:
        """Whether there are too many."""
        return self.significant


class ExchangeabilityCheck(BaseModel):
    """What speaks against the promised false-alarm rate. Tests that cannot be made are None."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    neighbours: NamedNeighbours | None = None
    drift: NamedDrift | None = None
    copies: NearCopies | None = None
    fired: bool
    """Whether any test fired."""
    message: str
    """One line: what was seen, and what to do."""


def check(
    names: Sequence[str] | None,
    z0: NDArray[np.float32],
    scores: Array,
    groups: Indices,
    seed: int,
    exact: Indices | None = None,
) -> ExchangeabilityCheck:
    """Test whether the images of a fit look exchangeable.

    Near copies that are found are often not all that belong together, and then the others are few and hard to see. So
    if groups were found rather than given, the images are also tested before grouping.

    Args:
        names: of the images, with their folders; None if they have none, so that only near copies are looked for.
            Numbers alone, such as positions in a list, are no names: it may be sorted by class.
        z0: features, shape `(N, c)`; may be memory-mapped.
        scores: held-out or leave-one-out scores, shape `(N,)`; NaN where unknown.
        groups: a whole number for each image, shape `(N,)`. Images of one group may resemble each other.
        seed: of the images that are drawn.
        exact: for groups that were found by likeness: the groups of exact copies alone, which are found without fail.

    Returns:
        Whether a test fired, what was seen, and what to do.
    """
    if names is not None and all(name.isdigit() for name in names):
        names = None
    try:
        tested = _tested(names, z0, scores, groups, seed)
    except ImportError:  # of SciPy, which calibrating a model needs for nothing else
        return ExchangeabilityCheck(
            fired=False, message="not checked whether the rate can be trusted: this needs the packages of a fit"
        )
    if tested.fired or exact is None or len(np.unique(groups)) == len(np.unique(exact)):
        return tested
    ungrouped = _tested(names, z0, scores, exact, seed)
    if not ungrouped.fired:
        return tested
    message = f"near copies were found and grouped, but others that belong to them may be missing: {ungrouped.message}"
    return ungrouped.model_copy(update={"message": message})


def _tested(
    names: Sequence[str] | None, z0: NDArray[np.float32], scores: Array, groups: Indices, seed: int
) -> ExchangeabilityCheck:
    groups = np.unique(groups, return_inverse=True)[1]
    sizes = np.bincount(groups)
    if len(sizes) < FEWEST:
        return ExchangeabilityCheck(
            fired=False, message=f"not checked whether the rate can be trusted: fewer than {FEWEST} groups of images"
        )
    random = np.random.default_rng(seed)
    order = random.permutation(len(z0))
    one_of_each = order[np.unique(groups[order], return_index=True)[1]]
    queries = random.permutation(one_of_each)[:QUERIES]
    compared = min(NEAREST, max(len(z0) // 20, FEWEST_NEAREST))
    count = int(min(3 * compared, len(z0) - sizes.max()))
    # In random order, so that among images equally far none is preferred for its position.
    points = projected(z0, np.arange(len(z0)))[order]
    found, distances = nearest_neighbours(points, np.argsort(order)[queries], groups[order], count)
    nearest = order[found[:, 0]]
    places = None if names is None else _places(names, groups)
    neighbours = None if places is None else _named_neighbours(places, groups, queries, nearest)
    drift = None if places is None else _named_drift(places, scores)
    copies = _near_copies(distances)
    return ExchangeabilityCheck(
        neighbours=neighbours,
        drift=drift,
        copies=copies,
        fired=any(test is not None and test.fired for test in (neighbours, drift, copies)),
        message=_message(neighbours, drift, copies),
    )


@dataclass(frozen=True)
class _Places:
    """Where images stand by name. A shelf holds the groups of one folder whose names start alike."""

    shelf: Indices
    """Shelf of each image, shape `(N,)`."""
    position: Indices
    """Position of each image's group on its shelf, shape `(N,)`: that of the group's first image there."""
    size: Indices
    """Number of groups on each shelf, shape `(S,)`."""


def _places(names: Sequence[str], groups: Indices) -> _Places:
    shelves: dict[tuple[str, str], int] = {}
    positions: dict[tuple[int, int], int] = {}
    sizes: list[int] = []
    shelf, position = np.empty(len(names), np.intp), np.empty(len(names), np.intp)
    for i in sorted(range(len(names)), key=lambda i: _numbers_by_value(names[i])):
        folder, _, file = names[i].replace("\\", "/").rpartition("/")
        numbered = re.match(r"(\D*)\d", file)
        here = shelves.setdefault((folder, numbered[1] if numbered else ""), len(shelves))
        if here == len(sizes):
            sizes.append(0)
        if (here, int(groups[i])) not in positions:
            positions[here, int(groups[i])] = sizes[here]
            sizes[here] += 1
        shelf[i], position[i] = here, positions[here, int(groups[i])]
    return _Places(shelf, position, np.array(sizes, np.intp))


def _numbers_by_value(name: str) -> list[tuple[int, int, str]]:
    # frame2 stands before frame10. Runs of digits alternate with other text.
    parts = re.split(r"(\d+)", name)
    return [(0, int(part), part) if i % 2 else (1, 0, part) for i, part in enumerate(parts)]


def _named_neighbours(places: _Places, groups: Indices, queries: Indices, nearest: Indices) -> NamedNeighbours:
    from scipy.stats import poisson  # noqa: PLC0415 - slow to import, and only fits need it

    same = places.shelf[queries] == places.shelf[nearest]
    one, other = queries[same], nearest[same]
    chance = 2 / places.size[places.shelf[one]]
    adjacent = np.abs(places.position[one] - places.position[other]) == 1
    # Two groups that are each other's nearest are one event, not two.
    pairs = np.sort(np.stack([groups[one], groups[other]], axis=1), axis=1)
    distinct = np.unique(pairs, axis=0, return_index=True)[1]
    return NamedNeighbours(
        images=len(queries),
        adjacent=int(adjacent.sum()),
        by_chance=float(chance.sum()),
        p_value=float(poisson.sf(adjacent[distinct].sum() - 1, chance[distinct].sum())) if len(distinct) else 1.0,
    )


def _named_drift(places: _Places, scores: Array) -> NamedDrift | None:
    from scipy.stats import kstwobign, rankdata  # noqa: PLC0415 - slow to import, and only fits need it

    known = np.isfinite(scores)
    # A group counts once, with the mean of its scores.
    keys = np.stack([places.shelf[known], places.position[known]], axis=1)
    groups, index = np.unique(keys, axis=0, return_inverse=True)
    means = np.bincount(index.ravel(), scores[known]) / np.bincount(index.ravel())
    times, ranks, variance = [np.empty(0)], [np.empty(0)], 0.0
    for shelf in np.unique(groups[:, 0]):
        here = means[groups[:, 0] == shelf]
        if len(here) < 2:
            continue
        rank = rankdata(here) / (len(here) + 1) - 0.5
        times.append((np.arange(len(here)) + 0.5) / len(here))
        ranks.append(rank)
        variance += float(rank.var(ddof=1)) * len(here)
    order = np.argsort(np.concatenate(times), kind="stable")
    time, sums = np.concatenate(times)[order], np.cumsum(np.concatenate(ranks)[order])
    if len(sums) < FEWEST or not variance:
        return None
    # Between images at the same place of several shelves there is no order.
    last = np.flatnonzero(np.diff(time) > 0)
    k = int(last[np.abs(sums[last]).argmax()]) + 1
    return NamedDrift(
        p_value=float(kstwobign.sf(abs(sums[k - 1]) / np.sqrt(variance))),
        at=float(time[k - 1]),
        shift=float(-sums[k - 1] / k - sums[k - 1] / (len(sums) - k)),
    )


def _near_copies(distances: Array) -> NearCopies | None:
    from scipy.stats import binom  # noqa: PLC0415 - slow to import, and only fits need it

    images, count = distances.shape
    near = count // 3
    if near < 2:
        return None
    first, middle, last = distances[:, 0], distances[:, near - 1], distances[:, -1]
    spread = middle > 0
    if spread.any():
        growth = np.median(np.log(last[spread][:, None] / distances[spread, near - 1 : -1]).mean(axis=1))
        # The estimate from all neighbours, corrected for those left out: the nearest third, where copies may be.
        inner = near / count
        dimension = (1 + inner * np.log(inner) / (1 - inner)) / max(float(growth), np.finfo(np.float32).tiny)
        limit = min(0.5, (BY_CHANCE / (near - 1)) ** (1 / dimension))
    else:
        limit = 0.5
    copies = int((first <= limit * middle).sum())
    # An image and its copy are mostly each other's nearest: half of them say something new.
    return NearCopies(images=images, copies=copies, p_value=float(binom.sf(copies // 2 - 1, images // 2, MATERIAL)))


def _message(neighbours: NamedNeighbours | None, drift: NamedDrift | None, copies: NearCopies | None) -> str:
    seen = []
    if neighbours is not None and neighbours.fired:
        seen.append(
            f"neighbouring files look alike ({neighbours.adjacent} of {neighbours.images} images stand next to their "
            f"nearest image by name, chance allows {neighbours.by_chance:.0f}): images come in groups; "
            "say which belong together (group_by)"
        )
    if copies is not None and copies.fired:
        seen.append(
            f"{copies.copies} of {copies.images} images have a near copy outside their group; remove the copies, or "
            "say which belong together (group_by)"
        )
    if drift is not None and drift.fired:
        way = "higher" if drift.shift > 0 else "lower"
        seen.append(
            f"scores change in the order of file names (after the first {100 * drift.at:.0f} % they rank "
            f"{abs(100 * drift.shift):.0f} percentile points {way}): images of other days or sorted files; calibrate "
            "on recent images"
        )
    return "; also, ".join(seen) if seen else "no sign of a problem"
