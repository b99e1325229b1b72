"""A fitted detector: images or features in; scores, p-values and verdicts out. It needs no PyTorch."""

import os
from collections.abc import Generator, Hashable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dlsr.anomaly_maps import AnomalyMap, detect_with_maps
from dlsr.artifact import read_model, write_model
from dlsr.calibration.copies import exact_groups, found_groups
from dlsr.calibration.groups import Groups
from dlsr.config import AUTO, GIVEN, NONE
from dlsr.encoders.presets import weight_source
from dlsr.encoding.extractor import FeatureExtractor
from dlsr.encoding.pipeline import Encoded, Progress
from dlsr.errors import NotFittedError, SettingsError
from dlsr.fitted import FittedAttributes
from dlsr.images.groups import check_group_by, group_labels, taken_from
from dlsr.images.properties import ranges_of
from dlsr.images.sources import ImagesLike, open_images, warn_of_unreadable
from dlsr.images.transforms import Transform
from dlsr.method.noise import Digests, row_digests
from dlsr.model import FittedModel, check_digests, checked_features
from dlsr.results import Result, Results
from dlsr.runtime.backends import Backend
from dlsr.runtime.devices import resolve_device

Array = NDArray[np.float64]


class FittedDetector(FittedAttributes):
    """A detector as a model directory holds it. Larger score = more OOD.

    It scores and calibrates. `dlsr.Detector` also fits.

    Args:
        model: what a fit learned.
        device: `auto`, `cpu`, `cuda`, ..
        backend: engine of the encoder: one of `dlsr.runtime.backends.BACKENDS`. The score is run by ONNX Runtime.
        store: folder of the feature store; None keeps no features on disk.
        workers: threads that read and decode images.

    Attributes:
        false_alarm_rate: share of ID images that may be called OOD; can be changed.
        confidence: probability with which that rate holds; None for a rate that holds on average; can be changed.
        group_by: how the images of `calibrate` are grouped, see `dlsr.Detector`.

    Example:
        >>> detector = FittedDetector.load("model/")  # doctest: +SKIP
        >>> detector.detect("new/")  # doctest: +SKIP
    """

    def __init__(
        self,
        model: FittedModel,
        *,
        device: str = "auto",
        backend: Backend = "auto",
        store: str | os.PathLike[str] | None = None,
        workers: int = 2,
    ) -> None:
        self._model = model
        self.false_alarm_rate = model.config.false_alarm_rate
        self.confidence = model.config.confidence
        self.group_by = model.config.group_by
        self.device = device
        self.backend = backend
        self.store = store
        self.workers = workers

    _by_pytorch: ClassVar[bool] = False
    """Whether the score is run by PyTorch, even if the model holds its graph."""
    _extractor: FeatureExtractor | None = None
    """Of the fitted model; kept, since loading an encoder takes time."""
    _weights_given: bool = False
    """Whether the encoder's weights are read from where the user says, instead of the graph in the model."""

    device: str
    backend: Backend
    store: str | os.PathLike[str] | None
    workers: int
    group_by: str

    def calibrate(
        self, images: ImagesLike, *, groups: Sequence[Hashable] | None = None, progress: Progress | None = None
    ) -> Self:
        """Replace the calibration images by others that are known to be in distribution, without refitting.

        They must not be images of the fit, which look nearer to it than new ones. Images are recognised by
        the SHA-256 of their files; for a model that was fitted to transformed images this is not checked.

        Their simple properties replace those of the fit, from which `dlsr.explain` tells what is unusual.

        Args:
            images: see `dlsr.open_images`.
            groups: a label for each image, as for `fit`.
            progress: callback with the number of images that were encoded since the last call.

        Raises:
            NotFittedError, InputError: as `detect`. InputError also for images that the model was fitted to.
            NoImagesError: if none can be read.
            TooFewImagesError: if they are too few for the false-alarm rate.
        """
        found = open_images(images)
        self._check_groups([item.name for item in found.items], groups)
        encoded = self.extractor_.encode(found, progress=progress)
        encoded.check_readable()
        warn_of_unreadable(encoded.unreadable)
        if groups is not None:
            groups = taken_from(groups, encoded.positions_in(found))
        model = self._fitted().calibrated(encoded, self._groups_of(encoded, groups))
        model.calibration.check_size(self.false_alarm_rate, self.confidence)
        self._model = replace(model, ranges=ranges_of(found, model.settings.seed, self.workers))
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
        results = Results.joined(list(self.detect_chunks(images, transform=transform, progress=progress)))
        warn_of_unreadable(results.unreadable)
        return results

    def results(
        self,
        images: ImagesLike,
        *,
        transform: Transform | None = None,
        batch_size: int | None = None,
        progress: Progress | None = None,
    ) -> Generator[Result]:
        """As `detect`, one image at a time and without a warning: memory does not grow with their number.

        Args:
            images: as for `detect`, as are `transform` and `progress`.
            transform: as for `detect`.
            batch_size: images in one call of the engine, which does not change scores; None for the fastest.
            progress: as for `detect`.
        """
        for part in self.detect_chunks(images, transform=transform, batch_size=batch_size, progress=progress):
            yield from part

    def detect_chunks(
        self,
        images: ImagesLike,
        *,
        transform: Transform | None = None,
        batch_size: int | None = None,
        progress: Progress | None = None,
    ) -> Generator[Results]:
        """As `results`, some images at a time."""
        model, rate = self._fitted(), self.false_alarm_rate
        model.calibration.check_size(rate, self.confidence)
        chunks = self.extractor_.encode_chunks(images, transform=transform, batch_size=batch_size, progress=progress)
        for chunk in chunks:
            yield model.detect(chunk, rate, self.confidence)

    def detect_with_maps(self, images: ImagesLike) -> Iterator[tuple[Results, list[AnomalyMap]]]:
        """Results of some images at a time, in their order, and where these images deviate.

        Each image is encoded once, so this takes less time than `detect` and `anomaly_maps`. Memory does not grow with
        the number of images. There are no warnings of unreadable ones.

        Args:
            images: see `dlsr.open_images`.

        Raises:
            SettingsError: for a model that was fitted without `maps`.
            NotFittedError, InputError, TooFewImagesError, WeightsError: as `detect`.
        """
        model, found = self._fitted(), open_images(images)
        return detect_with_maps(model, self.extractor_, found, self.false_alarm_rate, self.confidence)

    def anomaly_maps(self, images: ImagesLike) -> Iterator[AnomalyMap]:
        """Where images deviate, in their order; see `detect_with_maps`, also for what is raised."""
        parts = self.detect_with_maps(images)
        return (found for _, maps in parts for found in maps)

    def detect_encoded(self, encoded: Encoded) -> Results:
        """As `detect`, of images that `extractor_` has encoded, and without a warning. Raises as `detect` does."""
        return self._fitted().detect(encoded, self.false_alarm_rate, self.confidence)

    def score_samples(self, images: ImagesLike, *, transform: Transform | None = None) -> Array:
        """Scores of images, shape `(N,)`, larger = more OOD; NaN, and a warning, for unreadable ones.

        Raises as `detect`, but for the number of calibration images, which scores do not need.
        """
        model, scores, unreadable = self._fitted(), [np.empty(0)], dict[str, str]()
        for chunk in self.extractor_.encode_chunks(images, transform=transform):
            of_chunk, _, errors = model.scored(chunk)
            scores.append(of_chunk)
            unreadable |= {name: error for name, error in zip(chunk.names, errors, strict=True) if error is not None}
        warn_of_unreadable(unreadable)
        return np.concatenate(scores)

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
            FeatureError: for another number of columns, or NaN or infinity; for digests of another shape.
        """
        model = self._fitted()
        z0 = checked_features(features, sum(model.channels))
        if digests is not None:
            check_digests(digests, len(z0))
        return model.score(z0, row_digests(z0) if digests is None else digests)[0]

    def p_values_of(self, scores: ArrayLike) -> Array:
        """Conformal p-values of scores, shape `(N,)`."""
        return self._fitted().calibration.p_values(np.asarray(scores, dtype=np.float64), self.confidence)

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write a model directory (safetensors and JSON), or replace the model in one.

        Raises:
            OutputError: if it cannot be written.
        """
        write_model(Path(folder), self._current_model())

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
    ) -> Self:
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
            SettingsError, MissingExtraError: for a device or backend that cannot be used.
        """
        model = read_model(Path(folder), resolve_device(device), backend, pytorch=cls._by_pytorch)
        changes = {
            "weights": None if weights is None else os.fspath(weights),
            "false_alarm_rate": false_alarm_rate,
            "confidence": confidence,
        }
        config = model.config.model_copy(update={name: value for name, value in changes.items() if value is not None})
        model = replace(model, config=config)
        if weights is not None and model.encoder is not None:
            spec = model.encoder.model_copy(update={"weights": weight_source(os.fspath(weights))})
            model = replace(model, encoder=spec)
        detector = cls._of(model, device=device, backend=backend, store=store, workers=workers)
        detector._weights_given = weights is not None
        return detector

    @classmethod
    def _of(cls, model: FittedModel, **runtime: Any) -> Self:
        return cls(model, **runtime)

    def _check_groups(self, names: Sequence[str], groups: Sequence[Hashable] | None) -> None:
        """Raise what is wrong with the groups of images, before these are encoded."""
        if groups is None:
            if self.group_by not in (AUTO, NONE):
                check_group_by(names, self.group_by)
        elif len(groups) != len(names):
            raise SettingsError(f"there are {len(names)} images, but {len(groups)} groups; give a label for each image")

    def _groups_of(self, encoded: Encoded, groups: Sequence[Hashable] | None) -> Groups:
        if groups is not None:
            groups = [group for group, error in zip(groups, encoded.errors, strict=True) if error is None]
        return self._grouped(encoded.readable_names, encoded.z0, encoded.digests, groups)

    def _grouped(
        self,
        names: Sequence[str] | None,
        z0: NDArray[np.float32],
        digests: Digests | None,
        groups: Sequence[Hashable] | None,
    ) -> Groups:
        """Groups of feature vectors: as given, or as `group_by` says.

        Raises:
            SettingsError, InputError: if groups cannot be had this way.
        """
        if groups is not None:
            if len(groups) != len(z0):
                raise SettingsError(f"there are {len(z0)} features, but {len(groups)} groups; give a label for each")
            return Groups.of(groups, GIVEN)
        if self.group_by == NONE:
            return Groups(np.arange(len(z0)), NONE)
        if self.group_by == AUTO:
            known = row_digests(z0) if digests is None else digests
            return Groups(found_groups(z0, known), AUTO, exact_groups(known))
        if names is None:
            raise SettingsError(f"features have no names to group by '{self.group_by}'; give groups instead")
        return Groups.of(group_labels(names, self.group_by), self.group_by)

    @property
    def extractor_(self) -> FeatureExtractor:
        """The feature extractor of a model fitted to images. Raises NotFittedError for other models."""
        model = self._fitted()
        if model.encoder is None:
            raise NotFittedError("this model was fitted to features and has no encoder; use score_features")
        if self._extractor is None:
            # In 8 bits there are no other weights than those of the graph.
            graphs = None if self._weights_given and model.encoder.precision != "int8" else model.graphs
            self._extractor = FeatureExtractor(
                model.encoder,
                resolve_device(self.device),
                self.backend,
                weights_sha256=model.encoder_sha256,
                channels=model.channels,
                onnx=None if graphs is None else graphs.encoder,
                timm=None if graphs is None else graphs.timm,
            )
        return self._current(self._extractor)

    def _current(self, extractor: FeatureExtractor) -> FeatureExtractor:
        extractor.store, extractor.workers = None if self.store is None else Path(self.store), self.workers
        return extractor
