"""A set of ids that may grow for years."""

import numpy as np
from numpy.typing import NDArray

_RECENT = 65_536
"""Ids that are kept in a set before they are sorted into the array."""


class Ids:
    """A set of ids, in about as many bytes of memory as they have.

    Args:
        size: bytes of an id.
    """

    def __init__(self, size: int) -> None:
        self._sorted: NDArray[np.bytes_] = np.empty(0, f"S{size}")
        self._recent: set[bytes] = set()

    def __len__(self) -> int:
        return len(self._sorted) + len(self._recent)

    def __contains__(self, id: object) -> bool:
        if id in self._recent:
            return True
        if not isinstance(id, bytes) or not len(self._sorted):
            return False
        place = int(np.searchsorted(self._sorted, np.bytes_(id)))
        # NumPy leaves out zeros at the end of bytes.
        return place < len(self._sorted) and bool(self._sorted[place] == id.rstrip(b"\0"))

    def add(self, id: bytes) -> None:
        """Add an id that may be there already."""
        if id not in self:
            self._recent.add(id)
        if len(self._recent) >= _RECENT:
            recent = np.array(list(self._recent), self._sorted.dtype)
            self._sorted = np.sort(np.concatenate([self._sorted, recent]))
            self._recent = set()
