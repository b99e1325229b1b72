"""What scoring an image costs, part by part, against what it costs end to end."""

import hashlib
import os
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from dlsr.encoding.pipeline import CHUNK
from dlsr.fitted_detector import FittedDetector
from dlsr.images.sources import ImageDataset, ImageItem
from dlsr.method.noise import pixel_digest
from dlsr.streaming import map_ahead

ROUNDS = 5


def measure_parts(detector: FittedDetector, images: ImageDataset) -> dict[str, Any]:
    """Cost of each part alone and of all end to end, in core-milliseconds an image.

    Each part runs on all cores at once, since cores that share a processor slow each other down. A core-millisecond is
    a millisecond of the clock on one of them: with two cores, 10 of them are 200 images a second.

    Args:
        detector: fitted to images; its workers should be as many as cores.
        images: all readable.

    Returns:
        `images`; `cores`; `core_ms`, by part: `read` (with the SHA-256 of the file), `decode`, `resize`, `digest` (of
        the pixels), `encode`, `score`; their `sum`; `end_to_end`; and `share`, the median over rounds of the sum over
        end to end.
    """
    encoder, cores = detector.extractor_.encoder, available_cores()
    spec, batch = encoder.spec, encoder.batch

    def read(item: ImageItem) -> bytes:
        content = item.read()
        assert isinstance(content, bytes)
        hashlib.sha256(content).digest()
        return content

    raw = [read(item) for item in images.items]
    decoded = [spec.decode(content) for content in raw]
    pixels = np.stack([spec.resize(image) for image in decoded])
    digests = np.stack([pixel_digest(image) for image in pixels])
    z0 = np.concatenate([encoder.encode(some) for some in _groups(pixels, batch)])
    chunks = list(zip(_groups(z0, CHUNK), _groups(digests, CHUNK), strict=True))

    def score() -> None:
        for some, of_them in chunks:
            detector.score_features(some, of_them)

    work: dict[str, Callable[[], None]] = {
        "read": lambda: _run(read, images.items, cores),
        "decode": lambda: _run(spec.decode, raw, cores),
        "resize": lambda: _run(spec.resize, decoded, cores),
        "digest": lambda: _run(pixel_digest, pixels, cores),
        "encode": lambda: _run(encoder.encode, _groups(pixels, batch), encoder.streams),
        "score": score,
        "end to end": lambda: drain(detector.results(images)),
    }
    for part in work.values():
        part()  # warms up
    rounds = [{name: seconds_of(part) for name, part in work.items()} for _ in range(ROUNDS)]
    in_ms = 1000 * cores / len(images)
    parts = [name for name in work if name != "end to end"]
    return {
        "images": len(images),
        "cores": cores,
        "core_ms": {name: in_ms * float(np.median([one[name] for one in rounds])) for name in parts},
        "sum": in_ms * float(np.median([sum(one[name] for name in parts) for one in rounds])),
        "end_to_end": in_ms * float(np.median([one["end to end"] for one in rounds])),
        "share": float(np.median([sum(one[name] for name in parts) / one["end to end"] for one in rounds])),
    }


def available_cores() -> int:
    """The number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _groups(rows: Any, size: int) -> list[Any]:
    return [rows[begin : begin + size] for begin in range(0, len(rows), size)]


def _run(work: Callable[[Any], Any], inputs: Sequence[Any] | Any, workers: int) -> None:
    drain(map_ahead(work, inputs, workers, ahead=4 * workers))


def drain(results: Iterable[object]) -> None:
    """Take all results, and drop them."""
    for _ in results:
        pass


def seconds_of(work: Callable[[], object]) -> float:
    """How long a call takes."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start
