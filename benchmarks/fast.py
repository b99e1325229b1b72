"""How small can LFDN be? The default score with smaller networks and fewer epochs, beside the paper's size.

    python benchmarks/fast.py --data ../shared/data --output docs/fast.json

CIFAR-10 train as ID, matched protocol, at most 2,000 random test images of each dataset. Preset `fast` was chosen by
these numbers.
"""

import json
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from dlsr import Detector
from dlsr.artifact import installed_versions
from dlsr.method.lfdn import LFDN
from quality import CHOSEN_ON, aurocs, matched_features, write_report

TEST_IMAGES = 2000

PAPER_SIZE: dict[str, int] = {"width": 1024, "blocks": 16, "epochs": 8}
VARIANTS: tuple[dict[str, int], ...] = (
    {"width": 768, "blocks": 4, "epochs": 8},
    {"width": 768, "blocks": 4, "epochs": 4},
    {"width": 512, "blocks": 2, "epochs": 8},
    {"width": 512, "blocks": 2, "epochs": 4},
    {"width": 512, "blocks": 1, "epochs": 8},
    {"width": 512, "blocks": 1, "epochs": 4},
    {"width": 256, "blocks": 2, "epochs": 8},
    {"width": 256, "blocks": 1, "epochs": 16},
    {"width": 256, "blocks": 1, "epochs": 8},
    {"width": 256, "blocks": 1, "epochs": 4},
    {"width": 256, "blocks": 1, "epochs": 2},
    {"width": 128, "blocks": 1, "epochs": 4},
    {"width": 64, "blocks": 1, "epochs": 4},
    {"width": 64, "blocks": 1, "epochs": 2},
    PAPER_SIZE,
)


def main(
    data: Annotated[Path, typer.Option(help="Folder with the tars of shared/data.")],
    output: Annotated[Path, typer.Option(help="JSON file to write, with a Markdown table beside it.")],
    store: Path | None = None,
) -> None:
    channels, training, encoded = matched_features(data, store, TEST_IMAGES)
    rows: list[dict[str, Any]] = []
    for variant in VARIANTS:
        detector = Detector(
            score="residual", epochs=variant["epochs"], width=variant["width"], blocks=variant["blocks"]
        )
        start = time.perf_counter()
        detector.fit_features(training.z0, channels, digests=training.digests)
        seconds = time.perf_counter() - start
        auroc = aurocs({name: detector.score_features(images.z0, images.digests) for name, images in encoded.items()})
        network = LFDN(sum(channels), variant["width"], variant["blocks"])
        parameters = sum(parameter.numel() for parameter in network.parameters())
        means = {
            "chosen_on": float(np.mean([auroc[name] for name in CHOSEN_ON])),
            "average": float(np.mean(list(auroc.values()))),
        }
        rows.append({**variant, "parameters": parameters, "fit_seconds": seconds, **means, "auroc": auroc})
        print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
    content = {
        "command": "python benchmarks/fast.py " + " ".join(sys.argv[1:]),
        "test_images_per_set": TEST_IMAGES,
        "rows": rows,
        "versions": installed_versions(),
    }
    write_report(output, content, markdown(content))


def markdown(content: dict[str, Any]) -> str:
    """The table in Markdown."""
    rows = content["rows"]
    names = list(rows[0]["auroc"])
    lines = [
        f"`{content['command']}`",
        "",
        f"| width x blocks, epochs | parameters, M | fit, s | {' | '.join(names)} | chosen on | average "
        "| below the paper's size |",
        "|---" * (len(names) + 6) + "|",
    ]
    reference = next(row["average"] for row in rows if row["blocks"] == PAPER_SIZE["blocks"])
    for row in rows:
        cells = " | ".join(f"{100 * row['auroc'][name]:.2f}" for name in names)
        lines.append(
            f"| {row['width']} x {row['blocks']}, {row['epochs']} | {row['parameters'] / 1e6:.1f} "
            f"| {row['fit_seconds']:.0f} | {cells} | {100 * row['chosen_on']:.2f} "
            f"| {100 * row['average']:.2f} "
            f"| {100 * (reference - row['average']):.2f} |"
        )
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    typer.run(main)
