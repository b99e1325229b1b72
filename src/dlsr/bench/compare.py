"""Compare detectors on the same images in the same run: fit, score, time; an interrupted comparison resumes."""

import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file

from dlsr.artifact import installed_versions
from dlsr.baselines import DETECTORS, make_detector
from dlsr.bench.code import code_digest
from dlsr.bench.failures import save_failures
from dlsr.calibration.metrics import Metrics, evaluate_scores
from dlsr.detector import Detector
from dlsr.encoders.encoder import Z0_VERSION
from dlsr.errors import ArtifactError, DlsrError, one_line
from dlsr.evaluation import mean_and_std
from dlsr.files import write_arrays
from dlsr.images.decode import UNREADABLE, decode, reason_of
from dlsr.images.resizing import choose_resizer
from dlsr.images.sources import ImageDataset
from dlsr.images.transforms import Protocol, Transform, pixels_version, protocol_transform
from dlsr.scorers import SCORES, resolve
from dlsr.training.log import EpochLog
from dlsr.training.loop import OnEpoch

Array = NDArray[np.float64]
OnMessage = Callable[[str], None]
"""Callback with a line on the progress."""

TIMED_IMAGES = 256
SECONDS_BETWEEN_MESSAGES = 20
"""There is at most one message on a training in this time."""


@dataclass(frozen=True)
class Task:
    """A task of OOD detection: the images to fit to and those to measure on."""

    train: ImageDataset
    """ID images to fit to."""
    labels: NDArray[np.int64] | None
    """Class of each training image; None if unknown."""
    test: ImageDataset
    """Other ID images."""
    ood: Mapping[str, ImageDataset]
    """OOD datasets by name."""
    remarks: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """Remarks on the datasets, by name; `train` and `ID` are the ID datasets."""


