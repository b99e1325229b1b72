"""Device names."""

import os
from importlib.util import find_spec
from pathlib import Path

from dlsr.errors import MissingExtraError, SettingsError

_SIGNS_OF_A_GPU = ("/dev/nvidiactl", "/dev/dxg", "/dev/kfd", r"C:\Windows\System32\nvcuda.dll")
"""Made by the drivers of NVIDIA, of Windows' own Linux, of AMD; and NVIDIA's library on Windows."""


def resolve_device(name: str) -> str:
    """The device for a name: `auto` (a GPU if there is one), `cpu`, `cuda`, ..

    PyTorch, which takes seconds to import, is asked only if there may be a GPU.

    Raises:
        SettingsError: if the device does not exist or cannot be used.
        MissingExtraError: if PyTorch is not installed, without which only the CPU can be used.
    """
    if name == "cpu":
        return "cpu"
    if name == "auto":
        return "cuda" if _may_have_gpu() and find_spec("torch") is not None and _has_gpu() else "cpu"
    if find_spec("torch") is None:
        raise MissingExtraError("torch", "fit")
    import torch  # noqa: PLC0415 - as above

    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise SettingsError(f"cannot use device '{name}' ({str(error).splitlines()[0]}); use --device auto") from error
    return "cpu" if device.type == "cpu" else str(device)


def _may_have_gpu() -> bool:
    return any(Path(sign).exists() for sign in _SIGNS_OF_A_GPU) or "CUDA_VISIBLE_DEVICES" in os.environ


def _has_gpu() -> bool:
    import torch  # noqa: PLC0415 - as above

    return torch.cuda.is_available()
