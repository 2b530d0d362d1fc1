"""``sklearn-ape serve``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ._inputs import label_names
from ._options import Aligner, Labels, LabelsFile, Quiet


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
