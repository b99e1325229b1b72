"""The service under attack: a token holder's requests beside clients that hold connections and send large bodies.

    python benchmarks/attack.py --output docs/attack.json

A small model is fitted to random images and served with a token. A token holder sends one image after another, first
alone, then beside two attackers without the token: 300 clients that send pieces of requests and wait, and clients that
send the largest bodies. Last, holders of the token send the most expensive requests that are within the limits, for
the memory of the service. Each part takes `--seconds`.
"""

import asyncio
import base64
import contextlib
import io
import json
import multiprocessing
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Annotated, Any

import httpx
import numpy as np
import typer
from PIL import Image

from dlsr import Detector
from dlsr.artifact import installed_versions
from dlsr.files import write_json
from dlsr.serve.bodies import BODIES
from dlsr.serve.decoding import SMALL_PIXELS
from dlsr.serve.settings import ServeSettings
from serving import Connection, encoded, resident, serving

TOKEN = "the token of the benchmark"
LIMITS = ServeSettings()
WORKERS = 2
BYTES_PER_PIXEL = 26
"""Memory of decoding, measured for each format; JPEG 2000 takes the most."""
HALF_OPEN = 300
LARGE = 8
PIECES = (
    b"",
    b"POST /v1/score HTTP/1.1\r\nhost: localhost\r\nx-slow: ",
    b"POST /v1/score HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: 1000\r\n\r\n{",
    b"POST / HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\n1\r\n",
)


