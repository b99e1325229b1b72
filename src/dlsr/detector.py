"""The detector: what a user holds. Images or features in; scores, p-values and verdicts out."""

import copy
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from dlsr.artifact import FitSummary, Manifest, as_tensor, installed_versions, read_model, write_model
from dlsr.calibration.conformal import layer_scale, p_values, threshold
from dlsr.config import Settings, resolve
from dlsr.encoders import Encoder, encoder_spec
from dlsr.encoding.examples import Examples, choose_examples
from dlsr.encoding.pipeline import Encoded, Progress, encode_all, encode_chunks, open_store, readable_pixels
from dlsr.encoding.store import FeatureStore
from dlsr.errors import ArtifactError, FeatureError, NoImagesError, NotFittedError, SettingsError
from dlsr.estimator import Estimator
from dlsr.export.graph import Exportable, ExportFormat, check_export, sample_pixels, write_export, write_int8_export
from dlsr.export.int8 import Int8Report, quantised_encoder
from dlsr.images.sources import ImagesLike, open_images, warn_of_unreadable
from dlsr.images.transforms import Transform
from dlsr.method.noise import row_digests
from dlsr.runtime.backends import Backend, choose_backend
from dlsr.runtime.devices import torch_device
from dlsr.runtime.openvino_engine import openvino_engine
from dlsr.scorers.base import Digests, Scorer, score_rows, without_prefix
from dlsr.scorers.fitting import OnEpoch, fit_scorer, restored_scorer, split
from dlsr.training.checkpoint import Checkpoint, training_key
from dlsr.training.data import READ_BYTES, rows_of, taken
from dlsr.training.distributed import ALONE, Ranks

Array = NDArray[np.float64]

NEAREST = 4
"""So many of the kept training images are named beside a new one."""
CHECKED_IMAGES = 256
"""At most so many images check an exported graph."""
INT8_IMAGES = 1024
"""At most so many images of a set measure an 8-bit graph."""
RANGE_IMAGES = 300
"""So many images give the ranges of its integers, as NNCF advises."""


@dataclass(frozen=True)
class Result:
    """What a detector says of one image. An unreadable image has an `error` and nothing else."""

    path: str
    score: float | None = None
    """Larger = more OOD."""
    p_value: float | None = None
    """Share of ID images at least as far out, in (0, 1]."""
    is_ood: bool | None = None
    """Whether the p-value is at most the false-alarm rate."""
    top_layer: str | None = None
    """The layer that stands out most against the calibration images."""
    error: str | None = None
    layers: Mapping[str, float] | None = None
    """How far each layer's score lies above the calibration images' mean, in their standard deviations."""
    nearest: tuple[int, ...] | None = None
    """The kept training images nearest to this one, nearest first: indices into `examples_`."""


@dataclass(frozen=True)
class _Calibration:
    scores: Array
    layer_mean: Array
    layer_std: Array


