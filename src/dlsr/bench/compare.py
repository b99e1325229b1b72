"""Any detectors of the registry on the same images in the same run: fitted, scored, timed, resumed if interrupted."""

import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from dlsr.artifact import installed_versions
from dlsr.baselines import DETECTORS, make_detector
from dlsr.bench.failures import save_failures
from dlsr.calibration.metrics import Metrics, evaluate_scores
from dlsr.detector import Detector
from dlsr.errors import ArtifactError, DlsrError, ImageError
from dlsr.evaluation import mean_and_std
from dlsr.files import replacing
from dlsr.images.sources import ImageDataset
from dlsr.images.transforms import Protocol, Transform, protocol_transform
from dlsr.scorers.fitting import OnEpoch
from dlsr.training.loop import EpochLog

Array = NDArray[np.float64]
TIMED_IMAGES = 256
SECONDS_OF_SILENCE = 20
"""Epochs are told of no more often than this."""

ONE_NETWORK = ("mse", "lr", "mfsim")
"""Scores of one and the same trained network, which is fitted once for all."""


@dataclass(frozen=True)
class Sets:
    """What detectors are fitted to and measured on."""

    train: ImageDataset
    labels: NDArray[np.int64] | None
    """Class of each training image; None if there are none."""
    test: ImageDataset
    """ID images that nothing is fitted to."""
    ood: Mapping[str, ImageDataset]
    remarks: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """What has to be said of a set, by its name; of the ID set by `ID`."""


@dataclass(frozen=True)
class CompareSettings:
    """How to compare."""

    detectors: tuple[str, ...]
    protocol: Protocol = "native"
    seeds: int = 1
    limit: int | None = None
    """At most so many images of each test set, at random."""
    train_limit: int | None = None
    reduced: bool = False
    """At the registry's reduced settings rather than full size."""
    encoder: str = "efficientnet_lite0"
    weights: str | None = None
    parameters: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Settings of single detectors, by name."""


@dataclass(frozen=True)
class Run:
    """One detector with one seed."""

    detector: str
    seed: int
    parameters: dict[str, Any]
    training_images: int
    fit_seconds: float
    """Without what was taken up from another detector of its family, or from an interrupted run."""
    images_per_second: float
    """End to end, from files, nothing known before."""
    scores: dict[str, Array]
    """By set; the ID set's name is `ID`. NaN for unreadable images."""

    def metrics(self) -> dict[str, Metrics]:
        """By OOD set."""
        finite = {name: one[np.isfinite(one)] for name, one in self.scores.items()}
        inside = finite.pop("ID")
        return {name: evaluate_scores(inside, outside) for name, outside in finite.items()}


