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

from dlsr.artifact import BaselineManifest, installed_versions, read_artifact, write_artifact
from dlsr.config import TrainingSettings
from dlsr.errors import ArtifactError, InputError, NotFittedError, SettingsError, TooFewImagesError, one_line
from dlsr.estimator import Estimator
from dlsr.images.sources import ImageDataset, ImagesLike, open_images, warn_of_unreadable
from dlsr.images.transforms import Transform
from dlsr.model_folder import MANIFEST
from dlsr.runtime.devices import resolve_device
from dlsr.training.checkpoint import training_key
from dlsr.training.data import Samples
from dlsr.training.log import EpochLog
from dlsr.training.loop import Loss, OnEpoch, Trainer

Array = NDArray[np.float64]
Inputs = NDArray[Any]
"""The input of a detector: pixels, or features of an encoder."""
Labels = Sequence[int] | NDArray[np.integer]

SMALLEST_TRAINING_SET = 20


@dataclass(kw_only=True, repr=False, eq=False)
class Baseline(Estimator):
    """A detector that takes small images, or features of an encoder. Larger score = more OOD.

    Subclasses define the network, its training and the score. Everything learned is in the state dict of `network_`,
    so saving and loading need no code of their own.

    Args:
        seed: of everything random.
        device: `auto`, `cpu`, `cuda`, ..
        workers: threads that read and decode images.
    """

    name: ClassVar[str]
    """Name in the registry."""
    needs_labels: ClassVar[bool] = False
    family: ClassVar[str | None] = None
    """Detectors of one family train the same network, so that they can share a checkpoint."""
    scoring_batch: ClassVar[int] = 64
    """Images scored at once."""

    seed: int = 0
    device: str = "auto"
    workers: int = 2
    network_: nn.Module = field(init=False)
    classes_: int = field(init=False)
    log_: list[EpochLog] = field(init=False)

    @abstractmethod
    def _build(self, classes: int) -> nn.Module:
        """The untrained network: a function of the parameters, the number of classes and torch's random state."""

    @abstractmethod
    def _learn(self, pixels: Tensor, labels: Tensor | None, trainer: Trainer) -> None:
        """Train `network_`.

        Args:
            pixels: output of `_tensor`: uint8, shape `(N, C, size, size)`, or features, shape `(N, c)`.
            labels: classes, shape `(N,)`; None if there are none.
            trainer: runs the training, resuming from its checkpoint.
        """

    @abstractmethod
    def _scores(self, pixels: Tensor) -> Tensor:
        """Scores of a batch: output of `_tensor`, shape `(n, ..)`, to `(n,)`."""

    def fit(
        self,
        images: ImagesLike,
        labels: Labels | None = None,
        *,
        transform: Transform | None = None,
        checkpoint: str | PathLike[str] | None = None,
        on_epoch: OnEpoch | None = None,
    ) -> Self:
        """Learn from in-distribution images.

        Args:
            images: see `dlsr.open_images`. Unreadable images are left out, with a warning.
            labels: class of each image, from 0; only for detectors that need labels.
            transform: applied to each image first.
            checkpoint: file for the state of training; an interrupted fit of the same data resumes from it.
            on_epoch: callback after each epoch.

        Raises:
            InputError: if labels are needed and missing, or their number is not that of the images.
            TooFewImagesError: if fewer than 20 images can be read.
        """
        found = open_images(images)
        self._check_labels(labels, len(found))
        inputs, readable = self._read_readable(found, transform)
        classes = None if labels is None else np.asarray(labels)[readable]
        return self._fit_inputs(inputs, classes, Trainer(self.seed, Path(checkpoint) if checkpoint else None, on_epoch))

    def _check_labels(self, labels: Labels | None, count: int) -> None:
        if self.needs_labels and labels is None:
            raise InputError(f"'{self.name}' needs a label for each image; give labels, or folders named after classes")
        if labels is not None and len(labels) != count:
            raise InputError(f"{len(labels)} labels for {count} images; give one for each")

    def _fit_inputs(self, inputs: Inputs, labels: Labels | None, trainer: Trainer) -> Self:
        if len(inputs) < SMALLEST_TRAINING_SET:
            raise TooFewImagesError(f"{len(inputs)} readable images are too few; give {SMALLEST_TRAINING_SET} or more")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            classes = None if labels is None else torch.from_numpy(np.asarray(labels)).long()
            self.classes_ = 0 if classes is None else int(classes.max()) + 1
            self.network_ = self._build(self.classes_).to(self._device())
            self._learn(self._tensor(inputs), classes, trainer)
        self.network_.eval()
        return self

    def score_samples(self, images: ImagesLike, *, transform: Transform | None = None) -> Array:
        """Scores of images, shape `(N,)`, larger = more OOD; NaN, and a warning, for unreadable images.

        Raises:
            NotFittedError: before a fit.
        """
        self._check_fitted()
        found = open_images(images)
        inputs, readable = self._read_readable(found, transform)
        scores = np.full(len(found), np.nan)
        scores[readable] = self._score_inputs(inputs)
        return scores

    def _check_fitted(self) -> None:
        if not hasattr(self, "network_"):
            raise NotFittedError("this detector is not fitted; call fit, or load it")

    def _score_inputs(self, inputs: Inputs) -> Array:
        scores = np.empty(len(inputs))
        for start in range(0, len(inputs), self.scoring_batch):
            batch = slice(start, start + self.scoring_batch)
            scores[batch] = self._scores(self._tensor(inputs[batch])).detach().cpu().double().numpy()
        return scores

    def _read_readable(self, images: ImageDataset, transform: Transform | None) -> tuple[Inputs, NDArray[np.intp]]:
        """Inputs of the readable images, and the indices of these; warns of the others."""
        inputs, errors = self._read(images, transform)
        warn_of_unreadable({item.name: e for item, e in zip(images.items, errors, strict=True) if e is not None})
        return inputs, np.flatnonzero([error is None for error in errors])

    @abstractmethod
    def _read(self, images: ImageDataset, transform: Transform | None) -> tuple[Inputs, list[str | None]]:
        """Inputs of the readable images; and for each image why it cannot be read, or None."""

    @abstractmethod
    def _tensor(self, inputs: Inputs) -> Tensor:
        """Inputs as `_learn` and `_scores` take them, on the device."""

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
        learned = {name: tensor.detach().cpu().numpy() for name, tensor in self.network_.state_dict().items()}
        write_artifact(Path(folder), manifest, learned)

    @classmethod
    def load(cls, folder: str | PathLike[str]) -> Self:
        """Read a model directory of this class.

        Raises:
            ArtifactError: if it is missing, damaged, foreign, from a newer dlsr or of another class.
        """
        manifest, arrays = read_artifact(Path(folder), BaselineManifest)
        if manifest.detector != cls.name:
            raise ArtifactError(f"'{folder}' holds a '{manifest.detector}', not a '{cls.name}'; load it as such")
        try:
            detector = cls(**manifest.parameters)
            detector._restore({name: torch.from_numpy(array) for name, array in arrays.items()}, manifest.classes)
        except (KeyError, RuntimeError, SettingsError, TypeError, ValueError) as error:
            raise ArtifactError(
                f"'{folder}' does not hold what its {MANIFEST} says ({one_line(error)}); fit it again"
            ) from error
        detector.classes_ = manifest.classes
        detector.network_ = detector.network_.to(detector._device()).eval()
        detector.log_ = manifest.log
        return detector

    def _restore(self, tensors: dict[str, Tensor], classes: int) -> None:
        self.network_ = self._build(classes)
        self.network_.load_state_dict(tensors)

    def _train(
        self,
        samples: Tensor,
        loss: Loss,
        settings: TrainingSettings,
        trainer: Trainer,
        *,
        network: nn.Module | None = None,
        also: Sequence[Tensor] = (),
    ) -> None:
        """Train a network, holding out a twentieth of the samples; keep the weights with the lowest loss on these.

        Args:
            samples: shape `(N, ..)`.
            loss: of a batch of samples.
            settings: batch size, learning rate, epochs, ..; training does not stop before these have passed, as in
                the papers.
            trainer: runs the training.
            network: to train; None for `network_`.
            also: other inputs of the loss. A checkpoint is resumed only if these, the samples and the untrained network
                are the same.
        """
        network = network or self.network_
        whole = settings.model_copy(update={"patience": settings.epochs})
        training, validation = self._split(samples)
        initial = network.state_dict()
        shapes = {name: tuple(tensor.shape) for name, tensor in initial.items()}
        inputs = (training, validation, *initial.values(), *also)

        def key() -> str:
            return training_key(f"{whole.model_dump_json()}\n{shapes}", *([part] for part in inputs))

        state = trainer.train(network, Samples(training), validation, loss, whole, key)
        network.load_state_dict(state.best)
        self.log_ = state.log

    def _split(self, samples: Tensor) -> tuple[Tensor, Tensor]:
        """The samples in a random order: those that `_train` trains on, and the twentieth that it holds out."""
        order = torch.randperm(len(samples), generator=torch.Generator().manual_seed(self.seed))
        held_out = max(len(samples) // 20, 1)
        return samples[order[held_out:]], samples[order[:held_out]]

    def _random_subset(self, samples: Tensor, most: int) -> Tensor:
        """At most `most` of the samples.

        They are drawn from the random state that `fit` seeds. Training leaves it as it was, so a resumed fit draws the
        same samples.
        """
        return samples[torch.randperm(len(samples))[:most].to(samples.device)]

    def _device(self) -> torch.device:
        return torch.device(resolve_device(self.device))
