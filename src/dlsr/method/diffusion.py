"""Distortion and restoration of features (paper, Eq. 1-3): pure functions of tensors and a callable.

Nothing here draws random numbers: noise is passed in, so a result is a function of its arguments.
`alpha_bar` and the time index are those of `dlsr.method.schedule`.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from dlsr.errors import SettingsError

Denoiser = Callable[[Tensor, int], Tensor]
"""Predicts `z0`, shape `(N, c)`, from `zt`, shape `(N, c)`, and its time `t`."""


def distort(z0: Tensor, t: int | Tensor, alpha_bar: Tensor, noise: Tensor) -> Tensor:
    """Distort features to time `t` (Eq. 1): `zt = sqrt(alpha_bar_t) z0 + sqrt(1 - alpha_bar_t) noise`.

    Args:
        z0: features, shape `(N, c)`.
        t: one time for all, or times of shape `(N,)`, each in `0..T`.
        alpha_bar: schedule, shape `(T + 1,)`.
        noise: standard normal, shape `(N, c)`.

    Returns:
        `zt`, shape `(N, c)`.
    """
    signal = alpha_bar[t]
    if signal.ndim:
        signal = signal[:, None]
    return signal.sqrt() * z0 + (1 - signal).sqrt() * noise


def predicted_noise(zt: Tensor, z0_hat: Tensor, t: int, alpha_bar: Tensor) -> Tensor:
    """The noise that `zt` holds if `z0_hat` is right (Eq. 2), shape `(N, c)`. Needs `t >= 1`."""
    signal = alpha_bar[t]
    return (zt - signal.sqrt() * z0_hat) / (1 - signal).sqrt()


def ddim_sigma(t: int, t_next: int, alpha_bar: Tensor, eta: float) -> Tensor:
    """Standard deviation of the noise added on the way from `t` to `t_next < t` (Song et al. 2020, Eq. 16)."""
    now, after = alpha_bar[t], alpha_bar[t_next]
    return eta * ((1 - after) / (1 - now)).sqrt() * (1 - now / after).sqrt()


def ddim_step(
    zt: Tensor, z0_hat: Tensor, t: int, t_next: int, alpha_bar: Tensor, eta: float = 0.0, noise: Tensor | None = None
) -> Tensor:
    """One DDIM step from `t` to `t_next` (Eq. 3).

    The paper prints `sigma_t^2` before the noise; the term that keeps the variance right is `sigma_t`.

    Args:
        zt: state at `t`, shape `(N, c)`.
        z0_hat: the network's prediction from `zt`, shape `(N, c)`.
        t: time of `zt`, at least 1.
        t_next: time to go to, `0 <= t_next < t`.
        alpha_bar: schedule, shape `(T + 1,)`.
        eta: 0 for the deterministic path, 1 for the ancestral one.
        noise: standard normal, shape `(N, c)`; needed if `eta > 0`.

    Returns:
        State at `t_next`, shape `(N, c)`; for `t_next = 0` it is `z0_hat`.
    """
    sigma = ddim_sigma(t, t_next, alpha_bar, eta)
    after = alpha_bar[t_next]
    # Rounding can push the difference a hair below zero where sigma takes up all the remaining variance.
    direction = (1 - after - sigma**2).clamp(min=0).sqrt() * predicted_noise(zt, z0_hat, t, alpha_bar)
    state = after.sqrt() * z0_hat + direction
    if noise is not None and eta > 0:
        state = state + sigma * noise
    return state


def restore(
    denoiser: Denoiser,
    zt: Tensor,
    steps: Sequence[int],
    alpha_bar: Tensor,
    eta: float = 0.0,
    noise: Tensor | None = None,
) -> Tensor:
    """Restore features from `zt` by DDIM along `steps`, ending at the predicted `z0` (section 3.2).

    Args:
        denoiser: predicts `z0` from a state and its time.
        zt: features distorted to `steps[0]`, shape `(N, c)`.
        steps: falling times at which the network is asked, all in `1..T`; after the last comes 0.
        alpha_bar: schedule, shape `(T + 1,)`.
        eta: as in `ddim_step`.
        noise: standard normal of shape `(len(steps) - 1, N, c)`; needed if `eta > 0` and there is more than
            one step.

    Returns:
        The restored features, shape `(N, c)`.

    Raises:
        SettingsError: if `steps` is empty, does not fall or leaves `1..T`, or noise is missing.
    """
    check_steps(steps, len(alpha_bar) - 1)
    if eta > 0 and len(steps) > 1 and noise is None:
        raise SettingsError("eta > 0 needs noise for every step but the last")
    state = zt
    for i, (t, t_next) in enumerate(zip(steps, [*steps[1:], 0], strict=True)):
        z0_hat = denoiser(state, t)
        if t_next == 0:
            return z0_hat
        state = ddim_step(state, z0_hat, t, t_next, alpha_bar, eta, None if noise is None else noise[i])
    raise AssertionError("unreachable: the last step always goes to 0")


def check_steps(steps: Sequence[int], T: int) -> None:
    """Raise SettingsError unless `steps` is a non-empty falling sequence of times in `1..T`."""
    falling = all(a > b for a, b in pairwise(steps))
    if not steps or not falling or steps[0] > T or steps[-1] < 1:
        raise SettingsError(f"steps must fall and lie in 1..{T}, got {list(steps)}")


def skipping_steps(t: int, count: int) -> list[int]:
    """`count` evenly spaced falling times from `t` down (section 3.2, stride s), ending before 0.

    >>> skipping_steps(9, 3)
    [9, 6, 3]
    """
    if not 1 <= count <= t:
        raise SettingsError(f"need 1 <= number of steps <= t, got {count} steps for t = {t}")
    return [int(step) for step in (torch.arange(count, 0, -1) * t) // count]
