"""Runs the service until a signal, and shuts down without losing an accepted request."""

import ipaddress
import logging
import socket
import time
from collections.abc import Callable
from functools import partial
from types import FrameType

import uvicorn

from dlsr.errors import SettingsError
from dlsr.serve.app import create_app
from dlsr.serve.connections import Connection, Connections, allowed_connections
from dlsr.serve.service import Service

TICKS_PER_SECOND = 10
"""How often uvicorn calls `on_tick`."""
SEND_SECONDS = 2
"""Time in which the last answers must be read at the end."""


def serve(service: Service, host: str, port: int, *, drain_seconds: float, ready: Callable[[str], None]) -> None:
    """Serve until SIGTERM or SIGINT.

    After the signal, new requests are refused with status 503 for at least `drain_seconds`, and until every request
    whose body has arrived in this time is answered. A second signal ends the service at once.

    Args:
        service: the service.
        host: address to listen on.
        port: port to listen on; 0 for any free port.
        drain_seconds: shortest time between the signal and the end.
        ready: callback with the URL, once requests are accepted.

    Raises:
        SettingsError: if it cannot listen on this address and port.
    """
    # It logs a line for each malformed form, so clients could fill the disk.
    logging.getLogger("python_multipart").setLevel(logging.ERROR)
    listener = _listen(host, port)
    connections = Connections(allowed_connections(service.settings.max_connections))
    config = uvicorn.Config(
        create_app(service),
        http=partial(Connection, connections=connections),  # type: ignore[arg-type] # a callable will do
        ws="none",
        log_level="error",  # lines about what clients send could fill the disk
        access_log=False,
        server_header=False,
    )
    name = f"[{host}]" if ":" in host else host
    url = f"http://{name}:{listener.getsockname()[1]}"
    _Server(config, service, connections, drain_seconds, lambda: ready(url)).run(sockets=[listener])


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach a service on this host."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _listen(host: str, port: int) -> socket.socket:
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except (OSError, OverflowError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise SettingsError(f"cannot listen on {host}:{port}: {reason}; choose another --host or --port") from error
    return listener


class _Server(uvicorn.Server):
    def __init__(
        self,
        config: uvicorn.Config,
        service: Service,
        connections: Connections,
        drain_seconds: float,
        ready: Callable[[], None],
    ) -> None:
        super().__init__(config)
        self._connections = connections
        self._service = service
        self._drain_seconds = drain_seconds
        self._ready = ready
        self._closing_since: float | None = None
        self._answered_since: float | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._ready()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self._service.draining:
            self.should_exit = self.force_exit = True
        self._service.draining = True

    async def on_tick(self, counter: int) -> bool:
        if await super().on_tick(counter):
            return True
        if counter % TICKS_PER_SECOND == 0:
            self._connections.abort_overdue()
        return self._service.draining and self._is_drained(time.monotonic())

    def _is_drained(self, now: float) -> bool:
        """Whether the service may end. After the drain time, bodies that still arrive are given up."""
        self._closing_since = self._closing_since or now
        if now - self._closing_since < self._drain_seconds:
            return False
        self._service.bodies.give_up()
        if self._service.handling:
            return False
        self._answered_since = self._answered_since or now
        if self._connections.are_sending() and now - self._answered_since < SEND_SECONDS:
            return False
        self._connections.abort_busy()
        return True
