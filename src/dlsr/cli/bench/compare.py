"""`dlsr bench compare`."""

from pathlib import Path
from typing import Annotated, Any

import typer

from dlsr.cli.bench.options import Detectors, Experiment, Folder, Seeds, write_report
from dlsr.cli.console import print_message, print_skipped
from dlsr.cli.options import OodDatasets, Quiet, named_paths, with_groups

app = typer.Typer(add_completion=False)


@app.command()
@with_groups
def compare(
    train: Annotated[
        Path, typer.Option("--id", help="ID images to fit to; detectors that need labels read them from subfolders.")
    ],
    test: Annotated[Path, typer.Option("--id-test", help="Other ID images, to measure on.")],
    ood: OodDatasets,
    output: Folder,
    detectors: Detectors = None,
    seeds: Seeds = 1,
    *,
    experiment: Experiment,
    quiet: Quiet = False,
) -> None:
    """Compare detectors on your own images."""
    from dlsr.bench.compare import Task, write_failures  # noqa: PLC0415
    from dlsr.bench.compare import compare as run  # noqa: PLC0415
    from dlsr.bench.datasets import labels_of  # noqa: PLC0415
    from dlsr.bench.reproduction import ALSO  # noqa: PLC0415
    from dlsr.images.sources import open_images  # noqa: PLC0415

    training = open_images(train)
    outside = {name: open_images(path) for name, path in named_paths(ood, taken=("ID", "train")).items()}
    inside = open_images(test)
    for given in (training, inside, *outside.values()):
        print_skipped(given, quiet)
    task = Task(training, labels_of(training), inside, outside)
    settings = experiment.settings(detectors or ",".join(ALSO), seeds)
    report = run(
        task,
        settings,
        output / "runs",
        store=experiment.store_folder(),
        on_message=lambda message: print_message(message, quiet),
    )
    write_report(output, "compare", report, _markdown(report))
    write_failures(output / "runs", task, settings, report, output / "failures.png")


def _markdown(report: dict[str, Any]) -> str:
    from dlsr.bench.render import METRICS, comparison_table, summary_table  # noqa: PLC0415

    parts = [
        f"{len(reasons)} images of {name} cannot be read: " + ", ".join(f"{path} ({reasons[path]})" for path in reasons)
        for name, reasons in report["unreadable"].items()
    ]
    parts += [f"Averages over the OOD datasets, in %:\n\n{summary_table(report)}"]
    parts += [f"{title} in %:\n\n{comparison_table(report, metric)}" for metric, title in METRICS.items()]
    return "\n\n".join(parts) + "\n"
