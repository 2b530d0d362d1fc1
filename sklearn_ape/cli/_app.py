"""The commands put together."""

from __future__ import annotations

from typing import Annotated

import typer

from ._errors import Commands
from .classify import classify
from .curate import curate
from .demo import demo
from .encode import encode
from .evaluate import evaluate
from .fit import fit
from .models import models
from .search import search
from .serve import serve

app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for command in (demo, fit, classify, search, evaluate, encode, curate, models, serve):
    app.command()(command)


@app.callback()
def version(
    show: Annotated[
        bool, typer.Option("--version", help="Show the version and leave.", is_eager=True)
    ] = False,
) -> None:
    """Align two frozen encoders; classify and search pictures by words.

    Results go to standard output, progress to standard error. The exit code is 0 when all went
    well, 1 for an error that a message explains, 2 for a wrong option, 130 after Ctrl-C.
    """
    if show:
        from .. import __version__

        print(__version__)
        raise typer.Exit


def main() -> None:
    """Run the command line."""
    app()
