"""Detectors on many tasks: fitted and measured on features that are encoded once; an interrupted suite resumes."""

import json
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dlsr.artifact import installed_versions
from dlsr.baselines import DETECTORS, make_detector
from dlsr.bench.compare import TIMED_IMAGES, OnMessage, code_of, digest_of, images_key, key_of
from dlsr.bench.inputs import Encoders, Inputs, TaskInputs, extractor_of
from dlsr.bench.summary import RATES, summarised
from dlsr.bench.tasks import SuiteTask, draw
from dlsr.calibration.metrics import evaluate_scores
from dlsr.calibration.split import split
from dlsr.detector import Detector
from dlsr.errors import DlsrError, SettingsError, TooFewImagesError, one_line
from dlsr.files import write_json
from dlsr.images.transforms import protocol_transform
from dlsr.model import Calibration, calibrated_on

Array = NDArray[np.float64]

SCHEMA = 3
"""Raise it with every change to this file that changes results, or what is kept of them."""
CALIBRATED_FOR = 0.05
"""Rate for which calibration images are held out, unless the detector has one."""
REFERENCE = "mahalanobis"
"""Differences are to this detector, if it is compared."""
WARM_UP = 64
"""Vectors scored before the time is taken."""
NOT_SETTINGS = ("seed", "store", "workers", "thumbnails")
"""Parameters that the suite itself sets, or that change nothing."""


@dataclass(frozen=True)
class SuiteSettings:
    """What is compared, and how."""

    detectors: Mapping[str, Mapping[str, Any]]
    """By name: `detector`, a name of the registry, and its settings."""
    seeds: int = 1
    """Seeds of the detectors, and of the choice of training images and intruders."""
    train_limit: int | None = None
    """At most this many training images."""
    contamination: float = 0.0
    """Share of the images that are fitted to which are OOD images of the task."""
    encoder: str | None = None
    """Instead of each detector's own, as are `weights` and `pooling`."""
    weights: str | None = None
    pooling: str | None = None


