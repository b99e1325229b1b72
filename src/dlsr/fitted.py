"""Read-only attributes of a fitted detector."""

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from dlsr.calibration.reasons import Ranges
from dlsr.config import DetectorConfig, SavedSettings, validated
from dlsr.encoding.examples import Examples
from dlsr.errors import NotFittedError
from dlsr.model import Calibration, FitSummary, FittedModel

Array = NDArray[np.float64]


class FittedAttributes:
    """Read-only attributes of a fitted detector. Each raises NotFittedError before a fit."""

    _model: FittedModel
    false_alarm_rate: float
    confidence: float | None

    def _fitted(self) -> FittedModel:
        if not hasattr(self, "_model"):
            raise NotFittedError("this detector is not fitted; call fit or fit_features, or load a model")
        return self._model

    def _current_model(self) -> FittedModel:
        """The model with the false-alarm rate and confidence as they are set now."""
        model = self._fitted()
        changes = {"false_alarm_rate": self.false_alarm_rate, "confidence": self.confidence}
        return replace(model, config=validated(DetectorConfig, model.config.model_dump() | changes))

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "_model")

    @property
    def threshold_(self) -> float:
        """The score above which an image is called OOD, at `false_alarm_rate` and `confidence`.

        Raises:
            TooFewImagesError: if the calibration images are too few for the rate.
        """
        return self._fitted().calibration.threshold(self.false_alarm_rate, self.confidence)

    @property
    def has_maps_(self) -> bool:
        """Whether `anomaly_maps` can show where images deviate."""
        return self._fitted().map_peaks is not None

    @property
    def calibration_(self) -> Calibration:
        """Scores of the calibration images, and the scale of each layer."""
        return self._fitted().calibration

    @property
    def calibration_scores_(self) -> Array:
        """Scores of the calibration images, shape `(n,)`."""
        return self._fitted().calibration.scores

    @property
    def settings_(self) -> SavedSettings:
        """The resolved settings: the preset with changes."""
        return self._fitted().settings

    @property
    def fit_summary_(self) -> FitSummary:
        """Images used, images unreadable, losses."""
        return self._fitted().summary

    @property
    def channels_(self) -> tuple[int, ...]:
        """Dimensions of each layer."""
        return self._fitted().channels

    @property
    def layer_names_(self) -> tuple[str, ...]:
        """Names of the M layers."""
        return self._fitted().layer_names

    @property
    def encoder_name_(self) -> str | None:
        """The encoder's name; None for a model fitted to features."""
        encoder = self._fitted().encoder
        return encoder.name if encoder else None

    @property
    def ranges_(self) -> Ranges | None:
        """Simple properties of ID images; None if they were not measured, as in fits to features or by Ray."""
        return self._fitted().ranges

    @property
    def examples_(self) -> Examples | None:
        """Training images kept as thumbnails; None if `thumbnails` was 0."""
        return self._fitted().examples
