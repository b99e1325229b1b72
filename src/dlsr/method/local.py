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


def restore_from(neighbours: Tensor, z0: Tensor) -> Tensor:
    """The point nearest to each sample among the affine combinations of its neighbours, with a ridge on their weights.

    Conjugate gradients instead of a solver, which graphs of ONNX and OpenVINO do not have; as many steps as neighbours
    are exact but for rounding.

    Args:
        neighbours: shape `(N, k, c)`.
        z0: samples, shape `(N, c)`.

    Returns:
        The restored samples, shape `(N, c)`.
    """
    mean = neighbours.mean(dim=1, keepdim=True)
    spread = neighbours - mean
    gram = spread @ spread.transpose(1, 2)
    ridge = RIDGE * spread.square().sum(dim=2).mean(dim=1)[:, None, None]
    weights = torch.zeros_like(gram[:, :, :1])
    residual = spread @ (z0.unsqueeze(1) - mean).transpose(1, 2)
    direction, square = residual, residual.square().sum(dim=1, keepdim=True)
    for _ in range(neighbours.shape[1]):
        image = gram @ direction + ridge * direction
        step = square / ((direction * image).sum(dim=1, keepdim=True) + TINY)
        weights = weights + step * direction
        residual = residual - step * image
        before, square = square, residual.square().sum(dim=1, keepdim=True)
        direction = residual + square / (before + TINY) * direction
    return (mean + weights.transpose(1, 2) @ spread).squeeze(1)
