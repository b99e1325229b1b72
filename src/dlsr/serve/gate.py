"""ASGI middleware in front of the routes: token, limit of concurrent requests, shutdown, and request metrics."""

import asyncio
import contextlib
import hmac
import time

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from dlsr.serve.problems import RefusedError
from dlsr.serve.service import RETRY_AFTER, Service
from dlsr.serve.static import PAGE

GUARDED = ("/v1/", "/metrics")
"""Prefixes of the paths that require the token."""
CLIENT_GONE = 499
"""Status in the metrics for a request whose client left before the answer, as in nginx."""
DISCARD_SECONDS = 2
"""How long the rest of a refused request's body is read and discarded."""


class Gate:
    """Refuses requests without the token, over the limit or during shutdown; counts and times every request.

    Args:
        app: the application behind the gate.
        service: its settings, state and metrics.
    """

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self._app = app
        self._service = service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a request as the ASGI specification asks."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        service, path = self._service, str(scope["path"])
        start = time.perf_counter()
        status = CLIENT_GONE
        received_all = False

        async def receiving() -> Message:
            nonlocal received_all
            message = await receive()
            received_all = not message.get("more_body", False)
            return message

        async def discard_body() -> None:
            # Closing a connection with an unread body resets it, and the answer may be lost.
            left = service.settings.max_body_bytes
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(DISCARD_SECONDS):
                    while not received_all and left > 0:
                        left -= len((await receiving()).get("body", b""))

        async def sending(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                await discard_body()
            await send(message)

        service.handling += 1
        try:
            refused = self._refused(scope, path)
            if refused is None:
                await self._app(scope, receiving, sending)
            else:
                await refused.response()(scope, receiving, sending)
                service.telemetry.rejected.labels(refused.reason).inc()
        finally:
            service.handling -= 1
            label = path_label(path)
            service.telemetry.requests.labels(label, str(status)).inc()
            service.telemetry.seconds.labels(label).observe(time.perf_counter() - start)

    def _refused(self, scope: Scope, path: str) -> RefusedError | None:
        service = self._service
        if path.startswith(GUARDED) and not _has_token(scope, service.settings.token):
            detail = "send the header 'Authorization: Bearer TOKEN' with this service's token"
            return RefusedError(401, detail, "token", {"WWW-Authenticate": "Bearer"})
        if path.startswith("/v1/"):
            if service.draining:
                headers = {**RETRY_AFTER, "Connection": "close"}
                return RefusedError(503, "the service is shutting down; try another", "shutting down", headers)
            if service.handling > service.settings.max_requests:
                detail = f"{service.settings.max_requests} requests are being handled already; try again later"
                return RefusedError(429, detail, "too many requests", RETRY_AFTER)
        return None


def path_label(path: str) -> str:
    """The label of a path in the metrics. Unknown paths share one label, so clients cannot create new ones."""
    if path.startswith("/v1/examples/"):
        return "/v1/examples"
    return path if path in ("/v1/score", "/v1/model", "/healthz", "/readyz", "/metrics", *PAGE) else "other"


def _has_token(scope: Scope, token: str | None) -> bool:
    if token is None:
        return True
    given = dict(scope["headers"]).get(b"authorization", b"")
    scheme, _, value = given.partition(b" ")
    # In constant time, so that response times do not reveal how much of a guess was right.
    return scheme.lower() == b"bearer" and hmac.compare_digest(value.strip(), token.encode())
