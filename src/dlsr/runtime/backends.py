"""Choose a backend by name and make its engine. Conversions and compilations are kept in the cache."""

import hashlib
import json
import platform
import shutil
from collections.abc import Callable, Mapping
from functools import partial
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Literal, get_args

import torch

from dlsr.errors import MissingExtraError, SettingsError
from dlsr.files import cache_root, file_sums, replacing_folder
from dlsr.runtime.base import Engine, Graph, Precision
from dlsr.runtime.compiled_engine import load_compiled, write_compiled
from dlsr.runtime.onnx_engine import load_onnx, write_onnx
from dlsr.runtime.openvino_engine import load_openvino, write_openvino
from dlsr.runtime.torch_engine import torch_engine

Backend = Literal["auto", "torch", "compile", "onnxruntime", "openvino"]
BACKENDS: tuple[Backend, ...] = get_args(Backend)

_NEEDS: Mapping[str, tuple[str, ...]] = {
    "torch": (),
    "compile": (),
    "onnxruntime": ("onnxruntime", "onnx", "onnxscript"),
    "openvino": ("openvino",),
}
_SUMS = "sha256.json"

_FASTEST_ON_CPU: tuple[Backend, ...] = ("openvino", "onnxruntime", "torch")
"""Fastest first, as measured in docs/results.md. `compile` needs a C++ compiler and minutes, so `auto` omits it."""


def choose_backend(backend: Backend, device: torch.device, precision: Precision = "float32") -> Backend:
    """Check a backend's name and resolve `auto`: the fastest installed backend on a CPU, PyTorch on other devices.

    Raises:
        SettingsError: for an unknown name, or a backend that does not run on the device or in the precision.
        MissingExtraError: if a backend is requested by name and not installed.
    """
    if backend not in BACKENDS:
        raise SettingsError(f"unknown backend '{backend}'; choose one of {', '.join(BACKENDS)}")
    if precision == "bfloat16":
        if device.type != "cpu":
            raise SettingsError(
                f"bfloat16 is for CPUs; on {device} use float32, which multiplies in half precision where that is "
                "exact enough"
            )
        if backend not in ("auto", "openvino"):
            raise SettingsError(f"the {backend} backend does not run in bfloat16; use --backend openvino")
        backend = "openvino"
    if backend == "auto":
        return next(name for name in _FASTEST_ON_CPU if _installed(name)) if device.type == "cpu" else "torch"
    if not _installed(backend):
        raise MissingExtraError(backend, {"onnxruntime": "onnx"}.get(backend, backend))
    if backend in ("onnxruntime", "openvino") and device.type != "cpu":
        raise SettingsError(f"the {backend} backend runs on the CPU, not on {device}; use --backend torch")
    if backend == "compile" and not any(shutil.which(compiler) for compiler in ("c++", "g++", "clang++")):
        raise SettingsError("the compile backend needs a C++ compiler; install g++, or use another --backend")
    return backend


def available_backends(device: torch.device) -> list[Backend]:
    """The backends that run on a device, that of `auto` first."""
    first = choose_backend("auto", device)
    found = [first]
    for backend in BACKENDS[1:]:
        try:
            if backend != first:
                found.append(choose_backend(backend, device))
        except (SettingsError, MissingExtraError):
            continue
    return found


def _installed(backend: str) -> bool:
    return all(find_spec(module) is not None for module in _NEEDS[backend])


def make_engine(graph: Graph, backend: Backend, device: torch.device) -> Engine:
    """An engine that runs a graph.

    Args:
        graph: module to run; built only if its engine is not in the cache.
        backend: as returned by `choose_backend`.
        device: where to run.

    Raises:
        OutputError: if the converted engine cannot be written to the cache.
        SettingsError: if the processor does not multiply in the graph's precision.
    """
    if backend == "torch":
        return torch_engine(graph.build().eval(), graph.inputs, device)
    kinds: Mapping[str, tuple[str, Callable[..., None], Callable[[Path, torch.device], Engine]]] = {
        "compile": ("model.pt2", write_compiled, load_compiled),
        "onnxruntime": ("model.onnx", write_onnx, load_onnx),
        "openvino": ("model.xml", write_openvino, partial(load_openvino, precision=graph.precision)),
    }
    name, write, load = kinds[backend]
    folder = _engine_folder(graph, backend, device)
    if not _is_intact(folder):
        # One that another process is loading must not be replaced.
        with replacing_folder(folder, unless=lambda: _is_intact(folder)) as temporary:
            write(graph, temporary / name, device)
            sums = file_sums(temporary)
            (temporary / _SUMS).write_text(json.dumps(sums))
    return load(folder / name, device)


def _engine_folder(graph: Graph, backend: Backend, device: torch.device) -> Path:
    versions = [metadata.version(name) for name in ("torch", *_NEEDS[backend])]
    # Code compiled ahead of time uses the instructions of this processor.
    machine = [platform.machine(), torch.backends.cpu.get_cpu_capability(), str(device)] if backend == "compile" else []
    parts = [*versions, *machine, *graph.inputs, *graph.outputs, graph.key]
    return cache_root() / "engines" / f"{backend}-{hashlib.sha256(repr(parts).encode()).hexdigest()}"


def _is_intact(folder: Path) -> bool:
    try:
        written = json.loads((folder / _SUMS).read_text())
        return bool(written) and written == {
            name: sha256 for name, sha256 in file_sums(folder).items() if name != _SUMS
        }
    except (OSError, ValueError):
        return False
