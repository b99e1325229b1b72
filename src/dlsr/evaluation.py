"""A fitted detector measured on ID and OOD images, by either protocol."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dlsr.artifact import installed_versions
from dlsr.calibration.metrics import Metrics, evaluate_scores
from dlsr.config import Frozen
from dlsr.detector import Detector
from dlsr.encoders import EncoderSpec
from dlsr.encoding.pipeline import Encoded, Progress
from dlsr.errors import SettingsError
from dlsr.images.sources import ImagesLike, open_images
from dlsr.images.transforms import MATCHED_SIZE, Protocol, protocol_transform

CONVENTION = (
    "larger score = more OOD; AUPR-OOD counts OOD as positive, AUPR-ID counts ID; FPR95 ID+: share of OOD accepted "
    "where 95 % of ID is accepted (the paper's); FPR95 OOD+: share of ID refused where 95 % of OOD is refused"
)


class DatasetReport(Frozen):
    """One OOD dataset: each metric's mean and standard deviation over seeds."""

    name: str
    images: int
    unreadable: dict[str, str]
    mean: dict[str, float]
    std: dict[str, float]


class Report(Frozen):
    """An evaluation. See `CONVENTION` for the metrics."""

    convention: str = CONVENTION
    protocol: Protocol
    score: str
    preset: str
    encoder: str
    encoder_spec: EncoderSpec
    """How images become features: stages, size, preprocessing, pooling, precision, source of the weights."""
    features: str
    """Hash of all that features depend on, with the weights themselves: equal for comparable evaluations."""
    seeds: tuple[int, ...]
    """Seeds of the noise with which the same model scored the same images."""
    id_images: int
    id_unreadable: dict[str, str]
    false_alarms: float
    """Share of the ID images called OOD, at the model's false-alarm rate, first seed."""
    false_alarm_rate: float
    datasets: tuple[DatasetReport, ...]
    average_auroc: float
    versions: dict[str, str]


@dataclass(frozen=True)
class Evaluation:
    """A report and the scores behind it (first seed), for pictures."""

    report: Report
    id_scores: NDArray[np.float64]
    ood_scores: dict[str, NDArray[np.float64]]


def evaluate(
    detector: Detector,
    id_images: ImagesLike,
    ood_images: Mapping[str, ImagesLike],
    *,
    protocol: Protocol = "native",
    seeds: int = 1,
    limit: int | None = None,
    matched_size: int = MATCHED_SIZE,
    progress: Callable[[str, int], Progress] | None = None,
) -> Evaluation:
    """Measure how well the scores of ID and OOD images separate.

    Args:
        detector: fitted.
        id_images: in-distribution images that the detector was not fitted to.
        ood_images: OOD datasets by name.
        protocol: see `protocol_transform`.
        seeds: number of noise seeds, from the detector's own upwards.
        limit: at most this many images of each dataset, at random.
        matched_size: side in pixels for the matched protocol.
        progress: makes a progress callback for a dataset's name and size.

    Raises:
        SettingsError: for an unknown protocol, or without an OOD dataset.
        NoImagesError: if a dataset has no readable image.
    """
    if not ood_images:
        raise SettingsError("give at least one OOD dataset")
    if seeds < 1:
        raise SettingsError(f"need at least one seed, got {seeds}")
    transform = protocol_transform(protocol, matched_size)

    def encoded(name: str, images: ImagesLike) -> Encoded:
        chosen = open_images(images).sample(limit)
        advance = progress(name, len(chosen)) if progress else None
        done = detector.extractor_.encode(chosen, transform=transform, progress=advance)
        done.check_readable(f"images of '{name}'")
        return done

    inside = encoded("ID", id_images)
    outside = {name: encoded(name, images) for name, images in ood_images.items()}
    first_seed = detector.settings_.seed
    used = tuple(range(first_seed, first_seed + seeds))
    id_scores: list[NDArray[np.float64]] = []
    ood_scores: dict[str, list[NDArray[np.float64]]] = {name: [] for name in outside}
    for seed in used:
        seeded = detector.with_settings(seed=seed)
        id_scores.append(seeded.score_features(inside.z0, inside.digests))
        for name, images in outside.items():
            ood_scores[name].append(seeded.score_features(images.z0, images.digests))
    datasets = []
    for name, images in outside.items():
        metrics = [evaluate_scores(i, o) for i, o in zip(id_scores, ood_scores[name], strict=True)]
        mean, std = mean_and_std(metrics)
        datasets.append(
            DatasetReport(name=name, images=len(images.z0), unreadable=images.unreadable, mean=mean, std=std)
        )
    encoder = detector.extractor_.encoder
    report = Report(
        protocol=protocol,
        score=detector.settings_.score,
        preset=detector.settings_.preset,
        encoder=encoder.spec.name,
        encoder_spec=encoder.spec,
        features=encoder.key,
        seeds=used,
        id_images=len(inside.z0),
        id_unreadable=inside.unreadable,
        false_alarms=float(np.mean(id_scores[0] > detector.threshold_)),
        false_alarm_rate=detector.false_alarm_rate,
        datasets=tuple(datasets),
        average_auroc=float(np.mean([dataset.mean["auroc"] for dataset in datasets])),
        versions=installed_versions(),
    )
    return Evaluation(report, id_scores[0], {name: scores[0] for name, scores in ood_scores.items()})


def mean_and_std(metrics: list[Metrics]) -> tuple[dict[str, float], dict[str, float]]:
    """Mean and (population) standard deviation of each metric."""
    rows = [metric.as_dict() for metric in metrics]
    names = list(rows[0])
    return (
        {name: float(np.mean([row[name] for row in rows])) for name in names},
        {name: float(np.std([row[name] for row in rows])) for name in names},
    )
