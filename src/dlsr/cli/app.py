"""The commands, each in a module of its own with an `app`.

The library is imported inside the commands: it takes seconds, and `dlsr --help` must not. A command's own module is
imported when it is run, or when the help lists all of them.
"""

from importlib import import_module
from typing import Any

import typer
from typer.core import TyperGroup

COMMANDS = (
    "fit",
    "score",
    "report",
    "audit",
    "select",
    "evaluate",
    "calibrate",
    "drift",
    "watch",
    "serve",
    "export",
    "info",
    "demo",
    "bench",
)
"""Modules of `dlsr.cli` in the order of the help."""


class Commands(TyperGroup):
    """The group of all commands."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        # Names alone, among which one like a mistyped name is looked for.
        names: dict[str, Any] = dict.fromkeys(COMMANDS)
        self.commands = names

    def list_commands(self, ctx: Any) -> list[str]:
        """Names in the order of the help."""
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """The command of a name; None if there is none."""
        if cmd_name not in COMMANDS:
            return None
        command = typer.main.get_command(import_module(f"dlsr.cli.{cmd_name}").app)
        command.name = cmd_name
        return command


app = typer.Typer(cls=Commands, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)


@app.callback()
def dlsr() -> None:
    """Detect images that differ from those your model was trained on."""
