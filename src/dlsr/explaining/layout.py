"""Two-dimensional layouts of features, in which images that look alike lie side by side."""

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from dlsr.calibration.principal import principal_components, standardised
from dlsr.errors import MissingExtraError

Layout = Literal["pca", "umap"]
UMAP_COMPONENTS = 50
"""UMAP is given this many principal components, which is faster and hardly changes it."""
FEWEST_FOR_UMAP = 15
"""UMAP looks at this many neighbours; of fewer images the principal components are taken."""


def check_layout(layout: Layout) -> None:
    """Check that a layout can be computed, before any image is scored.

    Raises:
        MissingExtraError: for UMAP without umap-learn.
    """
    if layout == "umap":
        try:
            import umap  # noqa: F401, PLC0415 - an optional extra
        except ImportError:
            raise MissingExtraError("umap-learn", "umap") from None


def place(z0: NDArray[np.float32], layout: Layout, seed: int = 0) -> NDArray[np.float32]:
    """Places of features in the plane: shape `(n, c)` to `(n, 2)`.

    Args:
        z0: features.
        layout: `pca`: the two leading principal components of the standardised features; `umap`: McInnes et al. 2018.
        seed: of UMAP.

    Raises:
        MissingExtraError: for UMAP without umap-learn.
    """
    check_layout(layout)
    x = standardised(z0)
    if layout == "umap" and len(x) > FEWEST_FOR_UMAP:
        import umap  # noqa: PLC0415

        reduced = principal_components(x, UMAP_COMPONENTS)
        # With a seed it runs in one thread, which it would warn of.
        places: NDArray[np.float32] = umap.UMAP(random_state=seed, n_jobs=1).fit_transform(reduced)
        return places
    reduced = principal_components(x, 2)
    return np.pad(reduced, ((0, 0), (0, 2 - reduced.shape[1])))
