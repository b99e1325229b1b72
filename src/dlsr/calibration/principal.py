"""Features of many dimensions reduced to their principal components."""

import numpy as np
from numpy.typing import NDArray

OVERSAMPLES = 10
"""Further components that are searched with them, which makes them more precise ..."""
ITERATIONS = 3
""".. as do iterations."""

Features = NDArray[np.float32]


def standardised(z0: Features) -> Features:
    """Features, shape `(n, c)`, with mean 0 and standard deviation 1 in each dimension that varies."""
    deviations = z0 - z0.mean(axis=0)
    scale = deviations.std(axis=0)
    scaled: Features = deviations / np.where(scale > 0, scale, 1)
    return scaled


def principal_components(x: Features, count: int) -> Features:
    """Centred features in their `count` leading principal components: shape `(n, c)` to `(n, min(count, n, c))`.

    By randomised subspace iteration (Halko, Martinsson and Tropp 2011, algorithm 4.4).
    """
    tall = x if len(x) >= x.shape[1] else x.T
    width = tall.shape[1]
    # These random numbers are the same in all versions of NumPy.
    basis = np.random.RandomState(0).standard_normal((width, min(count + OVERSAMPLES, width))).astype(np.float32)
    for _ in range(ITERATIONS):
        basis = np.linalg.qr(tall.T @ np.linalg.qr(tall @ basis)[0])[0]
    basis = np.linalg.qr(tall @ basis)[0]
    left, singular, right = np.linalg.svd(basis.T @ tall, full_matrices=False)
    reduced: Features = ((basis @ left if tall is x else right.T) * singular)[:, :count]
    return reduced
