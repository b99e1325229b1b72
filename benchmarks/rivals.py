"""The rivals on small grey images, as their own papers measured them, beside the numbers that these print.

    python benchmarks/rivals.py --data ../shared/data --work rivals-work --output docs/rivals.json

Tasks and settings are in `rivals.toml` beside this file; `--tasks` takes another file: `rivals-cifar10.toml` has
CIFAR-10 as in the large table of docs/results.md. `--only TASK/DETECTOR,..` runs some of them; a run that is finished
is not repeated, and training that was interrupted resumes. After a change of a loss or a network's code, delete the
checkpoints in `--work`, which do not depend on it. The output is a JSON file with a Markdown table beside it;
rows of an earlier output stay in it unless they are run again, or their settings have changed. Training takes hours;
two processes with `OMP_NUM_THREADS=1` and each a share of `--only` use two cores best. On Linux set
`MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=17179869184` for training on a CPU, or the C library gets the memory of each
large tensor from the system anew.

Classifiers that were trained are also given to pytorch-ood, whole, and measured by it on the same images: by the same
score, and DiffGuard's by its energy, which DiffGuard's gain is over.
"""

import io
import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from dlsr import evaluate_scores
from dlsr.artifact import installed_versions
from dlsr.baselines import DETECTORS, make_detector
from dlsr.baselines.base import Baseline
from dlsr.baselines.classifier import TrainedClassifier
from dlsr.baselines.diffguard import DiffGuard
from dlsr.baselines.networks import SmallResNet
from dlsr.bench.compare import code_of, images_key, key_of, parameters_of
from dlsr.bench.datasets import labels_of
from dlsr.bench.tasks import SuiteTask, TaskOpener, read_suite
from dlsr.files import write_json
from dlsr.images.sources import ImageDataset
from dlsr.images.transforms import Transform, protocol_transform
from dlsr.training.log import EpochLog
from quality import write_report

Data = Annotated[Path, typer.Option(help="Folder with the tars of shared/data.")]
Trained = Annotated[Path, typer.Option(help="Folder with the checkpoints of rivals.py.")]

TASKS = Path(__file__).with_suffix(".toml")
EPOCH = 27_000
"""Images in an epoch of a task file: a task with fewer training images gets more epochs, and as many steps."""


@dataclass(frozen=True)
class Printed:
    """A number that a paper prints."""

    auroc: float
    source: str


PRINTED: dict[tuple[str, str], Printed] = {
    ("fashion-mnist", "glow"): Printed(0.998, "Serrà et al. 2020, S with Glow and FLIF (1)"),
    ("fashion-mnist", "pixelcnn++"): Printed(0.967, "Serrà et al. 2020, S with PixelCNN++ and FLIF (1)"),
    ("fashion-mnist", "vae"): Printed(0.99, "Xiao et al. 2020, as LPath quotes it (2)"),
    ("fashion-mnist", "ddpm"): Printed(0.97, "Graham et al. 2023, as LPath quotes it (2)"),
    ("fashion-mnist", "lmd"): Printed(0.99, "Liu et al. 2023, as LPath quotes it (2)"),
    ("mnist", "lmd"): Printed(1.0, "Liu et al. 2023, as LPath quotes it (2)"),
}
TABLES: dict[tuple[str, str], dict[str, float]] = {
    ("cifar10", "glow"): {"svhn": 0.883, "mnist": 0.858},
    ("cifar10", "pixelcnn++"): {"svhn": 0.737, "mnist": 0.967},
    ("cifar10", "vae"): {"svhn": 0.959, "mnist": 0.999},
    ("cifar10", "ddpm"): {"svhn": 0.973, "mnist": 0.832},
    ("cifar10", "lmd"): {"svhn": 0.992},
    ("cifar10", "diffguard"): {"tiny-imagenet": 0.9188},
    ("cifar10", "simclr+mahalanobis"): {"svhn": 0.978, "textures": 0.7647},
    ("cifar10", "simclr+knn"): {"svhn": 0.924, "textures": 0.9724},
    ("cifar10", "msp+trained"): {"svhn": 0.9453, "textures": 0.9593},
    ("cifar10", "energy+trained"): {"svhn": 0.9679, "textures": 0.963},
    ("cifar10", "dice+trained"): {"svhn": 0.9853, "textures": 0.9768},
    ("cifar10", "ash-s+trained"): {"svhn": 0.9801, "textures": 0.9701},
}
"""Numbers by OOD dataset that the paper prints of its rivals: tables 1, 3, 9 (`diffguard`) and 10 (`lmd`)."""
NOTES = """\
1. From memory: the tables of this paper could not be opened where this was written.
2. Table 1 of "Inference, Fast and Slow: Reinterpreting VAEs for OOD Detection" (2024), which prints two decimals. For
   CIFAR-10 against SVHN it has 88 for vae, 98 for ddpm and 99 for lmd.
3. pytorch-ood's AUROC for the network that we trained, on the same images; and the network's accuracy on the ID ones.
   For diffguard, the AUROC of its classifier's energy. In its paper, table 1, the means over CIFAR-100 and
   Tiny-ImageNet with CIFAR-10 as ID are 87.41 for energy, 90.55 for the nearest neighbours in the classifier's
   features, 90.78 for DiffNB, whose diffusion model it uses, and 90.88 for itself.

In brackets beside an OOD dataset: what tables 1, 3, 9 and 10 of the paper print of this rival, with CIFAR-10 as ID
and networks of full size, in its own protocol. The classifiers there are EfficientNet-B4, pretrained on ImageNet.
Detectors without a number have none that we found, for this pair or a like one.
"""


