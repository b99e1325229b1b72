"""`dlsr select`."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dlsr.calibration.promise import promise
from dlsr.cli.console import (
    print_json,
    print_message,
    print_skipped,
    print_unreadable,
    progress_bars,
    results_file,
)
from dlsr.cli.options import FalseAlarmRate, Images, Json, Model, Quiet, Runtime, with_groups
from dlsr.errors import OutputError, SettingsError
from dlsr.files import add_file, check_writable, replacing

if TYPE_CHECKING:
    from dlsr.images.sources import ImageDataset
    from dlsr.selection import Selection

COLUMNS = ("path", "score", "p_value", "is_ood", "top_layer", "copies", "copied_to")

app = typer.Typer(add_completion=False)


@app.command()
@with_groups
def select(
    model: Model,
    images: Images,
    count: Annotated[int, typer.Option("--count", "-n", min=1, help="Number of images to select.")] = 50,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="CSV file to write. Default: CSV on stdout.")
    ] = None,
    copy: Annotated[
        Path | None, typer.Option(help="Copy the images into this folder. Nothing in it is overwritten.")
    ] = None,
    fill: Annotated[
        bool,
        typer.Option("--fill", help="If fewer are out of distribution, add the images with the next highest scores."),
    ] = False,
    false_alarm_rate: FalseAlarmRate = None,
    *,
    runtime: Runtime,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Select diverse OOD images, without copies, to label or to add to a fit."""
    from dlsr.images.sources import open_images  # noqa: PLC0415
    from dlsr.results import write_rows  # noqa: PLC0415
    from dlsr.selection import select as choose  # noqa: PLC0415

    if copy is not None:
        _check_copy(copy, images)
    if output is not None:
        check_writable(output)
    detector = runtime.load(model, false_alarm_rate)
    dataset = open_images(images)
    print_skipped(dataset, quiet)
    with progress_bars(quiet) as bars:
        chosen = choose(detector, dataset, count, fill=fill, progress=bars.images("scoring", len(dataset)))
    print_unreadable(chosen.unreadable.items(), len(dataset))
    copied = {} if copy is None else _copied(chosen, dataset, copy)
    rows = list(_rows(chosen, copied))
    if output is not None:
        with replacing(output) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
            write_rows(file, COLUMNS, rows)
    if as_json:
        counts = {"images": chosen.images, "ood": chosen.ood, "distinct": chosen.distinct}
        print_json({**counts, "unreadable": chosen.unreadable, "selected": rows})
    elif output is None:
        write_rows(results_file(), COLUMNS, rows)
    _print_selected(chosen, count, fill, promise(detector.false_alarm_rate, detector.confidence), quiet)
    if output is not None:
        print_message(f"wrote {output}", quiet)
    if copy is not None:
        print_message(f"copied {len(copied)} images to {copy}", quiet)


def _rows(chosen: "Selection", copied: dict[int, Path]) -> Iterator[dict[str, Any]]:
    from dlsr.images.names import in_utf8  # noqa: PLC0415

    for i, result, copies in zip(chosen.positions, chosen.results, chosen.copies, strict=True):
        path = copied.get(i)
        given = result.row() | {"copies": copies, "copied_to": None if path is None else in_utf8(str(path))}
        yield {name: given[name] for name in COLUMNS}


def _print_selected(chosen: "Selection", count: int, fill: bool, rule: str, quiet: bool) -> None:
    """Say how many images were selected, and why not more."""
    selected, refused = len(chosen.results), sum(bool(result.is_ood) for result in chosen.results)
    distinct = "" if chosen.distinct == chosen.ood else f", {chosen.distinct} of them no copies of another"
    print_message(
        f"selected {selected} of {chosen.images} images; {chosen.ood} are out of distribution at {rule}{distinct}",
        quiet,
    )
    if selected > refused:
        print_message(f"{selected - refused} of those selected are in distribution: they have the next scores", quiet)
    elif selected < count and not fill:
        print_message("these are all; --fill adds the images with the next highest scores", quiet)
    elif selected < count:
        print_message("these are all: the others are near copies of them", quiet)


def _check_copy(folder: Path, images: Path) -> None:
    """Raise an error if images cannot be copied there, before any is scored.

    Raises:
        SettingsError: if it is inside the folder of the images, where the next run would find them.
        OutputError: if it is no folder.
    """
    if folder.resolve().is_relative_to(images.resolve()) and images.is_dir():
        raise SettingsError(f"--copy '{folder}' is inside '{images}'; copy to another folder")
    if folder.exists() and not folder.is_dir():
        raise OutputError(f"cannot copy to '{folder}': it is no folder; give another name")


def _copied(chosen: "Selection", images: "ImageDataset", folder: Path) -> dict[int, Path]:
    """Copy the chosen images. Gives their paths by position, without those that cannot be read any more.

    The latter are named on stderr.
    """
    from PIL.Image import Image  # noqa: PLC0415

    from dlsr.images.decode import UNREADABLE, reason_of  # noqa: PLC0415
    from dlsr.images.png import as_png  # noqa: PLC0415

    copied: dict[int, Path] = {}
    lost: list[tuple[str, str]] = []
    for i in sorted(chosen.positions):  # the order in which frames of a clip are read fastest
        item = images.items[i]
        try:
            content = item.read()
        except UNREADABLE as error:
            lost.append((item.name, reason_of(error)))
            continue
        name = Path(item.name).name
        if isinstance(content, Image):  # a frame of a clip
            name, content = f"{name}.png", as_png(content)
        assert isinstance(content, bytes)  # as all other sources of the command line are files
        copied[i] = add_file(folder, name, content)
    print_unreadable(lost, len(chosen.positions))
    return copied
