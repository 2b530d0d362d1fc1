"""The commands ``sklearn-ape search`` and ``sklearn-ape index``."""

from __future__ import annotations

import errno
import functools
import glob
import json
import math
import os
import stat
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from ..utils.files import expand_user, write_file_atomically
from . import _inputs as option
from ._inputs import check_replaces_no_input, list_images, make_absolute
from ._output import (
    FileName,
    Table,
    check_model_folder,
    check_output_file,
    find_written_folder,
    print_loading,
    print_message,
    resolve_format,
)

# File in the folder of an index with what `_read_record` returns, as JSON. The times of the other
# files are not suitable, because copying the folder changes them.
_RECORD = "indexed_at"

# Errors for paths of files that do not exist. Others, such as those of a share that is not
# connected, say nothing about the file.
_MISSING = {errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP, errno.EINVAL}

# A folder that was renamed, or a clock that was set back, leaves images that differ from those of
# the index, but are older than it. Their sizes or times differ.
_Stamp = list[int] | None


def search(
    images: option.OptionalImages = None,
    query: Annotated[list[str] | None, typer.Option(help="Query text. Can be repeated.")] = None,
    like: Annotated[
        list[str] | None, typer.Option(help="Query image: find similar images. Can be repeated.")
    ] = None,
    k: Annotated[
        int, typer.Option("--top-k", "-k", min=1, help="Number of images per query.")
    ] = 5,
    min_score: Annotated[
        str | None,
        typer.Option(help="Lowest score to list, or auto: only images related to the query."),
    ] = None,
    aligner: option.Aligner = None,
    index: Annotated[
        Path | None, typer.Option(help="Folder written by 'sklearn-ape index', instead of IMAGES.")
    ] = None,
    output: option.Output = None,
    file_format: option.Format = None,
    cache: option.Cache = None,
    device: option.Device = "auto",
    n_jobs: option.NJobs = -1,
    quiet: option.Quiet = False,
) -> None:
    """Search images by text or by image.

    Example: sklearn-ape search photos/ --query "a red fruit" -k 3
    """
    file_format = resolve_format(output, file_format)
    check_replaces_no_input(output, *(images or []))
    check_output_file(output)
    queries, likes = list(query or []), [os.path.expanduser(path) for path in like or []]
    if not queries and not likes:
        raise typer.BadParameter(f"No query. {_suggest_query(images or [])}")
    if any(not text.strip() for text in queries):
        raise typer.BadParameter("is empty. Pass a text.", param_hint="--query")
    for path in likes:
        _check_query_image(path)
    if (index is None) == (not images):
        raise typer.BadParameter("Pass either images to search, or --index.")
    if index is not None and aligner is not None:
        raise typer.BadParameter(
            f"{str(index)!r} contains its aligner. Remove --aligner.", param_hint="--index"
        )
    score_bound = _parse_min_score(min_score)
    paths = list_images(images, quiet) if images else []

    print_loading(quiet)
    from ._models import RuntimeOptions

    _check_query_texts(queries)
    options = RuntimeOptions(cache, device, n_jobs, quiet)
    retriever = _build_index(paths, aligner, options) if images else _load_index(index, options)
    with Table(["query", "rank", "path", "score"], output, file_format) as table:
        empty = _write_results(table, queries, retriever, k, "text", score_bound)
        empty += _write_results(table, likes, retriever, k, "image", score_bound)
    if empty:
        from ..utils.validation import format_list

        hint = "" if score_bound is None else " Remove --min-score to see the nearest images."
        print_message(f"Nothing was found for {format_list(empty)}.{hint}", quiet)


def _suggest_query(images: Sequence[str]) -> str:
    """Return what to do without a query: a text may have been passed as an image."""
    texts = [
        argument
        for argument in images
        if argument != "-" and not glob.has_magic(argument) and not os.path.lexists(argument)
    ]
    if texts:
        return f'{texts[0]!r} is not a file. Did you mean --query "{texts[0]}"?'
    return 'Set --query "a red fruit" or --like cat.jpg.'


def _check_query_texts(texts: Sequence[str]) -> None:
    """Raise an error if a text is the path of an image, before the collection is read."""
    from ..encoders.text_encoder import is_image_file

    for text in texts:
        if is_image_file(text):
            raise typer.BadParameter(
                f"{text!r} is an image file, not a text. To find similar images, pass it as "
                "--like.",
                param_hint="--query",
            )


def _check_query_image(path: str) -> None:
    """Raise an error unless a path is an image, before the collection is read."""
    from ..encoders.images import check_proportions, read_image
    from ..encoders.items import ItemError
    from ._models import ignore_unreadable

    try:
        with ignore_unreadable():
            check_proportions(read_image(path))
    except ItemError as error:
        raise ValueError(f"--like {path!r} cannot be read as an image: it {error}") from error


