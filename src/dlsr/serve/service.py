"""The service itself, without HTTP: a model that can be replaced while it scores, and what waits for it."""

import asyncio
import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dlsr.artifact import MANIFEST, read_manifest
from dlsr.detector import Detector, Result
from dlsr.errors import NotFittedError, one_line
from dlsr.images.sources import ImageDataset, ImageItem
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
    """Changes whenever the model directory does: the first digits of the SHA-256 of its numbers."""
    detector: Detector


@dataclass(frozen=True)
class Scored:
    """What a model said of an image."""

    model: Model
    result: Result


def load_model(folder: Path, device: str, backend: Backend, workers: int) -> Model:
    """Load a model directory and its encoder.

    Raises:
        ArtifactError: if it cannot be trusted.
        WeightsError: if the encoder's weights cannot be had.
        NotFittedError: if it was fitted to features, and has no encoder.
    """
    id = read_manifest(folder).numbers_sha256[:16]
    detector = Detector.load(folder, device=device, backend=backend, workers=workers)
    if detector.encoder_name_ is None:
        raise NotFittedError(f"'{folder}' was fitted to features and has no encoder; give a model fitted to images")
    encoder = detector.encoder_
    encoder.encode(encoder.example(1).numpy())  # engines prepare themselves at their first call
    return Model(id, detector)


class Service:
    """Scores images of many callers with one model, and follows its directory.

    Args:
        folder: the model directory.
        settings: limits.
        device: as for `Detector`.
        backend: likewise.
        workers: likewise.

    Raises:
        DlsrError: as `load_model`.
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
        """Whether it is about to end, and refuses what comes."""
        self.handling = 0
        """Requests that are being handled."""
        self.reload_error: str | None = None
        self._engine = device, backend, workers
        self._seen = self._stamp()
        self.model = load_model(folder, *self._engine)
        self.telemetry.watch(self.model.id, self.model.detector.calibration_scores_)
        self._batcher: Batcher[NamedImage, Scored] = Batcher(
            self._score,
            max_batch=settings.max_batch,
            max_wait=settings.max_wait_seconds,
            max_waiting=settings.max_waiting,
        )
        self._follower: asyncio.Task[None] | None = None

    @property
    def waiting(self) -> int:
        """Images that wait to be scored."""
        return self._batcher.waiting

    async def start(self) -> None:
        """Begin to score and to follow the model directory, in the running event loop."""
        self._batcher.start()
        self._follower = asyncio.create_task(self._follow())

    async def stop(self) -> None:
        """Finish what is under way."""
        if self._follower is not None:
            self._follower.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._follower
        await self._batcher.stop()

    async def score(self, images: Sequence[NamedImage]) -> list[Scored]:
        """What the model says of images, in order. All of a call are judged by one model.

        Raises:
            RefusedError: if too many images wait already, or it takes too long.
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
        self.telemetry.count([one.result for one in scored])
        return scored

    def _score(self, images: list[NamedImage]) -> list[Scored]:
        model = self.model
        items = [ImageItem(name, lambda content=content: content) for name, content in images]  # type: ignore[misc]
        return [Scored(model, result) for result in model.detector.results(ImageDataset(items))]

    async def _follow(self) -> None:
        while True:
            await asyncio.sleep(self.settings.reload_seconds)
            stamp = self._stamp()
            if stamp is not None and stamp != self._seen:
                await self._reload(stamp)

    async def _reload(self, stamp: tuple[int, int, int]) -> None:
        """Take up what lies in the model directory now; keep the present model if that cannot be used."""
        try:
            model = await asyncio.to_thread(load_model, self.folder, *self._engine)
        # Whatever is wrong with it, or with its engine: the present model goes on, and so does the watch for the next.
        except Exception as error:
            # Kept in mind only if nothing changed while it was read: a directory may be seen half-way.
            if stamp == self._stamp():
                self._seen = stamp
                self.reload_error = one_line(error)
                self.telemetry.reloads.labels("failed").inc()
            return
        self._seen = stamp
        self.reload_error = None
        if model.id != self.model.id:
            self.model = model
            self.telemetry.watch(model.id, model.detector.calibration_scores_)
        self.telemetry.reloads.labels("done").inc()

    def _stamp(self) -> tuple[int, int, int] | None:
        """Changes when `model.json` is replaced; None while there is none."""
        try:
            status = (self.folder / MANIFEST).stat()
        except OSError:
            return None
        return status.st_mtime_ns, status.st_ino, status.st_size
