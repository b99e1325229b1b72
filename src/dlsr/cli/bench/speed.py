"""`dlsr bench speed`."""

from pathlib import Path
from typing import Annotated, Any

import typer

from dlsr.cli.bench.options import command_line
from dlsr.cli.console import print_message, print_speed
from dlsr.cli.options import DecodingName, PrecisionName, Quiet, Weights, Workers, whole_numbers
from dlsr.errors import SettingsError

app = typer.Typer(add_completion=False)


@app.command()
def speed(
    output: Annotated[Path, typer.Option("--output", "-o", help="JSON file to write; a plot is written beside it.")],
    images: Annotated[Path | None, typer.Option(help="Folder or tar. Default: photographs of scikit-learn.")] = None,
    backends: Annotated[
        str | None, typer.Option(help="Backends separated by commas. Default: all but compile.")
    ] = None,
    batch_sizes: Annotated[str, typer.Option(help="Numbers of images encoded at once.")] = "1,4,32",
    count: Annotated[int, typer.Option(min=1, help="Images per round.")] = 256,
    growth: Annotated[str, typer.Option(help="Numbers of images for the growth of time and memory.")] = "256,1024",
    vectors: Annotated[int, typer.Option(min=2, help="Feature vectors in the timed epoch.")] = 8192,
    encoder: Annotated[str, typer.Option(help="Encoder preset, or a timm network.")] = "efficientnet_lite0",
    preset: Annotated[str, typer.Option(help="Preset to measure. Only paper trains a network.")] = "default",
    decoding: Annotated[DecodingName, typer.Option(help="How JPEGs are decoded.")] = DecodingName.DRAFT,
    precision: Annotated[PrecisionName, typer.Option(help="Precision of the encoder.")] = PrecisionName.FLOAT32,
    others: Annotated[
        bool, typer.Option(help="Also measure scoring by hand (torchvision, DataLoader, timm), with anomalib and PyOD.")
    ] = True,
    weights: Weights = None,
    workers: Workers = 2,
    quiet: Quiet = False,
) -> None:
    """Measure speed: the parts of scoring, other ways to score, each backend, memory, and training."""
    from dlsr.bench.speed import SpeedSettings, default_backends, measure_speed  # noqa: PLC0415
    from dlsr.files import check_writable, write_json  # noqa: PLC0415
    from dlsr.reports.plots import save_speed  # noqa: PLC0415

    if output.suffix.lower() == ".png":
        raise SettingsError(f"'{output}' is for the numbers, with a picture beside it; end the name in .json")
    check_writable(output)
    settings = SpeedSettings(
        backends=_backends(backends) if backends else default_backends(),
        batch_sizes=whole_numbers(batch_sizes, "--batch-sizes", least=1) or (),
        images=count,
        growth=whole_numbers(growth, "--growth", least=1) or (),
        vectors=vectors,
        encoder=encoder,
        weights=weights,
        preset=preset,
        decoding=decoding.value,
        precision=precision.value,
        others=others,
        workers=workers,
    )
    measured = measure_speed(settings, images, lambda step: print_message(f"measuring {step}", quiet))
    write_json(output, {"command": command_line(), **measured})
    save_speed(output.with_suffix(".png"), measured)
    print_speed(measured)


def _backends(text: str) -> tuple[Any, ...]:
    """Backends by name. Raises SettingsError for an unknown name."""
    from dlsr.runtime.backends import choose_backend  # noqa: PLC0415

    names: list[Any] = text.split(",")
    return tuple(choose_backend(name, "cpu") for name in names)
