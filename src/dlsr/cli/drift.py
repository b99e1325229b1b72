"""`dlsr drift`."""

from dataclasses import asdict
from typing import Annotated

import typer

from dlsr.cli.console import print_json, progress_bars, say_unreadable, show_drift
from dlsr.cli.options import (
    BackendName,
    BackendOption,
    Device,
    Json,
    Model,
    NoStore,
    Quiet,
    ScoredImages,
    Store,
    Weights,
    Workers,
    load,
)

DRIFTED = 1
"""Exit status of `dlsr drift` for images that are not in distribution any more."""

app = typer.Typer()


@app.command()
def drift(
    model: Model,
    images: ScoredImages,
    alpha: Annotated[float, typer.Option(help="Chance of an alarm on ordinary images.")] = 0.01,
    window: Annotated[
        int | None, typer.Option(help="Test so many images at a time, in order; all if not given.")
    ] = None,
    stream: Annotated[
        bool, typer.Option("--stream", help="The images' order, by name, is that in which they came: watch it too.")
    ] = False,
    weights: Weights = None,
    device: Device = "auto",
    backend: BackendOption = BackendName.AUTO,
    store: Store = None,
    no_store: NoStore = False,
    workers: Workers = 2,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Tell whether images, as a set, are still in distribution. Exit status 0: they are; 1: they are not."""
    import numpy as np  # noqa: PLC0415

    from dlsr.calibration.drift import drift as run  # noqa: PLC0415
    from dlsr.images.sources import open_images  # noqa: PLC0415

    detector = load(model, weights, device, backend, store, no_store, workers, None)
    found = open_images(images)
    with progress_bars(quiet) as bars:
        results = list(detector.results(found, progress=bars.images("scoring", len(found))))
    unreadable = {result.path: str(result.error) for result in results if result.error is not None}
    say_unreadable(unreadable, len(found))
    read = [result for result in results if result.score is not None]
    scores = np.array([result.score for result in read])
    told = run(
        scores, detector.calibration_scores_, alpha=alpha, window=window, stream=stream, seed=detector.settings_.seed
    )
    first = None if told.first_changed is None else read[told.first_changed].path
    if as_json:
        print_json(asdict(told) | {"first_changed_path": first, "unreadable": unreadable})
    else:
        show_drift(told, first)
    raise typer.Exit(DRIFTED if told.drifted else 0)