class Detector(Estimator):
    """Unsupervised OOD detector for images, or for features of your own.

    Everything is larger = more OOD. `__init__` only stores; what is learned ends in an underscore.

    Args:
        encoder: a preset of `dlsr.ENCODERS`, or a network of timm with feature maps.
        score: one of `dlsr.SCORES`; None for the preset's.
        preset: `default`, `fast` or `paper`; None for the one that the score belongs to.
        stages: stages of the encoder that make up `z0`, from 0; None for the preset's.
        weights: a file with the encoder's weights, `random` or `random:SEED`; None for the preset's source.
        decoding: `full`, or `draft` to decode large JPEGs at a fraction of their size: quicker, other scores.
        t: time to distort to and restore from, or all falling times of the restoration; None for the preset's.
        draws: noise draws that a score is averaged over; likewise.
        epochs: most epochs of training; None for the preset's, which are more for small sets.
        batch_size: of training; likewise.
        lr: learning rate; likewise.
        width: of LFDN; likewise.
        blocks: of LFDN; likewise.
        neighbours: `k` of the knn score; likewise.
        false_alarm_rate: share of ID images that may be called OOD; can be changed after fitting.
        seed: of everything random. Noise is derived from it and each image's content.
        device: `auto`, `cpu`, `cuda`, ..
        backend: what runs the encoder: one of `dlsr.runtime.backends.BACKENDS`.
        store: folder of the feature store; None keeps no features on disk.
        workers: threads that read and decode images.
        thumbnails: so many training images are kept as thumbnails, to show beside new ones.

    Attributes:
        threshold_: the score above which an image is called OOD.
        fit_summary_: images used, images unreadable, losses.
        settings_: all settings in force.

    Example:
        >>> detector = Detector().fit("photos/")  # doctest: +SKIP
        >>> detector.predict("new/")  # doctest: +SKIP
    """

    _encoder: Encoder | None
    _examples: Examples | None
    _scorer: Scorer

    def __init__(
        self,
        encoder: str = "efficientnet_lite0",
        score: str | None = None,
        *,
        preset: str | None = None,
        stages: Sequence[int] | None = None,
        weights: str | os.PathLike[str] | None = None,
        decoding: str = "full",
        t: int | Sequence[int] | None = None,
        draws: int | None = None,
        epochs: int | None = None,
        batch_size: int | None = None,
        lr: float | None = None,
        width: int | None = None,
        blocks: int | None = None,
        neighbours: int | None = None,
        false_alarm_rate: float = 0.05,
        seed: int = 0,
        device: str = "auto",
        backend: Backend = "auto",
        store: str | os.PathLike[str] | None = None,
        workers: int = 2,
        thumbnails: int = 0,
    ) -> None:
        self.encoder = encoder
        self.score = score
        self.preset = preset
        self.stages = stages
        self.weights = weights
        self.decoding = decoding
        self.t = t
        self.draws = draws
        self.epochs = epochs
        self.batch_size = batch_size
        self.lr = lr
        self.width = width
        self.blocks = blocks
        self.neighbours = neighbours
        self.false_alarm_rate = false_alarm_rate
        self.seed = seed
        self.device = device
        self.backend = backend
        self.store = store
        self.workers = workers
        self.thumbnails = thumbnails

    # Fitting

    def fit(
        self,
        images: ImagesLike,
        y: object = None,
        *,
        transform: Transform | None = None,
        checkpoint: str | os.PathLike[str] | None = None,
        progress: Progress | None = None,
        on_epoch: OnEpoch | None = None,
        ranks: Ranks = ALONE,
    ) -> "Detector":
        """Learn what in-distribution images look like, and calibrate on some that were held out.

        Args:
            images: see `dlsr.open_images`.
            y: ignored, for scikit-learn.
            transform: made to each image first, for benchmarks.
            checkpoint: file for the state of training; if it holds that of the same fit, it is taken up.
            progress: told of each image encoded.
            on_epoch: told of each epoch of training.
            ranks: from `dlsr.training.distributed.joined`, if several processes fit this detector together.

        Raises:
            InputError: if there are no images, or too few that can be read.
            SettingsError: for settings that cannot work.
            WeightsError: if the encoder's weights cannot be had.
        """
        self._check_settings()
        found = open_images(images)
        self.prepare_encoder()
        if ranks.size > 1 and self.store is not None:
            # Each encodes its share into the store, where then each finds all.
            share = found.subset(range(ranks.rank, len(found), ranks.size))
            told = progress or (lambda n: None)
            self.encode(share, transform=transform, progress=lambda n: told(n * ranks.size))
            ranks.wait()
            progress = None
        encoded = self.encode(found, transform=transform, progress=progress)
        self.fit_encoded(encoded, checkpoint=checkpoint, on_epoch=on_epoch, ranks=ranks)
        self._examples = choose_examples(found, encoded, self.thumbnails, self.seed) if self.thumbnails else None
        return self

    def fit_encoded(
        self,
        encoded: Encoded,
        *,
        checkpoint: str | os.PathLike[str] | None = None,
        on_epoch: OnEpoch | None = None,
        ranks: Ranks = ALONE,
    ) -> "Detector":
        """Fit to images that are encoded already, by this detector's `encode` or on a cluster (`dlsr.scale`).

        Args:
            encoded: the images.
            checkpoint: as for `fit`.
            on_epoch: as for `fit`.
            ranks: as for `fit`.

        Raises:
            InputError, SettingsError, WeightsError: as `fit`.
        """
        encoder = self.prepare_encoder()
        if not len(encoded.z0):
            name, reason = next(iter(encoded.unreadable.items()))
            raise NoImagesError(f"none of {len(encoded.names)} images can be read; the first, {name}: {reason}")
        warn_of_unreadable(encoded.unreadable)
        self._examples = None
        return self._fit(encoded.z0, encoded.digests, encoder.channels, encoded.unreadable, checkpoint, on_epoch, ranks)

    def prepare_encoder(self) -> Encoder:
        """Load the encoder, unless it is loaded, so that `encode` works before fitting.

        Raises:
            SettingsError: if there is no such encoder or stage.
            WeightsError: if its weights cannot be had.
        """
        spec = encoder_spec(self.encoder, _as_tuple(self.stages), _as_str(self.weights), self.decoding)
        device = self._device()
        backend = choose_backend(self.backend, device)
        loaded: Encoder | None = getattr(self, "_encoder", None)
        if loaded is None or (loaded.spec, loaded.device, loaded.backend) != (spec, device, backend):
            loaded = Encoder(spec, device, backend)
        self._encoder = loaded
        return loaded

    def fit_features(
        self,
        features: ArrayLike,
        channels: Sequence[int] | None = None,
        *,
        digests: Digests | None = None,
        checkpoint: str | os.PathLike[str] | None = None,
        on_epoch: OnEpoch | None = None,
        ranks: Ranks = ALONE,
    ) -> "Detector":
        """Fit to features of your own instead of images.

        Args:
            features: finite, shape `(N, c)`; a memory-mapped float32 array may be larger than memory.
            channels: dimensions of each layer that the features are joined from; None for a single layer.
            digests: content digests from which noise is derived, shape `(N, 16)`; None for the rows' own.
            checkpoint: as for `fit`.
            on_epoch: as for `fit`.
            ranks: as for `fit`.

        Raises:
            FeatureError: for features of the wrong shape, or with NaN or infinity.
        """
        self._check_settings()
        z0 = _checked(features, None)
        layers = tuple(channels) if channels is not None else (z0.shape[1],)
        if sum(layers) != z0.shape[1] or min(layers) < 1:
            raise FeatureError(f"channels {list(layers)} do not add up to the {z0.shape[1]} columns of the features")
        self._encoder = None
        self._examples = None
        return self._fit(z0, digests, layers, {}, checkpoint, on_epoch, ranks)

    def _fit(
        self,
        z0: NDArray[np.float32],
        digests: Digests | None,
        channels: tuple[int, ...],
        unreadable: dict[str, str],
        checkpoint: str | os.PathLike[str] | None,
        on_epoch: OnEpoch | None,
        ranks: Ranks = ALONE,
    ) -> "Detector":
        settings = self._check_settings()
        parts = split(len(z0), self.false_alarm_rate, self.seed)
        device = self._device()
        training = rows_of(z0, parts.training, device)
        held_out, calibration = (taken(z0, rows) for rows in (parts.validation, parts.calibration))
        validation = torch.from_numpy(held_out).to(device)
        saved = checkpoint and Checkpoint(Path(checkpoint), training_key(settings, training, [validation]))

        def digests_of(rows: NDArray[np.intp], features: NDArray[np.float32]) -> Digests:
            return row_digests(features) if digests is None else digests[rows]

        validation_digests = digests_of(parts.validation, held_out)
        self._scorer, log = fit_scorer(
            settings, channels, training, validation, validation_digests, saved or None, on_epoch, ranks
        )
        self.settings_ = settings
        self._spec = self._encoder.spec if self._encoder else None
        self._encoder_sha256 = self._encoder.weights_sha256 if self._encoder else None
        self.channels_ = channels
        self.fit_summary_ = FitSummary(
            training_images=len(parts.training),
            validation_images=len(parts.validation),
            calibration_images=len(parts.calibration),
            unreadable=unreadable,
            log=log,
        )
        self._calibrate(calibration, digests_of(parts.calibration, calibration))
        return self

    def calibrate(self, images: ImagesLike, *, progress: Progress | None = None) -> "Detector":
        """Replace the calibration images by others that are known to be in distribution, without refitting.

        Raises:
            TooFewImagesError: if they are too few for the false-alarm rate.
        """
        encoded = self.encode(open_images(images), progress=progress)
        warn_of_unreadable(encoded.unreadable)
        threshold(np.zeros(len(encoded.z0)), self.false_alarm_rate)
        self._calibrate(encoded.z0, encoded.digests)
        self.fit_summary_ = self.fit_summary_.model_copy(update={"calibration_images": len(encoded.z0)})
        return self

    def _calibrate(self, z0: NDArray[np.float32], digests: Digests) -> None:
        scores, layers = self._layer_scores(z0, digests)
        self._calibration = _Calibration(scores, *layer_scale(layers))

    # Scoring

    def results(
        self,
        images: ImagesLike,
        *,
        transform: Transform | None = None,
        batch_size: int | None = None,
        progress: Progress | None = None,
    ) -> Iterator[Result]:
        """Score images one after the other, in order; unreadable ones are results with an error.

        Memory does not grow with their number.

        Args:
            images: see `dlsr.open_images`.
            transform: made to each image first, for benchmarks.
            batch_size: images in one call of the engine, of no account for scores; None for what it is quickest with.
            progress: told of each image done.
        """
        self._check_fitted()
        encoder = self.encoder_
        cut = self.threshold_
        for chunk in encode_chunks(
            encoder,
            open_images(images).items,
            store=open_store(self._store_root(), encoder, transform),
            transform=transform,
            batch_size=batch_size,
            workers=self.workers,
            progress=progress,
        ):
            scores, layers = self._layer_scores(chunk.z0, chunk.digests)
            standing_out = (layers - self._calibration.layer_mean) / self._calibration.layer_std
            nearest = self._examples.nearest(chunk.z0, NEAREST) if self._examples else [None] * len(scores)
            rows = iter(zip(scores, p_values(scores, self._calibration.scores), standing_out, nearest, strict=True))
            for name, error in zip(chunk.names, chunk.errors, strict=True):
                if error is not None:
                    yield Result(name, error=error)
                    continue
                score, p_value, layer_row, near = next(rows)
                by_layer = dict(zip(self.layer_names_, layer_row.tolist(), strict=True))
                yield Result(
                    name,
                    float(score),
                    float(p_value),
                    bool(score > cut),
                    max(by_layer, key=by_layer.__getitem__),
                    layers=by_layer,
                    nearest=None if near is None else tuple(near.tolist()),
                )

    def score_samples(self, images: ImagesLike, *, transform: Transform | None = None) -> Array:
        """Scores of images, shape `(N,)`, larger = more OOD; NaN, and a warning, for unreadable ones."""
        results = list(self.results(images, transform=transform))
        warn_of_unreadable({r.path: r.error for r in results if r.error is not None})
        return np.array([np.nan if r.score is None else r.score for r in results])

    def p_values(self, images: ImagesLike) -> Array:
        """Conformal p-values of images, shape `(N,)`; NaN, and a warning, for unreadable ones."""
        results = list(self.results(images))
        warn_of_unreadable({r.path: r.error for r in results if r.error is not None})
        return np.array([np.nan if r.p_value is None else r.p_value for r in results])

    def predict(self, images: ImagesLike) -> NDArray[np.int8]:
        """Verdicts, shape `(N,)`: 1 for OOD, 0 for ID, -1, and a warning, for unreadable images."""
        results = list(self.results(images))
        warn_of_unreadable({r.path: r.error for r in results if r.error is not None})
        return np.array([-1 if r.is_ood is None else int(r.is_ood) for r in results], dtype=np.int8)

    def score_features(self, features: ArrayLike, digests: Digests | None = None) -> Array:
        """Scores of features, shape `(N, c)` to `(N,)`, larger = more OOD.

        Args:
            features: as given to `fit_features`, or `z0` as `encode` gives it.
            digests: content digests, shape `(N, 16)`; None for the rows' own.

        Raises:
            FeatureError: for another number of columns, or NaN or infinity.
        """
        self._check_fitted()
        z0 = _checked(features, sum(self.channels_))
        return self._layer_scores(z0, row_digests(z0) if digests is None else digests)[0]

    def p_values_of(self, scores: ArrayLike) -> Array:
        """Conformal p-values of scores, shape `(N,)`."""
        self._check_fitted()
        return p_values(np.asarray(scores, dtype=np.float64), self._calibration.scores)

    def encode(
        self, images: ImagesLike, *, transform: Transform | None = None, progress: Progress | None = None
    ) -> Encoded:
        """Features of images, from the feature store where they are known."""
        encoder = self.encoder_
        return encode_all(
            encoder,
            open_images(images),
            store=open_store(self._store_root(), encoder, transform),
            transform=transform,
            workers=self.workers,
            progress=progress,
        )

    def feature_store(self) -> FeatureStore:
        """The store of this detector's encoder.

        Raises:
            SettingsError: if it has none.
            ArtifactError: if it is damaged.
        """
        store = open_store(self._store_root(), self.encoder_)
        if store is None:
            raise SettingsError("this detector keeps no features; give it a store")
        return store

    @property
    def encoder_(self) -> Encoder:
        """The encoder, loaded at its first use.

        Raises:
            NotFittedError: for a detector that is not fitted, or was fitted to features.
            WeightsError: if the encoder's weights cannot be had.
        """
        encoder: Encoder | None = getattr(self, "_encoder", None)
        if encoder is None:
            self._check_fitted()
            if self._spec is None:
                raise NotFittedError("this model was fitted to features and has no encoder; use score_features")
            encoder = Encoder(
                self._spec,
                self._device(),
                self.backend,
                weights_sha256=self._encoder_sha256,
                channels=self.channels_,
            )
            self._encoder = encoder
        return encoder

    @property
    def threshold_(self) -> float:
        """The score above which an image is called OOD, at `false_alarm_rate`.

        Raises:
            TooFewImagesError: if the calibration images are too few for the rate.
        """
        self._check_fitted()
        return threshold(self._calibration.scores, self.false_alarm_rate)

    @property
    def calibration_scores_(self) -> Array:
        """Scores of the calibration images, shape `(n,)`."""
        self._check_fitted()
        return self._calibration.scores

    @property
    def examples_(self) -> Examples | None:
        """Training images kept as thumbnails; None if `thumbnails` was 0."""
        self._check_fitted()
        return self._examples

    @property
    def layer_names_(self) -> list[str]:
        """Names of the M layers."""
        self._check_fitted()
        if self._spec is None:
            return [f"layer {i}" for i in range(len(self.channels_))]
        return [f"stage {stage}" for stage in self._spec.stages]

    @property
    def encoder_name_(self) -> str | None:
        """The encoder's name; None for a model fitted to features."""
        self._check_fitted()
        return self._spec.name if self._spec else None

    def learned_tensors(self) -> dict[str, torch.Tensor]:
        """What fitting learned, by name."""
        self._check_fitted()
        return self._scorer.tensors()

    def with_settings(self, *, seed: int | None = None, score: str | None = None) -> "Detector":
        """The same trained model scoring with the noise of another seed, or another score of the same network.

        The calibration stays as it was: it fits another seed, but not another score.
        """
        self._check_fitted()
        other = copy.copy(self)
        changes = {name: value for name, value in {"seed": seed, "score": score}.items() if value is not None}
        other.set_params(**changes)
        other.settings_ = self.settings_.model_copy(update=changes)
        other._scorer = restored_scorer(other.settings_, self.channels_, self._scorer.tensors(), self._device())
        return other

    # Saving

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write a model directory (safetensors and JSON), or replace the model in one.

        Raises:
            OutputError: if it cannot be written.
        """
        self._check_fitted()
        calibration = self._calibration
        manifest = Manifest(
            versions=installed_versions(),
            settings=self.settings_,
            encoder=self._spec,
            encoder_sha256=self._encoder_sha256,
            channels=self.channels_,
            false_alarm_rate=self.false_alarm_rate,
            fit=self.fit_summary_,
        )
        tensors = {f"scorer.{name}": tensor for name, tensor in self._scorer.tensors().items()}
        tensors |= {
            "calibration.scores": as_tensor(calibration.scores),
            "calibration.layer_mean": as_tensor(calibration.layer_mean),
            "calibration.layer_std": as_tensor(calibration.layer_std),
        }
        if self._examples is not None:
            tensors |= {f"examples.{name}": tensor for name, tensor in self._examples.tensors().items()}
        write_model(Path(folder), manifest, tensors)

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
    ) -> "Detector":
        """Read a model directory.

        Args:
            folder: that `save` wrote.
            weights: where the encoder's weights are now, if they came from a file that has moved.
            device: as for the class, as are the others.
            backend: likewise.
            store: likewise.
            workers: likewise.
            false_alarm_rate: instead of the model's; None for the model's.

        Raises:
            ArtifactError: if it is missing, damaged, foreign or from a newer dlsr.
        """
        where = torch_device(device)
        manifest, tensors = read_model(Path(folder), where)
        settings, spec = manifest.settings, manifest.encoder
        if spec is not None and weights is not None:
            spec = spec.model_copy(update={"weights": encoder_spec("efficientnet_lite0", weights=str(weights)).weights})
        detector = cls(
            encoder=spec.name if spec else "efficientnet_lite0",
            score=settings.score,
            preset=settings.preset,
            stages=spec.stages if spec else None,
            weights=spec.weights_argument if spec else None,
            decoding=spec.decoding if spec else "full",
            t=settings.restoration.steps,
            draws=settings.restoration.draws,
            epochs=None if settings.training.min_steps else settings.training.epochs,
            batch_size=settings.training.batch_size,
            lr=settings.training.lr,
            width=settings.network.width,
            blocks=settings.network.blocks,
            neighbours=settings.neighbours,
            false_alarm_rate=manifest.false_alarm_rate if false_alarm_rate is None else false_alarm_rate,
            seed=settings.seed,
            device=device,
            backend=backend,
            store=store,
            workers=workers,
        )
        kept = without_prefix("examples", tensors)
        try:
            detector._examples = Examples.of(kept) if kept else None
            detector.thumbnails = len(detector._examples.names) if detector._examples else 0
            detector._scorer = restored_scorer(settings, manifest.channels, without_prefix("scorer", tensors), where)
            detector._calibration = _Calibration(
                *(tensors[f"calibration.{name}"].cpu().numpy() for name in ("scores", "layer_mean", "layer_std"))
            )
        except (KeyError, RuntimeError, TypeError, ValueError) as error:
            raise ArtifactError(f"'{folder}' does not hold what its model.json says ({error}); fit it again") from error
        detector.settings_ = settings
        detector.channels_ = manifest.channels
        detector.fit_summary_ = manifest.fit
        detector._spec = spec
        detector._encoder_sha256 = manifest.encoder_sha256
        detector._encoder = None
        return detector

    def export(
        self, folder: str | os.PathLike[str], kind: ExportFormat = "onnx", images: ImagesLike | None = None
    ) -> float:
        """Write a directory with the whole detector as one graph, and an example that needs no dlsr; see `dlsr.export`.

        Args:
            folder: to write; replaced if it is an export already.
            kind: `onnx` or `openvino`.
            images: real images to check the graph on, at most 256 of which are used; None for some of scikit-learn's.

        Returns:
            The greatest difference of scores from PyTorch's on these images, relative as told at
            `dlsr.export.graph.TOLERANCE`.

        Raises:
            NotFittedError: for a detector that is not fitted, or was fitted to features.
            MissingExtraError: if what writes the graph is not installed.
            ExportError: if the graph disagrees with PyTorch; nothing is written then.
        """
        what = self._exportable()
        if images is None:
            pixels = sample_pixels(what.spec)
        else:
            pixels = readable_pixels(what.encoder, open_images(images), CHECKED_IMAGES, self.workers)
        return write_export(what, Path(folder), kind, pixels)

    def export_int8(
        self,
        folder: str | os.PathLike[str],
        train_images: ImagesLike,
        id_images: ImagesLike,
        ood_images: Mapping[str, ImagesLike],
        *,
        progress: Progress | None = None,
    ) -> Int8Report:
        """As `export` to OpenVINO, with the encoder in 8-bit integers; kept only if detection hardly suffers.

        Eight bits shift the features, so what is exported is fitted and calibrated again, to features of the
        quantised encoder; this detector stays as it is.

        Args:
            folder: to write; replaced if it is an export already.
            train_images: those that the detector was fitted to.
            id_images: other in-distribution images, to measure on.
            ood_images: OOD sets to measure on, by name.
            progress: told of each training image encoded.

        Returns:
            AUROC before and after, and what it gained in speed.

        Raises:
            NotFittedError: as for `export`.
            MissingExtraError: without OpenVINO or NNCF.
            TooFewImagesError: if the training images are too few.
            ExportError: if mean AUROC falls by `dlsr.export.int8.GREATEST_LOSS` or more; nothing is written then.
        """
        if not ood_images:
            raise SettingsError("give at least one OOD set to measure the 8-bit model on")
        what = self._exportable()
        check_export(Path(folder), "openvino")

        def pixels_of(images: ImagesLike, count: int) -> NDArray[np.uint8]:
            found = open_images(images)
            order = np.random.default_rng(self.seed).permutation(len(found))
            return readable_pixels(what.encoder, found.subset(int(i) for i in order), count, self.workers)

        quantised = quantised_encoder(what.encoder.graph(), pixels_of(train_images, RANGE_IMAGES))
        encoder = what.encoder.with_engine(openvino_engine(quantised))
        encoded = encode_all(encoder, open_images(train_images), workers=self.workers, progress=progress)
        warn_of_unreadable(encoded.unreadable)
        again = copy.copy(self)
        again._fit(encoded.z0, encoded.digests, self.channels_, encoded.unreadable, None, None)
        inside = pixels_of(id_images, INT8_IMAGES)
        outside = {name: pixels_of(images, INT8_IMAGES) for name, images in ood_images.items()}
        return write_int8_export(what, again._exportable(), quantised, Path(folder), inside, outside)

    def _exportable(self) -> Exportable:
        if self._device().type != "cpu":
            raise SettingsError("exporting works on the CPU; load the model with device='cpu'")
        encoder, calibration = self.encoder_, self._calibration
        return Exportable(
            encoder=encoder,
            scorer=self._scorer,
            seed=self.settings_.seed,
            layer_names=self.layer_names_,
            layer_mean=calibration.layer_mean,
            layer_std=calibration.layer_std,
            calibration_scores=calibration.scores,
            false_alarm_rate=self.false_alarm_rate,
            threshold=self.threshold_,
        )

    # Private

    def _check_settings(self) -> Settings:
        if not 0 < self.false_alarm_rate < 1:
            raise SettingsError(f"the false-alarm rate must lie between 0 and 1, got {self.false_alarm_rate}")
        return resolve(
            self.preset,
            self.score,
            t=self.t,
            draws=self.draws,
            epochs=self.epochs,
            batch_size=self.batch_size,
            lr=self.lr,
            width=self.width,
            blocks=self.blocks,
            neighbours=self.neighbours,
            seed=self.seed,
        )

    def _check_fitted(self) -> None:
        if not hasattr(self, "_scorer"):
            raise NotFittedError("this detector is not fitted; call fit or fit_features, or load a model")

    def _device(self) -> torch.device:
        return torch_device(self.device)

    def _store_root(self) -> Path | None:
        return None if self.store is None else Path(self.store)

    def _layer_scores(self, z0: NDArray[np.float32], digests: Digests) -> tuple[Array, Array]:
        if not len(z0):
            return np.empty(0), np.empty((0, len(self.channels_)))
        scores, layers = score_rows(self._scorer, torch.from_numpy(z0).to(self._device()), digests, self.settings_.seed)
        return scores.cpu().double().numpy(), layers.cpu().double().numpy()


def _as_tuple(stages: Sequence[int] | None) -> tuple[int, ...] | None:
    return None if stages is None else tuple(stages)


def _as_str(path: str | os.PathLike[str] | None) -> str | None:
    return None if path is None else os.fspath(path)


def _checked(features: ArrayLike, columns: int | None) -> NDArray[np.float32]:
    values: NDArray[Any] = np.asarray(features)
    if values.ndim != 2 or not np.issubdtype(values.dtype, np.number) or values.shape[1] == 0:
        raise FeatureError(f"features must be numbers of shape (N, c), got {values.dtype} of shape {values.shape}")
    if columns is not None and values.shape[1] != columns:
        raise FeatureError(f"the model was fitted to {columns} columns, got {values.shape[1]}")
    rows = np.ascontiguousarray(values, dtype=np.float32)
    at_once = max(READ_BYTES // rows[:1].nbytes, 1) if len(rows) else 1
    finite = [np.isfinite(rows[i : i + at_once]).all(axis=1) for i in range(0, len(rows), at_once)]
    bad = np.flatnonzero(~np.concatenate([np.empty(0, np.bool_), *finite]))
    if len(bad):
        raise FeatureError(
            f"{len(bad)} rows of the features hold NaN or infinity, the first is row {bad[0]}; drop them"
        )
    return rows
