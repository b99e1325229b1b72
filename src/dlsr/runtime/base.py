"""What an engine is: it runs a pure module, a function of arrays, on this machine."""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor, nn

Array = NDArray[Any]


@dataclass(frozen=True)
class Engine:
    """Runs a graph. May be called from several threads at once."""

    run: Callable[..., tuple[Array, ...]]
    """The graph's inputs as arrays, in order, to its outputs. All have N >= 1 images as first dimension."""
    streams: int = 1
    """How many calls at once are quickest."""
    batch: int = 32
    """How many images a call are quickest."""

    def __call__(self, *arrays: Array) -> tuple[Array, ...]:
        """As `run`."""
        return self.run(*arrays)


@dataclass(frozen=True)
class Graph:
    """A pure module, and what an engine must know to run it."""

    build: Callable[[], nn.Module]
    """Makes the module; not called where the engine is in the cache."""
    inputs: Mapping[str, Tensor]
    """Examples by name, each of shape `(2, ..)`."""
    outputs: tuple[str, ...]
    key: str
    """Digest of all that decides what the module computes."""


def as_tuple(outputs: Any) -> tuple[Tensor, ...]:
    """A module's outputs as a tuple, also where there is one."""
    return outputs if isinstance(outputs, tuple) else (outputs,)


def thread_limit() -> int | None:
    """Threads that an engine may use, where the environment tells PyTorch so: several workers then share the cores."""
    return torch.get_num_threads() if "OMP_NUM_THREADS" in os.environ else None


def exported(graph: Graph, device: torch.device) -> torch.export.ExportedProgram:
    """A graph traced by `torch.export`, for any number of images."""
    module = graph.build().eval().requires_grad_(False).to(device)
    images = torch.export.Dim("N", min=1)
    examples = tuple(example.to(device) for example in graph.inputs.values())
    with torch.no_grad():
        return torch.export.export(module, examples, dynamic_shapes=tuple({0: images} for _ in examples))
