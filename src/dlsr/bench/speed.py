"""How fast scoring and training are, as ratios within one run, for machines are noisy.

Each backend is measured in a process of its own, so that its peak memory and its time to the first score are its own.
"""

import math
import multiprocessing
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image

from dlsr.artifact import installed_versions
from dlsr.config import Settings, TrainingSettings, resolve
from dlsr.detector import Detector
from dlsr.encoding.pipeline import readable_pixels
from dlsr.images.sources import ImageDataset, open_images
from dlsr.method.lfdn import LFDN
from dlsr.runtime.backends import Backend, available_backends
from dlsr.streaming import map_ahead
from dlsr.training.data import Rows
from dlsr.training.loop import new_state, restoration_loss, train, uses_bfloat16

Precision = Literal["float32", "bfloat16"]

SAMPLE_PHOTOGRAPHS = 64
ROUNDS = 3


@dataclass(frozen=True)
class SpeedSettings:
    """What to measure."""

    backends: tuple[Backend, ...]
    batch_sizes: tuple[int, ...] = (1, 4, 32)
    images: int = 256
    """Images a round."""
    growth: tuple[int, ...] = (256, 1024)
    """Numbers of images over which time and memory are watched."""
    vectors: int = 8192
    """Feature vectors in the timed training."""
    encoder: str = "efficientnet_lite0"
    weights: str | None = None
    preset: str = "default"
    decoding: str = "full"
    workers: int = 2


def sample_photographs(folder: Path, count: int = SAMPLE_PHOTOGRAPHS) -> None:
    """Write JPEG files of 400x300 pixels, cut from scikit-learn's photographs, for want of other images."""
    from sklearn.datasets import load_sample_images  # noqa: PLC0415 - slow to import

    folder.mkdir(exist_ok=True)
    random = np.random.default_rng(0)
    photographs = load_sample_images().images
    for i in range(count):
        photograph = photographs[i % len(photographs)]
        top, left = int(random.integers(427 - 300 + 1)), int(random.integers(640 - 400 + 1))
        Image.fromarray(photograph[top : top + 300, left : left + 400]).save(folder / f"{i:03}.jpg", quality=90)


def measure_speed(
    settings: SpeedSettings, images: Path | None, said: Callable[[str], None] = lambda _: None
) -> dict[str, Any]:
    """Measure everything.

    Args:
        settings: what.
        images: folder or tar; None for `sample_photographs`.
        said: told what is being measured.

    Returns:
        Numbers ready for JSON: `scoring`, `growth` and `training`, see there.

    Raises:
        NoImagesError: if there are none.
    """
    with tempfile.TemporaryDirectory() as own:
        if images is None:
            sample_photographs(Path(own) / "photographs")
        source = Path(own) / "photographs" if images is None else images
        model = Path(own) / "model"
        _fitted(settings, source).save(model)
        said("PyTorch in its default layout")
        eager = _alone(_eager_rate, settings, str(source))
        scoring = []
        for backend in settings.backends:
            said(f"scoring with {backend}")
            row = _alone(_scoring, settings, backend, str(model), str(source))
            row["seconds_to_first_score"] = _first_score_seconds(backend, model, Path(own))
            row["over_eager"] = max(row["end_to_end"].values()) / eager
            scoring.append(row)
        growth = []
        for count in settings.growth:
            said(f"scoring {count} images")
            growth.append(_alone(_growth, settings, str(model), str(source), count))
        model_bytes = sum(path.stat().st_size for path in model.iterdir())
    said("training")
    rate = max(max(row["encoder_alone"].values()) for row in scoring)
    training = []
    for precision in precisions():
        row = measure_training(resolve(settings.preset), settings.vectors, precision)
        row["re_encoding_over_cached"] = 1 + settings.vectors / rate / row["epoch_seconds"]
        training.append(row)
    return {
        "images": "photographs of scikit-learn, 400x300" if images is None else images.name,
        "encoder": settings.encoder,
        "preset": settings.preset,
        "decoding": settings.decoding,
        "threads": torch.get_num_threads(),
        "model_bytes": model_bytes,
        "eager_default_layout_images_per_second": eager,
        "scoring": scoring,
        "growth": growth,
        "training": training,
        "versions": installed_versions(),
    }


