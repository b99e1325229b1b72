"""Drift: statistical tests of whether a dataset or a stream of images is still in distribution.

The null hypothesis is that new scores and the scores of the calibration images are exchangeable. All conformal p-values
share the same calibration images and are therefore dependent. The tests below allow for that; tests that assume
independent p-values are not valid here.

With reference images, tests of features and of simple properties say what changed, see `dlsr.calibration.two_samples`.
"""

import bisect
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dlsr.calibration.distributions import ks_test
from dlsr.calibration.two_samples import FeatureTest, PropertyTest, Sample, check_level, feature_test, property_tests
from dlsr.errors import InputError, SettingsError

SMALLEST_WINDOW = 20
"""Smallest number of images in a test."""
JUMP = 0.01
"""Share of the capital that is redistributed over the bets at each step (the simple jumper of Vovk et al. 2021)."""
WITHIN = 0.3
"""The change is located where log10 of the capital was last within this of its minimum: within a factor of two."""
BETS = np.array([-1.0, 0.0, 1.0])
"""Slopes of the betting functions `1 + slope * (p - 0.5)`."""

Scores = NDArray[np.floating]


@dataclass(frozen=True)
class WindowTest:
    """Result of a test of consecutive images against the calibration images."""

    start: int
    """Index of the first image."""
    images: int
    """Number of images."""
    p_value: float
    """p-value of the two-sample Kolmogorov-Smirnov test: small = drift."""
    mean_p_value: float
    """Mean conformal p-value: about 0.5 for ID images, less if scores are higher than usual, more if they are lower."""


def window_test(scores: Scores, calibration: Scores, start: int = 0) -> WindowTest:
    """Compare the scores of images with those of the calibration images.

    The test uses ranks only, so a test of scores is also a test of conformal p-values.

    Args:
        scores: shape `(n,)`, at least `SMALLEST_WINDOW`.
        calibration: scores of held-out ID images, shape `(m,)`.
        start: index of the first image, copied to the result.

    Raises:
        InputError: if there are fewer scores than `SMALLEST_WINDOW`.
    """
    if len(scores) < SMALLEST_WINDOW:
        raise InputError(f"{len(scores)} images are too few to detect drift; give {SMALLEST_WINDOW} or more")
    ordered = np.sort(calibration)
    above = len(ordered) - np.searchsorted(ordered, scores, side="right")
    ties = np.searchsorted(ordered, scores, side="right") - np.searchsorted(ordered, scores, side="left")
    smoothed = (above + (ties + 1) / 2) / (len(ordered) + 1)
    return WindowTest(start, len(scores), ks_test(scores, calibration).p_value, float(smoothed.mean()))


def windows(scores: Scores, calibration: Scores, size: int) -> list[WindowTest]:
    """Test consecutive windows of `size` images. A last window that would be too short is joined to the one before.

    Args:
        scores: shape `(n,)`.
        calibration: scores of held-out ID images, shape `(m,)`.
        size: images in a window, at least `SMALLEST_WINDOW`.

    Raises:
        SettingsError: if the size is too small.
        InputError: if there are fewer scores than `SMALLEST_WINDOW`.
    """
    _check_window(size)
    starts = list(range(0, max(len(scores) - SMALLEST_WINDOW + 1, 1), size))
    ends = [*starts[1:], len(scores)]
    return [window_test(scores[a:b], calibration, a) for a, b in zip(starts, ends, strict=True)]


