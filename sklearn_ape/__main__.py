"""Command line of ``python -m sklearn_ape``."""

from .cli import main

main()