def _fitted(settings: SpeedSettings, source: Path) -> Detector:
    """A detector of the real size. Its quality is of no account here, so it is fitted to few images."""
    return Detector(
        settings.encoder,
        preset=settings.preset,
        weights=settings.weights,
        decoding=settings.decoding,
        epochs=1,
        workers=settings.workers,
    ).fit(_repeated(str(source), 64))


def _alone(function: Callable[..., Any], *arguments: Any) -> Any:
    """Call a function in a fresh process."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def _repeated(source: str, count: int) -> ImageDataset:
    return ImageDataset(list(islice(cycle(open_images(source).items), count)))


def _eager_rate(settings: SpeedSettings, source: str) -> float:
    """Images per second of the encoder alone, eager and in PyTorch's default layout."""
    detector = Detector(settings.encoder, weights=settings.weights, backend="torch")
    encoder = detector.prepare_encoder()
    batch = max(settings.batch_sizes)
    pixels = readable_pixels(encoder, _repeated(source, batch), batch)
    module = encoder.module()
    planes = module.normalised(torch.from_numpy(pixels)).contiguous()

    @torch.inference_mode()
    def encode() -> None:
        for _ in range(math.ceil(settings.images / batch)):
            module.network(planes)

    encode()
    return math.ceil(settings.images / batch) * batch / float(np.median([_seconds(encode) for _ in range(ROUNDS)]))


def _scoring(settings: SpeedSettings, backend: Backend, model: str, source: str) -> dict[str, Any]:
    """Images per second end to end and of the encoder alone, at each batch size."""
    detector = Detector.load(model, backend=backend, workers=settings.workers)
    images = _repeated(source, settings.images)
    encoder = detector.encoder_
    pixels = readable_pixels(encoder, images, settings.images)
    features = detector.encode(images)
    rows: dict[str, Any] = {"backend": backend, "end_to_end": {}, "encoder_alone": {}}
    rows |= {"end_to_end_over_encoder": {}, "restoration_share": {}}
    for batch in settings.batch_sizes:

        def encode(size: int = batch) -> None:
            batches = (pixels[begin : begin + size] for begin in range(0, len(pixels), size))
            _drain(map_ahead(encoder.encode, batches, encoder.streams, ahead=2 * encoder.streams))

        def score(size: int = batch) -> None:
            _drain(detector.results(images, batch_size=size))

        def restore() -> None:
            detector.score_features(features.z0, features.digests)

        score()
        encode()
        rounds = np.array([(_seconds(encode), _seconds(score), _seconds(restore)) for _ in range(ROUNDS)])
        rows["encoder_alone"][str(batch)] = len(pixels) / float(np.median(rounds[:, 0]))
        rows["end_to_end"][str(batch)] = len(pixels) / float(np.median(rounds[:, 1]))
        rows["end_to_end_over_encoder"][str(batch)] = float(np.median(rounds[:, 0] / rounds[:, 1]))
        rows["restoration_share"][str(batch)] = float(np.median(rounds[:, 2] / rounds[:, 1]))
    rows["peak_memory_bytes"] = peak_memory()
    return rows


def _first_score_seconds(backend: Backend, model: Path, folder: Path) -> float:
    """Time of `dlsr score` on one image, start of the process included, once the engine is in the cache."""
    sample_photographs(folder / "one", 1)
    command = [sys.executable, "-m", "dlsr", "score", str(model), str(folder / "one"), "--no-store", "--quiet"]
    command += ["--backend", backend]
    return float(
        np.median(
            [_seconds(lambda: subprocess.run(command, check=True, stdout=subprocess.DEVNULL)) for _ in range(ROUNDS)]
        )
    )


