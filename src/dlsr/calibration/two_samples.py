"""Two-sample tests: whether images are distributed as reference images are, and in what they differ."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dlsr.calibration.distributions import fisher_p_value, ks_test
from dlsr.calibration.principal import principal_components, standardised
from dlsr.errors import SettingsError

COMPONENTS = 64
"""Features are reduced to this many principal components of both samples together."""
MOST_PERMUTATIONS = 9999
MOST_TYPICAL = 5
"""This many images are named as the most typical of a change of the features."""
ROUNDING = 1e-6
"""Discrepancies that differ by this count as equal. Those of different images are much larger: about the reciprocal of
their number."""
_AT_ONCE = 250
"""Permutations in one matrix product."""

Values = NDArray[Any]
"""A property of each image: numbers, or names (an array of strings), shape `(n,)`."""


@dataclass(frozen=True)
class Sample:
    """Images to compare with others."""

    z0: NDArray[np.float32]
    """Features, shape `(n, c)`."""
    properties: Mapping[str, Values]
    """Properties by name, each of shape `(n,)`."""


@dataclass(frozen=True)
class FeatureTest:
    """Result of `feature_test`."""

    p_value: float
    permutations: int
    most_typical: Sequence[int]
    """Positions of the later images that are most typical of the change, the first the most."""


@dataclass(frozen=True)
class Widest:
    """Where the distributions of a number differ most."""

    value: float
    before_above: float
    """Share of the reference images with more."""
    after_above: float
    """Share of the later images with more."""


@dataclass(frozen=True)
class PropertyTest:
    """Result of the test of one property."""

    name: str
    p_value: float
    """Holm-corrected for all properties that were tested."""
    before: float | Mapping[str, float]
    """Median of the reference images; of names, the share of each."""
    after: float | Mapping[str, float]
    """The same of the later images."""
    widest: Widest | None
    """Where the distributions differ most; None for names."""


def check_level(level: float) -> None:
    """Raise SettingsError if `MOST_PERMUTATIONS` cannot give a p-value as low as this."""
    if level * (MOST_PERMUTATIONS + 1) < 1:
        raise SettingsError(f"permutations cannot give a p-value as low as {level:.2g}; allow a higher alpha")


def feature_test(
    before: NDArray[np.float32], after: NDArray[np.float32], *, level: float, seed: int = 0
) -> FeatureTest:
    """Test whether features are distributed as those of reference images are.

    The statistic is the maximum mean discrepancy (Gretton et al. 2012) of standardised features, reduced to principal
    components, with a Gaussian kernel as wide as the mean squared distance. Its p-value is that of random permutations
    of the images, which is valid for any number of images if all of them are exchangeable.

    Args:
        before: features of reference images, shape `(n, c)`.
        after: features of later images, shape `(m, c)`.
        level: the p-value at which the test is to fire: the number of permutations follows from it.
        seed: seed of the permutations.

    Raises:
        SettingsError: if the level is too low for `MOST_PERMUTATIONS`.
    """
    check_level(level)
    permutations = int(np.clip(np.ceil(10 / level), 1000, MOST_PERMUTATIONS + 1)) - 1
    random = np.random.default_rng(seed)
    is_after = np.repeat([False, True], [len(before), len(after)])
    # In random order, so that nothing computed from all images together can depend on which of them are later.
    order = random.permutation(len(is_after))
    is_after = is_after[order]
    kernel = _kernel(np.concatenate([before, after])[order])
    weights = np.where(is_after, 1 / len(after), -1 / len(before)).astype(np.float32)
    witness = kernel @ weights
    observed = float(weights @ witness)
    # Of images that are all equal, rounding decides the sign and size of each value.
    at_least = observed - 1e-4 * abs(observed) - ROUNDING
    as_large = 0
    for start in range(0, permutations, _AT_ONCE):
        permuted = random.permuted(np.tile(weights, (min(_AT_ONCE, permutations - start), 1)), axis=1)
        as_large += int((((permuted @ kernel) * permuted).sum(axis=1) >= at_least).sum())
    ranked = [i for i in np.argsort(-witness, kind="stable") if is_after[i]][:MOST_TYPICAL]
    return FeatureTest(
        p_value=(1 + as_large) / (1 + permutations),
        permutations=permutations,
        most_typical=[int(order[i]) - len(before) for i in ranked],
    )


def property_tests(before: Mapping[str, Values], after: Mapping[str, Values]) -> list[PropertyTest]:
    """Test each property that both samples have, the most changed first.

    Numbers are compared by the two-sample Kolmogorov-Smirnov test. Names are compared by Fisher's exact test of each
    name against all others, Bonferroni-corrected for the names. The p-values of all properties are corrected by Holm's
    method (1979): the probability that any of them is at most `alpha` is at most `alpha` for exchangeable images. A
    property with one value in all images cannot have changed, and is not counted.

    Args:
        before: properties of reference images by name, each of shape `(n,)`.
        after: properties of later images by name, each of shape `(m,)`.
    """
    found = [
        (_test_names if before[name].dtype.kind == "U" else _test_numbers)(name, before[name], after[name])
        for name in before
        if name in after and len(np.unique(np.concatenate([before[name], after[name]]))) > 1
    ]
    found.sort(key=lambda test: test.p_value)
    corrected, largest = [], 0.0
    for rank, test in enumerate(found):
        largest = max(largest, min((len(found) - rank) * test.p_value, 1.0))
        corrected.append(PropertyTest(test.name, largest, test.before, test.after, test.widest))
    return corrected


def _kernel(z0: NDArray[np.float32]) -> NDArray[np.float32]:
    reduced = principal_components(standardised(z0), COMPONENTS)
    squares = (reduced**2).sum(axis=1)
    distances = np.maximum(squares[:, None] + squares - 2 * reduced @ reduced.T, 0)
    kernel: NDArray[np.float32] = np.exp(-distances / max(float(distances.mean()), 1e-12))
    return kernel


def _test_numbers(name: str, before: Values, after: Values) -> PropertyTest:
    test = ks_test(after, before)
    value = test.location
    return PropertyTest(
        name,
        test.p_value,
        float(np.median(before)),
        float(np.median(after)),
        Widest(value, float((before > value).mean()), float((after > value).mean())),
    )


def _test_names(name: str, before: Values, after: Values) -> PropertyTest:
    kinds = [str(kind) for kind in np.unique(np.concatenate([before, after]))]
    tables = [
        [[int((sample == kind).sum()), int((sample != kind).sum())] for sample in (before, after)] for kind in kinds
    ]
    # Of two names, one test tells all.
    smallest = min(fisher_p_value(table) for table in tables) * (1 if len(kinds) == 2 else len(kinds))
    shares = [{kind: float((sample == kind).mean()) for kind in kinds} for sample in (before, after)]
    return PropertyTest(name, min(smallest, 1.0), shares[0], shares[1], None)