def detector_of(task: SuiteTask, given: dict[str, Any]) -> Any:
    """A detector with the settings of a task file, for the number of images of a task."""
    settings = dict(given)
    kind = settings.pop("detector")
    settings["epochs"] = max(1, round(settings["epochs"] * EPOCH / len(task.train)))
    return make_detector(kind, **settings)


def train(detector: Any, task: SuiteTask, name: str, given: dict[str, Any], folder: Path) -> tuple[int, float]:
    """Train a detector, resuming from the checkpoint in a folder, and return its epochs and their seconds.

    An epoch's time is kept with its loss, which tells it from that of another training with other settings.
    """
    family = getattr(detector, "family", None) or name
    times = folder / f"{family}.epochs"
    last = time.perf_counter()

    def on_epoch(entry: EpochLog, most: int) -> None:
        nonlocal last
        now = time.perf_counter()
        with times.open("a", encoding="utf-8") as file:
            file.write(f"{entry.epoch} {entry.validation_loss} {now - last:.1f}\n")
        say(f"{task.name}, {name}: epoch {entry.epoch} of {most}, {entry.validation_loss:.4g}, {now - last:.0f} s")
        last = now

    labels = labels_of(task.train) if DETECTORS[given["detector"]].needs_labels else None
    checkpoint = folder / f"{family}.checkpoint"
    detector.fit(
        task.train, labels, transform=protocol_transform(task.protocol), checkpoint=checkpoint, on_epoch=on_epoch
    )
    log = detector.log_ if isinstance(detector, Baseline) else detector.fit_summary_.log
    lines = (line.split() for line in times.read_text(encoding="utf-8").splitlines())
    seconds = {(int(epoch), float(loss)): float(time) for epoch, loss, time in lines}
    return len(log), sum(seconds[entry.epoch, entry.validation_loss] for entry in log)


def trained(tasks: Path, name: str, data: Path, work: Path) -> tuple[SuiteTask, Any]:
    """The first task of a file, and a detector of it that is trained, or resumed, as `run` does."""
    suite = read_suite(tasks)
    task, given = TaskOpener(suite, data).open(suite.tasks[0]), suite.detectors[name]
    detector = detector_of(task, given)
    train(detector, task, name, given, work / task.name)
    return task, detector


