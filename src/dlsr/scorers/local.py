"""Restoration from the nearest training images: the score of the presets `default` and `fast`.

The paper trains a network to restore distorted features and takes the error that is left as the score. Here an image is
restored from the training images nearest to it, which needs no training and leaves ID and OOD images further apart on
most datasets (docs/results.md). The score has three parts, which are weak on different datasets:

- the error of the restoration, which counts for less where the training images themselves are restored badly, as in
  the local outlier factor (Breunig et al. 2000);
- the distance to the fifth nearest training image, which a few intruders among them do not change;
- the Mahalanobis distance, which sees what all images have in common.

A folder is seldom clean: a few training images do not belong. Those farthest from the others are not used to restore
from, and the fifth neighbour is not the nearest one, so that an intruder does not make its like look in distribution.

Each part enters by its logarithm, standardised on the training images. These are scored as if they had been left out
one by one, so no image has to be held out for it, and those unlike the rest can be found.
"""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from dlsr.errors import TooFewImagesError
from dlsr.method.local import restoration_error
from dlsr.method.scores import layer_means
from dlsr.scorers.base import FitData, LayerScores, Scorer, register
from dlsr.scorers.gaussian import Gaussian
from dlsr.scorers.neighbours import Neighbours
from dlsr.scorers.settings import ScorerSettings
from dlsr.training.loop import Trainer
from dlsr.training.state import EpochLog

TINY = 1e-6
"""Keeps logarithms and divisions finite."""
RIDGE = 1.0
"""Of the Gaussian, see `dlsr.scorers.gaussian.RIDGE`: the large variances are what the other parts do not see."""
DISTANT = 5
"""The distance is that to this neighbour."""
SEARCHED = 256
"""Neighbours are searched along this many principal components, those with the largest variances."""
CROWD = 50
"""Training images far from their neighbour of this number are left out; of fewer images, a quarter of them."""
FEWEST = 5
"""Training images."""


