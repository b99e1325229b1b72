"""From scores to decisions: conformal p-values and thresholds from held-out ID scores.

A p-value is the share of ID images with an equal or higher score, with a finite-sample correction: for exchangeable ID
images `P(p <= rate) <= rate` holds for any number of calibration images (Vovk et al. 2005; Bates et al. 2023, Eq. 3).
The probability is over the new image and the random choice of the calibration images. For one given calibration dataset
of `n` images the share of ID images called OOD varies: for continuous scores it follows a Beta distribution with a mean
of at most `rate` and a standard deviation of about `sqrt(rate / n)` (Angelopoulos & Bates 2021, section 3.2).
"""

import math

import numpy as np
from numpy.typing import NDArray

from dlsr.errors import SettingsError, TooFewImagesError


def p_values(scores: NDArray[np.floating], calibration: NDArray[np.floating]) -> NDArray[np.float64]:
    """Conformal p-values: `(1 + number of calibration scores >= score) / (n + 1)`.

    Args:
        scores: shape `(N,)`, larger = more OOD.
        calibration: scores of held-out ID images, shape `(n,)`.

    Returns:
        p-values of shape `(N,)`, in `(0, 1]`; small = OOD.
    """
    ordered = np.sort(calibration)
    at_least = len(ordered) - np.searchsorted(ordered, scores, side="left")
    return np.asarray((1 + at_least) / (len(ordered) + 1), dtype=np.float64)


def threshold(calibration: NDArray[np.floating], rate: float) -> float:
    """The score above which an image is called OOD: `score > threshold` if and only if `p_value <= rate`.

    Args:
        calibration: scores of held-out ID images, shape `(n,)`.
        rate: false-alarm rate, in (0, 1): the share of ID images called OOD is at most this on average over random
            choices of the calibration images; for a given choice it can be larger.

    Raises:
        SettingsError: for a rate outside (0, 1).
        TooFewImagesError: if no p-value can be as small as `rate`, that is if `n < 1 / rate - 1`.
    """
    n = len(calibration)
    check_calibration_size(n, rate)
    return float(np.sort(calibration)[n - _rank(n, rate)])


def fewest_calibration_images(rate: float) -> int:
    """The fewest calibration images that allow a false-alarm rate in (0, 1)."""
    return math.ceil(1 / rate - 1 - 1e-9)


def check_calibration_size(n: int, rate: float) -> None:
    """Check that there are enough calibration images for a false-alarm rate.

    Args:
        n: number of calibration images.
        rate: false-alarm rate, in (0, 1).

    Raises:
        SettingsError: for a rate outside (0, 1).
        TooFewImagesError: if no p-value can be as small as `rate`, that is if `n < 1 / rate - 1`.
    """
    if not 0 < rate < 1:
        raise SettingsError(f"the false-alarm rate must lie between 0 and 1, got {rate}")
    if _rank(n, rate) < 1:
        raise TooFewImagesError(
            f"a false-alarm rate of {rate:g} needs at least {fewest_calibration_images(rate)} calibration images, "
            f"got {n}; give more images or a higher rate"
        )


def layer_scale(layers: NDArray[np.floating]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean and standard deviation (never 0) of each layer's calibration scores: shape `(n, M)` to `(M,)` each."""
    return layers.mean(axis=0, dtype=np.float64), layers.std(axis=0, dtype=np.float64) + 1e-12


def _rank(n: int, rate: float) -> int:
    """Rank of the threshold among `n` calibration scores, 1 for the largest; 0 if no score is high enough."""
    # The small constant keeps rate * (n + 1) from falling below a whole number by rounding.
    return math.floor(rate * (n + 1) + 1e-9)
