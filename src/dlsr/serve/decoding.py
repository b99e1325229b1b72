"""Work outside of the event loop: bodies are parsed and images decoded in a few threads, within a number of pixels."""

import asyncio
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import ParamSpec, TypeVar

import numpy as np
from numpy.typing import NDArray

from dlsr.encoders.presets import EncoderSpec
from dlsr.images.decode import UNREADABLE, reason_of
from dlsr.images.properties import Properties, properties_of
from dlsr.serve.bodies import EncodedImage

SMALL_PIXELS = 4_000_000
"""Images of up to this many pixels together are decoded in one go, and do not wait for larger images."""

P = ParamSpec("P")
T = TypeVar("T")

Pixels = NDArray[np.uint8]
Outcome = Pixels | str
"""A resized image, uint8 of shape `(size, size, 3)`, or the reason why it cannot be decoded."""


class Decoder:
    """Threads that parse and decode.

    At most `max_pixels + workers * SMALL_PIXELS` pixels are decoded at a time, over all requests. A request has at most
    `workers` pieces of work in the threads, so one with many large images does not keep others waiting for all of them.

    Args:
        workers: number of threads.
        max_pixels: pixels of images larger than `SMALL_PIXELS` that are decoded at a time; no image has more.
    """

    def __init__(self, workers: int, max_pixels: int) -> None:
        self._workers = workers
        self._pool = ThreadPoolExecutor(workers, "decode")
        self._free = max_pixels
        self._turns: deque[tuple[int, asyncio.Future[None]]] = deque()

    async def run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Call a function in one of the threads."""
        return await asyncio.wrap_future(self._pool.submit(function, *args, **kwargs))

    async def decode(self, images: Iterable[EncodedImage], spec: EncoderSpec) -> list[Outcome]:
        """Decode and resize the images of a request for an encoder, in order.

        When the caller is cancelled, so is all work that no thread has begun.
        """
        return await self._each(images, partial(_decode, spec=spec))

    async def measure(self, images: Iterable[EncodedImage]) -> list[Properties | None]:
        """Properties of the images of a request, in order; None for one that cannot be decoded. As `decode`."""
        return await self._each(images, _measure)

    async def _each(self, images: Iterable[EncodedImage], function: Callable[[bytes], T]) -> list[T]:
        """Call a function, which decodes, with the content of each image."""
        groups = list(_groups(images))
        if len(groups) == 1:
            return await self._group(groups[0], function)
        outcomes: dict[int, list[T]] = {}
        remaining = iter(enumerate(groups))

        async def do_remaining() -> None:
            for i, group in remaining:
                outcomes[i] = await self._group(group, function)

        async with asyncio.TaskGroup() as tasks:
            for _ in range(min(self._workers, len(groups))):
                tasks.create_task(do_remaining())
        return [outcome for i in range(len(groups)) for outcome in outcomes[i]]

    async def stop(self) -> None:
        """Wait for the threads to finish what they do."""
        await asyncio.to_thread(self._pool.shutdown, cancel_futures=True)

    async def _group(self, group: Sequence[EncodedImage], function: Callable[[bytes], T]) -> list[T]:
        pixels = sum(image.pixels for image in group)
        contents = [image.content for image in group]
        if pixels <= SMALL_PIXELS:
            return await self.run(_all, function, contents)
        await self._wait_for_turn(pixels)
        loop = asyncio.get_running_loop()

        def release(_: Future[list[T]]) -> None:
            loop.call_soon_threadsafe(self._release, pixels)

        work = self._pool.submit(_all, function, contents)
        # When the thread is done, and not when the caller is: a cancelled caller does not stop a thread.
        work.add_done_callback(release)
        return await asyncio.wrap_future(work)

    async def _wait_for_turn(self, pixels: int) -> None:
        turn = asyncio.get_running_loop().create_future()
        self._turns.append((pixels, turn))
        self._release(0)
        try:
            await turn
        except asyncio.CancelledError:
            self._release(0 if turn.cancelled() else pixels)
            raise

    def _release(self, pixels: int) -> None:
        """Free pixels, and give them to those who wait, in order."""
        self._free += pixels
        while self._turns and (self._turns[0][1].cancelled() or self._turns[0][0] <= self._free):
            wanted, turn = self._turns.popleft()
            if not turn.cancelled():
                self._free -= wanted
                turn.set_result(None)


def _groups(images: Iterable[EncodedImage]) -> Iterator[list[EncodedImage]]:
    """Images in order, in groups of at most `SMALL_PIXELS`; a larger image is alone."""
    group: list[EncodedImage] = []
    pixels = 0
    for image in images:
        if group and pixels + image.pixels > SMALL_PIXELS:
            yield group
            group, pixels = [], 0
        group.append(image)
        pixels += image.pixels
    if group:
        yield group


def _all(function: Callable[[bytes], T], contents: Sequence[bytes]) -> list[T]:
    return [function(content) for content in contents]


def _decode(content: bytes, spec: EncoderSpec) -> Outcome:
    """Decode and resize as the pipeline does, see `dlsr.encoding.pipeline`."""
    try:
        return spec.resize(spec.decode(content))
    except UNREADABLE as error:
        return reason_of(error)


def _measure(content: bytes) -> Properties | None:
    try:
        return properties_of(content)
    except UNREADABLE:
        return None
