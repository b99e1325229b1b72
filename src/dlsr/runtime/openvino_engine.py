"""OpenVINO."""

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dlsr.runtime.base import Array, Engine, Graph, exported, thread_limit

# OpenVINO


def write_openvino(graph: Graph, path: Path, device: torch.device) -> None:
    """Write a graph as OpenVINO's `path`, an `.xml` beside its `.bin`, in full float32."""
    save_openvino(converted_to_openvino(graph, device), path)


def converted_to_openvino(graph: Graph, device: torch.device) -> Any:
    """A graph as an `openvino.Model` whose inputs and outputs bear the graph's names."""
    import openvino  # noqa: PLC0415 - an optional extra that is slow to import

    model: Any = openvino.convert_model(exported(graph, device))
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
    threads = thread_limit()
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
