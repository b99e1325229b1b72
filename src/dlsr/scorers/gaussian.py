"""A Gaussian fitted to features: Mahalanobis distance, and the linear part of restoration.

The covariance gets a ridge that shrinks as images come in, so that it can be inverted however few they are.
"""

from collections.abc import Iterable, Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

RIDGE = 0.01
"""The ridge, relative to the mean variance, for as many images as dimensions; it falls as one over their number.

At 45,000 images it is the 1e-4 of the usual recipe. The shrinkage of Ledoit and Wolf, which serves the large
variances, costs detection here: see docs/design.md.
"""
ROUNDING = 1e-12
"""The mean variance is at least this share of the mean square."""
SMALLEST = 1e-12
"""Divisors are at least this."""
CHUNK = 2**15
"""At most this many samples are held in double precision at once."""


class Gaussian(nn.Module):
    """Mean and covariance of features, the latter by its eigenvectors. All four are buffers.

    "Coordinates" are along the eigenvectors, scaled so that their mean variance is 1.

    Args:
        c: dimension of the features.

    Attributes:
        mean: shape `(c,)`.
        basis: eigenvectors in columns, shape `(c, c)`.
        scale: root of the mean variance, shape `()`.
        variances: variances of the coordinates, shape `(c,)`, with mean 1 before the ridge.
    """

    mean: Tensor
    basis: Tensor
    scale: Tensor
    variances: Tensor

    def __init__(self, c: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(c))
        self.register_buffer("basis", torch.eye(c))
        self.register_buffer("scale", torch.ones(()))
        self.register_buffer("variances", torch.ones(c))

    def fit(self, z0: Iterable[Tensor], ridge: float = RIDGE) -> "Gaussian":
        """Fit to features, shape `(N, c)` with `N >= 2`, given in parts, which are read twice. Returns itself.

        Args:
            z0: the features.
            ridge: see `RIDGE`.
        """
        n, total = 0, np.zeros(())
        for part in _chunks(z0):
            n, total = n + len(part), total + _float64(part).sum(axis=0)
        mean = total / n
        scatter = np.zeros((len(mean), len(mean)))
        for part in _chunks(z0):
            centred = _float64(part)
            centred -= mean
            scatter += centred.T @ centred
        variances, basis = np.linalg.eigh(scatter / n)
        # Equal samples have no variance but that of rounding, and others must not be infinitely far from them.
        mean_variance = max(variances.mean(), ROUNDING * np.square(mean).mean()) or 1.0
        variances = np.maximum(variances / mean_variance, 0) + ridge * len(mean) / n
        learned = {"mean": mean, "basis": basis, "scale": np.sqrt(mean_variance), "variances": variances}
        self.load_state_dict({name: torch.from_numpy(np.asarray(value)).float() for name, value in learned.items()})
        return self.to(part.device)

    def coordinates(self, z0: Tensor) -> Tensor:
        """Coordinates of features: `(.., c)` to `(.., c)`."""
        return (z0 - self.mean) @ self.basis / self.scale

    def wiener(self, xt: Tensor, signal: Tensor) -> Tensor:
        """The best linear restoration of coordinates from `xt`, where `signal` is `alpha_bar_t` (Wiener 1949).

        Shapes: `xt` `(.., c)`, `signal` `(.., 1)` or `()`, the result `(.., c)`.
        """
        return signal.sqrt() * self.variances / (signal * self.variances + 1 - signal) * xt

    def posterior_std(self, signal: Tensor) -> Tensor:
        """Standard deviation of a coordinate around its best linear restoration: `(.., 1)` or `()` to `(.., c)`."""
        return (self.variances * (1 - signal) / (signal * self.variances + 1 - signal)).sqrt()

    def per_feature(self, whitened: Tensor) -> Tensor:
        """Turn whitened coordinates back along the features (ZCA): `(.., c)` to `(.., c)`.

        Lengths stay the same, so the squares of a layer's features are its share of the whole.
        """
        return whitened @ self.basis.T

    def whiten(self, z0: Tensor) -> Tensor:
        """Features with unit covariance, each still along its own axis: `(.., c)` to `(.., c)`.

        The sum of squares is the squared Mahalanobis distance.
        """
        return self.per_feature(self.coordinates(z0) / self.variances.sqrt())

    def growth_without(self, z0: Tensor, groups: Tensor, n: int) -> Tensor:
        """How much larger squared Mahalanobis distances would be, had the samples' groups been left out of the fit.

        Args:
            z0: samples that the Gaussian was fitted to, shape `(N, c)`: all of them, or some.
            groups: a whole number for each sample, shape `(N,)`; at least two of them differ.
            n: the number of samples that the Gaussian was fitted to.

        Returns:
            Factors, shape `(N,)`. Exact but for the change of the ridge with the mean variance: without a group, the
            inverse of the scatter matrix changes by a matrix of low rank (Woodbury 1950).
        """
        whitened = self.coordinates(z0) / self.variances.sqrt() / n**0.5
        squares = whitened.square().sum(dim=1)
        growth: Tensor = n / (n - 1) / (1 - squares * n / (n - 1)).clamp(min=SMALLEST)
        for members in torch.split(groups.argsort(stable=True), groups.bincount().tolist()):
            if len(members) > 1:
                distances = _squares_without(whitened[members].double(), n)
                growth[members] = (distances / squares[members].clamp(min=SMALLEST)).to(growth)
        return growth


def _squares_without(rows: Tensor, n: int) -> Tensor:
    """Squared Mahalanobis distances of a group from the other samples, divided by `n`: `(m, c)` to `(m,)`.

    Args:
        rows: the group, whitened by the covariance of all `n` samples and divided by the root of `n`.
        n: number of all samples.
    """
    m, c = rows.shape
    from_mean = rows.sum(dim=0, keepdim=True) / (n - m) ** 0.5  # what the mean of the others lacks
    from_others, taken = rows + from_mean / (n - m) ** 0.5, torch.cat([rows, from_mean])
    if m < c:  # solve the smaller of two equations with the same solution
        leverage = taken @ taken.T
        products = torch.linalg.solve(torch.eye(m + 1).to(rows) - leverage, taken @ from_others.T)
        grown: Tensor = from_others.square().sum(dim=1) + ((from_others @ taken.T) * products.T).sum(dim=1)
    else:
        solved = torch.linalg.solve(torch.eye(c).to(rows) - taken.T @ taken, from_others.T)
        grown = (from_others * solved.T).sum(dim=1)
    return grown * ((n - m) / n)


def _chunks(z0: Iterable[Tensor]) -> Iterator[Tensor]:
    """Parts of bounded size: a double-precision copy of all training features would not fit beside them."""
    for part in z0:
        yield from torch.split(part, CHUNK)


def _float64(part: Tensor) -> NDArray[np.float64]:
    copy: NDArray[np.float64] = part.to("cpu", torch.float64, copy=True).numpy()
    return copy
