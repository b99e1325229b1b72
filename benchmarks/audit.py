"""The faults that `dlsr audit` finds, beside those that cleanvision finds in the same folders.

    python benchmarks/audit.py --data ../shared/data --cleanvision VENV/bin/python --output docs/cleanvision.json

cleanvision runs in a Python of its own: `python -m venv VENV; VENV/bin/pip install cleanvision`. The last folder is
damaged on purpose: copies, resized, recompressed, mirrored and cropped copies, dark, bright, blurred, grey and
one-colour images, odd shapes and sizes, files that are no images.
"""

import json
import random
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer
from PIL import Image, ImageEnhance, ImageFilter

from dlsr import Detector
from dlsr.artifact import installed_versions
from dlsr.audit import audit
from dlsr.cli.console import progress_bars
from dlsr.encoding.store import default_store_root
from dlsr.images.sources import open_images
from quality import write_report

FOLDERS = {
    "casting, test": ("casting.tar", "casting/test"),
    "Intel scenes, test": ("intel_scenes.tar", "intel_scenes/test"),
    "Tiny-ImageNet": ("tiny_imagenet_val.tar", "tiny_imagenet_val/val"),
    "DTD": ("dtd_5classes.tar", "dtd_10classes/images"),
    "MNIST": ("mnist_test.tar", "mnist_test/test"),
    "SVHN crops": ("svhn_crops.tar", "svhn_crops_derived/train"),
}
"""Tar and the folder in it."""
THEIRS = {
    "exact-copies": "exact_duplicates",
    "near-copies": "near_duplicates",
    "dark": "dark",
    "bright": "light",
    "blurry": "blurry",
    "low-information": "low_information",
    "grey": "grayscale",
    "odd-aspect": "odd_aspect_ratio",
    "odd-size": "odd_size",
}
"""cleanvision's names of our faults."""
ORIGINALS = 200
"""Images of the damaged folder before the damage."""
BLURRED = ("casting, test", "Intel scenes, test", "Tiny-ImageNet", "DTD")
"""Folders of which images are also blurred, by a Gaussian ..."""
BLUR = 0.04
"""... with a standard deviation of this share of the longer side."""
BLURRED_IMAGES = 100
CLEANVISION = """
import json, sys
from importlib.metadata import version
from cleanvision import Imagelab
lab = Imagelab(filepaths=json.loads(sys.stdin.read()))
lab.find_issues(n_jobs=1, verbose=False)
issues = lab.issues
found = {name: list(issues.index[issues[f"is_{name}_issue"] == True]) for name in sys.argv[1:]}
print("\\n" + json.dumps({"version": version("cleanvision"), "found": found}))
"""


def main(
    data: Annotated[Path, typer.Option(help="Folder with the tars of shared/data.")],
    cleanvision: Annotated[Path, typer.Option(help="A Python that has cleanvision.")],
    output: Annotated[Path, typer.Option(help="JSON file to write, with a Markdown table beside it.")],
    images: Annotated[int, typer.Option(help="Images of each folder, at most, drawn at random.")] = 1000,
    store: Path | None = None,
) -> None:
    detector = Detector(store=store or default_store_root())
    rows: list[dict[str, Any]] = []
    versions = {}
    with tempfile.TemporaryDirectory() as temporary, progress_bars(quiet=False) as bars:
        for name, folder in folders(data, Path(temporary), images):
            dataset = open_images(folder)
            found = audit(dataset, detector=detector, progress=bars.images(name, len(dataset)))
            ours = {kind: {found.names[i] for i in positions} for kind, positions in found.faults.items()}
            # A file that is cut off ends cleanvision's run.
            readable = [name for name, error in zip(found.names, found.errors, strict=True) if error is None]
            theirs, versions["cleanvision"] = found_by_cleanvision(cleanvision, readable)
            for kind, name_there in THEIRS.items():
                a, b = ours[kind], set(theirs[name_there])
                row = {"folder": name, "images": len(readable), "fault": kind, "dlsr": len(a), "cleanvision": len(b)}
                rows.append(row | {"both": len(a & b)})
                if name == "damaged":
                    only = {"only dlsr": kinds(a - b), "only cleanvision": kinds(b - a)}
                    rows[-1] |= {key: value for key, value in only.items() if value}
    content = {
        "command": "python benchmarks/audit.py " + " ".join(sys.argv[1:]),
        "rows": rows,
        "versions": installed_versions() | versions,
    }
    write_report(output, content, rendered(content))


def kinds(names: set[str]) -> dict[str, int]:
    """How many images of each kind of damage there are, by the names that `damage` gives."""
    return dict(sorted(Counter(Path(name).stem.rpartition("-")[0] or "original" for name in names).items()))


def found_by_cleanvision(python: Path, names: list[str]) -> tuple[dict[str, list[str]], str]:
    """Names of the images with each issue, and cleanvision's version."""
    command = [str(python), "-c", CLEANVISION, *THEIRS.values()]
    done = subprocess.run(command, input=json.dumps(names), capture_output=True, text=True, check=True)
    answer = json.loads(done.stdout.splitlines()[-1])
    return answer["found"], answer["version"]


