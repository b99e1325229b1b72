"""Distance to the k-th nearest training image (Sun et al. 2022, on `z0`)."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from pydantic import Field
from torch import Tensor

from dlsr.method.scores import layer_means
from dlsr.scorers.base import FitData, LayerScores, Scorer, in_every_preset, register
from dlsr.scorers.settings import ScorerSettings
from dlsr.training.loop import Trainer
from dlsr.training.state import EpochLog


class KnnSettings(ScorerSettings):
    """Settings of `KnnScorer`."""

    neighbours: int = Field(default=50, ge=1, description="The k of the k-th nearest neighbour.")
    references: int = Field(default=20_000, ge=1, description="At most this many training images are kept.")


@register
class KnnScorer(Scorer):
    """Distance to the k-th nearest training image; a layer's share is its own distance to that image.

    In torch rather than scikit-learn, whose search cannot become part of a graph; tested against it.
    """

    name = "knn"
    summary = "distance to the k-th nearest training image"
    Settings = KnnSettings
    presets = in_every_preset(KnnSettings())

    settings: KnnSettings
    references: Tensor
    centre: Tensor
    centred: Tensor
    squares: Tensor

    def __init__(self, settings: KnnSettings, channels: Sequence[int]) -> None:
        super().__init__(settings, channels)
        self.register_buffer("references", torch.empty(0, sum(channels)))
        for name in ("centre", "centred", "squares"):
            self.register_buffer(name, torch.empty(0), persistent=False)

    def fit(self, data: FitData, trainer: Trainer) -> list[EpochLog]:
        """See `Scorer`."""
        generator = torch.Generator().manual_seed(data.settings.seed)
        chosen = torch.randperm(len(data.training), generator=generator)[: self.settings.references]
        self._keep(data.training.take(chosen))
        return []

    def forward(self, z0: Tensor, noise: Tensor) -> LayerScores:
        """See `Scorer`."""
        # A sample's own square adds the same to all its distances, so the order does not need it.
        order = self.squares - 2 * (z0 - self.centre) @ self.centred
        neighbours = min(self.settings.neighbours, len(self.references))
        kth = order.topk(neighbours, dim=1, largest=False).indices[:, -1]
        squares = (z0 - self.references[kth]).square()
        return squares.sum(dim=1).sqrt(), layer_means(squares, self.channels).sqrt()

    def _keep(self, references: Tensor) -> None:
        self.references = references
        # Products of centred features lose fewer digits; the distance itself is then taken from the differences.
        self.centre = references.mean(dim=0)
        self.centred = (references - self.centre).T.contiguous()
        self.squares = self.centred.square().sum(dim=0)

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *rest: Any) -> None:
        # How many references there are is known only now.
        references = state_dict.get(f"{prefix}references")
        if isinstance(references, Tensor) and references.shape[1:] == self.references.shape[1:]:
            self._keep(references.to(self.references.device))
        super()._load_from_state_dict(state_dict, prefix, *rest)
