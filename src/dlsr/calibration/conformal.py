"""From scores to decisions: conformal p-values and thresholds from the scores of ID images that were not fitted to.

A p-value is the share of ID images with an equal or higher score, with a finite-sample correction: for exchangeable ID
images `P(p <= rate) <= rate` holds for any number of calibration images (Vovk et al. 2005; Bates et al. 2023, Eq. 3).

Images that come in groups, such as the frames of a video, are not exchangeable, but their groups may be. Then each
group counts as one image, and each of its images as an equal share of it. The same holds then for an image of a new
group (hierarchical conformal prediction, Lee, Barber, Willett 2023, section 3): it holds for one image drawn from each
group, and this is the mean over such draws.

The probability is over the new image and the calibration images together. For one given calibration dataset of `n`
images the share of ID images called OOD varies: for continuous scores it follows a Beta distribution with a mean of at
most `rate` and a standard deviation of about `sqrt(rate / n)` (Angelopoulos & Bates 2021, section 3.2). With a
`confidence` the p-values are larger: quantiles of that distribution instead of its means. For any rate chosen
beforehand, the share is at most `rate` with this probability over the calibration images (Vovk 2012, section 3; Bates
et al. 2023, section 3). Of groups, one image each is used for it.

Calibration scores for which each image was left out of the fit in turn depend on each other, and without further
assumptions no theorem tells how much the share varies then (Bian & Barber 2023, for the jackknife+). So with a
confidence such an image counts as two thirds of one, which allows for a standard deviation larger by a fifth.
"""

import math
from bisect import bisect_left

import numpy as np
from numpy.typing import NDArray

from dlsr.calibration.distributions import beta_cdf, beta_quantile
from dlsr.errors import FeatureError, SettingsError, TooFewImagesError

Array = NDArray[np.float64]
DIGITS = 9
"""Decimals of sums of groups' shares, which are rounded to whole numbers where they ought to be ones."""
ROUNDING = 10.0**-DIGITS
"""Keeps p-values from exceeding a rate by rounding."""
LEFT_OUT_COUNTS = 2 / 3
"""With a confidence, an image that was left out in turn counts as this much of a held-out one."""
MOST_IMAGES = 2**40
"""Where the search for the fewest images ends."""


def p_values(
    scores: NDArray[np.floating],
    calibration: NDArray[np.floating],
    groups: NDArray[np.integer] | None = None,
    confidence: float | None = None,
    left_out: bool = False,
) -> Array:
    """Conformal p-values: `(1 + number of calibration scores >= score) / (n + 1)`.

    Args:
        scores: shape `(N,)`, larger = more OOD.
        calibration: scores of ID images, shape `(n,)`.
        groups: a number for each calibration image, shape `(n,)`, the same for images of one group; None if each is a
            group of its own.
        confidence: probability with which each rate holds for the given calibration images, in (0, 1); None for rates
            that hold on average.
        left_out: whether each calibration image was left out of the fit in turn, instead of all together. It only
            matters with a confidence.

    Returns:
        p-values of shape `(N,)`, in `(0, 1]`; small = OOD. NaN for NaN.

    Raises:
        SettingsError: for a confidence outside (0, 1).
        FeatureError: for calibration scores that are not finite.
    """
    return looked_up(scores, p_value_table(calibration, groups, confidence, left_out))


def threshold(
    calibration: NDArray[np.floating],
    rate: float,
    groups: NDArray[np.integer] | None = None,
    confidence: float | None = None,
    left_out: bool = False,
) -> float:
    """The score above which an image is called OOD: `score > threshold` if and only if `p_value <= rate`.

    Args:
        calibration: scores of ID images, shape `(n,)`.
        rate: false-alarm rate, in (0, 1): the share of ID images called OOD is at most this, on average over choices of
            the calibration images; for a given choice it can be larger, with a `confidence` only rarely.
        groups: as for `p_values`.
        confidence: as for `p_values`.
        left_out: as for `p_values`.

    Raises:
        SettingsError: for a rate or confidence outside (0, 1).
        TooFewImagesError: if no p-value can be as small as `rate`.
        FeatureError: for calibration scores that are not finite.
    """
    check_calibration_size(len(calibration), rate, groups, confidence, left_out)
    return threshold_in(p_value_table(calibration, groups, confidence, left_out), rate)


def looked_up(scores: NDArray[np.floating], table: tuple[Array, Array]) -> Array:
    """p-values of scores, shape `(N,)`, in the table that `p_value_table` returned; NaN for NaN."""
    ordered, values = table
    return np.where(np.isnan(scores), np.nan, values[np.searchsorted(ordered, scores, side="left")])


def threshold_in(table: tuple[Array, Array], rate: float) -> float:
    """The threshold for a rate that the table allows, see `threshold` and `check_calibration_size`."""
    ordered, values = table
    return float(ordered[np.count_nonzero(values > rate + ROUNDING) - 1])


