"""A service in its own process, and a client that sends many requests at once."""

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx


class Serving:
    """A running `dlsr serve`."""

    def __init__(self, process: subprocess.Popen[str], url: str) -> None:
        self.process, self.url = process, url

    def terminate(self) -> None:
        self.process.send_signal(signal.SIGTERM)

    def end(self, timeout: float = 30) -> tuple[int, str]:
        """Wait for its end: the exit status and its messages."""
        _, messages = self.process.communicate(timeout=timeout)
        return self.process.returncode, messages


@contextmanager
def serving(model: Path, *options: str) -> Iterator[Serving]:
    """`dlsr serve` on a free port; killed at the end if it is still running."""
    command = [sys.executable, "-m", "dlsr", "serve", str(model), "--port", "0", *options]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env={**os.environ, "PYTHONUNBUFFERED": "1"})
    try:
        assert process.stderr is not None
        line = process.stderr.readline()
        found = re.search(r"at (http://\S+)", line)
        if found is None:
            raise RuntimeError(line + process.stderr.read())
        yield Serving(process, found[1])
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()


@dataclass
class Load:
    """The answers to many requests."""

    answers: list[tuple[int, int, Any]] = field(default_factory=list)
    """Index of the request, status and body."""
    unanswered: list[tuple[int, str]] = field(default_factory=list)
    """Index of each request without an answer, and the reason."""
    seconds: float = 0.0


def encoded(**request: Any) -> bytes:
    """The bytes of a request to `/v1/score`; arguments as for `httpx.post`.

    To be called before the clock starts, since encoding a request takes longer than reading it.
    """
    made = httpx.Request("POST", "http://localhost/v1/score", **request)
    head = [f"POST {made.url.path} HTTP/1.1", *(f"{name}: {value}" for name, value in made.headers.items())]
    return "\r\n".join([*head, "", ""]).encode() + made.read()


class Connection:
    """A client's connection, reopened when the service closes it. Supports only the HTTP that dlsr serve uses."""

    def __init__(self, url: str) -> None:
        host, _, port = url.removeprefix("http://").rpartition(":")
        self._address = host, int(port)
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def ask(self, request: bytes) -> tuple[int, bytes]:
        """Send a request: the status and body of the answer."""
        reader, writer = self._streams or await asyncio.open_connection(*self._address)
        self._streams = reader, writer
        writer.write(request)
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower().split("\r\n")
        fields = dict(line.split(": ", 1) for line in head[1:] if line)
        body = await reader.readexactly(int(fields["content-length"]))
        if fields.get("connection") == "close":
            self.close()
        return int(head[0].split()[1]), body

    def close(self) -> None:
        if self._streams is not None:
            self._streams[1].close()
        self._streams = None


async def load(
    url: str,
    requests: Iterable[bytes],
    concurrency: int,
    *,
    at: Mapping[int, Callable[[], None]] | None = None,
    timeout: float = 60,
) -> Load:
    """Send requests, `concurrency` at a time, until all are sent or the service closes.

    Args:
        url: of the service.
        requests: from `encoded`.
        concurrency: number of clients.
        at: functions to call, by the number of answers after which they are called.
        timeout: seconds to wait for an answer.
    """
    done, waiting, actions = Load(), iter(enumerate(requests)), dict(at or {})
    closing = False
    start = time.perf_counter()

    async def client() -> None:
        nonlocal closing
        connection = Connection(url)
        for index, request in waiting:
            if closing:
                break
            try:
                async with asyncio.timeout(timeout):
                    status, body = await connection.ask(request)
                done.answers.append((index, status, json.loads(body)))
                closing |= status == 503
            except (OSError, EOFError, TimeoutError) as error:
                done.unanswered.append((index, repr(error)))
                connection.close()
            for count in [count for count in actions if count <= len(done.answers)]:
                await asyncio.to_thread(actions.pop(count))
        connection.close()

    await asyncio.gather(*(client() for _ in range(concurrency)))
    done.seconds = time.perf_counter() - start
    return done


def resident(pid: int | str = "self") -> int:
    """Resident bytes of a process."""
    status = Path(f"/proc/{pid}/status").read_text()
    return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmRSS"))
