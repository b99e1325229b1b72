"""The picture of a report in the README: a fit to three kinds of clothes, and new images with others among them.

    python benchmarks/report_picture.py --data ../shared/data --work /tmp/picture --output docs/images/report.png

Needs Chromium. Prints how many of the new images of each kind are out of distribution.
"""

import subprocess
from pathlib import Path
from typing import Annotated

import typer

from dlsr import Detector, open_images
from dlsr.cli.app import app

FITTED = 700
"""Images of each kind that are fitted to; the next are new."""
NEW = 60
KINDS = {"0": "t-shirt", "1": "trousers", "3": "dress"}
"""Classes of Fashion-MNIST."""
OTHERS = {"5": "sandal", "7": "sneaker", "8": "bag", "9": "boot"}
OF_EACH_OTHER = 5
DIGITS = 30
WIDTH, HEIGHT = 1072, 1530
"""Of the picture, in pixels."""


def main(
    data: Annotated[Path, typer.Option(help="Folder with the tars of shared/data.")],
    work: Annotated[Path, typer.Option(help="Folder for the images, the model and the report.")],
    output: Annotated[Path, typer.Option(help="PNG file to write.")],
) -> None:
    photos, new, model, page = work / "photos", work / "new", work / "model", work / "report.html"
    clothes = by_class(data / "fashion_mnist_train.tar")
    for kind, name in KINDS.items():
        write(photos, name, clothes[kind][:FITTED])
        write(new, name, clothes[kind][FITTED : FITTED + NEW])
    for kind, name in OTHERS.items():
        write(new, name, clothes[kind][:OF_EACH_OTHER])
    digits = by_class(data / "mnist_test.tar")
    for digit in sorted(digits):
        write(new, f"digit-{digit}", digits[digit][: DIGITS // len(digits)])

    Detector().fit(photos).save(model)
    title = ["--title", "New photographs of clothes"]
    app(["report", str(model), str(new), "--output", str(page), *title], standalone_mode=False)
    results = Detector.load(model).detect(new)
    for name in [*KINDS.values(), *OTHERS.values(), "digit"]:
        of_kind = [f"/{name}-" in path for path in results.paths]
        print(f"{name}: {(results.verdicts[of_kind] == 1).sum()} of {sum(of_kind)} out of distribution")
    screen = [f"--screenshot={output.absolute()}", f"--window-size={WIDTH},{HEIGHT}", "--hide-scrollbars"]
    subprocess.run(
        ["chromium", "--headless", "--no-sandbox", *screen, page.absolute().as_uri()], check=True, capture_output=True
    )


def by_class(tar: Path) -> dict[str, list[tuple[str, bytes]]]:
    """Names and contents of the images, by the name of their folder."""
    found: dict[str, list[tuple[str, bytes]]] = {}
    for item in open_images(tar).items:
        content = item.read()
        assert isinstance(content, bytes)
        found.setdefault(Path(item.name).parent.name, []).append((Path(item.name).name, content))
    return found


def write(folder: Path, kind: str, images: list[tuple[str, bytes]]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in images:
        (folder / f"{kind}-{name}").write_bytes(content)


if __name__ == "__main__":
    typer.run(main)
