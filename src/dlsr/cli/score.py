"""`dlsr score`."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dlsr.calibration.promise import promise
from dlsr.cli.console import (
    ProgressBars,
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
from dlsr.files import check_writable, partial_path

if TYPE_CHECKING:
    from dlsr.explaining.groups import Group
    from dlsr.fitted_detector import FittedDetector
    from dlsr.images.sources import ImageDataset
    from dlsr.results import Result

app = typer.Typer(add_completion=False)


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
    if output_format is not FormatName.TABLE and (output is None or engine is not EngineName.LOCAL):
        raise SettingsError(
            f"--format {output_format.value} needs --output FOLDER, and does not work with --engine ray"
        )
    if output_format is FormatName.TABLE and image_root is not None:
        raise SettingsError("--image-root is for --format; give both")
    if engine is EngineName.LOCAL:
        wanted = _Wanted(output, output_format, image_root, reasons, groups, maps, as_json)
        _score_here(model, Path(images), wanted, false_alarm_rate, fdr, every, runtime, quiet)
    elif maps is not None:
        raise SettingsError("--maps does not work with --engine ray; leave out one of them")
    elif every is not None:
        raise SettingsError("--every is for clips, which --engine ray does not read; leave it out")
    elif reasons or groups:
        raise SettingsError("--reasons and --groups are for images scored on this machine; score without --engine ray")
    elif fdr is not None:
        raise SettingsError("--fdr needs the p-values of all images at once; score without --engine ray")
    elif output is None:
        raise SettingsError("--engine ray needs --output FOLDER")
    elif runtime.store is not None or runtime.no_store:
        raise SettingsError("--engine ray scores without a feature store; leave out --store and --no-store")
    else:
        _score_with_ray(model, images, output, false_alarm_rate, runtime, address, images_per_part, quiet, as_json)


@dataclass(frozen=True)
class _Wanted:
    """What is asked for besides scores, and where they go."""

    output: str | None
    output_format: FormatName
    image_root: str | None
    reasons: bool
    groups: bool
    maps: Path | None
    as_json: bool

    def writer(self, source: Path) -> "Callable[[Iterable[Result]], None]":
        """A function that writes results, after a check that they can be written."""
        from dlsr.reports.formats import FORMATS, ImageRoot  # noqa: PLC0415
        from dlsr.reports.tables import check_output, write_jsonl, write_results  # noqa: PLC0415
        from dlsr.results import COLUMNS, write_csv  # noqa: PLC0415

        columns = [*COLUMNS, *(["reasons"] if self.reasons else []), *(["group"] if self.groups else [])]
        if self.output is None:
            write = write_jsonl if self.as_json else write_csv
            return lambda results: write(results_file(), results, columns)
        output = Path(self.output)
        if self.output_format is FormatName.TABLE:
            check_output(output)
            return lambda results: write_results(output, results, columns)
        other_tool = FORMATS[self.output_format.value](ImageRoot(source, self.image_root), tuple(columns))
        other_tool.check(output)
        return lambda results: other_tool.write(output, results)

    def check(self, detector: "FittedDetector") -> None:
        """Raise the error of what is asked for and cannot be had, before any image is scored."""
        from dlsr.explaining.clusters import check_clusters  # noqa: PLC0415
        from dlsr.explaining.explain import known_ranges  # noqa: PLC0415

        if self.groups:
            check_clusters()
        if self.reasons:
            known_ranges(detector)
        if self.maps is not None:
            check_writable(self.maps / "map.jpg")

    def added(
        self, detector: "FittedDetector", dataset: "ImageDataset", results: "Iterable[Result]", bars: ProgressBars
    ) -> "tuple[Iterable[Result], list[Group]]":
        """Results with reasons and groups, and the groups, as far as they are asked for."""
        from dlsr.explaining.explain import explain  # noqa: PLC0415
        from dlsr.explaining.groups import group  # noqa: PLC0415

        if self.reasons:
            results = explain(detector, dataset, results)
        if not self.groups:
            return results, []
        every = list(results)
        refused = sum(bool(result.is_ood) for result in every)
        return group(detector, dataset, every, progress=bars.images("grouping", refused))


def _score_here(
    model: Path,
    source: Path,
    wanted: _Wanted,
    false_alarm_rate: float | None,
    fdr: float | None,
    every: str | None,
    runtime: Runtime,
    quiet: bool,
) -> None:
    import numpy as np  # noqa: PLC0415

    from dlsr.calibration.fdr import why_none  # noqa: PLC0415
    from dlsr.images.sources import open_images  # noqa: PLC0415
    from dlsr.reports.maps import write_maps  # noqa: PLC0415
    from dlsr.results import Results  # noqa: PLC0415

    write = wanted.writer(source)
    detector = runtime.load(model, false_alarm_rate)
    dataset = open_images(source, every=every)
    with_maps = None if wanted.maps is None else detector.detect_with_maps(dataset)
    wanted.check(detector)
    print_skipped(dataset, quiet)
    counter, messages = _Counter(), []
    why: str | None = None
    with progress_bars(quiet) as bars, _partial_rows_named(wanted.output, counter, quiet):
        progress = bars.images("scoring", len(dataset))
        if wanted.maps is None or with_maps is None:
            chunks: Iterator[Results] = detector.detect_chunks(dataset, progress=progress)
        else:
            chunks = write_maps(wanted.maps, with_maps, [item.name for item in dataset.items], progress)
        if fdr is None:
            results: Iterable[Result] = chain.from_iterable(chunks)
            rule = promise(detector.false_alarm_rate, detector.confidence)
        else:
            together = Results.joined(list(chunks)).at_fdr(fdr)
            results, rule = together, together.rule
            why = why_none(together.p_values, float(detector.p_values_of([np.inf])[0]), fdr)
        results, groups = wanted.added(detector, dataset, results, bars)
        write(counter.count(results))
        if wanted.maps is not None:
            messages.append(f"{counter.scored} maps in {wanted.maps}")
    if wanted.output is not None and wanted.as_json:
        summary = {
            "images": len(dataset),
            "ood": counter.ood,
            "unreadable": dict(counter.unreadable),
            "skipped": len(dataset.ignored) + len(dataset.linked_folders),
            "output": wanted.output,
        }
        if fdr is not None:
            summary |= {"fdr": fdr, "why_none": why}
        if wanted.groups:
            summary |= {"groups": [{"name": g.name, "images": len(g.members), "shared": g.shared} for g in groups]}
        print_json(summary)
    print_unreadable(counter.unreadable, len(dataset))
    if counter.scored == 0:
        raise NoImagesError(f"none of the {len(dataset)} images can be read; see the reasons above")
    to = f"; results in {wanted.output}" if wanted.output else ""
    messages.append(f"{counter.ood} of {counter.scored} images are out of distribution at {rule}{to}")
    for message in messages + ([why] if why is not None else []):
        print_message(message, quiet)
    if groups and not quiet:
        print_groups(groups)


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
