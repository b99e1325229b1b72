"""Restoration of features from the samples that lie nearest to them, in place of a trained network.

The restoration that minimises the expected error of Eq. 4 over a finite training set is a weighted mean of its samples,
the nearest of which weigh most. Here the weights are those that restore the sample best (locally linear reconstruction,
Roweis and Saul 2000), so nothing has to be trained.
"""

import torch
from torch import Tensor

RIDGE = 0.1
"""Ridge on the weights, relative to the mean squared distance of the neighbours from their mean."""
TINY = 1e-12
"""Keeps the division finite for neighbours that are all the same."""


def restoration_error(neighbours: Tensor, z0: Tensor) -> Tensor:
    """What is missing from a sample in the nearest point among the affine combinations of its neighbours.

    A ridge keeps their weights near to equal. Only products of differences are formed: they are all that it takes,
    and reading the neighbours is what costs time.

    Args:
        neighbours: shape `(N, k, c)`.
        z0: samples, shape `(N, c)`.

    Returns:
        The restored samples less the samples, shape `(N, c)`.
    """
    k = neighbours.shape[1]
    # From the nearest neighbour, not from the sample: how neighbours differ would drown in a sample that is far away.
    differences, sample = neighbours - neighbours[:, :1], (z0 - neighbours[:, 0]).unsqueeze(2)
    products = differences @ differences.transpose(1, 2)
    # The products of the neighbours' differences from their mean, among themselves and with that of the sample.
    rows = products.mean(dim=2, keepdim=True)
    spread = products - rows - rows.transpose(1, 2) + rows.mean(dim=1, keepdim=True)
    with_sample = differences @ sample - rows
    with_sample = with_sample - with_sample.mean(dim=1, keepdim=True)
    ridge = RIDGE / k * (spread * torch.eye(k).to(spread)).sum(dim=(1, 2), keepdim=True)
    weights = 1 / k + _solve(spread, ridge, with_sample)
    return (weights.transpose(1, 2) @ differences - sample.transpose(1, 2)).squeeze(1)


def _solve(matrix: Tensor, ridge: Tensor, right: Tensor) -> Tensor:
    """Solve `(matrix + ridge I) x = right`, shapes `(N, k, k)`, `(N, 1, 1)` and `(N, k, 1)`.

    Conjugate gradients, since graphs of ONNX and OpenVINO have no solver. As many steps as rows are exact, but for
    rounding.
    """
    x = torch.zeros_like(right)
    residual = direction = right
    square = residual.square().sum(dim=1, keepdim=True)
    for _ in range(matrix.shape[1]):
        image = matrix @ direction + ridge * direction
        step = square / ((direction * image).sum(dim=1, keepdim=True) + TINY)
        x = x + step * direction
        residual = residual - step * image
        before, square = square, residual.square().sum(dim=1, keepdim=True)
        direction = residual + square / (before + TINY) * direction
    return x
