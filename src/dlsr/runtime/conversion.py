"""From a PyTorch module to a graph that other engines run."""

import errno
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dlsr.errors import ExportError, one_line
from dlsr.runtime.base import Graph
from dlsr.runtime.openvino_engine import openvino
from dlsr.runtime.telemetry import refuse_telemetry


class _Positional(nn.Module):
    """A module that takes any number of arrays, so that their shapes can be given to `torch.export` as one list."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, *arrays: Tensor) -> Any:
        return self.module(*arrays)


def exported(graph: Graph, device: str = "cpu") -> torch.export.ExportedProgram:
    """A graph traced by `torch.export`, for any number of images."""
    module = _Positional(graph.build()).eval().requires_grad_(False).to(device)
    images, rows = torch.export.Dim("N", min=1), torch.export.Dim("R", min=graph.fewest_rows)
    of_inputs: list[dict[int, Any]] = [{0: images} for _ in graph.inputs]
    of_learned: list[dict[int, Any]] = [{0: rows} if name in graph.rows else {} for name in graph.learned]
    examples = tuple(example.to(device) for example in (*graph.inputs.values(), *graph.learned.values()))
    with torch.no_grad():
        return torch.export.export(module, examples, dynamic_shapes=((*of_inputs, *of_learned),))


def write_onnx(graph: Graph, path: Path) -> None:
    """Convert a graph to ONNX and write it to `path`.

    Raises:
        ExportError: if its module cannot be converted.
    """
    refuse_telemetry()
    module = graph.build()
    try:
        program: Any = torch.onnx.export(
            exported(replace(graph, build=lambda: module)),
            input_names=[*graph.inputs, *graph.learned],
            output_names=[*graph.outputs, *graph.inner],
            dynamo=True,
            verbose=False,
        )
    except Exception as error:  # of any kind, depending on what the module does
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise ExportError(f"it cannot be converted to ONNX ({reason})") from error
    # Each operation is annotated with the lines of code that it comes from, which take more room than a score.
    traced = program.model.graph
    del traced.outputs[len(graph.outputs) :]
    for annotated in (program.model, traced, *traced, *traced.inputs, *traced.outputs, *traced.initializers.values()):
        annotated.metadata_props.clear()
    for node in traced:
        for value in node.outputs:
            value.metadata_props.clear()
    program.save(str(path), external_data=False)


def write_openvino(graph: Graph, path: Path) -> None:
    """Convert a graph and write it to `path`, an `.xml` with a `.bin` beside it, in float32.

    Raises:
        OSError: if it cannot be written.
    """
    save_openvino(converted_to_openvino(graph), path)


def converted_to_openvino(graph: Graph) -> Any:
    """A graph as an `openvino.Model` whose inputs and outputs have the graph's names."""
    model: Any = openvino().convert_model(exported(graph))
    for ports, names in ((model.inputs, graph.inputs), (model.outputs, graph.outputs)):
        for port, name in zip(ports, names, strict=True):
            port.get_tensor().set_names({name})
    return model


def save_openvino(model: Any, path: Path) -> None:
    """Save an `openvino.Model` in float32.

    Raises:
        OSError: if it cannot be written.
    """
    try:
        openvino().save_model(model, path, compress_to_fp16=False)
    except RuntimeError as error:
        raise OSError(errno.EIO, one_line(error), str(path)) from error
