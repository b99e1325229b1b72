"""Do maps point to defects? On the tasks of the suite, for the default score and Mahalanobis distance.

    python benchmarks/maps.py --data ../shared/data --output docs/map-hits.json --store /tmp/store

Each held-out ID image gets a defect at a random place: a patch of an OOD image of the task, on 1/16, 1/8 and 1/4 of the
area; blur, noise or a line, on 1/8. A hit is a map whose highest value lies in it. Chance is the share of the area, and
the centre is the answer of somebody who always points to the middle. Also: ID images without a defect that have a place
above 1, and the time of scores with maps as a ratio to that of scores alone. Writes a JSON file, and a table beside it.
With `--picture docs/images/maps.png` it draws maps of castings instead.
"""

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from PIL import Image, ImageDraw, ImageFilter

from dlsr import Detector
from dlsr.bench.tasks import SHIPPED, TaskOpener, chosen_tasks, read_suite
from dlsr.images.decode import decode
from dlsr.images.sources import ImageDataset, open_images
from quality import write_report

SCORES = ("local", "mahalanobis")
TRAINING, TESTED = 300, 40
CELL = 200
"""Pixels of the side of a casting in the picture."""

Box = tuple[int, int, int, int]
Defect = Callable[[Image.Image, Image.Image, np.random.Generator], tuple[Image.Image, Box]]


def box_of(image: Image.Image, area: float, random: np.random.Generator) -> Box:
    width, height = (max(round(side * area**0.5), 2) for side in image.size)
    left, top = (
        int(random.integers(whole - side + 1)) for whole, side in zip(image.size, (width, height), strict=True)
    )
    return left, top, left + width, top + height


def patch(area: float) -> Defect:
    def paste(image: Image.Image, other: Image.Image, random: np.random.Generator) -> tuple[Image.Image, Box]:
        box, changed = box_of(image, area, random), image.copy()
        changed.paste(other.resize((box[2] - box[0], box[3] - box[1])), box[:2])
        return changed, box

    return paste


def blur(image: Image.Image, other: Image.Image, random: np.random.Generator) -> tuple[Image.Image, Box]:
    box, changed = box_of(image, 1 / 8, random), image.copy()
    changed.paste(image.filter(ImageFilter.GaussianBlur(max(image.size) / 20)).crop(box), box[:2])
    return changed, box


def noise(image: Image.Image, other: Image.Image, random: np.random.Generator) -> tuple[Image.Image, Box]:
    box, changed = box_of(image, 1 / 8, random), image.copy()
    pixels = np.asarray(image.crop(box), np.float64)
    noisy = (pixels + random.normal(0, 50, pixels.shape)).clip(0, 255).astype(np.uint8)
    changed.paste(Image.fromarray(noisy), box[:2])
    return changed, box


def line(image: Image.Image, other: Image.Image, random: np.random.Generator) -> tuple[Image.Image, Box]:
    """From one corner of a box to the opposite one, in black or white."""
    box, changed = box_of(image, 1 / 8, random), image.copy()
    shade = int(random.integers(2)) * 255
    ImageDraw.Draw(changed).line(box, fill=(shade,) * 3, width=max(round(max(image.size) / 50), 1))
    return changed, box


DEFECTS: dict[str, Defect] = {
    "patch 1/16": patch(1 / 16),
    "patch 1/8": patch(1 / 8),
    "patch 1/4": patch(1 / 4),
    "blur": blur,
    "noise": noise,
    "line": line,
}


def main(
    data: Annotated[Path, typer.Option(help="Folder with the tars of shared/data.")],
    output: Annotated[Path, typer.Option(help="JSON file to write, with a Markdown table beside it.")],
    only: Annotated[str | None, typer.Option(help="Names of tasks, separated by commas.")] = None,
    picture: Annotated[Path | None, typer.Option(help="Only draw maps of castings into this file.")] = None,
    store: Path | None = None,
) -> None:
    if picture is not None:
        draw_castings(data / "casting.tar", picture, store)
        return
    suite, opener = read_suite(SHIPPED), TaskOpener(read_suite(SHIPPED), data)
    rows: list[dict[str, Any]] = []
    for definition in chosen_tasks(suite, only.split(",") if only else ()):
        task = opener.open(definition)
        other = next(iter(task.ood.values()))
        for score in SCORES:
            row = {"task": task.name, "score": score, **measured(score, task.train, task.test, other, store)}
            rows.append(row)
            typer.echo(f"{task.name}, {score}: " + ", ".join(f"{name} {row['hits'][name]:.2f}" for name in DEFECTS))
    content = {"command": "python benchmarks/maps.py " + " ".join(sys.argv[1:]), "rows": rows}
    write_report(output, content, markdown(content))


