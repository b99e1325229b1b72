"""Graphs in 8-bit integers."""

import logging
from collections.abc import Sequence
from importlib.util import find_spec

from dlsr.errors import MissingExtraError
from dlsr.runtime.base import Array
from dlsr.runtime.telemetry import refuse_telemetry

KEPT = ("Add", "Clip", "Conv", "Max", "Min", "Relu")
"""Operations that may run in 8 bits: convolutions and what lies between them. Pooling and statistics stay in float32,
where 8 bits would cost most and gain nothing."""


def quantised(onnx: bytes, ranges: Sequence[Array]) -> bytes:
    """A graph in ONNX whose convolutions run in 8-bit integers.

    Args:
        onnx: a graph with one input.
        ranges: inputs that the ranges of the integers are taken from, each of shape `(1, ..)`; NNCF advises 300.

    Raises:
        MissingExtraError: without NNCF.
    """
    for package in ("nncf", "onnx"):
        if find_spec(package) is None:
            raise MissingExtraError(package, "quantise")
    refuse_telemetry()
    import nncf  # noqa: PLC0415 - an optional extra that is slow to import
    import onnx as onnx_package  # noqa: PLC0415 - as above

    nncf.set_log_level(logging.ERROR)
    model = onnx_package.load_from_string(onnx)
    others = sorted({node.op_type for node in model.graph.node} - set(KEPT))
    (name,) = (entry.name for entry in model.graph.input)
    result = nncf.quantize(
        model,
        nncf.Dataset([{name: one} for one in ranges]),
        subset_size=len(ranges),
        ignored_scope=nncf.IgnoredScope(types=others, validate=False),
    )
    content: bytes = result.SerializeToString()
    return content
