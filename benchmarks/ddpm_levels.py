"""From which noise levels does `ddpm` tell OOD images from ID ones? Each of its errors alone, on a task of rivals.py.

    python benchmarks/ddpm_levels.py --data ../shared/data --work /tmp/rivals --output docs/ddpm-levels.json

The task, the network and its settings are those of `rivals-cifar10.toml`: run `rivals.py` with it and
`--only cifar10/ddpm` before, so that the network is in `--work`. Writes AUROC of the squared error and of the
perceptual distance for each level, as JSON and as a table beside it.
"""

from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer

from dlsr import evaluate_scores
from dlsr.artifact import installed_versions
from dlsr.baselines.ddpm import DDPM, times_of_unit_pixels
from dlsr.baselines.diffusion import T
from dlsr.images.sources import ImageDataset
from dlsr.images.transforms import Transform, protocol_transform
from quality import write_report
from rivals import Data, Trained, scored_at_once, trained

TASKS = Path(__file__).with_name("rivals-cifar10.toml")
ERRORS = ("squared error", "perceptual distance")


def errors_of(detector: DDPM, images: ImageDataset, transform: Transform | None) -> np.ndarray:
    """Both errors at each level: shape `(n, levels, 2)`."""
    found = [detector.errors(part) for part in scored_at_once(detector, images, transform)]
    return np.asarray(torch.cat(found)).reshape(len(images), -1, len(ERRORS))


def markdown(content: dict[str, Any]) -> str:
    lines = [
        f"`{content['command']}`",
        "",
        f"AUROC in %, of {content['images']} images of CIFAR-10 against as many OOD images, by the noise level in",
        f"1..{T} that images are restored from, for pixels in [0, 1]. The U-Net, whose pixels are in [-1, 1], starts",
        f"at {', '.join(map(str, content['starts']))}.",
        "",
        f"| OOD | error | {' | '.join(map(str, content['levels']))} |",
        "|---" * (2 + len(content["levels"])) + "|",
    ]
    for ood, by_error in content["auroc"].items():
        for error, values in by_error.items():
            lines.append(f"| {ood} | {error} | {' | '.join(f'{100 * value:.0f}' for value in values)} |")
    return "\n".join([*lines, ""])


def main(
    data: Data,
    work: Trained,
    output: Annotated[Path, typer.Option(help="JSON file to write, with a Markdown table beside it.")],
    images: Annotated[int, typer.Option(help="Images of each dataset.")] = 48,
) -> None:
    task, detector = trained(TASKS, "ddpm", data, work)
    transform = protocol_transform(task.protocol)
    inside = errors_of(detector, task.test.sample(images), transform)
    auroc = {
        name: {
            error: [evaluate_scores(inside[:, i, k], outside[:, i, k]).auroc for i in range(len(detector.levels))]
            for k, error in enumerate(ERRORS)
        }
        for name, outside in (
            (name, errors_of(detector, ood.sample(images), transform)) for name, ood in task.ood.items()
        )
    }
    content = {
        "command": f"python benchmarks/ddpm_levels.py --data ../shared/data --work {work} --output {output}",
        "images": images,
        "levels": detector.levels,
        "starts": [times_of_unit_pixels([level])[0] for level in detector.levels],
        "auroc": auroc,
        "versions": installed_versions(),
    }
    write_report(output, content, markdown(content))


if __name__ == "__main__":
    typer.run(main)
