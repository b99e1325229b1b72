"""What the paper compares LFDN with on the same features: an autoencoder and a VAE (appendix B.2, table 11)."""

from abc import abstractmethod

from torch import Tensor, nn
from torch.nn import functional as F

from dlsr.method.lfdn import OneGroupNorm, ResBlock

VAE_ENCODER_LAYERS = 5
VAE_DECODER_LAYERS = 8


class Reconstructor(nn.Module):
    """A network that gives back features; restored badly is out of distribution."""

    latent = 0
    """Numbers of noise that the loss takes for each row."""

    @abstractmethod
    def forward(self, z0: Tensor) -> Tensor:
        """The reconstruction: `(N, c)` to `(N, c)`."""

    @abstractmethod
    def loss(self, z0: Tensor, noise: Tensor) -> Tensor:
        """Loss of a batch `z0`, shape `(N, c)`, with standard normal noise, shape `(N, latent)`: shape `()`."""


class AutoEncoder(Reconstructor):
    """LFDN without the time embedding (appendix B.2). Arguments as for `LFDN`."""

    def __init__(self, c: int, width: int, blocks: int) -> None:
        super().__init__()
        self.linear_in = nn.Linear(c, width)
        self.blocks = nn.Sequential(*(ResBlock(width, None) for _ in range(blocks)))
        self.norm_out = OneGroupNorm(width)
        self.linear_out = nn.Linear(width, c)

    def forward(self, z0: Tensor) -> Tensor:
        """See `Reconstructor`."""
        restored: Tensor = self.linear_out(F.silu(self.norm_out(self.blocks(self.linear_in(z0)))))
        return restored

    def loss(self, z0: Tensor, noise: Tensor) -> Tensor:
        """Mean squared error."""
        return F.mse_loss(self(z0), z0)


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
        """The negative evidence bound over `c`, for a decoder of unit variance."""
        mean, log_variance = self.encoder(z0).float().chunk(2, dim=1)
        restored = self.decoder(mean + (log_variance / 2).exp() * noise)
        divergence = (mean.square() + log_variance.exp() - 1 - log_variance).sum(dim=1).mean() / 2
        bound: Tensor = F.mse_loss(restored, z0) / 2 + divergence / z0.shape[1]
        return bound


def _layers(before: int, width: int, after: int, count: int) -> nn.Sequential:
    sizes = [before, *[width] * (count - 1)]
    layers: list[nn.Module] = []
    for i in range(count - 1):
        layers += [nn.Linear(sizes[i], sizes[i + 1]), nn.LayerNorm(width), nn.SiLU()]
    return nn.Sequential(*layers, nn.Linear(sizes[-1], after))
