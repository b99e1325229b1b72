"""A fitted model: everything that a fit learned, and the scores, p-values and verdicts that follow from it."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from pydantic import BaseModel, ConfigDict

from dlsr.calibration.conformal import check_calibration_size, layer_scale, p_value_table, p_values, threshold
from dlsr.calibration.exchangeability import ExchangeabilityCheck, check
from dlsr.calibration.groups import Groups
from dlsr.calibration.split import split
from dlsr.config import DetectorConfig
from dlsr.encoders import EncoderSpec
from dlsr.encoding.examples import Examples
from dlsr.encoding.pipeline import Encoded
from dlsr.errors import FeatureError, SettingsError
from dlsr.method.noise import DIGEST_BYTES, row_digests
from dlsr.results import Results
from dlsr.runtime.devices import torch_device
from dlsr.scorers import SCORES, Scorer, Settings
from dlsr.scorers.base import Digests, FitData, LayerScores, leaves_out, new_scorer, score_features
from dlsr.training.data import READ_BYTES, samples_of, taken
from dlsr.training.loop import Trainer
from dlsr.training.state import EpochLog

Array = NDArray[np.float64]

NEAREST = 4
"""This many of the kept training images are named beside each new image."""
UNLIKE = 4.0
"""Images whose score is this many standard deviations above the median of all are unlike the rest."""


class FitSummary(BaseModel):
    """The images of a fit, and the losses of its training."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    training_images: int
    validation_images: int
    calibration_images: int
    unreadable: dict[str, str] = {}
    """Reasons by name, of images that could not be read."""
    groups: int
    """Groups of all these images: as many as images if each is a group of its own."""
    grouped_by: str
    """`DetectorConfig.group_by`, or `given`."""
    left_out: bool = False
    """Whether the calibration scores are those of the training images, each as if it had been left out."""
    log: list[EpochLog] = []
    examined_images: int = 0
    """Images that were compared with the rest. Only scores that can score their own training images do this."""
    check: ExchangeabilityCheck
    """Whether the images look exchangeable, which the false-alarm rate assumes."""
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

    def p_values(self, scores: Array, confidence: float | None) -> Array:
        """See `dlsr.calibration.conformal.p_values`."""
        return p_values(scores, self.scores, self.groups, confidence, self.left_out)

    def threshold(self, rate: float, confidence: float | None) -> float:
        """See `dlsr.calibration.conformal.threshold`. Raises TooFewImagesError as that does."""
        return threshold(self.scores, rate, self.groups, confidence, self.left_out)

    def table(self, confidence: float | None) -> tuple[Array, Array]:
        """See `dlsr.calibration.conformal.p_value_table`."""
        return p_value_table(self.scores, self.groups, confidence, self.left_out)

    def check_size(self, rate: float, confidence: float | None) -> None:
        """Raise TooFewImagesError if there are too few images, or groups of them, for a rate."""
        check_calibration_size(len(self.scores), rate, self.groups, confidence, self.left_out)


