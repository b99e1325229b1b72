"""anomalib's Fre and Dfm on the features of this project's encoders.

Only their scores are used, not their own encoders and pooling, so that methods are compared and not encoders.
"""

from dataclasses import dataclass
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dlsr.baselines.encoded import EncodedBaseline
from dlsr.config import TrainingSettings
from dlsr.errors import MissingExtraError
from dlsr.training.loop import Draws, Trainer

REFERENCES = 20_000
"""At most this many training samples fit the principal components."""


@dataclass(kw_only=True, repr=False, eq=False)
class AnomalibFre(EncodedBaseline):
    """Reconstruction error of a tied linear autoencoder (Ndiour et al. 2023).

    Args:
        latent: dimension of the code. All defaults are anomalib's.
        epochs: epochs of training.
        batch_size: samples in a training step.
        lr: learning rate.
    """

    name = "anomalib+fre"

    latent: int = 220
    epochs: int = 220
    batch_size: int = 256
    lr: float = 1e-3

    def _build(self, classes: int) -> nn.Module:
        network: nn.Module = _part("image.fre.torch_model", "TiedAE")(self._c(), self.latent)
        return network

    def _learn(self, features: Tensor, labels: Tensor | None, trainer: Trainer) -> None:
        def loss(samples: Tensor, draws: Draws) -> Tensor:
            return F.mse_loss(self.network_(samples), samples)

        settings = TrainingSettings(
            epochs=self.epochs, batch_size=self.batch_size, lr=self.lr, weight_decay=0, ema_decay=0.999
        )
        self._train(features, loss, settings, trainer)

    @torch.no_grad()
    def _scores(self, features: Tensor) -> Tensor:
        error: Tensor = (self.network_(features) - features).square().sum(dim=1)
        return error


@dataclass(kw_only=True, repr=False, eq=False)
class AnomalibDfm(EncodedBaseline):
    """Reconstruction error of principal components (Ahuja et al. 2019), the default score of anomalib's Dfm.

    Args:
        variance: share of the variance that the components keep; anomalib's default.
    """

    name = "anomalib+dfm"

    variance: float = 0.97

    def _build(self, classes: int) -> nn.Module:
        network: nn.Module = _part("components", "PCA")(n_components=self.variance)
        return network

    def _learn(self, features: Tensor, labels: Tensor | None, trainer: Trainer) -> None:
        self._pca().fit(self._random_subset(features, REFERENCES))
        self.log_ = []

    @torch.no_grad()
    def _scores(self, features: Tensor) -> Tensor:
        # anomalib's transform subtracts the mean in place, and its inverse does not add it again.
        pca = self._pca()
        error: Tensor = (
            (features - pca.mean - pca.inverse_transform(pca.transform(features.clone()))).square().sum(dim=1)
        )
        return error

    def _pca(self) -> Any:
        return self.network_


def _part(module: str, name: str) -> Any:
    try:
        return getattr(import_module(f"anomalib.models.{module}"), name)
    except ImportError:
        raise MissingExtraError("anomalib", "compare") from None
