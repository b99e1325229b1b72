"""ASGI middleware in front of the routes: host, token, limit of concurrent requests, shutdown, and request metrics."""

import asyncio
import contextlib
import hmac
import time
from collections.abc import Iterator

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from dlsr.serve.hosts import HEADERS, refusal_of_host
from dlsr.serve.problems import CLIENT_GONE, RETRY_AFTER, RefusedError, shutting_down
from dlsr.serve.service import Service
from dlsr.serve.static import PAGE

GUARDED = ("/v1/", "/metrics")
"""Prefixes of the paths that require the token."""
DISCARD_SECONDS = 2
"""How long the rest of a refused request's body is read and discarded."""
DISCARD_PAUSE = 0.01
"""Seconds between pieces of the body of a request without admission, so that reading it costs others little."""
DISCARDING = 16
"""Bodies of requests without admission that are discarded concurrently. The answer to more of them may be lost."""


class Gate:
    """Refuses requests without the token, over the limit or during shutdown; counts and times every request.

    Only requests that it admits hold a slot, so clients without the token cannot use up the slots.

    Args:
        app: the application behind the gate.
        service: its settings, state and metrics.
    """

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self._app = app
        self._service = service
        self._discarding = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a request as the ASGI specification asks."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        service, path = self._service, str(scope["path"])
        start = time.perf_counter()
        status = CLIENT_GONE
        received_all = not _has_body(scope)
        refused = self._refused(scope, path)
        admitted = refused is None and path.startswith(GUARDED)

        async def receiving() -> Message:
            nonlocal received_all
            message = await receive()
            received_all = not message.get("more_body", False)
            return message

        async def sending(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                if not received_all and self._may_discard(admitted):
                    await self._discard_body(receiving, 0 if admitted else DISCARD_PAUSE)
                close = () if received_all else ((b"connection", b"close"),)
                message = {**message, "headers": [*message.get("headers", []), *HEADERS, *close]}
            await send(message)

        try:
            if refused is not None:
                await refused.response()(scope, receiving, sending)
                service.telemetry.rejected.labels(refused.reason).inc()
            elif admitted:
                with self._slot(scope):
                    await self._app(scope, receiving, sending)
            else:
                await self._app(scope, receiving, sending)
        except Exception:
            status = 500
            raise
        finally:
            label = path_label(path)
            service.telemetry.requests.labels(label, str(status)).inc()
            service.telemetry.seconds.labels(label).observe(time.perf_counter() - start)

    @contextlib.contextmanager
    def _slot(self, scope: Scope) -> Iterator[None]:
        """Hold a slot, and the request's connection."""
        service, connection = self._service, scope.get("state", {}).get("connection")
        service.handling += 1
        if connection is not None:
            connection.hold()
        try:
            yield
        finally:
            service.handling -= 1
            # With a token, a client that has sent it may keep its connection.
            if connection is not None and service.settings.token is None:
                connection.release()

    def _may_discard(self, admitted: bool) -> bool:
        return (admitted or self._discarding < DISCARDING) and not self._service.bodies.given_up

    async def _discard_body(self, receiving: Receive, pause: float) -> None:
        """Read the rest of a body. Closing a connection with an unread body resets it, and the answer may be lost."""
        left = self._service.settings.max_body_bytes
        self._discarding += 1
        try:
            async with asyncio.timeout(DISCARD_SECONDS):
                while left > 0:
                    message = await receiving()
                    left -= len(message.get("body", b""))
                    if not message.get("more_body", False):
                        break
                    await asyncio.sleep(pause)
        except TimeoutError:
            pass
        finally:
            self._discarding -= 1

    def _refused(self, scope: Scope, path: str) -> RefusedError | None:
        service = self._service
        misdirected = refusal_of_host(scope, service.settings.hosts)
        if misdirected is not None:
            return misdirected
        if path.startswith(GUARDED) and not _has_token(scope, service.settings.token):
            detail = "send the header 'Authorization: Bearer TOKEN' with this service's token"
            return RefusedError(401, detail, "token", {"WWW-Authenticate": "Bearer"})
        if path.startswith("/v1/"):
            if service.draining:
                return shutting_down()
            if service.handling >= service.settings.max_requests:
                detail = f"{service.settings.max_requests} requests are being handled already; try again later"
                return RefusedError(429, detail, "too many requests", RETRY_AFTER)
        return None


def path_label(path: str) -> str:
    """The label of a path in the metrics. Unknown paths share one label, so clients cannot create new ones."""
    if path.startswith("/v1/examples/"):
        return "/v1/examples"
    return path if path in ("/v1/score", "/v1/model", "/healthz", "/readyz", "/metrics", *PAGE) else "other"


def _has_body(scope: Scope) -> bool:
    headers = dict(scope["headers"])
    return b"transfer-encoding" in headers or headers.get(b"content-length", b"0") != b"0"


def _has_token(scope: Scope, token: str | None) -> bool:
    if token is None:
        return True
    given = dict(scope["headers"]).get(b"authorization", b"")
    scheme, _, value = given.partition(b" ")
    # In constant time, so that response times do not reveal how much of a guess was right.
    return scheme.lower() == b"bearer" and hmac.compare_digest(value.strip(), token.encode())
