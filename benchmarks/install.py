r"""Installing dlsr: megabytes, seconds until the first score, and whether the scores are those of PyTorch.

    python -c "from dlsr import Detector, open_images
    scenes = open_images('../shared/data/intel_scenes.tar').sample(500)
    Detector().fit(scenes).save('/tmp/install-model')"
    python benchmarks/install.py none serve serve,fast fit,fast demo dev --model /tmp/install-model \
        --images ../shared/data/intel_scenes.tar --images ../shared/data/cifar10.tar \
        --images ../shared/data/dtd_5classes.tar --output docs/install.json

Each set of extras is installed from this checkout into a fresh virtual environment, in two steps: `pip wheel` downloads
all packages without a cache, `pip install` installs them from the disk. Scores are compared with those that PyTorch
gives in the environment that runs this. Writes a JSON file, and a table beside it.
"""

import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
import venv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from dlsr.artifact import installed_versions
from dlsr.images.sources import open_images
from quality import write_report

NONE = "none"
ROUNDS, RUNS = 3, 5
LARGEST = 5
"""Packages that are named with their sizes."""

Command = Sequence[str | Path]


def main(
    sets: Annotated[list[str], typer.Argument(help=f"Extras, separated by commas, or '{NONE}'. Repeat for more sets.")],
    model: Annotated[Path, typer.Option(help="Model directory to score with.")],
    images: Annotated[list[Path], typer.Option(help="Folder or tar of images to score. Repeat for more.")],
    output: Annotated[Path, typer.Option(help="JSON file to write, with a Markdown table beside it.")],
    count: Annotated[int, typer.Option(help="Images to score, an equal share of each source.")] = 1000,
) -> None:
    with tempfile.TemporaryDirectory() as own:
        chosen = Path(own)
        write_images(images, count, chosen)
        expected = scores([sys.executable, "-m", "dlsr"], model, chosen, "--backend", "torch")
        rows = [measured(extras, model, chosen, expected) for extras in sets]
    content = {
        "command": "python benchmarks/install.py " + " ".join(sys.argv[1:]),
        "images": len(expected),
        "rows": rows,
        "python": platform.python_version(),
        "processors": os.cpu_count(),
        "versions": installed_versions(),
    }
    write_report(output, content, markdown(content))


def write_images(sources: Sequence[Path], count: int, folder: Path) -> None:
    """Write random images of each source as files, as they are. The first by name is of the first source."""
    for number, source in enumerate(sources):
        for item in open_images(source).sample(count // len(sources)).items:
            content = item.read()
            assert isinstance(content, bytes)
            (folder / f"{number}-{item.name.replace('/', '-')}").write_bytes(content)


def scores(dlsr: Command, model: Path, images: Path, *options: str) -> dict[str, float]:
    """Scores of a folder of images by name."""
    command = [*dlsr, "score", model, images, "--json", "--no-store", "--quiet", *options]
    lines = subprocess.check_output(command, text=True).splitlines()
    return {row["path"]: row["score"] for row in map(json.loads, lines)}


def measured(extras: str, model: Path, images: Path, expected: Mapping[str, float]) -> dict[str, Any]:
    """What one set of extras takes and gives."""
    wanted = "" if extras == NONE else f"[{extras}]"
    with tempfile.TemporaryDirectory() as own:
        wheels, environment = Path(own) / "wheels", Path(own) / "venv"
        venv.create(environment, with_pip=True, symlinks=True)
        python, dlsr = environment / "bin/python", environment / "bin/dlsr"
        pip: Command = [python, "-m", "pip", "--quiet", "--disable-pip-version-check"]
        download = seconds([*pip, "wheel", "--no-cache-dir", "--wheel-dir", wheels, f"{Path.cwd()}{wanted}"])
        install = seconds([*pip, "install", "--no-index", "--find-links", wheels, f"dlsr{wanted}"])
        packages = sizes(next(environment.glob("lib/python*/site-packages")))
        about = json.loads(subprocess.check_output([dlsr, "info", model, "--json"]))
        found = scores([dlsr], model, images)
        return {
            "extras": extras,
            "engine": about["backend_here"],
            "megabytes": sum(packages.values()),
            "largest": dict(sorted(packages.items(), key=lambda named: -named[1])[:LARGEST]),
            "download_megabytes": sum(sizes(wheels).values()),
            "download_seconds": download,
            "install_seconds": install,
            "help_seconds": usual_seconds([dlsr, "--help"]),
            "score_seconds": usual_seconds([dlsr, "score", model, min(images.iterdir()), "--no-store", "--quiet"]),
            "difference": greatest_difference(found, expected),
        }


def seconds(command: Command) -> float:
    """Wall time of a command."""
    start = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


def usual_seconds(command: Command) -> float:
    """Wall time of a command in a new process, after it was run once.

    Medians of some runs, of which the least is taken, since other work on the machine only adds to them.
    """
    seconds(command)
    return min(statistics.median(seconds(command) for _ in range(RUNS)) for _ in range(ROUNDS))


def sizes(folder: Path) -> dict[str, float]:
    """Megabytes on the disk of what is in a folder, by name; what ends in `.libs` belongs to the package."""
    found: dict[str, float] = {}
    for entry in folder.iterdir():
        files = [entry, *entry.rglob("*")] if entry.is_dir() else [entry]
        name = entry.name.removesuffix(".libs")
        found[name] = found.get(name, 0) + sum(file.lstat().st_blocks for file in files) * 512 / 1e6
    return found


def greatest_difference(found: Mapping[str, float], expected: Mapping[str, float]) -> float:
    """Greatest difference of scores, relative to the expected score or to the spread, whichever is larger."""
    if found.keys() != expected.keys():
        raise ValueError("other images were scored")
    a, b = (np.array([scores[name] for name in expected]) for scores in (found, expected))
    return float(np.max(np.abs(a - b) / np.maximum(np.abs(b), b.std())))


def markdown(content: dict[str, Any]) -> str:
    lines = [
        f"`{content['command']}`",
        "",
        "Installed: site-packages, with pip. An install with an empty cache takes both download and install; with "
        "everything in the cache, only the latter. First score: `dlsr score` of one image in a new process; for this "
        f"and `--help`, the least of {ROUNDS} medians of {RUNS} runs. Difference: the greatest of "
        f"{content['images']:,} scores from PyTorch's, relative to the score or to the standard deviation of scores, "
        "whichever is larger.",
        "",
        "| extras | engine | installed | download | download | install | first score | `--help` | difference |",
        "|---" * 9 + "|",
    ]
    for row in content["rows"]:
        cells = [
            f"`{row['extras']}`" if row["extras"] != NONE else NONE,
            row["engine"],
            f"{row['megabytes']:,.0f} MB",
            f"{row['download_megabytes']:,.0f} MB",
            f"{row['download_seconds']:.0f} s",
            f"{row['install_seconds']:.0f} s",
            f"{row['score_seconds']:.2f} s",
            f"{row['help_seconds']:.2f} s",
            f"{row['difference']:.1e}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    lines += ["", "The largest packages, in megabytes:", "", "| extras | packages |", "|---|---|"]
    for row in content["rows"]:
        named = ", ".join(f"{name} {megabytes:,.0f}" for name, megabytes in row["largest"].items())
        lines.append(f"| {row['extras']} | {named} |")
    lines += ["", f"Python {content['python']}, {content['processors']} processors."]
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    typer.run(main)
