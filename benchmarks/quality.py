"""Detection quality on real datasets: CIFAR-10 against SVHN crops, DTD, MNIST and Tiny-ImageNet.

    python benchmarks/quality.py --data ../shared/data --output docs/quality.json

Features are those of the paper, spatial means, and are kept in the feature store, so a second run encodes nothing.
Writes a JSON file with all numbers, and a Markdown table beside it. If the number of images is limited, they are chosen
at random, with a fixed seed.
"""

import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from numpy.typing import NDArray
from PIL import Image

from dlsr import SCORES, Detector, evaluate_scores
from dlsr.artifact import installed_versions
from dlsr.bench.datasets import CIFAR_LIKE, tiny_imagenet_classes, without_cifar_like
from dlsr.calibration.split import split
from dlsr.cli.console import progress_bars
from dlsr.encoding.pipeline import Encoded
from dlsr.encoding.store import default_store_root
from dlsr.evaluation import mean_and_std
from dlsr.files import replacing
from dlsr.images.sources import ImageDataset, open_images
from dlsr.images.transforms import MATCHED_SIZE, Transform, protocol_transform
from dlsr.scorers.base import FitData, Scorer, Settings, new_scorer
from dlsr.training.data import Samples
from dlsr.training.loop import OnEpoch, Trainer

CHOSEN_ON = ("SVHN crops", "DTD")
"""The default score was designed on these OOD datasets; the others were not looked at before."""

PROTOCOLS: dict[str, Transform | None] = {
    "matched": protocol_transform("matched"),
    "native": None,
    # Size is matched, JPEG compression is not.
    "resized": Transform(
        f"resized-{MATCHED_SIZE}",
        lambda image: image.resize((MATCHED_SIZE, MATCHED_SIZE), Image.Resampling.BICUBIC),
    ),
}

Datasets = dict[str, ImageDataset]


def real_datasets(data: Path, limit: int | None) -> tuple[ImageDataset, Datasets]:
    """CIFAR-10 train, and `CIFAR-10 test` with the OOD datasets."""
    cifar = open_images(data / "cifar10.tar")
    tiny = open_images(data / "tiny_imagenet_val.tar")
    classes = tiny_imagenet_classes(data / "tiny_imagenet_val.tar", tiny)
    datasets = {
        "CIFAR-10 test": matching(cifar, "/test/"),
        "SVHN crops": open_images(data / "svhn_crops.tar"),
        "DTD": open_images(data / "dtd_5classes.tar"),
        "MNIST": open_images(data / "mnist_test.tar"),
        "Tiny-ImageNet": without_cifar_like(tiny, classes)[0],
        "Tiny-ImageNet, all": tiny,
    }
    return matching(cifar, "/train/").sample(limit), {name: images.sample(limit) for name, images in datasets.items()}


def matching(images: ImageDataset, part: str) -> ImageDataset:
    return ImageDataset([item for item in images.items if part in item.name])


def matched_features(
    data: Path, store: Path | None, test_limit: int
) -> tuple[tuple[int, ...], Encoded, dict[str, Encoded]]:
    """Channels, features of CIFAR-10 train, and of at most `test_limit` images of each other dataset, matched."""
    train, datasets = real_datasets(data, None)
    extractor = Detector(pooling="mean", store=store or default_store_root()).prepare_extractor()
    with progress_bars(quiet=False) as bars:
        channels = extractor.encoder.channels
        training = extractor.encode(train, progress=bars.images("CIFAR-10 train", len(train)))
        encoded = {
            name: extractor.encode(
                images.sample(test_limit),
                transform=PROTOCOLS["matched"],
                progress=bars.images(name, min(test_limit, len(images))),
            )
            for name, images in datasets.items()
            if name != "Tiny-ImageNet, all"
        }
    return channels, training, encoded


def fit_data(settings: Settings, channels: tuple[int, ...], encoded: Encoded) -> FitData:
    """Features of ID images as a fit splits them, without the calibration part."""
    parts = split(np.arange(len(encoded.z0)), 0.05, settings.seed)
    return FitData(
        settings,
        channels,
        Samples(torch.from_numpy(encoded.z0[parts.training])),
        torch.arange(len(parts.training)),
        torch.from_numpy(encoded.z0[parts.validation]),
        encoded.digests[parts.validation],
    )


def fitted_scorer(data: FitData, on_epoch: OnEpoch | None = None) -> Scorer:
    """The score of the data's settings, fitted to it."""
    scorer = new_scorer(data.settings, data.channels)
    scorer.fit(data, Trainer(data.settings.seed, on_epoch=on_epoch))
    return scorer


def aurocs(scores: dict[str, NDArray[np.float64]]) -> dict[str, float]:
    """AUROC of each OOD dataset against CIFAR-10 test."""
    inside = scores["CIFAR-10 test"]
    return {name: evaluate_scores(inside, outside).auroc for name, outside in scores.items() if outside is not inside}


def metrics_of(detector: Detector, encoded: dict[str, Encoded]) -> Iterator[tuple[str, Any]]:
    """Metrics on each OOD dataset, for the detector's score and the other scores of its network."""
    own = detector.settings_.score
    network = SCORES[own].shared_network
    for score in [
        name for name, scorer in SCORES.items() if name == own or (network and scorer.shared_network == network)
    ]:
        other = detector.with_settings(score=score)
        by_dataset = {name: other.score_features(images.z0, images.digests) for name, images in encoded.items()}
        inside = by_dataset.pop("CIFAR-10 test")
        yield score, {name: evaluate_scores(inside, outside) for name, outside in by_dataset.items()}


