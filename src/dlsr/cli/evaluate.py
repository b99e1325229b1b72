"""`dlsr evaluate`."""

from pathlib import Path
from typing import Annotated

import typer

from dlsr.cli.console import (
    print_evaluation,
    print_json,
    print_message,
    print_skipped,
    print_unreadable,
    progress_bars,
)
from dlsr.cli.options import Json, Mlflow, Model, OodDatasets, ProtocolName, Quiet, Runtime, named_paths, with_groups
from dlsr.files import check_writable

app = typer.Typer(add_completion=False)


@app.command()
@with_groups
def evaluate(
    model: Model,
    id_images: Annotated[Path, typer.Option("--id", help="ID images that the model was not fitted to.")],
    ood: OodDatasets,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Folder for the report and plots.")] = None,
    protocol: Annotated[
        ProtocolName, typer.Option(help="native: images as they are. matched: all resized and compressed alike first.")
    ] = ProtocolName.NATIVE,
    matched_size: Annotated[int, typer.Option(min=1, help="Side in pixels for the matched protocol.")] = 32,
    seeds: Annotated[
        int, typer.Option(min=1, help="Noise seeds to average over. Only scores that draw noise need more than one.")
    ] = 1,
    limit: Annotated[
        int | None, typer.Option(min=1, help="At most this many images of each dataset, chosen at random.")
    ] = None,
    *,
    runtime: Runtime,
    mlflow: Mlflow = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Measure how well a model separates ID from OOD images: AUROC, AUPR, FPR95."""
    from dlsr.detector import Detector  # noqa: PLC0415
    from dlsr.evaluation import evaluate as run  # noqa: PLC0415
    from dlsr.images.sources import open_images  # noqa: PLC0415

    datasets = {name: open_images(path) for name, path in named_paths(ood).items()}
    inside = open_images(id_images)
    for images in (inside, *datasets.values()):
        print_skipped(images, quiet)
    if output is not None:
        from dlsr.reports.evaluation import write_evaluation  # noqa: PLC0415

        check_writable(output / "evaluation.json")
    if mlflow is not None:
        from dlsr.mlflow import check_tracking, log_evaluation  # noqa: PLC0415

        check_tracking(mlflow)
    detector = Detector.load(model, **runtime.arguments())
    with progress_bars(quiet) as bars:
        evaluation = run(
            detector,
            inside,
            datasets,
            protocol=protocol.value,
            seeds=seeds,
            limit=limit,
            matched_size=matched_size,
            progress=bars.images,
        )
    report = evaluation.report
    print_unreadable(report.id_unreadable.items(), report.id_images + len(report.id_unreadable))
    for dataset in report.datasets:
        print_unreadable(dataset.unreadable.items(), dataset.images + len(dataset.unreadable))
    if as_json:
        print_json(report.model_dump(mode="json"))
    else:
        print_evaluation(report)
    written = []
    if output is not None:
        written = write_evaluation(output, evaluation, detector.threshold_)
        print_message(f"wrote {', '.join(str(path) for path in written)}", quiet)
    if mlflow is not None:
        print_message(f"logged as run {log_evaluation(model, report, mlflow, files=written)} at {mlflow}", quiet)
