r"""Scoring from files, with this checkout against another one, side by side.

    git worktree add /tmp/before 6f3c615
    python benchmarks/against.py --before /tmp/before --images ../shared/data/dtd_5classes.tar \
        --output docs/against.json

Each round runs each checkout once, in a process of its own, so that a slow minute of the machine is slow for all. The
dependencies are the same. Photographs of 12 megapixels are made of the same images. Writes a JSON file, and a table
beside it.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from PIL import Image

from dlsr.images.decode import decode
from dlsr.images.sources import ImageDataset, open_images
from quality import write_report

MEASURE = """
import json, sys, time
from dlsr import Detector, open_images
source, count, settings = sys.argv[1], int(sys.argv[2]), json.loads(sys.argv[3])
images = open_images(source)
images = images.subset(i % len(images) for i in range(count))
detector = Detector(group_by="none", calibration="held-out", score="knn", **settings).fit(images.subset(range(64)))
detector.detect(images.subset(range(16)))
start = time.perf_counter()
scores = detector.detect(images).scores
print(json.dumps(len(scores) / (time.perf_counter() - start)))
"""


def main(
    before: Annotated[Path, typer.Option(help="The other checkout.")],
    images: Annotated[Path, typer.Option(help="Folder or tar of photographs.")],
    output: Annotated[Path, typer.Option(help="JSON file to write, with a Markdown table beside it.")],
    count: Annotated[int, typer.Option(help="Images in a round.")] = 400,
    rounds: int = 5,
) -> None:
    with tempfile.TemporaryDirectory() as own:
        large = Path(own) / "large"
        enlarged(open_images(images), large)
        rows = []
        for name, source, n in (("as they are", images, count), ("12 megapixels", large, count // 3)):
            rates: dict[str, list[float]] = {"before": [], "now": [], "now, bfloat16": []}
            for _ in range(rounds):
                rates["before"].append(rate(before, source, n, {}))
                rates["now"].append(rate(Path.cwd(), source, n, {}))
                rates["now, bfloat16"].append(rate(Path.cwd(), source, n, {"precision": "bfloat16"}))
            rows += [
                {
                    "images": name,
                    "code": code,
                    "images_per_second": float(np.median(found)),
                    "over_before": float(np.median(np.array(found) / rates["before"])),
                }
                for code, found in rates.items()
            ]
    content = {
        "command": "python benchmarks/against.py " + " ".join(sys.argv[1:]),
        "before": commit(before),
        "now": commit(Path.cwd()),
        "rows": rows,
    }
    write_report(output, content, markdown(content))


def enlarged(images: ImageDataset, folder: Path, count: int = 16) -> None:
    """Write JPEG files of 4000x3000 pixels, with the details and the noise that photographs of that size have."""
    folder.mkdir()
    random = np.random.default_rng(0)
    for i, item in enumerate(images.items[:count]):
        pixels = np.asarray(decode(item.read()).resize((4000, 3000), Image.Resampling.BICUBIC), np.int16)
        noisy = pixels + random.integers(-8, 9, pixels.shape, dtype=np.int16)
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(folder / f"{i:02}.jpg", quality=90)


def rate(checkout: Path, source: Path, count: int, settings: dict[str, Any]) -> float:
    """Images per second with the code of a checkout."""
    arguments = [sys.executable, "-c", MEASURE, str(source), str(count), json.dumps(settings)]
    environment = os.environ | {"PYTHONPATH": str(checkout / "src")}
    done = subprocess.run(arguments, env=environment, check=True, stdout=subprocess.PIPE, text=True)
    return float(json.loads(done.stdout))


def commit(checkout: Path) -> str:
    return subprocess.check_output(["git", "-C", str(checkout), "rev-parse", "--short", "HEAD"], text=True).strip()


def markdown(content: dict[str, Any]) -> str:
    lines = [
        f"`{content['command']}`",
        "",
        f"Before: commit {content['before']}. Now: {content['now']}. Medians of rounds.",
        "",
        "| images | code | images/s | over before |",
        "|---|---|---|---|",
    ]
    for row in content["rows"]:
        lines.append(f"| {row['images']} | {row['code']} | {row['images_per_second']:.0f} | {row['over_before']:.2f} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    typer.run(main)
