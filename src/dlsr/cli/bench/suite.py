"""`dlsr bench suite`."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dlsr.cli.bench.options import Encoder, Folder, Seeds, names, write_report
from dlsr.cli.console import print_message
from dlsr.cli.options import NoStore, Pooling, Quiet, Store, Weights, store_folder, with_groups
from dlsr.errors import SettingsError

if TYPE_CHECKING:
    from dlsr.bench.tasks import Suite, SuiteTask

app = typer.Typer(add_completion=False)


@dataclass(frozen=True)
class Tasks:
    """Options that say which tasks are run."""

    tasks: Annotated[
        Path | None, typer.Option(help="TOML file with the tasks, see docs/datasets.md. Default: the shipped suite.")
    ] = None
    only: Annotated[str | None, typer.Option(help="Names of tasks, separated by commas.")] = None
    data_root: Annotated[
        Path | None,
        typer.Option(help="Folder that paths in the file are relative to.", show_default="that of the file"),
    ] = None

    def read(self) -> "tuple[Suite, list[SuiteTask]]":
        """The task file, and the images of the tasks.

        Raises:
            SettingsError: for a mistake in the file, or without the place of the shipped suite's datasets.
            InputError: if images of a task are missing.
        """
        from dlsr.bench.tasks import SHIPPED, TaskOpener, chosen_tasks, read_suite  # noqa: PLC0415

        if self.tasks is None and self.data_root is None:
            raise SettingsError("the shipped suite needs the folder with its datasets; give --data-root, or --tasks")
        path = self.tasks or SHIPPED
        suite = read_suite(path)
        opener = TaskOpener(suite, self.data_root or path.parent)
        return suite, [opener.open(task) for task in chosen_tasks(suite, names(self.only))]


@app.command()
@with_groups
def suite(
    output: Folder,
    tasks: Tasks,
    detectors: Annotated[
        str | None,
        typer.Option(
            help="Detectors of the task file or of `dlsr bench --list`, separated by commas.", show_default="the file's"
        ),
    ] = None,
    seeds: Seeds = 1,
    train_images: Annotated[
        int | None, typer.Option(min=1, help="Fit to at most this many images of each task, chosen at random.")
    ] = None,
    contamination: Annotated[
        float, typer.Option(min=0, max=0.5, help="Share of the images fitted to that are OOD images of the task.")
    ] = 0.0,
    encoder: Encoder = None,
    pooling: Pooling = None,
    weights: Weights = None,
    store: Store = None,
    no_store: NoStore = False,
    quiet: Quiet = False,
) -> None:
    """Compare detectors on many tasks, from a task file or the shipped one: tables, JSON and a picture."""
    from dlsr.bench.figures import save_suite  # noqa: PLC0415
    from dlsr.bench.render import suite_tables  # noqa: PLC0415
    from dlsr.bench.suite import SuiteSettings, chosen_detectors, run_suite  # noqa: PLC0415
    from dlsr.bench.tasks import SHIPPED, read_suite  # noqa: PLC0415

    definition, found = tasks.read()
    settings = SuiteSettings(
        chosen_detectors(names(detectors), definition.detectors or read_suite(SHIPPED).detectors),
        seeds,
        train_images,
        contamination,
        encoder,
        weights,
        pooling.value if pooling else None,
    )
    report = run_suite(
        found,
        settings,
        output / "runs",
        store=store_folder(store, no_store),
        on_message=lambda message: print_message(message, quiet),
    )
    write_report(output, "suite", report, suite_tables(report))
    if report["summary"]:
        save_suite(output / "suite.png", report)
