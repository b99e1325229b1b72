"""`dlsr audit`."""

from pathlib import Path
from typing import Annotated

import typer

from dlsr.cli.console import (
    print_audit,
    print_json,
    print_message,
    print_skipped,
    print_unreadable,
    progress_bars,
)
from dlsr.cli.options import Images, Json, Quiet, Runtime, with_groups
from dlsr.errors import SettingsError
from dlsr.files import check_writable

FAULTY = 1
"""Exit status if images have a fault that counts."""

app = typer.Typer(add_completion=False)


@app.command()
@with_groups
def audit(
    images: Images,
    against: Annotated[
        Path | None,
        typer.Option(
            help="Folder, tar or image file, such as the test images, to check for leaks: images shared with IMAGES."
        ),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="CSV file to write, one row for each image.")
    ] = None,
    page: Annotated[Path | None, typer.Option("--html", help="HTML page to write, with thumbnails.")] = None,
    fail_on: Annotated[
        str,
        typer.Option(
            help="Faults that make the exit status 1, such as unreadable,exact-copies,exact-leaks; all or none."
        ),
    ] = "all",
    encoder: Annotated[str, typer.Option(help="Encoder preset, or a timm network.")] = "efficientnet_lite0",
    *,
    runtime: Runtime,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Examine an image folder before a fit: copies, leaks, faulty images. Exit status 0: no fault; 1: faults."""
    from dlsr.audit import audit as examine  # noqa: PLC0415
    from dlsr.detector import Detector  # noqa: PLC0415
    from dlsr.images.sources import open_images  # noqa: PLC0415
    from dlsr.reports.audit import write_audit_page  # noqa: PLC0415

    counted = _counted(fail_on, against is not None)
    for path in (output, page):
        if path is not None:
            check_writable(path)
    detector = Detector(encoder, **runtime.arguments())
    dataset, other = open_images(images), None if against is None else open_images(against)
    print_skipped(dataset, quiet)
    if other is not None:
        print_skipped(other, quiet)
    with progress_bars(quiet) as bars:
        found = examine(
            dataset,
            against=other,
            detector=detector,
            progress=bars.images("examining", len(dataset)),
            against_progress=None if other is None else bars.images("examining the others", len(other)),
        )
    print_unreadable(found.unreadable, len(dataset))
    print_unreadable(found.against_unreadable.items(), 0 if other is None else len(other))
    if output is not None:
        found.to_csv(output)
        print_message(f"wrote {output}", quiet)
    if page is not None:
        write_audit_page(page, found, dataset, against=other, title=str(images))
        print_message(f"wrote {page}", quiet)
    if as_json:
        print_json(found.as_dict())
    else:
        print_audit(found)
    raise typer.Exit(FAULTY if found.faulty(counted) else 0)


def _counted(fail_on: str, with_others: bool) -> tuple[str, ...]:
    """The faults that count for the exit status.

    Raises:
        SettingsError: for a name that is no fault, or leaks if there is nothing to leak into.
    """
    from dlsr.audit import FAULTS  # noqa: PLC0415

    if fail_on in ("all", "none"):
        return tuple(FAULTS) if fail_on == "all" else ()
    names = tuple(name.strip() for name in fail_on.split(","))
    for name in names:
        if name not in FAULTS:
            raise SettingsError(f"--fail-on takes all, none, or some of {','.join(FAULTS)}; got '{name}'")
        if name.endswith("-leaks") and not with_others:
            raise SettingsError(f"--fail-on {name} needs --against, the folder that must not share images")
    return names
