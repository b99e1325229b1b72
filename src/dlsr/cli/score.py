"""`dlsr score`."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
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
    results_file,
    skipped_printer,
)
from dlsr.cli.options import (
    Address,
    Engine,
    EngineName,
    Every,
    FalseAlarmRate,
    Fdr,
    FormatName,
    ImagesPerPart,
    Json,
    Model,
    Quiet,
    Runtime,
    check_fdr_option,
    with_groups,
)
from dlsr.errors import NoImagesError, SettingsError
from dlsr.files import partial_path

if TYPE_CHECKING:
    from dlsr.results import Result

app = typer.Typer()


@app.command()
@with_groups
def score(
    model: Model,
    images: Annotated[
        str,
        typer.Argument(
            help="Folder, tar, clip or image file; with --engine ray also shards, Parquet, a URL or hf:DATASET."
        ),
    ],
    output: Annotated[
        str | None,
        typer.Option(
            "--output",
            "-o",
            help="A .csv, .jsonl or .parquet file; with --format a folder, with --engine ray a folder or its URL. "
            "Default: CSV on stdout.",
        ),
    ] = None,
    output_format: Annotated[
        FormatName,
        typer.Option("--format", help="table: by the suffix of --output; others: a folder that this tool imports."),
    ] = FormatName.TABLE,
    image_root: Annotated[
        str | None,
        typer.Option(
            help="With --format: the path or URL that stands for IMAGES where the other tool runs.", show_default=False
        ),
    ] = None,
    false_alarm_rate: FalseAlarmRate = None,
    fdr: Fdr = None,
    maps: Annotated[
        Path | None,
        typer.Option(help="Folder for pictures of where each image deviates; for models fitted with --maps."),
    ] = None,
    every: Every = None,
    *,
    runtime: Runtime,
    engine: Engine = EngineName.LOCAL,
    address: Address = None,
    images_per_part: ImagesPerPart = 1000,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Score images: how anomalous each is, its p-value, and whether it is out of distribution."""
    check_fdr_option(fdr, false_alarm_rate)
    if output_format is not FormatName.TABLE and (output is None or engine is not EngineName.LOCAL):
        raise SettingsError(
            f"--format {output_format.value} needs --output FOLDER, and does not work with --engine ray"
        )
    if output_format is FormatName.TABLE and image_root is not None:
        raise SettingsError("--image-root is for --format; give both")
    if engine is EngineName.LOCAL:
        form = output_format, image_root
        _score_here(model, images, output, form, false_alarm_rate, fdr, maps, every, runtime, quiet, as_json)
    elif maps is not None:
        raise SettingsError("--maps does not work with --engine ray; leave out one of them")
    elif every is not None:
        raise SettingsError("--every is for clips, which --engine ray does not read; leave it out")
    elif fdr is not None:
        raise SettingsError("--fdr needs the p-values of all images at once; score without --engine ray")
    elif output is None:
        raise SettingsError("--engine ray needs --output FOLDER")
    else:
        _score_with_ray(model, images, output, false_alarm_rate, runtime, address, images_per_part, quiet, as_json)


