"""`python -m dlsr`."""

from dlsr.cli import main

main()