def chosen_detectors(names: Sequence[str], defined: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Detectors by name: those that a task file defines, or those of the registry that need no labels.

    Args:
        names: of both; all that are defined if empty.
        defined: the section `[detectors]` of a task file.

    Raises:
        SettingsError: for an unknown name.
    """
    known = dict(defined) | {
        name: {"detector": name} for name, info in DETECTORS.items() if not info.needs_labels and name not in defined
    }
    if unknown := [name for name in names if name not in known]:
        raise SettingsError(f"unknown detector '{unknown[0]}'; choose among {', '.join(known)}")
    return {name: dict(known[name]) for name in names or defined}


def run_suite(
    tasks: Sequence[SuiteTask],
    settings: SuiteSettings,
    folder: Path,
    *,
    store: Path | None = None,
    on_message: OnMessage = lambda _: None,
) -> dict[str, Any]:
    """Fit and measure every detector on every task with every seed. Finished runs in `folder` are not repeated.

    Args:
        tasks: the images.
        settings: what is compared, and how.
        folder: for finished runs, one JSON file each.
        store: folder of the feature store.
        on_message: callback with a line on the progress.

    Returns:
        A report for JSON: `tasks`, `detectors`, `encoders`, and `rows` with the runs of each detector on each task, or
        the reason, `why`, for which it cannot run; `summary` as from `dlsr.bench.summary.summarised`.

    Raises:
        SettingsError: for detectors that do not exist or need labels, or settings that they do not have.
    """
    check_detectors(settings)
    runner = _Runner(settings, folder, Encoders(store), on_message)
    rows: list[dict[str, Any]] = []
    about = []
    for task in tasks:
        data = {name: digest_of(images) for name, images in task.datasets().items()}
        inputs = TaskInputs(task, runner.encoders)
        rows += [runner.row(name, inputs, data) for name in settings.detectors]
        about.append(
            {
                "name": task.name,
                "half": task.half,
                "protocol": task.protocol,
                "images": {name: len(images) for name, images in task.datasets().items()},
                "unreadable": runner.unreadable(inputs, data),
                "sha256": data,
            }
        )
    names = list(dict.fromkeys(row["detector"] for row in rows if "why" not in row)) or list(settings.detectors)
    report = {
        "settings": asdict(settings),
        "reference": REFERENCE if REFERENCE in names else names[0],
        "tasks": about,
        "encoders": runner.costs,
        "rows": rows,
        "versions": installed_versions(),
    }
    return report | {"summary": summarised(report)}


def check_detectors(settings: SuiteSettings) -> None:
    """Raise SettingsError for detectors that do not exist or need labels, or settings that they do not have."""
    for name, given in settings.detectors.items():
        kind = str(given.get("detector"))
        if kind not in DETECTORS:
            raise SettingsError(
                f"detector '{name}', key detector: there is no '{kind}'; choose among {', '.join(DETECTORS)}"
            )
        if DETECTORS[kind].needs_labels:
            raise SettingsError(f"detector '{name}': '{kind}' needs labels, which tasks do not have; leave it out")
        if own := [key for key in NOT_SETTINGS if key in given]:
            raise SettingsError(f"detector '{name}', key {own[0]}: the suite sets it; leave it out")
        try:
            extractor_of(make(name, settings, 0))
        except (SettingsError, TypeError) as error:
            raise SettingsError(f"detector '{name}': {one_line(error)}; change its settings") from error
        except DlsrError:
            continue  # such as a missing extra: the report gives the reason, and the others run


def make(name: str, settings: SuiteSettings, seed: int) -> Any:
    """A detector of the suite, not fitted."""
    given = {key: value for key, value in settings.detectors[name].items() if key != "detector"}
    detector = make_detector(settings.detectors[name]["detector"], seed=seed, **given)
    common = {"encoder": settings.encoder, "weights": settings.weights, "pooling": settings.pooling}
    known = detector.get_params()
    detector.set_params(**{k: v for k, v in common.items() if v is not None and k in known})
    return detector


@dataclass
class _Runner:
    settings: SuiteSettings
    folder: Path
    encoders: Encoders
    on_message: OnMessage
    costs: dict[str, dict[str, Any]] = field(default_factory=dict)
    """By the label of an encoder with its pooling."""

    def row(self, name: str, inputs: TaskInputs, data: Mapping[str, str]) -> dict[str, Any]:
        """The runs of a detector on a task with every seed; or the reason why there are none."""
        task = inputs.task
        row: dict[str, Any] = {"task": task.name, "detector": name}
        try:
            encoder = self._encoder(make(name, self.settings, 0), task, data)
            runs = [self._run(name, seed, inputs, data) for seed in range(self.settings.seeds)]
        # The libraries of rivals raise what they like on data that they cannot fit.
        except Exception as error:
            self.on_message(f"{task.name}, {name} cannot run: {one_line(error)}")
            return row | {"why": one_line(error)}
        return row | {"encoder": encoder, "runs": runs}

    def unreadable(self, inputs: TaskInputs, data: Mapping[str, str]) -> dict[str, Any]:
        """As `TaskInputs.unreadable`, kept for the next time."""
        names = {name: [item.name for item in images.items] for name, images in inputs.task.datasets().items()}
        heif = metadata.version("pillow-heif") if find_spec("pillow_heif") else None
        path = self.folder / f"unreadable-{key_of(dict(data), names, images_key({}), heif)}.json"
        found = _read(path)
        if found is None:
            found = inputs.unreadable()
            write_json(path, found)
        return found

    def _run(self, name: str, seed: int, inputs: TaskInputs, data: Mapping[str, str]) -> dict[str, Any]:
        task, limit, contamination = inputs.task, self.settings.train_limit, self.settings.contamination
        detector = make(name, self.settings, seed)
        parameters = {k: v for k, v in detector.get_params().items() if k not in NOT_SETTINGS}
        key = key_of(
            "suite", SCHEMA, code_of(detector), parameters, images_key(parameters), dict(data), task.protocol, limit,
            contamination, seed,
        )  # fmt: skip
        path = self.folder / f"{_file_name(task.name)}-{_file_name(name)}-{seed}-{key}.json"
        run = _read(path)
        if run is None:
            drawn = inputs.drawn(detector, draw(task, limit, contamination, seed))
            run = {"seed": seed, **measure(detector, drawn), "parameters": parameters}
            write_json(path, json.loads(json.dumps(run, default=str)))
            auroc = 100 * np.mean([metrics["auroc"] for metrics in run["datasets"].values()])
            self.on_message(
                f"{task.name}, {name}, seed {seed}: AUROC {auroc:.2f}, fitted in {run['fit_seconds']:.1f} s"
            )
        return run

    def _encoder(self, detector: Any, task: SuiteTask, data: Mapping[str, str]) -> str | None:
        """The label of a detector's encoder and pooling; measures what it costs when it is first used."""
        extractor = extractor_of(detector)
        if extractor is None:
            return None
        spec = extractor.spec
        label = f"{spec.name}, {spec.pooling if spec.output == 'stages' else spec.output}"
        label += "" if spec.precision == "float32" else f", {spec.precision}"
        usual, given = Detector().get_params(), detector.get_params()
        changed = {name for name in ("stages", "decoding", "resizer") if given.get(name) not in (None, usual[name])}
        label += f", stages {', '.join(map(str, spec.stages))}" if "stages" in changed else ""
        label += "".join(f", {name} {given[name]}" for name in ("decoding", "resizer") if name in changed)
        if label not in self.costs:
            key = key_of("encoder", spec.model_dump(), images_key({"weights": self.settings.weights}), data["train"])
            path = self.folder / f"encoder-{key}.json"
            cost = _read(path)
            if cost is None:
                self.on_message(f"{label}: measuring the time to encode {TIMED_IMAGES} images")
                few = task.train.sample(TIMED_IMAGES)
                transform = protocol_transform(task.protocol)
                timed = replace(extractor, store=None).with_ranges(task.train, 0)
                timed.encode(few.subset(range(min(8, len(few)))), transform=transform)
                start = time.perf_counter()
                encoded = timed.encode(few, transform=transform)
                seconds = time.perf_counter() - start
                cost = {
                    "images_of": task.name,
                    "c": timed.encoder.c,
                    "seconds_per_1000": 1000 * seconds / len(encoded.names),
                }
                write_json(path, cost)
            self.costs[label] = cost
        return label


def measure(detector: Any, inputs: Mapping[str, Inputs]) -> dict[str, Any]:
    """Fit a detector to `train`, and measure it on `ID` and the OOD datasets.

    A `Detector` holds out calibration images itself. From the training images of the others the same ones are held out.

    Raises:
        DlsrError: if the detector cannot be fitted.
    """
    train, tests = inputs["train"], {name: part for name, part in inputs.items() if name != "train"}
    parameters = detector.get_params()
    parts = split(np.arange(len(train)), parameters.get("false_alarm_rate", CALIBRATED_FOR), parameters["seed"])
    fitted_to = (
        train if isinstance(detector, Detector) else train.take(np.concatenate([parts.training, parts.validation]))
    )
    start = time.perf_counter()
    fitted_to.fit(detector)
    fitted = time.perf_counter() - start
    tests["ID"].take(np.arange(min(WARM_UP, len(tests["ID"])))).score(detector)
    start = time.perf_counter()
    scores = {name: part.score(detector) for name, part in tests.items()}
    scored = time.perf_counter() - start
    confidence = None
    if isinstance(detector, Detector):
        calibration, confidence = detector.calibration_, detector.confidence
    else:
        held_out = train.take(parts.calibration).score(detector)
        calibration = calibrated_on(held_out, held_out[:, None], np.arange(len(held_out)))
    inside = scores.pop("ID")
    return {
        "training_images": len(train),
        "calibration_images": len(calibration.scores),
        "fit_seconds": fitted,
        "scoring_seconds_per_1000": 1000 * scored / sum(len(part) for part in tests.values()),
        "false_alarms": {f"{rate:g}": _false_alarms(inside, calibration, rate, confidence) for rate in RATES},
        "datasets": {name: evaluate_scores(inside, outside).as_dict() for name, outside in scores.items()},
    }


def _false_alarms(inside: Array, calibration: Calibration, rate: float, confidence: float | None) -> float | None:
    """Share of ID test images called OOD at a promised rate; None if there are too few images to promise it."""
    try:
        calibration.check_size(rate, confidence)
    except TooFewImagesError:
        return None
    return float(np.mean(calibration.p_values(inside, confidence) <= rate + 1e-12))


def _file_name(name: str) -> str:
    return re.sub(r"[^\w.+-]+", "_", name)


def _read(path: Path) -> dict[str, Any] | None:
    """A finished result; None if its file is missing or damaged."""
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content
