"""Fitting a scorer to features, and putting one together again from its tensors."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from dlsr.config import Settings, TrainingSettings
from dlsr.errors import TooFewImagesError
from dlsr.method.lfdn import LFDN, RestorationNetwork
from dlsr.scorers.base import (
    Digests,
    KnnScorer,
    MahalanobisScorer,
    PaperScorer,
    ReconstructionScorer,
    ResidualScorer,
    Scorer,
    without_prefix,
)
from dlsr.scorers.expected_error import ErrorAwareLFDN
from dlsr.scorers.gaussian import Gaussian
from dlsr.scorers.reconstruction import AutoEncoder, FeatureVAE, Reconstructor
from dlsr.training.checkpoint import Checkpoint
from dlsr.training.data import Rows
from dlsr.training.distributed import ALONE, Ranks
from dlsr.training.loop import (
    EpochLog,
    Loss,
    TrainingState,
    most_epochs,
    new_state,
    reconstruction_loss,
    restoration_loss,
    train,
)

SMALLEST_TRAINING_SET = 20
VALIDATION_SHARE = 0.05
CALIBRATION_SHARE = 0.10
MOST_HELD_OUT = 50_000
"""Validation, and calibration unless the false-alarm rate needs more, take no more rows than this."""

OnEpoch = Callable[[EpochLog, int], None]
"""Told of each epoch done, and of how many there are at most."""


@dataclass(frozen=True)
class Split:
    """Which rows train, which decide when to stop and how to scale, and which calibrate: disjoint, at random."""

    training: NDArray[np.intp]
    validation: NDArray[np.intp]
    calibration: NDArray[np.intp]


def split(n: int, rate: float, seed: int) -> Split:
    """Split `n` rows; calibration gets a tenth (50,000 at most), or what the false-alarm rate needs if that is more.

    Raises:
        TooFewImagesError: if that leaves too few to train on.
    """
    calibration = max(min(math.ceil(CALIBRATION_SHARE * n), MOST_HELD_OUT), math.ceil(1 / rate - 1 - 1e-9))
    validation = max(min(math.ceil(VALIDATION_SHARE * n), MOST_HELD_OUT), 5)
    training = n - calibration - validation
    if training < SMALLEST_TRAINING_SET:
        smallest = SMALLEST_TRAINING_SET + validation + math.ceil(1 / rate - 1 - 1e-9)
        raise TooFewImagesError(
            f"{n} readable images are too few to fit with a false-alarm rate of {rate:g}: give at least {smallest}, "
            "or allow a higher rate"
        )
    order = np.random.default_rng(seed).permutation(n)
    return Split(order[:training], order[training : training + validation], order[training + validation :])


def fit_scorer(
    settings: Settings,
    channels: tuple[int, ...],
    training: Rows,
    validation: Tensor,
    validation_digests: Digests,
    checkpoint: Checkpoint | None = None,
    on_epoch: OnEpoch | None = None,
    ranks: Ranks = ALONE,
) -> tuple[Scorer, list[EpochLog]]:
    """Learn what in-distribution features are.

    Args:
        settings: which score, and all that goes with it.
        channels: dimensions of each layer.
        training: features, shape `(N, c)`, on the device to train on, in memory or not.
        validation: held-out ID features, shape `(V, c)`, likewise.
        validation_digests: their content digests, shape `(V, 16)`.
        checkpoint: where the state of training is kept between epochs, and taken up again.
        on_epoch: told of each epoch.
        ranks: the processes that train together.

    Returns:
        The scorer, and the losses of each epoch if there were any.
    """
    if settings.score == "mahalanobis":
        return MahalanobisScorer(Gaussian.fit(training), channels), []
    if settings.score == "knn":
        generator = torch.Generator().manual_seed(settings.seed)
        chosen = torch.randperm(len(training), generator=generator)[: settings.references]
        return KnnScorer(training.take(chosen), settings.neighbours, channels), []
    if settings.score == "residual":
        gaussian = Gaussian.fit(training)
        aware = _error_aware(settings, channels, gaussian)
        rows = training.map(gaussian.coordinates), gaussian.coordinates(validation)
        state = _train(aware, *rows, settings, checkpoint, on_epoch, ranks)
        aware.load_state_dict(state.best)
        return ResidualScorer.standardised(aware.eval(), settings, validation, validation_digests), state.log
    if settings.score in ("autoencoder", "feature-vae"):
        reconstructor = _reconstructor(settings, channels, training.device)
        state = _train(reconstructor, training, validation, settings, checkpoint, on_epoch, ranks)
        reconstructor.load_state_dict(state.best)
        return ReconstructionScorer(reconstructor.eval(), channels), state.log
    network = _lfdn(settings, channels, training.device)
    state = _train(network, training, validation, settings, checkpoint, on_epoch, ranks)
    network.load_state_dict(state.best)
    initial = _lfdn(settings, channels, training.device)
    initial.load_state_dict(state.initial)
    return PaperScorer(settings.score, network.eval(), initial.eval(), settings, channels), state.log


def _train(
    network: RestorationNetwork | Reconstructor,
    training: Rows,
    validation: Tensor,
    settings: Settings,
    checkpoint: Checkpoint | None,
    on_epoch: OnEpoch | None,
    ranks: Ranks,
) -> TrainingState:
    if isinstance(network, Reconstructor):
        loss = reconstruction_loss(network)
    else:
        loss = restoration_loss(network, settings.schedule.alpha_bar().to(training.device))
    return train_to_end(
        network,
        training,
        validation,
        loss,
        settings.training,
        settings.seed,
        checkpoint=checkpoint,
        on_epoch=on_epoch,
        ranks=ranks,
    )


def train_to_end(
    network: nn.Module,
    training: Rows,
    validation: Tensor,
    loss: Loss,
    settings: TrainingSettings,
    seed: int,
    *,
    checkpoint: Checkpoint | None = None,
    on_epoch: OnEpoch | None = None,
    ranks: Ranks = ALONE,
) -> TrainingState:
    """Train, from where a checkpoint of the same training stands, to the end; see `dlsr.training.loop.train`.

    The first of the processes reads and writes the checkpoint.
    """
    kept = ranks.from_first(checkpoint.load() if checkpoint and ranks.is_first else None)
    state = kept or new_state(network)
    for done in train(network, training, validation, loss, settings, seed, state, ranks):
        state = done
        if checkpoint and ranks.is_first:
            checkpoint.save(state)
        if on_epoch:
            on_epoch(state.log[-1], most_epochs(settings, len(training)))
    return state


def restored_scorer(
    settings: Settings, channels: tuple[int, ...], tensors: Mapping[str, Tensor], device: torch.device
) -> Scorer:
    """The scorer whose `tensors()` these are.

    Raises:
        KeyError, RuntimeError: if they are not a scorer's of these settings.
    """
    if settings.score == "mahalanobis":
        return MahalanobisScorer(Gaussian(**without_prefix("gaussian", tensors)), channels)
    if settings.score == "knn":
        return KnnScorer(tensors["references"], settings.neighbours, channels)
    if settings.score == "residual":
        aware = _error_aware(settings, channels, Gaussian(**without_prefix("gaussian", tensors)))
        aware.load_state_dict(without_prefix("network", tensors))
        return ResidualScorer(aware.eval(), settings, tensors["ceiling"], tensors["location"], tensors["spread"])
    if settings.score in ("autoencoder", "feature-vae"):
        reconstructor = _reconstructor(settings, channels, device)
        reconstructor.load_state_dict(without_prefix("network", tensors))
        return ReconstructionScorer(reconstructor.eval(), channels)
    network, initial = (_lfdn(settings, channels, device) for _ in range(2))
    network.load_state_dict(without_prefix("network", tensors))
    initial.load_state_dict(without_prefix("initial", tensors))
    return PaperScorer(settings.score, network.eval(), initial.eval(), settings, channels)


def _lfdn(settings: Settings, channels: tuple[int, ...], device: torch.device) -> LFDN:
    c = sum(channels)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        return LFDN(c, settings.network.width or 2 * c, settings.network.blocks).to(device)


def _reconstructor(settings: Settings, channels: tuple[int, ...], device: torch.device) -> Reconstructor:
    c = sum(channels)
    width = settings.network.width or 2 * c
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        if settings.score == "autoencoder":
            return AutoEncoder(c, width, settings.network.blocks).to(device)
        return FeatureVAE(c, width, settings.latent).to(device)


def _error_aware(settings: Settings, channels: tuple[int, ...], gaussian: Gaussian) -> ErrorAwareLFDN:
    width = settings.network.width or 2 * sum(channels)
    alpha_bar = settings.schedule.alpha_bar()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        network = ErrorAwareLFDN(gaussian, channels, width, settings.network.blocks, alpha_bar)
    return network.to(gaussian.mean.device)