@dataclass(frozen=True)
class FittedModel:
    """Everything that a fit learned: the contents of a model directory."""

    config: DetectorConfig
    settings: Settings
    encoder: EncoderSpec | None
    """None for a model fitted to features."""
    encoder_sha256: str | None
    channels: tuple[int, ...]
    scorer: Scorer
    calibration: Calibration
    summary: FitSummary
    examples: Examples | None = None

    @property
    def layer_names(self) -> tuple[str, ...]:
        """Names of the M layers."""
        if self.encoder is None:
            return tuple(f"layer {i}" for i in range(len(self.channels)))
        return tuple(f"stage {stage}" for stage in self.encoder.stages)

    def score(self, z0: NDArray[np.float32], digests: Digests) -> tuple[Array, Array]:
        """Scores, shape `(N,)`, and scores of each layer, shape `(N, M)`, of features, shape `(N, c)`."""
        return _scores(self.scorer, z0, digests, self.settings.seed)

    def calibrated(self, z0: NDArray[np.float32], digests: Digests, groups: Groups) -> Self:
        """This model calibrated on other ID features."""
        calibration = _calibration(*self.score(z0, digests), groups.numbers)
        summary = self.summary.model_copy(update={"calibration_images": len(z0), "left_out": False})
        return replace(self, calibration=calibration, summary=summary)

    def detect(self, images: Encoded, rate: float, confidence: float | None) -> Results:
        """Scores, p-values and verdicts of encoded images, at a false-alarm rate.

        An image whose score is not a finite number counts as unreadable.
        """
        calibration, readable, errors = self.calibration, images.readable, list(images.errors)
        cut = calibration.threshold(rate, confidence)
        scores, layers = self.score(images.z0, images.digests)
        with np.errstate(over="ignore", invalid="ignore"):
            deviations = (layers - calibration.layer_mean) / calibration.layer_std
        # Nothing is larger than NaN, so such an image would pass for in distribution.
        finite = np.isfinite(scores) & np.isfinite(deviations).all(axis=1)
        for i in np.flatnonzero(readable)[~finite]:
            errors[i], readable[i] = "its score is not a finite number", False
        scores, deviations, z0 = scores[finite], deviations[finite], images.z0[finite]

        def spread(values: NDArray[Any], missing: float) -> NDArray[Any]:
            every = np.full((len(readable), *values.shape[1:]), missing, values.dtype)
            every[readable] = values
            return every

        return Results(
            paths=images.names,
            scores=spread(scores, np.nan),
            p_values=spread(calibration.p_values(scores, confidence), np.nan),
            verdicts=spread((scores > cut).astype(np.int8), -1),
            layers=spread(deviations, np.nan),
            errors=errors,
            layer_names=self.layer_names,
            false_alarm_rate=rate,
            threshold=cut,
            nearest=spread(self.examples.nearest(z0, NEAREST), -1) if self.examples else None,
        )

    def with_settings(self, changes: dict[str, Any]) -> Self:
        """The same network with another seed or, where it serves several scores, another score.

        Raises:
            SettingsError: if the other score does not use this network.
        """
        settings, scorer = self.settings.model_copy(update=changes), self.scorer
        if settings.score != self.settings.score:
            if (
                scorer.shared_network is None
                or settings.score not in SCORES
                or SCORES[settings.score].shared_network != scorer.shared_network
            ):
                raise SettingsError(f"'{settings.score}' does not use the network of '{self.settings.score}'; fit it")
            learned = scorer.state_dict()
            scorer = new_scorer(settings, self.channels).to(_device_of(scorer))
            scorer.load_state_dict(learned, assign=True)
        return replace(self, config=self.config.model_copy(update=changes), settings=settings, scorer=scorer)


