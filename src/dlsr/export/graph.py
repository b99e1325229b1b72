"""A fitted detector as a graph that needs no dlsr: encoder, distortion, restoration and score in one.

The directory holds the graph, `export.json` (preprocessing, noise, threshold, layers), `calibration.npy` (scores of
the calibration images, for p-values) and `score_image.py`, an example with nothing but the runtime, NumPy and Pillow.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import resources
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from dlsr.artifact import installed_versions
from dlsr.encoders import Encoder, EncoderSpec
from dlsr.errors import ExportError, OutputError, SettingsError
from dlsr.export.int8 import GREATEST_LOSS, Int8Report, Pixels, compare, joined
from dlsr.files import file_sums, replacing_folder
from dlsr.images.transforms import resize
from dlsr.method.noise import noise_for, pixel_digest
from dlsr.runtime.backends import choose_backend
from dlsr.runtime.base import Engine, Graph
from dlsr.runtime.onnx_engine import load_onnx, write_onnx
from dlsr.runtime.openvino_engine import load_openvino, save_openvino, write_openvino
from dlsr.scorers.base import ImageToScore, Scorer

ExportFormat = Literal["onnx", "openvino"]
EXPORT_FORMATS: tuple[ExportFormat, ...] = get_args(ExportFormat)

TOLERANCE = 1e-4
"""A graph's scores may differ by this, relative to the score or the spread of the ID scores, whichever is more."""

SCHEMA_VERSION = 1
ABOUT = "export.json"
GRAPHS = {"onnx": "model.onnx", "openvino": "model.xml"}
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Exportable:
    """What of a detector goes into an export."""

    encoder: Encoder
    scorer: Scorer
    seed: int
    layer_names: Sequence[str]
    layer_mean: NDArray[np.float64]
    layer_std: NDArray[np.float64]
    calibration_scores: NDArray[np.float64]
    false_alarm_rate: float
    threshold: float

    @property
    def spec(self) -> EncoderSpec:
        """The encoder's."""
        return self.encoder.spec

    def graph(self) -> Graph:
        """Encoder and scorer as one graph."""
        inputs = {"pixels": self.encoder.example()}
        if self.scorer.noise_vectors:
            inputs["noise"] = torch.randn(2, self.scorer.noise_vectors, self.encoder.c)
        return Graph(lambda: ImageToScore(self.encoder.module(), self.scorer), inputs, ("score", "layers"), "")

    def inputs(self, pixels: NDArray[np.uint8]) -> tuple[NDArray[Any], ...]:
        """The graph's inputs for resized images, shape `(N, size, size, 3)`."""
        if not self.scorer.noise_vectors:
            return (pixels,)
        digests = np.stack([pixel_digest(one) for one in pixels])
        noise = noise_for(digests, self.seed, self.scorer.noise_vectors, self.encoder.c)
        return pixels, noise.numpy()


def write_export(what: Exportable, folder: Path, kind: ExportFormat, pixels: NDArray[np.uint8]) -> float:
    """Write an export directory, once its graph has proved to agree with PyTorch.

    Args:
        what: the detector's parts, on the CPU.
        folder: to write; replaced if it is an export already.
        kind: of the graph.
        pixels: real images to check the graph on, resized, uint8 of shape `(N, size, size, 3)`.

    Returns:
        The greatest difference of scores on `pixels`, relative as told at `TOLERANCE`.

    Raises:
        SettingsError: for an unknown format.
        MissingExtraError: if what writes it is not installed.
        OutputError: if the folder holds something else, or cannot be written.
        ExportError: if the graph disagrees.
    """
    check_export(folder, kind)
    with replacing_folder(folder) as temporary:
        path = temporary / GRAPHS[kind]
        (write_onnx if kind == "onnx" else write_openvino)(what.graph(), path, CPU)
        difference = disagreement(what, _load(kind, path), pixels)
        if not difference <= TOLERANCE:
            raise ExportError(
                f"the exported graph disagrees with PyTorch: scores differ by {difference:.1e} of the score or of "
                f"the spread of ID scores, over {TOLERANCE:g}; nothing was written, try the other format"
            )
        parity = {"images": len(pixels), "greatest_relative_difference": difference, "tolerance": TOLERANCE}
        _write_rest(what, temporary, kind, {"parity": parity})
    return difference


