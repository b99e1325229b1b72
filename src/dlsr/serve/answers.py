"""The JSON answers of the service."""

import base64
from typing import Literal, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from dlsr.artifact import installed_versions
from dlsr.calibration.conformal import threshold_in
from dlsr.calibration.reasons import why_no_reasons
from dlsr.serve.models import Scored
from dlsr.serve.service import Service

HISTOGRAM_BINS = 40
RATES = 101
"""False-alarm rates with a threshold: one for each place of the page's slider."""
LARGEST_RATE = 0.5
"""The largest of them, unless the model's is larger."""


class ReasonAnswer(BaseModel):
    """A simple property in which an image lies outside the range of the ID images."""

    model_config = ConfigDict(from_attributes=True)

    name: str
    direction: Literal["low", "high"]
    words: str
    value: float
    p_value: float


class ImageAnswer(BaseModel):
    """The result of one image. An unreadable image has an `error` and nothing else."""

    model_config = ConfigDict(from_attributes=True)

    name: str = Field(validation_alias="path")
    score: float | None = None
    p_value: float | None = None
    is_ood: bool | None = None
    top_layer: str | None = None
    layers: dict[str, float] | None = None
    nearest: list[int] | None = None
    reasons: list[ReasonAnswer] | None = None
    """Null unless asked for by `reasons=true`, and if the model can give none."""
    map: str | None = None
    """Where the image deviates: a transparent PNG in base64, to be stretched over the image. Null unless asked for by
    `maps=true`, and if the model makes none."""
    error: str | None = None


class ScoreAnswer(BaseModel):
    """The results of all images of a request, in the order they were sent."""

    model: str
    false_alarm_rate: float
    threshold: float
    images: list[ImageAnswer]

    @classmethod
    def of(cls, scored: Scored) -> Self:
        """The answer for the images of one request."""
        detector, maps = scored.model.detector, scored.maps or [None] * len(scored.results)
        return cls(
            model=scored.model.id,
            false_alarm_rate=detector.false_alarm_rate,
            threshold=detector.threshold_,
            images=[
                ImageAnswer.model_validate(result).model_copy(update={"map": png and base64.b64encode(png).decode()})
                for result, png in zip(scored.results, maps, strict=True)
            ],
        )


class HistogramAnswer(BaseModel):
    """Histogram of the calibration scores."""

    edges: list[float]
    counts: list[int]


class ModelAnswer(BaseModel):
    """Description of the loaded model, and the limits of a request."""

    model: str
    encoder: str
    score: str
    preset: str
    layers: list[str]
    false_alarm_rate: float
    confidence: float | None
    smallest_rate: float
    """The smallest p-value that the calibration images allow."""
    rate_in_doubt: str | None
    """Why the rate may not hold, if the fit found a reason."""
    threshold: float
    thresholds: list[tuple[float, float]]
    """Some false-alarm rates in ascending order, and the threshold of each: equally spaced on a logarithmic scale from
    `smallest_rate` to one half, or to `false_alarm_rate` if that is larger."""
    training_images: int
    calibration_images: int
    calibration_histogram: HistogramAnswer
    examples: int
    """Number of training images kept as thumbnails, at `/v1/examples/0` and so on."""
    max_images: int
    """Most images in a request."""
    max_body_bytes: int
    maps: bool
    """Whether the model can show where images deviate."""
    no_reasons: str | None
    """Why the model can give no reasons; null if it can."""
    reload_error: str | None
    """Why the model that is now in the directory could not be loaded."""
    versions: dict[str, str]

    @classmethod
    def of(cls, service: Service) -> Self:
        """The answer for the model that the service uses now."""
        model, settings = service.model, service.settings
        detector = model.detector
        check = detector.fit_summary_.check
        counts, edges = np.histogram(detector.calibration_scores_, HISTOGRAM_BINS)
        table = detector.calibration_.table(detector.confidence)
        smallest = float(table[1].min())
        rate = detector.false_alarm_rate
        rates = np.append(np.geomspace(smallest, max(LARGEST_RATE, rate), RATES), rate)
        return cls(
            model=model.id,
            encoder=str(detector.encoder_name_),
            score=detector.settings_.score,
            preset=detector.settings_.preset,
            layers=list(detector.layer_names_),
            false_alarm_rate=rate,
            confidence=detector.confidence,
            smallest_rate=smallest,
            rate_in_doubt=check.message if check.fired else None,
            threshold=detector.threshold_,
            thresholds=[(each, threshold_in(table, each)) for each in np.unique(rates).tolist()],
            training_images=detector.fit_summary_.training_images,
            calibration_images=len(detector.calibration_scores_),
            calibration_histogram=HistogramAnswer(edges=edges.tolist(), counts=counts.tolist()),
            examples=len(detector.examples_.names) if detector.examples_ else 0,
            max_images=settings.max_images,
            max_body_bytes=settings.max_body_bytes,
            maps=detector.has_maps_,
            no_reasons=why_no_reasons(detector.ranges_),
            reload_error=service.reload_error,
            versions=installed_versions(),
        )


class State(BaseModel):
    """Whether the service is alive, or ready for requests."""

    status: str
