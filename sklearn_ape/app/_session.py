"""State of a visitor's session, and image search."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..datasets import get_data_home, load_image_folder, load_openmoji
from ..datasets.base import words_of
from ..encoders import HeadPairs
from ..features import FeatureCache, MemoryFeatureCache
from ..retrieval import CrossModalRetriever
from ..utils.files import IMAGE_SUFFIXES
from ._actions import Classification, align, classify
from ._limits import Limits, Report, UserError, check_text, no_report, part
from ._model import (
    Alignment,
    Download,
    Model,
    as_zip,
    encode,
    encoders_of,
    from_zip,
    head_pairs_of,
    with_caches,
)
from ._uploads import (
    CAPTIONED,
    about_problems,
    captioned,
    check_image,
    listed_images,
    readable,
    temporary_folder,
    thumbnail,
    unpack,
)

_THINGS = ("Activities", "Animals & Nature", "Food & Drink", "Objects", "Travel & Places")


_SHOWN_FIRST = ("tiger", "pizza", "bicycle", "rocket", "umbrella", "guitar")


@dataclass(frozen=True)
class Images:
    """Images to search in, before they are embedded.

    Parameters
    ----------
    images, names : list of str
        Paths, and what is written below each.
    cache : FeatureCache or path-like
        Keeps their features.
    title : str
        What they are.
    folder : tempfile.TemporaryDirectory or None, default=None
        Where they lie, if it goes with them.
    """

    images: list[str]
    names: list[str]
    cache: Any
    title: str
    folder: Any = None


def given_images(images: Any) -> Images:
    """Return the collection that the person who starts the page named."""
    cache: FeatureCache | Path = get_data_home() / "features"
    if images is None:
        return openmoji_sample(cache)
    if isinstance(images, str | os.PathLike):
        data = load_image_folder(images)
        names = names_of_files(data.images) if data.captions is None else data.captions
        title = f"{len(data.images)} images of {Path(images).name!r}"
        return Images(data.images, [_first(name) for name in names], cache, title)
    if not isinstance(images, Sequence) or not len(images):
        raise ValueError(
            "images must be a folder, a sequence of paths of images, or None for OpenMoji, not "
            f"{images!r}."
        )
    paths = [os.fspath(image) for image in images]
    return Images(paths, names_of_files(paths), cache, f"{len(paths)} images")


def examples_of(images: Images, most: int = 6) -> list[Any]:
    """Return small copies of a few images, those that a newcomer would try first."""
    names = [name for name in _SHOWN_FIRST if name in images.names]
    rows = [images.names.index(name) for name in names]
    others = range(0, len(images.images), len(images.images) // most or 1)
    shown = []
    for row in dict.fromkeys([*rows, *others]):
        with contextlib.suppress(Exception):  # one that cannot be read is no example
            shown.append(thumbnail(images.images[row]))
        if len(shown) == most:
            break
    return shown


def openmoji_sample(cache: Any) -> Images:
    """Return the drawings of things, few enough to be embedded while one waits."""
    data = load_openmoji()
    things = np.flatnonzero(np.isin(data.categories, _THINGS)).tolist()
    images, names = ([column[row] for row in things] for column in (data.images, data.captions))
    return Images(images, names, cache, f"{len(images)} drawings of OpenMoji (CC BY-SA 4.0)")


def names_of_files(images: Sequence[str]) -> list[str]:
    """Return what is written below images that have no captions."""
    return [words_of(Path(image).stem) or Path(image).stem for image in images]


def _first(name: Any) -> str:
    return name if isinstance(name, str) else name[0]


@dataclass(frozen=True)
class Session:
    """What one visitor made: never seen by another, gone when they leave.

    Parameters
    ----------
    alignment : Alignment or None
        Their own aligner.
    download : Download or None
        The same as a zip.
    images : Images or None
        Their own collection.
    collection : Collection or None
        The images that they search, in the space of the aligner that they use.
    """

    alignment: Alignment | None = None
    download: Download | None = None
    images: Images | None = None
    collection: Collection | None = None


class AppService:
    """The model of a server and the requests it serves.

    Parameters
    ----------
    model : Model
        What visitors begin with.
    images : path-like, sequence of paths or None
        The collection that visitors begin with: a folder, or paths; None is OpenMoji.
    limits : Limits
        Bounds.

    Notes
    -----
    Requests may come from several threads. What takes a session returns a new one.
    """

    def __init__(self, model: Model, images: Any, limits: Limits) -> None:
        self.model = model
        self.limits = limits
        self.images = given_images(images)
        self.examples = examples_of(self.images)
        self._lock = threading.Lock()
        self._head_lock = threading.Lock()
        self._collection: Collection | None = None
        self._head_pairs: list[HeadPairs | None] = []

    def aligner(self, session: Session) -> Any:
        """Return the visitor's own aligner, or the server's."""
        return self.model.aligner if session.alignment is None else session.alignment.aligner

    def classify(
        self, session: Session, image: Any, labels: str, templates: str, threshold: float
    ) -> Classification:
        """Name an image; see `classify`."""
        aligner = self.aligner(session)
        return classify(aligner, image, labels, templates, threshold, self.limits)

    def search(
        self, session: Session, words: str, image: Any, k: int, report: Report = no_report
    ) -> tuple[Session, list[Found]]:
        """Search the visitor's collection, embedding it where that is still to be done."""
        session, collection = self._ready(session, report)
        return session, search(collection, words, image, k, self.limits)

    def prepare(self, session: Session, report: Report) -> None:
        """Load the networks and embed the collection, ahead of the first request."""
        self._ready(session, report)
        self._head(report)

    def take_aligner(self, session: Session, archive: Any) -> Session:
        """Use an aligner that was downloaded from such a page."""
        if archive is None:
            raise UserError("There is no zip yet: drop the one that you downloaded.")
        with temporary_folder("saved-") as folder:
            alignment = from_zip(archive, folder, self.model.aligner, self.limits)
        return replace(session, alignment=alignment, download=None, collection=None)

    def take_collection(self, session: Session, archive: Any, report: Report) -> Session:
        """Search in the images of a zip from now on."""
        if archive is None:
            raise UserError("There is no zip yet: drop one with images.")
        folder = temporary_folder("collection-")
        try:
            unpack(archive, folder.name, IMAGE_SUFFIXES, self.limits)
            images = listed_images(Path(folder.name), self.limits)
            good = readable(images, folder.name, self.limits, part(report, 0, 0.2))
            if not good.rows:
                raise UserError(about_problems(good.problems))
            images = [images[row] for row in good.rows]
            names = names_of_files(images)
            title = f"{len(images)} images of your zip. {about_problems(good.problems)}"
            collection_images = Images(images, names, MemoryFeatureCache(), title, folder)
            return self._ready(
                replace(session, images=collection_images, collection=None), part(report, 0.2, 1)
            )[0]
        except BaseException:
            folder.cleanup()
            raise

    def align(
        self, session: Session, archive: Any, method: str, with_head: bool, report: Report
    ) -> tuple[Session, str]:
        """Align on the captioned images of a zip; return what is to be said of them."""
        if archive is None:
            raise UserError("There is no zip yet: drop one with captioned images.")
        with temporary_folder("align-") as folder:
            unpack(archive, folder, CAPTIONED, self.limits)
            data = captioned(Path(folder), self.limits)
            good = readable(data.images, folder, self.limits, part(report, 0, 0.05))
            data = data._replace(
                images=[data.images[row] for row in good.rows],
                captions=[data.captions[row] for row in good.rows],
            )
            head = self._head(part(report, 0.05, 0.3)) if with_head else None
            start = 0.3 if with_head else 0.05
            before = self.model.aligner
            alignment = align(before, data, method, head, part(report, start, 1))
        remark = f"Captions come from {data.source}. {about_problems(good.problems)}"
        saved = as_zip(alignment)
        session = replace(session, alignment=alignment, download=saved, collection=None)
        return session, remark

    def forget_alignment(self, session: Session) -> Session:
        """Go back to the server's aligner."""
        return replace(session, alignment=None, download=None, collection=None)

    def _ready(self, session: Session, report: Report) -> tuple[Session, Collection]:
        """Return the session with its images embedded by its aligner."""
        if session.alignment is None and session.images is None:
            with self._lock:  # the first visitor makes it, the others wait for it
                if self._collection is None:
                    self._collection = self._embedded(self.images, self.model.aligner, report)
            return session, self._collection
        if session.collection is None:
            images = session.images or self.images
            made = self._embedded(images, self.aligner(session), report)
            session = replace(session, collection=made)
        assert session.collection is not None
        return session, session.collection

    def _embedded(self, images: Images, aligner: Any, report: Report) -> Collection:
        return make_collection(aligner, images.images, images.names, images.cache, report)

    def _head(self, report: Report) -> HeadPairs | None:
        """Return pairs of the image encoder's own classes, made when first asked for."""
        with self._head_lock:
            if not self._head_pairs:
                pair = encoders_of(self.model.aligner)
                self._head_pairs.append(head_pairs_of(*pair, report))
            return self._head_pairs[0]


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
        raise UserError("Write what to look for, such as 'a red fruit', or drop an image.")
    return [
        Found(collection.images[row], collection.names[row], float(score))
        for row, score in zip(result.indices[0], result.scores[0], strict=True)
    ]
