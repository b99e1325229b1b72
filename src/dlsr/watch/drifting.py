"""A running test of drift: whether the last images, taken together, are still in distribution."""

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dlsr.calibration.drift import SMALLEST_WINDOW, check_settings, drift, one_of_each_group

TESTS_PER_WINDOW = 10
"""Tests while all images of a window are replaced by new ones."""


@dataclass(frozen=True)
class DriftVerdict:
    """Result of the last test."""

    drifted: bool
    p_value: float
    """Of the Kolmogorov-Smirnov test of the scores against the calibration scores."""
    images: int
    """Number of images in the test."""


class RunningDrift:
    """Tests the scores of the last images against the calibration images, after every tenth of a window.

    Args:
        calibration: scores of the calibration images, shape `(m,)`.
        groups: a number for each of them, see `dlsr.calibration.drift.one_of_each_group`; None if each is on its own.
        window: number of images in a test.
        alpha: probability of calling it drift if the images are in distribution, for each test by itself.
        seed: of the images drawn from groups.

    Raises:
        SettingsError: for a window under `SMALLEST_WINDOW`, or an alpha outside (0, 1).
    """

    def __init__(
        self,
        calibration: NDArray[np.float64],
        groups: NDArray[np.integer] | None,
        *,
        window: int,
        alpha: float,
        seed: int = 0,
    ) -> None:
        check_settings(alpha, window)
        self._calibration = calibration if groups is None else one_of_each_group(calibration, groups, seed)
        self._alpha = alpha
        self._scores: deque[float] = deque(maxlen=window)
        self._untested = 0
        self.verdict: DriftVerdict | None = None
        """Of the last test; None before the first `SMALLEST_WINDOW` images."""

    def restore(self, scores: Iterable[float]) -> None:
        """Take the scores of earlier images, and test them."""
        self._scores.extend(scores)
        if len(self._scores) >= SMALLEST_WINDOW:
            self._test()

    def add(self, score: float) -> None:
        """Add the score of the next image."""
        self._scores.append(score)
        self._untested += 1
        every = max(1, (self._scores.maxlen or 0) // TESTS_PER_WINDOW)
        if len(self._scores) >= SMALLEST_WINDOW and (self.verdict is None or self._untested >= every):
            self._test()

    def _test(self) -> None:
        report = drift(np.array(self._scores), self._calibration, alpha=self._alpha)
        self.verdict = DriftVerdict(report.drifted, report.windows[0].p_value, report.images)
        self._untested = 0
