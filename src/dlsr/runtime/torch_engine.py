"""PyTorch, eager."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from dlsr.runtime.base import Array, Engine

HALF_TOLERANCE = 1e-3
"""Half precision is used on a GPU if no output differs by more than this from single precision."""


def as_tuple(outputs: Any) -> tuple[Tensor, ...]:
    """A module's outputs as a tuple, also if there is only one."""
    return outputs if isinstance(outputs, tuple) else (outputs,)


def torch_engine(module: nn.Module, inputs: Mapping[str, Tensor], device: str, outputs: int | None = None) -> Engine:
    """An engine that runs a module.

    Args:
        module: moved to the device.
        inputs: example inputs by name, used to decide whether half precision is accurate enough on a GPU.
        device: CPU or GPU.
        outputs: the number of outputs to return, the first ones; None for all.
    """
    # Channels last is 1.5 times as fast on a CPU, and is the layout of tensor cores.
    module = module.to(device).to(memory_format=torch.channels_last)
    kind = device.partition(":")[0]
    half = kind == "cuda" and half_agrees(module, inputs, device, torch.float16, outputs)

    @torch.inference_mode()
    def run(*arrays: Array) -> tuple[Array, ...]:
        with torch.autocast(kind, torch.float16, enabled=half):
            found = as_tuple(module(*(torch.from_numpy(array).to(device) for array in arrays)))
        return tuple(output.float().cpu().numpy() for output in found[:outputs])

    return Engine(run)


@torch.inference_mode()
def half_agrees(
    module: nn.Module, inputs: Mapping[str, Tensor], device: str, dtype: torch.dtype, outputs: int | None = None
) -> bool:
    """Whether autocast to `dtype` changes the outputs for the example inputs by at most `HALF_TOLERANCE`."""
    examples = [example.to(device) for example in inputs.values()]
    exact = as_tuple(module(*examples))[:outputs]
    with torch.autocast(device.partition(":")[0], dtype):
        rounded = as_tuple(module(*examples))[:outputs]
    return all((a - b.float()).abs().max() <= HALF_TOLERANCE for a, b in zip(exact, rounded, strict=True))
