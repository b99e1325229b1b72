"""The detector: fits to images or features, and scores them."""

import copy
import os
from collections.abc import Hashable, Sequence
from dataclasses import replace
from typing import Any, ClassVar, Self, Unpack, cast

from numpy.typing import ArrayLike

from dlsr.addition import Addition, NewImages, with_added
from dlsr.anomaly_maps import peaks_of
from dlsr.config import AUTO, CalibrationMethod
from dlsr.configured import Configured
from dlsr.encoding.examples import choose_examples
from dlsr.encoding.extractor import FeatureExtractor
from dlsr.encoding.pipeline import Encoded, Progress
from dlsr.errors import FeatureError, SettingsError
from dlsr.fitted_detector import FittedDetector
from dlsr.fitting import as_graphs, check_calibration, fit_images, fit_model, own_settings, with_score
from dlsr.images.groups import taken_from
from dlsr.images.properties import ranges_of
from dlsr.images.sources import ImagesLike, open_images, warn_of_unreadable
from dlsr.images.transforms import Transform
from dlsr.method.noise import Digests
from dlsr.model import FittedModel, checked_features
from dlsr.runtime.backends import Backend
from dlsr.scorer_module import ModuleScorer
from dlsr.scorers import Scorer, Settings
from dlsr.training.loop import Trainer, TrainingOptions


