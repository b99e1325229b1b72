"""The command line: each command calls the library and prints the result."""

import io
import sys
import warnings

from dlsr.errors import DlsrError, missing_told

INTERRUPTED = 130


def main() -> None:
    """Run the command line. An error that the user can fix is one line, with exit status 2."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        # Rows are passed on as they come, and a name that the terminal's encoding lacks does not end the run.
        sys.stdout.reconfigure(line_buffering=True, errors="backslashreplace")
    # Pillow's warnings about damaged files name no file; the commands name each unreadable image.
    warnings.filterwarnings("ignore", module="PIL")
    import typer  # noqa: PLC0415 - only the command line needs it

    from dlsr.cli.app import app  # noqa: PLC0415
    from dlsr.cli.console import printable  # noqa: PLC0415

    warnings.formatwarning = lambda message, *_, **__: f"warning: {printable(str(message))}\n"

    # ClickException: typer bundles click in recent versions, so it has no import path that holds for all of them.
    click_error: type = typer.BadParameter.__mro__[2]
    try:
        with missing_told():
            status = app(prog_name="dlsr", standalone_mode=False) or 0
    except DlsrError as error:
        print(f"error: {printable(str(error))}", file=sys.stderr)
        status = 2
    except typer.Abort:  # raised for an interrupt by older versions of typer
        status = INTERRUPTED
    except Exception as error:
        if not isinstance(error, click_error):
            raise
        error.message = printable(error.message)  # type: ignore[attr-defined]
        error.show()  # type: ignore[attr-defined]
        status = 2
    if status == INTERRUPTED:
        print("interrupted; to resume an interrupted fit, run the same command again", file=sys.stderr)
    sys.exit(status)
