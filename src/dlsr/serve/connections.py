"""Connections: heads that are late or too large, clients that do not read, and more connections than files.

A connection without an admitted request can be closed at any time to make room for a new connection, the oldest first.
So clients that only hold connections open cannot keep others out.
"""

import resource
import time
from typing import Any

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from dlsr.serve.problems import MEDIA_TYPE, problem_content

HEAD_BYTES = 32 * 2**10
"""Size of a request's line and headers. Also the largest piece of a body without content, such as its trailers."""
HEAD_SECONDS = 10.0
"""Time in which the headers of a request must arrive, from its first byte or the start of the connection."""
READ_SECONDS = 20.0
"""Time in which a client must read an answer."""
PIPELINED = 32
"""Requests that may wait on a connection for the answer to an earlier request."""
SPARE_FILES = 128
"""Open files besides connections: of the model, the engine, and connections that are being closed."""


class Connections:
    """The open connections of a service.

    Args:
        limit: number of connections.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._open: set[Connection] = set()
        self._idle: dict[Connection, None] = {}  # in the order in which they became idle

    def add(self, connection: "Connection") -> None:
        """Add a new connection. Over the limit, abort the connection that was idle longest, which may be this one."""
        self._open.add(connection)
        self._idle[connection] = None
        if len(self._open) > self._limit:
            oldest = next(iter(self._idle))
            self.remove(oldest)
            oldest.transport.abort()

    def remove(self, connection: "Connection") -> None:
        """Remove a closed connection."""
        self._open.discard(connection)
        self._idle.pop(connection, None)

    def hold(self, connection: "Connection") -> None:
        """Keep this connection open, since its request was admitted."""
        self._idle.pop(connection, None)

    def release(self, connection: "Connection") -> None:
        """This connection's request was answered, and it may be closed."""
        if connection in self._open:
            self._idle[connection] = None

    def abort_overdue(self) -> None:
        """Abort connections whose client takes too long to send headers or to read an answer."""
        now = time.monotonic()
        for connection in [connection for connection in self._open if connection.is_overdue(now)]:
            connection.transport.abort()

    def are_sending(self) -> bool:
        """Whether an answer has not been sent as a whole."""
        return any(connection.transport.get_write_buffer_size() for connection in self._open)

    def abort_busy(self) -> None:
        """Abort connections in the middle of a request or an answer. The others can be closed."""
        for connection in [connection for connection in self._open if connection.is_busy()]:
            connection.transport.abort()


class Connection(HttpToolsProtocol):
    """One client's connection; uvicorn makes it.

    Args:
        connections: where it belongs.
        options: uvicorn's.
    """

    def __init__(self, *, connections: Connections, **options: Any) -> None:
        super().__init__(**options)
        self._connections = connections
        self._head_since: float | None = None
        self._stuck_since: float | None = None
        self._head_bytes = 0
        self._bytes_without_body = 0

    def connection_made(self, transport: Any) -> None:
        """Start the time for the first head."""
        super().connection_made(transport)
        self._head_since = time.monotonic()
        self._connections.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        """Make room for another connection."""
        self._connections.remove(self)
        super().connection_lost(exc)

    def hold(self) -> None:
        """Keep this connection open, see `Connections.hold`."""
        self._connections.hold(self)

    def release(self) -> None:
        """Let this connection be closed for another, see `Connections.release`."""
        self._connections.release(self)

    def is_busy(self) -> bool:
        """Whether it is in the middle of a request or an answer."""
        is_answering = self.cycle is not None and not self.cycle.response_complete
        return is_answering or self.transport.get_write_buffer_size() > 0

    def is_overdue(self, now: float) -> bool:
        """Whether the client takes too long to send headers or to read an answer."""
        if self.transport.is_closing() or self.flow.write_paused:
            self._stuck_since = self._stuck_since or now
            return now - self._stuck_since > READ_SECONDS
        self._stuck_since = None
        return self._head_since is not None and now - self._head_since > HEAD_SECONDS

    def data_received(self, data: bytes) -> None:
        """Parse what arrived."""
        if self._head_since is None and (self.cycle is None or self.cycle.response_complete):
            self._head_since = time.monotonic()
        self._bytes_without_body += len(data)
        super().data_received(data)
        if self._bytes_without_body > HEAD_BYTES and not self.transport.is_closing():
            self._head_bytes = self._bytes_without_body
            self.send_400_response("")

    def on_message_begin(self) -> None:
        """A request begins."""
        self._head_bytes = 0
        super().on_message_begin()

    def on_url(self, url: bytes) -> None:
        """A part of the URL arrived."""
        self._count(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """A header arrived, or a trailer."""
        self._count(len(name) + len(value) + len(": \r\n"))
        super().on_header(name, value)

    def _count(self, size: int) -> None:
        self._head_bytes += size
        if self._head_bytes > HEAD_BYTES:
            raise ValueError("too large")  # the parser stops, and answers with `send_400_response`

    def on_headers_complete(self) -> None:
        """All headers have arrived."""
        self._head_since = None
        self._bytes_without_body = 0
        if len(self.pipeline) >= PIPELINED:
            raise ValueError("too many requests")  # as in `_count`
        super().on_headers_complete()
        self.scope["state"]["connection"] = self

    def on_body(self, body: bytes) -> None:
        """A part of the body arrived."""
        self._bytes_without_body = 0
        super().on_body(body)

    def send_400_response(self, msg: str) -> None:
        """Answer what is no HTTP, or too large, and close."""
        if self.cycle is not None and self.cycle.response_started and not self.cycle.response_complete:
            self.transport.abort()  # this would be read as part of the other answer
            return
        status, detail = 400, "this is not HTTP/1.1; send an HTTP request"
        if self._head_bytes > HEAD_BYTES:
            status, detail = 431, f"the headers are over {HEAD_BYTES} bytes; send fewer or shorter headers"
        body = problem_content(status, detail)
        headers = f"content-type: {MEDIA_TYPE}\r\ncontent-length: {len(body)}\r\nconnection: close\r\n\r\n"
        self.transport.write(STATUS_LINE[status] + headers.encode() + body)
        self.transport.close()


def allowed_connections(wanted: int) -> int:
    """The number of connections that the process may open, at most `wanted`; raises its limit of open files."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = wanted + SPARE_FILES
    if soft < needed and soft != resource.RLIM_INFINITY:
        soft = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return wanted if soft == resource.RLIM_INFINITY else max(1, min(wanted, soft - SPARE_FILES))
