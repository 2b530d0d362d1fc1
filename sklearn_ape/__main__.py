"""``python -m sklearn_ape`` is the command line."""

from .cli import main

main()
