"""Distributions and exact tests in NumPy alone, so that scoring needs no SciPy.

The beta distribution, the two-sample test of Kolmogorov and Smirnov, and Fisher's exact test of two shares.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

AT_ONCE = 8192
"""Quantiles found at once: as many as the processor's cache holds."""
CLOSE = 1e-8
"""Newton's method ends with a step of at most this, which leaves an error of about its square."""
EXACT = 10_000
"""p-values of Kolmogorov and Smirnov's test are exact for samples of at most this many values."""
EQUALLY_LIKELY = 1e-7
"""Tables whose probabilities differ by this share count as equally likely, since they are known up to rounding."""

Array = NDArray[np.float64]
Values = NDArray[Any]
"""Numbers, shape `(n,)`."""


def beta_cdf(x: Array, a: Array, b: Array) -> Array:
    """Probabilities that beta variables are at most `x`: the regularised incomplete beta function `I_x(a, b)`.

    Args:
        x: in (0, 1), shape `(n,)`.
        a: first parameters, positive, shape `(n,)`.
        b: second parameters, positive, shape `(n,)`.

    Returns:
        Probabilities, shape `(n,)`.
    """
    return np.asarray(-np.expm1(_log_beyond(x, 1 - x, a, b, _log_scale(a, b))[0]))


def beta_quantile(probability: float, a: Array, b: Array) -> Array:
    """The values that beta variables do not exceed with a probability.

    Args:
        probability: in (0, 1).
        a: first parameters, positive, shape `(n,)`.
        b: second parameters, positive, shape `(n,)`.

    Returns:
        Quantiles, shape `(n,)`.
    """
    starts = range(0, len(a), AT_ONCE)
    parts = [_quantile(probability, a[i : i + AT_ONCE], b[i : i + AT_ONCE]) for i in starts]
    return np.concatenate([np.empty(0), *parts])


def _quantile(probability: float, a: Array, b: Array) -> Array:
    """Newton's method for the logarithm of the probability to exceed the quantile, as a function of its log-odds.

    The density of the log-odds is log-concave, so this function is concave, and the method converges from anywhere. It
    starts from the expansion of Cornish and Fisher (1938), with approximate cumulants of the log-odds.
    """
    z, scale = NormalDist().inv_cdf(probability), _log_scale(a, b)
    log_odds = np.log(a / b) + z * np.sqrt(1 / a + 1 / b) + (z**2 + 2) / 6 * (1 / b - 1 / a)
    moving = np.arange(len(a))
    while len(moving):
        x, y = (1 / (1 + np.exp(sign * log_odds[moving])) for sign in (-1, 1))
        beyond, density = _log_beyond(x, y, a[moving], b[moving], scale[moving])
        step = (beyond - math.log1p(-probability)) * np.exp(beyond - density)
        log_odds[moving] += step
        moving = moving[np.abs(step) > CLOSE]
    return np.asarray(1 / (1 + np.exp(-log_odds)))


def _log_beyond(x: Array, y: Array, a: Array, b: Array, scale: Array) -> tuple[Array, Array]:
    """Logarithms of the probability that beta variables exceed `x = 1 - y`, and of the density of their log-odds.

    All are of shape `(n,)`. The density `x^a y^b / B(a, b)` is written relative to that at the mean, which loses no
    digits for large parameters (Loader 2000, "Fast and accurate computation of binomial probabilities").
    """
    below_mean = (a * y - b * x) / (a + b)
    density = scale - a * np.log1p(below_mean / x) - b * np.log1p(-below_mean / y)
    above = below_mean < 0
    # The fraction converges fast for the tail that does not hold the mean.
    tail = density - np.log(_fraction(*np.where(above, (b, a, y, x), (a, b, x, y))))
    return np.where(above, tail, np.log1p(-np.exp(tail))), density


def _fraction(a: Array, b: Array, x: Array, y: Array) -> Array:
    """`x^a y^b / (B(a, b) I_x(a, b))`, by the continued fraction of DiDonato and Morris (1992, Algorithm 708).

    Its convergents are every second one of DLMF 8.17.22. They are found by the method of Lentz (Numerical Recipes,
    section 5.2).
    """
    first = a * y - b * x + 1
    value = a * first / (a + 1)
    upper, lower = value, np.zeros_like(a)
    for m in itertools.count(1):
        odd = a + (2 * m - 1)
        common = m * (b - m) * x / odd
        numerator = (a + (m - 1)) * (a + b + (m - 1)) * x / odd * common
        denominator = m + common + (a + m) * (first + m * (1 + y)) / (odd + 2)
        upper, lower = denominator + numerator / upper, 1 / (denominator + numerator * lower)
        factor = upper * lower
        value = value * factor
        if not (np.abs(factor - 1) > 1e-15).any():
            break
    return value


def _log_scale(a: Array, b: Array) -> Array:
    """Logarithm of the density of the log-odds of beta variables at their mean `a / (a + b)`."""
    stirling = _stirling_error(a + b) - _stirling_error(a) - _stirling_error(b)
    return np.asarray(stirling + np.log(a / (a + b) * b / (2 * math.pi)) / 2)