class Martingale:
    """A sequential test: a test martingale, the capital of bets against uniform p-values.

    Each new score gets a conformal p-value among the calibration scores and all earlier scores, with ties broken at
    random. For exchangeable scores these p-values are independent and uniform (Vovk et al. 2005). The bets are those of
    the simple jumper (Vovk et al. 2021). By Ville's inequality the probability that the capital ever reaches
    `1 / alpha` on a stream of ID images is at most `alpha`, for any length of the stream.

    Args:
        calibration: scores of held-out ID images, shape `(m,)`.
        seed: seed of the random order of ties.
    """

    def __init__(self, calibration: Scores, seed: int = 0) -> None:
        self._seen = sorted(float(score) for score in calibration)
        self._ties = np.random.default_rng(seed)
        self._log_capital = np.full(len(BETS), -math.log(len(BETS)))

    @property
    def log10(self) -> float:
        """Logarithm of the capital to base 10."""
        return float(np.logaddexp.reduce(self._log_capital)) / math.log(10)

    def update(self, score: float) -> float:
        """Bet on the next score, and return its p-value in (0, 1)."""
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
    """Result of a sequential test of a stream of images."""

    log10_capital: float
    """Logarithm to base 10 of the highest capital, or of the capital at the alarm."""
    alarm: int | None
    """Index of the image at which the capital reached `1 / alpha`; None if it did not."""
    changed: int | None
    """Estimated index of the first image after the change, where the capital began to grow; None without an alarm."""


def stream_test(scores: Scores, calibration: Scores, alpha: float, seed: int = 0) -> StreamTest:
    """Test scores in the order of time, see `Martingale`.

    Args:
        scores: shape `(n,)`.
        calibration: scores of held-out ID images, shape `(m,)`.
        alpha: largest probability of an alarm on a stream of ID images, in (0, 1).
        seed: seed of the random order of ties.
    """
    path = [0.0]
    for log10 in capital(scores, calibration, seed):
        path.append(log10)
        if log10 >= -math.log10(alpha):
            low = min(path) + WITHIN
            return StreamTest(log10, len(path) - 2, max(i for i, value in enumerate(path) if value <= low))
    return StreamTest(max(path), None, None)


def capital(scores: Scores, calibration: Scores, seed: int = 0) -> Iterator[float]:
    """Logarithm to base 10 of the capital after each score, see `Martingale`."""
    martingale = Martingale(calibration, seed)
    for score in scores:
        martingale.update(float(score))
        yield martingale.log10


@dataclass(frozen=True)
class ReferenceTest:
    """Result of the tests of images against reference images, which tell what changed."""

    images: int
    """Number of images compared."""
    reference_images: int
    level: float
    """A p-value at most as large is drift: of the features, or of a property."""
    features: FeatureTest
    properties: Sequence[PropertyTest]
    """The most changed first. Properties with one value in all images are left out."""

    @property
    def features_moved(self) -> bool:
        """Whether the features are distributed otherwise than those of the reference images."""
        return self.features.p_value <= self.level

    @property
    def moved(self) -> list[PropertyTest]:
        """The properties that changed."""
        return [test for test in self.properties if test.p_value <= self.level]


@dataclass(frozen=True)
class DriftReport:
    """Result of `drift`."""

    images: int
    """Number of images."""
    alpha: float
    """Largest probability of reporting drift for ID images."""
    windows: Sequence[WindowTest]
    stream: StreamTest | None
    """Result of the sequential test; None if it was not made."""
    reference: ReferenceTest | None
    """Result of the tests against reference images; None without them."""
    drifted: bool
    drifted_in: Sequence[str]
    """What changed: `scores`, `features` and the names of properties."""
    first_changed: int | None
    """Estimated index of the first image after the change of the scores; None if there is none, or the order of images
    is unknown."""


