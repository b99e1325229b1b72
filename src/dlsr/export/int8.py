"""The encoder in 8-bit integers, for OpenVINO: faster on a CPU, kept only if detection hardly suffers.

A scorer knows the features that it was fitted to, down to directions of little variance; 8 bits shift them. So the
scorer is fitted again to the features of the quantised encoder.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from time import perf_counter
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from dlsr.calibration.metrics import evaluate_scores
from dlsr.errors import MissingExtraError
from dlsr.runtime.base import Engine, Graph
from dlsr.runtime.openvino_engine import converted_to_openvino
from dlsr.scorers.base import ImageToScore, Scorer
from dlsr.streaming import map_ahead

Pixels = NDArray[np.uint8]
CPU = torch.device("cpu")

GREATEST_LOSS = 0.002
"""Mean AUROC may fall by less than this."""
ROUNDS = 3


@dataclass(frozen=True)
class Int8Report:
    """What quantising did."""

    auroc: dict[str, float]
    """By OOD set, in full precision."""
    auroc_int8: dict[str, float]
    loss: float
    """Of mean AUROC; negative for a gain."""
    times_as_fast: float
    """Whole graph against whole graph on the same images."""


def quantised_encoder(encoder: Graph, ranges: Pixels) -> Any:
    """An encoder in 8 bits as an `openvino.Model`.

    Args:
        encoder: graph of `pixels` to `z0`.
        ranges: ID images that the ranges of the integers are taken from, uint8 of shape `(N, size, size, 3)`.

    Raises:
        MissingExtraError: without NNCF.
    """
    if find_spec("nncf") is None:
        raise MissingExtraError("nncf", "int8")
    import nncf  # noqa: PLC0415 - an optional extra that is slow to import

    dataset = nncf.Dataset([image[None] for image in ranges])
    return nncf.quantize(converted_to_openvino(encoder, CPU), dataset, subset_size=len(ranges))


def joined(encoder: Any, scorer: Scorer, c: int) -> Any:
    """A quantised encoder and a scorer in full precision as one `openvino.Model`; `c` is the dimension of `z0`."""
    import openvino  # noqa: PLC0415 - an optional extra that is slow to import

    inputs = {"z0": torch.randn(2, c)}
    if scorer.noise_vectors:
        inputs["noise"] = torch.randn(2, scorer.noise_vectors, c)
    alone = Graph(lambda: ImageToScore(nn.Identity(), scorer), inputs, ("score", "layers"), "")
    scoring = converted_to_openvino(alone, CPU)
    z0 = encoder.output("z0").get_node().input_value(0)
    entry = scoring.input("z0").get_node()
    for target in entry.output(0).get_target_inputs():
        target.replace_source_output(z0)
    noise = [one for one in scoring.get_parameters() if one != entry]
    return openvino.Model(scoring.get_results(), [*encoder.get_parameters(), *noise], "dlsr")


def compare(full: Engine, int8: Engine, inputs: Mapping[str, tuple[NDArray[Any], ...]], inside: str) -> Int8Report:
    """Detection and speed of two engines on the same inputs, by set; `inside` names the ID set."""
    scores, seconds = [], []
    for engine in (full, int8):
        scores.append({name: _run(engine, arrays) for name, arrays in inputs.items()})
    for _ in range(ROUNDS):
        rounds = []
        for engine in (full, int8):
            start = perf_counter()
            _run(engine, inputs[inside])
            rounds.append(perf_counter() - start)
        seconds.append(rounds[0] / rounds[1])
    aurocs = [
        {name: evaluate_scores(one[inside], outside).auroc for name, outside in one.items() if name != inside}
        for one in scores
    ]
    loss = float(np.mean(list(aurocs[0].values())) - np.mean(list(aurocs[1].values())))
    return Int8Report(aurocs[0], aurocs[1], loss, float(np.median(seconds)))


def _run(engine: Engine, arrays: tuple[NDArray[Any], ...]) -> NDArray[np.float64]:
    batches = (tuple(array[i : i + engine.batch] for array in arrays) for i in range(0, len(arrays[0]), engine.batch))
    parts = map_ahead(lambda batch: engine(*batch)[0], batches, engine.streams, ahead=2 * engine.streams)
    return np.concatenate(list(parts)).astype(np.float64)