def _score_here(
    model: Path,
    source: str,
    output: str | None,
    form: tuple[FormatName, str | None],
    false_alarm_rate: float | None,
    fdr: float | None,
    maps: Path | None,
    every: str | None,
    runtime: Runtime,
    quiet: bool,
    as_json: bool,
) -> None:
    import numpy as np  # noqa: PLC0415

    from dlsr.calibration.fdr import why_none  # noqa: PLC0415
    from dlsr.images.sources import open_images  # noqa: PLC0415
    from dlsr.reports.formats import FORMATS, ImageRoot  # noqa: PLC0415
    from dlsr.reports.maps import write_maps  # noqa: PLC0415
    from dlsr.reports.tables import check_output, write_jsonl, write_results  # noqa: PLC0415
    from dlsr.results import write_csv  # noqa: PLC0415

    check: Callable[[Path], None] = check_output
    write: Callable[[Path, Iterable[Result]], None] = write_results
    if form[0] is not FormatName.TABLE:
        other_tool = FORMATS[form[0].value](ImageRoot(Path(source), form[1]))
        check, write = other_tool.check, other_tool.write
    if output is not None:
        check(Path(output))
    detector = runtime.load(model, false_alarm_rate)
    dataset = open_images(Path(source), every=every)
    of_images = None if maps is None else detector.anomaly_maps(dataset)
    print_skipped(dataset, quiet)
    counter, why, drawn = _Counter(), None, 0
    with progress_bars(quiet) as bars, _partial_rows_named(output, counter, quiet):
        progress = bars.images("scoring", len(dataset))
        if fdr is None:
            results: Iterable[Result] = detector.results(dataset, progress=progress)
            rule = promise(detector.false_alarm_rate, detector.confidence)
        else:
            with no_unreadable_warnings():
                together = detector.detect(dataset, progress=progress).at_fdr(fdr)
            results, rule = together, together.rule
            why = why_none(together.p_values, float(detector.p_values_of([np.inf])[0]), fdr)
        if output is not None:
            write(Path(output), counter.count(results))
        else:
            (write_jsonl if as_json else write_csv)(results_file(), counter.count(results))
        if maps is not None and of_images is not None:
            names = [item.name for item in dataset.items]
            drawn = write_maps(maps, of_images, names, bars.images("drawing maps", len(dataset)))
    if output is not None and as_json:
        skipped = len(dataset.ignored) + len(dataset.linked_folders)
        summary = {
            "images": len(dataset),
            "ood": counter.ood,
            "unreadable": dict(counter.unreadable),
            "skipped": skipped,
            "output": output,
        }
        print_json(summary if fdr is None else summary | {"fdr": fdr, "why_none": why})
    print_unreadable(counter.unreadable, len(dataset))
    if counter.scored == 0:
        raise NoImagesError(f"none of the {len(dataset)} images can be read; see the reasons above")
    if maps is not None:
        print_message(f"{drawn} maps in {maps}", quiet)
    print_message(
        f"{counter.ood} of {counter.scored} images are out of distribution at {rule}"
        + (f"; results in {output}" if output else ""),
        quiet,
    )
    if why is not None:
        print_message(why, quiet)


@contextmanager
def _partial_rows_named(output: str | None, counter: "_Counter", quiet: bool) -> Iterator[None]:
    """If the block fails, say where the rows are that were done."""
    try:
        yield
    except BaseException:
        if output is not None and counter.rows and (partial := partial_path(Path(output))).exists():
            print_message(f"the first {counter.rows} results are in {partial}", quiet)
        raise


def _score_with_ray(
    model: Path,
    source: str,
    output: str,
    false_alarm_rate: float | None,
    runtime: Runtime,
    address: str | None,
    images_per_part: int,
    quiet: bool,
    as_json: bool,
) -> None:
    from dlsr.scale.ray_engine import score_with_ray  # noqa: PLC0415

    with progress_bars(quiet) as bars:
        on_plan, on_part = bars.parts("parts scored")
        summary = score_with_ray(
            model,
            source,
            output,
            address=address,
            workers=runtime.workers,
            images_per_part=images_per_part,
            false_alarm_rate=false_alarm_rate,
            weights=runtime.weights,
            device=runtime.device,
            backend=runtime.backend.value,
            on_ignored=skipped_printer(quiet),
            on_plan=on_plan,
            on_part=on_part,
        )
    if as_json:
        print_json(asdict(summary) | {"output": output})
    before = f", {summary.parts_before} of {summary.parts} parts were done before" if summary.parts_before else ""
    print_message(
        f"{summary.ood} of {summary.images - summary.errors} images are out of distribution, {summary.errors} could "
        f"not be read{before}; results in {output}/scores and {output}/errors",
        quiet,
    )


class _Counter:
    """Counts results while they are written."""

    def __init__(self) -> None:
        self.rows = 0
        """Results that were written."""
        self.scored = 0
        self.ood = 0
        self.unreadable: list[tuple[str, str]] = []

    def count(self, results: "Iterable[Result]") -> "Iterator[Result]":
        for result in results:
            self.ood += bool(result.is_ood)
            if result.error is None:
                self.scored += 1
            else:
                self.unreadable.append((result.path, result.error))
            yield result
            self.rows += 1
