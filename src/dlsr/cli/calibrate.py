"""`dlsr calibrate`."""

from pathlib import Path
from typing import Annotated

import typer

from dlsr.cli.console import progress_bars, quiet_library, say
from dlsr.cli.options import (
    BackendName,
    BackendOption,
    Device,
    Model,
    NoStore,
    Quiet,
    Rate,
    Store,
    Weights,
    Workers,
    load,
)
from dlsr.errors import SettingsError

app = typer.Typer()


@app.command()
def calibrate(
    model: Model,
    images: Annotated[
        Path | None, typer.Option(help="ID images to calibrate on instead of those held out when fitting.")
    ] = None,
    false_alarm_rate: Rate = None,
    weights: Weights = None,
    device: Device = "auto",
    backend: BackendOption = BackendName.AUTO,
    store: Store = None,
    no_store: NoStore = False,
    workers: Workers = 2,
    quiet: Quiet = False,
) -> None:
    """Change a model's false-alarm rate, or what it is calibrated on, without refitting."""
    from dlsr.images.sources import open_images  # noqa: PLC0415

    if images is None and false_alarm_rate is None:
        raise SettingsError("nothing to change: give --false-alarm-rate, --images or both")
    detector = load(model, weights, device, backend, store, no_store, workers, false_alarm_rate)
    if images is not None:
        found = open_images(images)
        with quiet_library(), progress_bars(quiet) as bars:
            detector.calibrate(found, progress=bars.images("encoding", len(found)))
    cut = detector.threshold_
    detector.save(model)
    say(f"threshold {cut:.6g} at a false-alarm rate of {100 * detector.false_alarm_rate:g} %", quiet)
