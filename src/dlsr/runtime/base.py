"""What runs a pure module on this machine: PyTorch, PyTorch compiled ahead of time, ONNX Runtime or OpenVINO.

All four take a `Graph` and give an `Engine`, a function of arrays. What is converted or compiled is kept in the
cache, keyed by what it was made from and the versions that made it, so it is made once.
"""

import hashlib
import json
import os
import platform
import shutil
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from dlsr.errors import MissingExtraError, SettingsError
from dlsr.files import cache_root, file_sums, replacing_folder

Backend = Literal["auto", "torch", "compile", "onnxruntime", "openvino"]
BACKENDS: tuple[Backend, ...] = get_args(Backend)

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


HALF_TOLERANCE = 1e-3
"""Half precision is used where the graph's outputs differ by no more than this from single precision."""

_NEEDS: Mapping[str, tuple[str, ...]] = {
    "torch": (),
    "compile": (),
    "onnxruntime": ("onnxruntime", "onnx", "onnxscript"),
    "openvino": ("openvino",),
}
_SUMS = "sha256.json"
_FASTEST_ON_CPU: tuple[Backend, ...] = ("openvino", "onnxruntime", "torch")
"""As measured, see docs/results.md. `compile` needs a C++ compiler and minutes, so it must be asked for."""


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
        return _torch_engine(graph.build().eval(), graph.inputs, device)
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


# PyTorch


def _torch_engine(module: nn.Module, inputs: Mapping[str, Tensor], device: torch.device) -> Engine:
    # Channels last: 1.5 times as fast on a CPU, and the layout of tensor cores.
    module = module.to(device).to(memory_format=torch.channels_last)
    half = device.type == "cuda" and half_agrees(module, inputs, device, torch.float16)

    @torch.inference_mode()
    def run(*arrays: Array) -> tuple[Array, ...]:
        with torch.autocast(device.type, torch.float16, enabled=half):
            outputs = _as_tuple(module(*(torch.from_numpy(array).to(device) for array in arrays)))
        return tuple(output.float().cpu().numpy() for output in outputs)

    return Engine(run)


@torch.inference_mode()
def half_agrees(module: nn.Module, inputs: Mapping[str, Tensor], device: torch.device, dtype: torch.dtype) -> bool:
    """Whether autocast to `dtype` changes no output on the example inputs by more than `HALF_TOLERANCE`."""
    examples = [example.to(device) for example in inputs.values()]
    exact = _as_tuple(module(*examples))
    with torch.autocast(device.type, dtype):
        rounded = _as_tuple(module(*examples))
    return all((a - b.float()).abs().max() <= HALF_TOLERANCE for a, b in zip(exact, rounded, strict=True))


def _as_tuple(outputs: Any) -> tuple[Tensor, ...]:
    return outputs if isinstance(outputs, tuple) else (outputs,)


# PyTorch, compiled ahead of time


def write_compiled(graph: Graph, path: Path, device: torch.device) -> None:
    """Compile a graph into `path`, a `.pt2` package for this machine."""
    inductor: Any = torch._inductor
    inductor.aoti_compile_and_package(_exported(graph, device), package_path=str(path))


def load_compiled(path: Path, device: torch.device) -> Engine:
    """What `write_compiled` wrote."""
    inductor: Any = torch._inductor
    package = inductor.aoti_load_package(str(path))

    @torch.inference_mode()
    def run(*arrays: Array) -> tuple[Array, ...]:
        outputs = _as_tuple(package(*(torch.from_numpy(np.ascontiguousarray(array)).to(device) for array in arrays)))
        return tuple(output.cpu().numpy() for output in outputs)

    return Engine(run)


def _threads() -> int | None:
    """Threads that an engine may use, where the environment tells PyTorch so: several workers then share the cores."""
    return torch.get_num_threads() if "OMP_NUM_THREADS" in os.environ else None


# ONNX Runtime


