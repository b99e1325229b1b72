"""`dlsr score`."""

import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from dlsr.cli.console import print_json, progress_bars, say, say_unreadable
from dlsr.cli.options import (
    Address,
    BackendName,
    BackendOption,
    Device,
    Engine,
    EngineName,
    ImagesPerPart,
    Json,
    Model,
    NoStore,
    Quiet,
    Rate,
    Store,
    Weights,
    Workers,
    load,
)
from dlsr.errors import NoImagesError, SettingsError

app = typer.Typer()


@app.command()
def score(
    model: Model,
    images: Annotated[
        str,
        typer.Argument(help="Folder, tar or image file; for ray also shards, Parquet, a URL or hf:DATASET."),
    ],
    output: Annotated[
        str | None,
        typer.Option(
            "--output", "-o", help="A .csv, .jsonl or .parquet file, for ray a folder or its URL; else CSV on stdout."
        ),
    ] = None,
    false_alarm_rate: Rate = None,
    weights: Weights = None,
    device: Device = "auto",
    backend: BackendOption = BackendName.AUTO,
    store: Store = None,
    no_store: NoStore = False,
    workers: Workers = 2,
    quiet: Quiet = False,
    as_json: Json = False,
    engine: Engine = EngineName.LOCAL,
    address: Address = None,
    images_per_part: ImagesPerPart = 1000,
) -> None:
    """Score images: how far out each lies, its p-value, and whether to refuse it."""
    if engine is EngineName.RAY:
        if output is None:
            raise SettingsError("--engine ray needs --output FOLDER")
        _score_with_ray(
            model,
            images,
            output,
            address=address,
            workers=workers,
            images_per_part=images_per_part,
            false_alarm_rate=false_alarm_rate,
            weights=weights,
            device=device,
            backend=backend,
            quiet=quiet,
            as_json=as_json,
        )
        return
    from dlsr.images.sources import open_images  # noqa: PLC0415
    from dlsr.reports.tables import check_format, write_csv, write_jsonl, write_results  # noqa: PLC0415

    if output is not None:
        check_format(Path(output))
    detector = load(model, weights, device, backend, store, no_store, workers, false_alarm_rate)
    found = open_images(Path(images))
    counts = _Counts()
    with progress_bars(quiet) as bars:
        results = counts.count(detector.results(found, progress=bars.images("scoring", len(found))))
        if output is not None:
            write_results(Path(output), results)
        else:
            (write_jsonl if as_json else write_csv)(sys.stdout, results)
    if output is not None and as_json:
        print_json({"images": len(found), "ood": counts.ood, "unreadable": counts.unreadable, "output": output})
    say_unreadable(counts.unreadable, len(found))
    if len(counts.unreadable) == len(found):
        raise NoImagesError(f"none of the {len(found)} images can be read; see the reasons above")
    say(
        f"{counts.ood} of {len(found) - len(counts.unreadable)} images are out of distribution at a false-alarm rate "
        f"of {100 * detector.false_alarm_rate:g} %" + (f"; rows in {output}" if output else ""),
        quiet,
    )


def _score_with_ray(
    model: Path,
    source: str,
    output: str,
    *,
    address: str | None,
    workers: int,
    images_per_part: int,
    false_alarm_rate: float | None,
    weights: str | None,
    device: str,
    backend: BackendName,
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
            workers=workers,
            images_per_part=images_per_part,
            false_alarm_rate=false_alarm_rate,
            weights=weights,
            device=device,
            backend=backend.value,
            on_plan=on_plan,
            on_part=on_part,
        )
    if as_json:
        print_json(asdict(summary) | {"output": output})
    before = f", {summary.parts_before} of {summary.parts} parts were done before" if summary.parts_before else ""
    say(
        f"{summary.ood} of {summary.images - summary.errors} images are out of distribution, {summary.errors} could "
        f"not be read{before}; results in {output}/scores and {output}/errors",
        quiet,
    )


class _Counts:
    """Counts results as they pass by."""

    def __init__(self) -> None:
        self.ood = 0
        self.unreadable: dict[str, str] = {}

    def count(self, results: Any) -> Any:
        for result in results:
            self.ood += bool(result.is_ood)
            if result.error is not None:
                self.unreadable[result.path] = result.error
            yield result