def run(task: SuiteTask, name: str, given: dict[str, Any], work: Path) -> dict[str, Any]:
    """Train a detector and measure it; a finished run is read."""
    detector = detector_of(task, given)
    folder = work / task.name
    folder.mkdir(parents=True, exist_ok=True)
    parameters = parameters_of(detector)
    key = key_of(parameters, images_key(parameters), code_of(detector), task.protocol, names_in(task))
    path = folder / f"{name}-{key}.json"
    if path.exists():
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return found | {"settings": given}
    epochs, seconds = train(detector, task, name, given, folder)
    transform = protocol_transform(task.protocol)
    start = time.perf_counter()
    inside = detector.score_samples(task.test, transform=transform)
    outside = {ood: detector.score_samples(images, transform=transform) for ood, images in task.ood.items()}
    datasets = {ood: evaluate_scores(inside, scores).as_dict() for ood, scores in outside.items()}
    auroc = float(np.mean([metrics["auroc"] for metrics in datasets.values()]))
    result = {
        "task": task.name,
        "ood": ", ".join(task.ood),
        "detector": name,
        "epochs": epochs,
        "settings": given,
        "training_images": len(task.train),
        "test_images": len(inside) + sum(map(len, outside.values())),
        "training_seconds": seconds,
        "scoring_seconds": time.perf_counter() - start,
        "threads": torch.get_num_threads(),
        "auroc": auroc,
        "datasets": datasets,
        **(pytorch_ood_run(detector, task) if isinstance(detector, TrainedClassifier | DiffGuard) else {}),
    }
    write_json(path, result)
    say(f"{task.name}, {name}: AUROC {100 * auroc:.2f}")
    return result


def names_in(task: SuiteTask) -> list[list[str]]:
    """Names of the images of each dataset."""
    return [[item.name for item in images.items] for images in (task.train, task.test, *task.ood.values())]


def classifier_of(detector: TrainedClassifier | DiffGuard) -> SmallResNet:
    """The network that the detector trained on the labels."""
    network = detector.network_["classifier"] if isinstance(detector, DiffGuard) else detector.network_
    assert isinstance(network, SmallResNet)
    return network


def pytorch_ood_run(detector: TrainedClassifier | DiffGuard, task: SuiteTask) -> dict[str, float]:
    """pytorch-ood's AUROC for a trained network, the mean over OOD datasets, and its accuracy.

    Images are decoded, and scored, without dlsr's detectors.
    """
    from pytorch_ood.metrics import OODMetrics  # noqa: PLC0415 - an optional extra

    theirs = pytorch_ood_of(detector)
    transform = protocol_transform(task.protocol)

    def batches(images: ImageDataset, labels: Any) -> DataLoader[tuple[Tensor, ...]]:
        return loader(images, labels, transform, "L" if detector.grey else "RGB")

    theirs.fit(batches(task.train, labels_of(task.train)))
    found = []
    for outside in task.ood.values():
        metrics = OODMetrics()
        with torch.no_grad():
            for images, labels in [(task.test, labels_of(task.test)), (outside, [-1] * len(outside))]:
                for x, y in batches(images, labels):
                    metrics.update(theirs(x), y, classifier_of(detector)(x).argmax(dim=1))
        found.append(metrics.compute())
    auroc = float(np.mean([each["AUROC"] for each in found]))
    return {"pytorch_ood_auroc": auroc, "accuracy": found[0]["ACC"]}


def pytorch_ood_of(detector: TrainedClassifier | DiffGuard) -> Any:
    """pytorch-ood's detector of the same network that takes images in `[-1, 1]`, not fitted.

    It scores as ours does, or by energy for DiffGuard.
    """
    from pytorch_ood.detector import ASH, DICE, EnergyBased, MaxSoftmax  # noqa: PLC0415 - an optional extra

    network = classifier_of(detector)

    def backbone(images: Tensor) -> Tensor:
        return network.embed(images)[:, :, None, None]

    def head(maps: Tensor) -> Tensor:
        logits: Tensor = network.head(maps.flatten(1))
        return logits

    return {
        "msp+trained": lambda: MaxSoftmax(network),
        "energy+trained": lambda: EnergyBased(network),
        "dice+trained": lambda: DICE(network.embed, network.head.weight, network.head.bias, p=0.9),
        "ash-s+trained": lambda: ASH(backbone, head, variant="ash-s", percentile=0.65),
        "diffguard": lambda: EnergyBased(network),
    }[detector.name]()


def loader(images: ImageDataset, labels: Any, transform: Transform | None, mode: str) -> DataLoader[tuple[Tensor, ...]]:
    """Batches of small images in `[-1, 1]`, at the size that they have, and their labels."""

    def pixels(encoded: Any) -> Tensor:
        image: Image.Image = Image.open(io.BytesIO(encoded)).convert("RGB")
        array = np.array((transform.apply(image) if transform else image).convert(mode))
        return torch.from_numpy(array).reshape(*array.shape[:2], -1).permute(2, 0, 1)

    stacked = torch.stack([pixels(item.read()) for item in images.items])
    return DataLoader(TensorDataset(stacked.float() / 255 * 2 - 1, torch.as_tensor(labels)), batch_size=250)


