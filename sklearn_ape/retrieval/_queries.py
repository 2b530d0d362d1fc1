"""Tell queries that are words from those that are images."""

from __future__ import annotations

import os
from typing import Any

from .._first_few import first_few
from .._image_suffixes import IMAGE_SUFFIXES
from .._sequences import check_sequence
from .._warnings import warn
from ..aligners._feature_tiles import is_table

MODALITIES = ("auto", "image", "text")


def told_apart(queries: Any, modality: str) -> tuple[Any, bool]:
    """Return queries as what an aligner takes, and whether they are texts.

    Parameters
    ----------
    queries : sequence
        Texts, images or features.
    modality : {"auto", "image", "text"}
        ``"auto"`` takes str as text.

    Raises
    ------
    ValueError
        When there are none, or they are of both kinds, or not of the kind that is asked for.
    """
    if modality not in MODALITIES:
        raise ValueError(f"modality must be one of {', '.join(MODALITIES)}, not {modality!r}.")
    check_sequence(queries, "queries", "query", "texts, of images or of features")
    if hasattr(queries, "columns") and not hasattr(queries, "iloc"):  # polars: by columns, else
        queries = queries.to_numpy()
    if is_table(queries):
        if queries.shape[0] == 0:
            raise ValueError("queries is empty: there is nothing to search for.")
        return queries, modality == "text"
    items = queries.to_pylist() if hasattr(queries, "to_pylist") else queries
    if not isinstance(items, list) and not _is_numeric(items):
        items = list(items)
    if len(items) == 0:
        raise ValueError("queries is empty: there is nothing to search for.")
    if modality == "image" or _is_numeric(items):
        return items, modality == "text"
    texts = [row for row, item in enumerate(items) if isinstance(item, str)]
    if modality == "auto" and not texts:
        return items, False
    if len(texts) < len(items):
        other = next(row for row, item in enumerate(items) if not isinstance(item, str))
        if modality == "text" and not isinstance(items[other], list | tuple):
            raise ValueError(
                f"modality='text' takes str, and query {other} is of type "
                f"{type(items[other]).__name__}."
            )
        if modality == "auto":
            raise ValueError(
                f"queries mixes texts (query {texts[0]}) with images (query {other}): search "
                "for them one after the other, or pass modality='image' where the texts are paths."
            )
    blank = [row for row in texts if not items[row].strip()]
    if blank:
        raise ValueError(f"Query {blank[0]} is an empty text: there is nothing to search for.")
    if modality == "auto":
        _warn_of_paths(items)
    return items, True


def _is_numeric(items: Any) -> bool:
    return getattr(getattr(items, "dtype", None), "kind", "") in set("fiub")


def _warn_of_paths(texts: list[str]) -> None:
    paths = [
        text for text in texts if text.lower().endswith(IMAGE_SUFFIXES) or os.path.isfile(text)
    ]
    if paths:
        warn(
            f"{len(paths)} of the queries look like paths and are searched as text: "
            f"{first_few(paths)}. Pass modality='image' to search by these images, or "
            "modality='text' where they are words.",
        )
