"""A fitted model: everything that a fit learned, and the scores, p-values and verdicts that follow from it."""

from dataclasses import dataclass, field, replace
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic import BaseModel, ConfigDict

from dlsr.calibration.conformal import (
    check_calibration_size,
    layer_scale,
    looked_up,
    p_value_table,
    threshold_in,
)
from dlsr.calibration.exchangeability import ExchangeabilityCheck, check
from dlsr.calibration.groups import Groups
from dlsr.calibration.reasons import Ranges
from dlsr.config import DetectorConfig, SavedSettings
from dlsr.encoders import EncoderSpec
from dlsr.encoding.examples import Examples
from dlsr.encoding.fitted_images import FittedImages
from dlsr.encoding.pipeline import Encoded
from dlsr.errors import FeatureError, InputError
from dlsr.method.noise import DIGEST_BYTES, Digests
from dlsr.results import Results
from dlsr.scoring import FittedScorer, ScorerGraph
from dlsr.streaming import READ_BYTES
from dlsr.training.log import EpochLog

Array = NDArray[np.float64]

NEAREST = 4
"""This many of the kept training images are named beside each new image."""


class FitSummary(BaseModel):
    """The images of a fit, and the losses of its training."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    training_images: int
    validation_images: int
    calibration_images: int
    unreadable: dict[str, str] = {}
    """Reasons by name, of images that could not be read."""
    groups: int
    """Groups of all these images, or of the calibration images if they are others: as many as images if each is a group
    of its own."""
    grouped_by: str
    """`DetectorConfig.group_by`, or `given`."""
    left_out: bool = False
    """Whether the calibration scores are those of the training images, each as if it had been left out."""
    recalibrated: bool = False
    """Whether the calibration images are others than those of the fit."""
    log: list[EpochLog] = []
    examined_images: int = 0
    """Images that were compared with the rest. Only scores that can score their own training images do this."""
    check: ExchangeabilityCheck
    """Whether these images look exchangeable, which the false-alarm rate assumes."""
    unlike: dict[str, float] = {}
    """Images unlike the rest, by name, the most unlike first: their scores' distance from the median, in standard
    deviations. They may not be in distribution at all."""


@dataclass(frozen=True)
class Calibration:
    """Scores of ID images that the score was not fitted to, from which thresholds and p-values follow."""

    scores: Array
    """Shape `(n,)`."""
    layer_mean: Array
    """Mean of each layer's score, shape `(M,)`."""
    layer_std: Array
    """Standard deviation of each layer's score, shape `(M,)`."""
    groups: NDArray[np.int64]
    """A number for each score, shape `(n,)`, the same for images of one group."""
    left_out: bool = False
    """Whether each image was left out of the fit in turn, instead of all together."""

    _tables: dict[float | None, tuple[Array, Array]] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )
    """By confidence: a service looks up a few images at a time."""
    _enough_for: set[tuple[float, float | None]] = field(default_factory=set, init=False, repr=False, compare=False)
    """Rates and confidences for which there are enough images."""

    def p_values(self, scores: Array, confidence: float | None) -> Array:
        """See `dlsr.calibration.conformal.p_values`."""
        return looked_up(scores, self.table(confidence))

    def threshold(self, rate: float, confidence: float | None) -> float:
        """See `dlsr.calibration.conformal.threshold`. Raises TooFewImagesError as that does."""
        self.check_size(rate, confidence)
        return threshold_in(self.table(confidence), rate)

    def table(self, confidence: float | None) -> tuple[Array, Array]:
        """See `dlsr.calibration.conformal.p_value_table`."""
        if confidence not in self._tables:
            self._tables[confidence] = p_value_table(self.scores, self.groups, confidence, self.left_out)
        return self._tables[confidence]

    def check_size(self, rate: float, confidence: float | None) -> None:
        """Raise TooFewImagesError if there are too few images, or groups of them, for a rate."""
        if (rate, confidence) not in self._enough_for:
            check_calibration_size(len(self.scores), rate, self.groups, confidence, self.left_out)
            self._enough_for.add((rate, confidence))


@dataclass(frozen=True)
class Graphs:
    """Encoder and score as graphs, so that a model scores without PyTorch."""

    scorer: ScorerGraph
    encoder: bytes | None
    """In ONNX; None for a model fitted to features."""
    timm: str | None
    """Version of the package that the encoder's network is from."""


