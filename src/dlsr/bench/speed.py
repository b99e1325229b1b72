"""Speed of scoring and training. Compare ratios within a run: absolute numbers vary with the load of the machine.

Each backend is measured in its own process, so that others do not affect its peak memory and time to the first score.
"""

import math
import multiprocessing
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import cycle, islice
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image

from dlsr.artifact import installed_versions
from dlsr.bench.image_paths import OTHERS
from dlsr.bench.parts import available_cores, drain, measure_parts, seconds_of
from dlsr.config import NONE, TrainingSettings
from dlsr.detector import Detector
from dlsr.encoding.pipeline import Encoded, readable_pixels
from dlsr.errors import one_line
from dlsr.fitted_detector import FittedDetector
from dlsr.images.sources import ImageDataset, open_images
from dlsr.method.lfdn import LFDN
from dlsr.runtime.backends import Backend, available_backends
from dlsr.scorers import resolve
from dlsr.scorers.paper import restoration_loss
from dlsr.scorers.settings import DiffusionSettings
from dlsr.streaming import map_ahead
from dlsr.training.data import Samples
from dlsr.training.loop import new_state, train, uses_bfloat16

Precision = Literal["float32", "bfloat16"]

SAMPLE_PHOTOGRAPHS = 64
ROUNDS = 3


@dataclass(frozen=True)
class SpeedSettings:
    """Settings of a measurement."""

    backends: tuple[Backend, ...]
    batch_sizes: tuple[int, ...] = (1, 4, 32)
    images: int = 256
    """Images scored in a round."""
    growth: tuple[int, ...] = (256, 1024)
    """Numbers of images to measure time and memory for."""
    vectors: int = 8192
    """Feature vectors in the timed training."""
    encoder: str = "efficientnet_lite0"
    weights: str | None = None
    preset: str = "default"
    decoding: str = "draft"
    precision: str = "float32"
    workers: int = 2
    others: bool = True
    """Whether other ways to score images are measured, too."""


def sample_photographs(folder: Path, count: int = SAMPLE_PHOTOGRAPHS) -> None:
    """Write JPEG files of 400x300 pixels, cut from scikit-learn's photographs."""
    from sklearn.datasets import load_sample_images  # noqa: PLC0415 - slow to import

    folder.mkdir(exist_ok=True)
    random = np.random.default_rng(0)
    photographs = load_sample_images().images
    for i in range(count):
        photograph = photographs[i % len(photographs)]
        top, left = int(random.integers(427 - 300 + 1)), int(random.integers(640 - 400 + 1))
        Image.fromarray(photograph[top : top + 300, left : left + 400]).save(folder / f"{i:03}.jpg", quality=90)


def measure_speed(
    settings: SpeedSettings, images: Path | None, on_message: Callable[[str], None] = lambda _: None
) -> dict[str, Any]:
    """Measure everything.

    Args:
        settings: what to measure.
        images: folder or tar; None for `sample_photographs`.
        on_message: callback with a line on each step.

    Returns:
        Numbers for JSON: `parts`, see `dlsr.bench.parts`; images per second of `others`, see `dlsr.bench.image_paths`,
        or the reason why there is none; `scoring` of each backend, `growth` with the number of images, `training` of
        each precision, if the preset trains a network.

    Raises:
        NoImagesError: if there are no images.
    """
    with tempfile.TemporaryDirectory() as own:
        if images is None:
            sample_photographs(Path(own) / "photographs")
        source = Path(own) / "photographs" if images is None else images
        model = Path(own) / "model"
        _fitted(settings, source).save(model)
        on_message("the parts of scoring")
        parts = _alone(_parts, settings, str(model), str(source))
        others = {}
        for name in OTHERS if settings.others else ():
            on_message(name)
            others[name] = _alone(_other, settings, name, str(source))
        on_message("PyTorch in its default layout")
        eager = _alone(_eager_rate, settings, str(source))
        scoring = []
        for backend in settings.backends:
            on_message(f"scoring with {backend}")
            row = _alone(_scoring, settings, backend, str(model), str(source))
            row["seconds_to_first_score"] = _first_score_seconds(backend, model, Path(own))
            row["over_eager"] = max(row["end_to_end"].values()) / eager
            scoring.append(row)
        growth = []
        for count in settings.growth:
            on_message(f"scoring {count} images")
            growth.append(_alone(_growth, settings, str(model), str(source), count))
        model_bytes = sum(path.stat().st_size for path in model.iterdir())
    rate = max(max(row["encoder_alone"].values()) for row in scoring)
    network = resolve(settings.preset).scorer
    training = []
    if isinstance(network, DiffusionSettings):
        on_message("training")
        for precision in precisions():
            row = measure_training(network, settings.vectors, precision)
            row["re_encoding_over_cached"] = 1 + settings.vectors / rate / row["epoch_seconds"]
            training.append(row)
    return {
        "images": "photographs of scikit-learn, 400x300" if images is None else images.name,
        "encoder": settings.encoder,
        "preset": settings.preset,
        "decoding": settings.decoding,
        "precision": settings.precision,
        "parts": parts,
        "others": others,
        "threads": torch.get_num_threads(),
        "model_bytes": model_bytes,
        "eager_default_layout_images_per_second": eager,
        "scoring": scoring,
        "growth": growth,
        "training": training,
        "versions": installed_versions(),
    }


