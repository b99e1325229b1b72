"""A Gaussian fitted to features: Mahalanobis distance, and the linear part of restoration.

The covariance gets a ridge that shrinks as images come in, so that it can be inverted however few they are.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

RIDGE = 0.01
"""The ridge, relative to the mean variance, for as many images as dimensions; it falls as one over their number.

At 45,000 images it is the 1e-4 of the usual recipe. The shrinkage of Ledoit and Wolf, which serves the large
variances, costs detection here: see docs/design.md.
"""


@dataclass(frozen=True)
class Gaussian:
    """Mean and covariance of features, the latter by its eigenvectors.

    "Coordinates" are along the eigenvectors, scaled so that their mean variance is 1.
    """

    mean: Tensor
    """Shape `(c,)`."""
    basis: Tensor
    """Eigenvectors in columns, shape `(c, c)`."""
    scale: Tensor
    """Root of the mean variance, shape `()`."""
    variances: Tensor
    """Variances of the coordinates, shape `(c,)`, with mean 1 before the ridge."""

    @classmethod
    def fit(cls, z0: Iterable[Tensor]) -> "Gaussian":
        """Fit to rows `z0`, shape `(N, c)` with `N >= 2`, given in parts; they are gone through twice."""
        n, total = 0, np.zeros(())
        for part in z0:
            n, total = n + len(part), total + part.double().cpu().numpy().sum(axis=0)
        mean = total / n
        scatter = np.zeros((len(mean), len(mean)))
        for part in z0:
            centred = part.double().cpu().numpy() - mean
            scatter += centred.T @ centred
        variances, basis = np.linalg.eigh(scatter / n)
        # The tiny number serves sets of equal rows, which have no variance at all.
        mean_variance = variances.mean() + np.finfo(np.float32).tiny
        variances = np.maximum(variances / mean_variance, 0) + RIDGE * len(mean) / n

        def tensor(values: NDArray[np.float64]) -> Tensor:
            return torch.from_numpy(np.asarray(values)).float().to(part.device)

        return cls(tensor(mean), tensor(basis), tensor(np.sqrt(mean_variance)), tensor(variances))

    def coordinates(self, z0: Tensor) -> Tensor:
        """Coordinates of features: `(.., c)` to `(.., c)`."""
        return (z0 - self.mean) @ self.basis / self.scale

    def wiener(self, xt: Tensor, signal: Tensor) -> Tensor:
        """The best linear restoration of coordinates from `xt`, where `signal` is `alpha_bar_t` (Wiener 1949)."""
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

    def tensors(self) -> dict[str, Tensor]:
        """For saving."""
        return {"mean": self.mean, "basis": self.basis, "scale": self.scale, "variances": self.variances}
