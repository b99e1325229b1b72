"""The service without HTTP: a queue of images, a model that scores them, and a watch on the model directory."""

import asyncio
import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from dlsr.calibration.reasons import reasons, why_no_reasons
from dlsr.errors import one_line
from dlsr.images.png import as_png
from dlsr.images.sources import ImageDataset, ImageItem, failing_item
from dlsr.results import Result
from dlsr.runtime.backends import Backend
from dlsr.serve.batching import Batcher
from dlsr.serve.bodies import Bodies, EncodedImage
from dlsr.serve.decoding import Decoder, Outcome
from dlsr.serve.models import Loading, Model, Scored, Stamp, load_model, stamp_of
from dlsr.serve.problems import RETRY_AFTER, RefusedError
from dlsr.serve.settings import ServeSettings
from dlsr.serve.telemetry import Telemetry

END_OF_LOADING = 5.0
"""Seconds that the end of the service waits for a model that is being loaded."""
OVERLAY = 112
"""Pixels of each side of a map, which is stretched over its image."""


@dataclass(frozen=True)
class _Decoded:
    """An image to be scored by a model."""

    model: Model
    name: str
    outcome: Outcome
    with_map: bool
    """Whether to draw where it deviates, too."""

    def item(self) -> ImageItem:
        """The image as the detector reads it."""
        outcome = self.outcome
        return failing_item(self.name, outcome) if isinstance(outcome, str) else ImageItem(self.name, lambda: outcome)


_Scored = tuple[Result, bytes | None]
"""A result, and a transparent PNG to lay over the image, if there is one."""
_Outcome = _Scored | Exception
"""What came of an image; an error does not stop other requests of its batch."""


def _without_error(outcome: _Outcome) -> _Scored:
    """What was scored. Raises the error if there is one."""
    if isinstance(outcome, Exception):
        raise outcome
    return outcome


def _scored(model: Model, images: Sequence[_Decoded], with_maps: bool) -> Iterator[_Scored]:
    """Results of images in their order."""
    dataset = ImageDataset([image.item() for image in images])
    if not with_maps:
        yield from ((result, None) for result in model.detector.results(dataset))
        return
    for results, maps in model.detector.detect_with_maps(dataset):
        for result, found in zip(results, maps, strict=True):
            yield result, as_png(found.overlay((OVERLAY, OVERLAY))) if found.error is None else None


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
        """Number of admitted requests being handled."""
        self.bodies = Bodies(settings)
        self.decoder = Decoder(workers, settings.max_pixels)
        self._undecoded = 0
        self.reload_error: str | None = None
        """Why the model that is now in the directory could not be loaded."""
        self._engine = device, backend, workers
        self._seen = stamp_of(folder)
        self.model = load_model(folder, *self._engine)
        self.telemetry.watch(self.model.id, self.model.watched)
        self._batcher: Batcher[_Decoded, _Outcome] = Batcher(
            self._score, max_batch=settings.max_batch, max_wait=settings.max_wait_seconds
        )
        self._watcher: asyncio.Task[None] | None = None
        self._loading: Loading | None = None

    @property
    def waiting(self) -> int:
        """Number of images that wait to be scored, or are being decoded."""
        return self._undecoded + self._batcher.waiting

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
        if self._loading is not None:
            await asyncio.to_thread(self._loading.wait, END_OF_LOADING)
        await self._batcher.stop()
        await self.decoder.stop()

    async def score(self, images: Sequence[EncodedImage], *, explain: bool = False, maps: bool = False) -> Scored:
        """Decode and score the images of one request, at least one, all with the same model.

        Args:
            images: of the request.
            explain: also tell in which simple properties they are unlike ID images, for which each is decoded again.
            maps: also draw where they deviate, if the model can.

        Raises:
            RefusedError: if too many images are waiting, or scoring takes too long.
        """
        if self.waiting and self.waiting + len(images) > self.settings.max_waiting:
            detail = f"{self.waiting} images are waiting already; try again later"
            raise RefusedError(429, detail, "queue full", RETRY_AFTER)
        model = self.model
        try:
            async with asyncio.timeout(self.settings.score_seconds):
                with_maps = maps and model.detector.has_maps_
                outcomes = await self._batcher.submit(await self._decoded(images, model, with_maps))
                scored = [_without_error(outcome) for outcome in outcomes]
                results, drawn = [result for result, _ in scored], [overlay for _, overlay in scored]
                if explain:
                    results = await self._explained(images, model, results)
        except TimeoutError:
            detail = f"the images were not scored within {self.settings.score_seconds:g} seconds; try again later"
            raise RefusedError(503, detail, "score time", RETRY_AFTER) from None
        self.telemetry.count(model.id, results)
        return Scored(model, results, drawn if with_maps else None)

    async def _explained(self, images: Sequence[EncodedImage], model: Model, results: Sequence[Result]) -> list[Result]:
        ranges = model.detector.ranges_
        if ranges is None or why_no_reasons(ranges) is not None:
            return list(results)
        measured = await self.decoder.measure(images)
        return [
            result if properties is None else replace(result, reasons=reasons(properties, ranges))
            for result, properties in zip(results, measured, strict=True)
        ]

    async def _decoded(self, images: Sequence[EncodedImage], model: Model, with_maps: bool) -> list[_Decoded]:
        self._undecoded += len(images)
        try:
            outcomes = await self.decoder.decode(images, model.detector.extractor_.encoder.spec)
        finally:
            self._undecoded -= len(images)
        return [
            _Decoded(model, image.name, outcome, with_maps) for image, outcome in zip(images, outcomes, strict=True)
        ]

    def _score(self, images: list[_Decoded]) -> list[_Outcome]:
        scored: dict[int, _Outcome] = {}
        # There are two models after a reload, else one.
        for model, with_map in dict.fromkeys((image.model, image.with_map) for image in images):
            chosen = [i for i, image in enumerate(images) if image.model is model and image.with_map == with_map]
            try:
                scored |= zip(chosen, _scored(model, [images[i] for i in chosen], with_map), strict=True)
            except Exception as error:
                scored |= dict.fromkeys(chosen, error)
        return [scored[i] for i in range(len(images))]

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(self.settings.reload_seconds)
            stamp = stamp_of(self.folder)
            if stamp is not None and stamp != self._seen:
                await self._reload(stamp)

    async def _reload(self, stamp: Stamp) -> None:
        """Load the model in the directory and switch to it; keep the current model if loading fails."""
        self._loading = Loading(self.folder, *self._engine)
        try:
            model = await asyncio.wrap_future(self._loading.model)
            if model.id != self.model.id:
                self.telemetry.watch(model.id, model.watched)
        # Any error: a broken model or engine must stop neither the current model nor the watch for the next one.
        except Exception as error:
            # If the directory changed meanwhile, it was read in the middle of a change: try again.
            if stamp == stamp_of(self.folder):
                self._seen = stamp
                self.reload_error = one_line(error)
                self.telemetry.reloads.labels("failed").inc()
            return
        self._seen = stamp
        self.reload_error = None
        self.model = model
        self.telemetry.reloads.labels("done").inc()
