"""`dlsr fit`."""

import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dlsr.calibration.promise import promise
from dlsr.cli.console import (
    no_unreadable_warnings,
    print_json,
    print_message,
    print_skipped,
    print_unreadable,
    progress_bars,
    skipped_printer,
)
from dlsr.cli.options import (
    Address,
    CalibrationName,
    Confidence,
    DecodingName,
    Engine,
    EngineName,
    Every,
    GroupBy,
    ImagesPerPart,
    Json,
    Pooling,
    PrecisionName,
    Quiet,
    ResizerName,
    Runtime,
    whole_numbers,
    with_groups,
)
from dlsr.cli.score_settings import CommandWithScoreSettings
from dlsr.errors import SettingsError
from dlsr.files import left_of, remove_old

if TYPE_CHECKING:
    from dlsr.detector import Detector
    from dlsr.training.distributed import Ranks

app = typer.Typer()


@app.command(cls=CommandWithScoreSettings)
@with_groups
def fit(
    context: typer.Context,
    images: Annotated[str, typer.Argument(help="Folder, tar, clip or image file with in-distribution images.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Model directory to write.")],
    encoder: Annotated[str, typer.Option(help="Encoder preset, or a timm network.")] = "efficientnet_lite0",
    score: Annotated[str | None, typer.Option(help="How images are scored.")] = None,
    preset: Annotated[str | None, typer.Option(help="The score's settings to start from.")] = None,
    stages: Annotated[str | None, typer.Option(help="Encoder stages, counted from 0, such as 1,2,3.")] = None,
    decoding: Annotated[
        DecodingName,
        typer.Option(help="draft decodes large JPEGs at a fraction of their size, which is faster."),
    ] = DecodingName.DRAFT,
    resizer: Annotated[
        ResizerName, typer.Option(help="What resizes images; auto: cykooz, which is faster, where it is installed.")
    ] = ResizerName.AUTO,
    precision: Annotated[
        PrecisionName,
        typer.Option(
            help="Of the encoder; bfloat16 is faster on processors that multiply in it, int8 (8 bits) on others."
        ),
    ] = PrecisionName.FLOAT32,
    pooling: Pooling = None,
    false_alarm_rate: Annotated[float, typer.Option(help="Share of ID images that may be called OOD.")] = 0.05,
    confidence: Confidence = None,
    calibration: Annotated[
        CalibrationName,
        typer.Option(help="On held-out images, or on all, each as if left out; auto: the latter where possible."),
    ] = CalibrationName.AUTO,
    group_by: GroupBy = None,
    seed: Annotated[int, typer.Option(help="Seed of the split, training and noise.")] = 0,
    thumbnails: Annotated[
        int, typer.Option(min=0, help="Keep this many training images as thumbnails, to show beside new images.")
    ] = 0,
    maps: Annotated[
        bool, typer.Option("--maps", help="Also learn to show where images deviate, for `dlsr score --maps`.")
    ] = False,
    every: Every = None,
    *,
    runtime: Runtime,
    engine: Engine = EngineName.LOCAL,
    address: Address = None,
    images_per_part: ImagesPerPart = 4096,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Learn what in-distribution images look like. An interrupted fit resumes when run again.

    Under torchrun or accelerate launch, the processes share encoding and training.
    """
    from dlsr.config import AUTO  # noqa: PLC0415
    from dlsr.detector import Detector  # noqa: PLC0415
    from dlsr.model_folder import check_output  # noqa: PLC0415
    from dlsr.training.distributed import joined  # noqa: PLC0415

    check_output(output)
    detector = Detector(
        encoder,
        score,
        preset=preset,
        stages=whole_numbers(stages, "--stages"),
        decoding=decoding.value,
        resizer=resizer.value,
        precision=precision.value,
        pooling=None if pooling is None else pooling.value,
        false_alarm_rate=false_alarm_rate,
        confidence=confidence,
        calibration=calibration.value,
        group_by=group_by or AUTO,
        seed=seed,
        thumbnails=thumbnails,
        maps=maps,
        **runtime.arguments(),
        **context.obj,
    )
    with joined() as ranks:
        quiet = quiet or not ranks.is_first
        if engine is EngineName.LOCAL:
            _fit_here(detector, Path(images), every, output, ranks, quiet)
        elif every is not None:
            raise SettingsError("--every is for clips, which --engine ray does not read; leave it out")
        elif ranks.size > 1:
            raise SettingsError(
                "--engine ray runs in a single process; encode with it first, then train with torchrun, without it"
            )
        else:
            _fit_with_ray(detector, images, output, address, images_per_part, quiet)
        if ranks.is_first:
            detector.save(output)
            checkpoint = _beside(output, "checkpoint")
            checkpoint.unlink(missing_ok=True)
            remove_old(left_of(checkpoint), seconds=60)  # not those of another fit, which may be about to be renamed
            shutil.rmtree(_beside(output, "encoding"), ignore_errors=True)
            _print_fitted(detector, output, quiet, as_json)


def _fit_here(detector: "Detector", images: Path, every: str | None, output: Path, ranks: "Ranks", quiet: bool) -> None:
    from dlsr.images.sources import open_images  # noqa: PLC0415

    dataset = open_images(images, every=every)
    print_skipped(dataset, quiet)
    with no_unreadable_warnings(), progress_bars(quiet) as bars:
        detector.fit(
            dataset,
            checkpoint=_beside(output, "checkpoint"),
            progress=bars.images("encoding", len(dataset)),
            on_epoch=bars.epochs("training"),
            ranks=ranks,
        )


def _fit_with_ray(
    detector: "Detector", source: str, output: Path, address: str | None, images_per_part: int, quiet: bool
) -> None:
    from dlsr.scale.ray_engine import encode_with_ray  # noqa: PLC0415

    for option in ("thumbnails", "maps"):
        if getattr(detector, option):
            raise SettingsError(f"--{option} does not work with --engine ray; leave it out")
    with no_unreadable_warnings(), progress_bars(quiet) as bars:
        on_plan, on_part = bars.parts("parts encoded")
        encoded = encode_with_ray(
            detector,
            source,
            str(_beside(output, "encoding")),
            address=address,
            workers=detector.workers,
            images_per_part=images_per_part,
            on_ignored=skipped_printer(quiet),
            on_plan=on_plan,
            on_part=on_part,
        )
        detector.fit_encoded(encoded, checkpoint=_beside(output, "checkpoint"), on_epoch=bars.epochs("training"))


def _beside(output: Path, suffix: str) -> Path:
    """Where an interrupted fit keeps its state."""
    whole = Path(os.path.abspath(output))  # noqa: PTH100 - the name must not be empty, and links stay
    return whole.with_name(f"{whole.name}.{suffix}")


def _print_fitted(detector: "Detector", output: Path, quiet: bool, as_json: bool) -> None:
    from dlsr.config import AUTO  # noqa: PLC0415

    summary = detector.fit_summary_
    images = summary.training_images + summary.validation_images
    images += 0 if summary.left_out else summary.calibration_images
    print_unreadable(summary.unreadable.items(), images + len(summary.unreadable))
    if as_json:
        print_json(summary.model_dump() | {"model": str(output), "threshold": detector.threshold_})
    else:
        print_message(
            f"fitted to {summary.training_images} images, calibrated on "
            f"{'each, left out in turn' if summary.left_out else f'{summary.calibration_images} others'}; "
            f"threshold {detector.threshold_:.6g} at {promise(detector.false_alarm_rate, detector.confidence)}; "
            f"model in {output}",
            quiet,
        )
        if summary.groups < images and summary.grouped_by == AUTO:
            print_message(
                f"{images} images, about {summary.groups} distinct: near copies are grouped, so that the rate holds "
                "for images that are none; give --group-by if you know better",
                quiet,
            )
        if summary.check.fired:
            print_message(f"the false-alarm rate may not hold: {summary.check.message}", quiet)
        if summary.unlike:
            name, deviation = next(iter(summary.unlike.items()))
            print_message(
                f"{len(summary.unlike)} of {summary.examined_images} images look unlike the rest, above all {name} "
                f"({deviation:g} standard deviations): see `dlsr info {output} --unlike`. If they do not belong, "
                "remove them and fit again, or fit with a larger --trim",
                quiet,
            )
