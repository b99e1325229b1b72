"""The commands, each in a module of its own with an `app`.

The library is imported inside the commands: it takes seconds, and `dlsr --help` must not.
"""

import typer

from dlsr.cli import bench, calibrate, demo, drift, evaluate, export, fit, info, report, score, serve

COMMANDS = (fit, score, evaluate, calibrate, export, report, drift, serve, info, demo)
"""In the order of the help."""

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Detect images that differ from those your model was trained on.",
)
for command in COMMANDS:
    app.add_typer(command.app)
app.add_typer(bench.app, name="bench")
