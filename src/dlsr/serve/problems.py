"""Refusals as problem documents (RFC 9457): `application/problem+json` with a status, a title and a remedy."""

import json
from collections.abc import Mapping
from http import HTTPStatus

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response

MEDIA_TYPE = "application/problem+json"
RETRY_AFTER = {"Retry-After": "1"}
CLIENT_GONE = 499
"""Status in the metrics for a request whose client left before the answer, as in nginx."""


class RefusedError(Exception):
    """A request that is refused.

    Args:
        status: HTTP status, 4xx or 503.
        detail: one line with the problem and a remedy.
        reason: label in the metric of refused requests.
        headers: additional headers of the response.
        images: why each image was refused, by name.
    """

    def __init__(
        self,
        status: int,
        detail: str,
        reason: str,
        headers: Mapping[str, str] | None = None,
        images: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(detail)
        self.status = status
        self.detail = detail
        self.reason = reason
        self.headers = dict(headers or {})
        self.images = images

    def response(self) -> Response:
        """The response with the problem document."""
        more = {"images": dict(self.images)} if self.images else {}
        return problem_response(self.status, self.detail, self.headers, more)


def shutting_down() -> RefusedError:
    """The refusal of a service that is shutting down."""
    headers = {**RETRY_AFTER, "Connection": "close"}
    return RefusedError(503, "the service is shutting down; try another", "shutting down", headers)


def problem_response(
    status: int, detail: str, headers: Mapping[str, str] | None = None, more: Mapping[str, object] | None = None
) -> Response:
    """A response with a problem document; `more` adds members to it."""
    return Response(problem_content(status, detail, more), status, dict(headers or {}), MEDIA_TYPE)


def problem_content(status: int, detail: str, more: Mapping[str, object] | None = None) -> bytes:
    """A problem document in JSON; `more` adds members to it."""
    content = {"type": "about:blank", "title": HTTPStatus(status).phrase, "status": status, "detail": detail}
    return json.dumps({**content, **(more or {})}, ensure_ascii=False).encode()


async def on_http_exception(_: Request, error: Exception) -> Response:
    """Answer requests that the framework refuses: unknown paths, wrong methods."""
    assert isinstance(error, HTTPException)
    return problem_response(error.status_code, str(error.detail), error.headers)


async def on_failure(_: Request, error: Exception) -> Response:
    """Answer requests that failed because of an error in the service; the server logs the traceback."""
    return problem_response(500, f"the service failed ({type(error).__name__}); see its log")


async def on_invalid(_: Request, error: Exception) -> Response:
    """Answer requests with parameters that the framework cannot parse."""
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    return problem_response(422, f"{'.'.join(str(part) for part in first['loc'])}: {first['msg']}")
