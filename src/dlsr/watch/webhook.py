"""Results posted to a webhook, each at least once: what is not answered with success is posted again.

The journal is the queue. How far it was posted is kept beside it, so that nothing is lost while the webhook or this
process is down, and watching does not wait for the webhook.
"""

import json
import os
import random
import threading
import urllib.error
import urllib.request
from collections.abc import Callable
from contextlib import suppress
from http.client import HTTPException
from importlib import metadata
from itertools import islice
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

from dlsr.errors import DlsrError, SettingsError, one_line
from dlsr.files import write_json
from dlsr.watch.journal import records

TIMEOUT_SECONDS = 10.0
MOST_ROWS = 100
"""Rows in a request."""
FIRST_PAUSE, LONGEST_PAUSE = 1.0, 300.0
"""Seconds before a request is tried again: the pause doubles with each failure."""


class WebhookError(Exception):
    """A request was not answered with success. The message is the reason."""


class Post(Protocol):
    """Posts a request."""

    def __call__(self, body: bytes, /) -> None:
        """Raises WebhookError if it is not answered with success."""


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """A redirected request would be a GET without a body, and would take the token to another place."""

    def redirect_request(self, *_: Any) -> None:
        """None: a redirect is an error."""


class Webhook:
    """Posts JSON to an address.

    Args:
        url: beginning with `http://` or `https://`.
        token: sent as a bearer token; None for none.

    Raises:
        SettingsError: for another address or token.
    """

    def __init__(self, url: str, token: str | None = None) -> None:
        parts = _checked(url)
        if token is not None and not (token and token.isascii() and token.isprintable()):
            raise SettingsError("the token of the webhook must be printable ASCII characters; correct it")
        self.host = parts.hostname or ""
        self.token_is_readable = token is not None and parts.scheme == "http"
        """Whether the token is sent without encryption."""
        self._url = url
        self._headers = {"Content-Type": "application/json", "User-Agent": f"dlsr/{metadata.version('dlsr')}"}
        if token is not None:
            self._headers["Authorization"] = f"Bearer {token}"
        self._opener = urllib.request.build_opener(_NoRedirects)

    def __call__(self, body: bytes) -> None:
        """Post a request.

        Raises:
            WebhookError: if it is not answered with success in time.
        """
        request = urllib.request.Request(self._url, body, self._headers, method="POST")
        try:
            with self._opener.open(request, timeout=TIMEOUT_SECONDS):
                pass  # any 2xx
        except urllib.error.HTTPError as error:
            error.close()
            raise WebhookError(f"it answers {error.code}") from error
        except TimeoutError as error:
            raise WebhookError(f"it does not answer within {TIMEOUT_SECONDS:g} seconds") from error
        except (OSError, HTTPException, ValueError) as error:
            reason = getattr(error, "reason", error)
            if isinstance(reason, TimeoutError):
                raise WebhookError(f"it does not answer within {TIMEOUT_SECONDS:g} seconds") from error
            raise WebhookError(getattr(reason, "strerror", None) or one_line(error)) from error


def _checked(url: str) -> Any:
    try:
        parts = urlsplit(url)
        parts.port  # noqa: B018 - raises for a port that is none
    except ValueError as error:
        raise SettingsError(f"the address of the webhook is not valid: {one_line(error)}; correct it") from error
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise SettingsError("the address of the webhook must begin with http:// or https://; correct it")
    if not (url.isascii() and url.isprintable() and " " not in url):
        raise SettingsError("the address of the webhook has characters that must be percent-encoded; correct it")
    if parts.username is not None:
        raise SettingsError("the address of the webhook holds a name or password; give a token instead")
    return parts


class Delivery:
    """Posts the rows of a journal in a thread, in their order.

    Args:
        journal: a file of JSON Lines.
        post: posts a request, which is `{"results": [..]}`.
        tell: callback for a line about a failure, and about its end.
        first_pause: seconds before the first retry.
    """

    def __init__(
        self, journal: Path, post: Post, tell: Callable[[str], None], first_pause: float = FIRST_PAUSE
    ) -> None:
        self._journal, self._post, self._tell, self._first_pause = journal, post, tell, first_pause
        self._mark = posted_path(journal)
        self._posted = _read_mark(self._mark, journal)
        self._written = 0
        self._changed = threading.Condition()
        self._ending = self._ended = False
        self._failure: str | None = None
        self._thread = threading.Thread(target=self._run, name="webhook", daemon=True)

    def start(self) -> None:
        """Begin to post."""
        self._thread.start()

    def written(self, size: int) -> None:
        """Let it know how many bytes of the journal are safely on the disk."""
        with self._changed:
            self._written = size
            self._changed.notify_all()

    def end(self, seconds: float) -> int:
        """Let it post what is left, for so many seconds, and return how many rows are then left for the next time."""
        with self._changed:
            self._ending = True
            self._changed.notify_all()
        self._thread.join(seconds)
        self._ended = True
        try:
            return len(self._rows(None))
        except OSError as error:
            self._tell(f"what is left to post cannot be counted: {one_line(error)}")
            return 0

    def _run(self) -> None:
        pause = self._first_pause
        while self._wait_for_rows():
            try:
                rows = self._rows(MOST_ROWS)
                if not rows:
                    raise WebhookError(f"another program has changed '{self._journal}'")
                self._post(b'{"results": [' + b", ".join(row.rstrip(b"\n") for row, _ in rows) + b"]}")
                self._posted = rows[-1][1]
                write_json(self._mark, {"posted_bytes": self._posted, "last": json.loads(rows[-1][0])["id"]})
            except (WebhookError, DlsrError, OSError) as error:
                self._failed(one_line(error))
                self._pause(pause * random.uniform(0.5, 1.0))
                pause = min(2 * pause, LONGEST_PAUSE)
            else:
                pause = self._first_pause
                if self._failure is not None:
                    self._failure = None
                    self._tell("the webhook works again")

    def _wait_for_rows(self) -> bool:
        with self._changed:
            self._changed.wait_for(lambda: self._posted < self._written or self._ending)
            return self._posted < self._written and not self._ended

    def _rows(self, most: int | None) -> list[tuple[bytes, int]]:
        with self._journal.open("rb") as file:
            file.seek(self._posted)
            return [row for row in islice(records(file), most) if row[1] <= self._written]

    def _failed(self, reason: str) -> None:
        if reason != self._failure:
            self._tell(f"the webhook fails: {reason}; results wait for it, and are posted when it works again")
        self._failure = reason

    def _pause(self, seconds: float) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._ending, seconds)
        if self._ending:
            threading.Event().wait(min(seconds, 1.0))


def posted_path(journal: Path) -> Path:
    """Where it is kept how far a journal was posted."""
    return journal.with_name(f"{journal.name}.posted")


def _read_mark(mark: Path, journal: Path) -> int:
    """How many bytes of a journal were posted; 0 if that is not known, or of another file."""
    with suppress(OSError, ValueError, KeyError, TypeError):
        stated = json.loads(mark.read_text(encoding="utf-8"))
        posted, last = int(stated["posted_bytes"]), stated["last"].encode()
        with journal.open("rb") as file:
            file.seek(max(0, posted - len(last) - 8))
            if posted <= os.fstat(file.fileno()).st_size and last in file.read(len(last) + 8):
                return posted
    return 0