def _fitted(settings: SpeedSettings, source: Path) -> Detector:
    """A detector of full size, fitted to few images, since its quality does not matter here."""
    trains = isinstance(resolve(settings.preset).scorer, DiffusionSettings)
    detector = Detector(
        settings.encoder,
        preset=settings.preset,
        weights=settings.weights,
        decoding=settings.decoding,
        precision=settings.precision,
        group_by=NONE,  # the images are repeated
        epochs=1 if trains else None,
        workers=settings.workers,
    )
    few = detector.prepare_extractor().encode(_repeated(str(source), 64))
    # A score may keep what it is fitted to, so the number of features matters, but not what they show.
    count = max(settings.vectors, 64)
    chosen = np.arange(count) % len(few.z0)
    noise = np.random.default_rng(0).standard_normal((count, few.z0.shape[1]), dtype=np.float32)
    return detector.fit_encoded(
        Encoded(
            names=[str(i) for i in range(count)],
            errors=[None] * count,
            z0=few.z0[chosen] + np.float32(0.1) * noise,
            digests=few.digests[chosen],
            keys=few.keys[chosen],
        )
    )


def _alone(function: Callable[..., Any], *arguments: Any) -> Any:
    """Call a function in a fresh process."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def _repeated(source: str, count: int) -> ImageDataset:
    return ImageDataset(list(islice(cycle(open_images(source).items), count)))


def _parts(settings: SpeedSettings, model: str, source: str) -> dict[str, Any]:
    detector = FittedDetector.load(model, backend=settings.backends[0], workers=available_cores())
    return measure_parts(detector, _repeated(source, settings.images))


def _other(settings: SpeedSettings, name: str, source: str) -> float | str:
    """Images per second, or why there is no such number."""
    encoder = Detector(settings.encoder, weights=settings.weights, backend="torch").prepare_extractor().encoder
    with tempfile.TemporaryDirectory() as own:
        folder = Path(own) / "images"
        folder.mkdir()
        for i, item in enumerate(_repeated(source, settings.images).items):
            content = item.read()
            assert isinstance(content, bytes)
            (folder / f"{i:06}{Path(item.name).suffix.lower()}").write_bytes(content)
        try:
            return OTHERS[name](encoder, folder)
        except ModuleNotFoundError as error:
            return f"{one_line(error)}; run: pip install 'dlsr[compare]'"


def _eager_rate(settings: SpeedSettings, source: str) -> float:
    """Images per second of the encoder alone, in eager mode and PyTorch's default memory layout."""
    detector = Detector(settings.encoder, weights=settings.weights, backend="torch")
    encoder = detector.prepare_extractor().encoder
    batch = max(settings.batch_sizes)
    pixels = readable_pixels(encoder, _repeated(source, batch), batch)
    module = encoder.module()
    planes = module.normalised(torch.from_numpy(pixels)).contiguous()

    @torch.inference_mode()
    def encode() -> None:
        for _ in range(math.ceil(settings.images / batch)):
            module.network(planes)

    encode()
    return math.ceil(settings.images / batch) * batch / float(np.median([seconds_of(encode) for _ in range(ROUNDS)]))


def _scoring(settings: SpeedSettings, backend: Backend, model: str, source: str) -> dict[str, Any]:
    """Images per second end to end and of the encoder alone, at each batch size."""
    detector = FittedDetector.load(model, backend=backend, workers=settings.workers)
    images = _repeated(source, settings.images)
    encoder = detector.extractor_.encoder
    pixels = readable_pixels(encoder, images, settings.images)
    features = detector.extractor_.encode(images)
    row: dict[str, Any] = {"backend": backend, "end_to_end": {}, "encoder_alone": {}}
    row |= {"end_to_end_over_encoder": {}, "restoration_share": {}}
    for batch in settings.batch_sizes:

        def encode(size: int = batch) -> None:
            batches = (pixels[begin : begin + size] for begin in range(0, len(pixels), size))
            drain(map_ahead(encoder.encode, batches, encoder.streams, ahead=2 * encoder.streams))

        def score(size: int = batch) -> None:
            drain(detector.results(images, batch_size=size))

        def restore() -> None:
            detector.score_features(features.z0, features.digests)

        score()
        encode()
        rounds = np.array([(seconds_of(encode), seconds_of(score), seconds_of(restore)) for _ in range(ROUNDS)])
        row["encoder_alone"][str(batch)] = len(pixels) / float(np.median(rounds[:, 0]))
        row["end_to_end"][str(batch)] = len(pixels) / float(np.median(rounds[:, 1]))
        row["end_to_end_over_encoder"][str(batch)] = float(np.median(rounds[:, 0] / rounds[:, 1]))
        row["restoration_share"][str(batch)] = float(np.median(rounds[:, 2] / rounds[:, 1]))
    row["peak_memory_bytes"] = peak_memory()
    return row


