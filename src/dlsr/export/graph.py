"""A fitted detector as one graph that runs without dlsr: encoder, distortion, restoration and score.

The directory holds the graph, `export.json` (preprocessing, noise, threshold, layers), `calibration.npy` (scores of
the calibration images), `p_values.npy` (of scores between them) and `score_image.py`, an example that needs only the
runtime, NumPy and Pillow.
"""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, Literal, Self, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from dlsr.artifact import installed_versions
from dlsr.detector import Detector
from dlsr.encoders import EncoderSpec
from dlsr.encoders.encoder import Encoder
from dlsr.errors import ExportError, SettingsError
from dlsr.files import check_replaceable, file_sums, replacing_folder
from dlsr.images.decode import DRAFT_MARGIN, FORMATS, MAX_SIDE, most_pixels
from dlsr.images.sources import ImagesLike
from dlsr.method.noise import noise_for, pixel_digest
from dlsr.model import Calibration
from dlsr.runtime.backends import check_conversion, choose_backend
from dlsr.runtime.base import Engine, Graph
from dlsr.runtime.conversion import write_onnx, write_openvino
from dlsr.runtime.devices import resolve_device
from dlsr.runtime.onnx_engine import load_onnx
from dlsr.runtime.openvino_engine import load_openvino
from dlsr.scorers.base import LayerScores, Scorer

ExportFormat = Literal["onnx", "openvino"]
EXPORT_FORMATS: tuple[ExportFormat, ...] = get_args(ExportFormat)

TOLERANCE = 1e-4
"""A graph's scores may differ by this, relative to the score or the spread of the ID scores, whichever is more."""

SCHEMA_VERSION = 2
ABOUT = "export.json"
GRAPHS = {"onnx": "model.onnx", "openvino": "model.xml"}
_FILES = {ABOUT, *GRAPHS.values(), "model.bin", "calibration.npy", "p_values.npy", "score_image.py"}
"""All that an export writes."""
CHECKED_IMAGES = 256
"""At most this many images check an exported graph."""


class ImageToScore(nn.Module):
    """Encoder and scorer in one module.

    Takes resized images, uint8 of shape `(N, size, size, 3)`, and, if the scorer uses noise, standard normal noise of
    shape `(N, K, c)`. Returns scores, shape `(N,)`, and those of the layers, shape `(N, M)`.
    """

    def __init__(self, encoder: nn.Module, scorer: Scorer) -> None:
        super().__init__()
        self.encoder = encoder
        self.scorer = scorer

    def forward(self, pixels: Tensor, noise: Tensor | None = None) -> LayerScores:
        """See the class."""
        z0 = self.encoder(pixels)
        outputs: LayerScores = self.scorer(z0, z0.unsqueeze(1)[:, :0] if noise is None else noise)
        return outputs


@dataclass(frozen=True)
class Exportable:
    """The parts of a detector that go into an export."""

    encoder: Encoder
    scorer: Scorer
    seed: int
    layer_names: Sequence[str]
    calibration: Calibration
    false_alarm_rate: float
    confidence: float | None
    threshold: float

    @classmethod
    def of(cls, detector: Detector) -> Self:
        """The parts of a fitted detector.

        Raises:
            NotFittedError: for a detector that is not fitted, or was fitted to features.
            SettingsError: if it is not on the CPU, or its encoder does not run in float32.
        """
        if resolve_device(detector.device) != "cpu":
            raise SettingsError("exporting works on the CPU; load the model with device='cpu'")
        if detector.extractor_.spec.precision != "float32":
            raise SettingsError(
                f"exported graphs run in float32, but this model was fitted in {detector.extractor_.spec.precision}; "
                "fit it with precision float32 to export it"
            )
        return cls(
            encoder=detector.extractor_.encoder,
            scorer=detector.scorer_,
            seed=detector.settings_.seed,
            layer_names=detector.layer_names_,
            calibration=detector.calibration_,
            false_alarm_rate=detector.false_alarm_rate,
            confidence=detector.confidence,
            threshold=detector.threshold_,
        )

    @property
    def spec(self) -> EncoderSpec:
        """The encoder's spec."""
        return self.encoder.spec

    def graph(self) -> Graph:
        """Encoder and scorer as one graph."""
        inputs = {"pixels": torch.from_numpy(self.encoder.spec.example())}
        if self.scorer.noise_vectors:
            inputs["noise"] = torch.randn(2, self.scorer.noise_vectors, self.encoder.c)
        return Graph(lambda: ImageToScore(self.encoder.module(), self.scorer), inputs, ("score", "layers"), "")

    def inputs(self, pixels: NDArray[np.uint8]) -> tuple[NDArray[Any], ...]:
        """The graph's inputs for resized images, shape `(N, size, size, 3)`."""
        if not self.scorer.noise_vectors:
            return (pixels,)
        digests = np.stack([pixel_digest(image) for image in pixels])
        noise = noise_for(digests, self.seed, self.scorer.noise_vectors, self.encoder.c)
        return pixels, noise


