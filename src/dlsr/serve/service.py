"""The service without HTTP: a queue of images, a model that scores them, and a watch on the model directory."""

import asyncio
import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dlsr.artifact import read_manifest
from dlsr.calibration.drift import one_of_each_group
from dlsr.detector import Detector
from dlsr.errors import NotFittedError, one_line
from dlsr.images.sources import ImageDataset, ImageItem
from dlsr.model_folder import MANIFEST
from dlsr.results import Result
from dlsr.runtime.backends import Backend
from dlsr.serve.batching import Batcher, QueueFullError
from dlsr.serve.bodies import NamedImage
from dlsr.serve.problems import RefusedError
from dlsr.serve.settings import ServeSettings
from dlsr.serve.telemetry import Telemetry

RETRY_AFTER = {"Retry-After": "1"}


@dataclass(frozen=True)
class Model:
    """A loaded model."""

    id: str
    """The first digits of the SHA-256 of the model's numbers: another id for every other model."""
    detector: Detector


@dataclass(frozen=True)
class Scored:
    """The results of one request, in the order of its images, and the model that gave them."""

    model: Model
    results: list[Result]


def load_model(folder: Path, device: str, backend: Backend, workers: int) -> Model:
    """Load a model directory and its encoder.

    Raises:
        ArtifactError: if the directory is missing, damaged or not a model.
        WeightsError: if the encoder's weights cannot be loaded.
        NotFittedError: if the model was fitted to features, and has no encoder.
    """
    id = read_manifest(folder).numbers_sha256[:16]
    detector = Detector.load(folder, device=device, backend=backend, workers=workers)
    if detector.encoder_name_ is None:
        raise NotFittedError(f"'{folder}' was fitted to features and has no encoder; give a model fitted to images")
    encoder = detector.extractor_.encoder
    encoder.encode(encoder.example(1).numpy())  # engines compile in their first call
    return Model(id, detector)


class Service:
    """Scores images of concurrent requests, and reloads the model when its directory changes.

    Args:
        folder: the model directory.
        settings: limits.
        device: as for `Detector`, as are the rest.
        backend: engine of the encoder.
        workers: threads that read and decode images.

    Raises:
        ArtifactError, WeightsError, NotFittedError: as `load_model`.
    """

    def __init__(
        self,
        folder: Path,
        settings: ServeSettings,
        *,
        device: str = "auto",
        backend: Backend = "auto",
        workers: int = 2,
    ) -> None:
        self.folder = folder
        self.settings = settings
        self.telemetry = Telemetry(settings.drift_window)
        self.draining = False
        """Whether the service is shutting down and refuses new requests."""
        self.handling = 0
        """Number of requests being handled."""
        self.reload_error: str | None = None
        """Why the model that is now in the directory could not be loaded."""
        self._engine = device, backend, workers
        self._seen = self._stamp()
        self.model = load_model(folder, *self._engine)
        self._watch_scores()
        self._batcher: Batcher[NamedImage, tuple[Model, Result]] = Batcher(
            self._score,
            max_batch=settings.max_batch,
            max_wait=settings.max_wait_seconds,
            max_waiting=settings.max_waiting,
        )
        self._watcher: asyncio.Task[None] | None = None

    @property
    def waiting(self) -> int:
        """Number of images waiting to be scored."""
        return self._batcher.waiting

    async def start(self) -> None:
        """Start scoring and watching the model directory, in the running event loop."""
        self._batcher.start()
        self._watcher = asyncio.create_task(self._watch())

    async def stop(self) -> None:
        """Stop watching, and finish the batches that are being scored."""
        if self._watcher is not None:
            self._watcher.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._watcher
        await self._batcher.stop()

    async def score(self, images: Sequence[NamedImage]) -> Scored:
        """Score the images of one request, at least one, all with the same model.

        Raises:
            RefusedError: if too many images are waiting, or scoring takes too long.
        """
        try:
            async with asyncio.timeout(self.settings.score_seconds):
                scored = await self._batcher.submit(images)
        except QueueFullError:
            raise RefusedError(
                429, f"{self.waiting} images are waiting already; try again later", "queue full", RETRY_AFTER
            ) from None
        except TimeoutError:
            detail = f"the images were not scored within {self.settings.score_seconds:g} seconds; try again later"
            raise RefusedError(503, detail, "score time", RETRY_AFTER) from None
        model, results = scored[0][0], [result for _, result in scored]
        self.telemetry.count(model.id, results)
        return Scored(model, results)

    def _score(self, images: list[NamedImage]) -> list[tuple[Model, Result]]:
        model = self.model
        items = [ImageItem(name, lambda content=content: content) for name, content in images]  # type: ignore[misc]
        return [(model, result) for result in model.detector.results(ImageDataset(items))]

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(self.settings.reload_seconds)
            stamp = self._stamp()
            if stamp is not None and stamp != self._seen:
                await self._reload(stamp)

    async def _reload(self, stamp: tuple[int, int, int]) -> None:
        """Load the model in the directory and switch to it; keep the current model if loading fails."""
        try:
            model = await asyncio.to_thread(load_model, self.folder, *self._engine)
        # Any error: a broken model or engine must stop neither the current model nor the watch for the next one.
        except Exception as error:
            # If the directory changed meanwhile, it was read in the middle of a change: try again.
            if stamp == self._stamp():
                self._seen = stamp
                self.reload_error = one_line(error)
                self.telemetry.reloads.labels("failed").inc()
            return
        self._seen = stamp
        self.reload_error = None
        if model.id != self.model.id:
            self.model = model
            self._watch_scores()
        self.telemetry.reloads.labels("done").inc()

    def _watch_scores(self) -> None:
        calibration = self.model.detector.calibration_
        self.telemetry.watch(self.model.id, one_of_each_group(calibration.scores, calibration.groups))

    def _stamp(self) -> tuple[int, int, int] | None:
        """A value that changes when `model.json` is replaced; None if there is no such file."""
        try:
            status = (self.folder / MANIFEST).stat()
        except OSError:
            return None
        return status.st_mtime_ns, status.st_ino, status.st_size
