"""By which distance do the inpaintings of `lmd` tell OOD images from ID ones? On the task of rivals-cifar10.toml.

    python benchmarks/lmd_distances.py --data ../shared/data --work /tmp/rivals --output docs/lmd-distances.json

Run `rivals.py` with `--tasks benchmarks/rivals-cifar10.toml --only cifar10/lmd` before, so that the network is in
`--work`. Writes AUROC by distance as JSON, with a table and a picture of inpaintings beside it.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from PIL import Image
from torch import Tensor

from dlsr import evaluate_scores
from dlsr.artifact import installed_versions
from dlsr.baselines.diffusion import scaled
from dlsr.baselines.lmd import LMD
from dlsr.baselines.perception import Perception
from dlsr.images.sources import ImageDataset
from dlsr.images.transforms import Transform, protocol_transform
from quality import write_report
from rivals import Data, Trained, scored_at_once, trained

TASKS = Path(__file__).with_name("rivals-cifar10.toml")
SHOWN = 4
"""Images of each dataset in the picture."""
ENLARGED = 3


def inpainted(detector: LMD, images: ImageDataset, transform: Transform | None) -> tuple[Tensor, Tensor]:
    """Images, shape `(n, C, H, W)`, and their inpaintings, shape `(n, attempts, C, H, W)`, both in `[-1, 1]`."""
    parts = scored_at_once(detector, images, transform)
    found = [torch.stack(list(detector.inpaintings(part)), dim=1) for part in parts]
    return scaled(torch.cat(parts)), torch.cat(found)


def squared_error(x0: Tensor, other: Tensor) -> Tensor:
    return (x0 - other).square().mean(dim=(1, 2, 3))


def relative_error(x0: Tensor, other: Tensor) -> Tensor:
    """The squared error as a multiple of the image's variance."""
    return squared_error(x0, other) / x0.var(dim=(1, 2, 3)).clamp(min=1e-4)


def distances() -> dict[str, Callable[[Tensor, Tensor], Tensor]]:
    perception = Perception.shared("cpu")

    def in_stage(k: int) -> Callable[[Tensor, Tensor], Tensor]:
        return lambda x0, other: perception.by_stage(x0, other)[k]

    stages = {f"perceptual distance, stage {k + 1} alone": in_stage(k) for k in range(5)}
    return {
        "perceptual distance: the score": perception.distance,
        **stages,
        "squared error": squared_error,
        "squared error / variance of the image": relative_error,
    }


def scores(distance: Callable[[Tensor, Tensor], Tensor], x0: Tensor, found: Tensor) -> np.ndarray:
    """Median of the distance over attempts, shape `(n,)`."""
    return np.asarray(torch.stack([distance(x0, one) for one in found.unbind(dim=1)]).quantile(0.5, dim=0))


def picture(found: Mapping[str, tuple[Tensor, Tensor]]) -> Image.Image:
    """Some images of each dataset in rows: the image, then its inpaintings."""
    rows = [
        torch.cat([image, *inpaintings], dim=2)
        for x0, every in found.values()
        for image, inpaintings in zip(x0[:SHOWN], every[:SHOWN], strict=True)
    ]
    pixels = ((torch.cat(rows, dim=1) + 1) * 127.5).round().byte().permute(1, 2, 0)
    small = Image.fromarray(pixels.numpy())
    return small.resize((small.width * ENLARGED, small.height * ENLARGED), Image.Resampling.NEAREST)


def markdown(content: dict[str, Any]) -> str:
    names = list(next(iter(content["auroc"].values())))
    lines = [
        f"`{content['command']}`",
        "",
        f"AUROC in %, of {content['images']} images of CIFAR-10 against as many OOD images, by the distance of an",
        "image to its inpaintings.",
        "",
        f"| distance | {' | '.join(names)} |",
        "|---" * (1 + len(names)) + "|",
        *(
            f"| {distance} | {' | '.join(f'{100 * values[name]:.0f}' for name in names)} |"
            for distance, values in content["auroc"].items()
        ),
        "",
        f"Images and their inpaintings, {SHOWN} rows for each of {', '.join(['CIFAR-10', *names])}:",
        "",
        f"![Images beside their inpaintings]({content['picture']})",
    ]
    return "\n".join([*lines, ""])


def main(
    data: Data,
    work: Trained,
    output: Annotated[Path, typer.Option(help="JSON file to write, with a table and a picture beside it.")],
    images: Annotated[int, typer.Option(help="Images of each dataset.")] = 96,
) -> None:
    task, detector = trained(TASKS, "lmd", data, work)
    transform = protocol_transform(task.protocol)
    found = {
        name: inpainted(detector, dataset.sample(images), transform)
        for name, dataset in {"CIFAR-10": task.test, **task.ood}.items()
    }
    inside = found["CIFAR-10"]
    auroc = {
        name: {ood: evaluate_scores(scores(distance, *inside), scores(distance, *found[ood])).auroc for ood in task.ood}
        for name, distance in distances().items()
    }
    path = output.with_suffix(".png")
    picture(found).save(path)
    content = {
        "command": f"python benchmarks/lmd_distances.py --data ../shared/data --work {work} --output {output}",
        "images": images,
        "auroc": auroc,
        "picture": path.name,
        "versions": installed_versions(),
    }
    write_report(output, content, markdown(content))


if __name__ == "__main__":
    typer.run(main)