def export(
    detector: Detector, folder: str | os.PathLike[str], kind: ExportFormat = "onnx", images: ImagesLike | None = None
) -> float:
    """Write an export directory, after checking that its graph agrees with PyTorch.

    Args:
        detector: fitted to images, on the CPU.
        folder: to write; an export in it is replaced.
        kind: `onnx` or `openvino`.
        images: real images to check the graph on, at most 256 of which are used; None for photographs of scikit-learn.

    Returns:
        The greatest difference of scores from PyTorch's on these images, relative as `TOLERANCE` says.

    Raises:
        NotFittedError: for a detector that is not fitted, or was fitted to features.
        SettingsError: for an unknown format, or a detector that is not on the CPU.
        MissingExtraError: if the package that writes the graph is not installed.
        OutputError: if the folder holds other files, or cannot be written.
        ExportError: if the graph disagrees with PyTorch; nothing is written then.
    """
    exported = Exportable.of(detector)
    check_export(Path(folder), kind)
    pixels = sample_pixels(exported.spec) if images is None else detector.extractor_.pixels(images, CHECKED_IMAGES)
    with replacing_folder(Path(folder)) as temporary:
        path = temporary / GRAPHS[kind]
        (write_onnx if kind == "onnx" else write_openvino)(exported.graph(), path)
        difference = disagreement(exported, _load(kind, path), pixels)
        if not difference <= TOLERANCE:
            raise ExportError(
                f"the exported graph disagrees with PyTorch: scores differ by {difference:.1e} of the score or of "
                f"the spread of ID scores, over {TOLERANCE:g}; nothing was written, try the other format"
            )
        parity = {"images": len(pixels), "greatest_relative_difference": difference, "tolerance": TOLERANCE}
        write_description(exported, temporary, kind, {"parity": parity})
    return difference


def check_export(folder: Path, kind: ExportFormat) -> None:
    """Raise the errors of `export` that can be known before long work: format, missing extra, folder in use."""
    if kind not in EXPORT_FORMATS:
        raise SettingsError(f"unknown format '{kind}'; choose one of {', '.join(EXPORT_FORMATS)}")
    check_conversion()
    choose_backend("onnxruntime" if kind == "onnx" else "openvino", "cpu")
    check_replaceable(folder, _FILES, "an export")


def write_description(exported: Exportable, folder: Path, kind: ExportFormat, proof: dict[str, Any]) -> None:
    """Write everything but the graph."""
    scores, p_values = exported.calibration.table(exported.confidence)
    np.save(folder / "calibration.npy", scores)
    np.save(folder / "p_values.npy", p_values)
    example = resources.files("dlsr.export").joinpath("templates/score_image.py").read_text()
    (folder / "score_image.py").write_text(example)
    about = _about(exported, kind) | proof
    about["sha256"] = file_sums(folder)
    (folder / ABOUT).write_text(json.dumps(about, indent=2) + "\n")


def disagreement(exported: Exportable, engine: Engine, pixels: NDArray[np.uint8]) -> float:
    """The greatest difference between an engine's scores and PyTorch's, relative as `TOLERANCE` says."""
    module = ImageToScore(exported.encoder.module(), exported.scorer).eval()
    # Scores that are all equal have no spread to measure a difference by.
    spread = max(float(exported.calibration.scores.std()), float(np.finfo(np.float32).tiny))
    differences = []
    for start in range(0, len(pixels), 32):
        inputs = exported.inputs(pixels[start : start + 32])
        with torch.inference_mode():
            exact = module(*(torch.from_numpy(array) for array in inputs))[0].double().numpy()
        differences.append(np.abs(engine(*inputs)[0] - exact) / np.maximum(np.abs(exact), spread))
    return float(np.concatenate(differences).max())


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
        patches.append(spec.resize(patch))
    return np.stack(patches)


def _load(kind: ExportFormat, path: Path) -> Engine:
    return load_onnx(path) if kind == "onnx" else load_openvino(path)


def _about(exported: Exportable, kind: ExportFormat) -> dict[str, Any]:
    return {
        "format": "dlsr-export",
        "schema_version": SCHEMA_VERSION,
        "graph": GRAPHS[kind],
        "convention": "larger score = more OOD; OOD if score > threshold, that is if p-value <= false_alarm_rate",
        "image": {
            "size": exported.spec.size,
            "interpolation": exported.spec.interpolation,
            "resizer": exported.spec.resizer,
            "loading": {
                "draft": DRAFT_MARGIN * exported.spec.size if exported.spec.decoding == "draft" else None,
                "most_pixels": {format: most_pixels(format) for format in FORMATS},
                "longest_side": MAX_SIDE,
            },
            "layout": "uint8, RGB, (N, size, size, 3), aspect ratio not kept",
        },
        "noise": {
            "seed": exported.seed,
            "vectors": exported.scorer.noise_vectors,
            "dimensions": exported.encoder.c,
        },
        "encoder": exported.spec.name,
        "encoder_sha256": exported.encoder.weights_sha256,
        "layers": list(exported.layer_names),
        "layer_mean": exported.calibration.layer_mean.tolist(),
        "layer_std": exported.calibration.layer_std.tolist(),
        "false_alarm_rate": exported.false_alarm_rate,
        "confidence": exported.confidence,
        "threshold": exported.threshold,
        "versions": installed_versions(),
    }
