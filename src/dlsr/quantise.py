"""The encoder in 8-bit integers, for OpenVINO: faster on a CPU, kept only if detection hardly suffers."""

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from time import perf_counter
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from dlsr.engines import Engine, Graph, converted_to_openvino
from dlsr.errors import MissingExtraError
from dlsr.images import map_ahead
from dlsr.metrics import evaluate_scores
from dlsr.scorers import ImageToScore, Scorer

Pixels = NDArray[np.uint8]
LayerScores = tuple[NDArray[np.float64], NDArray[np.float64]]
"""Scores, shape `(N,)`, and those of the layers, shape `(N, M)`."""
CPU = torch.device("cpu")

GREATEST_LOSS = 0.002
"""Mean AUROC may fall by less than this."""
ROUNDS = 3


@dataclass(frozen=True)
class Int8Images:
    """Images for quantising, resized, each uint8 of shape `(N, size, size, 3)`."""

    ranges: Pixels
    """ID images that the ranges of the integers are taken from."""
    inside: Pixels
    """Held-out ID images: the quantised model is measured and calibrated on them."""
    outside: Mapping[str, Pixels]
    """OOD sets that the quantised model is measured on."""


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


def quantised_model(encoder: Graph, scorer: Scorer, c: int, ranges: Pixels) -> Any:
    """Encoder in 8 bits and scorer in full precision as one `openvino.Model`.

    Args:
        encoder: graph of `pixels` to `z0`.
        scorer: what scores `z0`.
        c: dimension of `z0`.
        ranges: as in `Int8Images`.

    Raises:
        MissingExtraError: without NNCF.
    """
    if find_spec("nncf") is None:
        raise MissingExtraError("nncf", "int8")
    import nncf  # noqa: PLC0415 - an optional extra that is slow to import
    import openvino  # noqa: PLC0415

    dataset = nncf.Dataset([image[None] for image in ranges])
    quantised = nncf.quantize(converted_to_openvino(encoder, CPU), dataset, subset_size=len(ranges))
    inputs = {"z0": torch.randn(2, c)}
    if scorer.noise_vectors:
        inputs["noise"] = torch.randn(2, scorer.noise_vectors, c)
    alone = Graph(lambda: ImageToScore(nn.Identity(), scorer), inputs, ("score", "layers"), "")
    scoring = converted_to_openvino(alone, CPU)
    z0 = quantised.output("z0").get_node().input_value(0)
    entry = scoring.input("z0").get_node()
    for target in entry.output(0).get_target_inputs():
        target.replace_source_output(z0)
    noise = [one for one in scoring.get_parameters() if one != entry]
    return openvino.Model(scoring.get_results(), [*quantised.get_parameters(), *noise], "dlsr")


def compare(
    full: Engine, int8: Engine, inputs: Mapping[str, tuple[NDArray[Any], ...]], inside: str
) -> tuple[Int8Report, LayerScores]:
    """Detection and speed of two engines on the same inputs, by set; `inside` names the ID set.

    Returns:
        The report, and the quantised scores of the ID set and its layers.
    """
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
        {name: evaluate_scores(one[inside][0], outside).auroc for name, (outside, _) in one.items() if name != inside}
        for one in scores
    ]
    loss = float(np.mean(list(aurocs[0].values())) - np.mean(list(aurocs[1].values())))
    return Int8Report(aurocs[0], aurocs[1], loss, float(np.median(seconds))), scores[1][inside]


def _run(engine: Engine, arrays: tuple[NDArray[Any], ...]) -> LayerScores:
    batches = (tuple(array[i : i + engine.batch] for array in arrays) for i in range(0, len(arrays[0]), engine.batch))
    parts = list(map_ahead(lambda batch: engine(*batch), batches, engine.streams, ahead=2 * engine.streams))
    scores, layers = (np.concatenate([part[i] for part in parts]).astype(np.float64) for i in range(2))
    return scores, layers
