"""Search for the nearest training samples. Part of the scores that use it."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn


class Neighbours(nn.Module):
    """Reference samples, and the search for those nearest to a sample.

    In torch rather than scikit-learn, whose search cannot become part of a graph; tested against it.

    Args:
        c: dimension of the samples.

    Attributes:
        references: the samples, shape `(R, c)`, a buffer. The other buffers follow from it.
    """

    references: Tensor
    centre: Tensor
    centred: Tensor
    squares: Tensor

    def __init__(self, c: int) -> None:
        super().__init__()
        self.register_buffer("references", torch.empty(0, c))
        for name in ("centre", "centred", "squares"):
            self.register_buffer(name, torch.empty(0), persistent=False)

    def keep(self, references: Tensor) -> None:
        """Use these samples, shape `(R, c)`."""
        self.references = references
        # Products of centred samples lose fewer digits.
        self.centre = references.mean(dim=0)
        self.centred = (references - self.centre).T.contiguous()
        self.squares = self.centred.square().sum(dim=0)

    def nearest(self, samples: Tensor, k: int) -> Tensor:
        """Indices of the `k` references nearest to each sample, nearest first: `(N, c)` to `(N, k)`.

        `k` is lowered to the number of references.
        """
        return self._order(samples).topk(min(k, len(self.references)), dim=1, largest=False).indices

    def nearest_others(self, chosen: Tensor, k: int, groups: Tensor) -> Tensor:
        """Indices of the `k` references nearest to each of the chosen ones, of other groups: `(n,)` to `(n, k)`.

        Args:
            chosen: indices of references.
            k: lowered to the number of the references outside the largest group.
            groups: a whole number for each reference, shape `(R,)`.
        """
        others = len(groups) - int(groups.bincount().max())
        order = self._order(self.references[chosen])
        order[groups[chosen, None] == groups] = torch.inf
        return order.topk(min(k, others), dim=1, largest=False).indices

    def _order(self, samples: Tensor) -> Tensor:
        # A sample's own square adds the same to all its distances, so the order does not need it.
        return self.squares - 2 * (samples - self.centre) @ self.centred

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *rest: Any) -> None:
        # How many references there are is known only now.
        references = state_dict.get(f"{prefix}references")
        if isinstance(references, Tensor) and references.shape[1:] == self.references.shape[1:]:
            self.keep(references.to(self.references.device))
        super()._load_from_state_dict(state_dict, prefix, *rest)
