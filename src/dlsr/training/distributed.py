"""Data-parallel training by several processes, started by `torchrun` or `accelerate launch`."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from dlsr.errors import SettingsError, one_line

A = TypeVar("A")

PATIENCE = timedelta(days=1)
"""One process may take hours longer than another to encode its share; if one dies, its launcher ends them all."""


@dataclass(frozen=True)
class Ranks:
    """Rank of this process and number of processes that train together; by default a single process."""

    rank: int = 0
    size: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this is the process that prints and writes."""
        return self.rank == 0

    def share(self, n: int) -> slice:
        """This process's share of `n` samples. The shares are disjoint, nearly equal, and cover all samples."""
        return slice(n * self.rank // self.size, n * (self.rank + 1) // self.size)

    def parallel(self, module: nn.Module) -> nn.Module:
        """The module with the gradients of all processes averaged."""
        return module if self.size == 1 else DistributedDataParallel(module)

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum of the tensors of all processes, in every process."""
        if self.size > 1:
            distributed.all_reduce(tensor)
        return tensor

    def from_first(self, value: A) -> A:
        """The value of the first process, in every process."""
        if self.size == 1:
            return value
        held = [value]
        distributed.broadcast_object_list(held)
        return held[0]

    def wait(self) -> None:
        """Wait for all processes."""
        if self.size > 1:
            distributed.barrier()


ALONE = Ranks()


@contextmanager
def joined() -> Iterator[Ranks]:
    """Join the processes that were started together with this one, if any were; leave them at the end.

    Each takes the GPU of its number on its machine. If `torch.distributed` is initialised, that is left as it is.

    Raises:
        SettingsError: if they cannot be reached.
    """
    if distributed.is_available() and distributed.is_initialized():
        yield Ranks(distributed.get_rank(), distributed.get_world_size())
        return
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield ALONE
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    try:
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        distributed.init_process_group(backend, timeout=PATIENCE)
    except (ValueError, RuntimeError) as error:
        raise SettingsError(
            f"cannot join the other processes: {one_line(error)}; start them all by torchrun or accelerate launch"
        ) from error
    try:
        yield Ranks(distributed.get_rank(), distributed.get_world_size())
    finally:
        distributed.destroy_process_group()
