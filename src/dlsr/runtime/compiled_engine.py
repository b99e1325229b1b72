"""PyTorch, compiled ahead of time for this machine."""

from pathlib import Path
from typing import Any

import numpy as np
import torch

from dlsr.runtime.base import Array, Engine, Graph
from dlsr.runtime.conversion import exported
from dlsr.runtime.torch_engine import as_tuple


def write_compiled(graph: Graph, path: Path, device: str) -> None:
    """Compile a graph into `path`, a `.pt2` package for this machine."""
    inductor: Any = torch._inductor
    inductor.aoti_compile_and_package(exported(graph, device), package_path=str(path))


def load_compiled(path: Path, device: str, outputs: int) -> Engine:
    """The engine for a file written by `write_compiled`. It returns that many outputs, the first ones."""
    inductor: Any = torch._inductor
    package = inductor.aoti_load_package(str(path))

    @torch.inference_mode()
    def run(*arrays: Array) -> tuple[Array, ...]:
        found = as_tuple(package(*(torch.from_numpy(np.ascontiguousarray(array)).to(device) for array in arrays)))
        return tuple(output.cpu().numpy() for output in found[:outputs])

    return Engine(run)
