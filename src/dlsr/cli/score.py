"""`dlsr score`."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dlsr.calibration.promise import promise
from dlsr.cli.console import (
    ProgressBars,
    no_unreadable_warnings,
    print_groups,
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
    FalseAlarmRate,
    Fdr,
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
    from dlsr.explaining.groups import Group
    from dlsr.fitted_detector import FittedDetector
    from dlsr.images.sources import ImageDataset
    from dlsr.results import Result

app = typer.Typer()


@app.command()
@with_groups
def score(
    model: Model,
    images: Annotated[
        str,
        typer.Argument(help="Folder, tar or image file; with --engine ray also shards, Parquet, a URL or hf:DATASET."),
    ],
    output: Annotated[
        str | None,
        typer.Option(
            "--output",
            "-o",
            help="A .csv, .jsonl or .parquet file; with --engine ray a folder or its URL. Default: CSV on stdout.",
        ),
    ] = None,
    false_alarm_rate: FalseAlarmRate = None,
    fdr: Fdr = None,
    reasons: Annotated[
        bool,
        typer.Option(
            "--reasons",
            help="Add a column with the simple properties in which an image is unlike ID images, such as very dark. "
            "Decodes each image once more.",
        ),
    ] = False,
    groups: Annotated[
        bool,
        typer.Option(
            "--groups",
            help="Add a column with the group of each image that is out of distribution, and print what each group "
            "shares. Holds all results in memory, and the features of these images.",
        ),
    ] = False,
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
    if engine is EngineName.LOCAL:
        _score_here(model, images, output, false_alarm_rate, fdr, reasons, groups, runtime, quiet, as_json)
    elif reasons or groups:
        raise SettingsError("--reasons and --groups are for images scored on this machine; score without --engine ray")
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
    false_alarm_rate: float | None,
    fdr: float | None,
    reasons: bool,
    groups: bool,
    runtime: Runtime,
    quiet: bool,
    as_json: bool,
) -> None:
    import numpy as np  # noqa: PLC0415

    from dlsr.calibration.fdr import why_none  # noqa: PLC0415
    from dlsr.explaining.clusters import check_clusters  # noqa: PLC0415
    from dlsr.explaining.explain import known_ranges  # noqa: PLC0415
    from dlsr.images.sources import open_images  # noqa: PLC0415
    from dlsr.reports.tables import check_output, write_jsonl, write_results  # noqa: PLC0415
    from dlsr.results import COLUMNS, write_csv  # noqa: PLC0415

    if output is not None:
        check_output(Path(output))
    if groups:
        check_clusters()
    detector = runtime.load(model, false_alarm_rate)
    if reasons:
        known_ranges(detector)
    columns = [*COLUMNS, *(["reasons"] if reasons else []), *(["group"] if groups else [])]
    dataset = open_images(Path(source))
    print_skipped(dataset, quiet)
    counter, why = _Counter(), None
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
        results, found = _with_more(detector, dataset, results, reasons, groups, bars)
        if output is not None:
            write_results(Path(output), counter.count(results), columns)
        else:
            (write_jsonl if as_json else write_csv)(results_file(), counter.count(results), columns)
    if output is not None and as_json:
        summary = {
            "images": len(dataset),
            "ood": counter.ood,
            "unreadable": dict(counter.unreadable),
            "skipped": len(dataset.ignored) + len(dataset.linked_folders),
            "output": output,
        }
        if fdr is not None:
            summary |= {"fdr": fdr, "why_none": why}
        if groups:
            summary |= {"groups": [{"name": g.name, "images": len(g.members), "shared": g.shared} for g in found]}
        print_json(summary)
    print_unreadable(counter.unreadable, len(dataset))
    if counter.scored == 0:
        raise NoImagesError(f"none of the {len(dataset)} images can be read; see the reasons above")
    print_message(
        f"{counter.ood} of {counter.scored} images are out of distribution at {rule}"
        + (f"; results in {output}" if output else ""),
        quiet,
    )
    if why is not None:
        print_message(why, quiet)
    if found and not quiet:
        print_groups(found)


def _with_more(
    detector: "FittedDetector",
    dataset: "ImageDataset",
    results: "Iterable[Result]",
    reasons: bool,
    groups: bool,
    bars: ProgressBars,
) -> "tuple[Iterable[Result], list[Group]]":
    """Results with reasons and groups, and the groups, as far as they are asked for."""
    from dlsr.explaining.explain import explain  # noqa: PLC0415
    from dlsr.explaining.groups import group  # noqa: PLC0415

    if reasons:
        results = explain(detector, dataset, results)
    if not groups:
        return results, []
    every = list(results)
    refused = sum(bool(result.is_ood) for result in every)
    return group(detector, dataset, every, progress=bars.images("grouping", refused))


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
