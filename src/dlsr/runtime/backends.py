"""Choose a backend by name and make its engine. Conversions and compilations are kept in the cache."""

import platform
import shutil
from collections.abc import Mapping, Sequence
from importlib import metadata
from importlib.util import find_spec
from typing import Literal, get_args

from dlsr.errors import MissingExtraError, SettingsError
from dlsr.runtime.base import Engine, Graph, Precision
from dlsr.runtime.cache import cached, content_of, is_cached
from dlsr.runtime.onnx_engine import load_onnx
from dlsr.runtime.openvino_engine import load_openvino

Backend = Literal["auto", "torch", "compile", "onnxruntime", "openvino"]
BACKENDS: tuple[Backend, ...] = get_args(Backend)
GRAPH_BACKENDS: tuple[Backend, ...] = ("openvino", "onnxruntime")
"""Those that run a graph in ONNX, without PyTorch."""

_PACKAGES: Mapping[str, str] = {"compile": "torch"}
"""What has to be installed for a backend, if its name does not say it."""
_EXTRAS: Mapping[str, str] = {"torch": "fit", "openvino": "fast"}
_CONVERTERS = ("torch", "onnx", "onnxscript")
CONVERSION_VERSION = 2
"""Raise it with every change to `dlsr.runtime.conversion` that changes what it writes."""

_FASTEST_ON_CPU: tuple[Backend, ...] = (*GRAPH_BACKENDS, "torch")
"""Fastest first, as measured in docs/results.md. `compile` needs a C++ compiler and minutes, so `auto` omits it."""


def choose_backend(backend: Backend, device: str, precision: Precision = "float32") -> Backend:
    """Check a backend's name and resolve `auto`: the fastest installed backend on a CPU, PyTorch on other devices.

    Raises:
        SettingsError: for an unknown name, or a backend that does not run on the device or in the precision.
        MissingExtraError: if a backend is requested by name and not installed.
    """
    if backend not in BACKENDS:
        raise SettingsError(f"unknown backend '{backend}'; choose one of {', '.join(BACKENDS)}")
    if precision != "float32":
        if device != "cpu":
            raise SettingsError(
                f"{precision} is for CPUs; on {device} use float32, which multiplies in half precision where that is "
                "exact enough. A model that was fitted in it runs with --device cpu"
            )
        if backend not in ("auto", "openvino"):
            raise SettingsError(f"the {backend} backend does not run in {precision}; use --backend openvino")
        backend = "openvino"
    if backend == "auto":
        backend = next(filter(_installed, _FASTEST_ON_CPU), "onnxruntime") if device == "cpu" else "torch"
    if not _installed(backend):
        package = _package(backend)
        raise MissingExtraError(package, _EXTRAS.get(package))
    if backend in ("onnxruntime", "openvino") and device != "cpu":
        raise SettingsError(f"the {backend} backend runs on the CPU, not on {device}; use --backend torch")
    if backend == "compile" and not any(shutil.which(compiler) for compiler in ("c++", "g++", "clang++")):
        raise SettingsError("the compile backend needs a C++ compiler; install g++, or use another --backend")
    return backend


def available_backends(device: str) -> list[Backend]:
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
    return find_spec(_package(backend)) is not None


def _package(backend: str) -> str:
    return _PACKAGES.get(backend, backend)


def make_engine(graph: Graph, backend: Backend, device: str, *, inner: bool = False) -> Engine:
    """An engine that runs a graph without learned inputs.

    Args:
        graph: module to run; built only if its conversion is not in the cache.
        backend: as returned by `choose_backend`.
        device: where to run.
        inner: also return what `Graph.inner` names.

    Raises:
        OutputError: if the conversion cannot be written to the cache.
        SettingsError: if the processor does not multiply in the graph's precision.
        MissingExtraError: if what converts graphs is not installed.
        ExportError: if its module cannot be converted.
    """
    names = graph.inner if inner else ()
    if backend == "torch":
        from dlsr.runtime.torch_engine import torch_engine  # noqa: PLC0415 - takes seconds to import

        return torch_engine(graph.build().eval(), graph.inputs, device, len(graph.outputs) + len(names))
    if backend == "compile":
        from dlsr.runtime.compiled_engine import load_compiled, write_compiled  # noqa: PLC0415 - as above

        parts = _parts(graph, _this_machine(device))
        path = cached("model.pt2", parts, lambda path: write_compiled(graph, path, device))
        return load_compiled(path, device, len(graph.outputs) + len(names))
    return graph_engine(as_onnx(graph), backend, graph.precision, names)


def graph_engine(onnx: bytes, backend: Backend, precision: Precision = "float32", inner: Sequence[str] = ()) -> Engine:
    """An engine that runs a graph in ONNX. It needs no PyTorch.

    Args:
        onnx: content of the file.
        backend: one of `GRAPH_BACKENDS`.
        precision: of its products.
        inner: names of tensors inside the graph to return, too.

    Raises:
        SettingsError: if the processor does not multiply in this precision.
        RuntimeError: if it cannot be run, or has no such tensors.
    """
    return load_onnx(onnx, inner=inner) if backend == "onnxruntime" else load_openvino(onnx, precision, inner)


def as_onnx(graph: Graph) -> bytes:
    """A graph in ONNX, from the cache if it is there. Where the cache cannot be written, it is converted anew.

    Raises:
        MissingExtraError: if what converts graphs is not installed.
        ExportError: if its module cannot be converted.
    """
    check_conversion()
    from dlsr.runtime.conversion import write_onnx  # noqa: PLC0415 - takes seconds to import

    return content_of("model.onnx", _parts(graph, _converters()), lambda path: write_onnx(graph, path))


def check_conversion() -> None:
    """Raise MissingExtraError if what converts graphs is not installed."""
    missing = _missing_converter()
    if missing is not None:
        raise MissingExtraError(missing, "fit")


def _missing_converter() -> str | None:
    return next((package for package in _CONVERTERS if find_spec(package) is None), None)


def _this_machine(device: str) -> list[str]:
    """Code compiled ahead of time uses the instructions of this processor."""
    import torch  # noqa: PLC0415 - as above

    return [metadata.version("torch"), platform.machine(), torch.backends.cpu.get_cpu_capability(), device]


def is_own_conversion(onnx: bytes, inputs: Sequence[str], outputs: Sequence[str], key: str) -> bool:
    """Whether this machine converted a graph without learned inputs to the same content, as far as its cache knows."""
    if _missing_converter() is not None:
        return False
    return is_cached("model.onnx", [*_converters(), *inputs, *outputs, key], onnx)


def _parts(graph: Graph, made_by: Sequence[str]) -> list[str]:
    return [*made_by, *graph.inputs, *graph.learned, *sorted(graph.rows), *graph.outputs, graph.key]


def _converters() -> list[str]:
    return [str(CONVERSION_VERSION), *(metadata.version(name) for name in _CONVERTERS)]