def main(
    seconds: Annotated[float, typer.Option(help="Length of each part.")] = 60,
    output: Annotated[Path | None, typer.Option(help="JSON file to write.")] = None,
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        model, token = Path(folder, "model"), Path(folder, "token")
        images = fitted(model)
        token.write_text(TOKEN)
        options = ("--backend", "torch", "--workers", str(WORKERS), "--token-file", str(token))
        with serving(model, *options) as service:
            pid = service.process.pid
            asyncio.run(token_holder(service.url, images, 2))
            before = resident(pid)
            quiet = asyncio.run(token_holder(service.url, images, seconds))
            with_attackers = under_attack(service.url, images, seconds)
            largest = asyncio.run(expensive(service.url, seconds))
            peak = peak_resident(pid)
            alive = httpx.get(f"{service.url}/healthz").status_code == 200
            service.terminate()
            status, messages = service.end(90)
    content = {
        "command": "python benchmarks/attack.py " + " ".join(sys.argv[1:]),
        "seconds": seconds,
        "quiet": quiet,
        "under_attack": with_attackers,
        "p99_ratio": with_attackers["p99_seconds"] / quiet["p99_seconds"],
        "expensive_requests": largest,
        "memory_bytes": {"before": before, "peak": peak, "bound": before + bound(size_of(images))},
        "alive": alive,
        "exit_status": status,
        "messages": messages,
        "cores": os.cpu_count(),
        "load_average": os.getloadavg()[0],
        "versions": installed_versions(),
    }
    if output is not None:
        write_json(output, content)
    print(json.dumps(content, indent=1))


def fitted(folder: Path) -> list[bytes]:
    """Fit a small model, and return image files like those that it was fitted to."""
    random = np.random.default_rng(0)
    pixels = random.integers(0, 256, (200, 8, 8, 3), dtype=np.uint8).repeat(8, axis=1).repeat(8, axis=2)
    Detector(encoder="test_resnet", weights="random", backend="torch", workers=WORKERS).fit(pixels).save(folder)
    return [encoded_image(Image.fromarray(image), "PNG") for image in pixels[:50]]


def size_of(images: list[bytes]) -> int:
    """The largest side of decoded images in the service: no encoder of dlsr takes more than 384 pixels."""
    return max(384, *(max(Image.open(io.BytesIO(image)).size) for image in images))


def bound(size: int) -> int:
    """Memory that requests take at most, as in docs/deploying.md."""
    bodies = (BODIES + 3 * WORKERS) * LIMITS.max_body_bytes
    decoding = (LIMITS.max_pixels + WORKERS * SMALL_PIXELS) * BYTES_PER_PIXEL
    decoded = (LIMITS.max_waiting + 2 * LIMITS.max_batch) * size**2 * 3
    return bodies + decoding + decoded


def peak_resident(pid: int) -> int:
    """Most resident bytes that a process had."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


def encoded_image(image: Image.Image, kind: str) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


def with_token(**request: Any) -> bytes:
    headers = {"authorization": f"Bearer {TOKEN}", **request.pop("headers", {})}
    return encoded(headers=headers, **request)


async def token_holder(url: str, images: list[bytes], seconds: float) -> dict[str, Any]:
    """Score one image after another, ten on each connection."""
    requests = [with_token(files=[("images", (f"{i}.png", image))]) for i, image in enumerate(images)]
    times, statuses, failed = [], Counter[int](), Counter[str]()
    end = time.monotonic() + seconds
    i = 0
    while time.monotonic() < end:
        connection = Connection(url)
        for _ in range(10):
            start = time.perf_counter()
            try:
                async with asyncio.timeout(30):
                    status, _ = await connection.ask(requests[i % len(requests)])
                statuses[status] += 1
            except (OSError, EOFError, TimeoutError) as error:
                failed[type(error).__name__] += 1
                connection.close()
            times.append(time.perf_counter() - start)
            i += 1
        connection.close()
    return {
        "answered": statuses[200],
        "refused": {str(status): count for status, count in statuses.items() if status != 200},
        "failed": dict(failed),
        "p50_seconds": float(np.quantile(times, 0.5)),
        "p99_seconds": float(np.quantile(times, 0.99)),
        "longest_seconds": max(times),
    }


def under_attack(url: str, images: list[bytes], seconds: float) -> dict[str, Any]:
    """The token holder beside attackers, each in a process of its own."""
    context = multiprocessing.get_context("spawn")
    counts = {attack.__name__: context.Value("q", 0) for attack in (half_open, large_bodies)}
    attackers = [
        context.Process(target=attack, args=(url, seconds + 3, counts[attack.__name__]))
        for attack in (half_open, large_bodies)
    ]
    for attacker in attackers:
        attacker.start()
    try:
        while not all(count.value for count in counts.values()):
            time.sleep(0.05)
        found = asyncio.run(token_holder(url, images, seconds))
    finally:
        for attacker in attackers:
            attacker.terminate()
            attacker.join()
    return found | {"attempts": {name: count.value for name, count in counts.items()}}


def half_open(url: str, seconds: float, count: Any) -> None:
    """Hold connections open with a piece of a request on each; when one is closed, open the next."""

    async def hold(port: int, i: int) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        count.value += 1
        try:
            writer.write(PIECES[i % len(PIECES)])
            await reader.read()
        finally:
            writer.close()

    asyncio.run(repeated(hold, url, seconds, HALF_OPEN))


def large_bodies(url: str, seconds: float, count: Any) -> None:
    """Send the largest bodies without the token."""
    head = f"POST /v1/score HTTP/1.1\r\nhost: localhost\r\ncontent-length: {LIMITS.max_body_bytes}\r\n\r\n".encode()
    piece = bytes(2**20)

    async def send(port: int, i: int) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        count.value += 1
        try:
            writer.write(head)
            for _ in range(LIMITS.max_body_bytes // len(piece)):
                writer.write(piece)
                await writer.drain()
            await reader.read()
        finally:
            writer.close()

    asyncio.run(repeated(send, url, seconds, LARGE))


async def repeated(attack: Callable[[int, int], Awaitable[None]], url: str, seconds: float, clients: int) -> None:
    """Repeat an attack in a number of clients."""
    port, end = int(url.rpartition(":")[2]), time.monotonic() + seconds

    async def client(i: int) -> None:
        while time.monotonic() < end:
            try:
                async with asyncio.timeout(30):
                    await attack(port, i)
            except (OSError, TimeoutError):
                await asyncio.sleep(0.01)  # refused or closed, as an attacker must expect
            i += 1

    await asyncio.gather(*(client(i) for i in range(clients)))


async def expensive(url: str, seconds: float) -> dict[str, int]:
    """The statuses of the most expensive requests within the limits, 16 at a time."""
    side = int(LIMITS.max_pixels**0.5)
    colours = encoded_image(Image.new("RGBA", (side, side), (1, 2, 3, 99)), "PNG")
    wide = encoded_image(Image.fromarray(np.full((side, side), 999, np.uint16)), "PNG")
    layers = encoded_image(Image.new("RGBA", (side, side), (1, 2, 3, 99)), "JPEG2000")
    noise = np.random.default_rng(0).bytes(LIMITS.max_body_bytes // 2)
    requests = [
        with_token(files=[("images", (f"{i}.png", image)) for i in range(20)]) for image in (colours, wide, layers)
    ] + [
        with_token(files=[("images", ("noise", noise)), ("images", ("image.png", colours))]),
        with_token(json={"images": [{"data": base64.b64encode(noise).decode()}, {"data": ""}]}),
        with_token(
            content=b'{"images": [' + b"{}," * (LIMITS.max_body_bytes // 3 - 9) + b"{}]}",
            headers={"content-type": "application/json"},
        ),
    ]
    statuses = Counter[str]()

    async def client(i: int) -> None:
        while True:
            connection = Connection(url)
            try:
                async with asyncio.timeout(90):
                    status, _ = await connection.ask(requests[i % len(requests)])
                statuses[str(status)] += 1
            except (OSError, EOFError, TimeoutError) as error:
                statuses[type(error).__name__] += 1
            connection.close()
            i += 1

    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):  # the last requests are given up, as by a client that leaves
            await asyncio.gather(*(client(i) for i in range(16)))
    return dict(statuses)


if __name__ == "__main__":
    typer.run(main)