def folders(data: Path, place: Path, most: int) -> Iterator[tuple[str, Path]]:
    """Folders of images on disk, the damaged one last."""
    for name, (tar, inside) in FOLDERS.items():
        folder = place / tar
        with tarfile.open(data / tar) as archive:
            members = [m for m in archive if m.isfile() and m.name.startswith(inside) and not m.name.endswith(".txt")]
            for member in random.Random(0).sample(members, min(most, len(members))):
                archive.extract(member, folder, filter="data")
        yield name, folder
        found = [Path(item.name) for item in open_images(folder).items]
        if name in BLURRED:
            blur(random.Random(0).sample(found, min(BLURRED_IMAGES, len(found))), place / f"{tar}-blurred")
            yield f"{name}, blurred", place / f"{tar}-blurred"
        if tar == "intel_scenes.tar":
            originals = found
    damage(random.Random(0).sample(originals, min(ORIGINALS, len(originals))), place / "damaged")
    yield "damaged", place / "damaged"


def blur(originals: list[Path], folder: Path) -> None:
    """Copy originals into a folder, out of focus."""
    folder.mkdir()
    for i, path in enumerate(originals):
        image = Image.open(path).convert("RGB")
        image.filter(ImageFilter.GaussianBlur(BLUR * max(image.size))).save(folder / f"{i:03}.png")


def damage(originals: list[Path], folder: Path) -> None:
    """Copy originals into a folder, with damaged copies beside them."""
    folder.mkdir()
    for i, path in enumerate(originals):
        shutil.copy(path, folder / f"{i:03}.jpg")
    left = iter(sorted(folder.iterdir()))

    def opened() -> Image.Image:
        return Image.open(next(left)).convert("RGB")

    for i in range(10):
        shutil.copy(next(left), folder / f"exact-{i}.jpg")
        opened().resize((150, 150)).save(folder / f"enlarged-{i}.jpg")
    for i in range(5):
        opened().resize((60, 60)).save(folder / f"reduced-{i}.jpg")
        opened().save(folder / f"saved as PNG-{i}.png")
        opened().save(folder / f"recompressed-{i}.jpg", quality=40)
        opened().transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(folder / f"mirrored-{i}.jpg")
        opened().crop((5, 5, 95, 95)).save(folder / f"cropped-{i}.jpg")
        ImageEnhance.Brightness(opened()).enhance(0.15).save(folder / f"dark-{i}.jpg")
        opened().point(lambda value: 250 + value // 60).save(folder / f"bright-{i}.jpg")
        opened().filter(ImageFilter.GaussianBlur(8)).save(folder / f"blurred-{i}.jpg")
        opened().convert("L").save(folder / f"grey-{i}.jpg")
        opened().convert("L").convert("RGB").save(folder / f"grey as RGB-{i}.png")
        opened().crop((0, 0, 100, 20)).save(folder / f"wide-{i}.jpg")
        opened().resize((900, 900)).save(folder / f"huge-{i}.jpg")
    for colour in ("red", "white", "black"):
        Image.new("RGB", (100, 100), colour).save(folder / f"one colour-{colour}.png")
    (folder / "broken-empty.jpg").write_bytes(b"")
    (folder / "broken-cut.jpg").write_bytes(originals[0].read_bytes()[:900])


def rendered(content: dict[str, Any]) -> str:
    lines = [f"`{content['command']}`", ""]
    lines += ["Images with each fault: found by dlsr, by cleanvision, and by both.", ""]
    kinds = list(THEIRS)
    lines.append(f"| folder | images | {' | '.join(kinds)} |")
    lines.append("|---" * (2 + len(kinds)) + "|")
    cells: dict[tuple[str, int], list[str]] = {}
    for row in content["rows"]:
        both = "" if row["both"] == row["dlsr"] == row["cleanvision"] else f", both {row['both']}"
        cell = f"{row['dlsr']}, {row['cleanvision']}{both}"
        cells.setdefault((row["folder"], row["images"]), []).append(cell)
    lines += [f"| {name} | {n} | {' | '.join(row)} |" for (name, n), row in cells.items()]
    lines += ["", "The damaged folder, where the two differ:", ""]
    lines += ["| fault | only dlsr | only cleanvision |", "|---|---|---|"]
    for row in content["rows"]:
        if row["folder"] == "damaged" and ("only dlsr" in row or "only cleanvision" in row):
            differences = [row.get(key, {}) for key in ("only dlsr", "only cleanvision")]
            told = [", ".join(f"{count} {kind}" for kind, count in only.items()) for only in differences]
            lines.append(f"| {row['fault']} | {' | '.join(told)} |")
    versions = ", ".join(f"{name} {version}" for name, version in content["versions"].items())
    return "\n".join([*lines, "", f"Versions: {versions}.", ""])


if __name__ == "__main__":
    typer.run(main)
