"""The squared Mahalanobis distance (Lee et al. 2018, without classes)."""

from collections.abc import Sequence

import torch
from torch import Tensor

from dlsr.method.scores import layer_means
from dlsr.scorers.base import MOST_LEFT_OUT, FitData, LayerScores, Scorer, in_every_preset, register
from dlsr.scorers.gaussian import Gaussian
from dlsr.scorers.settings import ScorerSettings
from dlsr.training.log import EpochLog
from dlsr.training.loop import Trainer


@register
class MahalanobisScorer(Scorer):
    """Mean squared whitened feature: the squared Mahalanobis distance over `c`."""

    name = "mahalanobis"
    summary = "squared Mahalanobis distance to the training features"
    presets = in_every_preset(ScorerSettings())
    needs_validation = False

    def __init__(self, settings: ScorerSettings, channels: Sequence[int]) -> None:
        super().__init__(settings, channels)
        self.gaussian = Gaussian(sum(channels))

    def fit(self, data: FitData, trainer: Trainer) -> list[EpochLog]:
        """See `Scorer`."""
        self.gaussian.fit(data.training)
        if self.leaves_out(len(data.training)):
            z0 = torch.cat(list(data.training))
            growth = self.gaussian.growth_without(z0, data.groups.to(z0.device), len(z0))
            scores, layers = self(z0, z0[:, None, :0])
            self.left_out = growth * scores, growth[:, None] * layers
        return []

    def leaves_out(self, n: int) -> bool:
        """See `Scorer`."""
        return n <= MOST_LEFT_OUT

    def forward(self, z0: Tensor, noise: Tensor) -> LayerScores:
        """See `Scorer`."""
        squares = self.gaussian.whiten(z0).square()
        return squares.mean(dim=1), layer_means(squares, self.channels)