class LocalSettings(ScorerSettings):
    """Settings of `LocalScorer`."""

    neighbours: int = Field(default=20, ge=2, description="Training images that an image is restored from.")
    references: int = Field(default=10_000, ge=FEWEST, description="At most this many training images are kept.")
    density_weight: float = Field(
        default=0.25, ge=0, le=1, description="Weight of the neighbours' own log error, which is subtracted."
    )
    distance_weight: float = Field(default=0.25, ge=0, description="Weight of the log distance to a neighbour.")
    gaussian_weight: float = Field(default=0.3, ge=0, description="Weight of the log Mahalanobis distance.")
    trim: float = Field(
        default=0.03,
        ge=0,
        lt=0.5,
        description="Share of the training images, those farthest from the others, that no image is restored from.",
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

    batch = 64  # so that the neighbours of all samples fit into the processor's cache

    settings: LocalSettings
    references: Tensor
    own_errors: Tensor
    location: Tensor
    spread: Tensor
    weights: Tensor

    def __init__(self, settings: LocalSettings, channels: Sequence[int]) -> None:
        super().__init__(settings, channels)
        c, columns = sum(channels), 1 + len(channels)
        self.gaussian = Gaussian(c)
        self.search = Neighbours(min(c, SEARCHED))
        self.register_buffer("references", torch.zeros(0, c))
        # For the whole image and for each layer.
        self.register_buffer("own_errors", torch.zeros(0, columns))
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
        self.gaussian.fit(training, RIDGE)
        references = training.take(chosen)
        self.search.keep(self._searched(self.gaussian.coordinates(references)))
        kept = self._not_alone()
        self.references = references[kept]
        self.search.keep(self.search.references[kept])
        scores = torch.empty(len(references), device=references.device)
        scores[kept] = self._standardise(len(training))
        left_out = torch.split(references[~kept], self.batch)
        scores[~kept] = torch.cat([scores[:0], *(self(z0, z0[:, None, :0])[0] for z0 in left_out)])
        self.training_scores = torch.full((len(training),), torch.nan)
        self.training_scores[chosen] = scores.cpu()
        return []

    def _not_alone(self) -> Tensor:
        """Which references are used: all but those farthest from the others, shape `(R,)`.

        Distances are those to a neighbour so far down the list that a few intruders of a kind do not count as company.
        """
        samples = self.search.references
        k = max(min(CROWD, len(samples) // 4), 1)
        squares = [
            (samples[batch] - samples[self.search.nearest_others(batch, k)[:, -1]]).square().sum(dim=1)
            for batch in self._batches(len(samples))
        ]
        distances = torch.cat(squares)
        return distances <= distances.quantile(1 - self.settings.trim, interpolation="higher")

    def _batches(self, n: int) -> Sequence[Tensor]:
        return torch.split(torch.arange(n, device=self.references.device), self.batch)

    def forward(self, z0: Tensor, noise: Tensor) -> LayerScores:
        """See `Scorer`."""
        coordinates = self.gaussian.coordinates(z0)
        nearest = self.search.nearest(self._searched(coordinates), self.settings.neighbours)
        errors, distances = self._from_neighbours(z0, nearest)
        return self._joined(errors - self._expected(nearest), distances, self._mahalanobis(coordinates))

    @staticmethod
    def _searched(coordinates: Tensor) -> Tensor:
        return coordinates[:, -SEARCHED:]

    def _from_neighbours(self, z0: Tensor, nearest: Tensor) -> tuple[Tensor, Tensor]:
        """Log mean squares of the restoration error, and of the difference to a neighbour, each `(n, 1 + M)`."""
        neighbours = self.references[nearest]
        distant = neighbours[:, :DISTANT][:, -1]
        unit = self.gaussian.scale.square()
        return self._logs(restoration_error(neighbours, z0), unit), self._logs(z0 - distant, unit)

    def _expected(self, nearest: Tensor) -> Tensor:
        """What references, shape `(n, k)`, take off the log error of a sample among them, shape `(n, 1 + M)`."""
        return self.settings.density_weight * self.own_errors[nearest].mean(dim=1)

    def _mahalanobis(self, coordinates: Tensor) -> Tensor:
        """Log mean squares of the whitened features, shape `(n, 1 + M)`."""
        return self._logs(self.gaussian.per_feature(coordinates / self.gaussian.variances.sqrt()))

    def _logs(self, differences: Tensor, unit: Tensor | float = 1.0) -> Tensor:
        """Log mean square, in a unit, of all features and of those of each layer: `(n, c)` to `(n, 1 + M)`."""
        squares = differences.square()
        means = torch.cat([squares.mean(dim=1, keepdim=True), layer_means(squares, self.channels)], dim=1)
        return (means / unit + TINY).log()

    def _joined(self, *parts: Tensor) -> LayerScores:
        """Scores of images and their layers from the three parts, each of shape `(n, 1 + M)`."""
        joined = ((torch.stack(parts, dim=1) - self.location) / self.spread * self.weights).sum(dim=1)
        return joined[:, 0], joined[:, 1:]

    def _standardise(self, n: int) -> Tensor:
        """Location and spread of the parts over the references, each scored as if it were not among the `n` images.

        Returns their scores, shape `(R,)`.
        """
        found: list[list[Tensor]] = []
        for batch in self._batches(len(self.references)):
            nearest, z0 = self.search.nearest_others(batch, self.settings.neighbours), self.references[batch]
            distances = self._mahalanobis(self.gaussian.coordinates(z0))
            found.append([nearest, *self._from_neighbours(z0, nearest), distances])
        nearest, errors, distances, mahalanobis = (torch.cat(parts) for parts in zip(*found, strict=True))
        self.own_errors = errors
        # Without a sample, the inverse of the scatter matrix changes by a matrix of rank one (Sherman, Morrison 1950).
        leverage = mahalanobis[:, :1].exp() * self.references.shape[1] / (n - 1)
        without = mahalanobis - ((1 - leverage).clamp(min=TINY) * (n - 1) / n).log()
        parts = [errors - self._expected(nearest), distances, without]
        stacked = torch.stack(parts, dim=1)
        low, self.location, high = stacked.quantile(stacked.new_tensor([0.16, 0.5, 0.84]), dim=0)
        self.spread = ((high - low) / 2).clamp(min=TINY)
        return self._joined(*parts)[0]

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *rest: Any) -> None:
        # How many references there are is known only now.
        for name in ("references", "own_errors"):
            given, buffer = state_dict.get(prefix + name), getattr(self, name)
            if isinstance(given, Tensor) and given.shape[1:] == buffer.shape[1:]:
                setattr(self, name, torch.empty_like(given, device=buffer.device))
        super()._load_from_state_dict(state_dict, prefix, *rest)
