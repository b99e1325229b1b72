"""From scores to decisions: conformal p-values and thresholds from held-out ID scores.

A p-value is the share of ID images at least as far out, with the finite-sample correction that makes
`P(p <= rate) <= rate` hold exactly for exchangeable ID images (Vovk et al. 2005; Bates et al. 2023, Eq. 3).
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
        Shape `(N,)`, in `(0, 1]`; small = OOD.
    """
    ordered = np.sort(calibration)
    at_least = len(ordered) - np.searchsorted(ordered, scores, side="left")
    return np.asarray((1 + at_least) / (len(ordered) + 1), dtype=np.float64)


def threshold(calibration: NDArray[np.floating], rate: float) -> float:
    """The score above which an image is called OOD: `score > threshold` exactly where `p_value <= rate`.

    Args:
        calibration: scores of held-out ID images, shape `(n,)`.
        rate: wanted false-alarm rate, in (0, 1): at most this share of ID images is called OOD.

    Raises:
        SettingsError: for a rate outside (0, 1).
        TooFewImagesError: if no p-value can be as small as `rate`, that is if `n < 1 / rate - 1`.
    """
    n = len(calibration)
    check_calibration_size(n, rate)
    return float(np.sort(calibration)[n - allowed_alarms(n, rate)])


def check_calibration_size(n: int, rate: float) -> None:
    """Raise unless `n` calibration images allow a false-alarm rate.

    Raises:
        SettingsError: for a rate outside (0, 1).
        TooFewImagesError: if no p-value can be as small as `rate`, that is if `n < 1 / rate - 1`.
    """
    if not 0 < rate < 1:
        raise SettingsError(f"the false-alarm rate must lie between 0 and 1, got {rate}")
    if allowed_alarms(n, rate) < 1:
        needed = math.ceil(1 / rate - 1 - 1e-9)
        raise TooFewImagesError(
            f"a false-alarm rate of {rate:g} needs at least {needed} calibration images, got {n}; "
            "give more images or a higher rate"
        )


def allowed_alarms(n: int, rate: float) -> int:
    """The most of `n` calibration images that a threshold may call OOD at a false-alarm rate."""
    # The small slack keeps rate * (n + 1) from falling below a whole number by rounding alone.
    return math.floor(rate * (n + 1) + 1e-9)


def layer_scale(layers: NDArray[np.floating]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean and standard deviation (never zero) of each layer's calibration scores: shape `(n, M)` to `(M,)` twice."""
    return layers.mean(axis=0, dtype=np.float64), layers.std(axis=0, dtype=np.float64) + 1e-12
