"""Speed, as ratios within one run: scoring against the encoder alone, and training on features against re-encoding.

    python benchmarks/speed.py --data ../shared/data --output docs/speed.json

Scoring is timed end to end (read, decode, encode, restore, p-value), without the feature store. The encoder alone
is timed on the same images, already decoded and resized. Rounds of both alternate, for the machine is noisy.
"""

import json
import sys
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer

from dlsr import Detector, ImageSet, open_images
from dlsr.artifact import installed_versions
from dlsr.encoding import BATCH
from dlsr.evaluation import sample
from dlsr.files import replacing
from dlsr.images import decode, resize

FIT_IMAGES = 500


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def main(
    data: Annotated[Path, typer.Option(help="Folder with the tars of shared/data.")],
    output: Annotated[Path, typer.Option(help="JSON file to write.")],
    images: int = 512,
    rounds: int = 3,
    vectors: Annotated[int, typer.Option(help="Feature vectors in the timed epoch.")] = 50_000,
    backends: str = "torch,openvino",
) -> None:
    cifar = open_images(data / "cifar10.tar")
    fitting, scored = (sample(cifar, n, seed) for seed, n in enumerate((FIT_IMAGES, images)))
    textures = sample(open_images(data / "dtd_5classes.tar"), images // 2)
    rows: list[dict[str, Any]] = []
    for backend in backends.split(","):
        # The quality of the model is of no account here; its size, and so its cost, is the default's.
        detector = Detector(backend=backend, epochs=1)  # type: ignore[arg-type]
        load = seconds(detector.prepare_encoder)
        detector.fit(fitting)
        for name, one in {"CIFAR-10, 32 px": scored, "DTD, 300-900 px": textures}.items():
            rows.append({"backend": backend, "images": name, "load_seconds": load} | compare(detector, one, rounds))
            print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
    encoder_rate = rows[0]["encoder_images_per_second"]
    random = np.random.default_rng(0).standard_normal((vectors, 512), dtype=np.float32)
    epoch = epoch_seconds(random)
    best_rate = max(row["encoder_images_per_second"] for row in rows)
    content = {
        "command": "python benchmarks/speed.py " + " ".join(sys.argv[1:]),
        "threads": torch.get_num_threads(),
        "scoring": rows,
        "training": {
            "vectors": vectors,
            "epoch_seconds_on_features": epoch,
            "epoch_seconds_if_re_encoded_torch": epoch + vectors / encoder_rate,
            "epoch_seconds_if_re_encoded_fastest": epoch + vectors / best_rate,
            "times_faster_than_re_encoding_fastest": 1 + vectors / best_rate / epoch,
        },
        "versions": installed_versions(),
    }
    with replacing(output) as temporary:
        temporary.write_text(json.dumps(content, indent=1) + "\n")
    print(json.dumps(content, indent=1))


def compare(detector: Detector, images: ImageSet, rounds: int) -> dict[str, float]:
    """Images per second of scoring and of the encoder alone: medians over alternating rounds."""
    encoder = detector.prepare_encoder()
    spec = encoder.spec
    pixels = np.stack([resize(decode(item.read()), spec.size, spec.interpolation) for item in images.items])

    def encode() -> None:
        for start in range(0, len(pixels), BATCH):
            encoder.encode(pixels[start : start + BATCH])

    def score() -> None:
        for _ in detector.results(images):
            pass

    list(islice(detector.results(images), BATCH))  # warm up
    encode()
    encoding, scoring = zip(*((seconds(encode), seconds(score)) for _ in range(rounds)), strict=True)
    ratios = [e / s for e, s in zip(encoding, scoring, strict=True)]
    return {
        "encoder_images_per_second": len(pixels) / float(np.median(encoding)),
        "scoring_images_per_second": len(pixels) / float(np.median(scoring)),
        "scoring_over_encoder": float(np.median(ratios)),
    }


def epoch_seconds(features: np.ndarray[Any, Any]) -> float:
    """One epoch of the default preset on cached features: the time between the first two epochs' ends."""
    ends: list[float] = []
    detector = Detector(epochs=2)
    detector.fit_features(features, (16, 24, 40, 112, 320), on_epoch=lambda *_: ends.append(time.perf_counter()))
    return (ends[1] - ends[0]) * len(features) / detector.fit_summary_.training_images


if __name__ == "__main__":
    typer.run(main)
