"""The commands."""

import json
import os
import shutil
import sys
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

import typer

from dlsr.cli.bench import bench_app
from dlsr.cli.console import progress_bars, say, say_unreadable, show_drift, show_report, stdout
from dlsr.cli.options import (
    Address,
    BackendName,
    BackendOption,
    DecodingName,
    Device,
    Engine,
    EngineName,
    FormatName,
    ImagesPerPart,
    Json,
    Model,
    NoStore,
    ProtocolName,
    Quiet,
    Rate,
    ScoredImages,
    Store,
    Weights,
    Workers,
    named_sets,
    numbers,
    store_of,
)
from dlsr.errors import MissingExtraError, NoImagesError, SettingsError

DRIFTED = 1
"""Exit status of `dlsr drift` for images that are not in distribution any more."""
SHORTEST_TOKEN = 8

# The library is imported inside the commands: it takes seconds, and `dlsr --help` must not.

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Know when an image is not what your model was made for.",
)


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
    with _quiet_library(), progress_bars(quiet) as bars:
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
    with _quiet_library(), progress_bars(quiet) as bars:
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
        _print_json(summary.model_dump() | {"model": str(output), "threshold": detector.threshold_})
    else:
        say(
            f"fitted to {summary.training_images} images, calibrated on {summary.calibration_images} others; "
            f"threshold {detector.threshold_:.6g} at a false-alarm rate of {100 * detector.false_alarm_rate:g} %; "
            f"model in {output}",
            quiet,
        )


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
    detector = _load(model, weights, device, backend, store, no_store, workers, false_alarm_rate)
    found = open_images(Path(images))
    counts = _Counts()
    with progress_bars(quiet) as bars:
        results = counts.count(detector.results(found, progress=bars.images("scoring", len(found))))
        if output is not None:
            write_results(Path(output), results)
        else:
            (write_jsonl if as_json else write_csv)(sys.stdout, results)
    if output is not None and as_json:
        _print_json({"images": len(found), "ood": counts.ood, "unreadable": counts.unreadable, "output": output})
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
        _print_json(asdict(summary) | {"output": output})
    before = f", {summary.parts_before} of {summary.parts} parts were done before" if summary.parts_before else ""
    say(
        f"{summary.ood} of {summary.images - summary.errors} images are out of distribution, {summary.errors} could "
        f"not be read{before}; results in {output}/scores and {output}/errors",
        quiet,
    )