def main(
    data: Annotated[Path, typer.Option(help="Folder with the tars of shared/data.")],
    output: Annotated[Path, typer.Option(help="JSON file to write, with a Markdown table beside it.")],
    encoder: str = "efficientnet_lite0",
    detectors: Annotated[
        str, typer.Option(help="Names among residual, mahalanobis, knn and paper, separated by commas.")
    ] = "residual,mahalanobis,knn",
    seeds: int = 3,
    paper_epochs: Annotated[int, typer.Option(help="Epochs of the preset paper.")] = 2,
    limit: Annotated[
        int | None, typer.Option(help="At most this many images of each dataset, chosen at random.")
    ] = None,
    test_limit: Annotated[
        int | None, typer.Option(help="At most this many test images of each dataset, chosen at random.")
    ] = None,
    store: Path | None = None,
    protocols: str = "matched,native,resized",
) -> None:
    train, datasets = real_datasets(data, limit)
    datasets = {name: images.sample(test_limit) for name, images in datasets.items()}
    extractor = Detector(encoder, pooling="mean", store=store or default_store_root()).prepare_extractor()
    reports: list[dict[str, Any]] = []
    with progress_bars(quiet=False) as bars:
        channels = extractor.encoder.channels
        training = extractor.encode(train, progress=bars.images("CIFAR-10 train", len(train)))
        encoded = {
            protocol: {
                name: extractor.encode(
                    images,
                    transform=transform,
                    progress=bars.images(f"{name}, {protocol}", len(images)),
                )
                for name, images in datasets.items()
            }
            for protocol, transform in PROTOCOLS.items()
            if protocol in protocols.split(",")
        }
    for kind in detectors.split(","):
        found: dict[tuple[str, str], list[Any]] = {}
        seconds = []
        for seed in range(1 if kind == "paper" else seeds):
            detector = {
                "residual": Detector(score="residual", seed=seed),
                "mahalanobis": Detector(score="mahalanobis", seed=seed),
                "knn": Detector(score="knn", seed=seed),
                "paper": Detector(preset="paper", epochs=paper_epochs, seed=seed),
            }[kind]
            start = time.perf_counter()
            detector.fit_features(training.z0, channels, digests=training.digests)
            seconds.append(time.perf_counter() - start)
            print(f"{kind}, seed {seed}: fitted in {seconds[-1]:.0f} s", file=sys.stderr, flush=True)
            for protocol, features in encoded.items():
                for score, metrics in metrics_of(detector, features):
                    found.setdefault((protocol, score), []).append(metrics)
        for (protocol, score), runs in found.items():
            by_dataset = {name: mean_and_std([run[name] for run in runs]) for name in runs[0]}
            reports.append(
                {
                    "detector": kind,
                    "score": score,
                    "protocol": protocol,
                    "seeds": len(runs),
                    "epochs": len(detector.fit_summary_.log),
                    "fit_seconds": seconds,
                    "datasets": {name: {"mean": mean, "std": std} for name, (mean, std) in by_dataset.items()},
                }
            )
            average = np.mean([by_dataset[name][0]["auroc"] for name in by_dataset if name != "Tiny-ImageNet, all"])
            reports[-1]["average_auroc"] = float(average)
    content = {
        "command": "python benchmarks/quality.py " + " ".join(sys.argv[1:]),
        "encoder": encoder,
        "training_images": len(training.z0),
        "images": {name: len(images) for name, images in datasets.items()},
        "cifar_like_classes_removed": CIFAR_LIKE,
        "chosen_on": CHOSEN_ON,
        "versions": installed_versions(),
        "rows": reports,
    }
    write_report(output, content, markdown(content))


def write_report(output: Path, content: dict[str, Any], table: str) -> None:
    """Write JSON to `output` and its table beside it, and print the table."""
    with replacing(output) as temporary:
        temporary.write_text(json.dumps(content, indent=1) + "\n")
    with replacing(output.with_suffix(".md")) as temporary:
        temporary.write_text(table)
    print(table)


def markdown(content: dict[str, Any]) -> str:
    """The AUROC and FPR95 tables, one for each protocol."""
    lines = [f"`{content['command']}`", ""]
    names = [name for name in content["images"] if name != "CIFAR-10 test"]
    for protocol in PROTOCOLS:
        chosen = [row for row in content["rows"] if row["protocol"] == protocol]
        for key, title in (("auroc", "AUROC"), ("fpr95_id_positive", "FPR95, ID positive")):
            if chosen:
                lines += [f"{title} in %, protocol {protocol}:", ""]
                lines += [
                    f"| detector | {' | '.join(names)} | average of the first four |",
                    "|---" * (len(names) + 2) + "|",
                ]
            for row in chosen:
                numbers = [row["datasets"][name] for name in names]
                cells = [f"{100 * one['mean'][key]:.2f}" for one in numbers]
                if row["seeds"] > 1:
                    cells = [f"{c} ± {100 * one['std'][key]:.2f}" for c, one in zip(cells, numbers, strict=True)]
                average = np.mean([one["mean"][key] for one in numbers[:4]])
                trained = f", {row['epochs']} epochs" if row["epochs"] else ""
                label = f"{row['detector']} ({row['score']}{trained})"
                lines.append(f"| {label} | {' | '.join(cells)} | {100 * average:.2f} |")
            lines.append("")
    return "\n".join(lines)


if __name__ == "__main__":
    typer.run(main)