@dataclass(frozen=True)
class CompareSettings:
    """Settings of a comparison."""

    detectors: tuple[str, ...]
    protocol: Protocol = "native"
    seeds: int = 1
    limit: int | None = None
    """Most images of each test dataset, chosen at random."""
    train_limit: int | None = None
    """Most training images, chosen at random."""
    reduced: bool = False
    """Use the registry's reduced settings instead of those at full size."""
    encoder: str = "efficientnet_lite0"
    weights: str | None = None
    parameters: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Settings of single detectors, by their name."""


@dataclass(frozen=True)
class Run:
    """The scores of one detector fitted with one seed."""

    detector: str
    seed: int
    parameters: dict[str, Any]
    training_images: int
    fit_seconds: float
    """Without training that was resumed, of an interrupted run or of another detector of the same family."""
    images_per_second: float
    """End to end from files, without a feature store."""
    scores: dict[str, Array]
    """By dataset; `ID` is the ID test dataset. NaN for unreadable images."""

    def metrics(self) -> dict[str, Metrics]:
        """Metrics by OOD dataset."""
        finite = {name: scores[np.isfinite(scores)] for name, scores in self.scores.items()}
        inside = finite.pop("ID")
        return {name: evaluate_scores(inside, outside) for name, outside in finite.items()}


def compare(
    task: Task,
    settings: CompareSettings,
    folder: Path,
    *,
    store: Path | None = None,
    on_message: OnMessage = lambda _: None,
) -> dict[str, Any]:
    """Fit and measure every detector. Finished runs in `folder` are not repeated, interrupted training resumes.

    Args:
        task: the images.
        settings: detectors and their settings.
        folder: for finished runs.
        store: folder of the feature store, which all detectors with an encoder share.
        on_message: callback with a line on the progress of each detector.

    Returns:
        A report for JSON: `rows` as from `row_of`; a detector that cannot run has a reason, `why`, instead. In
        `unreadable`, reasons by dataset and name of the images to measure on that cannot be read, if a detector ran.

    Raises:
        TypeError: for parameters that a detector does not have.
    """
    training = _subset(_Training(task.train, task.labels), settings.train_limit)
    images = scored_images(task, settings)
    data = {"train": digest_of(training.images)} | {name: digest_of(dataset) for name, dataset in images.items()}
    for name in settings.detectors:
        with suppress(DlsrError):  # which is the reason why it cannot run
            _made(name, settings, 0, store)
    labels = "" if training.labels is None else hashlib.sha256(training.labels.tobytes()).hexdigest()
    unreadable: dict[str, dict[str, str]] = {}
    fitted: dict[str, Any] = {}
    states: set[Path] = set()
    rows: list[dict[str, Any]] = []
    for name in settings.detectors:
        try:
            runs, files = [], []
            for seed in range(settings.seeds):
                detector = _made(name, settings, seed, store)
                path = folder / f"{name}-{seed}-{_key(detector, settings, data, name, labels)}.safetensors"
                files.append(path.name)
                run = read_run(path)
                if run is None:
                    on_message(f"{name}, seed {seed}: fitting")
                    state = folder / f"{getattr(detector, 'family', None) or name}-{seed}.checkpoint"
                    states |= {state, state.with_suffix(".classifier")}
                    run = _run(name, seed, detector, training, images, settings, state, fitted, on_message)
                    write_run(path, run)
                runs.append(run)
                unreadable = unreadable or _unreadable(images, run.scores)
            rows.append({**row_of(runs), "run_files": files})
        # The libraries of rivals raise what they like on data that they cannot fit.
        except Exception as error:
            on_message(f"{name} cannot run: {one_line(error)}")
            rows.append({"detector": name, "why": one_line(error)})
    # Only now, since detectors of one family resume each other's training.
    for state in states:
        state.unlink(missing_ok=True)
    return {
        "settings": asdict(settings),
        "images": {"train": len(training.images), **{name: len(dataset) for name, dataset in images.items()}},
        "sha256": data,
        "unreadable": unreadable,
        "remarks": {name: list(remarks) for name, remarks in task.remarks.items()},
        "rows": rows,
        "versions": installed_versions(),
    }


def row_of(runs: Sequence[Run]) -> dict[str, Any]:
    """Means and standard deviations over seeds for each OOD dataset, and the average over datasets."""
    metrics = [run.metrics() for run in runs]
    by_dataset = {}
    for name in metrics[0]:
        mean, std = mean_and_std([by_name[name] for by_name in metrics])
        by_dataset[name] = {"mean": mean, "std": std}
    info = DETECTORS[runs[0].detector]
    return {
        "detector": runs[0].detector,
        "kind": info.kind,
        "training_images": runs[0].training_images,
        "parameters": runs[0].parameters,
        "seeds": len(runs),
        "fit_seconds": float(np.mean([run.fit_seconds for run in runs])),
        "images_per_second": float(np.mean([run.images_per_second for run in runs])),
        "datasets": by_dataset,
        "average_auroc": float(np.mean([numbers["mean"]["auroc"] for numbers in by_dataset.values()])),
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
    on_message: OnMessage,
) -> Run:
    transform = protocol_transform(settings.protocol)
    last_message = time.monotonic()

    def on_epoch(epoch: EpochLog, most: int) -> None:
        nonlocal last_message
        if time.monotonic() - last_message < SECONDS_BETWEEN_MESSAGES:
            return
        last_message = time.monotonic()
        on_message(f"{name}, seed {seed}: epoch {epoch.epoch} of at most {most}, loss {epoch.validation_loss:.4g}")

    if not isinstance(detector, Detector) and settings.reduced:
        training = _subset(training, DETECTORS[name].reduced_images)
    train = training.images
    if isinstance(detector, Detector):
        detector, seconds = _fitted_detector(detector, train, transform, checkpoint, fitted, on_epoch)
    else:
        start = time.perf_counter()
        labels = training.labels if DETECTORS[name].needs_labels else None
        detector.fit(train, labels, transform=transform, checkpoint=checkpoint, on_epoch=on_epoch)
        seconds = time.perf_counter() - start
    on_message(f"{name}, seed {seed}: fitted in {seconds:.0f} s, scoring")
    scores = {name: detector.score_samples(dataset, transform=transform) for name, dataset in images.items()}
    rate = _rate(detector, images["ID"], transform)
    return Run(name, seed, parameters_of(detector), len(train), seconds, rate, scores)


def _fitted_detector(
    detector: Detector,
    train: ImageDataset,
    transform: Transform | None,
    checkpoint: Path,
    fitted: dict[str, Any],
    on_epoch: OnEpoch,
) -> tuple[Detector, float]:
    """The fitted detector, and the seconds that fitting took. Scores that share a network are fitted once."""
    score = resolve(detector.preset, detector.score).score
    network = SCORES[score].shared_network
    key = repr({**detector.get_params(), "score": network or score})
    if key not in fitted:
        # Encode first: all detectors share the features, so the time of the first fit should not include encoding.
        detector.prepare_extractor().encode(train, transform=transform)
        start = time.perf_counter()
        detector.fit(train, transform=transform, checkpoint=checkpoint, on_epoch=on_epoch)
        fitted[key] = detector, time.perf_counter() - start
    done, seconds = fitted[key]
    return (done.with_settings(score=score) if network else done), seconds


def _rate(detector: Any, images: ImageDataset, transform: Any) -> float:
    """Images per second from files, without a feature store."""
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


def parameters_of(detector: Any) -> dict[str, Any]:
    """The parameters of a detector that its scores depend on."""
    return {k: v for k, v in detector.get_params().items() if k not in ("store", "workers", "device")}


def _unreadable(images: Mapping[str, ImageDataset], scores: Mapping[str, Array]) -> dict[str, dict[str, str]]:
    """By dataset and name, why the images without a score cannot be read."""
    without = {name: np.flatnonzero(np.isnan(scores[name])).tolist() for name in images}
    found = {name: unreadable_in(images[name].subset(positions)) for name, positions in without.items()}
    return {name: reasons for name, reasons in found.items() if reasons}


def _key(detector: Any, settings: CompareSettings, data: Mapping[str, str], name: str, labels: str) -> str:
    few = DETECTORS[name].reduced_images if settings.reduced else None
    parameters = parameters_of(detector)
    inputs = {**data, "labels": labels} if DETECTORS[name].needs_labels else dict(data)
    return key_of(name, code_of(detector), parameters, images_key(parameters), few, settings.protocol, inputs)


def code_of(detector: Any) -> str:
    """Digest of the code that decides a detector's scores."""
    modules = [type(detector).__module__]
    if isinstance(detector, Detector):
        scorer = SCORES[resolve(detector.preset, detector.score).score].__module__
        modules = ["dlsr.model", "dlsr.fitting", "dlsr.detector", "dlsr.fitted_detector", "dlsr.scorer_module", scorer]
        modules += ["dlsr.calibration.copies", "dlsr.calibration.groups"]
    return code_digest(*modules, "dlsr.calibration.split", "dlsr.calibration.conformal")


