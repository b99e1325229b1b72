"""A service in a process of its own, and a client with many requests at once."""

import asyncio
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
        """Its exit status and what it said, once it ends."""
        _, said = self.process.communicate(timeout=timeout)
        return self.process.returncode, said


@contextmanager
def serving(model: Path, *options: str) -> Iterator[Serving]:
    """`dlsr serve` on any free port, ended at the end if it runs still."""
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
    """What came of many requests."""

    answers: list[tuple[int, int, Any]] = field(default_factory=list)
    """Index of the request, status, and body."""
    unanswered: list[tuple[int, str]] = field(default_factory=list)
    """Requests without an answer, and why."""
    seconds: float = 0.0


async def load(
    url: str,
    requests: Iterable[dict[str, Any]],
    concurrency: int,
    *,
    at: Mapping[int, Callable[[], None]] | None = None,
    timeout: float = 60,
) -> Load:
    """Send requests, so many at once, until all are sent or the service says that it closes.

    Args:
        url: of the service.
        requests: arguments of `httpx.AsyncClient.post`.
        concurrency: clients that send one after the other.
        at: functions to call when so many requests have been answered.
        timeout: seconds to wait for an answer.
    """
    done, waiting, actions = Load(), iter(enumerate(requests)), dict(at or {})
    closing = False
    start = time.perf_counter()

    async def client() -> None:
        nonlocal closing
        async with httpx.AsyncClient(base_url=url, timeout=timeout, trust_env=False) as http:
            for index, request in waiting:
                if closing:
                    return
                try:
                    response = await http.post("/v1/score", **request)
                    done.answers.append((index, response.status_code, response.json()))
                    closing |= response.status_code == 503
                except httpx.HTTPError as error:
                    done.unanswered.append((index, repr(error)))
                for count in [count for count in actions if count <= len(done.answers)]:
                    await asyncio.to_thread(actions.pop(count))

    await asyncio.gather(*(client() for _ in range(concurrency)))
    done.seconds = time.perf_counter() - start
    return done
