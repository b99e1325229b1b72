"""What each part of the default adds, on the 18 tasks of the shipped suite, and what the diffusion network would add.

    python benchmarks/ablation.py --data ../shared/data --folder /tmp/ablation --output docs/ablation.json

`--train-images` and `--contamination` measure small and dirty folders. Finished fits in the folder are not repeated.
Writes a JSON file with all numbers, and a Markdown table beside it.
"""

import shlex
import sys
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from numpy.typing import NDArray

from dlsr.artifact import installed_versions
from dlsr.bench.inputs import Encoders, TaskInputs
from dlsr.bench.suite import SuiteSettings, make, run_suite
from dlsr.bench.tasks import SHIPPED, SuiteTask, TaskOpener, draw, read_suite
from dlsr.calibration.metrics import evaluate_scores
from dlsr.encoding.store import default_store_root
from quality import write_report

DEFAULT = {"detector": "dlsr"}
NETWORK = "residual (diffusion network)"
VARIANTS: dict[str, dict[str, Any]] = {
    "default": DEFAULT,
    "without the distance": DEFAULT | {"distance_weight": 0.0},
    "without the Mahalanobis distance": DEFAULT | {"gaussian_weight": 0.0},
    "restoration error alone": DEFAULT | {"distance_weight": 0.0, "gaussian_weight": 0.0},
    "5 neighbours": DEFAULT | {"neighbours": 5},
    "10 neighbours": DEFAULT | {"neighbours": 10},
    "50 neighbours": DEFAULT | {"neighbours": 50},
    "2,000 references": DEFAULT | {"references": 2000},
    "no image left out": DEFAULT | {"trim": 0.0},
    "pooling mean+std": DEFAULT | {"pooling": "mean+std"},
    "pooling mean": DEFAULT | {"pooling": "mean"},
    "mahalanobis": {"detector": "mahalanobis"},
    NETWORK: {"detector": "dlsr+residual"},
}
WEIGHTS = (0.3, 1.0)
"""Of the score of the diffusion network beside the default's, both standardised on the calibration images."""


def main(
    data: Annotated[Path, typer.Option(help="Folder with the tars of shared/data.")],
    folder: Annotated[Path, typer.Option(help="For finished fits.")],
    output: Annotated[Path, typer.Option(help="JSON file to write, with a Markdown table beside it.")],
    store: Path | None = None,
    only: Annotated[str | None, typer.Option(help="Names of tasks, separated by commas.")] = None,
    variants: Annotated[str | None, typer.Option(help="Names of variants, separated by commas.")] = None,
    train_images: Annotated[int | None, typer.Option(help="Fit to at most this many images.")] = None,
    contamination: Annotated[float, typer.Option(help="Share of the training images that are OOD images.")] = 0.0,
) -> None:
    root = store or default_store_root()
    suite = read_suite(SHIPPED)
    opener = TaskOpener(suite, data)
    tasks = [opener.open(task) for task in suite.tasks if only is None or task.name in only.split(",")]
    chosen = VARIANTS if variants is None else {name: VARIANTS[name] for name in variants.split(",")}
    settings = SuiteSettings(chosen, train_limit=train_images, contamination=contamination)
    report = run_suite(
        tasks, settings, folder / "runs", store=root, on_message=lambda message: print(message, file=sys.stderr)
    )
    found: dict[str, dict[str, float]] = {}
    for row in report["rows"]:
        (run,) = row["runs"]
        aurocs = [metrics["auroc"] for metrics in run["datasets"].values()]
        found.setdefault(row["detector"], {})[row["task"]] = float(np.mean(aurocs))
    for task in tasks if NETWORK in chosen else ():
        for weight, auroc in with_network(task, settings, root).items():
            found.setdefault(f"default + {weight:g} residual", {})[task.name] = auroc
    content = {
        "command": "python benchmarks/ablation.py " + shlex.join(sys.argv[1:]),
        "versions": installed_versions(),
        "halves": {task.name: task.half for task in tasks},
        "auroc": found,
    }
    write_report(output, content, markdown(content))


def with_network(task: SuiteTask, settings: SuiteSettings, store: Path) -> dict[float, float]:
    """AUROC of the default's score plus that of the diffusion network, by the latter's weight."""
    parts: list[dict[str, NDArray[np.float64]]] = []
    inputs = TaskInputs(task, Encoders(store))
    for name in ("default", NETWORK):
        detector = make(name, settings, 0)
        datasets = inputs.drawn(detector, draw(task, settings.train_limit, settings.contamination, 0))
        datasets["train"].fit(detector)
        location, spread = detector.calibration_scores_.mean(), detector.calibration_scores_.std()
        parts.append({key: (images.score(detector) - location) / spread for key, images in datasets.items()})
    found = {}
    for weight in WEIGHTS:
        joined = {key: scores + weight * parts[1][key] for key, scores in parts[0].items() if key != "train"}
        inside = joined.pop("ID")
        found[weight] = float(np.mean([evaluate_scores(inside, outside).auroc for outside in joined.values()]))
    return found


def markdown(content: dict[str, Any]) -> str:
    """Mean AUROC of each variant, over each half and all tasks."""
    found, halves = content["auroc"], content["halves"]
    kinds = list(dict.fromkeys(halves.values()))
    lines = [
        f"`{content['command']}`",
        "",
        f"| variant | {' | '.join(kinds)} | all tasks | difference to the default | worst difference to mahalanobis |",
        "|---" * (len(kinds) + 4) + "|",
    ]
    for name, by_task in found.items():
        means = [np.mean([by_task[task] for task, half in halves.items() if half == kind]) for kind in kinds]
        mean, default = (np.mean(list(rows.values())) for rows in (by_task, found["default"]))
        worst = min(by_task[task] - found["mahalanobis"][task] for task in halves)
        cells = [f"{100 * value:.2f}" for value in [*means, mean]]
        lines.append(f"| {name} | {' | '.join(cells)} | {100 * (mean - default):+.2f} | {100 * worst:+.2f} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    typer.run(main)
