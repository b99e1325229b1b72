"""The commands below `dlsr bench`, each in a module of its own with an `app`."""

from typing import Annotated

import typer

from dlsr.cli.bench import compare, paper, speed, suite
from dlsr.cli.console import print_detectors, stdout

app = typer.Typer(no_args_is_help=False, invoke_without_command=True, add_completion=False)
for command in (suite, compare, paper, speed):
    app.add_typer(command.app)


@app.callback()
def bench(
    context: typer.Context,
    listed: Annotated[bool, typer.Option("--list", help="Show all detectors: papers, needs and cost.")] = False,
) -> None:
    """Measure speed, compare detectors, reproduce the paper's tables and figures."""
    if listed:
        from dlsr.baselines import DETECTORS  # noqa: PLC0415

        print_detectors(DETECTORS)
    elif context.invoked_subcommand is None:
        stdout.print(context.get_help(), markup=False, highlight=False)