def _growth(settings: SpeedSettings, model: str, source: str, count: int) -> dict[str, float]:
    """Time and peak memory of scoring `count` images."""
    detector = Detector.load(model, backend=settings.backends[0], workers=settings.workers)
    images = _repeated(source, count)
    seconds = _seconds(lambda: _drain(detector.results(images)))
    return {
        "images": count,
        "seconds": seconds,
        "images_per_second": count / seconds,
        "peak_memory_bytes": peak_memory(),
    }


def precisions() -> tuple[Precision, ...]:
    """Those that this machine trains in of its own accord, `float32` first."""
    return ("float32", "bfloat16") if uses_bfloat16(TrainingSettings(), torch.device("cpu")) else ("float32",)


def measure_training(settings: Settings, vectors: int, precision: Precision, c: int = 512) -> dict[str, Any]:
    """The time of an epoch, and the arithmetic it does per second against bare matrix products of the same shapes.

    Args:
        settings: network and training; the plain LFDN is timed, for a preset's additions to it are small.
        vectors: feature vectors in the epoch.
        precision: of training; the bare products are in the same.
        c: their dimension.

    Returns:
        `epoch_seconds`, `gflops` of training, `gflops_of_products` and their ratio `share_of_products`.
    """
    training = settings.training.model_copy(update={"epochs": ROUNDS, "min_steps": 0, "precision": precision})
    network = LFDN(c, settings.network.width or 2 * c, settings.network.blocks)
    z0 = torch.randn(vectors, c)
    ends: list[float] = [time.perf_counter()]
    loss = restoration_loss(network, settings.schedule.alpha_bar())
    for _ in train(network, Rows(z0), z0[:1], loss, training, 0, new_state(network)):
        ends.append(time.perf_counter())
    # The first epoch warms up.
    epoch = float(np.median(np.diff(ends)[1:]))
    batch, T = training.batch_size, settings.schedule.T
    flops, products = 0.0, 0.0
    for name, layer in network.named_modules():
        if isinstance(layer, torch.nn.Linear):
            # What depends on the time alone is computed once for each distinct time of a batch.
            rows = round(T * (1 - (1 - 1 / T) ** batch)) if "time" in name else batch
            flops += 3 * 2 * rows * layer.in_features * layer.out_features
            products += _products_seconds(rows, layer.in_features, layer.out_features, getattr(torch, precision))
    steps = math.ceil(vectors / batch)
    gflops, limit = flops * steps / epoch / 1e9, flops / products / 1e9
    return {
        "precision": precision,
        "vectors": vectors,
        "parameters": float(sum(one.numel() for one in network.parameters())),
        "epoch_seconds": epoch,
        "gflops": gflops,
        "gflops_of_products": limit,
        "share_of_products": gflops / limit,
    }


def _products_seconds(rows: int, inputs: int, outputs: int, dtype: torch.dtype) -> float:
    """Time of a linear layer's three matrix products: forward, by its input and by its weight."""
    x, w, g = (torch.randn(shape).to(dtype) for shape in ((rows, inputs), (outputs, inputs), (rows, outputs)))

    def products() -> None:
        torch.mm(x, w.T)
        torch.mm(g, w)
        torch.mm(g.T, x)

    products()
    return float(np.median([_seconds(products) for _ in range(10)]))


def peak_memory() -> int:
    """The most memory that this process has held, in bytes."""
    status = Path("/proc/self/status")
    if status.exists():  # what getrusage says on Linux is inherited from the process that started this one
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return 1024 * int(line.split()[1])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def default_backends() -> tuple[Backend, ...]:
    """All that run on this machine's CPU but `compile`, which takes a minute to start."""
    return tuple(one for one in available_backends(torch.device("cpu")) if one != "compile")


def _drain(results: Iterable[object]) -> None:
    for _ in results:
        pass


def _seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start
