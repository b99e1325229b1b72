"""The models of a service: loading, and a check that a model scores before it is used."""

import math
import threading
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dlsr.artifact import read_manifest
from dlsr.calibration.drift import one_of_each_group
from dlsr.errors import ArtifactError, DlsrError, FeatureError, NotFittedError, one_line
from dlsr.fitted_detector import FittedDetector
from dlsr.images.sources import ImageDataset, ImageItem
from dlsr.model_folder import MANIFEST
from dlsr.results import Result
from dlsr.runtime.backends import Backend

Stamp = tuple[int, int, int]


@dataclass(frozen=True, eq=False)
class Model:
    """A loaded model."""

    id: str
    """The first digits of the SHA-256 of the model's numbers: another id for every other model."""
    detector: FittedDetector
    watched: NDArray[np.float64]
    """The calibration scores with which new scores are compared, shape `(n,)`."""


@dataclass(frozen=True)
class Scored:
    """The results of one request, in the order of its images, and the model that gave them."""

    model: Model
    results: list[Result]
    maps: list[bytes | None] | None = None
    """For each image a PNG to stretch over it, which shows where it deviates; None if they were not asked for."""


def load_model(folder: Path, device: str, backend: Backend, workers: int) -> Model:
    """Load a model directory and its encoder, and score an image with it.

    Raises:
        ArtifactError: if the directory is missing, damaged or not a model, or the model cannot score an image.
        WeightsError: if the encoder's weights cannot be loaded.
        NotFittedError: if the model was fitted to features, and has no encoder.
    """
    id = ""
    while id != (found := read_manifest(folder).numbers_sha256):  # again if the model was replaced while it was read
        id, detector = found, FittedDetector.load(folder, device=device, backend=backend, workers=workers)
    if detector.encoder_name_ is None:
        raise NotFittedError(f"'{folder}' was fitted to features and has no encoder; give a model fitted to images")
    try:
        return Model(id[:16], detector, _checked_scores(detector))
    # A model that is damaged in a way that loading does not notice may raise any error.
    except Exception as error:
        if isinstance(error, DlsrError) and not isinstance(error, FeatureError):
            raise
        raise ArtifactError(f"the model in '{folder}' cannot be used ({one_line(error)}); fit it again") from error


def _checked_scores(detector: FittedDetector) -> NDArray[np.float64]:
    """The calibration scores of a model that can score an image, and whose numbers are finite."""
    encoder = detector.extractor_.encoder
    encoder.encode(encoder.spec.example(1))  # engines compile in their first call
    pixels = encoder.spec.example(1)[0]
    (result,) = detector.results(ImageDataset([ImageItem("probe", lambda: pixels)]))
    calibration = detector.calibration_
    numbers = [result.score, result.p_value, detector.threshold_, *calibration.scores]
    if not all(number is not None and math.isfinite(number) for number in numbers):
        raise ValueError("its scores are not finite")
    return one_of_each_group(calibration.scores, calibration.groups)


def stamp_of(folder: Path) -> Stamp | None:
    """A value that changes when `model.json` is replaced; None if there is no such file."""
    try:
        status = (folder / MANIFEST).stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_ino, status.st_size


class Loading:
    """A model that is being loaded in a thread. Loading may never end, and does not keep the process from ending.

    Args:
        arguments: those of `load_model`.
    """

    def __init__(self, *arguments: Any) -> None:
        self.model: Future[Model] = Future()
        self._arguments = arguments
        self._thread = threading.Thread(target=self._load, name="load", daemon=True)
        self._thread.start()

    def wait(self, seconds: float) -> None:
        """Wait until it has ended, or for some seconds."""
        self._thread.join(seconds)

    def _load(self) -> None:
        self.model.set_running_or_notify_cancel()  # from here on it cannot be cancelled
        try:
            self.model.set_result(load_model(*self._arguments))
        except BaseException as error:
            self.model.set_exception(error)
