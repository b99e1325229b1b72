"""Clusters of features, and images that belong to none."""

import numpy as np
from numpy.typing import NDArray

from dlsr.calibration.principal import principal_components, standardised
from dlsr.errors import MissingExtraError

SMALLEST = 5
"""The smallest cluster has at least this many images ..."""
SHARE = 0.05
""".. and at least this share of all images ..."""
ENOUGH = 20
""".. but need not have more than this many."""
COMPONENTS = 16
"""Features are reduced to this many principal components."""


def check_clusters() -> None:
    """Check that features can be clustered, before any image is scored.

    Raises:
        MissingExtraError: without scikit-learn.
    """
    try:
        import sklearn.cluster  # noqa: F401, PLC0415 - an optional extra
    except ImportError:
        raise MissingExtraError("scikit-learn", "groups") from None


def cluster(z0: NDArray[np.float32]) -> NDArray[np.intp]:
    """Cluster features by HDBSCAN (Campello et al. 2013) of the directions of their standardised principal components.

    The settings did best on mixtures of images from known sources, see `benchmarks/refused.py`. Images of one kind are
    divided into clusters, too, by what else tells them apart.

    Args:
        z0: features, shape `(n, c)`.

    Returns:
        The number of each one's cluster, shape `(n,)`, 0 for the largest; -1 for features that are in none.

    Raises:
        MissingExtraError: without scikit-learn.
    """
    check_clusters()
    from sklearn.cluster import HDBSCAN  # noqa: PLC0415

    if len(z0) < 2 * SMALLEST:
        return np.full(len(z0), -1, np.intp)
    reduced = principal_components(standardised(z0), COMPONENTS)
    directions = reduced / np.maximum(np.linalg.norm(reduced, axis=1, keepdims=True), np.finfo(np.float32).tiny)
    smallest = int(np.clip(SHARE * len(z0), SMALLEST, ENOUGH))
    found = HDBSCAN(min_cluster_size=smallest, min_samples=1, copy=True).fit_predict(directions)
    by_size = np.argsort(-np.bincount(found[found >= 0]), kind="stable")
    rank = np.empty(len(by_size) + 1, np.intp)
    rank[by_size], rank[-1] = np.arange(len(by_size)), -1
    labels: NDArray[np.intp] = rank[found]
    return labels
