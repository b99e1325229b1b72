"""What a model must be like before it is used. A model directory may come from a stranger, or be damaged.

All of its values are checked here, after the types and ranges of `model.json` and before an image is scored. Each check
raises ValueError with a reason.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dlsr.calibration.reasons import PROPERTIES, Ranges
from dlsr.encoders import ENCODERS, EncoderSpec, PackageWeights
from dlsr.encoders.presets import HubWeights
from dlsr.encoding.examples import Examples
from dlsr.method.noise import DIGEST_BYTES
from dlsr.model import Calibration, FittedModel


def local_encoder(spec: EncoderSpec) -> EncoderSpec:
    """An encoder as it may be loaded: from what is installed or named by a path, without a download.

    A package must be one of the presets': errors advise to install it.
    """
    known = [preset.weights for preset in ENCODERS.values()]
    if isinstance(spec.weights, PackageWeights) and spec.weights not in known:
        raise ValueError(f"no preset has its weights in the package '{spec.weights.package}'")
    if isinstance(spec.weights, HubWeights):
        return spec.model_copy(update={"weights": HubWeights(download=False)})
    return spec


def check_finite(arrays: Mapping[str, NDArray[Any]]) -> None:
    """Numbers are finite."""
    for name, values in arrays.items():
        if not np.isfinite(values).all():
            raise ValueError(f"{name} is not finite")


def check_model(model: FittedModel) -> None:
    """Calibration, examples and ranges are those of the model, and its score is a finite number."""
    _check_calibration(model.calibration, len(model.channels), model.summary.calibration_images)
    if model.examples is not None:
        _check_examples(model.examples, sum(model.channels))
    if model.map_peaks is not None:
        _check_peaks(model.map_peaks)
    if model.ranges is not None:
        _check_ranges(model.ranges)
    _check_score(model)


def _check_calibration(calibration: Calibration, layers: int, images: int) -> None:
    n = len(calibration.scores) if calibration.scores.ndim == 1 else 0
    shapes = {"scores": (n,), "groups": (n,), "layer_mean": (layers,), "layer_std": (layers,)}
    for name, shape in shapes.items():
        values = getattr(calibration, name)
        if values.shape != shape or values.dtype != (np.int64 if name == "groups" else np.float64):
            raise ValueError(f"calibration {name} have shape {values.shape} of {values.dtype}")
        if not np.isfinite(values).all():
            raise ValueError(f"calibration {name} are not finite")
    if n != images:
        raise ValueError(f"there are {n} calibration scores of {images} images")
    if not (calibration.layer_std > 0).all():
        raise ValueError("calibration layer_std are not positive")


def _check_examples(examples: Examples, c: int) -> None:
    shape = (len(examples.names), c)
    if examples.z0.shape != shape or examples.z0.dtype != np.float32 or not np.isfinite(examples.z0).all():
        raise ValueError(f"the features of thumbnails are not finite numbers of shape {shape}")


def _check_peaks(peaks: NDArray[Any]) -> None:
    if peaks.ndim != 1 or not len(peaks) or peaks.dtype != np.float64 or not (np.isfinite(peaks) & (peaks > 0)).all():
        raise ValueError("the peaks of maps are not numbers above 0")


def _check_ranges(ranges: Ranges) -> None:
    for name, values in ranges.values.items():
        if name not in PROPERTIES:
            raise ValueError(f"images have no property '{name}'")
        if values.shape != (ranges.images,) or values.dtype != np.float64 or not np.isfinite(values).all():
            raise ValueError(f"the range of '{name}' is not {ranges.images} finite numbers")
        if (np.diff(values) < 0).any():
            raise ValueError(f"the range of '{name}' is not in order")


def _check_score(model: FittedModel) -> None:
    probe = np.random.default_rng(0).standard_normal((2, sum(model.channels)), np.float32)
    scores, layers = model.score(probe, np.zeros((2, DIGEST_BYTES), np.uint8))
    if scores.shape != (2,) or layers.shape != (2, len(model.channels)):
        raise ValueError(f"an image gets scores of shapes {scores.shape} and {layers.shape}")
    if not (np.isfinite(scores).all() and np.isfinite(layers).all()):
        raise ValueError("an image gets a score that is not finite")
