"""Groups of copies that are found by themselves: recall and precision on folders with known groups, and time.

    python benchmarks/copies.py --data ../shared/data --output docs/copies.json

Folders of exchangeable images (random images of a dataset) should stay ungrouped, though some datasets have copies of
their own. Folders with known groups: tracks of traffic signs (three frames each), digits cut from one house number,
images with four augmented copies each, and crops that slide over photographs, each overlapping the one before by 80 to
95 %. Small folders are drawn from the large ones, group by group, ten times. Time is that of independent normal random
features.
"""

import io
import os
import re
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, TypeVar

import numpy as np
import typer
from numpy.typing import NDArray
from PIL import Image, ImageEnhance
from scipy.special import comb

from dlsr import Detector
from dlsr.artifact import installed_versions
from dlsr.calibration.copies import found_groups
from dlsr.calibration.exchangeability import check
from dlsr.cli.console import progress_bars
from dlsr.encoding.store import default_store_root
from dlsr.images.decode import decode
from dlsr.images.sources import ImageDataset, ImageItem, open_images
from quality import write_report

FRAMES = 8
"""Crops of each photograph."""
OVERLAPS = (0.8, 0.95)
"""Overlap of a crop with the one before, drawn anew for each photograph."""
DRAWS = 10
"""Small folders are drawn this many times."""
COLUMNS = 3360
"""Width of the default's features, for which the time is taken."""
TIMED = 500
"""Images that are encoded to know how long it takes."""

T = TypeVar("T")


@dataclass(frozen=True)
class Folder:
    """Images, and a whole number for each: equal for those of one group."""

    images: ImageDataset
    siblings: NDArray[np.intp]


def main(
    data: Annotated[Path, typer.Option(help="Folder with the tars of shared/data.")],
    output: Annotated[Path, typer.Option(help="JSON file to write, with a Markdown table beside it.")],
    images: Annotated[int, typer.Option(help="Images of each exchangeable folder, at most.")] = 1000,
    originals: Annotated[int, typer.Option(help="Originals, tracks or photographs of each folder with groups.")] = 150,
    small: Annotated[str, typer.Option(help="Sizes of small folders, separated by commas.")] = "60,250",
    timed: Annotated[str, typer.Option(help="Sizes for which the time is taken, separated by commas.")] = "10000,50000",
    store: Path | None = None,
) -> None:
    extractor = Detector(store=store or default_store_root()).prepare_extractor()
    rows: list[dict[str, Any]] = []
    with progress_bars(quiet=False) as bars:
        for name, folder in (*exchangeable(data, images), *grouped(data, originals)):
            encoded = extractor.encode(folder.images, progress=bars.images(name, len(folder.images)))
            for size in (*map(int, small.split(",")), len(encoded.z0)):
                draws = [
                    measured(found_groups(encoded.z0[drawn], encoded.digests[drawn]), folder.siblings[drawn])
                    for drawn in some_groups(folder.siblings, size)
                ]
                row = {key: mean(draw[key] for draw in draws) for key in draws[0]}
                rows.append({"folder": name, "draws": len(draws), **row})
    content = {
        "command": "python benchmarks/copies.py " + " ".join(sys.argv[1:]),
        "rows": rows,
        "times": [time_of(size, data) for size in map(int, timed.split(","))],
        "threads": int(os.environ.get("OMP_NUM_THREADS", os.cpu_count() or 1)),
        "versions": installed_versions(),
    }
    write_report(output, content, markdown(content))


def exchangeable(data: Path, limit: int) -> Iterator[tuple[str, Folder]]:
    """Random images of datasets."""
    for name, tar, part in (
        ("CIFAR-10", "cifar10.tar", "/train/"),
        ("CIFAR-10 dogs", "cifar10.tar", "/train/dog/"),
        ("MNIST", "mnist_test.tar", ""),
        ("MNIST ones", "mnist_test.tar", "/test/1/"),
        ("Fashion-MNIST", "fashion_mnist_train.tar", ""),
        ("Tiny-ImageNet", "tiny_imagenet_val.tar", ""),
        ("Intel scenes", "intel_scenes.tar", "/train/"),
        ("DTD", "dtd_5classes.tar", ""),
        ("casting, test", "casting.tar", "/test/ok_front/"),
        ("casting, train", "casting.tar", "/train/"),
    ):
        found = sample(data / tar, part, limit, 0)
        yield name, Folder(found, np.arange(len(found)))


