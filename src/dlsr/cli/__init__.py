"""The command line. Thin: each command calls the library and prints what it says."""

import sys
import warnings

from dlsr.errors import DlsrError

INTERRUPTED = 130


def main() -> None:
    """Run the command line. What a user can put right is one line and exit status 2."""
    # Pillow's remarks on damaged files name no file; what cannot be read is told of by name.
    warnings.filterwarnings("ignore", module="PIL")
    import typer  # noqa: PLC0415 - only the command line needs it

    from dlsr.cli.app import app  # noqa: PLC0415

    # Click's own class of usage errors, wherever this version of typer keeps it.
    usage_error: type = typer.BadParameter.__mro__[2]
    try:
        status = app(standalone_mode=False) or 0
    except DlsrError as error:
        print(f"error: {error}", file=sys.stderr)
        status = 2
    except typer.Abort:  # what older versions of typer turn an interrupt into
        status = INTERRUPTED
    except Exception as error:
        if not isinstance(error, usage_error):
            raise
        error.show()  # type: ignore[attr-defined]
        status = 2
    if status == INTERRUPTED:
        print("interrupted; an interrupted fit goes on when the same command is run again", file=sys.stderr)
    sys.exit(status)
