"""A variational autoencoder of features (appendix C.5, table 11)."""

from typing import ClassVar

from pydantic import Field
from torch import Tensor, nn

from dlsr.scorers.base import register
from dlsr.scorers.reconstruction import ReconstructionScorer, Reconstructor
from dlsr.scorers.settings import SMALL_TRAINING, TrainedSettings

VAE_ENCODER_LAYERS = 5
VAE_DECODER_LAYERS = 8
TINY = 1e-6
"""Keeps the logarithm finite."""
FREE = 0.5
"""Nats that each dimension of the code may carry without a penalty, for each sample. Kingma et al. 2016 ("free bits")
average over the samples first, which depends on the batch."""


class FeatureVAESettings(TrainedSettings):
    """Settings of `FeatureVAEScorer`."""

    latent: int = Field(default=128, ge=1, le=2**16, description="Dimension of the feature VAE's code.")


class FeatureVAE(Reconstructor):
    """A VAE of linear layers, five to encode and eight to decode (table 11); sizes are not in the paper.

    The layer norms between them are not in the paper either; without them so deep a network hardly learns.

    Args:
        c: dimension of the features.
        width: of the hidden layers.
        latent: dimension of the code.
    """

    def __init__(self, c: int, width: int, latent: int) -> None:
        super().__init__()
        self.latent = latent
        self.encoder = _layers(c, width, 2 * latent, VAE_ENCODER_LAYERS)
        self.decoder = _layers(latent, width, c, VAE_DECODER_LAYERS)

    def forward(self, z0: Tensor) -> Tensor:
        """See `Reconstructor`; the code is its mean."""
        restored: Tensor = self.decoder(self.encoder(z0)[:, : self.latent])
        return restored

    def loss(self, z0: Tensor, noise: Tensor) -> Tensor:
        """The negative evidence bound over `c`, with free bits and up to a constant; features have shape `(n, c)`.

        Features vary by less than 1 along most directions, so with a decoder of unit variance the posterior collapses:
        all reconstructions are the same. Here the variance is the one that fits best, for each sample its mean squared
        error (Rybkin et al. 2021), and each dimension of the code may carry `FREE` nats without a penalty.
        """
        mean, log_variance = self.encoder(z0).float().chunk(2, dim=1)
        restored = self.decoder(mean + (log_variance / 2).exp() * noise)
        nats = (mean.square() + log_variance.exp() - 1 - log_variance) / 2
        errors = (restored - z0).square().mean(dim=1)
        bound: Tensor = (errors + TINY).log().mean() / 2 + nats.clamp(min=FREE).sum(dim=1).mean() / z0.shape[1]
        return bound


def _layers(before: int, width: int, after: int, count: int) -> nn.Sequential:
    sizes = [before, *[width] * (count - 1)]
    layers: list[nn.Module] = []
    for i in range(count - 1):
        layers += [nn.Linear(sizes[i], sizes[i + 1]), nn.LayerNorm(width), nn.SiLU()]
    return nn.Sequential(*layers, nn.Linear(sizes[-1], after))


@register
class FeatureVAEScorer(ReconstructionScorer):
    """MFsim of features and their reconstruction by a VAE."""

    name = "feature-vae"
    summary = "cosine similarity with a VAE's reconstruction (the paper's table 11)"
    Settings = FeatureVAESettings
    presets: ClassVar = {
        "paper": FeatureVAESettings(),
        "default": FeatureVAESettings(width=256, **SMALL_TRAINING),
        "fast": FeatureVAESettings(width=64, **SMALL_TRAINING),
    }

    settings: FeatureVAESettings

    def build(self, c: int, width: int) -> Reconstructor:
        """See `ReconstructionScorer`."""
        return FeatureVAE(c, width, self.settings.latent)
