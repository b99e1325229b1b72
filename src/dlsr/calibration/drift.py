"""Are these images, as a set or as a stream, still in distribution? Tests on conformal scores; pure maths.

Under the null hypothesis new scores and those of the calibration images are exchangeable. Both tests below are valid
although all p-values share one calibration set, which tests that take p-values for independent are not.
"""

import bisect
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dlsr.errors import InputError, SettingsError

SMALLEST_WINDOW = 20
"""Fewer images than this say too little together."""
JUMP = 0.01
"""Share of the capital that changes its bet at each step: the simple jumper of Vovk et al. 2021."""
WITHIN = 0.3
"""The change is where the capital last was within this, to base 10, of its lowest: within a factor of two."""
BETS = np.array([-1.0, 0.0, 1.0])

Scores = NDArray[np.floating]


@dataclass(frozen=True)
class WindowTest:
    """One window of images against the calibration images."""

    start: int
    """Index of its first image."""
    images: int
    p_value: float
    """Of the two-sample Kolmogorov-Smirnov test: how often ID images alone differ so much."""
    mean_p_value: float
    """Mean conformal p-value: 0.5 for ID images, less if they lie further out, more if they lie further in."""


def window_test(scores: Scores, calibration: Scores, start: int = 0) -> WindowTest:
    """Compare the scores of a set of images with those of the calibration images.

    A two-sample test on scores is one on conformal p-values, for these are ranks among the calibration scores.

    Args:
        scores: shape `(n,)`, at least `SMALLEST_WINDOW`.
        calibration: scores of held-out ID images, shape `(m,)`.
        start: index of the first image, for the record.

    Raises:
        InputError: if there are too few scores.
    """
    from scipy.stats import ks_2samp  # noqa: PLC0415 - slow to import, and not needed for scoring

    if len(scores) < SMALLEST_WINDOW:
        raise InputError(f"{len(scores)} images are too few to tell drift; give {SMALLEST_WINDOW} or more")
    ordered = np.sort(calibration)
    above = len(ordered) - np.searchsorted(ordered, scores, side="right")
    ties = np.searchsorted(ordered, scores, side="right") - np.searchsorted(ordered, scores, side="left")
    smoothed = (above + (ties + 1) / 2) / (len(ordered) + 1)
    return WindowTest(start, len(scores), float(ks_2samp(scores, calibration).pvalue), float(smoothed.mean()))


def windows(scores: Scores, calibration: Scores, size: int) -> list[WindowTest]:
    """Test consecutive windows of `size` images; a last one that is too short joins the one before.

    Raises:
        SettingsError: if the size is too small.
        InputError: if the scores are too few.
    """
    if size < SMALLEST_WINDOW:
        raise SettingsError(f"a window needs at least {SMALLEST_WINDOW} images, got {size}")
    starts = list(range(0, max(len(scores) - SMALLEST_WINDOW + 1, 1), size))
    ends = [*starts[1:], len(scores)]
    return [window_test(scores[a:b], calibration, a) for a, b in zip(starts, ends, strict=True)]


class Martingale:
    """A sequential test: capital that bets on p-values being uneven, and grows without bound if they are.

    Each new score gets a conformal p-value among the calibration scores and all scores before it, ties broken at
    random: for exchangeable scores these are independent and uniform (Vovk et al. 2005). The capital is a simple
    jumper's, so by Ville's inequality it ever reaches `1 / alpha` with probability `alpha` at most, however long the
    stream.

    Args:
        calibration: scores of held-out ID images, shape `(m,)`.
        seed: of the ties.
    """

    def __init__(self, calibration: Scores, seed: int = 0) -> None:
        self._seen = sorted(float(score) for score in calibration)
        self._ties = np.random.default_rng(seed)
        self._log_capital = np.full(len(BETS), -math.log(len(BETS)))

    @property
    def log10(self) -> float:
        """Logarithm of the capital, to base 10."""
        return float(np.logaddexp.reduce(self._log_capital)) / math.log(10)

    def update(self, score: float) -> float:
        """Take the next score; returns its p-value in (0, 1)."""
        left, right = bisect.bisect_left(self._seen, score), bisect.bisect_right(self._seen, score)
        ties = right - left + 1
        p_value = (len(self._seen) - right + float(self._ties.random()) * ties) / (len(self._seen) + 1)
        self._seen.insert(right, score)
        total = np.logaddexp.reduce(self._log_capital)
        mixed = np.logaddexp(math.log(1 - JUMP) + self._log_capital, math.log(JUMP / len(BETS)) + total)
        self._log_capital = mixed + np.log1p(BETS * (p_value - 0.5))
        return p_value