def _parse_min_score(text: str | None) -> float | str | None:
    if text is None or text == "auto":
        return text
    with suppress(ValueError):
        score = float(text)
        if score < math.inf:  # nor NaN
            return score
    raise typer.BadParameter(f"{text!r} is not a number or auto.", param_hint="--min-score")


def _build_index(
    paths: Sequence[str], aligner: str | None, options: Any, kind: str = "exact"
) -> Any:
    """Return a retriever fitted on the readable images."""
    from ..retrieval import CrossModalRetriever
    from ._models import encode_images, get_image_encoder, load_aligner

    model = load_aligner(aligner, options)
    retriever = CrossModalRetriever(model, index=kind)
    retriever._check_parameters()
    encoded = encode_images(get_image_encoder(model), paths, options)
    return retriever.fit([paths[row] for row in encoded.readable_rows])


def _load_index(folder: Path | None, options: Any) -> Any:
    from ..retrieval import CrossModalRetriever
    from ._models import load_model

    retriever = load_model(str(folder), options)
    if not isinstance(retriever, CrossModalRetriever):
        raise ValueError(
            f"{str(folder)!r} contains a {type(retriever).__name__}, not an index. Create one "
            "with 'sklearn-ape index'."
        )
    return retriever


def _write_results(
    table: Table,
    queries: list[str],
    retriever: Any,
    k: int,
    modality: str,
    min_score: float | str | None,
) -> list[str]:
    """Write the results of queries, and return the queries without results."""
    if not queries:
        return []
    from ._models import ignore_unreadable

    # The items of an index created in Python may be ids instead of file names.
    has_file_names = not retriever._has_y
    empty = []
    with ignore_unreadable():
        results = _search(retriever, queries, k, modality, min_score)
    for query, pairs in zip(queries, results, strict=True):
        if not pairs:
            empty.append(query)
        for rank, (item, score) in enumerate(pairs, start=1):
            query_cell = FileName(query) if modality == "image" else query
            item_cell = FileName(item) if has_file_names else str(item)
            table.write([query_cell, rank, item_cell, round(score, 4)])
    table.flush()
    return empty


def _search(
    retriever: Any, queries: list[str], k: int, modality: str, min_score: float | str | None
) -> list[list[tuple[Any, float]]]:
    """Return up to k items and their scores for each query, without the image of the query."""
    is_image = modality == "image"
    n_readable = retriever.n_samples_fit_ - retriever.n_unread_
    # An image of the collection is its own nearest neighbour, and so is each link to its file. As
    # many further results are requested as are skipped. Links are known only after a search, which
    # is repeated if there are more of them.
    n_further = int(is_image)
    while True:
        result = retriever.search(
            queries, k=min(k + n_further, n_readable), modality=modality, min_score=min_score
        )
        is_skipped = [
            [is_image and _is_same_file(item, query) for item in items]
            for query, items in zip(queries, result.items, strict=True)
        ]
        n_skipped = max(map(sum, is_skipped))
        if n_skipped <= n_further:
            break
        n_further = n_skipped
    results = []
    for items, scores, skips in zip(result.items, result.scores, is_skipped, strict=True):
        triples = zip(items, scores[: len(items)].tolist(), skips, strict=True)
        results.append([(item, score) for item, score, skip in triples if not skip][:k])
    return results


def _is_same_file(item: Any, path: str) -> bool:
    return isinstance(item, str) and os.path.realpath(item) == os.path.realpath(path)


def index(
    images: option.Images,
    output: Annotated[
        Path,
        typer.Option(
            "--output",
            "-o",
            help="Folder for the index. It contains the aligner (24 MB for the starter model).",
        ),
    ],
    aligner: option.Aligner = None,
    kind: Annotated[
        Literal["exact", "faiss", "usearch"],
        typer.Option(
            metavar="KIND",
            help="exact, faiss (same results) or usearch (approximate, for large collections).",
        ),
    ] = "exact",
    update: Annotated[
        bool,
        typer.Option(
            "--update", help="Embed new and changed images only, and drop images that are gone."
        ),
    ] = False,
    cache: option.Cache = None,
    device: option.Device = "auto",
    n_jobs: option.NJobs = -1,
    quiet: option.Quiet = False,
) -> None:
    """Embed a collection of images, for fast searches.

    Example: sklearn-ape index photos/ -o my-index
    """
    check_model_folder(output, "CrossModalRetriever", has_starter=aligner is None)
    if update and (aligner is not None or kind != "exact"):
        raise typer.BadParameter(
            "keeps the aligner and the kind of the index. Remove --aligner and --kind.",
            param_hint="--update",
        )
    folder = expand_user(output)
    # Not time.time(): the clock of a file server may differ from that of this computer.
    with tempfile.TemporaryFile(dir=find_written_folder(folder)) as file:
        started_at = os.fstat(file.fileno()).st_mtime_ns
    paths = list(map(make_absolute, list_images(images, quiet)))
    stamps = {path: _read_stamp(path) for path in paths}

    print_loading(quiet)
    from ._models import RuntimeOptions

    options = RuntimeOptions(cache, device, n_jobs, quiet)
    if update and folder.is_dir():
        retriever = _update_index(folder, paths, stamps, options)
    else:
        retriever = _build_index(paths, aligner, options, kind)
    retriever.save_pretrained(folder)
    record = {"time": started_at, "stamps": [stamps[path] for path in retriever.items_]}
    with write_file_atomically(folder / _RECORD) as temporary:
        temporary.write_text(json.dumps(record), encoding="ascii")
    print_message(f"Indexed {retriever.n_samples_fit_:,} images. Saved in {str(output)!r}.", quiet)


