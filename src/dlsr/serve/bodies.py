"""Request bodies: images as multipart files, or as base64 in JSON."""

import asyncio
import base64
import binascii
from typing import Any

from fastapi import Request
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException

from dlsr.errors import ImageError, ImageTooLargeError
from dlsr.images.decode import pixels_of
from dlsr.serve.problems import RefusedError
from dlsr.serve.settings import ServeSettings

FIELD = "images"
LONGEST_NAME = 255

NamedImage = tuple[str, bytes]


class ImageBody(BaseModel):
    """One image of a JSON body."""

    model_config = ConfigDict(extra="forbid")

    data: str = Field(description="The image file, in base64.", json_schema_extra={"format": "byte"})
    name: str = Field(default="", max_length=LONGEST_NAME, description="Name of the image in the answer.")


class ImagesBody(BaseModel):
    """A JSON body."""

    model_config = ConfigDict(extra="forbid")

    images: list[ImageBody] = Field(min_length=1)


def request_body_schema() -> dict[str, Any]:
    """The request body of `/v1/score`, for the OpenAPI schema."""
    files = {"type": "array", "minItems": 1, "items": {"type": "string", "format": "binary"}}
    multipart = {"type": "object", "properties": {FIELD: files}, "required": [FIELD], "additionalProperties": False}
    image = ImageBody.model_json_schema()
    listed = {"type": "array", "minItems": 1, "items": image}
    return {
        "required": True,
        "content": {
            "multipart/form-data": {"schema": multipart},
            "application/json": {
                "schema": {
                    "type": "object",
                    "properties": {FIELD: listed},
                    "required": [FIELD],
                    "additionalProperties": False,
                }
            },
        },
    }


async def read_images(request: Request, settings: ServeSettings) -> list[NamedImage]:
    """Names and contents of a request's images.

    Raises:
        RefusedError: if the body is too large, too slow, malformed, of another type or without images; if there are
            too many images, or an image has too many pixels.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind not in ("multipart/form-data", "application/json"):
        raise RefusedError(415, f"send multipart/form-data or application/json, not '{kind}'", "media type")
    body = await _read_body(request, settings)
    images = await _from_form(request, body, settings) if kind == "multipart/form-data" else _from_json(body)
    if not images:
        raise RefusedError(422, f"there is no image in the request; send files in the field '{FIELD}'", "no image")
    if len(images) > settings.max_images:
        raise _too_many(settings)
    for name, content in images:
        _check_pixels(name, content, settings)
    return images


async def _read_body(request: Request, settings: ServeSettings) -> bytes:
    too_large = RefusedError(413, f"the body is over {settings.max_body_bytes} bytes; send fewer images", "body size")
    announced = request.headers.get("content-length", "")
    if announced.isdigit() and int(announced) > settings.max_body_bytes:
        raise too_large
    chunks, size = [], 0
    try:
        async with asyncio.timeout(settings.body_seconds):
            async for chunk in request.stream():
                size += len(chunk)
                if size > settings.max_body_bytes:
                    raise too_large
                chunks.append(chunk)
    except TimeoutError:
        detail = f"the body did not arrive within {settings.body_seconds:g} seconds; send it faster"
        raise RefusedError(408, detail, "body time", {"Connection": "close"}) from None
    return b"".join(chunks)


def _too_many(settings: ServeSettings) -> RefusedError:
    return RefusedError(413, f"send at most {settings.max_images} images in a request", "too many images")


async def _from_form(request: Request, body: bytes, settings: ServeSettings) -> list[NamedImage]:
    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": body, "more_body": False}

    try:
        # One more than allowed, to tell too many files from a malformed form.
        form = await Request(request.scope, receive).form(max_files=settings.max_images + 1, max_fields=1)
    except (HTTPException, MultiPartException, ValueError, KeyError) as error:
        detail = getattr(error, "detail", None) or getattr(error, "message", None) or str(error)
        if "Too many files" in detail:
            raise _too_many(settings) from None
        raise RefusedError(400, f"the form is malformed: {detail}", "malformed") from None
    images = []
    for name, value in form.multi_items():
        if name != FIELD or not isinstance(value, UploadFile):
            raise RefusedError(422, f"the form has '{name}'; send files in the field '{FIELD}' alone", "malformed")
        images.append(((value.filename or "")[:LONGEST_NAME], await value.read()))
    await form.close()
    return images


def _from_json(body: bytes) -> list[NamedImage]:
    try:
        parsed = ImagesBody.model_validate_json(body)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        malformed = first["type"] == "json_invalid"
        where = ".".join(str(part) for part in first["loc"])
        detail = f"{where}: {first['msg']}" if where else str(first["msg"])
        raise RefusedError(400 if malformed else 422, f"the JSON body is invalid: {detail}", "malformed") from None
    images = []
    for i, image in enumerate(parsed.images):
        try:
            images.append((image.name, base64.b64decode(image.data, validate=True)))
        except (binascii.Error, ValueError):
            raise RefusedError(422, f"{FIELD}.{i}.data is not base64", "malformed") from None
    return images


def _check_pixels(name: str, content: bytes, settings: ServeSettings) -> None:
    try:
        pixels = pixels_of(content)
    except ImageTooLargeError as error:
        raise RefusedError(413, f"'{name}' has {error}", "pixels") from None
    except ImageError:
        return  # becomes the error of this image in the answer
    if pixels > settings.max_pixels:
        raise RefusedError(413, f"'{name}' has {pixels} pixels; send at most {settings.max_pixels}", "pixels")
