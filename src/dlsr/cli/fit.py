"""`dlsr fit`."""

import os
import shutil
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dlsr.calibration.promise import promise
from dlsr.cli.console import (
    no_unreadable_warnings,
    print_doubts,
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
    Mlflow,
    Pooling,
    PrecisionName,
    Quiet,
    ResizerName,
    Runtime,
    whole_numbers,
    with_groups,
)
from dlsr.cli.score_settings import CommandWithScoreSettings
from dlsr.errors import OutputError, SettingsError
from dlsr.files import left_of, remove_old

if TYPE_CHECKING:
    from dlsr.addition import Addition
    from dlsr.detector import Detector
    from dlsr.training.distributed import Ranks

app = typer.Typer(add_completion=False)


@app.command(cls=CommandWithScoreSettings)
@with_groups
def fit(
    context: typer.Context,
    images: Annotated[
        str | None,
        typer.Argument(
            help="Folder, tar, clip or image file with in-distribution images. With --add: those of the last fit, if "
            "the feature store does not hold their features.",
            show_default=False,
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", help="Model directory to write. Default: with --add, that of --model.", show_default=False
        ),
    ] = None,
    add: Annotated[
        Path | None,
        typer.Option(
            help="Folder, tar or image file to add to the images that --model was fitted to: a fit to all of them with "
            "the settings of that model.",
            show_default=False,
        ),
    ] = None,
    model: Annotated[Path | None, typer.Option(help="The model to add images to.", show_default=False)] = None,
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
            help="Precision of the encoder. bfloat16 and int8 are faster, by OpenVINO; int8 needs the extra quantise."
        ),
    ] = PrecisionName.FLOAT32,
    pooling: Pooling = None,
    false_alarm_rate: Annotated[float, typer.Option(help="Share of ID images that may be called OOD.")] = 0.05,
    confidence: Confidence = None,
    calibration: Annotated[
        CalibrationName,
        typer.Option(
            help="Which scores set the threshold: of held-out images, or of all, each as if left out of the fit. "
            "auto: leave-one-out where the score can."
        ),
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
    mlflow: Mlflow = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Learn what in-distribution images look like. An interrupted fit resumes when run again.

    Under torchrun or accelerate launch, the processes share encoding and training.
    """
    if mlflow is not None:
        from dlsr.mlflow import check_tracking  # noqa: PLC0415

        check_tracking(mlflow)
    if add is not None or model is not None:
        _fit_with_added(context, images, output, add, model, runtime, mlflow, quiet, as_json)
        return
    if images is None or output is None:
        raise SettingsError("give images to fit to and an --output; or --add and --model, to add images to a model")
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
            _save(detector, output)
            _print_fitted(detector, output, quiet, as_json)
            _log(output, mlflow, quiet)


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
    encoding = _beside(output, "encoding")
    if encoding.is_dir() and any(encoding.iterdir()) and not (encoding / "run.json").is_file():
        raise OutputError(
            f"'{encoding}' holds other files, but is needed for the encoding; move it, or give another -o"
        )
    with no_unreadable_warnings(), progress_bars(quiet) as bars:
        on_plan, on_part = bars.parts("parts encoded")
        encoded = encode_with_ray(
            detector,
            source,
            str(encoding),
            address=address,
            workers=detector.workers,
            images_per_part=images_per_part,
            on_ignored=skipped_printer(quiet),
            on_plan=on_plan,
            on_part=on_part,
        )
        detector.fit_encoded(encoded, checkpoint=_beside(output, "checkpoint"), on_epoch=bars.epochs("training"))


def _fit_with_added(
    context: typer.Context,
    old: str | None,
    output: Path | None,
    add: Path | None,
    model: Path | None,
    runtime: Runtime,
    mlflow: str | None,
    quiet: bool,
    as_json: bool,
) -> None:
    from dlsr.detector import Detector  # noqa: PLC0415
    from dlsr.images.sources import open_images  # noqa: PLC0415
    from dlsr.model_folder import check_output  # noqa: PLC0415
    from dlsr.training.distributed import joined  # noqa: PLC0415

    if add is None or model is None:
        raise SettingsError("--add and --model belong together: dlsr fit --add FOLDER --model MODEL")
    _check_only_runtime(context)
    detector, output = Detector.load(model, **runtime.arguments()), output or model
    check_output(output)
    new, again = open_images(add), open_images(old) if old is not None else None
    with joined() as ranks:
        quiet = quiet or not ranks.is_first
        print_skipped(new, quiet)
        with no_unreadable_warnings(), progress_bars(quiet) as bars:
            addition = detector.add(
                new,
                old=again,
                checkpoint=_beside(output, "checkpoint"),
                progress=bars.images("encoding", len(new) + len(again or ())),
                on_epoch=bars.epochs("training"),
                ranks=ranks,
            )
        if ranks.is_first:
            _save(detector, output)
            _print_fitted(detector, output, quiet, as_json, addition)
            _log(output, mlflow, quiet)


def _check_only_runtime(context: typer.Context) -> None:
    """With --add, a fit takes no other options than those that say where and how it runs."""
    allowed = {
        "images",
        "output",
        "add",
        "model",
        "mlflow",
        "quiet",
        "as_json",
        *(field.name for field in fields(Runtime)),
    }
    source = context.get_parameter_source
    given = [name for name in context.params if (found := source(name)) is not None and found.name == "COMMANDLINE"]
    for name in (*given, *context.obj):
        if name not in allowed:
            option = "--" + name.replace("_", "-")
            raise SettingsError(
                f"{option} stays as the model has it; leave it out with --add, or fit anew to all images"
            )


def _save(detector: "Detector", output: Path) -> None:
    from dlsr.training.checkpoint import remove_checkpoint  # noqa: PLC0415

    detector.save(output)
    checkpoint = _beside(output, "checkpoint")
    remove_checkpoint(checkpoint)
    remove_old(left_of(checkpoint), seconds=60)  # not those of another fit, which may be about to be renamed
    _remove_run(_beside(output, "encoding"))


def _remove_run(folder: Path) -> None:
    """Remove what a fit with Ray has encoded; a folder of another kind is kept."""
    if (folder / "run.json").is_file():
        shutil.rmtree(folder, ignore_errors=True)


def _log(output: Path, uri: str | None, quiet: bool) -> None:
    if uri is not None:
        from dlsr.mlflow import log_fit  # noqa: PLC0415

        print_message(f"logged as run {log_fit(output, uri)} at {uri}", quiet)


def _beside(output: Path, suffix: str) -> Path:
    """Where an interrupted fit keeps its state."""
    whole = Path(os.path.abspath(output))  # noqa: PTH100 - the name must not be empty, and links stay
    return whole.with_name(f"{whole.name}.{suffix}")


def _print_fitted(
    detector: "Detector", output: Path, quiet: bool, as_json: bool, addition: "Addition | None" = None
) -> None:
    from dlsr.config import AUTO  # noqa: PLC0415

    summary = detector.fit_summary_
    images = summary.training_images + summary.validation_images
    images += 0 if summary.left_out else summary.calibration_images
    if addition is None:
        print_unreadable(summary.unreadable.items(), images + len(summary.unreadable))
    else:
        given = addition.added + addition.copies + len(addition.unreadable)
        print_unreadable(addition.unreadable.items(), given)
    if as_json:
        added = {} if addition is None else {"addition": addition.model_dump()}
        print_json(summary.model_dump() | {"model": str(output), "threshold": detector.threshold_} | added)
    else:
        print_message(
            f"fitted to {summary.training_images} images, calibrated on "
            f"{'each, left out in turn' if summary.left_out else f'{summary.calibration_images} others'}; "
            f"threshold {detector.threshold_:.6g} at {promise(detector.false_alarm_rate, detector.confidence)}; "
            f"model in {output}",
            quiet,
        )
        if addition is not None:
            for line in _changes(addition):
                print_message(line, quiet)
        if summary.groups < images and summary.grouped_by == AUTO:
            print_message(
                f"{images} images, about {summary.groups} distinct: near copies were found and grouped: the rate holds "
                "for new images that are not copies; use --group-by if you know the groups",
                quiet,
            )
        print_doubts(summary, quiet)
        if summary.unlike:
            name, deviation = next(iter(summary.unlike.items()))
            print_message(
                f"{len(summary.unlike)} of {summary.examined_images} images look unlike the rest, above all {name} "
                f"({deviation:g} standard deviations): see `dlsr info {output} --unlike`. If they do not belong, "
                "remove them and fit again, or fit with a larger --trim",
                quiet,
            )


def _changes(addition: "Addition") -> list[str]:
    """What an addition changed, in lines."""
    before, now = addition.scores_before, addition.scores
    of = f"the {now.images} earlier images" if addition.paired else "the calibration images"
    left_out = f"; left out as copies of these: {addition.copies}" if addition.copies else ""
    lines = [
        f"added {addition.added} images to {addition.images_before}{left_out}",
        f"threshold: {addition.threshold_before:.6g} before, {addition.threshold:.6g} now",
        f"of the added images {addition.ood_before} were out of distribution before, {addition.ood} are now",
        f"scores of {of}: mean {before.mean:.3g} before, {now.mean:.3g} now; median {before.median:.3g}, "
        f"{now.median:.3g}; largest {before.max:.3g}, {now.max:.3g}",
    ]
    if addition.largest_change is not None:
        lines[-1] += f"; the one that moved most, by {addition.largest_change:+.3g}"
    if addition.recalibrated:
        lines.append("the images that the model was calibrated on are not kept: give them to dlsr calibrate again")
    return lines