def write_onnx(graph: Graph, path: Path, device: torch.device) -> None:
    """Write a graph as ONNX to `path`."""
    program: Any = torch.onnx.export(
        _exported(graph, device),
        input_names=list(graph.inputs),
        output_names=list(graph.outputs),
        dynamo=True,
        verbose=False,
    )
    program.save(str(path), external_data=False)


def load_onnx(path: Path, device: torch.device) -> Engine:
    """What `write_onnx` wrote."""
    import onnxruntime  # noqa: PLC0415 - an optional extra that is slow to import

    options = onnxruntime.SessionOptions()
    threads = _threads()
    if threads is not None:
        options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = [one.name for one in session.get_inputs()]

    def run(*arrays: Array) -> tuple[Array, ...]:
        return tuple(session.run(None, dict(zip(names, arrays, strict=True))))

    return Engine(run)


# OpenVINO


def write_openvino(graph: Graph, path: Path, device: torch.device) -> None:
    """Write a graph as OpenVINO's `path`, an `.xml` beside its `.bin`, in full float32."""
    save_openvino(converted_to_openvino(graph, device), path)


def converted_to_openvino(graph: Graph, device: torch.device) -> Any:
    """A graph as an `openvino.Model` whose inputs and outputs bear the graph's names."""
    import openvino  # noqa: PLC0415 - an optional extra that is slow to import

    model: Any = openvino.convert_model(_exported(graph, device))
    for ports, names in ((model.inputs, graph.inputs), (model.outputs, graph.outputs)):
        for port, name in zip(ports, names, strict=True):
            port.get_tensor().set_names({name})
    return model


def save_openvino(model: Any, path: Path) -> None:
    """Save a model in full float32. Raises OSError if it cannot be written."""
    import openvino  # noqa: PLC0415

    try:
        openvino.save_model(model, path, compress_to_fp16=False)
    except RuntimeError as error:
        raise OSError(" ".join(str(error).split())) from error


def load_openvino(path: Path, device: torch.device) -> Engine:
    """What `write_openvino` wrote."""
    import openvino  # noqa: PLC0415

    return openvino_engine(openvino.Core().read_model(path))


def openvino_engine(model: Any) -> Engine:
    """An engine that runs an `openvino.Model`."""
    import openvino  # noqa: PLC0415

    options: dict[str, Any] = {"PERFORMANCE_HINT": "THROUGHPUT", "INFERENCE_PRECISION_HINT": "f32"}
    threads = _threads()
    if threads is not None:
        options["INFERENCE_NUM_THREADS"] = threads
        # Each process would pin its few threads to the first cores, all the same ones.
        options["ENABLE_CPU_PINNING"] = False
    compiled: Any = openvino.Core().compile_model(model, "CPU", options)
    requests = threading.local()
    first_call, called = threading.Lock(), threading.Event()

    def infer(arrays: Sequence[Array]) -> tuple[Array, ...]:
        if not hasattr(requests, "own"):
            requests.own = compiled.create_infer_request()
        outputs = requests.own.infer(list(arrays))
        return tuple(np.array(outputs[i]) for i in range(len(compiled.outputs)))

    def run(*arrays: Array) -> tuple[Array, ...]:
        # OpenVINO's Python binding sets itself up in its first call, and lets go of the GIL meanwhile: a second first
        # call at the same time takes the GIL, waits for the first to end, and neither ever does.
        if not called.is_set():
            with first_call:
                if not called.is_set():
                    outputs = infer(arrays)
                    called.set()
                    return outputs
        return infer(arrays)

    # Streams of one core each: threads that share an image batch wait for one another whenever one of them decodes.
    return Engine(run, streams=compiled.get_property("NUM_STREAMS"), batch=4)


def _exported(graph: Graph, device: torch.device) -> torch.export.ExportedProgram:
    module = graph.build().eval().requires_grad_(False).to(device)
    images = torch.export.Dim("N", min=1)
    examples = tuple(example.to(device) for example in graph.inputs.values())
    with torch.no_grad():
        return torch.export.export(module, examples, dynamic_shapes=tuple({0: images} for _ in examples))
