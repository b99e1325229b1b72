"""`dlsr demo`."""

from pathlib import Path
from typing import Annotated

import typer

from dlsr.cli.console import progress_bars, say, show_report
from dlsr.cli.options import BackendName, BackendOption, Device, Quiet

app = typer.Typer()


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
