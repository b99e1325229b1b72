"""ONNX Runtime."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from dlsr.errors import one_line
from dlsr.runtime.base import Array, Engine, thread_limit
from dlsr.runtime.onnx_file import with_outputs
from dlsr.runtime.telemetry import refuse_telemetry


def load_onnx(
    graph: Path | bytes,
    learned: Mapping[str, Array] | None = None,
    threads: int | None = None,
    inner: Sequence[str] = (),
) -> Engine:
    """An engine that runs a graph in ONNX.

    Args:
        graph: the file or its content.
        learned: inputs that are the same in all calls, by name.
        threads: of one call; None for as many as `thread_limit` allows.
        inner: names of tensors inside the graph to return, too.

    Raises:
        RuntimeError: if it cannot be run; so does the engine for inputs of other shapes.
    """
    refuse_telemetry()
    import onnxruntime  # noqa: PLC0415 - slow to import

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # what is wrong is told by the error
    threads = threads or thread_limit()
    if threads is not None:
        options.intra_op_num_threads = threads
    content = with_outputs(graph, inner) if isinstance(graph, bytes) else str(graph)
    try:
        session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its errors have no base of their own
        raise RuntimeError(one_line(error)) from error
    taken = [argument.name for argument in session.get_inputs()]
    fixed = {name: array for name, array in (learned or {}).items() if name in taken}
    names = [name for name in taken if name not in fixed]

    def run(*arrays: Array) -> tuple[Array, ...]:
        try:
            return tuple(session.run(None, fixed | dict(zip(names, arrays, strict=True))))
        except Exception as error:
            raise RuntimeError(one_line(error)) from error

    return Engine(run)
