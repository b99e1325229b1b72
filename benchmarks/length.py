"""The paper's network after 1, 10, 50 and 150 epochs, each training going on from the one before.

    python benchmarks/length.py --data ../shared/data --folder /tmp/length --output docs/length.json

`dlsr bench fig3 .. -o FOLDER` with the same images, protocol and epochs draws its figures from the same network.
Writes a JSON file with all numbers, and a Markdown table beside it. Interrupted, it resumes when run again.
"""

import sys
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from dlsr.artifact import installed_versions
from dlsr.bench.compare import CompareSettings
from dlsr.bench.paper import PAPER
from dlsr.bench.reproduction import PAPER_SCORES, FigureRun, Where, open_task
from dlsr.calibration.metrics import evaluate_scores
from dlsr.encoding.store import default_store_root
from dlsr.images.transforms import Protocol
from quality import write_report

OOD = ("svhn", "textures", "mnist", "tiny-imagenet")
PROTOCOLS: tuple[Protocol, ...] = ("matched", "native")


def main(
    data: Annotated[Path, typer.Option(help="Folder with the tars of shared/data.")],
    folder: Annotated[Path, typer.Option(help="For the networks; give it as -o to `dlsr bench fig3`, too.")],
    output: Annotated[Path, typer.Option(help="JSON file to write, with a Markdown table beside it.")],
    epochs: Annotated[str, typer.Option(help="Numbers of epochs, separated by commas.")] = "1,10,50,150",
    limit: Annotated[int | None, typer.Option(help="At most this many test images a dataset.")] = None,
    store: Path | None = None,
) -> None:
    task, _ = open_task("cifar10", OOD, Where(data, {}))
    settings = CompareSettings((), protocol="matched", limit=limit)
    run = FigureRun(
        task, settings, folder / "runs", None, store or default_store_root(), lambda m: print(m, file=sys.stderr)
    )
    rows: list[dict[str, Any]] = []
    for number in map(int, epochs.split(",")):
        network = replace(run, epochs=number).fit()
        log = network.detector.fit_summary_.log
        for protocol in PROTOCOLS:
            measured = run.with_images(network.detector, protocol)
            for score in PAPER_SCORES:
                by_dataset = measured.scores(network.scorer(score))
                inside = by_dataset.pop("ID")
                metrics = {name: evaluate_scores(inside, outside) for name, outside in by_dataset.items()}
                rows.append(
                    {
                        "epochs": number,
                        "trained": len(log),
                        "validation_loss": min(entry.validation_loss for entry in log),
                        "protocol": protocol,
                        "score": score,
                        "auroc": {name: one.auroc for name, one in metrics.items()},
                        "fpr95": {name: one.fpr95_id_positive for name, one in metrics.items()},
                    }
                )
        content = {
            "command": "python benchmarks/length.py " + " ".join(sys.argv[1:]),
            "versions": installed_versions(),
            "rows": rows,
        }
        write_report(output, content, markdown(content))


def markdown(content: dict[str, Any]) -> str:
    """AUROC by epochs, protocol and score."""
    lines = [
        f"`{content['command']}`",
        "",
        f"| protocol | score | epochs | validation loss | {' | '.join(OOD)} | average AUROC | average FPR95 |",
        "|---" * (len(OOD) + 6) + "|",
    ]
    for row in sorted(content["rows"], key=lambda row: (row["protocol"], row["score"], row["epochs"])):
        cells = [f"{100 * row['auroc'][name]:.2f}" for name in OOD]
        means = [f"{100 * np.mean(list(row[metric].values())):.2f}" for metric in ("auroc", "fpr95")]
        head = [row["protocol"], row["score"], str(row["epochs"]), f"{row['validation_loss']:.4f}"]
        lines.append(f"| {' | '.join([*head, *cells, *means])} |")
    for score in PAPER_SCORES:
        numbers = [printed(f"dlsr+{score}", name) for name in OOD]
        cells = [f"{number:.2f}" for number in [*numbers, float(np.mean(numbers))]]
        lines.append(f"| printed | {score} | 150 | | {' | '.join(cells)} | |")
    lines += [
        "",
        "LR compares the network with that after the first epoch, so after one epoch it is always zero. Printed: the "
        "paper's AUROC (its tables 1, 3 and 9; EfficientNet-B4, its native images).",
    ]
    return "\n".join(lines) + "\n"


def printed(detector: str, dataset: str) -> float:
    """AUROC in the first of the paper's tables that has it."""
    return next(
        number
        for table in PAPER
        if (table.id, table.metric, table.encoder) == ("cifar10", "auroc", "efficientnet_b4") and dataset in table.ood
        for number in [table.rows.get(detector, (None,) * len(table.ood))[table.ood.index(dataset)]]
        if number is not None
    )


if __name__ == "__main__":
    typer.run(main)
