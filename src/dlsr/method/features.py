"""From feature maps to `z0` (paper, section 3.1), and the position of each layer in it."""

from collections.abc import Sequence

import torch
from torch import Tensor

DELTA = 1e-5
"""Constant added to the variance (the paper does not give its value)."""


def pool(feature_map: Tensor) -> Tensor:
    """Global average pooling of a stage's map: shape `(N, c_m, h_m, w_m)` to `(N, c_m)`."""
    return feature_map.mean(dim=(2, 3))


def zscore(f: Tensor, delta: float = DELTA) -> Tensor:
    """Z-score over the channels of a layer: `(f - mean) / sqrt(var + delta)` with biased variance.

    Args:
        f: pooled features of a layer, shape `(N, c_m)`.
        delta: added to the variance.

    Returns:
        Normalised features, shape `(N, c_m)`.
    """
    mean = f.mean(dim=1, keepdim=True)
    var = f.var(dim=1, keepdim=True, correction=0)
    return (f - mean) / (var + delta).sqrt()


def to_z0(feature_maps: Sequence[Tensor], delta: float = DELTA) -> Tensor:
    """Pool, normalise and concatenate the maps of all layers.

    Args:
        feature_maps: M maps of shapes `(N, c_m, h_m, w_m)`.
        delta: added to the variance.

    Returns:
        `z0`, shape `(N, c)` with `c = sum of c_m`.
    """
    return torch.cat([zscore(pool(feature_map), delta) for feature_map in feature_maps], dim=1)


def layer_slices(channels: Sequence[int]) -> list[slice]:
    """The position of each layer in `z0`, given the number of channels of each."""
    slices, start = [], 0
    for c_m in channels:
        slices.append(slice(start, start + c_m))
        start += c_m
    return slices
