"""Fitting a model, and what else needs its score as a PyTorch module."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dlsr.calibration.exchangeability import check
from dlsr.calibration.groups import Groups
from dlsr.calibration.split import split
from dlsr.config import DetectorConfig, SavedSettings
from dlsr.encoders.encoder import Encoder
from dlsr.encoding.fitted_images import FittedImages
from dlsr.encoding.pipeline import Encoded
from dlsr.errors import ExportError, SettingsError
from dlsr.images.sources import warn_caller
from dlsr.method.noise import Digests, row_digests
from dlsr.model import Array, FitSummary, FittedModel, Graphs, calibrated_on, check_digests
from dlsr.model_checks import check_finite
from dlsr.runtime.devices import resolve_device
from dlsr.scorer_module import ModuleScorer, as_numbers, scorer_graph
from dlsr.scorers import SCORES, Scorer, Settings
from dlsr.scorers.base import FitData, leaves_out, new_scorer
from dlsr.training.data import samples_of, taken
from dlsr.training.loop import Trainer


class GraphWarning(UserWarning):
    """A model is saved without graphs, so that it cannot be used without PyTorch."""


UNLIKE = 4.0
"""Images whose score is this many standard deviations above the median of all are unlike the rest."""


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
        names: of the features, to name those unlike the rest; None for their positions.
        unreadable: reasons by name, of images that could not be read.

    Raises:
        TooFewImagesError: if there are too few features for the false-alarm rate.
        FeatureError: for digests of another shape, or features whose scores are not finite.
        SettingsError: if the device cannot be used, or images cannot be left out.
    """
    # As the score validated them: of its own types, whatever was given.
    given = {name: getattr(settings.scorer, name) for name in config.settings}
    config = config.model_copy(update={"settings": given})
    if digests is not None:
        check_digests(digests, len(z0))
    scorer, place = new_scorer(settings, channels), torch.device(resolve_device(device))
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
    fitted = ModuleScorer(scorer)
    scores, calibrating = np.full(len(z0), np.nan), parts.calibration
    if scorer.left_out is not None:
        scores[training], layers = as_numbers(scorer.left_out)
    if left_out:
        calibration = calibrated_on(scores, layers, groups.numbers, left_out=True)
    else:
        held_out = taken(z0, calibrating)
        seen = digests_of(calibrating, held_out)
        calibration = calibrated_on(*fitted.score(held_out, seen, settings.seed), groups.numbers[calibrating])
        scores[calibrating] = calibration.scores
    # Without scores of the training images there is nothing to compare those of the others with.
    compared = scores if scorer.left_out is not None else np.full(len(z0), np.nan)
    unlike = _unlike(compared, groups.numbers)
    return FittedModel(
        config=config,
        settings=settings,
        encoder=None,
        encoder_sha256=None,
        channels=channels,
        scorer=fitted,
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
            check=check(names, z0, scores, groups.numbers, settings.seed, groups.exact),
            unlike={str(i) if names is None else names[i]: deviation for i, deviation in unlike},
        ),
    )


def check_calibration(config: DetectorConfig, settings: Settings, channels: tuple[int, ...], n: int) -> None:
    """Raise, before `n` images are encoded, as `fit_model` will if the score cannot leave out images, however few."""
    with torch.device("meta"):
        scorer = new_scorer(settings, channels)
    if not scorer.leaves_out(1):
        leaves_out(scorer, n, config.calibration)


def fit_images(
    config: DetectorConfig,
    settings: Settings,
    images: Encoded,
    encoder: Encoder,
    groups: Groups,
    device: str,
    trainer: Trainer,
) -> FittedModel:
    """As `fit_model`, to images that an encoder has encoded. Groups are those of the readable ones."""
    model = fit_model(
        config,
        settings,
        images.z0,
        images.digests,
        encoder.channels,
        groups,
        device,
        trainer,
        images.readable_names,
        images.unreadable,
    )
    known = FittedImages.of_fit(images, groups)
    return replace(model, encoder=encoder.spec, encoder_sha256=encoder.weights_sha256, images=known)


def _unlike(scores: Array, groups: NDArray[np.int64]) -> list[tuple[int, float]]:
    """Positions and deviations of scores far above the others, the farthest first. NaN scores are passed over."""
    deviations = deviations_of(scores, groups)
    found = np.flatnonzero(deviations > UNLIKE)
    return [(int(i), round(float(deviations[i]), 2)) for i in found[np.argsort(-deviations[found])]]


