"""`dlsr demo`."""

from pathlib import Path
from typing import Annotated

import typer

from dlsr.cli.console import print_evaluation, print_message, progress_bars
from dlsr.cli.options import Backend, BackendName, Device, Quiet

app = typer.Typer(add_completion=False)


@app.command()
def demo(
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to write to.")] = Path("demo-output"),
    device: Device = "auto",
    backend: Backend = BackendName.AUTO,
    quiet: Quiet = False,
) -> None:
    """Fit and evaluate a detector on real images that come with the dependencies. Downloads nothing."""
    from dlsr.demo import run_demo  # noqa: PLC0415
    from dlsr.reports.evaluation import write_evaluation  # noqa: PLC0415

    with progress_bars(quiet) as bars:
        detector, evaluation = run_demo(output, device, backend.value, bars.images, bars.epochs("training"))
    print_evaluation(evaluation.report)
    written = write_evaluation(output, evaluation, detector.threshold_)
    print_message(f"wrote {', '.join(str(path) for path in written)} and the model {output / 'model'}", quiet)
