"""Distortion and restoration of features (paper, Eq. 1-3).

Noise is an argument, so each result depends on the arguments alone. `alpha_bar` and the time index are those of
`dlsr.method.schedule`.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from dlsr.errors import SettingsError

Denoiser = Callable[[Tensor, int], Tensor]
"""Predicts `z0`, shape `(N, c)`, from `zt`, shape `(N, c)`, and the time `t`."""


def distort(z0: Tensor, t: int | Tensor, alpha_bar: Tensor, noise: Tensor) -> Tensor:
    """Distort features to time `t` (Eq. 1): `zt = sqrt(alpha_bar_t) z0 + sqrt(1 - alpha_bar_t) noise`.

    Args:
        z0: features, shape `(N, c)`.
        t: a time for all samples, or times of shape `(N,)`, each in `0..T`.
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
    """The noise in `zt` if `z0_hat` is the undistorted state (Eq. 2).

    Args:
        zt: state at `t`, shape `(N, c)`.
        z0_hat: predicted `z0`, shape `(N, c)`.
        t: time of `zt`, at least 1.
        alpha_bar: schedule, shape `(T + 1,)`.

    Returns:
        Predicted noise, shape `(N, c)`.
    """
    signal = alpha_bar[t]
    return (zt - signal.sqrt() * z0_hat) / (1 - signal).sqrt()


def ddim_sigma(t: int, t_next: int, alpha_bar: Tensor, eta: float) -> Tensor:
    """Standard deviation of the noise in a step from `t` to `t_next < t` (Song et al. 2020, Eq. 16), shape `()`."""
    current, following = alpha_bar[t], alpha_bar[t_next]
    return eta * ((1 - following) / (1 - current)).sqrt() * (1 - current / following).sqrt()


def ddim_step(
    zt: Tensor, z0_hat: Tensor, t: int, t_next: int, alpha_bar: Tensor, eta: float = 0.0, noise: Tensor | None = None
) -> Tensor:
    """One DDIM step from `t` to `t_next` (Eq. 3).

    The paper multiplies the noise by `sigma_t^2`. The factor that gives the right variance is `sigma_t`.

    Args:
        zt: state at `t`, shape `(N, c)`.
        z0_hat: `z0` predicted from `zt`, shape `(N, c)`.
        t: time of `zt`, at least 1.
        t_next: time after the step, `0 <= t_next < t`.
        alpha_bar: schedule, shape `(T + 1,)`.
        eta: 0 for deterministic DDIM, 1 for ancestral sampling as in DDPM.
        noise: standard normal, shape `(N, c)`; needed if `eta > 0`.

    Returns:
        State at `t_next`, shape `(N, c)`; `z0_hat` for `t_next = 0`.
    """
    sigma = ddim_sigma(t, t_next, alpha_bar, eta)
    following = alpha_bar[t_next]
    # Rounding can make the difference slightly negative if sigma^2 is all of the remaining variance.
    direction = (1 - following - sigma**2).clamp(min=0).sqrt() * predicted_noise(zt, z0_hat, t, alpha_bar)
    state = following.sqrt() * z0_hat + direction
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
    """Restore features by DDIM steps from `zt` to the predicted `z0` (section 3.2).

    Args:
        denoiser: predicts `z0` from the state and its time.
        zt: features distorted to `steps[0]`, shape `(N, c)`.
        steps: decreasing times in `1..T` at which the denoiser is called; the last step goes to time 0.
        alpha_bar: schedule, shape `(T + 1,)`.
        eta: see `ddim_step`.
        noise: standard normal, shape `(len(steps) - 1, N, c)`; needed if `eta > 0` and there are several steps.

    Returns:
        Restored features, shape `(N, c)`.

    Raises:
        SettingsError: if `steps` is empty, not decreasing or not in `1..T`, or if noise is missing.
    """
    check_steps(steps, len(alpha_bar) - 1)
    if eta > 0 and len(steps) > 1 and noise is None:
        raise SettingsError("eta > 0 needs noise for every step except the last")
    state = zt
    for i, (t, t_next) in enumerate(zip(steps, [*steps[1:], 0], strict=True)):
        z0_hat = denoiser(state, t)
        if t_next == 0:
            return z0_hat
        state = ddim_step(state, z0_hat, t, t_next, alpha_bar, eta, None if noise is None else noise[i])
    raise AssertionError("unreachable: the last step always goes to 0")


def check_steps(steps: Sequence[int], T: int) -> None:
    """Check steps.

    Raises:
        SettingsError: unless `steps` is a non-empty, decreasing sequence of times in `1..T`.
    """
    decreasing = all(a > b for a, b in pairwise(steps))
    if not steps or not decreasing or steps[0] > T or steps[-1] < 1:
        raise SettingsError(f"t must be decreasing times in 1..{T}, got {list(steps)}")


def skipping_steps(t: int, count: int) -> list[int]:
    """`count` evenly spaced, decreasing times from `t` to above 0 (section 3.2, stride s).

    Raises:
        SettingsError: unless `1 <= count <= t`.

    >>> skipping_steps(9, 3)
    [9, 6, 3]
    """
    if not 1 <= count <= t:
        raise SettingsError(f"the number of steps must be in 1..t, got {count} steps for t = {t}")
    return [int(step) for step in (torch.arange(count, 0, -1) * t) // count]
