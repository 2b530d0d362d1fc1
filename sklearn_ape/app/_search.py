"""A collection of images, searched by words or by an image."""

from __future__ import annotations

import os
from typing import Any, NamedTuple

from ..retrieval import CrossModalRetriever
from ._classify import check_text
from ._images import check_image
from ._limits import Limits
from ._model import encode, encoders_of, with_caches
from ._progress import Report
from ._refusal import Refusal


class Collection(NamedTuple):
    """Images ready to be searched.

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
    """An image that was found: its path, what is written below it and its cosine."""

    image: str
    name: str
    score: float


def make_collection(
    aligner: Any, images: list[str], names: list[str], cache: Any, report: Report
) -> Collection:
    """Embed images for searches.

    Parameters
    ----------
    aligner : estimator
        Fitted; takes images and texts.
    images : list of str
        Paths of images that can be read.
    names : list of str
        What is written below each.
    cache : FeatureCache or path
        Keeps the features of these images, so that another aligner on the same encoders takes
        no time.
    report : callable
        Told of progress.

    Returns
    -------
    collection : Collection
        Searches leave nothing in the cache.
    """
    caching = with_caches(aligner, cache, None)
    encode(encoders_of(caching)[0], images, report, "Encoding image")
    retriever = CrossModalRetriever(caching).fit(images, names)
    # From here on it is asked for visitors' images, which are to be forgotten.
    retriever.aligner_ = aligner
    return Collection(retriever, images, names)


def search(
    collection: Collection,
    words: str | None,
    image: str | os.PathLike[str] | None,
    k: int,
    limits: Limits,
) -> list[Found]:
    """Find images by words or, where there are none, by an image.

    Returns
    -------
    found : list of Found, of length k
        The nearest first; all of them where the collection is smaller.

    Raises
    ------
    Refusal
        When there is nothing to search by, or the image cannot be read.
    """
    words = " ".join((words or "").split())
    k = min(int(k), limits.found, len(collection.images))
    if words:
        check_text(words, limits, "sentence")
        result = collection.retriever.search([words], k=k, modality="text")
    elif image is not None:
        path = check_image(image, limits)
        result = collection.retriever.search([path], k=k, modality="image")
    else:
        raise Refusal("Write what to look for, such as 'a red fruit', or drop an image.")
    return [
        Found(collection.images[row], collection.names[row], float(score))
        for row, score in zip(result.indices[0], result.scores[0], strict=True)
    ]
