"""`dlsr export`."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from dlsr.cli.console import print_message, print_skipped, progress_bars, unreadable_warnings_as_lines
from dlsr.cli.options import Backend, BackendName, Model, Quiet, Runtime, Weights, named_paths
from dlsr.errors import SettingsError

app = typer.Typer(add_completion=False)


class FormatName(StrEnum):
    """Export formats."""

    ONNX = "onnx"
    OPENVINO = "openvino"


@app.command()
def export(
    model: Model,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to write.")],
    kind: Annotated[FormatName, typer.Option("--format", help="Format of the graph.")] = FormatName.ONNX,
    images: Annotated[
        Path | None, typer.Option(help="Images to check the graph on. Default: photographs of scikit-learn.")
    ] = None,
    int8: Annotated[
        bool,
        typer.Option(
            "--int8", help="Quantise the encoder to 8-bit integers. Needs --format openvino, --train, --id and --ood."
        ),
    ] = False,
    train: Annotated[Path | None, typer.Option(help="For --int8: the images that the model was fitted to.")] = None,
    id_images: Annotated[
        Path | None, typer.Option("--id", help="For --int8: ID images that the model was not fitted to.")
    ] = None,
    ood: Annotated[
        list[str] | None, typer.Option("--ood", help="For --int8: an OOD dataset as NAME=FOLDER. Repeatable.")
    ] = None,
    weights: Weights = None,
    backend: Backend = BackendName.AUTO,
    quiet: Quiet = False,
) -> None:
    """Write the whole detector as one graph, with an example that runs it without dlsr."""
    from dlsr.detector import Detector  # noqa: PLC0415
    from dlsr.export import export as export_graph  # noqa: PLC0415
    from dlsr.export import export_int8  # noqa: PLC0415
    from dlsr.images.sources import open_images  # noqa: PLC0415

    runtime = Runtime(weights=weights, device="cpu", backend=backend, no_store=True)
    detector = Detector.load(model, **runtime.arguments())
    if int8:
        if kind is not FormatName.OPENVINO or train is None or id_images is None or not ood:
            raise SettingsError("--int8 needs --format openvino, --train IMAGES, --id IMAGES and --ood NAME=IMAGES")
        dataset, inside = open_images(train), open_images(id_images)
        outside = {name: open_images(path) for name, path in named_paths(ood).items()}
        for given in (dataset, inside, *outside.values()):
            print_skipped(given, quiet)
        with unreadable_warnings_as_lines(), progress_bars(quiet) as bars:
            report = export_int8(
                detector, output, dataset, inside, outside, progress=bars.images("encoding", len(dataset))
            )
        message = (
            f"8-bit integers cost {100 * report.loss:.2f} points of AUROC and score {report.times_as_fast:.2f} times "
            "as fast; refitted and recalibrated on the features of the 8-bit encoder"
        )
    else:
        message = f"scores agree with PyTorch to {export_graph(detector, output, kind.value, images):.1e}"
    print_message(f"{message}; see {output / 'score_image.py'}", quiet)
