"""What all baselines share: reading images, training, scoring in batches, saving and loading."""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from dlsr.artifact import BaselineManifest, installed_versions, read_artifact, write_model
from dlsr.config import TrainingSettings
from dlsr.errors import ArtifactError, InputError, NotFittedError, TooFewImagesError
from dlsr.estimator import Estimator
from dlsr.images.sources import ImageDataset, ImagesLike, open_images, warn_of_unreadable
from dlsr.images.transforms import Transform, read_pixels
from dlsr.method.noise import noise_for, pixel_digest
from dlsr.runtime.devices import torch_device
from dlsr.scorers.fitting import OnEpoch, train_to_end
from dlsr.training.checkpoint import Checkpoint, training_key
from dlsr.training.data import Rows
from dlsr.training.loop import EpochLog, Loss

Array = NDArray[np.float64]
Inputs = NDArray[Any]

SMALLEST_TRAINING_SET = 20


@dataclass(frozen=True)
class Watch:
    """Who is told of a training, and where its state is kept."""

    checkpoint: Path | None
    on_epoch: OnEpoch | None


@dataclass(kw_only=True, repr=False, eq=False)
class Baseline(Estimator):
    """A detector that looks at small images, or at features of an encoder. Larger score = more OOD.

    Subclasses say how the network is built, what its loss is, and how it scores. All that is learned lies in the
    state dict of `network_`, so that saving and loading are the same for all.

    Args:
        seed: of everything random.
        device: `auto`, `cpu`, `cuda`, ..
        workers: threads that decode.
    """

    name: ClassVar[str]
    """In the registry."""
    needs_labels: ClassVar[bool] = False
    family: ClassVar[str | None] = None
    """Detectors of one family train the same network, so that a checkpoint of one serves all."""
    size: ClassVar[int] = 32
    """Images are resized to this many pixels a side."""
    rows_at_once: ClassVar[int] = 64
    """Images scored at once."""

    seed: int = 0
    device: str = "auto"
    workers: int = 2
    network_: nn.Module = field(init=False)
    classes_: int = field(init=False)
    log_: list[EpochLog] = field(init=False)

    @abstractmethod
    def _build(self, classes: int) -> nn.Module:
        """The untrained network, a function of the parameters, the number of classes and torch's random state."""

    @abstractmethod
    def _learn(self, pixels: Tensor, labels: Tensor | None, watch: Watch) -> None:
        """Train `network_` on what `_tensor` gives: uint8 of shape `(N, 3, size, size)`; labels of shape `(N,)`."""

    @abstractmethod
    def _scores(self, pixels: Tensor) -> Tensor:
        """Scores of a few images: uint8 of shape `(n, 3, size, size)` to `(n,)`."""

    def fit(
        self,
        images: ImagesLike,
        labels: Sequence[int] | NDArray[np.integer] | None = None,
        *,
        transform: Transform | None = None,
        checkpoint: str | PathLike[str] | None = None,
        on_epoch: OnEpoch | None = None,
    ) -> Self:
        """Learn from in-distribution images.

        Args:
            images: see `dlsr.open_images`. Unreadable ones are warned of, and left out.
            labels: class of each image, from 0; only for detectors that need labels.
            transform: made to each image first.
            checkpoint: file for the state of training; if it holds that of the same fit, it is taken up.
            on_epoch: told of each epoch of training.

        Raises:
            InputError: if labels are needed and missing, or not one for each image; if images are too few.
        """
        found = open_images(images)
        if self.needs_labels and labels is None:
            raise InputError(f"'{self.name}' needs a label for each image; give labels, or folders named after classes")
        if labels is not None and len(labels) != len(found):
            raise InputError(f"{len(labels)} labels for {len(found)} images; give one for each")
        rows, errors = self._read(found, transform)
        warn_of_unreadable({item.name: e for item, e in zip(found.items, errors, strict=True) if e is not None})
        readable = np.array([error is None for error in errors])
        if len(rows) < SMALLEST_TRAINING_SET:
            raise TooFewImagesError(f"{len(rows)} readable images are too few; give {SMALLEST_TRAINING_SET} or more")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            classes = None if labels is None else torch.from_numpy(np.asarray(labels)[readable]).long()
            self.classes_ = 0 if classes is None else int(classes.max()) + 1
            self.network_ = self._build(self.classes_).to(self._device())
            self._learn(self._tensor(rows), classes, Watch(Path(checkpoint) if checkpoint else None, on_epoch))
        self.network_.eval()
        return self

    def score_samples(self, images: ImagesLike, *, transform: Transform | None = None) -> Array:
        """Scores of images, shape `(N,)`, larger = more OOD; NaN, and a warning, for unreadable ones."""
        if not hasattr(self, "network_"):
            raise NotFittedError("this detector is not fitted; call fit, or load it")
        found = open_images(images)
        rows, errors = self._read(found, transform)
        warn_of_unreadable({item.name: e for item, e in zip(found.items, errors, strict=True) if e is not None})
        scores = np.full(len(found), np.nan)
        scores[[error is None for error in errors]] = self._score_rows(rows)
        return scores

    def _read(self, images: ImageDataset, transform: Transform | None) -> tuple[Inputs, list[str | None]]:
        """What the detector sees of the readable images; and for each image why it cannot be read, or None."""
        apply = transform.apply if transform else None
        return read_pixels(images, self.size, "bicubic", apply=apply, workers=self.workers)

    def _tensor(self, rows: Inputs) -> Tensor:
        """Rows as `_learn` and `_scores` take them."""
        return torch.from_numpy(rows).permute(0, 3, 1, 2).contiguous().to(self._device())

    def _score_rows(self, rows: Inputs) -> Array:
        parts = []
        for start in range(0, len(rows), self.rows_at_once):
            parts.append(self._scores(self._tensor(rows[start : start + self.rows_at_once])).detach().cpu())
        return torch.cat(parts).double().numpy() if parts else np.empty(0)

    def save(self, folder: str | PathLike[str]) -> None:
        """Write a model directory (safetensors and JSON).

        Raises:
            OutputError: if it cannot be written.
        """
        manifest = BaselineManifest(
            versions=installed_versions(),
            detector=self.name,
            parameters=self.get_params(),
            classes=self.classes_,
            log=self.log_,
        )
        write_model(Path(folder), manifest, self.network_.state_dict())

    @classmethod
    def load(cls, folder: str | PathLike[str]) -> Self:
        """Read a model directory of this class.

        Raises:
            ArtifactError: if it is missing, damaged, foreign, from a newer dlsr or of another class.
        """
        manifest, tensors = read_artifact(Path(folder), BaselineManifest, torch.device("cpu"))
        if manifest.detector != cls.name:
            raise ArtifactError(f"'{folder}' holds a '{manifest.detector}', not a '{cls.name}'; load it as such")
        detector = cls(**manifest.parameters)
        detector._restore(tensors, manifest.classes)
        detector.classes_ = manifest.classes
        detector.network_ = detector.network_.to(detector._device()).eval()
        detector.log_ = manifest.log
        return detector

    def _restore(self, tensors: dict[str, Tensor], classes: int) -> None:
        self.network_ = self._build(classes)
        self.network_.load_state_dict(tensors)

    def _train(
        self,
        rows: Tensor,
        loss: Loss,
        settings: TrainingSettings,
        watch: Watch,
        *,
        network: nn.Module | None = None,
        also: Sequence[Tensor] = (),
    ) -> None:
        """Train `network`, by default `network_`, on nineteen twentieths of the rows; keep what does best on the rest.

        A checkpoint is taken up only if the untrained network, the rows and what `also` goes into the loss are the
        same.
        """
        network = network or self.network_
        generator = torch.Generator().manual_seed(self.seed)
        order = torch.randperm(len(rows), generator=generator)
        held_out = max(len(rows) // 20, 1)
        validation, training = rows[order[:held_out]], rows[order[held_out:]]
        inputs = (training, validation, *network.state_dict().values(), *also)
        key = training_key(settings, *([rows] for rows in inputs))
        saved = Checkpoint(watch.checkpoint, key) if watch.checkpoint else None
        state = train_to_end(
            network, Rows(training), validation, loss, settings, self.seed, checkpoint=saved, on_epoch=watch.on_epoch
        )
        network.load_state_dict(state.best)
        self.log_ = state.log

    def _noise(self, pixels: Tensor, draws: int) -> Tensor:
        """Standard normal noise that belongs to each image: `(n, 3, H, W)` to `(n, draws, 3, H, W)`."""
        digests = np.stack([pixel_digest(one) for one in pixels.permute(0, 2, 3, 1).cpu().numpy()])
        noise = noise_for(digests, self.seed, draws, pixels[0].numel())
        return noise.reshape(len(pixels), draws, *pixels.shape[1:]).to(pixels.device)

    def _device(self) -> torch.device:
        return torch_device(self.device)
