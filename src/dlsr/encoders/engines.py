"""What runs a frozen feature network: PyTorch itself, or OpenVINO, several times as fast on a CPU."""

import hashlib
import json
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from dlsr.errors import MissingExtraError, SettingsError
from dlsr.features import to_z0
from dlsr.files import cache_root, replacing_folder

Backend = Literal["auto", "torch", "openvino"]
BACKENDS: tuple[Backend, ...] = ("auto", "torch", "openvino")

Engine = Callable[[NDArray[np.uint8]], NDArray[np.float32]]
"""Resized images, uint8 of shape `(N, size, size, 3)`, to `z0`, float32 of shape `(N, c)`."""


class PixelsToZ0(nn.Module):
    """Pixel normalisation, the feature network, pooling and z-score as one module: what an engine runs.

    Takes float pixels in 0..255 of shape `(N, 3, size, size)`, gives `z0` of shape `(N, c)`.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, network: nn.Module, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1))

    def forward(self, pixels: Tensor) -> Tensor:
        """See the class."""
        return to_z0(self.network((pixels - self.mean) / self.std))


def choose_backend(backend: Backend, device: torch.device) -> Literal["torch", "openvino"]:
    """The backend that `auto` stands for: OpenVINO on a CPU where it is installed, else PyTorch.

    Raises:
        SettingsError: for an unknown name, or OpenVINO on another device than the CPU.
        MissingExtraError: if OpenVINO is asked for by name and not installed.
    """
    if backend not in BACKENDS:
        raise SettingsError(f"unknown backend '{backend}'; choose one of {', '.join(BACKENDS)}")
    if backend == "torch":
        return "torch"
    installed = find_spec("openvino") is not None
    if backend == "auto":
        return "openvino" if installed and device.type == "cpu" else "torch"
    if not installed:
        raise MissingExtraError("openvino", "openvino")
    if device.type != "cpu":
        raise SettingsError(f"the openvino backend runs on the CPU, not on {device}; use --backend torch")
    return "openvino"


def torch_engine(module: PixelsToZ0, device: torch.device) -> Engine:
    """Run with PyTorch, channels last: 1.5 times as fast on a CPU, and the layout of tensor cores."""
    module = module.to(device).to(memory_format=torch.channels_last)

    @torch.inference_mode()
    def run(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        batch = torch.from_numpy(pixels).to(device).permute(0, 3, 1, 2).float()
        z0: NDArray[np.float32] = module(batch.contiguous(memory_format=torch.channels_last)).cpu().numpy()
        return z0

    return run


def openvino_engine(module: PixelsToZ0, size: int, key: str) -> Engine:
    """Run with OpenVINO on the CPU in full float32.

    Converting takes several seconds, so the converted network is kept in the cache.

    Args:
        module: what to run.
        size: side of its images in pixels.
        key: digest of weights, stages and preprocessing.
    """
    import openvino  # noqa: PLC0415 - an optional extra that is slow to import

    version = f"{openvino.__version__}-{torch.__version__}".replace("/", "_")
    folder = cache_root() / "engines" / f"openvino-{version}-{key}"
    if not _is_whole(folder):
        example = torch.zeros(2, 3, size, size)
        exported = torch.export.export(module, (example,), dynamic_shapes=({0: torch.export.Dim("N", min=1)},))
        model = openvino.convert_model(exported)
        with replacing_folder(folder) as temporary:
            openvino.save_model(model, temporary / "model.xml", compress_to_fp16=False)
            (temporary / "sha256.json").write_text(json.dumps(_sums(temporary)))
    core = openvino.Core()
    compiled: Any = core.compile_model(
        core.read_model(folder / "model.xml"),
        "CPU",
        {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"},
    )

    def run(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        batch = pixels.transpose(0, 3, 1, 2).astype(np.float32)
        return np.array(compiled(batch)[0])

    return run


def _sums(folder: Path) -> dict[str, str]:
    return {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in ("model.xml", "model.bin")}


def _is_whole(folder: Path) -> bool:
    try:
        written: object = json.loads((folder / "sha256.json").read_text())
        return written == _sums(folder)
    except (OSError, ValueError):
        return False
