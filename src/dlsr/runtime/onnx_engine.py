"""ONNX Runtime."""

from pathlib import Path
from typing import Any

import torch

from dlsr.runtime.base import Array, Engine, Graph, exported, thread_limit


def write_onnx(graph: Graph, path: Path, device: torch.device) -> None:
    """Convert a graph to ONNX and write it to `path`."""
    program: Any = torch.onnx.export(
        exported(graph, device),
        input_names=list(graph.inputs),
        output_names=list(graph.outputs),
        dynamo=True,
        verbose=False,
    )
    program.save(str(path), external_data=False)


def load_onnx(path: Path, device: torch.device) -> Engine:
    """The engine for a file written by `write_onnx`."""
    import onnxruntime  # noqa: PLC0415 - an optional extra that is slow to import

    options = onnxruntime.SessionOptions()
    threads = thread_limit()
    if threads is not None:
        options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = [argument.name for argument in session.get_inputs()]

    def run(*arrays: Array) -> tuple[Array, ...]:
        return tuple(session.run(None, dict(zip(names, arrays, strict=True))))

    return Engine(run)
