"""`dlsr calibrate`."""

from pathlib import Path
from typing import Annotated

import typer

from dlsr.calibration.promise import promise
from dlsr.cli.console import print_doubts, print_message, print_skipped, progress_bars, unreadable_warnings_as_lines
from dlsr.cli.options import Every, FalseAlarmRate, GroupBy, Model, Quiet, Runtime, with_groups
from dlsr.errors import SettingsError

app = typer.Typer(add_completion=False)


@app.command()
@with_groups
def calibrate(
    model: Model,
    images: Annotated[
        Path | None,
        typer.Option(help="ID images to calibrate on, not used in the fit. Default: keep the fit's calibration."),
    ] = None,
    false_alarm_rate: FalseAlarmRate = None,
    confidence: Annotated[
        float | None,
        typer.Option(
            help="Probability, such as 0.95, that the rate holds for this model; 0 for a rate that holds on average "
            "over fits. Default: the model's."
        ),
    ] = None,
    group_by: GroupBy = None,
    every: Every = None,
    *,
    runtime: Runtime,
    quiet: Quiet = False,
) -> None:
    """Change a model's false-alarm rate or calibration images, without refitting."""
    from dlsr.images.sources import open_images  # noqa: PLC0415

    if images is None and false_alarm_rate is None and confidence is None:
        raise SettingsError("nothing to change: give --images, --false-alarm-rate or --confidence")
    if images is None and group_by is not None:
        raise SettingsError("--group-by is for the images of --images; give both")
    if images is None and every is not None:
        raise SettingsError("--every is for the images of --images; give both")
    detector = runtime.load(model, false_alarm_rate)
    if confidence is not None:
        detector.confidence = confidence or None
    if group_by is not None:
        detector.group_by = group_by
    if images is not None:
        dataset = open_images(images, every=every)
        print_skipped(dataset, quiet)
        with unreadable_warnings_as_lines(), progress_bars(quiet) as bars:
            detector.calibrate(dataset, progress=bars.images("encoding", len(dataset)))
    threshold = detector.threshold_
    detector.save(model)
    promised = promise(detector.false_alarm_rate, detector.confidence)
    print_message(f"threshold {threshold:.6g} at {promised}", quiet)
    if images is not None:
        print_doubts(detector.fit_summary_, quiet)
