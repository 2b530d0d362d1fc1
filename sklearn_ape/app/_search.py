"""A collection of pictures, searched by words or by a picture."""

from __future__ import annotations

import os
from typing import Any, NamedTuple

from ..retrieval import CrossModalRetriever
from ._classify import check_text
from ._limits import Limits
from ._model import encode, encoders_of, with_caches
from ._pictures import check_picture
from ._progress import Report
from ._refusal import Refusal


class Collection(NamedTuple):
    """Pictures ready to be searched.

    Parameters
    ----------
    retriever : CrossModalRetriever
        Holds their embeddings.
    images : list of str
        Their paths.
    names : list of str
        What is written below each.
    """

    retriever: Any
    images: list[str]
    names: list[str]


class Found(NamedTuple):
    """A picture that was found: its path, what is written below it and its cosine."""

    image: str
    name: str
    score: float


def make_collection(
    aligner: Any, images: list[str], names: list[str], cache: Any, report: Report
) -> Collection:
    """Embed pictures for searches.

    Parameters
    ----------
    aligner : estimator
        Fitted; takes pictures and texts.
    images : list of str
        Paths of pictures that can be read.
    names : list of str
        What is written below each.
    cache : FeatureCache or path
        Keeps the features of these pictures, so that another aligner on the same encoders takes
        no time.
    report : callable
        Told of progress.

    Returns
    -------
    collection : Collection
        Searches leave nothing in the cache.
    """
    caching = with_caches(aligner, cache, None)
    encode(encoders_of(caching)[0], images, report, "Encoding picture")
    retriever = CrossModalRetriever(caching).fit(images, names)
    # From here on it is asked for visitors' pictures, which are to be forgotten.
    retriever.aligner_ = aligner
    return Collection(retriever, images, names)


def search(
    collection: Collection,
    words: str | None,
    picture: str | os.PathLike[str] | None,
    k: int,
    limits: Limits,
) -> list[Found]:
    """Find pictures by words or, where there are none, by a picture.

    Returns
    -------
    found : list of Found, of length k
        The nearest first; all of them where the collection is smaller.

    Raises
    ------
    Refusal
        When there is nothing to search by, or the picture cannot be read.
    """
    words = " ".join((words or "").split())
    k = min(int(k), limits.found, len(collection.images))
    if words:
        check_text(words, limits, "sentence")
        result = collection.retriever.search([words], k=k, modality="text")
    elif picture is not None:
        path = check_picture(picture, limits)
        result = collection.retriever.search([path], k=k, modality="image")
    else:
        raise Refusal("Write what to look for, such as 'a red fruit', or drop a picture.")
    return [
        Found(collection.images[row], collection.names[row], float(score))
        for row, score in zip(result.indices[0], result.scores[0], strict=True)
    ]