def grouped(data: Path, originals: int) -> Iterator[tuple[str, Folder]]:
    """Folders whose groups are known."""
    yield "GTSRB tracks", tracks(data / "gtsrb.tar", originals)
    # Names are `DIGIT/NUMBER_POSITION.png`.
    yield "SVHN crops of a number", named(data / "svhn_crops.tar", r"train/\d/(\d+)_", 1000)
    for name, tar, part in (("CIFAR-10", "cifar10.tar", "/train/"), ("DTD", "dtd_5classes.tar", "")):
        yield f"{name}, augmented", derived(sample(data / tar, part, originals, 1), augmented)
    for name, tar, part in (
        ("Tiny-ImageNet", "tiny_imagenet_val.tar", ""),
        ("Intel scenes", "intel_scenes.tar", "/train/"),
        ("DTD", "dtd_5classes.tar", ""),
    ):
        yield f"{name}, sliding crops", derived(sample(data / tar, part, originals // 3, 1), sliding)


def sample(tar: Path, part: str, limit: int, seed: int) -> ImageDataset:
    """Random images of a tar whose names contain `part`."""
    return ImageDataset([item for item in open_images(tar).items if part in item.name]).sample(limit, seed)


def named(tar: Path, pattern: str, limit: int) -> Folder:
    """The images of random groups, which their names tell."""
    items = [(item, match[1]) for item in open_images(tar).items if (match := re.search(pattern, item.name))]
    keys = np.unique([key for _, key in items])
    chosen = set(np.random.default_rng(1).permutation(keys)[:limit])
    kept = [(item, key) for item, key in items if key in chosen]
    return Folder(ImageDataset([item for item, _ in kept]), np.searchsorted(keys, [key for _, key in kept]))


def tracks(tar: Path, limit: int) -> Folder:
    """All frames of random tracks of GTSRB's training images, whose names are `CLASS/TRACK_FRAME.png`."""
    return named(tar, r"train/(\d+/\d+)_", limit)


def derived(originals: ImageDataset, derive: Callable[[Image.Image, np.random.Generator], list[Image.Image]]) -> Folder:
    """A folder of what is made of each original. Names say nothing of the originals, such as their class."""
    places = np.random.default_rng(0).permutation(len(originals))
    items, siblings = [], []
    for i, item in enumerate(originals.items):
        for j, image in enumerate(derive(decode(item.read()), np.random.default_rng(i))):
            items.append(ImageItem(f"{places[i]:04}-{j}", partial(Image.Image.copy, image)))
            siblings.append(i)
    return Folder(ImageDataset(items), np.array(siblings))


def augmented(original: Image.Image, random: np.random.Generator) -> list[Image.Image]:
    """An image and four copies of it, each changed in one or two ways drawn at random."""
    copies = [original]
    for _ in range(4):
        copy = original
        for way in random.choice(len(WAYS), random.integers(1, 3), replace=False):
            copy = WAYS[way](copy, random)
        copies.append(copy)
    return copies


def flipped(image: Image.Image, random: np.random.Generator) -> Image.Image:
    return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)


def cropped(image: Image.Image, random: np.random.Generator) -> Image.Image:
    """Cropped by up to an eighth of the width and height."""
    width, height = image.size
    left, right = random.uniform(0, 1 / 16, 2) * width
    top, bottom = random.uniform(0, 1 / 16, 2) * height
    return image.resize(image.size, Image.Resampling.BILINEAR, (left, top, width - right, height - bottom))


def lit(image: Image.Image, random: np.random.Generator) -> Image.Image:
    """Other brightness and contrast, by up to 25 %."""
    brightness, contrast = random.uniform(0.75, 1.25, 2)
    return ImageEnhance.Contrast(ImageEnhance.Brightness(image).enhance(brightness)).enhance(contrast)


def rotated(image: Image.Image, random: np.random.Generator) -> Image.Image:
    """Rotated by up to 10 degrees, and cropped to what is inside."""
    width, height = image.size
    turned = image.rotate(random.uniform(-10, 10), Image.Resampling.BILINEAR)
    return turned.resize(image.size, Image.Resampling.BILINEAR, (width / 10, height / 10, width * 0.9, height * 0.9))


def compressed(image: Image.Image, random: np.random.Generator) -> Image.Image:
    """Compressed as JPEG of quality 40 to 90."""
    file = io.BytesIO()
    image.save(file, "JPEG", quality=int(random.integers(40, 91)))
    return Image.open(file).convert("RGB")


WAYS = (flipped, cropped, lit, rotated, compressed)


def sliding(original: Image.Image, random: np.random.Generator) -> list[Image.Image]:
    """Square crops that slide over an image in a straight line, and turn back at its edge."""
    side = int(0.6 * min(original.size))
    step = 1 - random.uniform(*OVERLAPS)
    angle = random.uniform(0, np.pi / 2)
    direction = np.array([np.cos(angle), np.sin(angle)])
    # The overlap of two squares that are shifted by (x, y) is (1 - x) (1 - y).
    x, y = direction
    length = (x + y - np.sqrt((x + y) ** 2 - 4 * x * y * step)) / (2 * x * y) if x * y > 1e-6 else step
    room = np.array(original.size) - side
    crops = []
    for frame in range(FRAMES):
        left, top = room - abs(room - frame * length * direction * side % (2 * room))
        crops.append(original.crop((round(left), round(top), round(left) + side, round(top) + side)))
    return crops


def pairs(labels: NDArray[np.intp]) -> int:
    """Number of pairs with equal labels."""
    return int(comb(np.unique(labels, return_counts=True)[1], 2).sum())


def measured(found: NDArray[np.intp], siblings: NDArray[np.intp]) -> dict[str, Any]:
    """How the groups that were found agree with those that are known."""
    _, of_found, found_sizes = np.unique(found, return_inverse=True, return_counts=True)
    _, of_known, known_sizes = np.unique(siblings, return_inverse=True, return_counts=True)
    both = of_found * len(known_sizes) + of_known
    _, of_both, both_sizes = np.unique(both, return_inverse=True, return_counts=True)
    has_sibling, with_sibling = known_sizes[of_known] > 1, both_sizes[of_both] > 1
    with_stranger = found_sizes[of_found] > both_sizes[of_both]
    known = has_sibling.any()
    return {
        "images": len(found),
        "known_groups": len(known_sizes),
        "found_groups": len(found_sizes),
        "largest_found": int(found_sizes.max()),
        "share_in_groups": float(np.mean(found_sizes[of_found] > 1)),
        "share_with_strangers": float(np.mean(with_stranger)),
        "recall_of_images": float(np.mean(with_sibling[has_sibling])) if known else None,
        "recall_of_pairs": pairs(both) / pairs(siblings) if known else None,
        "precision_of_pairs": pairs(both) / pairs(found) if known and pairs(found) else None,
    }


def mean(values: Iterable[float | None]) -> float | None:
    """Mean of those that are numbers, if any."""
    numbers = [value for value in values if value is not None]
    return float(np.mean(numbers)) if numbers else None


def some_groups(siblings: NDArray[np.intp], size: int) -> Iterator[NDArray[np.intp]]:
    """Images of random whole groups, about `size` of them, several times; or once all images."""
    if size >= len(siblings):
        yield np.arange(len(siblings))
        return
    for seed in range(DRAWS):
        order = np.random.default_rng(seed).permutation(siblings.max() + 1)[siblings]
        yield np.flatnonzero(order <= np.sort(order)[size - 1])


def time_of(images: int, data: Path) -> dict[str, Any]:
    """CPU seconds of the search, of the check of the rate, and of encoding so many images, from `TIMED` of them."""
    random = np.random.default_rng(0)
    z0 = random.standard_normal((images, COLUMNS), dtype=np.float32)
    digests = random.integers(0, 256, (images, 16), np.uint8)
    names, scores = [f"{i}.png" for i in range(images)], random.standard_normal(images)
    groups, search = cpu_seconds(lambda: found_groups(z0, digests))
    groups[1] = groups[0]  # a group of near copies, so that both tests are made
    _, checked = cpu_seconds(lambda: check(names, z0, scores, groups, 0, np.arange(images)))
    some = sample(data / "cifar10.tar", "/train/", TIMED, 0)
    with tempfile.TemporaryDirectory() as nothing:
        extractor = Detector(store=Path(nothing)).prepare_extractor()
        extractor.encode(some.sample(64))
        _, encoding = cpu_seconds(lambda: extractor.encode(some))
    return {
        "images": images,
        "columns": COLUMNS,
        "search_seconds": search,
        "check_seconds": checked,
        "encoding_seconds": encoding * images / TIMED,
    }


def cpu_seconds(work: Callable[[], T]) -> tuple[T, float]:
    """What a function returns, and the CPU seconds that it takes, which other work on the machine changes least."""
    start = time.process_time()
    return work(), time.process_time() - start


def markdown(content: dict[str, Any]) -> str:
    """The tables in Markdown."""
    lines = [
        f"`{content['command']}`",
        "",
        "Groups: known and found. In groups: images that share a found group with another, %. Recall: images with a "
        "sibling in the folder that were found to share a group with one, and pairs of siblings, %. Precision: pairs "
        "found that are siblings, %.",
        "",
        "| folder | images | known | found | largest | in groups | recall, images | recall, pairs | precision, pairs |",
        "|---" * 9 + "|",
    ]
    for row in content["rows"]:
        shares = ("share_in_groups", "recall_of_images", "recall_of_pairs", "precision_of_pairs")
        cells = [f"{row[key]:.0f}" for key in ("images", "known_groups", "found_groups", "largest_found")]
        cells += ["" if row[key] is None else f"{100 * row[key]:.1f}" for key in shares]
        lines.append(f"| {row['folder']} | {' | '.join(cells)} |")
    lines += ["", "CPU seconds:", "", "| images | columns | search | check of the rate | encoding | share |"]
    lines.append("|---" * 6 + "|")
    for row in content["times"]:
        parts = [row[f"{part}_seconds"] for part in ("search", "check", "encoding")]
        cells = [f"{row['images']:,}", f"{row['columns']:,}", *(f"{seconds:.1f}" for seconds in parts)]
        lines.append(f"| {' | '.join(cells)} | {100 * (parts[0] + parts[1]) / parts[2]:.1f} % |")
    lines += ["", f"Encoding is that of {TIMED} CIFAR-10 images, times the number. Threads: {content['threads']}."]
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    typer.run(main)
