"""Choosing a backend by name, and making the engine: converted or compiled once, kept in the cache."""

import hashlib
import json
import platform
import shutil
from collections.abc import Mapping
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Literal, get_args

import torch

from dlsr.errors import MissingExtraError, SettingsError
from dlsr.files import cache_root, file_sums, replacing_folder
from dlsr.runtime.base import Engine, Graph
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
"""As measured, see docs/results.md. `compile` needs a C++ compiler and minutes, so it must be asked for."""


def choose_backend(backend: Backend, device: torch.device) -> Backend:
    """The backend that `auto` stands for: on a CPU the fastest one installed, elsewhere PyTorch.

    Raises:
        SettingsError: for an unknown name, or one that runs on the CPU alone with another device.
        MissingExtraError: if one is asked for by name and not installed.
    """
    if backend not in BACKENDS:
        raise SettingsError(f"unknown backend '{backend}'; choose one of {', '.join(BACKENDS)}")
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
    """The backends that run here, the one that `auto` stands for first."""
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
        graph: what to run.
        backend: as `choose_backend` gave it.
        device: where.

    Raises:
        OutputError: if the compiled engine cannot be kept.
    """
    if backend == "torch":
        return torch_engine(graph.build().eval(), graph.inputs, device)
    name, write, load = {
        "compile": ("model.pt2", write_compiled, load_compiled),
        "onnxruntime": ("model.onnx", write_onnx, load_onnx),
        "openvino": ("model.xml", write_openvino, load_openvino),
    }[backend]
    folder = _engine_folder(graph, backend, device)
    if not _is_whole(folder):
        with replacing_folder(folder) as temporary:
            write(graph, temporary / name, device)
            sums = file_sums(temporary)
            (temporary / _SUMS).write_text(json.dumps(sums))
    return load(folder / name, device)


def _engine_folder(graph: Graph, backend: Backend, device: torch.device) -> Path:
    versions = [metadata.version(name) for name in ("torch", *_NEEDS[backend])]
    # What is compiled ahead of time holds instructions of this very processor.
    machine = [platform.machine(), torch.backends.cpu.get_cpu_capability(), str(device)] if backend == "compile" else []
    what = [*versions, *machine, *graph.inputs, *graph.outputs, graph.key]
    return cache_root() / "engines" / f"{backend}-{hashlib.sha256(repr(what).encode()).hexdigest()}"


def _is_whole(folder: Path) -> bool:
    try:
        written = json.loads((folder / _SUMS).read_text())
        return bool(written) and written == {n: one for n, one in file_sums(folder).items() if n != _SUMS}
    except (OSError, ValueError):
        return False
