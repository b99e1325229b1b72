"""anomalib's Fre and Dfm on the same features: what users would reach for today.

Their own encoders and pooling are left out, so that methods are compared and not encoders: the parts are
anomalib's, the features ours.
"""

from dataclasses import dataclass
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dlsr.baselines.base import Watch
from dlsr.baselines.encoded import EncodedBaseline
from dlsr.config import TrainingSettings
from dlsr.errors import MissingExtraError
from dlsr.training.loop import Draws

REFERENCES = 20_000


@dataclass(kw_only=True, repr=False, eq=False)
class AnomalibFre(EncodedBaseline):
    """Reconstruction error of a tied linear autoencoder (Ndiour et al. 2023).

    Args:
        latent: dimension of the code; anomalib's default.
        epochs: of training; likewise.
        batch_size: likewise.
        lr: likewise.
    """

    name = "anomalib+fre"

    latent: int = 220
    epochs: int = 220
    batch_size: int = 256
    lr: float = 1e-3

    def _build(self, classes: int) -> nn.Module:
        network: nn.Module = _part("image.fre.torch_model", "TiedAE")(self._loaded_encoder().c, self.latent)
        return network

    def _learn(self, features: Tensor, labels: Tensor | None, watch: Watch) -> None:
        def loss(rows: Tensor, draws: Draws) -> Tensor:
            return F.mse_loss(self.network_(rows), rows)

        settings = TrainingSettings(
            epochs=self.epochs, batch_size=self.batch_size, lr=self.lr, weight_decay=0, ema_decay=0.999
        )
        self._train(features, loss, settings, watch)

    @torch.no_grad()
    def _scores(self, features: Tensor) -> Tensor:
        error: Tensor = (self.network_(features) - features).square().sum(dim=1)
        return error


@dataclass(kw_only=True, repr=False, eq=False)
class AnomalibDfm(EncodedBaseline):
    """What principal components leave out (Ahuja et al. 2019), anomalib's default score of its Dfm.

    Args:
        variance: share of the variance that the components keep; anomalib's default.
    """

    name = "anomalib+dfm"

    variance: float = 0.97

    def _build(self, classes: int) -> nn.Module:
        network: nn.Module = _part("components", "PCA")(n_components=self.variance)
        return network

    def _learn(self, features: Tensor, labels: Tensor | None, watch: Watch) -> None:
        chosen = torch.randperm(len(features))[:REFERENCES].to(features.device)
        self._pca().fit(features[chosen])
        self.log_ = []

    @torch.no_grad()
    def _scores(self, features: Tensor) -> Tensor:
        # anomalib's transform takes the mean off in place, and its inverse does not put it back.
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
        raise MissingExtraError("anomalib", "rivals") from None
