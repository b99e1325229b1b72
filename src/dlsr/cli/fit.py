"""`dlsr fit`."""

import shutil
from pathlib import Path
from typing import Annotated, Any

import typer

from dlsr.cli.console import print_json, progress_bars, quiet_library, say, say_unreadable
from dlsr.cli.options import (
    Address,
    BackendName,
    BackendOption,
    DecodingName,
    Device,
    Engine,
    EngineName,
    ImagesPerPart,
    Json,
    NoStore,
    Quiet,
    Rate,
    Store,
    Weights,
    Workers,
    numbers,
    store_of,
)
from dlsr.errors import SettingsError

app = typer.Typer()


@app.command()
def fit(
    images: Annotated[str, typer.Argument(help="Folder, tar or image file with in-distribution images.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Model directory to write.")],
    encoder: Annotated[str, typer.Option(help="Encoder preset, or a network of timm.")] = "efficientnet_lite0",
    preset: Annotated[str | None, typer.Option(help="default, fast or paper.")] = None,
    score: Annotated[str | None, typer.Option(help="residual, mfsim, mse, lr, mahalanobis, knn, ..")] = None,
    stages: Annotated[str | None, typer.Option(help="Encoder stages from 0, such as 1,2,3.")] = None,
    weights: Weights = None,
    decoding: Annotated[
        DecodingName, typer.Option(help="draft decodes large JPEGs at a fraction of their size: quicker, other scores.")
    ] = DecodingName.FULL,
    t: Annotated[str | None, typer.Option(help="Time(s) of the restoration, such as 70 or 9,6,3.")] = None,
    draws: Annotated[int | None, typer.Option(help="Noise draws to average over.")] = None,
    epochs: Annotated[int | None, typer.Option(help="Most epochs of training.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Of training.")] = None,
    lr: Annotated[float | None, typer.Option(help="Learning rate.")] = None,
    width: Annotated[int | None, typer.Option(help="Width of LFDN.")] = None,
    blocks: Annotated[int | None, typer.Option(help="Blocks of LFDN.")] = None,
    neighbours: Annotated[int | None, typer.Option(help="k of the knn score.")] = None,
    false_alarm_rate: Rate = 0.05,
    seed: Annotated[int, typer.Option(help="Of everything random.")] = 0,
    device: Device = "auto",
    backend: BackendOption = BackendName.AUTO,
    store: Store = None,
    no_store: NoStore = False,
    workers: Workers = 2,
    thumbnails: Annotated[
        int, typer.Option(min=0, help="Keep so many training images as thumbnails, to show beside new ones.")
    ] = 0,
    quiet: Quiet = False,
    as_json: Json = False,
    engine: Engine = EngineName.LOCAL,
    address: Address = None,
    images_per_part: ImagesPerPart = 4096,
) -> None:
    """Learn what in-distribution images look like. An interrupted fit goes on when run again.

    Started by torchrun or accelerate launch, the processes share encoding and training.
    """
    from dlsr.artifact import check_output  # noqa: PLC0415
    from dlsr.detector import Detector  # noqa: PLC0415
    from dlsr.training.distributed import joined  # noqa: PLC0415

    check_output(output)
    detector = Detector(
        encoder,
        score,
        preset=preset,
        stages=numbers(stages, "--stages"),
        weights=weights,
        decoding=decoding.value,
        t=numbers(t, "--t"),
        draws=draws,
        epochs=epochs,
        batch_size=batch_size,
        lr=lr,
        width=width,
        blocks=blocks,
        neighbours=neighbours,
        false_alarm_rate=0.05 if false_alarm_rate is None else false_alarm_rate,
        seed=seed,
        device=device,
        backend=backend.value,
        store=store_of(store, no_store),
        workers=workers,
        thumbnails=thumbnails,
    )
    with joined() as ranks:
        quiet = quiet or not ranks.is_first
        if engine is EngineName.LOCAL:
            _fit_here(detector, Path(images), output, ranks, quiet)
        elif ranks.size > 1:
            raise SettingsError(
                "--engine ray is started once; encode with it first, then train with torchrun, without it"
            )
        else:
            _fit_with_ray(detector, images, output, address, images_per_part, quiet)
        if ranks.is_first:
            detector.save(output)
            _beside(output, "checkpoint").unlink(missing_ok=True)
            shutil.rmtree(_beside(output, "encoding"), ignore_errors=True)
            _say_fitted(detector, output, quiet, as_json)


def _fit_here(detector: Any, images: Path, output: Path, ranks: Any, quiet: bool) -> None:
    from dlsr.images.sources import open_images  # noqa: PLC0415

    found = open_images(images)
    if found.ignored:
        say(f"passed over {len(found.ignored)} files that are not images, such as {found.ignored[0]}", quiet)
    with quiet_library(), progress_bars(quiet) as bars:
        detector.fit(
            found,
            checkpoint=_beside(output, "checkpoint"),
            progress=bars.images("encoding", len(found)),
            on_epoch=bars.epochs("training"),
            ranks=ranks,
        )


def _fit_with_ray(
    detector: Any, source: str, output: Path, address: str | None, images_per_part: int, quiet: bool
) -> None:
    from dlsr.scale.ray_engine import encode_with_ray  # noqa: PLC0415

    if detector.thumbnails:
        raise SettingsError("--thumbnails needs the images at hand; leave it out with --engine ray")
    with quiet_library(), progress_bars(quiet) as bars:
        on_plan, on_part = bars.parts("parts encoded")
        encoded = encode_with_ray(
            detector,
            source,
            str(_beside(output, "encoding")),
            address=address,
            workers=detector.workers,
            images_per_part=images_per_part,
            on_plan=on_plan,
            on_part=on_part,
        )
        detector.fit_encoded(encoded, checkpoint=_beside(output, "checkpoint"), on_epoch=bars.epochs("training"))


def _beside(output: Path, suffix: str) -> Path:
    """Where an interrupted fit leaves what it has."""
    return output.with_name(f"{output.name}.{suffix}")


def _say_fitted(detector: Any, output: Path, quiet: bool, as_json: bool) -> None:
    summary = detector.fit_summary_
    images = summary.training_images + summary.validation_images + summary.calibration_images
    say_unreadable(summary.unreadable, images + len(summary.unreadable))
    if as_json:
        print_json(summary.model_dump() | {"model": str(output), "threshold": detector.threshold_})
    else:
        say(
            f"fitted to {summary.training_images} images, calibrated on {summary.calibration_images} others; "
            f"threshold {detector.threshold_:.6g} at a false-alarm rate of {100 * detector.false_alarm_rate:g} %; "
            f"model in {output}",
            quiet,
        )
