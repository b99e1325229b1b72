"""`dlsr report`."""

from pathlib import Path
from typing import Annotated

import typer

from dlsr.cli.console import progress_bars, say, say_unreadable
from dlsr.cli.options import (
    BackendName,
    BackendOption,
    Device,
    Model,
    NoStore,
    Quiet,
    Rate,
    ScoredImages,
    Store,
    Weights,
    Workers,
    load,
)

app = typer.Typer()


@app.command()
def report(
    model: Model,
    images: ScoredImages,
    output: Annotated[Path, typer.Option("--output", "-o", help="HTML file to write.")],
    title: Annotated[str | None, typer.Option(help="What the images are; their path if not given.")] = None,
    false_alarm_rate: Rate = None,
    weights: Weights = None,
    device: Device = "auto",
    backend: BackendOption = BackendName.AUTO,
    store: Store = None,
    no_store: NoStore = False,
    workers: Workers = 2,
    quiet: Quiet = False,
) -> None:
    """Score images and write one self-contained HTML page about them."""
    from dlsr.images.sources import open_images  # noqa: PLC0415
    from dlsr.reports.html import write_html_report  # noqa: PLC0415

    detector = load(model, weights, device, backend, store, no_store, workers, false_alarm_rate)
    found = open_images(images)
    with progress_bars(quiet) as bars:
        summary = write_html_report(
            output, detector, found, title=title or str(images), progress=bars.images("scoring", len(found))
        )
    say_unreadable(summary.unreadable, len(found))
    say(f"{summary.ood} of {len(summary.scores)} images are out of distribution; report in {output}", quiet)