def scored_at_once(detector: Any, images: ImageDataset, transform: Transform | None) -> list[Tensor]:
    """Images as a detector on pixels scores them: uint8, shape `(n, C, H, W)`, some in each part."""
    batches = loader(images, [0] * len(images), transform, "L" if detector.grey else "RGB")
    pixels = torch.cat([batch for batch, _ in batches])
    return list(torch.split(((pixels + 1) * 127.5).round().byte(), detector.scoring_batch))


def reported(output: Path | None) -> dict[tuple[str, str], dict[str, Any]]:
    """The rows of an earlier report, by task and detector."""
    if output is None or not output.exists():
        return {}
    return {(row["task"], row["detector"]): row for row in json.loads(output.read_text(encoding="utf-8"))["rows"]}


def say(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


def markdown(content: dict[str, Any]) -> str:
    lines = [
        f"`{content['command']}`",
        "",
        "AUROC in %, averaged over the OOD datasets; each has at most as many test images as ID. Minutes are of one",
        "process with one thread, on a machine that had other work, too: upper bounds.",
        "",
        "| ID | OOD | detector | printed | ours | share | pytorch-ood (3) | accuracy (3) | training images | epochs "
        "| minutes | test images | settings | source |",
        "|---" * 14 + "|",
    ]
    for row in content["rows"]:
        printed = PRINTED.get((row["task"], row["detector"]))
        number, share, source = "", "", ""
        if printed:
            number, source = f"{100 * printed.auroc:.4g}", printed.source
            share = f"{row['auroc'] / printed.auroc:.3f}"
        settings = ", ".join(
            f"{key}={value}" for key, value in row["settings"].items() if key not in ("detector", "epochs", "grey")
        )
        ood = row["ood"]
        if len(row.get("datasets", ())) > 1:
            theirs = TABLES.get((row["task"], row["detector"]), {})
            ood = ", ".join(
                f"{name} {100 * metrics['auroc']:.2f}" + (f" ({100 * theirs[name]:.4g})" if name in theirs else "")
                for name, metrics in row["datasets"].items()
            )
        cells = [
            row["task"], ood, row["detector"], number, f"{100 * row['auroc']:.2f}", share,
            *(f"{100 * row[key]:.2f}" if key in row else "" for key in ("pytorch_ood_auroc", "accuracy")),
            f"{row['training_images']:,}", row["epochs"], f"{row['training_seconds'] / 60:.0f}",
            f"{row['test_images']:,}", settings, source,
        ]  # fmt: skip
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join([*lines, "", NOTES])


def main(
    data: Data,
    work: Annotated[Path, typer.Option(help="Folder for checkpoints and finished runs.")],
    tasks: Annotated[Path, typer.Option(help="TOML file with tasks and settings.")] = TASKS,
    output: Annotated[Path | None, typer.Option(help="JSON file to write, with a Markdown table beside it.")] = None,
    only: Annotated[str, typer.Option(help="TASK/DETECTOR, separated by commas; all unless given.")] = "",
) -> None:
    suite = read_suite(tasks)
    opener = TaskOpener(suite, data)
    every = [f"{task.name}/{name}" for task in suite.tasks for name in suite.detectors]
    chosen = only.split(",") if only else every
    if unknown := set(chosen) - set(every):
        raise typer.BadParameter(f"no run is called {', '.join(sorted(unknown))}; choose among {', '.join(every)}")
    rows = []
    before = reported(output)
    for task in suite.tasks:
        for name, settings in suite.detectors.items():
            row = before.get((task.name, name), {})
            if f"{task.name}/{name}" in chosen:
                rows.append(run(opener.open(task), name, settings, work))
            elif row.get("settings") == settings:
                rows.append(row)
    if output:
        given = "" if tasks == TASKS else f"--tasks {tasks} "
        content = {
            "command": f"python benchmarks/rivals.py {given}--data ../shared/data --work {work} --output {output}",
            "rows": rows,
            "versions": installed_versions(),
        }
        write_report(output, content, markdown(content))


if __name__ == "__main__":
    typer.run(main)
