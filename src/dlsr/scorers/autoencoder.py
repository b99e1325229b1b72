"""LFDN without time and noise, as an autoencoder (appendix B.2, table 11)."""

from typing import ClassVar

from torch import Tensor, nn
from torch.nn import functional as F

from dlsr.method.lfdn import OneGroupNorm, ResBlock
from dlsr.scorers.base import register
from dlsr.scorers.reconstruction import ReconstructionScorer, Reconstructor
from dlsr.scorers.settings import SMALL_TRAINING, ResidualMLPSettings


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
        """Mean squared error of features, shape `(n, c)`; the noise is not used."""
        return F.mse_loss(self(z0), z0)


@register
class AutoEncoderScorer(ReconstructionScorer):
    """MFsim of features and their reconstruction by an autoencoder."""

    name = "autoencoder"
    summary = "cosine similarity with an autoencoder's reconstruction (the paper's table 11)"
    Settings = ResidualMLPSettings
    presets: ClassVar = {
        "paper": ResidualMLPSettings(),
        "default": ResidualMLPSettings(width=256, blocks=1, **SMALL_TRAINING),
        "fast": ResidualMLPSettings(width=64, blocks=1, **SMALL_TRAINING),
    }

    settings: ResidualMLPSettings

    def build(self, c: int, width: int) -> Reconstructor:
        """See `ReconstructionScorer`."""
        return AutoEncoder(c, width, self.settings.blocks)
