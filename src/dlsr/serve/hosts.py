"""Protection from web pages elsewhere, which a browser lets send requests to this machine.

A page may send requests under its own origin, or under a name of its own that it points at this machine (DNS
rebinding). Browsers state both: the page in `Origin`, the name in `Host`.
"""

import ipaddress
from collections.abc import Collection
from urllib.parse import urlsplit

from starlette.types import Scope

from dlsr.serve.problems import RefusedError

HEADERS = (
    (b"cross-origin-resource-policy", b"same-origin"),  # not to be embedded by pages elsewhere
    (b"x-content-type-options", b"nosniff"),
)
"""Headers of every answer."""


def refusal_of_host(scope: Scope, names: Collection[str]) -> RefusedError | None:
    """Why a request is refused because of the name under which it was sent, or of the page that sent it.

    Requests to an IP address or `localhost` are accepted, since a page elsewhere cannot have these names.

    Args:
        scope: the request, as the ASGI specification describes it.
        names: other host names of the service, lower case. Pages of these hosts may send requests, too.
    """
    hosts = _values(scope, b"host")
    for host in hosts:
        if not _is_own(_hostname(host), names):
            name = _hostname(host)[:99]
            detail = f"'{name}' is no name of this service; if it is one, start it with --allow-host {name}"
            return RefusedError(421, detail, "host")
    for origin in _values(scope, b"origin"):
        netloc = _netloc(origin)
        if netloc not in hosts and _hostname(netloc) not in names:
            detail = f"pages of '{origin[:99]}' may not use this service; allow them with --allow-host HOST"
            return RefusedError(403, detail, "origin")
    return None


def _values(scope: Scope, name: bytes) -> list[str]:
    return [value.decode("latin-1").strip().lower() for key, value in scope["headers"] if key == name]


def _netloc(origin: str) -> str:
    try:
        return urlsplit(origin).netloc
    except ValueError:
        return ""


def _hostname(netloc: str) -> str:
    """The host in `host:port` or `[address]:port`."""
    if netloc.startswith("["):
        return netloc[1:].partition("]")[0]
    return netloc.partition(":")[0].removesuffix(".")


def _is_own(hostname: str, names: Collection[str]) -> bool:
    if hostname == "localhost" or hostname in names:
        return True
    try:
        ipaddress.ip_address(hostname)
    except ValueError:
        return False
    return True
