"""`dlsr export`."""

from pathlib import Path
from typing import Annotated

import typer

from dlsr.cli.console import progress_bars, quiet_library, say
from dlsr.cli.options import BackendName, BackendOption, FormatName, Model, Quiet, Weights, load, named_sets
from dlsr.errors import SettingsError

app = typer.Typer()


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

    detector = load(model, weights, "cpu", backend, None, True, 2, None)
    if int8:
        if kind is not FormatName.OPENVINO or train is None or id_images is None or not ood:
            raise SettingsError("--int8 needs --format openvino, --train IMAGES, --id IMAGES and --ood NAME=IMAGES")
        found = open_images(train)
        with quiet_library(), progress_bars(quiet) as bars:
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
