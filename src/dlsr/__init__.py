"""Unsupervised out-of-distribution detection on images. Larger score = more OOD, everywhere."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dlsr.calibration import p_values, threshold
    from dlsr.detector import Detector, Result
    from dlsr.encoders import ENCODERS, Encoder, EncoderSpec, encoder_spec
    from dlsr.errors import (
        ArtifactError,
        DlsrError,
        ExportError,
        FeatureError,
        ImageError,
        ImageTooLargeError,
        InputError,
        MissingExtraError,
        NoImagesError,
        NotFittedError,
        OutputError,
        SettingsError,
        TooFewImagesError,
        WeightsError,
    )
    from dlsr.evaluation import Evaluation, Report, evaluate
    from dlsr.images import ImageSet, UnreadableImagesWarning, open_images
    from dlsr.metrics import Metrics, evaluate_scores
    from dlsr.settings import PRESETS, SCORES, Settings

__all__ = [
    "ENCODERS",
    "PRESETS",
    "SCORES",
    "ArtifactError",
    "Detector",
    "DlsrError",
    "Encoder",
    "EncoderSpec",
    "Evaluation",
    "ExportError",
    "FeatureError",
    "ImageError",
    "ImageSet",
    "ImageTooLargeError",
    "InputError",
    "Metrics",
    "MissingExtraError",
    "NoImagesError",
    "NotFittedError",
    "OutputError",
    "Report",
    "Result",
    "Settings",
    "SettingsError",
    "TooFewImagesError",
    "UnreadableImagesWarning",
    "WeightsError",
    "encoder_spec",
    "evaluate",
    "evaluate_scores",
    "open_images",
    "p_values",
    "threshold",
]

_HOME = {
    "p_values": "dlsr.calibration",
    "threshold": "dlsr.calibration",
    "Detector": "dlsr.detector",
    "Result": "dlsr.detector",
    "UnreadableImagesWarning": "dlsr.images",
    "ENCODERS": "dlsr.encoders",
    "Encoder": "dlsr.encoders",
    "EncoderSpec": "dlsr.encoders",
    "encoder_spec": "dlsr.encoders",
    "ArtifactError": "dlsr.errors",
    "DlsrError": "dlsr.errors",
    "ExportError": "dlsr.errors",
    "FeatureError": "dlsr.errors",
    "ImageError": "dlsr.errors",
    "ImageTooLargeError": "dlsr.errors",
    "InputError": "dlsr.errors",
    "MissingExtraError": "dlsr.errors",
    "NoImagesError": "dlsr.errors",
    "NotFittedError": "dlsr.errors",
    "OutputError": "dlsr.errors",
    "SettingsError": "dlsr.errors",
    "TooFewImagesError": "dlsr.errors",
    "WeightsError": "dlsr.errors",
    "Evaluation": "dlsr.evaluation",
    "Report": "dlsr.evaluation",
    "evaluate": "dlsr.evaluation",
    "ImageSet": "dlsr.images",
    "open_images": "dlsr.images",
    "Metrics": "dlsr.metrics",
    "evaluate_scores": "dlsr.metrics",
    "PRESETS": "dlsr.settings",
    "SCORES": "dlsr.settings",
    "Settings": "dlsr.settings",
}


def __getattr__(name: str) -> object:
    """Import a public name at its first use: PyTorch takes seconds, and `dlsr --help` must not."""
    if name not in _HOME:
        raise AttributeError(f"module 'dlsr' has no attribute '{name}'")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return list(__all__)