def draw_castings(castings: Path, picture: Path, store: Path | None) -> None:
    """Good and defective castings above their maps, drawn by a detector that is fitted to good ones."""
    images = open_images(castings)

    def chosen(part: str, count: int) -> ImageDataset:
        return images.subset(i for i, item in enumerate(images.items) if part in item.name).sample(count)

    detector = Detector(maps=True, store=store).fit(chosen("train/ok_front", TRAINING))
    shown = [*chosen("test/ok_front", 2).items, *chosen("test/def_front", 6).items]
    drawn = Image.new("RGB", (len(shown) * CELL, 2 * CELL))
    for i, found in enumerate(detector.anomaly_maps([item.read() for item in shown])):
        assert found.image is not None
        for row, image in enumerate((found.image, found.drawn())):
            drawn.paste(image.resize((CELL, CELL)), (i * CELL, row * CELL))
    drawn.save(picture)


def measured(
    score: str, train: ImageDataset, test: ImageDataset, other: ImageDataset, store: Path | None
) -> dict[str, Any]:
    random = np.random.default_rng(0)
    detector = Detector(score=score, group_by="none", maps=True, store=store).fit(train.sample(TRAINING))
    images = [decode(item.read()) for item in test.sample(TESTED).items]
    others = [decode(item.read()) for item in other.sample(TESTED).items]
    hits: dict[str, float] = {}
    boxes: list[tuple[Box, tuple[int, int]]] = []
    for name, defect in DEFECTS.items():
        made = [defect(image, with_it, random) for image, with_it in zip(images, others, strict=True)]
        maps = detector.anomaly_maps([image for image, _ in made])
        found = [is_in(place_of(one.values), image.size, box) for one, (image, box) in zip(maps, made, strict=True)]
        hits[name] = float(np.mean(found))
        boxes += [(box, image.size) for image, box in made]
    detector.store = None
    start = time.perf_counter()
    detector.detect(images)
    scored = time.perf_counter() - start
    start = time.perf_counter()
    bright = float(np.mean([one.values.max() > 1 for one in detector.anomaly_maps(images) if one.values is not None]))
    with_maps = time.perf_counter() - start
    return {
        "hits": hits,
        "centre": float(np.mean([is_in((0.5, 0.5), size, box) for box, size in boxes])),
        "bright": bright,
        "time": with_maps / scored,
    }


def place_of(values: np.ndarray | None) -> tuple[float, float]:
    """Of the highest value, from the left and the top, as shares of width and height."""
    assert values is not None
    row, column = np.unravel_index(values.argmax(), values.shape)
    return (column + 0.5) / values.shape[1], (row + 0.5) / values.shape[0]


def is_in(place: tuple[float, float], size: tuple[int, int], box: Box) -> bool:
    x, y = place[0] * size[0], place[1] * size[1]
    return box[0] <= x < box[2] and box[1] <= y < box[3]


def markdown(content: dict[str, Any]) -> str:
    rows = content["rows"]
    lines = [
        f"`{content['command']}`",
        "",
        f"Share of maps, in %, whose highest value lies in the defect. {TRAINING} training images of each task, and "
        f"{TESTED} others with defects.",
        "",
        f"| task | score | {' | '.join(DEFECTS)} | centre | ID above 1 | time |",
        "|---" * (5 + len(DEFECTS)) + "|",
    ]

    def cells(chosen: list[dict[str, Any]]) -> str:
        hits = [np.mean([row["hits"][name] for row in chosen]) for name in DEFECTS]
        shares = [*hits, *(np.mean([row[name] for row in chosen]) for name in ("centre", "bright"))]
        time_ = np.mean([row["time"] for row in chosen])
        return " | ".join(f"{100 * share:.0f}" for share in shares) + f" | {time_:.2f}"

    lines += [f"| {row['task']} | {row['score']} | {cells([row])} |" for row in rows]
    for score in SCORES:
        lines.append(f"| **mean** | **{score}** | {cells([row for row in rows if row['score'] == score])} |")
    chance = " | ".join(f"{100 * (1 / int(name[-2:].strip('/')) if '/' in name else 1 / 8):.0f}" for name in DEFECTS)
    lines.append(f"| chance | | {chance} | | | |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    typer.run(main)
