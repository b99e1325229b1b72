"""Groups of images that resemble each other more than they resemble new images, such as the frames of one video."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Groups:
    """Which images belong together, and how this is known."""

    numbers: NDArray[np.int64]
    """A number for each image, shape `(N,)`, the same for images of one group."""
    by: str
    """`DetectorConfig.group_by`, or `given`."""
    exact: NDArray[np.int64] | None = None
    """As `numbers`, for exact copies alone, if groups were found by likeness."""

    @classmethod
    def of(cls, labels: Sequence[Hashable], by: str) -> Self:
        """Groups of images with equal labels."""
        number_of = {label: i for i, label in enumerate(dict.fromkeys(labels))}
        return cls(np.array([number_of[label] for label in labels], dtype=np.int64), by)

    @property
    def count(self) -> int:
        """Number of groups."""
        return len(np.unique(self.numbers))
