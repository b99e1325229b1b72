"""The command line. Thin: each command calls the library and prints what it says."""

import sys

from dlsr.errors import DlsrError


def main() -> None:
    """Run the command line. What a user can put right is one line and exit status 2."""
    from dlsr.cli.app import app  # noqa: PLC0415 - so that an interrupt during the import is caught too

    try:
        app()
    except DlsrError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted; run the same command again to go on", file=sys.stderr)
        sys.exit(130)