def _update_index(
    folder: Path, paths: Sequence[str], stamps: Mapping[str, _Stamp], options: Any
) -> Any:
    """Return the index in a folder after embedding new and changed images only."""
    from ._models import encode_images, get_image_encoder

    retriever = _load_index(folder, options)
    items = retriever.items_
    # An index of images in memory, which was created in Python, has row numbers.
    if retriever._has_y or not all(isinstance(item, str) for item in items):
        raise ValueError(
            f"{str(folder)!r} was not created by 'sklearn-ape index': its items are not the paths "
            "of images. Create it again without --update."
        )
    indexed = set(items)
    indexed_at, old_stamps = _read_record(folder, items)
    common = indexed.intersection(paths)
    changed = {path for path in common if stamps[path] != old_stamps.get(path)}
    changed |= _find_changed(common - changed, indexed_at)
    removed = indexed.difference(paths)
    existing = sorted(filter(_may_exist, removed))
    if existing:  # unless an image was indexed by a link, and is passed by another path
        real_paths = set(map(os.path.realpath, paths))
        existing = [path for path in existing if os.path.realpath(path) not in real_paths]
    if existing:
        raise ValueError(
            f"IMAGES does not include {len(existing):,} indexed images that exist or cannot be "
            f"read now, such as {existing[0]!r}. Pass all folders of the collection, or create "
            "the index again without --update to drop these images."
        )
    unchanged = indexed - removed - changed
    added = [path for path in paths if path not in unchanged]
    if added:
        encoder = get_image_encoder(retriever)
        encoded = encode_images(encoder, added, options, may_be_empty=bool(unchanged))
        added = [added[row] for row in encoded.readable_rows]
        removed |= changed.difference(added)
    if not unchanged:
        retriever.fit(added)
    else:
        if removed or changed:
            retriever.remove(sorted(removed | changed))
        if added:
            retriever.add(added)
    print_message(f"Images embedded: {len(added):,}, removed: {len(removed):,}.", options.quiet)
    return retriever


def _may_exist(path: str) -> bool:
    """Return whether a path is a file, or in a folder or share that cannot be read now."""
    try:
        return stat.S_ISREG(os.stat(path).st_mode)
    except ValueError:  # a text that is not a path
        return False
    except OSError as error:
        return error.errno not in _MISSING


def _read_record(folder: Path, items: Sequence[str]) -> tuple[int, dict[str, _Stamp]]:
    """Return when the images of an index began to be read, in nanoseconds, and their stamps."""
    try:
        record = json.loads((folder / _RECORD).read_text(encoding="ascii"))
        return int(record["time"]), dict(zip(items, record["stamps"], strict=True))
    except (FileNotFoundError, ValueError, TypeError, KeyError, OverflowError):
        return 0, {}  # saved in Python, or damaged: all images are embedded again


def _read_stamp(path: str) -> _Stamp:
    """Return the size and the time of an image, or None if it does not exist."""
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return None
    return [status.st_size, status.st_mtime_ns]


def _find_changed(paths: Iterable[str], indexed_at: int) -> set[str]:
    """Return the images with the same stamps that may have changed after a time in nanoseconds.

    Copies may keep the time of the original, but the system records when they replaced the file.
    """

    def may_be_newer(path: str, *read_status: Callable[[str], os.stat_result]) -> bool:
        try:
            files = [read(path) for read in read_status]
        except OSError:  # such as a link to a missing file, which is then reported as unreadable
            return True
        return max(max(file.st_mtime_ns, file.st_ctime_ns) for file in files) > indexed_at

    # A new link to a folder of the path, or to the image itself, may lead to an old image.
    @functools.cache
    def is_in_new_link(folder: str) -> bool:
        links = filter(os.path.islink, map(str, (folder, *Path(folder).parents)))
        return any(may_be_newer(link, os.lstat) for link in links)

    return {
        path
        for path in paths
        if is_in_new_link(os.path.dirname(path)) or may_be_newer(path, os.stat, os.lstat)
    }
