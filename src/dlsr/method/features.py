"""From feature maps to `z0` (paper, section 3.1)."""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from dlsr.method.layers import DELTA, Pooling


def mean_pool(feature_map: Tensor) -> Tensor:
    """Global average pooling of a stage's map: shape `(N, c_m, h_m, w_m)` to `(N, c_m)`."""
    return feature_map.mean(dim=(2, 3))


def std_pool(feature_map: Tensor) -> Tensor:
    """Standard deviation of each channel over the positions: shape `(N, c_m, h_m, w_m)` to `(N, c_m)`."""
    deviations = feature_map - feature_map.mean(dim=(2, 3), keepdim=True)
    return deviations.square().mean(dim=(2, 3)).sqrt()


def max_pool(feature_map: Tensor) -> Tensor:
    """Largest value of each channel: shape `(N, c_m, h_m, w_m)` to `(N, c_m)`."""
    return feature_map.amax(dim=(2, 3))


_POOLS: Mapping[str, Callable[[Tensor], Tensor]] = {"mean": mean_pool, "std": std_pool, "max": max_pool}


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


def to_z0(feature_maps: Sequence[Tensor], pooling: Pooling = "mean", delta: float = DELTA) -> Tensor:
    """Pool, normalise and concatenate the maps of all layers.

    Args:
        feature_maps: M maps of shapes `(N, k_m, h_m, w_m)`.
        pooling: what is kept of each map. Each part of it is normalised by itself, so a layer has `c_m` features:
            `k_m` times the number of parts.
        delta: added to the variance.

    Returns:
        `z0`, shape `(N, c)` with `c = sum of c_m`.
    """
    pools = [_POOLS[name] for name in pooling.split("+")]
    return torch.cat([zscore(pool(feature_map), delta) for feature_map in feature_maps for pool in pools], dim=1)
