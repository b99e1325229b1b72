"""The false discovery rate: which of many images to reject, so that few of those rejected are in distribution.

At a false-alarm rate of 5 %, 10,000 ID images give about 500 false alarms. The procedure of Benjamini and Hochberg
(1995) limits the expected share of ID images among those that are rejected instead. The p-values of many images share
their calibration images and so depend on each other, but positively (they are PRDS), and for such p-values the
procedure is valid (Bates, Candès, Lei, Romano and Sesia 2023, "Testing for outliers with conformal p-values",
theorem 2). That takes new images that are independent of each other, given the calibration images.
"""

import math

import numpy as np
from numpy.typing import NDArray

from dlsr.errors import SettingsError

ROUNDING = 1 + 1e-9
"""Keeps a p-value that is exactly at its limit from exceeding it by rounding."""


def check_fdr(rate: float) -> None:
    """Check a false discovery rate.

    Raises:
        SettingsError: for a rate outside (0, 1).
    """
    if not 0 < rate < 1:
        raise SettingsError(f"the false discovery rate must lie between 0 and 1, got {rate:g}; 0.1 is usual")


def rejected(p_values: NDArray[np.floating], rate: float) -> NDArray[np.bool_]:
    """Which p-values are rejected at a false discovery rate.

    These are the `k` smallest, for the largest `k` whose `k`-th smallest p-value is at most `rate * k / N`.

    Args:
        p_values: of N images, shape `(N,)`; NaN for images that could not be read, which do not count.
        rate: false discovery rate, in (0, 1).

    Raises:
        SettingsError: for a rate outside (0, 1).
    """
    check_fdr(rate)
    ordered = np.sort(p_values[np.isfinite(p_values)])
    limits = rate * np.arange(1, len(ordered) + 1) / max(len(ordered), 1)
    below = np.flatnonzero(ordered <= limits * ROUNDING)
    return np.asarray(p_values <= (ordered[below[-1]] if len(below) else -1.0), dtype=np.bool_)


def why_none(p_values: NDArray[np.floating], smallest: float, rate: float) -> str | None:
    """Why no image is rejected, if it is because the calibration images are too few for so many images; else None.

    Args:
        p_values: as for `rejected`.
        smallest: the smallest p-value that there can be, `1 / (n + 1)` for `n` calibration images.
        rate: as for `rejected`.
    """
    images = int(np.isfinite(p_values).sum())
    needed = math.ceil(smallest * images / (rate * ROUNDING))
    if needed <= 1 or rejected(p_values, rate).any():
        return None
    remedy = "give more calibration images, fewer images at once, or a higher rate"
    if needed > images:
        remedy = "give more calibration images, or a higher rate"
        return f"no image can be rejected: the smallest p-value there can be is {smallest:.2g}; {remedy}"
    having = int((p_values <= smallest * ROUNDING).sum())
    return (
        f"none can be rejected unless {needed} of {images} images have the smallest p-value there can be, "
        f"{smallest:.2g}, and {having} have it; {remedy}"
    )
