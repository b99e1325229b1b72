"""The layers of `z0`: what is kept of each stage's map, and where it is (paper, section 3.1)."""

from collections.abc import Sequence
from typing import Literal, get_args

Pooling = Literal["mean", "mean+std", "mean+std+max"]
"""What is kept of a stage's map: the paper's mean, and beside it how a channel varies over the image, and its peak."""
POOLINGS: tuple[Pooling, ...] = get_args(Pooling)
DELTA = 1e-5
"""Constant added to the variance of a layer (the paper does not give its value)."""


def layer_dimensions(map_channels: Sequence[int], pooling: Pooling) -> tuple[int, ...]:
    """Dimensions of each layer in `z0`, `c_m`, from the channels of each map, `k_m`."""
    return tuple(k * len(pooling.split("+")) for k in map_channels)


def layer_slices(channels: Sequence[int]) -> list[slice]:
    """The position of each layer in `z0`, given the dimensions of each."""
    slices, start = [], 0
    for c_m in channels:
        slices.append(slice(start, start + c_m))
        start += c_m
    return slices
