"""Distance to the k-th nearest training image (Sun et al. 2022, on `z0`)."""

from collections.abc import Sequence

import torch
from pydantic import Field
from torch import Tensor

from dlsr.method.scores import layer_means
from dlsr.scorers.base import MOST_LEFT_OUT, FitData, LayerScores, Scorer, in_every_preset, register
from dlsr.scorers.neighbours import Neighbours
from dlsr.scorers.settings import ScorerSettings
from dlsr.training.log import EpochLog
from dlsr.training.loop import Trainer


class KnnSettings(ScorerSettings):
    """Settings of `KnnScorer`."""

    neighbours: int = Field(
        default=50, ge=1, description="The k of the k-th nearest neighbour; at most half of the training images."
    )
    references: int = Field(default=20_000, ge=1, description="At most this many training images are kept.")


@register
class KnnScorer(Scorer):
    """Distance to the k-th nearest training image; a layer's share is its own distance to that image.

    `k` is at most half the number of training images kept. If it were all of them, a new image would be compared with
    the farthest of one more than an image that is left out, and calibration would be wrong.
    """

    name = "knn"
    summary = "distance to the k-th nearest training image"
    Settings = KnnSettings
    presets = in_every_preset(KnnSettings())
    needs_validation = False

    settings: KnnSettings
    rank: Tensor

    def __init__(self, settings: KnnSettings, channels: Sequence[int]) -> None:
        super().__init__(settings, channels)
        self.neighbours = Neighbours(sum(channels))
        self.register_buffer("rank", torch.ones((), dtype=torch.int64))
        self.fewest_rows = settings.neighbours + 1

    def fit(self, data: FitData, trainer: Trainer) -> list[EpochLog]:
        """See `Scorer`."""
        generator = torch.Generator().manual_seed(data.settings.seed)
        chosen = torch.randperm(len(data.training), generator=generator)[: self.settings.references].sort().values
        z0 = data.training.take(chosen)
        self.neighbours.keep(z0)
        rank = max(min(self.settings.neighbours, len(z0) // 2), 1)
        self.rank = torch.tensor(rank, device=z0.device)
        if self.leaves_out(len(data.training)):
            groups = data.groups.to(z0.device)
            kth = torch.cat(
                [
                    self.neighbours.nearest_others(batch, rank, groups)[:, -1]
                    for batch in torch.split(torch.arange(len(z0), device=z0.device), self.batch)
                ]
            )
            self.left_out = self._to(kth, z0)
        return []

    def leaves_out(self, n: int) -> bool:
        """See `Scorer`."""
        return n <= min(self.settings.references, MOST_LEFT_OUT)

    def forward(self, z0: Tensor, noise: Tensor) -> LayerScores:
        """See `Scorer`."""
        nearest = self.neighbours.nearest(z0, self.settings.neighbours)
        return self._to(nearest.index_select(1, self.rank.reshape(1) - 1).squeeze(1), z0)

    def _to(self, kth: Tensor, z0: Tensor) -> LayerScores:
        squares = self.neighbours.differences(z0, kth).square()
        return squares.sum(dim=1).sqrt(), layer_means(squares, self.channels).sqrt()
