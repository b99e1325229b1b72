"""`dlsr report`."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from dlsr.cli.console import no_unreadable_warnings, print_message, print_skipped, print_unreadable, progress_bars
from dlsr.cli.options import Every, FalseAlarmRate, Fdr, Images, Model, Quiet, Runtime, check_fdr_option, with_groups
from dlsr.files import check_writable

app = typer.Typer(add_completion=False)


class LayoutName(StrEnum):
    """Layouts of the map."""

    PCA = "pca"
    UMAP = "umap"


@app.command()
@with_groups
def report(
    model: Model,
    images: Images,
    output: Annotated[Path, typer.Option("--output", "-o", help="HTML file to write.")],
    title: Annotated[str | None, typer.Option(help="Title of the page. Default: the path of the images.")] = None,
    false_alarm_rate: FalseAlarmRate = None,
    fdr: Fdr = None,
    every: Every = None,
    layout: Annotated[
        LayoutName, typer.Option(help="How the map is laid out: by principal components, or by UMAP.")
    ] = LayoutName.PCA,
    *,
    runtime: Runtime,
    quiet: Quiet = False,
) -> None:
    """Score images and write a self-contained HTML report."""
    from dlsr.images.sources import open_images  # noqa: PLC0415
    from dlsr.reports.html import write_html_report  # noqa: PLC0415

    check_fdr_option(fdr, false_alarm_rate)
    check_writable(output)
    detector = runtime.load(model, false_alarm_rate)
    dataset = open_images(images, every=every)
    print_skipped(dataset, quiet)
    with no_unreadable_warnings(), progress_bars(quiet) as bars:
        progress = bars.images("scoring", len(dataset))
        summary = write_html_report(
            output, detector, dataset, title=title or str(images), fdr=fdr, layout=layout.value, progress=progress
        )
    print_unreadable(summary.unreadable, len(dataset))
    print_message(
        f"{summary.ood} of {len(summary.scores)} images are out of distribution at {summary.rule}; report in {output}",
        quiet,
    )
    if summary.why_none is not None:
        print_message(summary.why_none, quiet)
