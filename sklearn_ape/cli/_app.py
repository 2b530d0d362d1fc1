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
from .search import index, search
from .serve import serve

app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for command in (demo, fit, classify, search, index, evaluate, encode, curate, models, serve):
    app.command()(command)


def _show_version(wanted: bool) -> None:
    if wanted:
        from .. import __version__

        print(__version__)
        raise typer.Exit


@app.callback()
def about(
    version: Annotated[
        bool,
        typer.Option(
            "--version",
            help="Show the version and leave.",
            is_eager=True,
            callback=_show_version,
        ),
    ] = False,
) -> None:
    """Align two frozen encoders; classify and search images by words.

    Results go to standard output, progress to standard error. Exit codes: 0 is
    well, 1 an error that a message explains, 2 a wrong option, 130 Ctrl-C.
    """


def main() -> None:
    """Run the command line."""
    app()
