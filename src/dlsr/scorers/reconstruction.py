"""What the paper compares LFDN with on the same features (appendix C.5, table 11): networks that reconstruct `z0`."""

from abc import abstractmethod
from collections.abc import Sequence

from torch import Tensor, nn

from dlsr.method.scores import layer_similarities, mfsim
from dlsr.scorers.base import FitData, LayerScores, Scorer
from dlsr.scorers.settings import TrainedSettings
from dlsr.training.log import EpochLog
from dlsr.training.loop import Draws, Trainer


class Reconstructor(nn.Module):
    """A network that reconstructs features; features that it reconstructs badly are out of distribution."""

    latent = 0
    """Dimensions of the noise that the loss needs for each sample."""

    @abstractmethod
    def forward(self, z0: Tensor) -> Tensor:
        """The reconstruction: `(N, c)` to `(N, c)`."""

    @abstractmethod
    def loss(self, z0: Tensor, noise: Tensor) -> Tensor:
        """Loss of a batch `z0`, shape `(N, c)`, with standard normal noise, shape `(N, latent)`: shape `()`."""


class ReconstructionScorer(Scorer):
    """Base: MFsim of features and their reconstruction."""

    settings: TrainedSettings

    def __init__(self, settings: TrainedSettings, channels: Sequence[int]) -> None:
        super().__init__(settings, channels)
        c = sum(channels)
        self.reconstructor = self.build(c, settings.width or 2 * c)

    @abstractmethod
    def build(self, c: int, width: int) -> Reconstructor:
        """The untrained network for features of dimension `c`."""

    def fit(self, data: FitData, trainer: Trainer) -> list[EpochLog]:
        """See `Scorer`."""
        state = trainer.train(self.reconstructor, data.training, data.validation, self.loss, self.settings, data.key)
        self.reconstructor.load_state_dict(state.best)
        return state.log

    def loss(self, z0: Tensor, draws: Draws) -> Tensor:
        """The network's loss on features `z0`, shape `(N, c)`: shape `()`."""
        return self.reconstructor.loss(z0, draws.normal(self.reconstructor.latent))

    def forward(self, z0: Tensor, noise: Tensor) -> LayerScores:
        """See `Scorer`."""
        similarities = layer_similarities(z0, self.reconstructor(z0), self.channels)
        return mfsim(similarities), -similarities
