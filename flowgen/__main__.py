"""`python -m flowgen` is the command line."""

from flowgen_cli import main

main()
