"""The service against `dlsr score`: throughput on the same images, and whether anything is lost under load.

    python benchmarks/serve.py --model MODEL --images ../shared/data/cifar10.tar --output docs/serve.json

First the detector, as `dlsr score` runs it, and the service score the same images in turns, so that other load of the
machine affects both; the service's client is on the same machine. Then come 2,000 requests, 64 at a time, every fifth
malformed. In the middle a new model is written to the directory, and at the end SIGTERM is sent.
"""

import asyncio
import json
import resource
import shutil
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Annotated, Any

import httpx
import numpy as np
import typer

from dlsr import FittedDetector
from dlsr.artifact import installed_versions
from dlsr.files import write_json
from dlsr.images.sources import ImageDataset, open_images
from serving import Load, encoded, load, resident, serving

CONCURRENCY = 64
MALFORMED: tuple[dict[str, Any], ...] = (
    {"content": b"no form", "headers": {"content-type": "multipart/form-data; boundary=b"}},
    {"files": [("images", ("broken.png", b"broken"))]},
    {"json": {"images": [{"data": "?"}]}},
    {"content": b"x", "headers": {"content-type": "text/plain"}},
)


def main(
    model: Annotated[Path, typer.Option(help="Model directory; it is copied.")],
    images: Annotated[Path, typer.Option(help="Folder or tar.")],
    output: Annotated[Path, typer.Option(help="JSON file to write.")],
    count: Annotated[int, typer.Option(help="Images in each round.")] = 2048,
    rounds: int = 3,
    requests: Annotated[int, typer.Option(help="Requests of the second part.")] = 2000,
) -> None:
    chosen = open_images(images).sample(count)
    contents = [(item.name, bytes(item.read())) for item in chosen.items]  # type: ignore[call-overload]
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "model"
        shutil.copytree(model, copy)
        throughput = measure_throughput(copy, chosen, contents, rounds)
        under_load = measure_load(copy, chosen, contents, requests)
    content = {
        "command": "python benchmarks/serve.py " + " ".join(sys.argv[1:]),
        "images": len(chosen),
        "throughput": throughput,
        "load": under_load,
        "versions": installed_versions(),
    }
    write_json(output, content)
    print(json.dumps(content, indent=1))


def measure_throughput(
    model: Path, chosen: ImageDataset, contents: list[tuple[str, bytes]], rounds: int
) -> dict[str, Any]:
    """Images per second of the detector and of the service, with 1, 8 and 64 images in a request."""
    detector = FittedDetector.load(model)
    list(detector.results(chosen.subset(range(64))))
    scored: list[float] = []
    served: dict[int, list[float]] = {1: [], 8: [], 64: []}
    with serving(model) as service:
        for _ in range(rounds):
            for size, rates in served.items():
                start = time.perf_counter()
                list(detector.results(chosen))
                scored.append(len(chosen) / (time.perf_counter() - start))
                sent = [
                    encoded(files=[("images", content) for content in contents[i : i + size]])
                    for i in range(0, len(contents), size)
                ]
                done = asyncio.run(load(service.url, sent, min(CONCURRENCY, 512 // size)))
                assert not done.unanswered
                assert all(status == 200 for _, status, _ in done.answers)
                rates.append(len(chosen) / done.seconds)
    own = float(np.median(scored))
    return {
        "score_images_per_second": own,
        "serve_images_per_second": {size: float(np.median(rates)) for size, rates in served.items()},
        "serve_over_score": {size: float(np.median(rates)) / own for size, rates in served.items()},
    }


def measure_load(model: Path, chosen: ImageDataset, contents: list[tuple[str, bytes]], requests: int) -> dict[str, Any]:
    """Compare every answer with the result of the detector whose model answered."""
    detector = FittedDetector.load(model)
    expected: dict[float, dict[str, Any]] = {}
    rate = detector.false_alarm_rate
    for changed in (rate / 2, rate):
        detector.false_alarm_rate = changed
        detector.save(model)
        expected[changed] = {result.path: result for result in detector.results(chosen)}

    def request(i: int) -> bytes:
        if i % 5 == 4:
            return encoded(**MALFORMED[i // 5 % len(MALFORMED)])
        start = 3 * i % (len(contents) - 3)
        return encoded(files=[("images", content) for content in contents[start : start + 1 + i % 3]])

    with serving(model, "--drain", "3") as service:

        def reload() -> None:
            detector.false_alarm_rate = rate / 2
            detector.save(model)
            deadline = time.monotonic() + 60
            while time.monotonic() < deadline:
                if httpx.get(f"{service.url}/v1/model").json()["false_alarm_rate"] == rate / 2:
                    return
                time.sleep(0.2)
            raise TimeoutError("the new model was not loaded")

        before = resident(service.process.pid)
        at = {requests // 4: reload, requests * 9 // 10: service.terminate}
        done = asyncio.run(load(service.url, (request(i) for i in range(requests)), CONCURRENCY, at=at))
        after = resident(service.process.pid) if service.process.poll() is None else None
        status, messages = service.end()
    return judged(done, expected) | {
        "requests": requests,
        "sent": len(done.answers) + len(done.unanswered),
        "exit_status": status,
        "said": messages,
        "server_memory_bytes": {"before": before, "after": after},
        "seconds": done.seconds,
        "client_peak_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }


def judged(done: Load, expected: dict[float, dict[str, Any]]) -> dict[str, Any]:
    wrong = 0
    largest = 0.0
    models: Counter[str] = Counter()
    for index, status, answer in done.answers:
        if status != 200:
            # Malformed requests are refused; others only if the queue is full or the service closes.
            wrong += index % 5 != 4 and status not in (429, 503)
            continue
        wrong += index % 5 == 4
        models[answer["model"]] += 1
        for image in answer["images"]:
            result = expected[answer["false_alarm_rate"]][image["name"]]
            difference = abs(image["score"] - result.score)
            largest = max(largest, difference)
            wrong += difference > 1e-5 or (image["p_value"], image["is_ood"]) != (result.p_value, result.is_ood)
    return {
        "statuses": {str(status): n for status, n in Counter(status for _, status, _ in done.answers).items()},
        "unanswered": done.unanswered,
        "wrong": wrong,
        "largest_difference_of_scores": largest,
        "answers_by_model": dict(models),
    }


if __name__ == "__main__":
    typer.run(main)
