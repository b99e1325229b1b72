"""Restoration from the nearest training images: the score of the presets `default` and `fast`.

The paper trains a network to restore distorted features and takes the error that is left as the score. Here an image is
restored from the training images nearest to it, which needs no training and leaves ID and OOD images further apart on
most datasets (docs/results.md). The score has three parts, which are weak on different datasets:

- the error of the restoration;
- the distance to a near training image, of a few hundred and more not to the nearest ones, among which there may be
  intruders;
- the Mahalanobis distance, which sees what all images have in common.

A folder is seldom clean: a few training images do not belong. Those unusually far from the others are left out, so that
an intruder does not make its like look in distribution.

Each part enters by its logarithm, standardised on the training images. These are scored as if they had been left out
one by one, so no image has to be held out for it, and those unlike the rest can be found.
"""

import math
from collections.abc import Sequence
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from dlsr.errors import TooFewImagesError
from dlsr.method.local import restoration_error
from dlsr.method.scores import layer_means
from dlsr.scorers.base import MOST_LEFT_OUT, FitData, LayerScores, Scorer, register
from dlsr.scorers.gaussian import Gaussian
from dlsr.scorers.neighbours import Neighbours
from dlsr.scorers.settings import ScorerSettings
from dlsr.training.data import Samples
from dlsr.training.log import EpochLog
from dlsr.training.loop import Trainer

TINY = 1e-6
"""Keeps logarithms and divisions finite."""
RIDGE = 0.1
"""Of the Gaussian, see `dlsr.scorers.gaussian.RIDGE`: the large variances are what the other parts do not see."""
DISTANT = 20
"""The distance is that to this neighbour; if there are fewer than `DISTANT * ONE_IN` images, to a nearer one."""
ONE_IN = 150
"""The distance is that to the first neighbour if there are no more images than this."""
SEARCHED = 256
"""Neighbours are searched along this many principal components, those with the largest variances."""
CROWD, FEWEST_OF_CROWD = 0.05, 50
"""Training images far from their neighbour of this rank, as a share of all, are left out. The rank is at least 50, but
at most a quarter of all. The number of intruders grows with the folder: at a fixed rank they would be each other's
neighbours."""
UNUSUAL = 2.0
"""This many standard deviations above the median of the log distances; those of the lower half, without intruders."""
FEWEST = 5
"""Training images."""


class LocalSettings(ScorerSettings):
    """Settings of `LocalScorer`."""

    neighbours: int = Field(default=20, ge=2, le=1000, description="Training images that an image is restored from.")
    references: int = Field(default=10_000, ge=FEWEST, description="At most this many training images are kept.")
    distance_weight: float = Field(default=0.25, ge=0, description="Weight of the log distance to a neighbour.")
    gaussian_weight: float = Field(default=0.3, ge=0, description="Weight of the log Mahalanobis distance.")
    trim: float = Field(
        default=0.05,
        ge=0,
        lt=0.5,
        description="At most this share of the training images, those unusually far from the others, is left out.",
    )