def fit_model(
    config: DetectorConfig,
    settings: Settings,
    z0: NDArray[np.float32],
    digests: Digests | None,
    channels: tuple[int, ...],
    groups: Groups,
    device: str,
    trainer: Trainer,
    names: Sequence[str] | None = None,
    unreadable: dict[str, str] | None = None,
) -> FittedModel:
    """Fit the score to features, and calibrate it on features that it was not fitted to.

    These are held out; or each training image is left out in turn, if that is chosen and the score can do it.

    Args:
        config: the arguments of the detector.
        settings: the resolved settings.
        z0: features, shape `(N, c)`.
        digests: their content digests, shape `(N, 16)`; None for digests of the features themselves.
        channels: dimensions of each layer.
        groups: of the features; those of one group stay together.
        device: `auto`, `cpu`, `cuda`, ..
        trainer: trains networks.
        names: of the features, by which those unlike the rest are told; None for their positions.
        unreadable: reasons by name, of images that could not be read.

    Raises:
        TooFewImagesError: if there are too few features for the false-alarm rate.
        FeatureError: for digests of another shape, or features whose scores are not finite.
        SettingsError: if the device cannot be used, or images cannot be left out.
    """
    # As the score validated them: of its own types, whatever was given.
    given = {name: getattr(settings.scorer, name) for name in config.settings}
    config = config.model_copy(update={"settings": given})
    if digests is not None and digests.shape != (len(z0), DIGEST_BYTES):
        raise FeatureError(f"digests must have shape ({len(z0)}, {DIGEST_BYTES}), got {digests.shape}")
    scorer, place = new_scorer(settings, channels), torch_device(device)
    left_out = leaves_out(scorer, len(z0), config.calibration)
    parts = split(
        groups.numbers,
        config.false_alarm_rate,
        settings.seed,
        confidence=config.confidence,
        validation=scorer.needs_validation,
        calibration=not left_out,
    )
    training = np.sort(parts.training)
    validation = taken(z0, parts.validation)

    def digests_of(chosen: NDArray[np.intp], features: NDArray[np.float32]) -> Digests:
        return row_digests(features) if digests is None else digests[chosen]

    data = FitData(
        settings,
        channels,
        samples_of(z0, training, place),
        torch.from_numpy(np.unique(groups.numbers[training], return_inverse=True)[1]),
        torch.from_numpy(validation).to(place),
        digests_of(parts.validation, validation),
    )
    log = scorer.to(place).fit(data, trainer)
    scores, calibrating = np.full(len(z0), np.nan), parts.calibration
    if scorer.left_out is not None:
        scores[training], layers = _numbers(scorer.left_out)
    if left_out:
        calibration = _calibration(scores, layers, groups.numbers, left_out=True)
    else:
        held_out = taken(z0, calibrating)
        seen = digests_of(calibrating, held_out)
        calibration = _calibration(*_scores(scorer, held_out, seen, settings.seed), groups.numbers[calibrating])
        scores[calibrating] = calibration.scores
    # Positions in a list are no names: it may be sorted by class.
    ordered = None if names is None or all(name.isdigit() for name in names) else names
    # Without scores of the training images there is nothing to compare those of the others with.
    compared = scores if scorer.left_out is not None else np.empty(0)
    return FittedModel(
        config=config,
        settings=settings,
        encoder=None,
        encoder_sha256=None,
        channels=channels,
        scorer=scorer,
        calibration=calibration,
        summary=FitSummary(
            training_images=len(training),
            validation_images=len(parts.validation),
            calibration_images=len(calibration.scores),
            unreadable=unreadable or {},
            groups=groups.count,
            grouped_by=groups.by,
            left_out=left_out,
            log=log,
            examined_images=int(np.isfinite(compared).sum()),
            check=check(ordered, z0, scores, groups.numbers, settings.seed, groups.exact),
            unlike={str(i) if names is None else names[i]: deviation for i, deviation in _unlike(compared)},
        ),
    )


def _unlike(scores: Array) -> list[tuple[int, float]]:
    """Positions and deviations of scores far above the others, the farthest first. NaN scores are passed over.

    The standard deviation is that of the lower half: intruders would widen the upper one.
    """
    finite = scores[np.isfinite(scores)]
    if not len(finite):
        return []
    low, median = np.quantile(finite, [0.16, 0.5])
    deviations = (scores - median) / max(median - low, np.finfo(np.float32).tiny)
    found = np.flatnonzero(deviations > UNLIKE)
    return [(int(i), round(float(deviations[i]), 2)) for i in found[np.argsort(-deviations[found])]]


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


def _device_of(scorer: Scorer) -> torch.device:
    # A score that learned nothing is anywhere.
    return next((tensor.device for tensor in (*scorer.parameters(), *scorer.buffers())), torch.device("cpu"))


def _scores(scorer: Scorer, z0: NDArray[np.float32], digests: Digests, seed: int) -> tuple[Array, Array]:
    if not len(z0):
        return np.empty(0), np.empty((0, len(scorer.channels)))
    return _numbers(score_features(scorer, torch.from_numpy(z0).to(_device_of(scorer)), digests, seed))


def _numbers(scores: LayerScores) -> tuple[Array, Array]:
    of_images, of_layers = (values.cpu().double().numpy() for values in scores)
    return of_images, of_layers


def _calibration(scores: Array, layers: Array, groups: NDArray[np.int64], left_out: bool = False) -> Calibration:
    if not (np.isfinite(scores).all() and np.isfinite(layers).all()):
        raise FeatureError(
            "the scores of calibration images are not finite numbers; lower the learning rate, or choose another score"
        )
    return Calibration(scores, *layer_scale(layers), groups, left_out)
