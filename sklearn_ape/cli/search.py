"""``sklearn-ape search`` and ``sklearn-ape index``."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from ._console import say
from ._inputs import list_images
from ._options import Aligner, Cache, Device, Format, Images, NJobs, Quiet
from ._output import FileName, Table, check_file, check_model_folder, form_of


def search(
    images: Annotated[
        list[str] | None,
        typer.Argument(
            help="Where to search: images, folders of them (sub-folders too), patterns such as "
            "'*.jpg', or - for a list on standard input. Not with --index.",
            show_default=False,
        ),
    ] = None,
    query: Annotated[
        list[str] | None,
        typer.Option(help="What to look for, in words; may be given again.", show_default=False),
    ] = None,
    like: Annotated[
        list[Path] | None,
        typer.Option(
            help="An image whose like to look for; may be given again.", show_default=False
        ),
    ] = None,
    k: Annotated[int, typer.Option("-k", min=1, help="How many images to find.")] = 5,
    aligner: Aligner = None,
    index: Annotated[
        Path | None,
        typer.Option(
            help="What 'sklearn-ape index' saved, in place of IMAGES.", show_default=False
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            help="File of the results. By default standard output.",
            show_default=False,
        ),
    ] = None,
    form: Format = None,
    cache: Cache = None,
    device: Device = "auto",
    n_jobs: NJobs = -1,
    quiet: Quiet = False,
) -> None:
    """Find images by words, or by other images.

    Example: sklearn-ape search photos/ --query "a red fruit" -k 3
    """
    form = form_of(output, form)
    check_file(output)
    queries, likes = list(query or []), [str(path) for path in like or []]
    if not queries and not likes:
        raise typer.BadParameter('say what to look for: --query "a red fruit" or --like cat.jpg.')
    if any(not text.strip() for text in queries):
        raise typer.BadParameter("is empty.", param_hint="--query")
    for path in likes:
        if not os.path.isfile(path):
            raise FileNotFoundError(f"There is no image {path!r} to search by.")
    if (index is None) == (not images):
        raise typer.BadParameter("give images to search in, or --index, and not both.")
    if index is not None and aligner is not None:
        raise typer.BadParameter(
            "has its aligner with it; leave --aligner out.", param_hint="--index"
        )
    paths = list_images(images, quiet) if images else []

    from ._models import Machine

    machine = Machine(cache, device, n_jobs, quiet)
    retriever = _indexed(paths, aligner, machine) if images else _saved(index, machine)
    with Table(["query", "rank", "path", "score"], output, form) as table:
        if queries:
            _write(table, queries, retriever, k, "text")
        if likes:
            _write(table, likes, retriever, k, "image")


def index(
    images: Images,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Folder of the index.", show_default=False)
    ],
    aligner: Aligner = None,
    kind: Annotated[
        str,
        typer.Option(
            help="exact; or faiss, usearch (faster in very large collections, the latter "
            "approximate)."
        ),
    ] = "exact",
    cache: Cache = None,
    device: Device = "auto",
    n_jobs: NJobs = -1,
    quiet: Quiet = False,
) -> None:
    """Embed a collection of images once, so that searches in it take no time.

    Example: sklearn-ape index photos/ -o my-index
    """
    check_model_folder(output)
    paths = [os.path.abspath(path) for path in list_images(images, quiet)]

    from ._models import Machine

    retriever = _indexed(paths, aligner, Machine(cache, device, n_jobs, quiet), kind)
    retriever.save_pretrained(output.expanduser())
    say(f"{retriever.n_samples_fit_:,} images indexed in {str(output)!r}.", quiet)


def _indexed(paths: Sequence[str], aligner: str | None, machine: Any, kind: str = "exact") -> Any:
    """Return a retriever of the images that can be read."""
    from .. import CrossModalRetriever
    from ._models import encode_images, image_encoder_of, open_aligner

    model = open_aligner(aligner, machine)
    retriever = CrossModalRetriever(model, index=kind)
    retriever._check_parameters()
    found = encode_images(image_encoder_of(model), paths, machine)
    return retriever.fit([paths[row] for row in found.good])


def _saved(folder: Path | None, machine: Any) -> Any:
    from .. import CrossModalRetriever
    from ._models import open_saved

    retriever = open_saved(str(folder), machine)
    if not isinstance(retriever, CrossModalRetriever):
        raise ValueError(
            f"{str(folder)!r} holds a {type(retriever).__name__}, not an index: "
            "'sklearn-ape index' makes one."
        )
    return retriever


def _write(table: Table, queries: list[str], retriever: Any, k: int, modality: str) -> None:
    from ..encoders import EncodingFailedWarning

    is_image = modality == "image"
    n_read = retriever.n_samples_fit_ - retriever.n_unread_
    # An image of the collection finds itself first, which nobody asks for.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", EncodingFailedWarning)  # the error below names it
        found = retriever.search(queries, k=min(k + is_image, n_read), modality=modality)
    names_files = not retriever._has_y  # else the items are ids, of an index made in Python
    for query, scores, items in zip(queries, found.scores, found.items, strict=True):
        if not items:
            raise ValueError(f"{query!r} cannot be read as an image.")
        own = os.path.realpath(query) if is_image else None
        others = [
            (item, score)
            for item, score in zip(items, scores.tolist(), strict=True)
            if own is None or not isinstance(item, str) or os.path.realpath(item) != own
        ]
        for rank, (item, score) in enumerate(others[:k], start=1):
            asked = FileName(query) if is_image else query
            shown = FileName(item) if names_files else str(item)
            table.write([asked, rank, shown, round(score, 4)])
    table.flush()
