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
"""Squared differences of neighbours count as rounding if they are less than this share of the sample's."""
SMALLEST = 1e-30
"""Divisors are at least this. It is not added to them, since the conversion to ONNX leaves out such additions."""


def restoration_error(neighbours: Tensor, z0: Tensor) -> Tensor:
    """Error of restoring samples by affine combinations of their neighbours.

    A ridge keeps their weights near to equal.

    Args:
        neighbours: shape `(N, k, c)`.
        z0: samples, shape `(N, c)`.

    Returns:
        The restored samples less the samples, shape `(N, c)`.
    """
    k = neighbours.shape[1]
    # Differences from the sample or from one neighbour would save a pass, but lose digits if the sample is far away.
    mean = neighbours.mean(dim=1, keepdim=True)
    spread, sample = neighbours - mean, z0.unsqueeze(1) - mean
    gram = spread @ spread.transpose(1, 2)
    # The mean of its diagonal, by a sum that OpenVINO can convert.
    unit = (gram * torch.eye(k).to(gram)).sum(dim=(1, 2), keepdim=True) / k
    # Neighbours that are equal differ by rounding, which must not restore a sample that is far away.
    unit = (unit + TINY * sample.square().sum(dim=2, keepdim=True)).clamp(min=SMALLEST)
    products = spread @ sample.transpose(1, 2)
    weights = _solve(gram / unit, (products - products.mean(dim=1, keepdim=True)) / unit)
    return (weights.transpose(1, 2) @ spread - sample).squeeze(1)


def _solve(matrix: Tensor, right: Tensor) -> Tensor:
    """Solve `(matrix + RIDGE I) x = right`, shapes `(N, k, k)` and `(N, k, 1)`.

    Conjugate gradients, since graphs of ONNX and OpenVINO have no solver. As many steps as rows are exact, but for
    rounding.
    """
    x = torch.zeros_like(right)
    residual = direction = right
    square = residual.square().sum(dim=1, keepdim=True)
    for _ in range(matrix.shape[1]):
        image = matrix @ direction + RIDGE * direction
        step = square / (direction * image).sum(dim=1, keepdim=True).clamp(min=SMALLEST)
        x = x + step * direction
        residual = residual - step * image
        before, square = square, residual.square().sum(dim=1, keepdim=True)
        direction = residual + square / before.clamp(min=SMALLEST) * direction
    return x
