"""`dlsr bench table1` .. `table12`, `fig3` .. `fig9` and `ablation`: the paper's tables and figures."""

from dataclasses import replace
from typing import Annotated

import typer

from dlsr.cli.bench.options import (
    Detectors,
    Experiment,
    Folder,
    OodNames,
    Places,
    Seeds,
    names,
    write_report,
)
from dlsr.cli.console import print_message
from dlsr.cli.options import Quiet, with_groups

# The names are those of `dlsr.bench.reproduction`, which is slow to import.
TABLES = (*(f"table{n}" for n in (1, 2, 3)), *(f"table{n}" for n in range(5, 13)))
FIGURES = (*(f"fig{n}" for n in range(3, 10)), "table4", "ablation")

OF_RESNET50 = ("table6", "table7", "fig6", "fig7")
"""Those that the paper measures with ResNet-50."""
REDUCED_EPOCHS = 5
"""Epochs of the paper's network with --reduced."""
REDUCED_IMAGES = 10_000
"""Its training images."""
REDUCED_WIDTH = 1024
"""Its width with ResNet-50, that of the default encoder's: at its own, 3584, training takes more than 16 GiB."""

app = typer.Typer(add_completion=False)


@with_groups
def table(
    context: typer.Context,
    output: Folder,
    id: Annotated[str | None, typer.Option("--id", help="ID datasets by name. Default: the paper's.")] = None,
    ood: OodNames = None,
    detectors: Detectors = None,
    seeds: Seeds = 1,
    *,
    places: Places,
    experiment: Experiment,
    quiet: Quiet = False,
) -> None:
    """Run the table that the command is named after, and write it beside the printed numbers."""
    from dlsr.bench.render import paper_tables  # noqa: PLC0415
    from dlsr.bench.reproduction import run_table  # noqa: PLC0415

    name = str(context.info_name)
    experiment = _with_papers_resnet(name, experiment)
    report = run_table(
        name,
        places.where(),
        experiment.settings(detectors, seeds),
        output / "runs",
        ids=names(id),
        ood=names(ood),
        store=experiment.store_folder(),
        on_message=lambda message: print_message(message, quiet),
    )
    write_report(output, name, report, paper_tables(report))


@with_groups
def figure(
    context: typer.Context,
    output: Folder,
    id: Annotated[str | None, typer.Option("--id", help="ID dataset by name. Default: the paper's.")] = None,
    ood: OodNames = None,
    epochs: Annotated[
        int | None, typer.Option(min=1, help="Epochs of the paper's network, instead of its 150.")
    ] = None,
    *,
    places: Places,
    experiment: Experiment,
    quiet: Quiet = False,
) -> None:
    """Draw the figure that the command is named after, and write the numbers behind it."""
    from dlsr.bench.reproduction import SIX, FigureRun, draw, open_task  # noqa: PLC0415

    name = str(context.info_name)
    id = id or ("cifar100" if name == "table4" else "cifar10")
    task, missing = open_task(id, names(ood) or SIX, places.where())
    for reason in missing.values():
        print_message(reason, quiet)
    experiment = _with_papers_resnet(name, experiment)
    if experiment.reduced and name != "fig8":  # its detector has reduced settings of its own
        epochs = epochs or REDUCED_EPOCHS
        experiment = replace(experiment, train_limit=experiment.train_limit or REDUCED_IMAGES)
    run = FigureRun(
        task,
        experiment.settings(),
        output / "runs",
        epochs,
        experiment.store_folder(),
        lambda message: print_message(message, quiet),
        REDUCED_WIDTH if experiment.reduced and name in OF_RESNET50 else None,
    )
    about = {"id": id, "epochs": epochs, "missing": missing, **run.about_images()}
    write_report(output, name, about | draw(name, run, output))


def _with_papers_resnet(name: str, experiment: Experiment) -> Experiment:
    return replace(experiment, encoder=experiment.encoder or "resnet50") if name in OF_RESNET50 else experiment


for _name in TABLES:
    app.command(_name, help=f"Reproduce table {_name.removeprefix('table')} of the paper.")(table)
for _name in FIGURES:
    _help = {
        "ablation": "Draw figures 4 and 5 of the paper, and the variants of table 4 on the same ID dataset.",
        "table4": "Reproduce table 4 of the paper.",
    }
    app.command(_name, help=_help.get(_name, f"Draw figure {_name.removeprefix('fig')} of the paper."))(figure)
