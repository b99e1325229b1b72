"""Scores from features and their restoration (paper, section 3.3). Larger = more OOD."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from dlsr.method.layers import layer_slices


def mse(z0: Tensor, restored: Tensor) -> Tensor:
    """Mean squared restoration error (Algorithm 3): two tensors of shape `(.., c)` to a tensor of shape `(..)`."""
    return (z0 - restored).square().mean(dim=-1)


def likelihood_regret(z0: Tensor, restored_initial: Tensor, restored: Tensor) -> Tensor:
    """`MSE_initial - MSE_final` (Algorithm 4): how much training improved the restoration.

    The paper says both that it is larger for ID images and that a low value means ID. On real datasets it is larger for
    OOD images, see docs/design.md.

    Args:
        z0: features, shape `(.., c)`.
        restored_initial: features restored by the network of the initial epoch, shape `(.., c)`.
        restored: features restored by the trained network, shape `(.., c)`.

    Returns:
        Scores of shape `(..)`.
    """
    return mse(z0, restored_initial) - mse(z0, restored)


def layer_means(squares: Tensor, channels: Sequence[int]) -> Tensor:
    """Mean over the dimensions of each layer: shape `(.., c)` to `(.., M)`."""
    return torch.stack([squares[..., s].mean(dim=-1) for s in layer_slices(channels)], dim=-1)


def layer_similarities(z0: Tensor, restored: Tensor, channels: Sequence[int]) -> Tensor:
    """Cosine similarity of each layer and its restoration (section 3.3): shape `(.., c)` to `(.., M)`."""
    return torch.stack(
        [F.cosine_similarity(z0[..., s], restored[..., s], dim=-1) for s in layer_slices(channels)], dim=-1
    )


def mfsim(similarities: Tensor) -> Tensor:
    """Negative mean of the similarities over all M layers (Algorithm 2): shape `(.., M)` to `(..)`, in `[-1, 1]`."""
    return -similarities.mean(dim=-1)
