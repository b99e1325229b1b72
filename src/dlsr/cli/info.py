"""`dlsr info`."""

from typing import TYPE_CHECKING, Annotated

import typer

from dlsr.calibration.promise import promise
from dlsr.cli.console import print_json, printable, stdout
from dlsr.cli.options import Json, Model
from dlsr.errors import SettingsError

if TYPE_CHECKING:
    from dlsr.artifact import Manifest

app = typer.Typer(add_completion=False)


@app.command()
def info(
    model: Model,
    unlike: Annotated[
        bool, typer.Option("--unlike", help="List the images it was fitted to that look unlike the rest.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Show a model: score, encoder, settings, calibration and threshold. --json also has the losses."""
    from dlsr.artifact import read_manifest  # noqa: PLC0415
    from dlsr.fitted_detector import FittedDetector  # noqa: PLC0415
    from dlsr.runtime.backends import choose_backend  # noqa: PLC0415
    from dlsr.runtime.devices import resolve_device  # noqa: PLC0415

    threshold = FittedDetector.load(model, device="cpu").threshold_
    manifest, device = read_manifest(model), resolve_device("auto")
    try:
        backend = choose_backend("auto", device, manifest.precision)
    except SettingsError:  # encoders in 8 bits run on the CPU alone
        device = "cpu"
        backend = choose_backend("auto", device, manifest.precision)
    if as_json:
        extra = {"threshold": threshold, "backend_here": backend, "device_here": device}
        print_json(manifest.model_dump(mode="json") | extra)
        return
    if unlike:
        for name, deviation in manifest.fit.unlike.items():
            typer.echo(f"{deviation:g}\t{printable(name)}")
        return
    from rich.table import Table  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    table = Table(show_header=False, box=None)
    for name, value in _described(manifest, threshold).items():
        table.add_row(name, Text(printable(value)))
    table.add_row("here", f"device {device}, backend {backend}")
    stdout.print(table)


def _described(manifest: "Manifest", threshold: float) -> dict[str, str]:
    """A model's description, by title."""
    encoder, settings, summary = manifest.encoder, manifest.settings, manifest.fit
    return {
        "score": f"{settings.score} (preset {settings.preset})",
        "encoder": "none: fitted to features"
        if encoder is None
        else f"{encoder.name}, stages {', '.join(map(str, encoder.stages))}, {encoder.size} px, "
        f"{encoder.decoding} decoding, resized by {encoder.resizer}, in {encoder.precision}, pooling {encoder.pooling}",
        "weights": "" if encoder is None else f"{encoder.weights.kind}, SHA-256 {str(manifest.encoder_sha256)[:16]}..",
        "features": f"{sum(manifest.channels)} = {' + '.join(map(str, manifest.channels))}",
        "settings": ", ".join(f"{name} = {value}" for name, value in settings.scorer.model_dump().items()) or "none",
        "seed": str(settings.seed),
        "training": f"{len(summary.log)} epochs" if summary.log else "none needed",
        "images": f"{summary.training_images} training, {summary.validation_images} validation, "
        f"{summary.calibration_images} calibration{', each left out in turn' if summary.left_out else ''}, "
        f"{len(summary.unreadable)} unreadable",
        "groups": f"{summary.groups}, grouped by {summary.grouped_by}",
        "rate": ("may not hold: " if summary.check.fired else "") + summary.check.message,
        "unlike the rest": f"{len(summary.unlike)} of {summary.examined_images} images examined",
        "thumbnails": f"up to {manifest.config.thumbnails}" if manifest.config.thumbnails else "none",
        "maps": "yes" if manifest.config.maps else "none: fit it with --maps to see where images deviate",
        "threshold": f"{threshold:.6g} at {promise(manifest.config.false_alarm_rate, manifest.config.confidence)}",
        "made with": ", ".join(f"{name} {version}" for name, version in manifest.versions.items()),
    }
