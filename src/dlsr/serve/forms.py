"""The images in a request's body: multipart files, or base64 in JSON.

Bodies come from strangers: time and memory are linear in the size of the body, and small beside it.
"""

import base64
import binascii
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from python_multipart.multipart import parse_options_header

from dlsr.serve.problems import RefusedError

FIELD = "images"
LONGEST_NAME = 255
LONGEST_BOUNDARY = 70
"""As in RFC 2046."""
LONGEST_PART_HEAD = 4096
"""Bytes of the headers of a part of a form."""
MARKS = b"{[:,"
"""Characters of which JSON has one for each value outside of strings, at least."""
MARKS_PER_IMAGE = LONGEST_NAME + 8
"""Marks that an image of a JSON body may have: all characters of its name, and a few around its two members."""

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


def too_many_images(limit: int) -> RefusedError:
    """The refusal of a request with more images than `limit`."""
    return RefusedError(413, f"send at most {limit} images in a request", "too many images")


def images_of_form(content_type: str, body: bytearray, limit: int) -> list[NamedImage]:
    """The files of a multipart form.

    Args:
        content_type: the header, with the boundary.
        body: the form.
        limit: number of images.

    Raises:
        RefusedError: if it is malformed, has other fields or too many images.
    """
    boundary = parse_options_header(content_type)[1].get(b"boundary", b"")
    if not 1 <= len(boundary) <= LONGEST_BOUNDARY:
        raise _malformed(f"the content type has no boundary of 1 to {LONGEST_BOUNDARY} characters")
    delimiter = b"\r\n--" + boundary
    if not body.startswith((delimiter, delimiter[2:])):
        raise _malformed("it does not begin with its boundary")
    images: list[NamedImage] = []
    start = body.index(boundary) + len(boundary)
    while body[start : start + 2] != b"--":
        if len(images) == limit:
            raise too_many_images(limit)
        end = body.find(delimiter, start)
        if end < 0:
            raise _malformed("it does not end with its boundary")
        images.append(_file(body, start, end))
        start = end + len(delimiter)
    return images


def _file(body: bytearray, start: int, end: int) -> NamedImage:
    """The file in a part of a form, from after its boundary to before the next."""
    content = body.find(b"\r\n\r\n", start, min(end, start + LONGEST_PART_HEAD))
    if content < 0:
        raise _malformed(f"a part has no headers, or more than {LONGEST_PART_HEAD} bytes of them")
    headers = (line.partition(b":") for line in bytes(body[start:content]).split(b"\r\n")[1:])
    values = [value for name, _, value in headers if name.strip().lower() == b"content-disposition"]
    if not values:
        raise _malformed("a part has no Content-Disposition")
    options = parse_options_header(values[0])[1]
    field = options.get(b"name", b"").decode(errors="replace")
    if field != FIELD or b"filename" not in options:
        raise RefusedError(422, f"the form has '{field[:99]}'; send files in the field '{FIELD}' alone", "malformed")
    name = options[b"filename"].decode(errors="replace")[:LONGEST_NAME]
    return name, bytes(memoryview(body)[content + 4 : end])


def _malformed(detail: str) -> RefusedError:
    return RefusedError(400, f"the form is malformed: {detail}", "malformed")


def images_of_json(body: bytearray, limit: int) -> list[NamedImage]:
    """The images of a JSON body.

    Args:
        body: the JSON.
        limit: number of images.

    Raises:
        RefusedError: if it is malformed or has too many images.
    """
    # A parsed value takes up to a hundred times its bytes, so they are counted before they are parsed.
    if sum(body.count(mark) for mark in MARKS) > MARKS_PER_IMAGE * (limit + 1):
        raise too_many_images(limit)
    try:
        parsed = ImagesBody.model_validate_json(body)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        malformed = first["type"] == "json_invalid"
        where = ".".join(str(part) for part in first["loc"])[:99]
        detail = f"{where}: {first['msg']}" if where else str(first["msg"])
        raise RefusedError(400 if malformed else 422, f"the JSON body is invalid: {detail}", "malformed") from None
    if len(parsed.images) > limit:
        raise too_many_images(limit)
    images = []
    for i, image in enumerate(parsed.images):
        try:
            images.append((image.name, base64.b64decode(image.data, validate=True)))
        except (binascii.Error, ValueError):
            raise RefusedError(422, f"{FIELD}.{i}.data is not base64", "malformed") from None
    return images
