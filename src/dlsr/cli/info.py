"""`dlsr info`."""

import typer

from dlsr.cli.console import print_json, stdout
from dlsr.cli.options import Json, Model

app = typer.Typer()


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
        print_json(manifest.model_dump(mode="json") | extra)
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
