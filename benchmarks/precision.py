"""Does training in bfloat16 make detection worse? Score `residual` and preset `paper`, both ways.

    python benchmarks/precision.py --data ../shared/data --output docs/precision.json

CIFAR-10 train as ID, matched protocol, at most 2,000 random test images of each dataset; `paper` is trained for fewer
epochs than by default.
"""

import sys
import time
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer

from dlsr.artifact import installed_versions
from dlsr.scorers import resolve
from dlsr.scorers.base import score_features
from quality import aurocs, fit_data, fitted_scorer, matched_features, write_report

TEST_IMAGES = 2000


def main(
    data: Annotated[Path, typer.Option(help="Folder with the tars of shared/data.")],
    output: Annotated[Path, typer.Option(help="JSON file to write, with a Markdown table beside it.")],
    paper_epochs: Annotated[int, typer.Option(help="Epochs of the preset paper.")] = 2,
    seeds: int = 2,
    store: Path | None = None,
) -> None:
    channels, training, encoded = matched_features(data, store, TEST_IMAGES)
    rows: list[dict[str, Any]] = []
    for shown, preset, score in (("residual", "default", "residual"), ("paper", "paper", None)):
        for precision in ("float32", "bfloat16"):
            found, seconds = [], []
            for seed in range(seeds if preset == "default" else 1):
                changes = {"training_precision": precision} | ({"epochs": paper_epochs} if preset == "paper" else {})
                settings = resolve(preset, score, changes, seed=seed)
                epochs = settings.scorer.model_dump()["epochs"]
                start = time.perf_counter()
                scorer = fitted_scorer(fit_data(settings, channels, training))
                seconds.append(time.perf_counter() - start)
                scores = {
                    name: score_features(scorer, torch.from_numpy(images.z0), images.digests, seed)[0].double().numpy()
                    for name, images in encoded.items()
                }
                found.append(aurocs(scores))
            auroc = {name: float(np.mean([by_name[name] for by_name in found])) for name in found[0]}
            rows.append(
                {
                    "preset": shown,
                    "precision": precision,
                    "epochs": epochs,
                    "seeds": len(found),
                    "fit_seconds": float(np.mean(seconds)),
                    "auroc": auroc,
                    "average": float(np.mean(list(auroc.values()))),
                }
            )
            print(rows[-1], file=sys.stderr, flush=True)
    content = {
        "command": "python benchmarks/precision.py " + " ".join(sys.argv[1:]),
        "test_images_per_set": TEST_IMAGES,
        "rows": rows,
        "versions": installed_versions(),
    }
    write_report(output, content, markdown(content))


def markdown(content: dict[str, Any]) -> str:
    """The table in Markdown."""
    names = list(content["rows"][0]["auroc"])
    lines = [
        f"`{content['command']}`",
        "",
        f"| score or preset, epochs, seeds | precision | fit, s | {' | '.join(names)} | average |",
        "|---" * (len(names) + 4) + "|",
    ]
    for row in content["rows"]:
        cells = " | ".join(f"{100 * row['auroc'][name]:.2f}" for name in names)
        lines.append(
            f"| {row['preset']}, {row['epochs']}, {row['seeds']} | {row['precision']} | {row['fit_seconds']:.0f} "
            f"| {cells} | {100 * row['average']:.2f} |"
        )
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    typer.run(main)