@dataclass(frozen=True)
class FittedModel:
    """Everything that a fit learned: the contents of a model directory."""

    config: DetectorConfig
    settings: SavedSettings
    encoder: EncoderSpec | None
    """None for a model fitted to features."""
    encoder_sha256: str | None
    channels: tuple[int, ...]
    scorer: FittedScorer
    calibration: Calibration
    summary: FitSummary
    images: FittedImages | None = None
    """What it was fitted to; None for features and transformed images."""
    examples: Examples | None = None
    graphs: "Graphs | None" = None
    map_peaks: Array | None = None
    """The highest values of `dlsr.method.maps.odd_places` of some ID images, shape `(n,)`; None without maps."""
    ranges: Ranges | None = None
    """Properties of ID images; None if they were not measured."""

    @property
    def layer_names(self) -> tuple[str, ...]:
        """Names of the M layers."""
        if self.encoder is None:
            return tuple(f"layer {i}" for i in range(len(self.channels)))
        return tuple(f"stage {stage}" for stage in self.encoder.stages)

    def score(self, z0: NDArray[np.float32], digests: Digests) -> tuple[Array, Array]:
        """Scores, shape `(N,)`, and scores of each layer, shape `(N, M)`, of features, shape `(N, c)`."""
        return self.scorer.score(z0, digests, self.settings.seed)

    def calibrated(self, images: Encoded, groups: Groups) -> Self:
        """This model calibrated on other ID images, whose readable ones have these groups.

        Raises:
            InputError: for images that it was fitted to. As new images they would look unusually near to those.
        """
        if self.images is not None:
            known = self.images.among(images.keys)
            if known.any():
                first = images.readable_names[int(known.argmax())]
                raise InputError(
                    f"the model was fitted to {known.sum()} of the {len(known)} images, the first is {first}: their "
                    "scores say nothing of new images; leave them out (`dlsr audit --against` finds copies)"
                )
        calibration = calibrated_on(*self.score(images.z0, images.digests), groups.numbers)
        names, scores, seed = images.readable_names, calibration.scores, self.settings.seed
        summary = self.summary.model_copy(
            update={
                "calibration_images": len(scores),
                "left_out": False,
                "recalibrated": True,
                "groups": groups.count,
                "grouped_by": groups.by,
                "check": check(names, images.z0, scores, groups.numbers, seed, groups.exact),
            }
        )
        return replace(self, calibration=calibration, summary=summary)

    def scored(self, images: Encoded) -> tuple[Array, Array, list[str | None]]:
        """Scores of encoded images, deviations of their layers, and reasons why images have none, each for all images.

        An image whose score or deviation is not a finite number counts as unreadable. Shapes are `(N,)` and `(N, M)`;
        NaN for images that cannot be read.
        """
        rows, errors = np.flatnonzero(images.readable), list(images.errors)
        scores, layers = np.full(len(errors), np.nan), np.full((len(errors), len(self.channels)), np.nan)
        scores[rows], layers[rows] = self.score(images.z0, images.digests)
        with np.errstate(over="ignore", invalid="ignore"):
            deviations = (layers - self.calibration.layer_mean) / self.calibration.layer_std
        # Nothing is larger than NaN, so such an image would pass for in distribution.
        bad = ~(np.isfinite(scores) & np.isfinite(deviations).all(axis=1))
        for i in rows[bad[rows]]:
            errors[i] = "its score is not a finite number"
        scores[bad] = deviations[bad] = np.nan
        return scores, deviations, errors

    def detect(self, images: Encoded, rate: float, confidence: float | None) -> Results:
        """Scores, p-values and verdicts of encoded images, at a false-alarm rate. See `scored`."""
        calibration = self.calibration
        cut = calibration.threshold(rate, confidence)
        scores, deviations, errors = self.scored(images)
        readable = np.isfinite(scores)
        nearest = None
        if self.examples:
            found = self.examples.nearest(images.z0[readable[images.readable]], NEAREST)
            nearest = np.full((len(scores), found.shape[1]), -1, found.dtype)
            nearest[readable] = found
        return Results(
            paths=images.names,
            scores=scores,
            p_values=calibration.p_values(scores, confidence),
            verdicts=np.where(readable, scores > cut, -1).astype(np.int8),
            layers=deviations,
            errors=errors,
            layer_names=self.layer_names,
            false_alarm_rate=rate,
            threshold=cut,
            nearest=nearest,
        )


def checked_features(features: ArrayLike, columns: int | None = None) -> NDArray[np.float32]:
    """Features as float32, shape `(N, c)`.

    Raises:
        FeatureError: for another shape or number of columns, or NaN or infinity.
    """
    values: NDArray[Any] = np.asarray(features)
    if values.ndim != 2 or not np.issubdtype(values.dtype, np.number) or values.shape[1] == 0:
        raise FeatureError(f"features must be numbers of shape (N, c), got {values.dtype} of shape {values.shape}")
    if columns is not None and values.shape[1] != columns:
        raise FeatureError(f"the model was fitted to {columns} columns, got {values.shape[1]}")
    samples = np.ascontiguousarray(values, dtype=np.float32)
    at_once = max(READ_BYTES // samples[:1].nbytes, 1) if len(samples) else 1
    finite = [np.isfinite(samples[i : i + at_once]).all(axis=1) for i in range(0, len(samples), at_once)]
    bad = np.flatnonzero(~np.concatenate([np.empty(0, np.bool_), *finite]))
    if len(bad):
        raise FeatureError(
            f"{len(bad)} rows of the features hold NaN or infinity, the first is row {bad[0]}; drop them"
        )
    return samples


def check_digests(digests: Digests, n: int) -> None:
    """Raise FeatureError unless there is a digest for each of `n` features."""
    if digests.shape != (n, DIGEST_BYTES):
        raise FeatureError(f"digests must have shape ({n}, {DIGEST_BYTES}), got {digests.shape}")


def calibrated_on(scores: Array, layers: Array, groups: NDArray[np.int64], left_out: bool = False) -> Calibration:
    """The calibration that follows from scores, shape `(n,)`, scores of layers, `(n, M)`, and groups, `(n,)`.

    Raises:
        FeatureError: if scores are not finite.
    """
    if not (np.isfinite(scores).all() and np.isfinite(layers).all()):
        raise FeatureError(
            "the scores of calibration images are not finite numbers; lower the learning rate, or choose another score"
        )
    return Calibration(scores, *layer_scale(layers), groups, left_out)
