"""Principal components in which distances between the images of a folder are measured."""

import numpy as np
from numpy.typing import NDArray

COMPONENTS = 64
"""Distances are measured in this many principal components, at most a quarter of the number of images."""
FITTED_TO = 1024
"""The components and the dimension are those of this many random images."""
CONSTANT = 1e-6
"""Columns that vary less than this, relative to their mean, are left out; so are components, relative to the first."""
BLOCK = 4096
"""Images projected at once."""
SMALLEST = 1e-12
"""Divisors are at least this."""

Array = NDArray[np.float32]
Indices = NDArray[np.intp]


def projected(z0: NDArray[np.float32], rows: Indices) -> Array:
    """These rows of the features in their leading principal components, shape `(n, COMPONENTS)` or narrower.

    Columns are standardised first. Components are divided by the square root of their standard deviation: half-way
    to equal ones, since small components tell copies from other images, too, but the smallest are noise.
    """
    sample = z0[rows[some_of(len(rows), FITTED_TO)]]
    mean, deviation = sample.mean(axis=0, dtype=np.float64), sample.std(axis=0, dtype=np.float64)
    deviation[deviation <= CONSTANT * np.abs(mean)] = np.inf
    standardised = (sample - mean) / deviation
    components = min(COMPONENTS, len(sample) // 4, z0.shape[1])
    # From the products of the samples, which are fewer than the columns of the larger presets.
    strengths, weights = np.linalg.eigh(standardised @ standardised.T)
    strengths, weights = strengths[-components:], weights[:, -components:]
    kept = strengths >= CONSTANT**2 * strengths[-1]
    scale = np.maximum(strengths[kept], SMALLEST) ** 0.75
    axes = (standardised.T @ (weights[:, kept] / scale) / deviation[:, None]).astype(np.float32)
    centre = mean.astype(np.float32)
    points = np.empty((len(rows), axes.shape[1]), np.float32)
    # From front to back, since the features may be on disk.
    for some in np.split(np.argsort(rows), range(BLOCK, len(rows), BLOCK)):
        points[some] = (z0[rows[some]] - centre) @ axes
    return points


def some_of(n: int, limit: int) -> Indices:
    """Indices of at most `limit` random ones of `n`."""
    return np.random.default_rng(0).permutation(n)[:limit]
