"""Reasons and groups of refused images, on real images: how often ID images get a reason, and whether groups are right.

    python benchmarks/refused.py --data ../shared/data --output docs/refused.json

Images of a folder are divided at random: the ranges of some, reasons of the others, which are as much in distribution.
Then the others are changed, and it is counted how many get the word for the change. Groups are compared with the
sources of mixed images by the adjusted Rand index (Hubert and Arabie 1985), where images that are alone are groups of
their own. The settings of the clustering were chosen on the first mixtures only.
"""

import io
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from PIL import Image, ImageEnhance, ImageFilter
from sklearn.metrics import adjusted_rand_score

from dlsr import Detector, FittedDetector
from dlsr.calibration.reasons import LEVEL, MEASURED, PROPERTIES, Ranges, reasons
from dlsr.cli.console import progress_bars
from dlsr.encoding.store import default_store_root
from dlsr.explaining.clusters import cluster
from dlsr.images.decode import decode
from dlsr.images.properties import Properties, properties_of
from dlsr.images.sources import ImageDataset, open_images
from quality import write_report

SPLITS = 20
"""Times that each folder is divided."""
DRAWS = 5
"""Times that each mixture is drawn."""
TIMED = 200

FOLDERS = {
    "CIFAR-10": ("cifar10.tar", "/train/"),
    "MNIST": ("mnist_test.tar", ""),
    "Fashion-MNIST": ("fashion_mnist_train.tar", ""),
    "Tiny-ImageNet": ("tiny_imagenet_val.tar", ""),
    "Intel scenes": ("intel_scenes.tar", ""),
    "Intel buildings": ("intel_scenes.tar", "/buildings/"),
    "GTSRB": ("gtsrb.tar", "/test/"),
    "SVHN": ("svhn_crops.tar", ""),
    "DTD": ("dtd_5classes.tar", ""),
    "casting": ("casting.tar", "ok_front"),
}
"""ID images by name: tar, and a part of their names."""

SOURCES = {
    "buildings": ("intel_scenes.tar", "test/buildings/"),
    "forest": ("intel_scenes.tar", "test/forest/"),
    "sea": ("intel_scenes.tar", "test/sea/"),
    "glacier": ("intel_scenes.tar", "test/glacier/"),
    "mountain": ("intel_scenes.tar", "test/mountain/"),
    "street": ("intel_scenes.tar", "test/street/"),
    "casting": ("casting.tar", "test/def_front/"),
    "bubbly": ("dtd_5classes.tar", "/bubbly/"),
    "banded": ("dtd_5classes.tar", "/banded/"),
    "braided": ("dtd_5classes.tar", "/braided/"),
    "blotchy": ("dtd_5classes.tar", "/blotchy/"),
    "bumpy": ("dtd_5classes.tar", "/bumpy/"),
    "threes": ("mnist_test.tar", "test/3/"),
    "eights": ("mnist_test.tar", "test/8/"),
    "zeros": ("mnist_test.tar", "test/0/"),
    "house numbers": ("svhn_crops.tar", "/test/"),
    "shirts": ("fashion_mnist_train.tar", "train/0/"),
    "trousers": ("fashion_mnist_train.tar", "train/1/"),
    "sandals": ("fashion_mnist_train.tar", "train/5/"),
    "bags": ("fashion_mnist_train.tar", "train/8/"),
    "boots": ("fashion_mnist_train.tar", "train/9/"),
    "frogs": ("cifar10.tar", "test/frog/"),
    "ships": ("cifar10.tar", "test/ship/"),
    "trucks": ("cifar10.tar", "test/truck/"),
    "horses": ("cifar10.tar", "test/horse/"),
    "cats": ("cifar10.tar", "test/cat/"),
    "aeroplanes": ("cifar10.tar", "test/airplane/"),
    "limits": ("gtsrb.tar", "test/00002/"),
    "stop signs": ("gtsrb.tar", "test/00014/"),
    "yield signs": ("gtsrb.tar", "test/00013/"),
    "no entry": ("gtsrb.tar", "test/00017/"),
    "keep right": ("gtsrb.tar", "test/00038/"),
    "road works": ("gtsrb.tar", "test/00025/"),
    "priority": ("gtsrb.tar", "test/00012/"),
}

Mixture = dict[str, int]

