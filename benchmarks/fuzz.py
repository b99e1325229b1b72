"""Damaged images and bodies against the image loader and the service: no crash, no hang, no growing memory.

    python benchmarks/fuzz.py --model MODEL --output docs/fuzz.json

A photograph in every supported format is damaged at random: bytes are changed, removed or repeated, or the end is cut
off. The damaged images go through the image loader; then damaged images, and images in damaged forms and JSON, go to a
running service. The number of cases is fixed, and the seed determines them.
"""

import asyncio
import base64
import io
import json
import random
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Annotated, Any

import typer
from PIL import Image, features
from sklearn.datasets import load_sample_images

from dlsr.artifact import installed_versions
from dlsr.errors import ImageError
from dlsr.files import write_json
from dlsr.images.decode import decode
from serving import Connection, encoded, resident, serving

FORMATS = ("BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TGA", "TIFF", "WEBP", "AVIF")
HEADERS = {"content-type": "multipart/form-data; boundary=b"}
SLOW = 20.0
"""Seconds after which a case is considered to hang."""
WARM = 0.2
"""Share of the cases before memory is first measured, when caches and pools are full."""


def main(
    output: Annotated[Path, typer.Option(help="JSON file to write.")],
    model: Annotated[Path, typer.Option(help="Model directory to serve.")],
    decoded: Annotated[int, typer.Option(help="Cases for the image loader.")] = 20_000,
    requests: Annotated[int, typer.Option(help="Cases for the service.")] = 4_000,
    seed: int = 0,
) -> None:
    rng = random.Random(seed)
    originals = samples()
    loader = fuzz_loader(originals, decoded, rng)
    service = asyncio.run(fuzz_service(model, originals, requests, rng))
    content = {
        "command": "python benchmarks/fuzz.py " + " ".join(sys.argv[1:]),
        "formats": sorted(originals),
        "loader": loader,
        "service": service,
        "versions": installed_versions(),
    }
    write_json(output, content)
    print(json.dumps(content, indent=1))


def samples() -> dict[str, bytes]:
    """A small photograph in every format."""
    photograph = Image.fromarray(load_sample_images().images[0]).resize((96, 64))
    found = {}
    for name in FORMATS:
        if name == "AVIF" and not features.check("avif"):
            continue
        buffer = io.BytesIO()
        photograph.save(buffer, name)
        found[name] = buffer.getvalue()
    return found


def damaged(content: bytes, rng: random.Random) -> bytes:
    changed = bytearray(content)
    for _ in range(rng.randint(1, 8)):
        at, length = rng.randrange(len(changed)), rng.randint(1, 64)
        match rng.randrange(5):
            case 0:
                changed[at] = rng.randrange(256)
            case 1:
                changed[at : at + length] = rng.randbytes(length)
            case 2:
                del changed[at : at + length]
            case 3:
                changed[at:at] = changed[at : at + length]
            case _:
                del changed[max(at, 8) :]
        if not changed:
            return b""
    return bytes(changed)


def fuzz_loader(originals: dict[str, bytes], cases: int, rng: random.Random) -> dict[str, Any]:
    outcomes: Counter[str] = Counter()
    slowest = 0.0
    warm = 0
    for i in range(cases):
        if i == int(WARM * cases):
            warm = resident()
        content = damaged(originals[rng.choice(sorted(originals))], rng)
        start = time.perf_counter()
        try:
            decode(content)
            outcomes["decoded"] += 1
        except ImageError:
            outcomes["refused"] += 1
        slowest = max(slowest, time.perf_counter() - start)
    return {
        "cases": cases,
        "outcomes": dict(outcomes),
        "slowest_seconds": slowest,
        "memory_bytes": {"warm": warm, "end": resident()},
    }


async def fuzz_service(model: Path, originals: dict[str, bytes], cases: int, rng: random.Random) -> dict[str, Any]:
    statuses: Counter[str] = Counter()
    slowest, warm, failures = 0.0, 0, []
    with serving(model) as service:
        connection = Connection(service.url)
        for i in range(cases):
            if i == int(WARM * cases):
                warm = resident(service.process.pid)
            request = body(originals, rng)
            start = time.perf_counter()
            try:
                async with asyncio.timeout(SLOW):
                    status, _ = await connection.ask(request)
                statuses[str(status)] += 1
                if status >= 500:
                    failures.append(base64.b64encode(request).decode())
            except (OSError, EOFError, TimeoutError) as error:
                failures.append(f"{error!r}: {base64.b64encode(request).decode()}")
                connection.close()
            slowest = max(slowest, time.perf_counter() - start)
        connection.close()
        end = resident(service.process.pid)
        service.terminate()
        exit_status, messages = service.end()
    return {
        "cases": cases,
        "statuses": dict(statuses),
        "failures": failures,
        "slowest_seconds": slowest,
        "memory_bytes": {"warm": warm, "end": end},
        "exit_status": exit_status,
        "said": messages,
    }


def body(originals: dict[str, bytes], rng: random.Random) -> bytes:
    """A request of well-formed HTTP with any content."""
    name = rng.choice(sorted(originals))
    image = damaged(originals[name], rng) if rng.random() < 0.8 else originals[name]
    match rng.randrange(5):
        case 0:
            return encoded(files=[("images", (name, image)), ("images", ("whole", originals["PNG"]))])
        case 1:
            return encoded(files=[("images", (name, image))])
        case 2:
            return encoded(json={"images": [{"name": name, "data": base64.b64encode(image).decode()}]})
        case 3:
            form = (
                b'--b\r\nContent-Disposition: form-data; name="images"; filename="a"\r\n\r\n' + image + b"\r\n--b--\r\n"
            )
            return encoded(content=damaged(form, rng), headers=HEADERS)
        case _:
            text = json.dumps({"images": [{"data": base64.b64encode(image).decode()}]}).encode()
            return encoded(content=damaged(text, rng), headers={"content-type": "application/json"})


if __name__ == "__main__":
    typer.run(main)
