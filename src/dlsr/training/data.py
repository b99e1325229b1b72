"""Training samples. If they do not fit in memory, they are read a buffer at a time and shuffled by blocks."""

from collections.abc import Callable, Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dlsr.streaming import IN_MEMORY_BYTES, READ_BYTES

BUFFER_BYTES = 2**29
"""Bytes that are shuffled together."""
BLOCK_BYTES = 2**23
"""Bytes read from one place: machines that read megabytes ahead would waste most of a smaller read."""


class Samples:
    """Samples in memory.

    Args:
        samples: shape `(N, ..)`, on the device to train on.
    """

    def __init__(self, samples: Tensor) -> None:
        self._samples = samples
        self.device = samples.device

    def __len__(self) -> int:
        return len(self._samples)

    def __iter__(self) -> Iterator[Tensor]:
        """All samples in order, a buffer at a time."""
        yield self._samples

    def shuffled(self, batch_size: int, generator: torch.Generator) -> Iterator[Tensor]:
        """All samples in buffers of whole batches, except the last; the caller shuffles within each buffer."""
        yield self._samples

    def take(self, chosen: Tensor) -> Tensor:
        """The samples at these indices."""
        return self._samples[chosen.to(self.device)]

    def subset(self, chosen: Tensor) -> "Samples":
        """Only the samples at these indices, which ascend."""
        return Samples(self.take(chosen))

    def map(self, function: Callable[[Tensor], Tensor]) -> "Samples":
        """`function` applied to all samples."""
        return Samples(function(self._samples))


class SamplesOnDisk(Samples):
    """Samples in an array that may be larger than memory.

    Args:
        table: shape `(N, c)`, for instance a memory-mapped file.
        chosen: indices of the samples, ascending, so that the file is read forwards.
        device: to train on.
        function: applied to each buffer.
    """

    def __init__(
        self,
        table: NDArray[np.float32],
        chosen: NDArray[np.intp],
        device: torch.device,
        function: Callable[[Tensor], Tensor] = lambda samples: samples,
    ) -> None:
        self.device = device
        self._table = table
        self._chosen = chosen
        self._function = function
        self._sample_bytes = table[:1].nbytes

    def __len__(self) -> int:
        return len(self._chosen)

    def __iter__(self) -> Iterator[Tensor]:
        """See `Samples`."""
        size = max(READ_BYTES // self._sample_bytes, 1)
        for start in range(0, len(self), size):
            yield self._read(self._chosen[start : start + size])

    def shuffled(self, batch_size: int, generator: torch.Generator) -> Iterator[Tensor]:
        """See `Samples`: each buffer holds blocks from anywhere in the array."""
        block = batch_size * max(round(BLOCK_BYTES / (self._sample_bytes * batch_size)), 1)
        blocks = self._chosen[: len(self) // block * block].reshape(-1, block)
        rest = self._chosen[blocks.size :]
        at_once = max(BUFFER_BYTES // (self._sample_bytes * block), 1)
        buffers = torch.split(torch.randperm(len(blocks), generator=generator), at_once) if len(blocks) else ()
        for buffer in buffers[:-1]:
            yield self._read(blocks[buffer.sort().values.numpy()].ravel())
        last = [blocks[buffers[-1].sort().values.numpy()].ravel()] if buffers else []
        # Samples that fill no block come last, so that every batch but the last is whole.
        yield self._read(np.concatenate([*last, rest]))

    def take(self, chosen: Tensor) -> Tensor:
        """See `Samples`."""
        return self._function(torch.from_numpy(taken(self._table, self._chosen[chosen.numpy()])).to(self.device))

    def subset(self, chosen: Tensor) -> Samples:
        """See `Samples`."""
        return SamplesOnDisk(self._table, self._chosen[chosen.numpy()], self.device, self._function)

    def map(self, function: Callable[[Tensor], Tensor]) -> Samples:
        """See `Samples`."""
        before = self._function
        return SamplesOnDisk(self._table, self._chosen, self.device, lambda samples: function(before(samples)))

    def _read(self, chosen: NDArray[np.intp]) -> Tensor:
        return self._function(torch.from_numpy(np.asarray(self._table[chosen])).to(self.device))


def taken(table: NDArray[np.float32], chosen: NDArray[np.intp]) -> NDArray[np.float32]:
    """`table[chosen]`, read front to back: for an array on disk at most one pass."""
    order = np.argsort(chosen)
    samples = np.empty((len(chosen), *table.shape[1:]), table.dtype)
    samples[order] = table[chosen[order]]
    return samples


def samples_of(table: NDArray[np.float32], chosen: NDArray[np.intp], device: torch.device) -> Samples:
    """Chosen samples of an array, shape `(N, c)`: copied into memory if they fit, else read from the array."""
    if len(chosen) * table[:1].nbytes <= IN_MEMORY_BYTES:
        return Samples(torch.from_numpy(taken(table, chosen)).to(device))
    return SamplesOnDisk(table, np.sort(chosen), device)
