"""Several processes that train together, as `torchrun` and `accelerate launch` start them: each takes its share."""

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
    """Which process this is, of how many that train together; by default the only one."""

    rank: int = 0
    size: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this is the process that speaks and writes for all."""
        return self.rank == 0

    def share(self, n: int) -> slice:
        """This process's share of `n` rows: together the shares are all rows, and nearly equal."""
        return slice(n * self.rank // self.size, n * (self.rank + 1) // self.size)

    def parallel(self, module: nn.Module) -> nn.Module:
        """The module with the gradients of all processes averaged."""
        return module if self.size == 1 else DistributedDataParallel(module)

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum of all processes' tensors, the same in each."""
        if self.size > 1:
            distributed.all_reduce(tensor)
        return tensor

    def from_first(self, value: A) -> A:
        """The first process's value, in each."""
        if self.size == 1:
            return value
        held = [value]
        distributed.broadcast_object_list(held)
        return held[0]

    def wait(self) -> None:
        """Until all processes are here."""
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
