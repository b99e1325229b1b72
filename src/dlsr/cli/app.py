"""The commands: one module each. The library is imported inside them: it takes seconds, and `--help` must not."""

import typer

from dlsr.cli import calibrate, demo, drift, evaluate, export, fit, info, report, score, serve
from dlsr.cli.bench.paper import bench_app

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Know when an image is not what your model was made for.",
)
for command in (fit, score, evaluate, calibrate, export, report, drift, serve, info, demo):
    app.add_typer(command.app)
app.add_typer(bench_app, name="bench")
