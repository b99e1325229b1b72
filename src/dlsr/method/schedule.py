"""Noise schedules: the share of the variance of `z0` that is left at each time (paper, Eq. 1).

`alpha_bar[t]` belongs to time `t` for `t = 0, 1, .., T`, with `alpha_bar[0] = 1` (no noise). The network gets the same
`t`. diffusers counts from 0, so its timestep `i` is `t = i + 1` here.
"""

import math

import torch
from torch import Tensor

from dlsr.errors import SettingsError


def scaled_linear_alpha_bar(T: int = 100, beta_start: float = 0.0015, beta_end: float = 0.0195) -> Tensor:
    """Schedule that is linear in `sqrt(beta)`, as in the published code (the paper gives no values).

    With the defaults it does not end in pure noise: `alpha_bar[100] = 0.41`.

    Args:
        T: number of noise levels, at least 1.
        beta_start: variance added at `t = 1`, in (0, 1).
        beta_end: variance added at `t = T`, in [beta_start, 1).

    Returns:
        float32 tensor of shape `(T + 1,)`, decreasing from 1.

    Raises:
        SettingsError: for values outside these ranges.
    """
    _check_T(T)
    if not 0 < beta_start <= beta_end < 1:
        raise SettingsError(f"need 0 < beta_start <= beta_end < 1, got {beta_start} and {beta_end}")
    beta = torch.linspace(math.sqrt(beta_start), math.sqrt(beta_end), T, dtype=torch.float64) ** 2
    return _with_start(torch.cumprod(1 - beta, dim=0))


def cosine_alpha_bar(T: int = 100, end: float = 1e-4) -> Tensor:
    """Squared cosine schedule (Nichol & Dhariwal 2021, Eq. 17), scaled to `end` at `t = T`.

    Unlike the default of the published code it ends in nearly pure noise.

    Args:
        T: number of noise levels, at least 1.
        end: value at `t = T`, in (0, 1).

    Returns:
        float32 tensor of shape `(T + 1,)`, decreasing from 1 to `end`.

    Raises:
        SettingsError: for values outside these ranges.
    """
    _check_T(T)
    if not 0 < end < 1:
        raise SettingsError(f"need 0 < end < 1, got {end}")
    s = 0.008
    first, last = (s / (1 + s) * math.pi / 2), math.acos(math.sqrt(end) * math.cos(s / (1 + s) * math.pi / 2))
    angle = torch.linspace(first, last, T + 1, dtype=torch.float64)[1:]
    return _with_start(torch.cos(angle) ** 2 / math.cos(first) ** 2)


def _check_T(T: int) -> None:
    if T < 1:
        raise SettingsError(f"T must be at least 1, got {T}")


def _with_start(alpha_bar: Tensor) -> Tensor:
    return torch.cat([torch.ones(1, dtype=torch.float64), alpha_bar]).float()