def p_value_table(
    calibration: NDArray[np.floating],
    groups: NDArray[np.integer] | None = None,
    confidence: float | None = None,
    left_out: bool = False,
) -> tuple[Array, Array]:
    """All p-values that there can be, see `looked_up`.

    Args:
        calibration: as for `p_values`, as are the others.
        groups: as for `p_values`.
        confidence: as for `p_values`.
        left_out: as for `p_values`.

    Returns:
        Scores in ascending order, shape `(n,)`, and p-values, shape `(n + 1,)`.

    Raises:
        SettingsError: for a confidence outside (0, 1).
        FeatureError: for calibration scores that are not finite.
    """
    _check_confidence(confidence)
    if not np.isfinite(calibration).all():
        raise FeatureError("calibration scores must be finite numbers; leave out images that have none")
    ordered, weights = _ordered(calibration, groups, confidence)
    n = round(float(weights.sum()))
    # Groups' shares add up to whole numbers but for rounding, by which a p-value could exceed 1 or a rate.
    at_least = np.append(np.cumsum(weights[::-1])[::-1], 0.0).round(DIGITS)
    if confidence is None:
        return ordered, np.asarray((1 + at_least) / (n + 1), dtype=np.float64)
    counts = LEFT_OUT_COUNTS if left_out else 1
    return ordered, np.append(1.0, beta_quantile(confidence, counts * (at_least[1:] + 1), counts * (n - at_least[1:])))


def fewest_calibration_images(rate: float, confidence: float | None = None, left_out: bool = False) -> int:
    """The fewest calibration images, or groups of them, that allow a false-alarm rate in (0, 1).

    Args:
        rate: false-alarm rate.
        confidence: as for `p_values`.
        left_out: as for `p_values`.
    """
    if confidence is None:
        return math.ceil(1 / rate - 1 - ROUNDING)
    if not left_out:
        return math.ceil(math.log(1 - confidence) / math.log(1 - rate) - ROUNDING)
    highest = min(rate + ROUNDING, 1 - ROUNDING)

    def chance(n: int) -> float:
        """Probability that the smallest p-value allows the rate."""
        return float(beta_cdf(np.array([highest]), np.array([LEFT_OUT_COUNTS]), np.array([LEFT_OUT_COUNTS * n]))[0])

    return bisect_left(range(1, MOST_IMAGES), confidence, key=chance) + 1


def check_calibration_size(
    n: int,
    rate: float,
    groups: NDArray[np.integer] | None = None,
    confidence: float | None = None,
    left_out: bool = False,
) -> None:
    """Check that there are enough calibration images for a false-alarm rate.

    Args:
        n: number of calibration images.
        rate: false-alarm rate, in (0, 1).
        groups: as for `p_values`.
        confidence: as for `p_values`.
        left_out: as for `p_values`.

    Raises:
        SettingsError: for a rate or confidence outside (0, 1).
        TooFewImagesError: if no p-value can be as small as `rate`.
    """
    if not 0 < rate < 1:
        raise SettingsError(f"the false-alarm rate must lie between 0 and 1, got {rate}")
    _check_confidence(confidence)
    count = n if groups is None else len(np.unique(groups))
    fewest = fewest_calibration_images(rate, confidence, left_out)
    if count < fewest:
        kind = "calibration images" if count == n else "groups of calibration images"
        at = "" if confidence is None else f" with a confidence of {confidence:g}"
        raise TooFewImagesError(
            f"a false-alarm rate of {rate:g}{at} needs at least {fewest} {kind}, got {count}; give more images or a "
            "higher rate"
        )


def _check_confidence(confidence: float | None) -> None:
    if confidence is not None and not 0 < confidence < 1:
        raise SettingsError(f"the confidence must lie between 0 and 1, got {confidence}")


def layer_scale(layers: NDArray[np.floating]) -> tuple[Array, Array]:
    """Mean and standard deviation (never 0) of each layer's calibration scores: shape `(n, M)` to `(M,)` each."""
    return layers.mean(axis=0, dtype=np.float64), layers.std(axis=0, dtype=np.float64) + 1e-12


def _ordered(
    calibration: NDArray[np.floating], groups: NDArray[np.integer] | None, confidence: float | None
) -> tuple[Array, Array]:
    """Scores in ascending order, and what each counts: each group counts as one image."""
    scores, weights = np.asarray(calibration, dtype=np.float64), np.ones(len(calibration))
    if groups is not None:
        order = np.random.default_rng(0).permutation(len(groups))
        _, drawn, group_of, sizes = np.unique(
            np.asarray(groups)[order], return_index=True, return_inverse=True, return_counts=True
        )
        weights[order] = 1 / sizes[group_of]
        if confidence is not None:
            scores, weights = scores[order[drawn]], np.ones(len(drawn))
    order = np.argsort(scores, kind="stable")
    return scores[order], weights[order]