def write_int8_export(
    full: Exportable, int8: Exportable, quantised: Any, folder: Path, inside: Pixels, outside: Mapping[str, Pixels]
) -> Int8Report:
    """Write an OpenVINO export whose encoder works in 8-bit integers, once it has proved to detect as well.

    Args:
        full: the detector's parts, on the CPU.
        int8: those of the same detector fitted to the features of the quantised encoder.
        quantised: that encoder, as `dlsr.export.int8.quantised_encoder` gives it.
        folder: to write; replaced if it is an export already.
        inside: ID images that neither was fitted to, resized, uint8 of shape `(N, size, size, 3)`.
        outside: OOD sets, likewise.

    Returns:
        What quantising did.

    Raises:
        OutputError: if the folder cannot be written.
        ExportError: if mean AUROC falls by `dlsr.export.int8.GREATEST_LOSS` or more.
    """
    with replacing_folder(folder) as temporary:
        write_openvino(full.graph(), temporary / "full.xml", CPU)
        save_openvino(joined(quantised, int8.scorer, int8.encoder.c), temporary / GRAPHS["openvino"])
        before, after = (load_openvino(temporary / name, CPU) for name in ("full.xml", GRAPHS["openvino"]))
        inputs = {"": full.inputs(inside)} | {name: full.inputs(one) for name, one in outside.items()}
        report = compare(before, after, inputs, inside="")
        if not report.loss < GREATEST_LOSS:
            raise ExportError(
                f"8 bits cost {100 * report.loss:.2f} points of AUROC, {100 * GREATEST_LOSS:g} or more; nothing was "
                "written, export in full precision"
            )
        for name in ("full.xml", "full.bin"):
            (temporary / name).unlink()
        _write_rest(int8, temporary, "openvino", {"int8": asdict(report)})
    return report


def check_export(folder: Path, kind: ExportFormat) -> None:
    """Raise what `write_export` would, before long work: for a wrong format, a missing extra or a folder in use."""
    if kind not in EXPORT_FORMATS:
        raise SettingsError(f"unknown format '{kind}'; choose one of {', '.join(EXPORT_FORMATS)}")
    choose_backend("onnxruntime" if kind == "onnx" else "openvino", CPU)
    if folder.exists() and not (folder / ABOUT).exists() and (folder.is_file() or any(folder.iterdir())):
        raise OutputError(f"'{folder}' holds other files; give a new folder, or one with an export to replace")


def _write_rest(what: Exportable, folder: Path, kind: ExportFormat, proof: dict[str, Any]) -> None:
    """All but the graph."""
    np.save(folder / "calibration.npy", np.sort(what.calibration_scores))
    example = resources.files("dlsr.export").joinpath(f"templates/{kind}.py").read_text()
    (folder / "score_image.py").write_text(example)
    about = _about(what, kind) | proof
    about["sha256"] = file_sums(folder)
    (folder / ABOUT).write_text(json.dumps(about, indent=2) + "\n")


def disagreement(what: Exportable, engine: Engine, pixels: NDArray[np.uint8]) -> float:
    """The greatest difference between an engine's scores and PyTorch's, relative as told at `TOLERANCE`."""
    module = ImageToScore(what.encoder.module(), what.scorer).eval()
    spread = float(what.calibration_scores.std())
    worst = 0.0
    for start in range(0, len(pixels), 32):
        inputs = what.inputs(pixels[start : start + 32])
        with torch.inference_mode():
            exact = module(*(torch.from_numpy(array) for array in inputs))[0].double().numpy()
        worst = max(worst, float((np.abs(engine(*inputs)[0] - exact) / np.maximum(np.abs(exact), spread)).max()))
    return worst


def sample_pixels(spec: EncoderSpec, count: int = 16) -> NDArray[np.uint8]:
    """Patches of scikit-learn's two photographs, resized for an encoder: uint8 of shape `(count, size, size, 3)`."""
    from sklearn.datasets import load_sample_images  # noqa: PLC0415 - slow to import

    random = np.random.default_rng(0)
    patches = []
    for i in range(count):
        photograph = load_sample_images().images[i % 2]
        side = int(random.integers(32, min(photograph.shape[:2])))
        top, left = (int(random.integers(length - side + 1)) for length in photograph.shape[:2])
        patch = Image.fromarray(photograph[top : top + side, left : left + side])
        patches.append(resize(patch, spec.size, spec.interpolation))
    return np.stack(patches)


def _load(kind: ExportFormat, path: Path) -> Engine:
    return load_onnx(path, CPU) if kind == "onnx" else load_openvino(path, CPU)


def _about(what: Exportable, kind: ExportFormat) -> dict[str, Any]:
    return {
        "format": "dlsr-export",
        "schema_version": SCHEMA_VERSION,
        "graph": GRAPHS[kind],
        "convention": "larger score = more OOD; OOD if score > threshold, that is if p-value <= false_alarm_rate",
        "image": {
            "size": what.spec.size,
            "interpolation": what.spec.interpolation,
            "layout": "uint8, RGB, (N, size, size, 3), aspect ratio not kept",
        },
        "noise": {
            "seed": what.seed,
            "vectors": what.scorer.noise_vectors,
            "dimensions": what.encoder.c,
        },
        "encoder": what.spec.name,
        "encoder_sha256": what.encoder.weights_sha256,
        "layers": list(what.layer_names),
        "layer_mean": what.layer_mean.tolist(),
        "layer_std": what.layer_std.tolist(),
        "false_alarm_rate": what.false_alarm_rate,
        "threshold": what.threshold,
        "versions": installed_versions(),
    }
