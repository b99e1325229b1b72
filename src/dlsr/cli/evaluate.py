"""`dlsr evaluate`."""

from pathlib import Path
from typing import Annotated

import typer

from dlsr.cli.console import print_json, progress_bars, say, say_unreadable, show_report
from dlsr.cli.options import (
    BackendName,
    BackendOption,
    Device,
    Json,
    Model,
    NoStore,
    ProtocolName,
    Quiet,
    Store,
    Weights,
    Workers,
    load,
    named_sets,
)

app = typer.Typer()


@app.command()
def evaluate(
    model: Model,
    id_images: Annotated[Path, typer.Option("--id", help="ID images that the model was not fitted to.")],
    ood: Annotated[list[str], typer.Option("--ood", help="An OOD set, NAME=FOLDER or NAME=TAR. Repeatable.")],
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Folder for JSON and pictures.")] = None,
    protocol: Annotated[
        ProtocolName, typer.Option(help="native: as is. matched: all images resized and compressed alike first.")
    ] = ProtocolName.NATIVE,
    matched_size: Annotated[int, typer.Option(min=1, help="Side in pixels for the matched protocol.")] = 32,
    seeds: Annotated[int, typer.Option(min=1, help="Noise seeds to average over.")] = 1,
    limit: Annotated[int | None, typer.Option(min=1, help="At most so many images a set, at random.")] = None,
    weights: Weights = None,
    device: Device = "auto",
    backend: BackendOption = BackendName.AUTO,
    store: Store = None,
    no_store: NoStore = False,
    workers: Workers = 2,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Measure how well a model separates ID from OOD images: AUROC, AUPR, FPR95."""
    from dlsr.evaluation import evaluate as run  # noqa: PLC0415

    sets = named_sets(ood)
    detector = load(model, weights, device, backend, store, no_store, workers, None)
    with progress_bars(quiet) as bars:
        done = run(
            detector,
            id_images,
            sets,
            protocol=protocol.value,
            seeds=seeds,
            limit=limit,
            matched_size=matched_size,
            progress=bars.images,
        )
    report = done.report
    say_unreadable(report.id_unreadable, report.id_images + len(report.id_unreadable))
    for one_set in report.sets:
        say_unreadable(one_set.unreadable, one_set.images + len(one_set.unreadable))
    if as_json:
        print_json(report.model_dump(mode="json"))
    else:
        show_report(report)
    if output is not None:
        from dlsr.reports.evaluation import write_evaluation  # noqa: PLC0415

        written = write_evaluation(output, done, detector.threshold_)
        say(f"wrote {', '.join(str(path) for path in written)}", quiet)