def drift(
    scores: Scores,
    calibration: Scores,
    *,
    alpha: float = 0.01,
    window: int | None = None,
    stream: bool = False,
    groups: NDArray[np.integer] | None = None,
    samples: tuple[Sample, Sample] | None = None,
    seed: int = 0,
) -> DriftReport:
    """Test whether images as a whole are still in distribution.

    With reference images, a third of `alpha` is for the scores, a third for the features, and a third for all
    properties together. Without them, all of it is for the scores. Their share is split equally between the windows and
    the sequential test, if there is one.

    Args:
        scores: scores of the images in their order, shape `(n,)`; larger = more OOD.
        calibration: scores of held-out ID images, shape `(m,)`.
        alpha: largest probability of reporting drift for ID images, in (0, 1), over all tests together.
        window: images in a window; None tests all images together.
        stream: whether the images are in the order of time, so that the sequential test is made as well.
        groups: a number for each calibration image, shape `(m,)`, the same for images of one group, see
            `one_of_each_group`; None if each is a group of its own.
        samples: reference images, and the images to compare with them (all, or some of them drawn at random); None for
            tests of the scores only.
        seed: of the random order of ties, of the images drawn from groups, and of permutations.

    Raises:
        SettingsError: for an alpha outside (0, 1), or too small for a test of features, or a window that is too small.
        InputError: if there are fewer images, or fewer reference images, than `SMALLEST_WINDOW`.
    """
    check_settings(alpha, window, samples is not None)
    if groups is not None:
        calibration = one_of_each_group(calibration, groups, seed)
    of_scores = alpha if samples is None else alpha / 3
    share = of_scores / 2 if stream else of_scores
    tested = [window_test(scores, calibration)] if window is None else windows(scores, calibration, window)
    # Bonferroni correction over the windows.
    drifted = next((result.start for result in tested if result.p_value <= share / len(tested)), None)
    watched = stream_test(scores, calibration, share, seed) if stream else None
    changed = watched.changed if watched and watched.changed is not None else drifted
    compared = None if samples is None else reference_test(*samples, alpha / 3, seed)
    drifted_in = ["scores"] if changed is not None else []
    if compared is not None:
        drifted_in += ["features"] if compared.features_moved else []
        drifted_in += [test.name for test in compared.moved]
    return DriftReport(
        images=len(scores),
        alpha=alpha,
        windows=tested,
        stream=watched,
        reference=compared,
        drifted=bool(drifted_in),
        drifted_in=drifted_in,
        first_changed=changed if window is not None or stream else None,
    )


def check_settings(alpha: float, window: int | None, with_reference: bool = False) -> None:
    """Raise SettingsError as `drift` does, before any image is scored.

    Args:
        alpha: as for `drift`, as is `window`.
        window: as for `drift`.
        with_reference: whether there will be reference images.
    """
    if not 0 < alpha < 1:
        raise SettingsError(f"alpha must lie between 0 and 1, got {alpha}")
    if window is not None:
        _check_window(window)
    if with_reference:
        check_level(alpha / 3)


def _check_window(size: int) -> None:
    if size < SMALLEST_WINDOW:
        raise SettingsError(f"a window needs at least {SMALLEST_WINDOW} images, got {size}")


def one_of_each_group(calibration: Scores, groups: NDArray[np.integer], seed: int = 0) -> NDArray[np.float64]:
    """Scores of one calibration image drawn from each group, such as a video: those of one group are not independent.

    Tests with them hold for new images of other groups, no two of one group.

    Args:
        calibration: scores, shape `(m,)`.
        groups: a number for each score, shape `(m,)`, the same for images of one group.
        seed: of the draw.

    Returns:
        Scores of shape `(number of groups,)`, in their order.
    """
    order = np.random.default_rng(seed).permutation(len(groups))
    drawn = np.unique(np.asarray(groups)[order], return_index=True)[1]
    return np.asarray(calibration[np.sort(order[drawn])], dtype=np.float64)


def reference_test(before: Sample, after: Sample, level: float, seed: int = 0) -> ReferenceTest:
    """Compare images with reference images.

    Args:
        before: the reference images, at least `SMALLEST_WINDOW`.
        after: the images, at least `SMALLEST_WINDOW`.
        level: largest probability that the test of the features fires for exchangeable images, and that any test of a
            property does.
        seed: of permutations.

    Raises:
        InputError: if there are too few of either.
        SettingsError: if the level is too low for a test of features.
    """
    for name, sample in (("images", after), ("reference images", before)):
        if len(sample.z0) < SMALLEST_WINDOW:
            raise InputError(f"{len(sample.z0)} {name} are too few to compare; give {SMALLEST_WINDOW} or more")
    return ReferenceTest(
        images=len(after.z0),
        reference_images=len(before.z0),
        level=level,
        features=feature_test(before.z0, after.z0, level=level, seed=seed),
        properties=property_tests(before.properties, after.properties),
    )
