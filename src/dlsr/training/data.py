"""Rows to learn from, which may be more than fit in memory: read a buffer at a time, shuffled by blocks."""

from collections.abc import Callable, Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

IN_MEMORY_BYTES = 2**30
"""More features than this stay where they are and are read a buffer at a time."""
READ_BYTES = 2**27
"""So much is read at once, in order."""
BUFFER_BYTES = 2**29
"""So much is shuffled whole."""
BLOCK_BYTES = 2**23
"""So much is read together from one place: less would be lost on machines that read megabytes ahead."""


class Rows:
    """Rows that are in memory.

    Args:
        rows: shape `(N, ..)`, on the device to train on.
    """

    def __init__(self, rows: Tensor) -> None:
        self._rows = rows
        self.device = rows.device

    def __len__(self) -> int:
        return len(self._rows)

    def __iter__(self) -> Iterator[Tensor]:
        """All rows in order, a buffer at a time."""
        yield self._rows

    def shuffled(self, batch_size: int, generator: torch.Generator) -> Iterator[Tensor]:
        """All rows in buffers of whole batches, the last aside; to be shuffled within, too."""
        yield self._rows

    def take(self, chosen: Tensor) -> Tensor:
        """Some rows, by their numbers."""
        return self._rows[chosen.to(self.device)]

    def map(self, function: Callable[[Tensor], Tensor]) -> "Rows":
        """What a function of rows makes of them."""
        return Rows(function(self._rows))


class RowsInBlocks(Rows):
    """Rows of an array that is larger than memory, or may be.

    Args:
        table: shape `(N, c)`, for instance a memory-mapped file.
        chosen: numbers of the rows that are meant, ascending, so that reading goes forward.
        device: to train on.
        function: what is made of the rows of each buffer.
    """

    def __init__(
        self,
        table: NDArray[np.float32],
        chosen: NDArray[np.intp],
        device: torch.device,
        function: Callable[[Tensor], Tensor] = lambda rows: rows,
    ) -> None:
        self.device = device
        self._table = table
        self._chosen = chosen
        self._function = function
        self._row_bytes = table[:1].nbytes

    def __len__(self) -> int:
        return len(self._chosen)

    def __iter__(self) -> Iterator[Tensor]:
        """See `Rows`."""
        size = max(READ_BYTES // self._row_bytes, 1)
        for start in range(0, len(self), size):
            yield self._read(self._chosen[start : start + size])

    def shuffled(self, batch_size: int, generator: torch.Generator) -> Iterator[Tensor]:
        """See `Rows`: each buffer holds blocks from anywhere."""
        block = batch_size * max(round(BLOCK_BYTES / (self._row_bytes * batch_size)), 1)
        blocks = self._chosen[: len(self) // block * block].reshape(-1, block)
        rest = self._chosen[blocks.size :]
        at_once = max(BUFFER_BYTES // (self._row_bytes * block), 1)
        buffers = torch.split(torch.randperm(len(blocks), generator=generator), at_once) if len(blocks) else ()
        for buffer in buffers[:-1]:
            yield self._read(blocks[buffer.sort().values.numpy()].ravel())
        last = [blocks[buffers[-1].sort().values.numpy()].ravel()] if buffers else []
        # Rows that fill no block come last, so that every batch but the last is whole.
        yield self._read(np.concatenate([*last, rest]))

    def take(self, chosen: Tensor) -> Tensor:
        """See `Rows`."""
        return self._function(torch.from_numpy(taken(self._table, self._chosen[chosen.numpy()])).to(self.device))

    def map(self, function: Callable[[Tensor], Tensor]) -> Rows:
        """See `Rows`."""
        before = self._function
        return RowsInBlocks(self._table, self._chosen, self.device, lambda rows: function(before(rows)))

    def _read(self, chosen: NDArray[np.intp]) -> Tensor:
        return self._function(torch.from_numpy(np.asarray(self._table[chosen])).to(self.device))


def taken(table: NDArray[np.float32], chosen: NDArray[np.intp]) -> NDArray[np.float32]:
    """`table[chosen]`, read from front to back, which for rows on disk is one pass at most."""
    order = np.argsort(chosen)
    rows = np.empty((len(chosen), *table.shape[1:]), table.dtype)
    rows[order] = table[chosen[order]]
    return rows


def rows_of(table: NDArray[np.float32], chosen: NDArray[np.intp], device: torch.device) -> Rows:
    """Chosen rows of an array, shape `(N, c)`: in memory if they are few, else left where they are."""
    if len(chosen) * table[:1].nbytes <= IN_MEMORY_BYTES:
        return Rows(torch.from_numpy(taken(table, chosen)).to(device))
    return RowsInBlocks(table, np.sort(chosen), device)