class Detector(Configured):
    """Unsupervised OOD detector for images, or for features of your own. Larger score = more OOD.

    Args:
        encoder: a preset of `dlsr.ENCODERS`, or a timm network with feature maps.
        score: a name of `dlsr.SCORES`; None for the preset's.
        preset: `default`, `fast` or `paper`; None for the score's own.
        stages: stages of the encoder that make up `z0`, from 0; None for the preset's.
        weights: a file with the encoder's weights, `hub` for those on the Hugging Face Hub, `random` or `random:SEED`;
            None for the preset's source.
        decoding: `draft` decodes large JPEGs at a fraction of their size, which is faster; `full` does not.
        resizer: `pillow`, `cykooz` (faster, nearly the same pixels), or `auto`: the latter if it is installed.
        precision: of the encoder's products: `float32`; `bfloat16`, which is faster on processors that have it; or
            `int8`, 8-bit integers whose ranges come from the images of the fit.
        pooling: what is kept of each stage's map: `mean` as in the paper, `mean+std` or `mean+std+max`; None for the
            preset's.
        false_alarm_rate: share of ID images that may be called OOD; can be changed after fitting.
        confidence: probability with which that rate holds for the model at hand, such as 0.95; None for a rate that
            holds on average over models. Can be changed after fitting.
        calibration: `auto`, `held-out` or `leave-one-out`, see `dlsr.config.CalibrationMethod`.
        group_by: images of one group, such as frames of one video, are never split between training and calibration.
            `folder`: groups are folders; a regular expression or a CSV file, see `dlsr.images.groups.group_labels`;
            `auto`: exact and near copies are found and grouped; `none`: each image is a group of its own.
        seed: of everything random. Noise is derived from it and each image's content.
        device: `auto`, `cpu`, `cuda`, ..
        backend: engine of the encoder: one of `dlsr.runtime.backends.BACKENDS`.
        store: folder of the feature store; None keeps no features on disk.
        workers: threads that read and decode images.
        thumbnails: this many training images are kept as thumbnails, to show beside new ones.
        maps: also learn what `anomaly_maps` needs; the first such fit on a machine takes about a minute longer.
        **settings: settings of the score, such as `t`, `draws`, `epochs` or `neighbours`; None for the preset's.
            `dlsr fit --help` lists them.

    Example:
        >>> detector = Detector().fit("photos/")  # doctest: +SKIP
        >>> detector.detect("new/")  # doctest: +SKIP
    """

    _by_pytorch: ClassVar[bool] = True

    def __init__(
        self,
        encoder: str = "efficientnet_lite0",
        score: str | None = None,
        *,
        preset: str | None = None,
        stages: Sequence[int] | None = None,
        weights: str | os.PathLike[str] | None = None,
        decoding: str = "draft",
        resizer: str = "auto",
        precision: str = "float32",
        pooling: str | None = None,
        false_alarm_rate: float = 0.05,
        confidence: float | None = None,
        calibration: CalibrationMethod = "auto",
        group_by: str = AUTO,
        seed: int = 0,
        device: str = "auto",
        backend: Backend = "auto",
        store: str | os.PathLike[str] | None = None,
        workers: int = 2,
        thumbnails: int = 0,
        maps: bool = False,
        **settings: Any,
    ) -> None:
        self.encoder = encoder
        self.score = score
        self.preset = preset
        self.stages = stages
        self.weights = weights
        self.decoding = decoding
        self.resizer = resizer
        self.precision = precision
        self.pooling = pooling
        self.false_alarm_rate = false_alarm_rate
        self.confidence = confidence
        self.calibration = calibration
        self.group_by = group_by
        self.seed = seed
        self.device = device
        self.backend = backend
        self.store = store
        self.workers = workers
        self.thumbnails = thumbnails
        self.maps = maps
        self._set_score_settings(settings)

    def fit(
        self,
        images: ImagesLike,
        y: object = None,
        *,
        groups: Sequence[Hashable] | None = None,
        transform: Transform | None = None,
        progress: Progress | None = None,
        **training: Unpack[TrainingOptions],
    ) -> Self:
        """Learn what in-distribution images look like, and calibrate on images that are not fitted to.

        A fit that fails leaves the detector as it was.

        Args:
            images: see `dlsr.open_images`.
            y: ignored, for scikit-learn.
            groups: a label for each image, the same for images of one group; None for groups as `group_by` says.
            transform: applied to each image first, for benchmarks.
            progress: callback with the number of images that were encoded since the last call.
            **training: checkpoint, callback and processes, see `dlsr.training.loop.TrainingOptions`.

        Raises:
            InputError: if there are no images, or too few that can be read.
            SettingsError: for settings that cannot work.
            WeightsError: if the encoder's weights cannot be had.
        """
        extractor, trainer = self.prepare_extractor(), Trainer.of(self._resolved().seed, training)
        found = open_images(images)
        self._check_groups([item.name for item in found.items], groups)
        extractor = extractor.with_ranges(found, trainer.seed)
        check_calibration(self._config(), self._resolved(), extractor.encoder.channels, len(found))
        encoded = extractor.encode_shared(found, trainer.ranks, transform=transform, progress=progress)
        there = encoded.positions_in(found)
        found, groups = found.subset(there), None if groups is None else taken_from(groups, there)
        model = self._fit_encoded(encoded, extractor, trainer, groups)
        examples = choose_examples(found, encoded, self.thumbnails, self.seed) if self.thumbnails else None
        peaks = peaks_of(model, extractor, found.subset(encoded.readable.nonzero()[0])) if self.maps else None
        known, ranges = (None, None) if transform else (model.images, ranges_of(found, self.seed, self.workers))
        self._model = replace(model, examples=examples, images=known, map_peaks=peaks, ranges=ranges)
        self._extractor = extractor
        return self

    def add(
        self,
        images: ImagesLike,
        *,
        old: ImagesLike | None = None,
        groups: Sequence[Hashable] | None = None,
        progress: Progress | None = None,
        **training: Unpack[TrainingOptions],
    ) -> Addition:
        """Fit again to the images of the last fit and to new ones, with the settings of that fit.

        Old features come from the feature store. See `dlsr.addition` for what differs from a fit to all images.

        Args:
            images: new ones, see `dlsr.open_images`. Copies of old images are left out.
            old: the images of the last fit, if the feature store does not hold their features.
            groups: a label for each new image, if groups were given to the last fit. They are groups of their own.
            progress: as for `fit`.
            **training: as for `fit`.

        Raises:
            NotFittedError: if it is not known what the model was fitted to.
            InputError: if features of old images are missing, or no image is new; else as `fit`.
        """
        before, extractor = self._current_model(), self.extractor_
        trainer = Trainer.of(before.settings.seed, training)
        new = NewImages(open_images(images), groups, old, progress)
        grouped = FittedDetector(before)._groups_of  # as the model says
        self._model, addition = with_added(before, extractor, new, grouped, self.device, trainer)
        return addition

    def fit_encoded(
        self, encoded: Encoded, *, groups: Sequence[Hashable] | None = None, **training: Unpack[TrainingOptions]
    ) -> Self:
        """As `fit`, to images that were encoded by `prepare_extractor`, here or on a cluster. Raises as `fit` does."""
        self._check_groups(encoded.names, groups)
        extractor, trainer = self.prepare_extractor(), Trainer.of(self._resolved().seed, training)
        self._model, self._extractor = self._fit_encoded(encoded, extractor, trainer, groups), extractor
        return self

    def fit_features(
        self,
        features: ArrayLike,
        channels: Sequence[int] | None = None,
        *,
        digests: Digests | None = None,
        groups: Sequence[Hashable] | None = None,
        **training: Unpack[TrainingOptions],
    ) -> Self:
        """Fit to features of your own instead of images.

        Args:
            features: finite, shape `(N, c)`; a memory-mapped float32 array may be larger than memory.
            channels: dimensions of each layer that the features are joined from; None for a single layer.
            digests: content digests from which noise is derived, shape `(N, 16)`; None for digests of the features.
            groups: a label for each feature vector, as for `fit`.
            **training: as for `fit`.

        Raises:
            FeatureError: for features of the wrong shape, or with NaN or infinity.
            SettingsError, TooFewImagesError: as `fit`.
        """
        settings, z0 = self._resolved(), checked_features(features)
        layers = tuple(channels) if channels is not None else (z0.shape[1],)
        if sum(layers) != z0.shape[1] or min(layers) < 1:
            raise FeatureError(f"channels {list(layers)} do not add up to the {z0.shape[1]} columns of the features")
        trainer = Trainer.of(settings.seed, training)
        grouped = self._grouped(None, z0, digests, groups)
        self._model = fit_model(self._config(), settings, z0, digests, layers, grouped, self.device, trainer)
        self._extractor = None
        return self

    def _fit_encoded(
        self,
        encoded: Encoded,
        extractor: FeatureExtractor,
        trainer: Trainer,
        groups: Sequence[Hashable] | None,
    ) -> FittedModel:
        encoded.check_readable()
        warn_of_unreadable(encoded.unreadable)
        config, settings, grouped = self._config(), self._resolved(), self._groups_of(encoded, groups)
        return fit_images(config, settings, encoded, extractor.encoder, grouped, self.device, trainer)

    def with_settings(self, *, seed: int | None = None, score: str | None = None) -> Self:
        """The same trained model scoring with the noise of another seed, or another score of the same network.

        The calibration stays as it was for another seed. For another score there is none until `calibrate`.

        Raises:
            SettingsError: if the other score does not use the same network.
        """
        changes = {name: value for name, value in {"seed": seed, "score": score}.items() if value is not None}
        other, model = copy.copy(self).set_params(**changes), self._fitted()
        if score not in (None, model.settings.score):
            model = with_score(model, self._by_module(), str(score))
        config, settings = model.config.model_copy(update=changes), model.settings.model_copy(update=changes)
        other._model = replace(model, config=config, settings=settings)
        return other

    def save(self, folder: str | os.PathLike[str], *, graphs: bool = True) -> None:
        """Write a model directory (safetensors and JSON), or replace the model in one.

        Args:
            folder: to write; created if missing.
            graphs: also keep encoder and score as graphs in ONNX, so that images can be scored where PyTorch is not
                installed. The first conversion of an encoder, and of a score with these settings, takes seconds.
                Warns if one of them cannot be converted.

        Raises:
            OutputError: if it cannot be written.
            MissingExtraError: if what converts graphs is not installed.
            SettingsError: for a model in 8 bits without its graphs, which are all that it has.
        """
        encoder = self._fitted().encoder
        if not graphs and encoder is not None and encoder.precision == "int8":
            raise SettingsError("a model in 8 bits cannot be saved without its graphs")
        if not graphs:
            self._model = replace(self._fitted(), graphs=None)
        elif self._fitted().graphs is None:
            by, maps = None if encoder is None else self.extractor_.encoder, self._model.map_peaks is not None
            self._model = replace(self._model, graphs=as_graphs(self.scorer_, by, gradient=maps))
        super().save(folder)

    @property
    def scorer_(self) -> Scorer:
        """The fitted score, a PyTorch module."""
        return self._by_module().module

    def _by_module(self) -> ModuleScorer:
        return cast(ModuleScorer, self._fitted().scorer)  # fits, and loads with `_by_pytorch`, make no other

    @property
    def settings_(self) -> Settings:
        """The resolved settings: the preset with changes."""
        return own_settings(self._fitted().settings)

    @classmethod
    def _of(cls, model: FittedModel, **runtime: Any) -> Self:
        detector = cls(**model.config.arguments(), **runtime)
        detector._model = replace(model, settings=own_settings(model.settings))
        return detector
