"""The interface of all engines: an `Engine` runs a `Graph`, a pure module with named inputs and outputs."""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, get_args

from numpy.typing import NDArray

if TYPE_CHECKING:
    from torch import Tensor, nn

Array = NDArray[Any]
Precision = Literal["float32", "bfloat16", "int8"]
PRECISIONS: tuple[Precision, ...] = get_args(Precision)


@dataclass(frozen=True)
class Engine:
    """Runs a graph. Safe to call from several threads at once."""

    run: Callable[..., tuple[Array, ...]]
    """Takes the graph's inputs as arrays, in order, and returns its outputs. The first dimension of all is `N >= 1`."""
    streams: int = 1
    """The number of concurrent calls that gives the highest throughput."""
    batch: int = 32
    """The number of images in a call that gives the highest throughput."""

    def __call__(self, *arrays: Array) -> tuple[Array, ...]:
        """Same as `run`."""
        return self.run(*arrays)


@dataclass(frozen=True)
class Graph:
    """A pure module with the names and examples that an engine needs to trace it."""

    build: "Callable[[], nn.Module]"
    """Builds the module; not called if the converted engine is in the cache."""
    inputs: "Mapping[str, Tensor]"
    """Example inputs by name, each of shape `(2, ..)`."""
    outputs: tuple[str, ...]
    key: str
    """Digest of everything that decides what the module computes: settings, weights, versions of its code."""
    precision: Precision = "float32"
    """Of the products in an engine. Inputs and outputs are in float32, as is the converted file but for `int8`."""
    learned: "Mapping[str, Tensor]" = field(default_factory=dict)
    """Inputs that follow, the same for all images: no part of the converted graph, so that it serves many models."""
    rows: frozenset[str] = frozenset()
    """Those of them that may have any number of rows, the same for all, ..."""
    fewest_rows: int = 1
    """... but at least this."""
    inner: tuple[str, ...] = ()
    """Names of what the module returns besides its outputs. It keeps these names in the converted graph, but engines
    return it on demand only."""


def thread_limit() -> int | None:
    """The number of threads for an engine if `OMP_NUM_THREADS` limits it, as for workers sharing cores; else None."""
    first = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
    return int(first) if first.isdecimal() and int(first) > 0 else None