@register
class LocalScorer(Scorer):
    """Error of the restoration from the nearest training images, distance to them, and Mahalanobis distance.

    An image's score is the weighted sum of the three logarithms, each standardised on the training images; so is that
    of a layer, from its share of each.
    """

    name = "local"
    summary = "error of restoring an image from the nearest training images, their distance, and Mahalanobis distance"
    Settings = LocalSettings
    presets: ClassVar = {"default": LocalSettings(), "fast": LocalSettings(neighbours=10, references=2_000)}
    needs_validation = False

    batch = 64  # so that the neighbours of all samples fit into the processor's cache

    settings: LocalSettings
    references: Tensor
    rank: Tensor
    location: Tensor
    spread: Tensor
    weights: Tensor

    def __init__(self, settings: LocalSettings, channels: Sequence[int]) -> None:
        super().__init__(settings, channels)
        c, columns = sum(channels), 1 + len(channels)
        self.gaussian = Gaussian(c)
        self.search = Neighbours(min(c, SEARCHED))
        self.register_buffer("references", torch.zeros(0, c))
        self.register_buffer("rank", torch.ones((), dtype=torch.int64))
        self.fewest_rows = self._searched_for + 1
        # For the whole image and for each layer.
        self.register_buffer("location", torch.zeros(3, columns))
        self.register_buffer("spread", torch.ones(3, columns))
        weights = torch.tensor([[1.0], [settings.distance_weight], [settings.gaussian_weight]])
        self.register_buffer("weights", weights, persistent=False)

    def fit(self, data: FitData, trainer: Trainer) -> list[EpochLog]:
        """See `Scorer`. Raises TooFewImagesError for fewer than five training images."""
        training = data.training
        if len(training) < FEWEST:
            raise TooFewImagesError(f"the score '{self.name}' needs {FEWEST} training images, got {len(training)}")
        generator = torch.Generator().manual_seed(data.settings.seed)
        chosen = torch.randperm(len(training), generator=generator)[: self.settings.references].sort().values
        references = training.take(chosen)
        self._search_among(references, training)
        groups = data.groups.to(references.device)[chosen]
        belong = self._belonging(training, chosen, groups)
        # One that does not belong is scored as a new image. None of its group may be a reference then, so it stays if
        # another one of its group does.
        belong = torch.isin(data.groups, data.groups[belong])
        kept = belong[chosen]
        fitted = training.subset(belong.nonzero().squeeze(1))
        self._search_among(references[kept], fitted)
        scored = torch.full((len(training), 1 + len(self.channels)), torch.nan, device=references.device)
        scored[chosen[kept]] = torch.column_stack(self._standardise(groups[kept], len(fitted)))
        for few in torch.split(chosen[~kept], self.batch):
            z0 = training.take(few)
            scored[few] = torch.column_stack(self(z0, z0[:, None, :0]))
        self.left_out = scored[:, 0], scored[:, 1:]
        return []

    def leaves_out(self, n: int) -> bool:
        """See `Scorer`."""
        return n <= min(self.settings.references, MOST_LEFT_OUT)

    def _search_among(self, references: Tensor, training: Samples) -> None:
        """Search among references, along the principal components of the training images."""
        self.gaussian.fit(training, RIDGE)
        self.references = references
        # Intruders of a kind grow in number with all images.
        self.rank = torch.tensor(min(math.ceil(len(references) / ONE_IN), DISTANT), device=references.device)
        self.search.keep(self._searched(self.gaussian.coordinates(references)))

    def _belonging(self, training: Samples, chosen: Tensor, groups: Tensor) -> Tensor:
        """Which training images are used, shape `(N,)`: all but those farthest from the references.

        References are the chosen images, whose groups are given. Distances are those to a neighbour so far down the
        list that a few intruders of a kind do not count as company.
        """
        if not self.settings.trim:
            return torch.ones(len(training), dtype=torch.bool)
        references, centre = self.search.centred, self.search.centre
        n = len(references)
        k = max(int(CROWD * n), min(FEWEST_OF_CROWD, n // 4), 1)

        def to_last(samples: Tensor, nearest: Tensor) -> Tensor:
            return (samples - references[nearest[:, -1]]).square().sum(dim=1)

        among = torch.cat([to_last(references[i], self.search.nearest_others(i, k, groups)) for i in self._batches(n)])
        low, median = among.clamp(min=torch.finfo().tiny).log().quantile(among.new_tensor([0.16, 0.5]))
        usual = (median + UNUSUAL * (median - low)).exp()
        farthest = torch.maximum(usual, among.quantile(1 - self.settings.trim, interpolation="higher"))
        distances = among.new_empty(len(training))
        if n < len(training):
            samples = training.map(lambda z0: self._searched(self.gaussian.coordinates(z0)))
            batches = (batch for part in samples for batch in torch.split(part, self.batch))
            distances = torch.cat([to_last(batch - centre, self.search.nearest(batch, k)) for batch in batches])
        distances[chosen] = among
        return (distances <= farthest).cpu()

    def _batches(self, n: int) -> Sequence[Tensor]:
        return torch.split(torch.arange(n, device=self.references.device), self.batch)

    def forward(self, z0: Tensor, noise: Tensor) -> LayerScores:
        """See `Scorer`."""
        coordinates = self.gaussian.coordinates(z0)
        nearest = self.search.nearest(self._searched(coordinates), self._searched_for)
        return self._joined(self._parts(z0, coordinates, nearest))

    @property
    def _searched_for(self) -> int:
        return max(self.settings.neighbours, DISTANT)

    @staticmethod
    def _searched(coordinates: Tensor) -> Tensor:
        return coordinates[:, -SEARCHED:]

    def _parts(self, z0: Tensor, coordinates: Tensor, nearest: Tensor) -> Tensor:
        """Log mean squares of the restoration error, the difference to a neighbour, and the whitened features.

        Shape `(n, 3, 1 + M)`.
        """
        neighbours = self.references[nearest[:, : self.settings.neighbours]]
        distant = self.references[nearest.index_select(1, self.rank.reshape(1) - 1).squeeze(1)]
        unit = self.gaussian.scale.square()
        parts = (
            self._logs(restoration_error(neighbours, z0), unit),
            self._logs(z0 - distant, unit),
            self._logs(self.gaussian.per_feature(coordinates / self.gaussian.variances.sqrt())),
        )
        return torch.stack(parts, dim=1)

    def _logs(self, differences: Tensor, unit: Tensor | float = 1.0) -> Tensor:
        """Log mean square, in a unit, of all features and of those of each layer: `(n, c)` to `(n, 1 + M)`."""
        squares = differences.square()
        means = torch.cat([squares.mean(dim=1, keepdim=True), layer_means(squares, self.channels)], dim=1)
        return (means / unit + TINY).log()

    def _joined(self, parts: Tensor) -> LayerScores:
        """Scores of images and their layers from the three parts, shape `(n, 3, 1 + M)`."""
        joined = ((parts - self.location) / self.spread * self.weights).sum(dim=1)
        return joined[:, 0], joined[:, 1:]

    def _standardise(self, groups: Tensor, n: int) -> LayerScores:
        """Location and spread of the parts over the references, each scored as if its group had been left out.

        The Gaussian was fitted to `n` images. Returns the references' scores.
        """
        found = []
        for batch in self._batches(len(self.references)):
            nearest, z0 = self.search.nearest_others(batch, self._searched_for, groups), self.references[batch]
            found.append(self._parts(z0, self.gaussian.coordinates(z0), nearest))
        parts = torch.cat(found)
        parts[:, 2] += self.gaussian.growth_without(self.references, groups, n)[:, None].log()
        low, self.location, high = parts.quantile(parts.new_tensor([0.16, 0.5, 0.84]), dim=0)
        self.spread = ((high - low) / 2).clamp(min=TINY)
        return self._joined(parts)