CHOSEN_ON: list[Mixture] = [
    {"casting": 80, "bubbly": 60, "threes": 100, "buildings": 50},
    {"casting": 40, "threes": 60, "house numbers": 80, "boots": 30, "buildings": 30},
    {"forest": 120, "sea": 120, "glacier": 80, "buildings": 40},
    {"ships": 100, "trucks": 60, "house numbers": 80, "frogs": 20},
    {"stop signs": 65, "yield signs": 80, "no entry": 80, "limits": 10},
    {"boots": 80, "bags": 80, "threes": 50, "eights": 50, "shirts": 30},
    {"banded": 60, "bubbly": 60, "braided": 40, "casting": 30},
    {"casting": 12, "threes": 15, "boots": 20, "buildings": 10},
    {"threes": 10, "forest": 100, "casting": 8, "stop signs": 60, "buildings": 40},
]
OTHERS: list[Mixture] = [
    {"street": 20, "mountain": 70, "zeros": 70, "trousers": 40},
    {"cats": 20, "aeroplanes": 80, "horses": 80, "zeros": 30},
    {"keep right": 60, "road works": 60, "priority": 60, "bumpy": 20},
    {"sandals": 60, "trousers": 60, "blotchy": 30, "street": 30},
    {"braided": 30, "bumpy": 40, "blotchy": 40, "mountain": 40},
    {"zeros": 12, "sandals": 12, "mountain": 15, "cats": 10},
    {"aeroplanes": 200, "road works": 200, "sandals": 200, "street": 200, "zeros": 200},
]


