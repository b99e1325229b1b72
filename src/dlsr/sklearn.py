"""The scores of dlsr as a scikit-learn outlier detector for feature vectors.

It follows scikit-learn's convention: larger = more normal, +1 for inliers and -1 for outliers. Everywhere else in dlsr,
larger = more OOD; docs/scikit-learn.md compares the two.
"""

import warnings
from collections.abc import Mapping, Sequence
from numbers import Integral
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, OutlierMixin
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import Tensor

from dlsr.calibration.conformal import threshold
from dlsr.calibration.split import Split, split
from dlsr.config import CalibrationMethod
from dlsr.errors import SettingsError, TooFewImagesError
from dlsr.method.noise import row_digests
from dlsr.runtime.devices import resolve_device
from dlsr.scorers.base import FitData, leaves_out, new_scorer, resolve, score_features
from dlsr.training.data import samples_of
from dlsr.training.loop import Trainer


class TooFewSamplesWarning(UserWarning):
    """There were too few samples to hold some out, so the false-alarm rate is not guaranteed."""


class FeatureOutlierDetector(OutlierMixin, BaseEstimator):  # type: ignore[misc]
    """Unsupervised outlier detection on feature vectors with any score of dlsr.

    With the same arguments, `score_samples` is the negative of `dlsr.Detector.score_features` up to rounding, if that
    has `group_by="none"`.

    Each sample is scored as if it had been left out of the fit. For scores that cannot do that, a tenth of the samples,
    and at least `1 / false_alarm_rate - 1`, is held out, and another twentieth for validation. The threshold is
    conformal: of new inliers about `false_alarm_rate` are called outliers, with held-out samples at most so many, on
    average over fits (`dlsr.threshold`). With too few samples (with the defaults, fewer than 20), the threshold is the
    quantile of the training scores, as in `sklearn.ensemble.IsolationForest`, and a `TooFewSamplesWarning` says that
    the rate is not guaranteed.

    Features are converted to float32. Scores are computed in float64 and rounded to float32, which hides the rounding
    differences between batches: the sample that the threshold was taken from stays on its side of it.

    Args:
        score_name: a name of `dlsr.SCORES`, for instance `mahalanobis`; None for the preset's, by default `local`.
            `Detector` calls it `score`, which in scikit-learn is a method.
        preset: a name of `dlsr.PRESETS`; None for the score's own.
        channels: dimensions of each layer that the features are joined from; None for a single layer.
        settings: settings of the score, by name, for instance `{"neighbours": 5}`; None for the preset's.
        false_alarm_rate: share of inliers that may be called outliers, in (0, 1). Other estimators call a similar
            parameter `contamination`.
        calibration: `auto`, `held-out` or `leave-one-out`, see `dlsr.config.CalibrationMethod`.
        random_state: a number below 2**31 gives the same results at each fit, as `seed` does in `Detector`.
        device: `auto`, `cpu`, `cuda`, ..

    Attributes:
        offset_: `decision_function` is `score_samples` minus this.
        calibration_scores_: `score_samples` of the calibration samples, shape `(n,)`.
        settings_: `dlsr.Settings` in force, with the seed.
        n_features_in_: dimension `c` of the features.
        feature_names_in_: names of the features, if `X` was a data frame with names.

    Example:
        >>> import numpy as np
        >>> from dlsr.sklearn import FeatureOutlierDetector
        >>> X = np.random.default_rng(0).normal(size=(300, 8))
        >>> detector = FeatureOutlierDetector("mahalanobis").fit(X)
        >>> detector.predict([[0.0] * 8, [9.0] * 8])
        array([ 1, -1])
    """

    def __init__(
        self,
        score_name: str | None = None,
        *,
        preset: str | None = None,
        channels: Sequence[int] | None = None,
        settings: Mapping[str, Any] | None = None,
        false_alarm_rate: float = 0.05,
        calibration: CalibrationMethod = "auto",
        random_state: int | np.random.RandomState | None = 0,
        device: str = "auto",
    ) -> None:
        self.score_name = score_name
        self.preset = preset
        self.channels = channels
        self.settings = settings
        self.false_alarm_rate = false_alarm_rate
        self.calibration = calibration
        self.random_state = random_state
        self.device = device

    def fit(self, X: ArrayLike, y: object = None, groups: ArrayLike | None = None) -> Self:
        """Learn what inliers look like, and calibrate the threshold.

        Args:
            X: features of inliers, finite, shape `(N, c)`.
            y: ignored.
            groups: a label for each sample, the same for samples of one group, such as frames of one video: a group is
                never split, and the false-alarm rate is that of samples of new groups. None: each is its own group.

        Raises:
            ValueError: for features of the wrong shape or kind, or with NaN or infinity; for settings that cannot work.
        """
        z0 = validate_data(self, X, dtype=np.float32, order="C", ensure_min_samples=2)
        channels = (z0.shape[1],) if self.channels is None else tuple(self.channels)
        if sum(channels) != z0.shape[1] or min(channels) < 1:
            raise ValueError(f"channels {list(channels)} do not add up to the {z0.shape[1]} features of X")
        if not 0 < self.false_alarm_rate < 1:
            raise ValueError(f"false_alarm_rate must lie between 0 and 1, got {self.false_alarm_rate}")
        numbers = np.arange(len(z0)) if groups is None else np.unique(groups, return_inverse=True)[1]
        if len(numbers) != len(z0):
            raise ValueError(f"groups must have one label for each of {len(z0)} samples, got {len(numbers)}")
        try:
            settings = resolve(self.preset, self.score_name, self.settings, seed=self._seed())
            device = torch.device(resolve_device(self.device))
            scorer = new_scorer(settings, channels).to(device)
            left_out = leaves_out(scorer, len(z0), self.calibration)
        except SettingsError as error:
            raise ValueError(str(error)) from error
        try:
            parts = split(
                numbers,
                self.false_alarm_rate,
                settings.seed,
                validation=scorer.needs_validation,
                calibration=not left_out,
            )
            enough = True
        except TooFewImagesError:
            parts, enough = Split(*[np.arange(len(z0))] * 3), False
            count = len(np.unique(numbers))
            of = "" if count == len(z0) else f" in {count} groups"
            warnings.warn(
                f"{len(z0)} samples{of} are too few to hold some out for calibration: the threshold is a quantile of "
                f"the training scores, and a false-alarm rate of {self.false_alarm_rate:g} is not guaranteed",
                TooFewSamplesWarning,
                stacklevel=2,
            )
            # One group could not be told from another.
            numbers = np.arange(len(z0)) if count == 1 else numbers
        training, validation = np.sort(parts.training), z0[parts.validation]
        data = FitData(
            settings=settings,
            channels=channels,
            training=samples_of(z0, training, device),
            groups=torch.from_numpy(np.unique(numbers[training], return_inverse=True)[1]),
            validation=torch.from_numpy(validation).to(device),
            validation_digests=row_digests(validation),
        )
        try:
            scorer.fit(data, Trainer(seed=settings.seed))
        except TooFewImagesError as error:
            raise ValueError(str(error)) from error
        self.settings_ = settings
        self._device = device
        self._scorer = scorer.double()
        if left_out and scorer.left_out is not None:
            self.calibration_scores_ = _negative(scorer.left_out[0])
        else:
            self.calibration_scores_ = self._normality(z0[parts.calibration])
        scores, rate = -self.calibration_scores_, self.false_alarm_rate
        if enough:
            self.offset_ = -threshold(scores, rate, numbers[training if left_out else parts.calibration])
        else:
            self.offset_ = -np.quantile(scores, 1 - rate, method="higher")
        return self

    def score_samples(self, X: ArrayLike) -> NDArray[np.float64]:
        """Scores of samples, shape `(N, c)` to `(N,)`; larger = more normal.

        Raises:
            sklearn.exceptions.NotFittedError: before `fit`.
            ValueError: for features of the wrong shape or kind, or with NaN or infinity.
        """
        check_is_fitted(self)
        return self._normality(validate_data(self, X, dtype=np.float32, order="C", reset=False))

    def decision_function(self, X: ArrayLike) -> NDArray[np.float64]:
        """`score_samples(X) - offset_`, shape `(N,)`: negative for outliers. Raises as `score_samples`."""
        return self.score_samples(X) - self.offset_

    def predict(self, X: ArrayLike) -> NDArray[np.int64]:
        """Verdicts, shape `(N,)`: +1 for inliers, -1 for outliers. Raises as `score_samples`."""
        return np.where(self.decision_function(X) < 0, -1, 1)

    def _seed(self) -> int:
        if isinstance(self.random_state, Integral):
            return int(self.random_state)
        return int(check_random_state(self.random_state).randint(2**31 - 1))

    def _normality(self, z0: NDArray[np.float32]) -> NDArray[np.float64]:
        features = torch.from_numpy(z0).to(self._device, torch.float64)
        scores, _ = score_features(self._scorer, features, row_digests(z0), self.settings_.seed)
        return _negative(scores)


def _negative(scores: Tensor) -> NDArray[np.float64]:
    values: NDArray[np.float64] = -scores.float().double().cpu().numpy()
    return values
