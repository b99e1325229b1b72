"""Reading of request bodies, bounded over all requests."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass

from fastapi import Request

from dlsr.errors import ImageError, ImageTooLargeError
from dlsr.images.decode import pixels_of
from dlsr.serve.forms import images_of_form, images_of_json
from dlsr.serve.problems import RETRY_AFTER, RefusedError, shutting_down
from dlsr.serve.settings import ServeSettings

BODIES = 8
"""The bodies of all requests together have at most the size of this many largest bodies."""
FORM = "multipart/form-data"
JSON = "application/json"


@dataclass(frozen=True)
class EncodedImage:
    """An image of a request that is not decoded yet."""

    name: str
    content: bytes
    pixels: int
    """Their number, from its header; 0 if the header cannot be read."""


class Bodies:
    """The bodies of all requests that are being handled.

    Args:
        settings: limits.
    """

    def __init__(self, settings: ServeSettings) -> None:
        self._settings = settings
        self._held = 0
        self.given_up = False
        """Whether the service no longer waits for bodies."""
        self._arriving: set[asyncio.Timeout] = set()

    @contextmanager
    def hold(self) -> Iterator["Body"]:
        """A body that is counted until the end of the block."""
        body = Body(self, self._settings)
        try:
            yield body
        finally:
            self._held -= body.size

    def count(self, size: int) -> None:
        """Count bytes that have arrived.

        Raises:
            RefusedError: if the bodies are too large together.
        """
        if self._held + size > BODIES * self._settings.max_body_bytes:
            detail = f"bodies of {self._held} bytes are being handled already; try again later"
            raise RefusedError(429, detail, "bodies", RETRY_AFTER)
        self._held += size

    @asynccontextmanager
    async def arrival(self) -> AsyncIterator[None]:
        """The time in which a body arrives. Raises TimeoutError at its end."""
        async with asyncio.timeout(self._settings.body_seconds) as timeout:
            self._arriving.add(timeout)
            try:
                yield
            finally:
                self._arriving.discard(timeout)

    def give_up(self) -> None:
        """End the time of all bodies that are still arriving, because the service ends."""
        self.given_up = True
        for timeout in self._arriving:
            if not timeout.expired():
                timeout.reschedule(0)


class Body:
    """One request's body.

    Args:
        bodies: where it is counted.
        settings: limits.
    """

    def __init__(self, bodies: Bodies, settings: ServeSettings) -> None:
        self._bodies = bodies
        self._settings = settings
        self.size = 0

    async def read(self, request: Request) -> bytearray:
        """Read it.

        Raises:
            RefusedError: if it is of another type than forms and JSON, too large or too slow.
        """
        if media_type(request) not in (FORM, JSON):
            raise RefusedError(415, f"send {FORM} or {JSON}, not '{media_type(request)}'", "media type")
        limit = self._settings.max_body_bytes
        too_large = RefusedError(413, f"the body is over {limit} bytes; send fewer images", "body size")
        announced = request.headers.get("content-length", "")
        if announced.isdigit() and int(announced) > limit:
            raise too_large
        content = bytearray()
        try:
            async with self._bodies.arrival():
                async for chunk in request.stream():
                    if self.size + len(chunk) > limit:
                        raise too_large
                    self._bodies.count(len(chunk))
                    self.size += len(chunk)
                    content += chunk
        except TimeoutError:
            if self._bodies.given_up:
                raise shutting_down() from None
            detail = f"the body did not arrive within {self._settings.body_seconds:g} seconds; send it faster"
            raise RefusedError(408, detail, "body time", {"Connection": "close"}) from None
        return content


def media_type(request: Request) -> str:
    """The media type of a request's body, without parameters."""
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


def images_of(content_type: str, body: bytearray, settings: ServeSettings) -> list[EncodedImage]:
    """The images in a body. Takes long for some bodies, so it runs in a thread.

    Args:
        content_type: the header of the request.
        body: the body.
        settings: limits.

    Raises:
        RefusedError: if the body is malformed or without images; if there are too many images, or an image has too
            many pixels.
    """
    if content_type.lower().startswith(FORM):
        images = images_of_form(content_type, body, settings.max_images)
    else:
        images = images_of_json(body, settings.max_images)
    if not images:
        raise RefusedError(422, "there is no image in the request; send files in the field 'images'", "no image")
    return [EncodedImage(name, content, _pixels(name, content, settings)) for name, content in images]


def _pixels(name: str, content: bytes, settings: ServeSettings) -> int:
    try:
        pixels = pixels_of(content)
    except ImageTooLargeError as error:
        raise RefusedError(413, f"'{name}' has {error}", "pixels") from None
    except ImageError:
        return 0  # becomes the error of this image in the answer
    if pixels > settings.max_pixels:
        raise RefusedError(413, f"'{name}' has {pixels} pixels; send at most {settings.max_pixels}", "pixels")
    return pixels
