"""The detector: images or features in; scores, p-values and verdicts out."""

import copy
import os
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Unpack

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dlsr.artifact import read_model, write_model
from dlsr.calibration.groups import Groups
from dlsr.config import AUTO, CalibrationMethod, DetectorConfig, validated
from dlsr.configured import Configured
from dlsr.encoders.presets import weight_source
from dlsr.encoding.examples import choose_examples
from dlsr.encoding.extractor import FeatureExtractor
from dlsr.encoding.pipeline import Encoded, Progress
from dlsr.errors import FeatureError, NoImagesError, SettingsError
from dlsr.images.sources import ImagesLike, open_images, warn_of_unreadable
from dlsr.images.transforms import Transform
from dlsr.method.noise import row_digests
from dlsr.model import FittedModel, checked_features, fit_model
from dlsr.results import Result, Results
from dlsr.runtime.backends import Backend
from dlsr.runtime.devices import torch_device
from dlsr.scorers.base import Digests
from dlsr.training.loop import Trainer, TrainingOptions

Array = NDArray[np.float64]


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
        precision: of the encoder's products: `float32`, or `bfloat16`, which is faster on processors that have it.
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
        **settings: settings of the score, such as `t`, `draws`, `epochs` or `neighbours`; None for the preset's.
            `dlsr fit --help` lists them.

    Example:
        >>> detector = Detector().fit("photos/")  # doctest: +SKIP
        >>> detector.detect("new/")  # doctest: +SKIP
    """

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
    ) -> "Detector":
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
        found, ranks = open_images(images), trainer.ranks
        if ranks.size > 1 and extractor.store is not None:
            # Each process encodes its share into the store, where all of them then find everything.
            share = found.subset(range(ranks.rank, len(found), ranks.size))
            advance = progress or (lambda n: None)
            extractor.encode(share, transform=transform, progress=lambda n: advance(n * ranks.size))
            ranks.wait()
            progress = None
        encoded = extractor.encode(found, transform=transform, progress=progress)
        model = self._fit_encoded(encoded, extractor, trainer, groups)
        examples = choose_examples(found, encoded, self.thumbnails, self.seed) if self.thumbnails else None
        self._model, self._extractor = replace(model, examples=examples), extractor
        return self

    def fit_encoded(
        self, encoded: Encoded, *, groups: Sequence[Hashable] | None = None, **training: Unpack[TrainingOptions]
    ) -> "Detector":
        """As `fit`, to images that were encoded by `prepare_extractor`, here or on a cluster. Raises as `fit` does."""
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
    ) -> "Detector":
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
        if not len(encoded.z0):
            name, reason = next(iter(encoded.unreadable.items()))
            raise NoImagesError(f"none of {len(encoded.names)} images can be read; the first, {name}: {reason}")
        warn_of_unreadable(encoded.unreadable)
        encoder = extractor.encoder
        model = fit_model(
            self._config(),
            self._resolved(),
            encoded.z0,
            encoded.digests,
            encoder.channels,
            self._groups_of(encoded, groups),
            self.device,
            trainer,
            encoded.readable_names,
            encoded.unreadable,
        )
        return replace(model, encoder=encoder.spec, encoder_sha256=encoder.weights_sha256)

    def _groups_of(self, encoded: Encoded, groups: Sequence[Hashable] | None) -> Groups:
        if groups is not None:
            if len(groups) != len(encoded.names):
                raise SettingsError(
                    f"there are {len(encoded.names)} images, but {len(groups)} groups; give a label for each image"
                )
            groups = [group for group, error in zip(groups, encoded.errors, strict=True) if error is None]
        return self._grouped(encoded.readable_names, encoded.z0, encoded.digests, groups)

    def calibrate(
        self, images: ImagesLike, *, groups: Sequence[Hashable] | None = None, progress: Progress | None = None
    ) -> "Detector":
        """Replace the calibration images by others that are known to be in distribution, without refitting.

        Args:
            images: see `dlsr.open_images`.
            groups: a label for each image, as for `fit`.
            progress: callback with the number of images that were encoded since the last call.

        Raises:
            NotFittedError, InputError: as `detect`.
            TooFewImagesError: if they are too few for the false-alarm rate.
        """
        encoded = self.extractor_.encode(images, progress=progress)
        warn_of_unreadable(encoded.unreadable)
        model = self._fitted().calibrated(encoded.z0, encoded.digests, self._groups_of(encoded, groups))
        model.calibration.check_size(self.false_alarm_rate, self.confidence)
        self._model = model
        return self

    def detect(
        self, images: ImagesLike, *, transform: Transform | None = None, progress: Progress | None = None
    ) -> Results:
        """Scores, p-values and verdicts of images, in one pass. Warns of unreadable ones.

        Args:
            images: see `dlsr.open_images`.
            transform: applied to each image first, for benchmarks.
            progress: callback with the number of images that were scored since the last call.

        Raises:
            NotFittedError: for a detector that is not fitted, or was fitted to features.
            InputError: if there are no images.
            TooFewImagesError: if the calibration images are too few for the false-alarm rate.
            WeightsError: if the encoder's weights cannot be had.
        """
        results = Results.joined(list(self._detected(images, transform=transform, progress=progress)))
        warn_of_unreadable(results.unreadable)
        return results

    def results(
        self,
        images: ImagesLike,
        *,
        transform: Transform | None = None,
        batch_size: int | None = None,
        progress: Progress | None = None,
    ) -> Iterator[Result]:
        """As `detect`, one image at a time and without a warning: memory does not grow with their number.

        Args:
            images: as for `detect`, as are `transform` and `progress`.
            transform: as for `detect`.
            batch_size: images in one call of the engine, which does not change scores; None for the fastest.
            progress: as for `detect`.
        """
        for part in self._detected(images, transform=transform, batch_size=batch_size, progress=progress):
            yield from part

    def _detected(self, images: ImagesLike, **options: Any) -> Iterator[Results]:
        model, rate = self._fitted(), self.false_alarm_rate
        model.calibration.check_size(rate, self.confidence)
        for chunk in self.extractor_.encode_chunks(images, **options):
            yield model.detect(chunk, rate, self.confidence)

    def score_samples(self, images: ImagesLike, *, transform: Transform | None = None) -> Array:
        """Scores of images, shape `(N,)`, larger = more OOD; NaN, and a warning, for unreadable ones."""
        return self.detect(images, transform=transform).scores

    def p_values(self, images: ImagesLike) -> Array:
        """Conformal p-values of images, shape `(N,)`; NaN, and a warning, for unreadable ones."""
        return self.detect(images).p_values

    def predict(self, images: ImagesLike) -> NDArray[np.int8]:
        """Verdicts, shape `(N,)`: 1 for OOD, 0 for ID, -1, and a warning, for unreadable images."""
        return self.detect(images).verdicts

    def score_features(self, features: ArrayLike, digests: Digests | None = None) -> Array:
        """Scores of features, shape `(N, c)` to `(N,)`, larger = more OOD.

        Args:
            features: as given to `fit_features`, or `z0` as `extractor_` gives it.
            digests: content digests, shape `(N, 16)`; None for digests of the features.

        Raises:
            FeatureError: for another number of columns, or NaN or infinity.
        """
        model = self._fitted()
        z0 = checked_features(features, sum(model.channels))
        return model.score(z0, row_digests(z0) if digests is None else digests)[0]

    def p_values_of(self, scores: ArrayLike) -> Array:
        """Conformal p-values of scores, shape `(N,)`."""
        return self._fitted().calibration.p_values(np.asarray(scores, dtype=np.float64), self.confidence)

    def with_settings(self, *, seed: int | None = None, score: str | None = None) -> "Detector":
        """The same trained model scoring with the noise of another seed, or another score of the same network.

        The calibration stays as it was: it is valid for another seed, but not for another score.

        Raises:
            SettingsError: if the other score does not use the same network.
        """
        changes = {name: value for name, value in {"seed": seed, "score": score}.items() if value is not None}
        other = copy.copy(self).set_params(**changes)
        other._model = self._fitted().with_settings(changes)
        return other

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write a model directory (safetensors and JSON), or replace the model in one.

        Raises:
            OutputError: if it cannot be written.
        """
        model = self._fitted()
        changes = {"false_alarm_rate": self.false_alarm_rate, "confidence": self.confidence}
        config = model.config.model_dump() | changes
        write_model(Path(folder), replace(model, config=validated(DetectorConfig, config)))

    @classmethod
    def load(
        cls,
        folder: str | os.PathLike[str],
        *,
        weights: str | os.PathLike[str] | None = None,
        device: str = "auto",
        backend: Backend = "auto",
        store: str | os.PathLike[str] | None = None,
        workers: int = 2,
        false_alarm_rate: float | None = None,
        confidence: float | None = None,
    ) -> "Detector":
        """Read a model directory.

        Args:
            folder: written by `save`.
            weights: where the encoder's weights are now, if they came from a file that has moved; or `hub` to let them
                be downloaded from the Hugging Face Hub, which loading a model does not do by itself.
            device: as for the class.
            backend: as for the class.
            store: as for the class.
            workers: as for the class.
            false_alarm_rate: instead of the model's; None for the model's.
            confidence: instead of the model's; None for the model's.

        Raises:
            ArtifactError: if it is missing, damaged, foreign or from another version of the schema.
        """
        model = read_model(Path(folder), torch_device(device))
        changes = {
            "weights": None if weights is None else os.fspath(weights),
            "false_alarm_rate": false_alarm_rate,
            "confidence": confidence,
        }
        config = model.config.model_copy(update={name: value for name, value in changes.items() if value is not None})
        if weights is not None and model.encoder is not None:
            spec = model.encoder.model_copy(update={"weights": weight_source(os.fspath(weights))})
            model = replace(model, encoder=spec)
        detector = cls(**config.arguments(), device=device, backend=backend, store=store, workers=workers)
        detector._model = replace(model, config=config)
        return detector
