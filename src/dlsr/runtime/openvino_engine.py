"""OpenVINO."""

import hashlib
import threading
from collections import deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from dlsr.errors import SettingsError
from dlsr.runtime.base import Array, Engine, Precision, thread_limit
from dlsr.runtime.cache import content_of
from dlsr.runtime.telemetry import refuse_telemetry


def openvino() -> Any:
    """The package `openvino`, an optional extra that is slow to import."""
    refuse_telemetry()
    import openvino  # noqa: PLC0415

    return openvino


@cache
def openvino_core() -> Any:
    """The `openvino.Core` of this process, which has loaded the plugin for CPUs.

    The plugin gives the thread that loads it a stack for signals. If several are unloaded in another order than they
    were loaded in, as when a service takes over a new model, the thread is left with a stack that no longer exists, and
    the next signal kills the process. So there is one plugin for good, loaded by a thread that handles no signals.
    """

    def loaded() -> Any:
        core = openvino().Core()
        core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        return core

    with ThreadPoolExecutor(1) as thread:
        return thread.submit(loaded).result()


def load_openvino(graph: Path | bytes, precision: Precision = "float32", inner: Sequence[str] = ()) -> Engine:
    """An engine that runs a graph in OpenVINO's own format, or in ONNX.

    Args:
        graph: the file; or the content of an ONNX file, which is compiled once and then taken from the cache.
        precision: of its products.
        inner: names of tensors inside the graph to return, too.

    Raises:
        SettingsError: as `openvino_engine`.
        RuntimeError: if there are no such tensors.
    """
    core = openvino_core()
    if isinstance(graph, Path):
        return openvino_engine(core.read_model(graph), precision)
    options = _options(precision)

    def write(path: Path) -> None:
        model = core.read_model(graph)
        if inner:
            model.add_outputs(list(inner))
        path.write_bytes(core.compile_model(model, "CPU", options).export_model().getvalue())

    decisive = ("OPTIMIZATION_CAPABILITIES", "RANGE_FOR_STREAMS")
    made_by = [metadata.version("openvino"), *(str(core.get_property("CPU", name)) for name in decisive)]
    parts = [*made_by, *inner, repr(options), hashlib.sha256(graph).hexdigest()]
    return _engine(core.import_model(content_of("model.blob", parts, write), "CPU", options))


def multiplies_in_bfloat16() -> bool:
    """Whether OpenVINO does so on this processor. On others it would quietly take float32."""
    return "BF16" in openvino_core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


def openvino_engine(model: Any, precision: Precision = "float32") -> Engine:
    """An engine that runs an `openvino.Model`.

    Raises:
        SettingsError: if the processor does not multiply in this precision.
    """
    return _engine(openvino_core().compile_model(model, "CPU", _options(precision)))


def _options(precision: Precision) -> dict[str, Any]:
    """Raises as `openvino_engine` does."""
    if precision == "bfloat16" and not multiplies_in_bfloat16():
        raise SettingsError(
            "this processor does not multiply in bfloat16; fit with --precision float32, or score on another processor"
        )
    hint = "bf16" if precision == "bfloat16" else "f32"
    options: dict[str, Any] = {"PERFORMANCE_HINT": "THROUGHPUT", "INFERENCE_PRECISION_HINT": hint}
    threads = thread_limit()
    if threads is not None:
        options["INFERENCE_NUM_THREADS"] = threads
        # With pinning, every worker process would pin its threads to the same first cores.
        options["ENABLE_CPU_PINNING"] = False
    return options


def _engine(compiled: Any) -> Engine:
    # Kept for later calls of any thread, since to create one takes a tenth of the time of a call, and a service has
    # new threads for each batch.
    free: deque[Any] = deque()
    first_call, called = threading.Lock(), threading.Event()

    def infer(arrays: Sequence[Array]) -> tuple[Array, ...]:
        try:
            request = free.pop()
        except IndexError:
            request = compiled.create_infer_request()
        outputs = request.infer(list(arrays))
        copies = tuple(np.array(outputs[i]) for i in range(len(compiled.outputs)))
        free.append(request)
        return copies

    def run(*arrays: Array) -> tuple[Array, ...]:
        # OpenVINO's Python binding initialises itself in the first call and releases the GIL meanwhile. A concurrent
        # first call then takes the GIL and waits for that initialisation: a deadlock.
        if not called.is_set():
            with first_call:
                if not called.is_set():
                    outputs = infer(arrays)
                    called.set()
                    return outputs
        return infer(arrays)

    # One core a stream: threads that share a batch wait for each other whenever one of them is busy decoding.
    return Engine(run, streams=compiled.get_property("NUM_STREAMS"), batch=4)
