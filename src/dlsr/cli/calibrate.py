"""`dlsr calibrate`."""

from pathlib import Path
from typing import Annotated

import typer

from dlsr.cli.console import no_unreadable_warnings, print_message, progress_bars
from dlsr.cli.options import FalseAlarmRate, Model, Quiet, Runtime, with_groups
from dlsr.errors import SettingsError

app = typer.Typer()


@app.command()
@with_groups
def calibrate(
    model: Model,
    images: Annotated[
        Path | None, typer.Option(help="ID images to calibrate on instead of those held out by the fit.")
    ] = None,
    false_alarm_rate: FalseAlarmRate = None,
    *,
    runtime: Runtime,
    quiet: Quiet = False,
) -> None:
    """Change a model's false-alarm rate or calibration images, without refitting."""
    from dlsr.images.sources import open_images  # noqa: PLC0415

    if images is None and false_alarm_rate is None:
        raise SettingsError("nothing to change: give --false-alarm-rate, --images or both")
    detector = runtime.load(model, false_alarm_rate)
    if images is not None:
        dataset = open_images(images)
        with no_unreadable_warnings(), progress_bars(quiet) as bars:
            detector.calibrate(dataset, progress=bars.images("encoding", len(dataset)))
    threshold = detector.threshold_
    detector.save(model)
    print_message(f"threshold {threshold:.6g} at a false-alarm rate of {100 * detector.false_alarm_rate:g} %", quiet)