@dataclass(frozen=True)
class StreamTest:
    """A stream of images against the calibration images."""

    log10_capital: float
    """Highest that the test martingale reached, to base 10."""
    alarm: int | None
    """Index of the image at which it reached `1 / alpha`; None if it did not."""
    changed: int | None
    """Index of the first image of the change, as far as can be told: where the capital began to grow."""


def stream_test(scores: Scores, calibration: Scores, alpha: float, seed: int = 0) -> StreamTest:
    """Watch scores in their order, see `Martingale`.

    Args:
        scores: shape `(n,)`.
        calibration: scores of held-out ID images, shape `(m,)`.
        alpha: chance of an alarm on a stream of ID images, in (0, 1).
        seed: of the ties.
    """
    path = [0.0]
    for log10 in capital(scores, calibration, seed):
        path.append(log10)
        if log10 >= -math.log10(alpha):
            low = min(path) + WITHIN
            return StreamTest(log10, len(path) - 2, max(i for i, one in enumerate(path) if one <= low))
    return StreamTest(max(path), None, None)


def capital(scores: Scores, calibration: Scores, seed: int = 0) -> Iterator[float]:
    """The test martingale after each score, to base 10."""
    martingale = Martingale(calibration, seed)
    for score in scores:
        martingale.update(float(score))
        yield martingale.log10


@dataclass(frozen=True)
class DriftReport:
    """What `drift` found."""

    images: int
    alpha: float
    """Chance of calling a collection of ID images drifted."""
    windows: Sequence[WindowTest]
    stream: StreamTest | None
    """None if the order of the images says nothing."""
    drifted: bool
    first_changed: int | None
    """Index of the first image of the change, as far as can be told."""


def drift(
    scores: Scores,
    calibration: Scores,
    *,
    alpha: float = 0.01,
    window: int | None = None,
    stream: bool = False,
    seed: int = 0,
) -> DriftReport:
    """Are these images still in distribution, as a set?

    Args:
        scores: of the images, shape `(n,)`, in their order; larger = more OOD.
        calibration: scores of held-out ID images, shape `(m,)`.
        alpha: chance of calling a collection of ID images drifted, in (0, 1); shared by all tests that are made.
        window: images that are tested together; None for all.
        stream: whether the order of the images is that of time, so that the sequential test applies too.
        seed: of the ties.

    Raises:
        SettingsError: for an alpha or window that cannot be.
        InputError: if there are too few images.
    """
    if not 0 < alpha < 1:
        raise SettingsError(f"alpha must lie between 0 and 1, got {alpha}")
    share = alpha / 2 if stream else alpha
    tested = [window_test(scores, calibration)] if window is None else windows(scores, calibration, window)
    # Bonferroni over the windows.
    drifted = next((one.start for one in tested if one.p_value <= share / len(tested)), None)
    watched = stream_test(scores, calibration, share, seed) if stream else None
    changed = watched.changed if watched and watched.changed is not None else drifted
    return DriftReport(
        images=len(scores),
        alpha=alpha,
        windows=tested,
        stream=watched,
        drifted=changed is not None,
        first_changed=changed if window is not None or stream else None,
    )