def _first_score_seconds(backend: Backend, model: Path, folder: Path) -> float:
    """Time of `dlsr score` on one image, with the start of the process, when the engine is cached already."""
    sample_photographs(folder / "one", 1)
    command = [sys.executable, "-m", "dlsr", "score", str(model), str(folder / "one"), "--no-store", "--quiet"]
    command += ["--backend", backend]
    return float(
        np.median(
            [seconds_of(lambda: subprocess.run(command, check=True, stdout=subprocess.DEVNULL)) for _ in range(ROUNDS)]
        )
    )


def _growth(settings: SpeedSettings, model: str, source: str, count: int) -> dict[str, float]:
    """Time and peak memory of scoring `count` images."""
    detector = FittedDetector.load(model, backend=settings.backends[0], workers=settings.workers)
    images = _repeated(source, count)
    seconds = seconds_of(lambda: drain(detector.results(images)))
    return {
        "images": count,
        "seconds": seconds,
        "images_per_second": count / seconds,
        "peak_memory_bytes": peak_memory(),
    }


def precisions() -> tuple[Precision, ...]:
    """Precisions that this machine trains in by default, `float32` first."""
    return ("float32", "bfloat16") if uses_bfloat16(TrainingSettings(), torch.device("cpu")) else ("float32",)


def measure_training(settings: DiffusionSettings, vectors: int, precision: Precision, c: int = 512) -> dict[str, Any]:
    """The time of an epoch, and its arithmetic per second beside that of plain matrix products of the same shapes.

    Args:
        settings: network and training; the plain LFDN is timed, since the additions of a preset are small.
        vectors: feature vectors in the epoch.
        precision: of training and of the plain products.
        c: dimension of the feature vectors.

    Returns:
        `epoch_seconds`, `gflops` of training, `gflops_of_products` and their ratio `share_of_products`.
    """
    training = settings.model_copy(update={"epochs": ROUNDS, "min_steps": 0, "training_precision": precision})
    network = LFDN(c, settings.width or 2 * c, settings.blocks)
    z0 = torch.randn(vectors, c)
    ends: list[float] = [time.perf_counter()]
    loss = partial(restoration_loss, network, settings.alpha_bar())
    for _ in train(network, Samples(z0), z0[:1], loss, training, 0, new_state(network)):
        ends.append(time.perf_counter())
    # The first epoch warms up.
    epoch = float(np.median(np.diff(ends)[1:]))
    batch, T = training.batch_size, settings.T
    flops, products = 0.0, 0.0
    for name, layer in network.named_modules():
        if isinstance(layer, torch.nn.Linear):
            # Layers of the time embedding run once for each distinct time in a batch.
            rows = round(T * (1 - (1 - 1 / T) ** batch)) if "time" in name else batch
            flops += 3 * 2 * rows * layer.in_features * layer.out_features
            products += _products_seconds(rows, layer.in_features, layer.out_features, getattr(torch, precision))
    steps = math.ceil(vectors / batch)
    gflops, limit = flops * steps / epoch / 1e9, flops / products / 1e9
    return {
        "precision": precision,
        "vectors": vectors,
        "parameters": float(sum(parameter.numel() for parameter in network.parameters())),
        "epoch_seconds": epoch,
        "gflops": gflops,
        "gflops_of_products": limit,
        "share_of_products": gflops / limit,
    }


def _products_seconds(rows: int, inputs: int, outputs: int, dtype: torch.dtype) -> float:
    """Time of a linear layer's three matrix products: forward, and the gradients of input and weight."""
    x, w, g = (torch.randn(shape).to(dtype) for shape in ((rows, inputs), (outputs, inputs), (rows, outputs)))

    def products() -> None:
        torch.mm(x, w.T)
        torch.mm(g, w)
        torch.mm(g.T, x)

    products()
    return float(np.median([seconds_of(products) for _ in range(10)]))


def peak_memory() -> int:
    """Peak resident memory of this process, in bytes."""
    status = Path("/proc/self/status")
    if status.exists():  # on Linux, getrusage includes the peak of the process that started this one
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return 1024 * int(line.split()[1])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def default_backends() -> tuple[Backend, ...]:
    """All backends of this machine's CPU but `compile`, which takes a minute to start."""
    return tuple(name for name in available_backends("cpu") if name != "compile")
