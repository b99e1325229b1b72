"""Search for the nearest training samples. Part of the scores that use it."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from dlsr.scorers.base import take_rows


class Neighbours(nn.Module):
    """Reference samples, and the search for those nearest to a sample.

    In torch rather than scikit-learn, whose search cannot become part of a graph; tested against it.

    Args:
        c: dimension of the samples.

    Attributes:
        centre: mean of the references, shape `(c,)`, a buffer, as are the others. Products of centred samples lose
            fewer digits.
        centred: the references less their mean, shape `(R, c)`.
        squares: their squared lengths, shape `(R,)`.
    """

    centre: Tensor
    centred: Tensor
    squares: Tensor

    def __init__(self, c: int) -> None:
        super().__init__()
        self.register_buffer("centre", torch.zeros(c))
        self.register_buffer("centred", torch.zeros(0, c))
        self.register_buffer("squares", torch.zeros(0))

    def keep(self, references: Tensor) -> None:
        """Use these samples, shape `(R, c)`."""
        self.centre = references.mean(dim=0)
        self.centred = references - self.centre
        self.squares = self.centred.square().sum(dim=1)

    def nearest(self, samples: Tensor, k: int) -> Tensor:
        """Indices of the `k` references nearest to each sample, nearest first: `(N, c)` to `(N, k)`.

        `k` is lowered to the number of references.
        """
        k = min(k, self.squares.shape[0])
        return self._order(samples - self.centre).topk(k, dim=1, largest=False).indices

    def nearest_others(self, chosen: Tensor, k: int, groups: Tensor) -> Tensor:
        """Indices of the `k` references nearest to each of the chosen ones, of other groups: `(n,)` to `(n, k)`.

        Where fewer than `k` are of other groups, the last of them stands for those that are missing: the others get as
        many neighbours as new samples do, though one group may be large.

        Args:
            chosen: indices of references.
            k: lowered to the number of references.
            groups: a whole number for each reference, shape `(R,)`; at least two different ones.
        """
        others = len(groups) - groups.bincount()[groups[chosen]]
        order = self._order(self.centred[chosen])
        order[groups[chosen, None] == groups] = torch.inf
        nearest = order.topk(min(k, len(groups)), dim=1, largest=False).indices
        places = torch.arange(nearest.shape[1], device=nearest.device).minimum(others[:, None] - 1)
        return nearest.gather(1, places)

    def differences(self, samples: Tensor, references: Tensor) -> Tensor:
        """Samples less the references of these indices: `(N, c)` and `(N,)` to `(N, c)`."""
        return samples - self.centre - self.centred[references]

    def _order(self, centred: Tensor) -> Tensor:
        # A sample's own square adds the same to all its distances, so the order does not need it.
        return self.squares - 2 * centred @ self.centred.T

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *rest: Any) -> None:
        take_rows(self, state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *rest)
