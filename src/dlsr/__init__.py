"""Unsupervised out-of-distribution detection on images. Larger score = more OOD, everywhere."""

from importlib import import_module
from typing import TYPE_CHECKING

from dlsr.errors import missing_told

if TYPE_CHECKING:
    from dlsr.calibration.conformal import p_values, threshold
    from dlsr.calibration.metrics import Metrics, evaluate_scores
    from dlsr.calibration.reasons import Reason
    from dlsr.detector import Detector
    from dlsr.encoders import ENCODERS, EncoderSpec, encoder_spec
    from dlsr.encoders.encoder import Encoder
    from dlsr.encoding.extractor import FeatureStoreWarning
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
    from dlsr.explaining.explain import explain
    from dlsr.explaining.groups import Group, group
    from dlsr.fitted_detector import FittedDetector
    from dlsr.fitting import GraphWarning
    from dlsr.images.sources import ImageDataset, UnreadableImagesWarning, open_images
    from dlsr.results import Result, Results
    from dlsr.scorers import PRESETS, SCORES, Scorer, Settings, register

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
    "FeatureStoreWarning",
    "FittedDetector",
    "GraphWarning",
    "Group",
    "ImageDataset",
    "ImageError",
    "ImageTooLargeError",
    "InputError",
    "Metrics",
    "MissingExtraError",
    "NoImagesError",
    "NotFittedError",
    "OutputError",
    "Reason",
    "Report",
    "Result",
    "Results",
    "Scorer",
    "Settings",
    "SettingsError",
    "TooFewImagesError",
    "UnreadableImagesWarning",
    "WeightsError",
    "encoder_spec",
    "evaluate",
    "evaluate_scores",
    "explain",
    "group",
    "open_images",
    "p_values",
    "register",
    "threshold",
]

_HOME = {
    "p_values": "dlsr.calibration.conformal",
    "threshold": "dlsr.calibration.conformal",
    "Detector": "dlsr.detector",
    "FittedDetector": "dlsr.fitted_detector",
    "Result": "dlsr.results",
    "Results": "dlsr.results",
    "Scorer": "dlsr.scorers",
    "register": "dlsr.scorers",
    "UnreadableImagesWarning": "dlsr.images.sources",
    "FeatureStoreWarning": "dlsr.encoding.extractor",
    "GraphWarning": "dlsr.fitting",
    "ENCODERS": "dlsr.encoders",
    "Encoder": "dlsr.encoders.encoder",
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
    "Reason": "dlsr.calibration.reasons",
    "Group": "dlsr.explaining.groups",
    "explain": "dlsr.explaining.explain",
    "group": "dlsr.explaining.groups",
    "ImageDataset": "dlsr.images.sources",
    "open_images": "dlsr.images.sources",
    "Metrics": "dlsr.calibration.metrics",
    "evaluate_scores": "dlsr.calibration.metrics",
    "PRESETS": "dlsr.scorers",
    "SCORES": "dlsr.scorers",
    "Settings": "dlsr.scorers",
}


def __getattr__(name: str) -> object:
    """Import a public name at its first use: PyTorch takes seconds, and `dlsr --help` must not."""
    if name not in _HOME:
        raise AttributeError(f"module 'dlsr' has no attribute '{name}'")
    with missing_told():
        return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return list(__all__)