def _stirling_error(z: Array) -> Array:
    """Logarithm of the gamma function less Stirling's formula (DLMF 5.11.1), for positive numbers, shape `(n,)`."""
    error = np.empty(len(z))
    small = z < 16
    few, others = z[small], z[~small]
    log_gamma = np.array([math.lgamma(value) for value in few])
    error[small] = log_gamma - (few - 0.5) * np.log(few) + few - math.log(2 * math.pi) / 2
    error[~small] = np.polyval([-1 / 1680, 1 / 1260, -1 / 360, 1 / 12], others**-2.0) / others
    return error


@dataclass(frozen=True)
class KsTest:
    """Result of a two-sample test of Kolmogorov and Smirnov."""

    statistic: float
    """Largest difference between the shares of the two samples that are at most some value."""
    location: float
    """A value at which the shares differ so much."""
    p_value: float
    """Two-sided. Exact for samples of at most `EXACT` values without ties; with ties it can only be too large."""


def ks_test(first: Values, second: Values) -> KsTest:
    """Compare two samples by the test of Kolmogorov and Smirnov.

    Args:
        first: shape `(m,)`, at least one value.
        second: shape `(n,)`, at least one value.
    """
    samples, sizes = (np.sort(first), np.sort(second)), (len(first), len(second))
    values = np.concatenate(samples)
    at_most = [np.searchsorted(sample, values, side="right") for sample in samples]
    differences = np.abs(at_most[0] * sizes[1] - at_most[1] * sizes[0])
    largest = int(differences.max())
    statistic = largest / math.prod(sizes)
    if max(sizes) <= EXACT:
        p_value = _share_of_paths(largest, min(sizes), max(sizes))
    else:
        p_value = _kolmogorov(statistic, math.prod(sizes) / sum(sizes))
    return KsTest(statistic, float(values[differences.argmax()]), p_value)


def _share_of_paths(difference: int, m: int, n: int) -> float:
    """Probability that samples of `m` and `n` values from one distribution differ at least so much somewhere.

    The order of all values is a path on a lattice: a step to the right for a value of the first sample, and upwards for
    one of the second. All paths from `(0, 0)` to `(m, n)` are equally likely (Hodges 1958). At `(x, y)` the samples
    differ by `|n x - m y|`, and a path leaves the band where that is at least the given difference. The share of the
    paths to `(x, y)` that have left it is `x / (x + y)` times that at `(x - 1, y)` and `y / (x + y)` times that at
    `(x, y - 1)`. Such sums of positive numbers keep the digits of tiny probabilities.

    Args:
        difference: in units of `1 / (m n)`.
        m: size of the smaller sample.
        n: size of the larger sample.
    """
    # Of the paths to each place of a column. Those above the band stay at 1.
    left, all_y = np.ones(n + 1), np.arange(n + 1)
    left[: (difference - 1) // m + 1] = 0
    for x in range(1, m + 1):
        lowest, highest = max(0, (x * n - difference) // m + 1), min(n, (x * n + difference - 1) // m)
        if lowest > highest:
            return 1.0
        y = all_y[lowest : highest + 1]
        share, factor = left[lowest : highest + 1] * (x / (x + y)), y / (x + y)
        share[0] += factor[0]  # all paths below the band have left it
        # The recurrence along the column, by recursive doubling (Kogge and Stone 1973).
        reach = 1
        while reach < len(y):
            share[reach:] += factor[reach:] * share[:-reach]
            factor[reach:] *= factor[:-reach]
            reach *= 2
        left[lowest : highest + 1] = share
    return float(left[n])


def _kolmogorov(statistic: float, n: float) -> float:
    """Approximate probability that a sample of `n` values differs at least so much from its distribution.

    Kolmogorov's limit (1933), with a correction for finite samples (Vrbik 2018, "Small-sample corrections to
    Kolmogorov-Smirnov test statistic"). Two samples of `m` and `k` values count as one of `n = m k / (m + k)`.
    """
    z = math.sqrt(n) * statistic
    z += 1 / (6 * math.sqrt(n)) + (z - 1) / (4 * n)
    if z < 0.1:
        return 1.0  # up to rounding, and the series needs many terms
    return min(2 * sum((-1.0) ** (k - 1) * math.exp(-2 * (k * z) ** 2) for k in range(1, 101)), 1.0)


def fisher_p_value(table: Sequence[Sequence[int]]) -> float:
    """Two-sided p-value of Fisher's exact test: the probability of all tables at most as likely as the given one.

    Args:
        table: two rows of two counts. Tables with the same sums of rows and columns are compared.
    """
    (count, other), (below, _) = table
    row, column, total = count + other, count + below, int(np.sum(table))
    x = np.arange(max(0, row + column - total), min(row, column) + 1)
    # Each table's probability follows from the one before it.
    before = x[:-1]
    ratios = (row - before) * (column - before) / ((before + 1) * (total - row - column + before + 1))
    logs = np.concatenate([[0.0], np.cumsum(np.log(ratios))])
    probabilities = np.exp(logs - logs.max())
    return float(probabilities[logs <= logs[count - x[0]] + EQUALLY_LIKELY].sum() / probabilities.sum())