def compare(
    sets: Sets,
    settings: CompareSettings,
    folder: Path,
    *,
    store: Path | None = None,
    said: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """Fit and measure every detector; what an earlier, interrupted run of the same has done is taken up.

    Args:
        sets: the images.
        settings: what to run.
        folder: where finished runs are kept.
        store: of features; shared by all detectors that use an encoder.
        said: told of each detector.

    Returns:
        A report ready for JSON: `rows` as `row_of` gives them, and for detectors that cannot run `why`.
    """
    training = _some(_Training(sets.train, sets.labels), settings.train_limit)
    images = scored_images(sets, settings)
    data = {"train": digest_of(training.images)} | {name: digest_of(one) for name, one in images.items()}
    fitted: dict[str, Any] = {}
    states: set[Path] = set()
    rows: list[dict[str, Any]] = []
    for name in settings.detectors:
        try:
            runs, files = [], []
            for seed in range(settings.seeds):
                detector = _made(name, settings, seed, store)
                path = folder / f"{name}-{seed}-{_key(detector, settings, data, name)}.safetensors"
                files.append(path.name)
                run = read_run(path)
                if run is None:
                    said(f"{name}, seed {seed}: fitting")
                    state = folder / f"{getattr(detector, 'family', None) or name}-{seed}.checkpoint"
                    states |= {state, state.with_suffix(".classifier")}
                    run = _run(name, seed, detector, training, images, settings, state, fitted, said)
                    write_run(path, run)
                runs.append(run)
            rows.append({**row_of(runs), "run_files": files})
        except DlsrError as error:
            said(f"{name} cannot run: {error}")
            rows.append({"detector": name, "why": str(error)})
    # Not before, for detectors of one family take up each other's training.
    for state in states:
        state.unlink(missing_ok=True)
    return {
        "settings": asdict(settings),
        "images": {"train": len(training.images), **{name: len(one) for name, one in images.items()}},
        "sha256": data,
        "remarks": {name: list(remarks) for name, remarks in sets.remarks.items()},
        "rows": rows,
        "versions": installed_versions(),
    }


def row_of(runs: Sequence[Run]) -> dict[str, Any]:
    """Means and standard deviations over seeds, and the average over sets."""
    metrics = [run.metrics() for run in runs]
    by_set = {}
    for name in metrics[0]:
        mean, std = mean_and_std([one[name] for one in metrics])
        by_set[name] = {"mean": mean, "std": std}
    info = DETECTORS[runs[0].detector]
    return {
        "detector": runs[0].detector,
        "kind": info.kind,
        "training_images": runs[0].training_images,
        "parameters": runs[0].parameters,
        "seeds": len(runs),
        "fit_seconds": float(np.mean([run.fit_seconds for run in runs])),
        "images_per_second": float(np.mean([run.images_per_second for run in runs])),
        "sets": by_set,
        "average_auroc": float(np.mean([one["mean"]["auroc"] for one in by_set.values()])),
    }


def _run(
    name: str,
    seed: int,
    detector: Any,
    training: "_Training",
    images: Mapping[str, ImageDataset],
    settings: CompareSettings,
    checkpoint: Path,
    fitted: dict[str, Any],
    said: Callable[[str], None],
) -> Run:
    transform = protocol_transform(settings.protocol)
    spoken = time.monotonic()

    def told(epoch: EpochLog, most: int) -> None:
        nonlocal spoken
        if time.monotonic() - spoken < SECONDS_OF_SILENCE:
            return
        spoken = time.monotonic()
        said(f"{name}, seed {seed}: epoch {epoch.epoch} of at most {most}, loss {epoch.validation_loss:.4g}")

    if not isinstance(detector, Detector) and settings.reduced:
        training = _some(training, DETECTORS[name].reduced_images)
    train = training.images
    if isinstance(detector, Detector):
        detector, seconds = _fitted_detector(detector, train, transform, checkpoint, fitted, told)
    else:
        start = time.perf_counter()
        labels = training.labels if DETECTORS[name].needs_labels else None
        detector.fit(train, labels, transform=transform, checkpoint=checkpoint, on_epoch=told)
        seconds = time.perf_counter() - start
    said(f"{name}, seed {seed}: fitted in {seconds:.0f} s, scoring")
    scores = {one: detector.score_samples(some, transform=transform) for one, some in images.items()}
    rate = _rate(detector, images["ID"], transform)
    return Run(name, seed, _parameters(detector), len(train), seconds, rate, scores)


def _fitted_detector(
    detector: Detector,
    train: ImageDataset,
    transform: Transform | None,
    checkpoint: Path,
    fitted: dict[str, Any],
    on_epoch: OnEpoch,
) -> tuple[Detector, float]:
    """The detector fitted, unless only its score differs from one that is; and the seconds that fitting took."""
    score = detector.score
    key = repr({**detector.get_params(), "score": "one network" if score in ONE_NETWORK else score})
    if key not in fitted:
        detector.prepare_encoder()
        # Encoded first, so that the first detector's fit does not count the encoder, which all share.
        detector.encode(train, transform=transform)
        start = time.perf_counter()
        detector.fit(train, transform=transform, checkpoint=checkpoint, on_epoch=on_epoch)
        fitted[key] = detector, time.perf_counter() - start
    done, seconds = fitted[key]
    return (done.with_settings(score=score) if score in ONE_NETWORK else done), seconds


def _rate(detector: Any, images: ImageDataset, transform: Any) -> float:
    """Images per second from files, with an empty feature store."""
    few = images.subset(range(min(TIMED_IMAGES, len(images))))
    before = detector.get_params().get("store")
    if before is not None:
        detector.set_params(store=None)
    detector.score_samples(few.subset(range(min(8, len(few)))), transform=transform)
    start = time.perf_counter()
    detector.score_samples(few, transform=transform)
    seconds = time.perf_counter() - start
    if before is not None:
        detector.set_params(store=before)
    return len(few) / seconds


def _made(name: str, settings: CompareSettings, seed: int, store: Path | None) -> Any:
    own = dict(settings.parameters.get(name, {}))
    detector = make_detector(name, reduced=settings.reduced, seed=seed, **own)
    common = {"encoder": settings.encoder, "weights": settings.weights, "store": None if store is None else str(store)}
    detector.set_params(**{k: v for k, v in common.items() if k in detector.get_params() and k not in own})
    return detector


def _parameters(detector: Any) -> dict[str, Any]:
    """All that its scores depend on."""
    return {k: v for k, v in detector.get_params().items() if k not in ("store", "workers", "device")}


def _key(detector: Any, settings: CompareSettings, data: Mapping[str, str], name: str) -> str:
    few = DETECTORS[name].reduced_images if settings.reduced else None
    return key_of(name, _parameters(detector), few, settings.protocol, dict(data))


def key_of(*what: Any) -> str:
    """A short digest of what a kept result depends on, this version of dlsr included."""
    text = json.dumps([*what, metadata.version("dlsr")], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@dataclass(frozen=True)
class _Training:
    images: ImageDataset
    labels: NDArray[np.int64] | None


def _some(training: _Training, limit: int | None) -> _Training:
    """At most `limit` training images at random, with their labels."""
    if limit is None or limit >= len(training.images):
        return training
    chosen = np.sort(np.random.default_rng(0).choice(len(training.images), limit, replace=False))
    labels = None if training.labels is None else training.labels[chosen]
    return _Training(training.images.subset(int(i) for i in chosen), labels)


def scored_images(sets: Sets, settings: CompareSettings) -> dict[str, ImageDataset]:
    """The images that are scored, by set; the ID set's name is `ID`."""
    return {name: one.sample(settings.limit) for name, one in {"ID": sets.test, **sets.ood}.items()}


def read_scores(folder: Path, file: str) -> dict[str, Array]:
    """The scores of a finished run, by set.

    Raises:
        ArtifactError: if it is not there or damaged.
    """
    run = read_run(folder / file)
    if run is None:
        raise ArtifactError(f"'{folder / file}' is missing or damaged; run the comparison again")
    return run.scores


def write_failures(folder: Path, sets: Sets, settings: CompareSettings, report: Mapping[str, Any], path: Path) -> None:
    """Write the contact sheet of the best detector's worst failures, see `dlsr.bench.failures`.

    Args:
        folder: with the finished runs.
        sets: as `compare` was given.
        settings: likewise.
        report: as it returned.
        path: PNG to write; none is written if no detector could run.
    """
    done = [row for row in report["rows"] if "why" not in row]
    if done:
        best = max(done, key=lambda row: float(row["average_auroc"]))
        save_failures(path, scored_images(sets, settings), read_scores(folder, best["run_files"][0]), best["detector"])


def digest_of(images: ImageDataset) -> str:
    """SHA-256 over the bytes of all images in their order; what cannot be read counts as nothing."""
    digest = hashlib.sha256()
    for item in images.items:
        try:
            raw = item.read()
        except (ImageError, OSError):
            raw = b""
        digest.update(hashlib.sha256(raw if isinstance(raw, bytes) else np.asarray(raw).tobytes()).digest())
    return digest.hexdigest()


def write_run(path: Path, run: Run) -> None:
    """Keep a finished run.

    Raises:
        OutputError: if it cannot be written.
    """
    about = {k: v for k, v in asdict(run).items() if k != "scores"}
    with replacing(path) as temporary:
        save_file(dict(run.scores), temporary, metadata={"run": json.dumps(about, default=str)})


def read_run(path: Path) -> Run | None:
    """A finished run; None if there is none that can be read."""
    try:
        header = path.read_bytes()
        length = int.from_bytes(header[:8], "little")
        about = json.loads(json.loads(header[8 : 8 + length])["__metadata__"]["run"])
        return Run(**about, scores=load_file(path))
    except (OSError, ValueError, KeyError, TypeError, SafetensorError):
        return None