@app.command()
def evaluate(
    model: Model,
    id_images: Annotated[Path, typer.Option("--id", help="ID images that the model was not fitted to.")],
    ood: Annotated[list[str], typer.Option("--ood", help="An OOD set, NAME=FOLDER or NAME=TAR. Repeatable.")],
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Folder for JSON and pictures.")] = None,
    protocol: Annotated[
        ProtocolName, typer.Option(help="native: as is. matched: all images resized and compressed alike first.")
    ] = ProtocolName.NATIVE,
    matched_size: Annotated[int, typer.Option(min=1, help="Side in pixels for the matched protocol.")] = 32,
    seeds: Annotated[int, typer.Option(min=1, help="Noise seeds to average over.")] = 1,
    limit: Annotated[int | None, typer.Option(min=1, help="At most so many images a set, at random.")] = None,
    weights: Weights = None,
    device: Device = "auto",
    backend: BackendOption = BackendName.AUTO,
    store: Store = None,
    no_store: NoStore = False,
    workers: Workers = 2,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Measure how well a model separates ID from OOD images: AUROC, AUPR, FPR95."""
    from dlsr.evaluation import evaluate as run  # noqa: PLC0415

    sets = named_sets(ood)
    detector = _load(model, weights, device, backend, store, no_store, workers, None)
    with progress_bars(quiet) as bars:
        done = run(
            detector,
            id_images,
            sets,
            protocol=protocol.value,
            seeds=seeds,
            limit=limit,
            matched_size=matched_size,
            progress=bars.images,
        )
    report = done.report
    say_unreadable(report.id_unreadable, report.id_images + len(report.id_unreadable))
    for one_set in report.sets:
        say_unreadable(one_set.unreadable, one_set.images + len(one_set.unreadable))
    if as_json:
        _print_json(report.model_dump(mode="json"))
    else:
        show_report(report)
    if output is not None:
        from dlsr.reports.evaluation import write_evaluation  # noqa: PLC0415

        written = write_evaluation(output, done, detector.threshold_)
        say(f"wrote {', '.join(str(path) for path in written)}", quiet)


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
    detector = _load(model, weights, device, backend, store, no_store, workers, false_alarm_rate)
    if images is not None:
        found = open_images(images)
        with _quiet_library(), progress_bars(quiet) as bars:
            detector.calibrate(found, progress=bars.images("encoding", len(found)))
    cut = detector.threshold_
    detector.save(model)
    say(f"threshold {cut:.6g} at a false-alarm rate of {100 * detector.false_alarm_rate:g} %", quiet)


@app.command()
def export(
    model: Model,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to write.")],
    kind: Annotated[FormatName, typer.Option("--format", help="Of the graph.")] = FormatName.ONNX,
    images: Annotated[
        Path | None, typer.Option(help="Real images to check the graph on; without it, photographs of scikit-learn.")
    ] = None,
    int8: Annotated[
        bool, typer.Option("--int8", help="Encoder in 8-bit integers (OpenVINO); needs --train, --id, --ood.")
    ] = False,
    train: Annotated[Path | None, typer.Option(help="For --int8: the images that the model was fitted to.")] = None,
    id_images: Annotated[Path | None, typer.Option("--id", help="For --int8: ID images not fitted to.")] = None,
    ood: Annotated[
        list[str] | None, typer.Option("--ood", help="For --int8: an OOD set, NAME=FOLDER. Repeatable.")
    ] = None,
    weights: Weights = None,
    backend: BackendOption = BackendName.AUTO,
    quiet: Quiet = False,
) -> None:
    """Write the whole detector as one graph, with an example that runs it without dlsr."""
    from dlsr.images.sources import open_images  # noqa: PLC0415

    detector = _load(model, weights, "cpu", backend, None, True, 2, None)
    if int8:
        if kind is not FormatName.OPENVINO or train is None or id_images is None or not ood:
            raise SettingsError("--int8 needs --format openvino, --train IMAGES, --id IMAGES and --ood NAME=IMAGES")
        found = open_images(train)
        with _quiet_library(), progress_bars(quiet) as bars:
            report = detector.export_int8(
                output, found, id_images, named_sets(ood), progress=bars.images("encoding", len(found))
            )
        said = (
            f"8 bits cost {100 * report.loss:.2f} points of AUROC and score {report.times_as_fast:.2f} times as fast; "
            "fitted and calibrated anew on its features"
        )
    else:
        said = f"scores agree with PyTorch to {detector.export(output, kind.value, images):.1e}"
    say(f"{said}; see {output / 'score_image.py'}", quiet)


@app.command()
def report(
    model: Model,
    images: ScoredImages,
    output: Annotated[Path, typer.Option("--output", "-o", help="HTML file to write.")],
    title: Annotated[str | None, typer.Option(help="What the images are; their path if not given.")] = None,
    false_alarm_rate: Rate = None,
    weights: Weights = None,
    device: Device = "auto",
    backend: BackendOption = BackendName.AUTO,
    store: Store = None,
    no_store: NoStore = False,
    workers: Workers = 2,
    quiet: Quiet = False,
) -> None:
    """Score images and write one self-contained HTML page about them."""
    from dlsr.images.sources import open_images  # noqa: PLC0415
    from dlsr.reports.html import write_html_report  # noqa: PLC0415

    detector = _load(model, weights, device, backend, store, no_store, workers, false_alarm_rate)
    found = open_images(images)
    with progress_bars(quiet) as bars:
        summary = write_html_report(
            output, detector, found, title=title or str(images), progress=bars.images("scoring", len(found))
        )
    say_unreadable(summary.unreadable, len(found))
    say(f"{summary.ood} of {len(summary.scores)} images are out of distribution; report in {output}", quiet)


@app.command()
def drift(
    model: Model,
    images: ScoredImages,
    alpha: Annotated[float, typer.Option(help="Chance of an alarm on ordinary images.")] = 0.01,
    window: Annotated[
        int | None, typer.Option(help="Test so many images at a time, in order; all if not given.")
    ] = None,
    stream: Annotated[
        bool, typer.Option("--stream", help="The images' order, by name, is that in which they came: watch it too.")
    ] = False,
    weights: Weights = None,
    device: Device = "auto",
    backend: BackendOption = BackendName.AUTO,
    store: Store = None,
    no_store: NoStore = False,
    workers: Workers = 2,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Tell whether images, as a set, are still in distribution. Exit status 0: they are; 1: they are not."""
    import numpy as np  # noqa: PLC0415

    from dlsr.calibration.drift import drift as run  # noqa: PLC0415
    from dlsr.images.sources import open_images  # noqa: PLC0415

    detector = _load(model, weights, device, backend, store, no_store, workers, None)
    found = open_images(images)
    with progress_bars(quiet) as bars:
        results = list(detector.results(found, progress=bars.images("scoring", len(found))))
    unreadable = {result.path: str(result.error) for result in results if result.error is not None}
    say_unreadable(unreadable, len(found))
    read = [result for result in results if result.score is not None]
    scores = np.array([result.score for result in read])
    told = run(
        scores, detector.calibration_scores_, alpha=alpha, window=window, stream=stream, seed=detector.settings_.seed
    )
    first = None if told.first_changed is None else read[told.first_changed].path
    if as_json:
        _print_json(asdict(told) | {"first_changed_path": first, "unreadable": unreadable})
    else:
        show_drift(told, first)
    raise typer.Exit(DRIFTED if told.drifted else 0)


@app.command()
def serve(
    model: Model,
    host: Annotated[
        str, typer.Option(help="Address to listen on; by default only this machine can reach it.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 for any free one.")] = 8000,
    token_file: Annotated[
        Path | None, typer.Option(help="File with the bearer token to ask for; or set DLSR_TOKEN.")
    ] = None,
    max_body: Annotated[int, typer.Option(min=1, help="Largest request, in MiB.")] = 32,
    max_images: Annotated[int, typer.Option(min=1, help="Most images in a request.")] = 64,
    max_pixels: Annotated[int, typer.Option(min=1, help="Most pixels of an image.")] = 50_000_000,
    max_requests: Annotated[int, typer.Option(min=1, help="Most requests handled at once.")] = 256,
    max_waiting: Annotated[int, typer.Option(min=1, help="Most images that wait to be scored.")] = 1024,
    max_batch: Annotated[int, typer.Option(min=1, help="Images of several requests scored together.")] = 64,
    max_wait: Annotated[
        float, typer.Option(min=0, help="Milliseconds that an idle service waits for more images.")
    ] = 5,
    drain: Annotated[float, typer.Option(min=0, help="Seconds for which a closing service refuses politely.")] = 1,
    drift_window: Annotated[int, typer.Option(min=20, help="Images over which /metrics tells drift.")] = 1000,
    device: Device = "auto",
    backend: BackendOption = BackendName.AUTO,
    workers: Workers = 2,
    quiet: Quiet = False,
) -> None:
    """Serve a model over HTTP, with a page at /. Follows the model directory; ends in order on SIGTERM."""
    if any(find_spec(package) is None for package in ("fastapi", "uvicorn", "prometheus_client", "python_multipart")):
        raise MissingExtraError("fastapi", "serve")
    from dlsr.serve.server import is_loopback  # noqa: PLC0415
    from dlsr.serve.server import serve as run  # noqa: PLC0415
    from dlsr.serve.service import Service  # noqa: PLC0415
    from dlsr.serve.settings import ServeSettings  # noqa: PLC0415

    token = _token(token_file)
    if token is None and not is_loopback(host):
        say(f"warning: anyone who can reach {host} can use this service; set --token-file", quiet=False)
    settings = ServeSettings(
        token=token,
        max_body_bytes=max_body * 2**20,
        max_images=max_images,
        max_pixels=max_pixels,
        max_requests=max_requests,
        max_waiting=max_waiting,
        max_batch=max_batch,
        max_wait_seconds=max_wait / 1000,
        drift_window=drift_window,
    )
    service = Service(model, settings, device=device, backend=backend.value, workers=workers)
    run(service, host, port, drain_seconds=drain, ready=lambda url: say(f"serving {model} at {url}", quiet))


@app.command()
def info(model: Model, as_json: Json = False) -> None:
    """Show what a model is: settings, encoder, calibration, losses."""
    import torch  # noqa: PLC0415

    from dlsr.artifact import read_manifest  # noqa: PLC0415
    from dlsr.detector import Detector  # noqa: PLC0415
    from dlsr.runtime.backends import choose_backend  # noqa: PLC0415

    detector = Detector.load(model)
    manifest = read_manifest(model)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    backend = choose_backend("auto", device)
    if as_json:
        extra = {"threshold": detector.threshold_, "backend_here": backend, "device_here": str(device)}
        _print_json(manifest.model_dump(mode="json") | extra)
        return
    from rich.table import Table  # noqa: PLC0415

    encoder, settings, summary = manifest.encoder, manifest.settings, manifest.fit
    rows = {
        "score": f"{settings.score} (preset {settings.preset})",
        "encoder": "none: fitted to features"
        if encoder is None
        else f"{encoder.name}, stages {', '.join(map(str, encoder.stages))}, {encoder.size} px, "
        f"{encoder.decoding} decoding",
        "weights": "" if encoder is None else f"{encoder.weights.kind}, SHA-256 {str(manifest.encoder_sha256)[:16]}..",
        "features": f"{sum(manifest.channels)} = {' + '.join(map(str, manifest.channels))}",
        "restoration": f"t = {', '.join(map(str, settings.restoration.steps))} of {settings.schedule.T}, "
        f"{settings.restoration.draws} draws, seed {settings.seed}",
        "training": f"{len(summary.log)} epochs" if summary.log else "none needed",
        "images": f"{summary.training_images} training, {summary.validation_images} validation, "
        f"{summary.calibration_images} calibration, {len(summary.unreadable)} unreadable",
        "threshold": f"{detector.threshold_:.6g} at a false-alarm rate of {100 * manifest.false_alarm_rate:g} %",
        "made with": ", ".join(f"{name} {version}" for name, version in manifest.versions.items()),
        "here": f"device {device}, backend {backend}",
    }
    table = Table(show_header=False, box=None)
    for name, value in rows.items():
        table.add_row(name, value)
    stdout.print(table)


@app.command()
def demo(
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to write to.")] = Path("demo-output"),
    device: Device = "auto",
    backend: BackendOption = BackendName.AUTO,
    quiet: Quiet = False,
) -> None:
    """Fit, evaluate and draw, on real images that come with the dependencies. Downloads nothing."""
    from dlsr.demo import run_demo  # noqa: PLC0415
    from dlsr.reports.evaluation import write_evaluation  # noqa: PLC0415

    with progress_bars(quiet) as bars:
        detector, done = run_demo(output, device, backend.value, bars.images, bars.epochs("training"))
    show_report(done.report)
    written = write_evaluation(output, done, detector.threshold_)
    say(f"wrote {', '.join(str(path) for path in written)} and the model {output / 'model'}", quiet)


app.add_typer(bench_app, name="bench")


def _token(file: Path | None) -> str | None:
    """The token from a file, or from the environment."""
    try:
        token = os.environ.get("DLSR_TOKEN") if file is None else file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"cannot read the token file '{file}': {error}; check it") from error
    if token is None:
        return None
    token = token.strip()
    if len(token) < SHORTEST_TOKEN or not token.isascii() or not token.isprintable():
        raise SettingsError(f"a token needs {SHORTEST_TOKEN} or more printable ASCII characters; make another")
    return token


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


def _load(
    model: Path,
    weights: str | None,
    device: str,
    backend: BackendName,
    store: Path | None,
    no_store: bool,
    workers: int,
    false_alarm_rate: float | None,
) -> Any:
    from dlsr.detector import Detector  # noqa: PLC0415

    return Detector.load(
        model,
        weights=weights,
        device=device,
        backend=backend.value,
        store=store_of(store, no_store),
        workers=workers,
        false_alarm_rate=false_alarm_rate,
    )


def _quiet_library() -> Any:
    """The command names unreadable images itself, so the library's warning of them would be the second."""
    import warnings  # noqa: PLC0415

    from dlsr.images.sources import UnreadableImagesWarning  # noqa: PLC0415

    return warnings.catch_warnings(action="ignore", category=UnreadableImagesWarning)


def _print_json(value: Any) -> None:
    sys.stdout.write(json.dumps(value, indent=2, ensure_ascii=False) + "\n")