def images_key(parameters: Mapping[str, Any]) -> list[str]:
    """What features and pixels depend on besides the images and the parameters."""
    weights = parameters.get("weights")
    file = Path(weights) if weights else None
    digest = hashlib.sha256(file.read_bytes()).hexdigest() if file is not None and file.is_file() else ""
    return [digest, str(Z0_VERSION), pixels_version(choose_resizer("auto")), metadata.version("timm")]


def key_of(*inputs: Any) -> str:
    """A short digest of the inputs of a stored result and of the version of dlsr."""
    text = json.dumps([*inputs, metadata.version("dlsr")], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@dataclass(frozen=True)
class _Training:
    images: ImageDataset
    labels: NDArray[np.int64] | None


def _subset(training: _Training, limit: int | None) -> _Training:
    """At most `limit` training images, chosen at random, with their labels."""
    if limit is None or limit >= len(training.images):
        return training
    chosen = np.sort(np.random.default_rng(0).choice(len(training.images), limit, replace=False))
    labels = None if training.labels is None else training.labels[chosen]
    return _Training(training.images.subset(int(i) for i in chosen), labels)


def scored_images(task: Task, settings: CompareSettings) -> dict[str, ImageDataset]:
    """The images to score, by dataset; `ID` is the ID test dataset."""
    return {name: dataset.sample(settings.limit) for name, dataset in {"ID": task.test, **task.ood}.items()}


def read_scores(folder: Path, file: str) -> dict[str, Array]:
    """The scores of a finished run, by dataset.

    Raises:
        ArtifactError: if its file is missing or damaged.
    """
    run = read_run(folder / file)
    if run is None:
        raise ArtifactError(f"'{folder / file}' is missing or damaged; run the comparison again")
    return run.scores


def write_failures(folder: Path, task: Task, settings: CompareSettings, report: Mapping[str, Any], path: Path) -> None:
    """Write a contact sheet of the best detector's worst failures, see `dlsr.bench.failures`.

    Args:
        folder: with the finished runs.
        task: as given to `compare`.
        settings: as given to `compare`.
        report: as returned by `compare`.
        path: PNG to write; nothing is written if no detector could run.

    Raises:
        OutputError: if it cannot be written.
    """
    done = [row for row in report["rows"] if "why" not in row]
    if done:
        best = max(done, key=lambda row: float(row["average_auroc"]))
        save_failures(path, scored_images(task, settings), read_scores(folder, best["run_files"][0]), best["detector"])


def unreadable_in(images: ImageDataset) -> dict[str, str]:
    """Reasons by name, of the images that cannot be read."""
    found = {}
    for item in images.items:
        try:
            decode(item.read())
        except UNREADABLE as error:
            found[item.name] = reason_of(error)
    return found


def digest_of(images: ImageDataset) -> str:
    """SHA-256 over the bytes of all images in order; unreadable images count as empty."""
    digest = hashlib.sha256()
    for item in images.items:
        try:
            raw = item.read()
        except UNREADABLE:
            raw = b""
        digest.update(hashlib.sha256(raw if isinstance(raw, bytes) else np.asarray(raw).tobytes()).digest())
    return digest.hexdigest()


def write_run(path: Path, run: Run) -> None:
    """Write a finished run.

    Raises:
        OutputError: if it cannot be written.
    """
    about = {k: v for k, v in asdict(run).items() if k != "scores"}
    write_arrays(path, run.scores, {"run": json.dumps(about, default=str)})


def read_run(path: Path) -> Run | None:
    """A finished run; None if its file is missing or damaged."""
    try:
        header = path.read_bytes()
        length = int.from_bytes(header[:8], "little")
        about = json.loads(json.loads(header[8 : 8 + length])["__metadata__"]["run"])
        return Run(**about, scores=load_file(path))
    except (OSError, ValueError, KeyError, TypeError, SafetensorError):
        return None
