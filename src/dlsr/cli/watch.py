"""`dlsr watch`."""

import os
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dlsr.cli.console import print_json, print_message, stderr
from dlsr.cli.options import Backend, BackendName, Device, FalseAlarmRate, Json, Model, Quiet, Weights, Workers
from dlsr.errors import SettingsError

if TYPE_CHECKING:
    from dlsr.fitted_detector import FittedDetector
    from dlsr.results import Result
    from dlsr.watch.watching import Stop
    from dlsr.watch.webhook import Delivery

TOKEN = "DLSR_WEBHOOK_TOKEN"
LAST_SECONDS = 5.0
"""At the end, results are posted for so long."""
LAST_SECONDS_ONCE = 60.0
"""With --once."""

app = typer.Typer(add_completion=False)


@app.command()
def watch(
    model: Model,
    folder: Annotated[Path, typer.Argument(help="Folder to watch, with its subfolders.")],
    output: Annotated[
        Path,
        typer.Option(
            "--output",
            "-o",
            help="A .csv or .jsonl file, which is appended to. Images that have a row in it are not scored again.",
        ),
    ],
    webhook: Annotated[
        str | None,
        typer.Option(
            help=f"Post each result to this address, too, at least once; needs a .jsonl output. {TOKEN} is the "
            "bearer token."
        ),
    ] = None,
    once: Annotated[bool, typer.Option("--once", help="Score what is there, and end.")] = False,
    interval: Annotated[
        float, typer.Option(min=0.05, max=86_400, help="Seconds between two listings of the folder.")
    ] = 2.0,
    settle: Annotated[
        float, typer.Option(min=0, help="A file is complete if it has not changed for so many seconds.")
    ] = 2.0,
    patience: Annotated[
        float,
        typer.Option(min=0, help="Seconds for which a file that cannot be read is tried again before it is reported."),
    ] = 10.0,
    drift_window: Annotated[int, typer.Option(min=20, help="Images in the running test of drift.")] = 500,
    drift_alpha: Annotated[
        float, typer.Option(help="Probability of a false alarm of each test of drift, of which there are 10 a window.")
    ] = 0.001,
    false_alarm_rate: FalseAlarmRate = None,
    weights: Weights = None,
    device: Device = "auto",
    backend: Backend = BackendName.AUTO,
    workers: Workers = 2,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Score images as they arrive in a folder. Can be stopped and started again at any time; none is scored twice."""
    from dlsr.artifact import read_manifest  # noqa: PLC0415
    from dlsr.calibration.drift import check_settings  # noqa: PLC0415
    from dlsr.fitted_detector import FittedDetector  # noqa: PLC0415
    from dlsr.watch.journal import check_journal, open_journal  # noqa: PLC0415
    from dlsr.watch.watching import Watcher, WatchSettings, check_folder  # noqa: PLC0415

    settings = WatchSettings(
        interval=interval,
        settle=settle,
        patience=patience,
        window=drift_window,
        alpha=drift_alpha,
        once=once,
    )
    check_folder(folder)
    check_settings(drift_alpha, drift_window)
    check_journal(output)
    delivery = None if webhook is None else _delivery(webhook, output)
    id = read_manifest(model).numbers_sha256[:16]
    detector = FittedDetector.load(
        model,
        weights=weights,
        device=device,
        backend=backend.value,
        workers=workers,
        false_alarm_rate=false_alarm_rate,
    )
    _check_rate(detector)
    with open_journal(output, drift_window) as journal, _stopping() as stop:
        if journal.was_cut:
            _tell(f"the last row of {output} was cut short, and is left out: its image is scored again")
        watcher = Watcher(
            detector, id, folder, journal, settings, delivery=delivery, tell=_tell, on_rows=_rows_printer(quiet)
        )
        if delivery is not None:
            delivery.start()
        before = f", {len(journal.done)} were scored before" if len(journal.done) else ""
        print_message(f"watching {folder}{before}; results in {output}", quiet)
        watched = watcher.run(stop)
        left = delivery.end(LAST_SECONDS_ONCE if once else LAST_SECONDS) if delivery is not None else 0
    print_message(
        f"{watched.images} images scored, {watched.ood} out of distribution, {watched.unreadable} unreadable", quiet
    )
    if once and watched.waiting:
        _tell(f"{watched.waiting} files are still being written; they are left for the next time")
    if left:
        _tell(f"{left} results could not be posted; they are left for the next time")
    if as_json:
        print_json(asdict(watched) | {"unposted": left, "output": str(output)})


def _delivery(url: str, output: Path) -> "Delivery":
    from dlsr.watch.webhook import Delivery, Webhook  # noqa: PLC0415

    if output.suffix != ".jsonl":
        raise SettingsError("--webhook posts the rows of a .jsonl file; end the name of --output in .jsonl")
    hook = Webhook(url, os.environ.get(TOKEN))
    if hook.token_is_readable and hook.host not in ("localhost", "127.0.0.1", "::1"):
        _tell(f"warning: {TOKEN} is sent to {hook.host} without encryption; use https")
    return Delivery(output, hook, _tell)


def _check_rate(detector: "FittedDetector") -> None:
    """Check that the model can judge images, before one arrives.

    Raises:
        TooFewImagesError: if its calibration images are too few for the false-alarm rate.
        NotFittedError: if it was fitted to features.
    """
    detector.calibration_.check_size(detector.false_alarm_rate, detector.confidence)
    _ = detector.extractor_


def _tell(line: str) -> None:
    """Print a line that matters even if quiet."""
    print_message(line, quiet=False)


def _rows_printer(quiet: bool) -> "Callable[[Sequence[Result]], None]":
    """A callback that prints a line about the results of images that arrived together, for a terminal."""

    def show(results: "Sequence[Result]") -> None:
        ood = [result for result in results if result.is_ood]
        line = f"{len(results)} images, {len(ood)} out of distribution"
        if ood:
            worst = max(ood, key=lambda result: result.score or 0.0)
            line += f", above all {worst.path} (score {worst.score:.3g}, p = {worst.p_value:.2g})"
        print_message(line, quiet or not stderr.is_terminal)

    return show


@contextmanager
def _stopping() -> "Iterator[Stop]":
    """A stop that is set by the first SIGINT or SIGTERM; the second has its usual effect."""
    from dlsr.watch.watching import Stop  # noqa: PLC0415

    stop = Stop()
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def on_signal(*_: object) -> None:
        stop.set()
        restore()

    for number in before:
        signal.signal(number, on_signal)
    try:
        yield stop
    finally:
        restore()
