"""`dlsr drift`."""

from dataclasses import asdict
from typing import Annotated

import typer

from dlsr.cli.console import print_drift, print_json, print_unreadable, progress_bars
from dlsr.cli.options import Images, Json, Model, Quiet, Runtime, with_groups

DRIFTED = 1
"""Exit status if the images are no longer in distribution."""

app = typer.Typer()


@app.command()
@with_groups
def drift(
    model: Model,
    images: Images,
    alpha: Annotated[float, typer.Option(help="Probability of an alarm on in-distribution images.")] = 0.01,
    window: Annotated[
        int | None, typer.Option(help="Test this many images at a time, in order. Default: all at once.")
    ] = None,
    stream: Annotated[
        bool, typer.Option("--stream", help="Also test the order of the images: sorted by name, as they arrived.")
    ] = False,
    *,
    runtime: Runtime,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Test whether images, taken together, are still in distribution. Exit status 0: they are; 1: they are not."""
    import numpy as np  # noqa: PLC0415

    from dlsr.calibration.drift import drift as test_drift  # noqa: PLC0415
    from dlsr.images.sources import open_images  # noqa: PLC0415

    detector = runtime.load(model)
    dataset = open_images(images)
    with progress_bars(quiet) as bars:
        results = list(detector.results(dataset, progress=bars.images("scoring", len(dataset))))
    unreadable = {result.path: result.error for result in results if result.error is not None}
    print_unreadable(unreadable, len(dataset))
    readable = [result for result in results if result.error is None]
    report = test_drift(
        np.array([result.score for result in readable]),
        detector.calibration_scores_,
        alpha=alpha,
        window=window,
        stream=stream,
        seed=detector.settings_.seed,
    )
    first = None if report.first_changed is None else readable[report.first_changed].path
    if as_json:
        print_json(asdict(report) | {"first_changed_path": first, "unreadable": unreadable})
    else:
        print_drift(report, first)
    raise typer.Exit(DRIFTED if report.drifted else 0)