def strip(image: Image.Image) -> Image.Image:
    return image.crop((0, 0, image.width, max(image.height // 4, 1)))


CHANGES: dict[str, tuple[str, Callable[[Image.Image], Image.Image], int]] = {
    "as they are, compressed anew": ("", lambda image: image, 92),
    "darkened to a tenth": ("dark", lambda image: ImageEnhance.Brightness(image).enhance(0.1), 92),
    "blurred, 3 pixels": ("blurry", lambda image: image.filter(ImageFilter.GaussianBlur(3)), 92),
    "grey": ("greyscale", lambda image: image.convert("L"), 92),
    "saturation trebled": ("colourful", lambda image: ImageEnhance.Color(image).enhance(3), 92),
    "cut to a strip": ("wide", strip, 92),
    "a quarter of the size": ("small", lambda image: image.reduce(4), 92),
    "JPEG quality 10": ("heavily compressed", lambda image: image, 10),
}
"""By name: the word to expect, the change, and the quality at which it is saved."""


def main(
    data: Annotated[Path, typer.Option(help="Folder with the tars of shared/data.")],
    output: Annotated[Path, typer.Option(help="JSON file to write, with a Markdown table beside it.")],
    store: Path | None = None,
) -> None:
    with progress_bars(quiet=False) as bars:
        folders, measured = [], {}
        for name, (tar, part) in FOLDERS.items():
            found = images(data / tar, part, 2 * MEASURED)
            measured[name] = [properties_of(item.read()) for item in found.items]
            folders.append({"folder": name, "images": len(found), **named(measured[name])})
        changes = changed(images(data / "dtd_5classes.tar", "", 2 * MEASURED))
        extractor = Detector(store=store or default_store_root()).prepare_extractor()
        features = {}
        for name, (tar, part) in SOURCES.items():
            found = images(data / tar, part, 200)
            features[name] = extractor.encode(found, progress=bars.images(name, len(found))).z0
    content = {
        "command": "python benchmarks/refused.py " + " ".join(sys.argv[1:]),
        "measured": MEASURED,
        "level": LEVEL,
        "properties": list(PROPERTIES),
        "folders": folders,
        "changes": changes,
        "mixtures": [
            {"chosen_on": kind, "mixture": mixture, **grouped(mixture, features)}
            for kind, mixtures in ((True, CHOSEN_ON), (False, OTHERS))
            for mixture in mixtures
        ],
        "costs": costs(data),
    }
    write_report(output, content, markdown(content))


def images(tar: Path, part: str, limit: int) -> ImageDataset:
    found = open_images(tar)
    return found.subset(i for i, item in enumerate(found.items) if part in item.name).sample(limit)


def ranges_of(measured: list[Properties]) -> Ranges:
    shared = set.intersection(*(set(each) for each in measured))
    return Ranges.of({name: np.array([each[name] for each in measured]) for name in sorted(shared)})


def named(measured: list[Properties]) -> dict[str, float]:
    """The share of ID images that get a reason: mean and largest of all divisions, in %."""
    shares = []
    for seed in range(SPLITS):
        order = np.random.default_rng(seed).permutation(len(measured))
        known = min(MEASURED, 2 * len(order) // 3)
        ranges = ranges_of([measured[i] for i in order[:known]])
        shares.append(100 * float(np.mean([bool(reasons(measured[i], ranges)) for i in order[known:]])))
    return {"ranges": known, "mean": float(np.mean(shares)), "largest": max(shares)}


def changed(found: ImageDataset) -> list[dict[str, Any]]:
    """How many changed images get the word for the change, in %, and how many words they get."""

    def saved(image: Image.Image, quality: int) -> bytes:
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=quality)
        return buffer.getvalue()

    decoded = [decode(item.read()) for item in found.items]
    half = 2 * len(decoded) // 3
    ranges = ranges_of([properties_of(saved(image, 92)) for image in decoded[:half]])
    rows = []
    for name, (word, change, quality) in CHANGES.items():
        given = [reasons(properties_of(saved(change(image), quality)), ranges) for image in decoded[half:]]
        hit = [any(word in reason.words for reason in some) for some in given]
        rows.append({"change": name, "word": word, "named": 100 * float(np.mean(hit)) if word else None,
                     "any": 100 * float(np.mean([bool(some) for some in given])),
                     "words": float(np.mean([len(some) for some in given]))})  # fmt: skip
    return rows


def grouped(mixture: Mixture, features: dict[str, Any]) -> dict[str, float]:
    """Means over draws of a mixture."""
    rows = []
    for seed in range(DRAWS):
        random = np.random.default_rng(seed)
        parts = [features[name][random.permutation(len(features[name]))[:count]] for name, count in mixture.items()]
        labels = cluster(np.concatenate(parts))
        alone = labels < 0
        apart = np.where(alone, len(labels) + np.arange(len(labels)), labels)
        truth = np.repeat(np.arange(len(parts)), [len(part) for part in parts])
        rows.append((adjusted_rand_score(truth, apart), labels.max() + 1, 100 * alone.mean()))
    index, groups, alone = np.mean(rows, axis=0)
    return {"rand": float(index), "groups": float(groups), "alone": float(alone)}


def costs(data: Path) -> list[dict[str, Any]]:
    """Milliseconds to measure an image, and to score it, both with one thread that decodes."""
    rows = []
    for name, tar, part in (
        ("CIFAR-10, 32 pixels", "cifar10.tar", "/train/"),
        ("Intel scenes, 100 pixels", "intel_scenes.tar", "/train/"),
        ("casting, 300 pixels", "casting.tar", "ok_front"),
        ("DTD, 271 to 670 pixels", "dtd_5classes.tar", ""),
    ):
        found = images(data / tar, part, TIMED)
        detector = Detector(workers=1, group_by="none").fit(found)
        fast = FittedDetector(detector._model, workers=1)
        results = fast.detect(found)
        start = time.perf_counter()
        fast.detect(found)
        scored = time.perf_counter() - start
        start = time.perf_counter()
        for item in found.items:
            properties_of(item.read())
        rows.append({"images": name, "score": 1000 * scored / len(results),
                     "measure": 1000 * (time.perf_counter() - start) / len(results)})  # fmt: skip
    return rows


def markdown(content: dict[str, Any]) -> str:
    lines = [f"`{content['command']}`", ""]
    lines += [
        f"ID images that get any reason, in %; at most {100 * content['level']:g} % are allowed. Each folder was "
        f"divided {SPLITS} times at random, into images whose ranges are known and others.",
        "",
        "| folder | ranges of | tested | mean | largest |",
        "|---|---|---|---|---|",
    ]
    for row in content["folders"]:
        tested = row["images"] - row["ranges"]
        lines.append(f"| {row['folder']} | {row['ranges']} | {tested} | {row['mean']:.1f} | {row['largest']:.1f} |")
    lines += [
        "",
        "DTD's images, changed: how many get the word for the change, how many any word, and words on average.",
        "",
        "| change | word | named, % | any, % | words |",
        "|---|---|---|---|---|",
    ]
    for row in content["changes"]:
        hit = "" if row["named"] is None else f"{row['named']:.0f}"
        lines.append(f"| {row['change']} | {row['word']} | {hit} | {row['any']:.0f} | {row['words']:.1f} |")
    lines += [
        "",
        f"Groups found in mixtures, mean of {DRAWS} draws. Adjusted Rand index: 1 = the sources, 0 = chance.",
        "",
        "| mixture | settings chosen on it | index | groups | alone, % |",
        "|---|---|---|---|---|",
    ]
    for row in content["mixtures"]:
        mixture = ", ".join(f"{count} {name}" for name, count in row["mixture"].items())
        chosen = "yes" if row["chosen_on"] else "no"
        lines.append(f"| {mixture} | {chosen} | {row['rand']:.2f} | {row['groups']:.1f} | {row['alone']:.0f} |")
    for known, words in ((True, "chosen on"), (False, "not chosen on")):
        mean = np.mean([row["rand"] for row in content["mixtures"] if row["chosen_on"] is known])
        lines.append(f"| **mean, {words}** | | **{mean:.2f}** | | |")
    lines += [
        "",
        "Time to measure an image's properties, as a share of the time to score it.",
        "",
        "| images | share, % |",
        "|---|---|",
    ]
    lines += [f"| {row['images']} | {100 * row['measure'] / row['score']:.0f} |" for row in content["costs"]]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    typer.run(main)