def deviations_of(scores: Array, groups: NDArray[np.integer]) -> Array:
    """How far scores lie above their median, in standard deviations: shape `(N,)`, NaN for NaN.

    The standard deviation is that of the lower half: intruders would widen the upper one. Each group counts as one
    image: many copies of an image would narrow it.

    Args:
        scores: shape `(N,)`.
        groups: a whole number for each, shape `(N,)`, the same for images of one group.
    """
    finite = np.isfinite(scores)
    if not finite.any():
        return scores
    order = np.argsort(scores[finite])
    known, members = scores[finite][order], groups[finite][order]
    weights = 1 / np.bincount(members)[members]
    # Without groups, these are the places of `np.quantile`.
    places = (np.cumsum(weights) - weights) / (float(weights[:-1].sum()) or 1.0)
    low, median = (float(at) for at in np.interp([0.16, 0.5], places, known))
    deviations: Array = (scores - median) / max(median - low, float(np.finfo(np.float32).tiny))
    return deviations


def as_graphs(scorer: Scorer, encoder: Encoder | None, *, gradient: bool = False) -> Graphs | None:
    """Score, its gradient if asked for, and encoder as graphs; None, and a warning, if one cannot be converted.

    Raises:
        MissingExtraError: if what converts graphs is not installed.
    """
    try:
        scoring = scorer_graph(scorer, gradient=gradient)
        return Graphs(scoring, None, None) if encoder is None else Graphs(scoring, encoder.onnx(), encoder.timm)
    except ExportError as error:
        warn_caller(f"this model will need PyTorch wherever it is used: {error}", GraphWarning)
        return None


def restored(
    config: DetectorConfig,
    settings: SavedSettings,
    channels: tuple[int, ...],
    learned: Mapping[str, NDArray[Any]],
    device: str,
) -> ModuleScorer:
    """A score from what was saved of it, which may come from a stranger: it is checked.

    Raises:
        SettingsError: for a score that is not registered, or settings that it does not have.
        ValueError: if what was learned does not belong to these settings.
    """
    own = own_settings(settings)
    _check_settings(config, own)
    check_finite(learned)
    tensors = {name: torch.from_numpy(values) for name, values in learned.items()}
    # A scorer without memory tells the shapes that are right before one is built with any.
    with torch.device("meta"):
        expected = new_scorer(own, channels).state_dict()
    _check_tensors(expected, tensors)
    scorer = new_scorer(own, channels)
    scorer.load_state_dict(tensors, assign=True)
    return ModuleScorer(scorer.to(device))


def _check_settings(config: DetectorConfig, settings: Settings) -> None:
    """The arguments name settings of their score."""
    unknown = config.settings.keys() - type(settings.scorer).model_fields.keys()
    if unknown:
        raise ValueError(f"the score '{settings.score}' has no setting '{min(unknown)}'")


def _check_tensors(expected: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> None:
    """Tensors have the names, types and shapes of those expected, which may be on the meta device.

    Those without rows may have any number of rows, but all of them the same.
    """
    different = sorted(expected.keys() ^ given.keys())
    if different:
        raise ValueError(f"{different[0]} is {'missing' if different[0] in expected else 'unknown'}")
    rows = set()
    for name, like in expected.items():
        tensor, free = given[name], int(like.ndim > 0 and len(like) == 0)
        if (tensor.dtype, tensor.ndim, tensor.shape[free:]) != (like.dtype, like.ndim, like.shape[free:]):
            raise ValueError(f"{name} has shape {tuple(tensor.shape)} of {tensor.dtype}")
        rows |= {len(tensor)} if free else set()
    if len(rows) > 1 or 0 in rows:
        raise ValueError(f"it has {sorted(rows)} training images")


def own_settings(settings: SavedSettings) -> Settings:
    """Settings with those of the score as its own class. Raises SettingsError for a score that is not registered."""
    return settings if isinstance(settings, Settings) else Settings.model_validate(settings.model_dump())


def with_score(model: FittedModel, fitted: ModuleScorer, score: str) -> FittedModel:
    """The same network with another score, which is not calibrated.

    Args:
        model: with the score as fitted.
        fitted: that score.
        score: name of the other one.

    Raises:
        SettingsError: if the other score does not use this network.
    """
    network = fitted.module.shared_network
    if network is None or score not in SCORES or SCORES[score].shared_network != network:
        raise SettingsError(f"'{score}' does not use the network of '{model.settings.score}'; fit it")
    settings = own_settings(model.settings).model_copy(update={"score": score})
    other = new_scorer(settings, model.channels).to(fitted.device)
    other.load_state_dict(fitted.module.state_dict(), assign=True)
    config = model.config.model_copy(update={"maps": False})
    none = replace(model.calibration, scores=np.empty(0), groups=np.empty(0, np.int64))
    summary = model.summary.model_copy(update={"calibration_images": 0, "left_out": False})
    return replace(
        model,
        config=config,
        settings=settings,
        scorer=ModuleScorer(other),
        calibration=none,
        summary=summary,
        graphs=None,
        map_peaks=None,
    )
