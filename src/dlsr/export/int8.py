"""Export with the encoder in 8-bit integers, for OpenVINO: faster on a CPU, kept only if detection hardly suffers.

A scorer knows the features that it was fitted to, down to directions of little variance; 8 bits shift them. So the
scorer is fitted again to the features of the quantised encoder.
"""

import copy
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from dlsr.calibration.metrics import evaluate_scores
from dlsr.config import GIVEN
from dlsr.detector import Detector
from dlsr.encoding.extractor import RANGE_IMAGES
from dlsr.encoding.pipeline import Progress, encode_all
from dlsr.errors import ExportError, SettingsError
from dlsr.export.graph import GRAPHS, Exportable, ImageToScore, check_export, write_description
from dlsr.files import replacing_folder
from dlsr.images.sources import ImagesLike, open_images
from dlsr.runtime.backends import as_onnx
from dlsr.runtime.base import Engine, Graph
from dlsr.runtime.conversion import converted_to_openvino, save_openvino, write_openvino
from dlsr.runtime.openvino_engine import load_openvino, openvino, openvino_core, openvino_engine
from dlsr.runtime.quantisation import quantised
from dlsr.scorers.base import Scorer
from dlsr.streaming import map_ahead

Pixels = NDArray[np.uint8]

GREATEST_LOSS = 0.002
"""Mean AUROC may fall by less than this."""
MEASURED_IMAGES = 1024
"""At most this many images of a dataset measure the 8-bit graph."""
ROUNDS = 3


@dataclass(frozen=True)
class Int8Report:
    """What quantisation costs and gains."""

    auroc: dict[str, float]
    """By OOD dataset, in full precision."""
    auroc_int8: dict[str, float]
    loss: float
    """Loss of mean AUROC; negative for a gain."""
    times_as_fast: float
    """The 8-bit graph against the full one on the same images."""


def export_int8(
    detector: Detector,
    folder: str | os.PathLike[str],
    train_images: ImagesLike,
    id_images: ImagesLike,
    ood_images: Mapping[str, ImagesLike],
    *,
    progress: Progress | None = None,
) -> Int8Report:
    """As `dlsr.export.export` to OpenVINO, with the encoder in 8-bit integers.

    A detector is fitted and calibrated again, to features of the quantised encoder; the given one stays as it is.

    Args:
        detector: fitted to images, on the CPU.
        folder: to write; an export in it is replaced.
        train_images: those that the detector was fitted to.
        id_images: other in-distribution images, to measure on.
        ood_images: OOD datasets to measure on, by name.
        progress: callback with the number of training images that were encoded since the last call.

    Returns:
        AUROC before and after, and the gain in speed.

    Raises:
        NotFittedError, OutputError: as for `export`.
        SettingsError: without an OOD dataset, or for a detector whose groups were given to `fit`.
        MissingExtraError: without OpenVINO or NNCF.
        TooFewImagesError: if the training images are too few.
        ExportError: if mean AUROC falls by `GREATEST_LOSS` or more; nothing is written then.
    """
    if not ood_images:
        raise SettingsError("give at least one OOD dataset to measure the 8-bit model on")
    if detector.fit_summary_.grouped_by == GIVEN:
        raise SettingsError(
            "groups were given to the fit, which an 8-bit export cannot repeat; fit with group_by instead"
        )
    full, extractor, seed = Exportable.of(detector), detector.extractor_, detector.seed
    check_export(Path(folder), "openvino")
    quantised = quantised_encoder(full.encoder.graph(), extractor.pixels(train_images, RANGE_IMAGES, seed))
    encoder = full.encoder.with_engine(openvino_engine(quantised))
    encoded = encode_all(encoder, open_images(train_images), workers=detector.workers, progress=progress)
    refitted = Exportable.of(copy.copy(detector).fit_encoded(encoded))
    datasets = {"": id_images, **ood_images}
    inputs = {name: full.inputs(extractor.pixels(one, MEASURED_IMAGES, seed)) for name, one in datasets.items()}
    with replacing_folder(Path(folder)) as temporary:
        write_openvino(full.graph(), temporary / "full.xml")
        save_openvino(joined(quantised, refitted.scorer, encoder.c), temporary / GRAPHS["openvino"])
        before, after = (load_openvino(temporary / name) for name in ("full.xml", GRAPHS["openvino"]))
        report = compare(before, after, inputs, inside="")
        if not report.loss < GREATEST_LOSS:
            raise ExportError(
                f"8 bits cost {100 * report.loss:.2f} points of AUROC, {100 * GREATEST_LOSS:g} or more; nothing was "
                "written, export in full precision"
            )
        for name in ("full.xml", "full.bin"):
            (temporary / name).unlink()
        write_description(refitted, temporary, "openvino", {"int8": asdict(report)})
    return report


def quantised_encoder(encoder: Graph, ranges: Pixels) -> Any:
    """An encoder in 8 bits as an `openvino.Model`.

    Args:
        encoder: graph of `pixels` to `z0`.
        ranges: ID images that the ranges of the integers are taken from, uint8 of shape `(N, size, size, 3)`.

    Raises:
        MissingExtraError: without NNCF.
    """
    return openvino_core().read_model(quantised(as_onnx(encoder), [image[None] for image in ranges]))


def joined(encoder: Any, scorer: Scorer, c: int) -> Any:
    """A quantised encoder and a scorer in full precision as one `openvino.Model`; `c` is the dimension of `z0`."""
    inputs = {"z0": torch.randn(2, c)}
    if scorer.noise_vectors:
        inputs["noise"] = torch.randn(2, scorer.noise_vectors, c)
    alone = Graph(lambda: ImageToScore(nn.Identity(), scorer), inputs, ("score", "layers"), "")
    scoring = converted_to_openvino(alone)
    z0 = encoder.output("z0").get_node().input_value(0)
    entry = scoring.input("z0").get_node()
    for target in entry.output(0).get_target_inputs():
        target.replace_source_output(z0)
    noise = [one for one in scoring.get_parameters() if one != entry]
    return openvino().Model(scoring.get_results(), [*encoder.get_parameters(), *noise], "dlsr")


def compare(full: Engine, int8: Engine, inputs: Mapping[str, tuple[NDArray[Any], ...]], inside: str) -> Int8Report:
    """Detection and speed of two engines on the same inputs, by dataset; `inside` names the ID dataset."""
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
        {name: evaluate_scores(found[inside], outside).auroc for name, outside in found.items() if name != inside}
        for found in scores
    ]
    loss = float(np.mean(list(aurocs[0].values())) - np.mean(list(aurocs[1].values())))
    return Int8Report(aurocs[0], aurocs[1], loss, float(np.median(seconds)))


def _run(engine: Engine, arrays: tuple[NDArray[Any], ...]) -> NDArray[np.float64]:
    batches = (tuple(array[i : i + engine.batch] for array in arrays) for i in range(0, len(arrays[0]), engine.batch))
    parts = map_ahead(lambda batch: engine(*batch)[0], batches, engine.streams, ahead=2 * engine.streams)
    return np.concatenate(list(parts)).astype(np.float64)
