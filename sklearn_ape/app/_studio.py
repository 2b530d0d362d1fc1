"""What the page does, without the page: one server's model, and what each visitor made of it."""

from __future__ import annotations

import threading
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from .._image_suffixes import IMAGE_SUFFIXES
from ..encoders import HeadPairs
from ..features import MemoryFeatureCache
from ._alignment import Alignment, align
from ._captioned import CAPTIONED, captioned, listed_images
from ._classify import Classification, classify
from ._given import Images, examples_of, given_images, names_of_files
from ._images import about_problems, readable
from ._limits import Limits
from ._model import Model, encoders_of, head_pairs_of
from ._progress import Report, no_report, part
from ._refusal import Refusal
from ._saved import Download, as_zip, from_zip
from ._search import Collection, Found, make_collection, search
from ._temporary import temporary_folder
from ._zip import unpack


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


class Studio:
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
            raise Refusal("There is no zip yet: drop the one that you downloaded.")
        with temporary_folder("saved-") as folder:
            alignment = from_zip(archive, folder, self.model.aligner, self.limits)
        return replace(session, alignment=alignment, download=None, collection=None)

    def take_collection(self, session: Session, archive: Any, report: Report) -> Session:
        """Search in the images of a zip from now on."""
        if archive is None:
            raise Refusal("There is no zip yet: drop one with images.")
        folder = temporary_folder("collection-")
        try:
            unpack(archive, folder.name, IMAGE_SUFFIXES, self.limits)
            images = listed_images(Path(folder.name), self.limits)
            good = readable(images, folder.name, self.limits, part(report, 0, 0.2))
            if not good.rows:
                raise Refusal(about_problems(good.problems))
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
            raise Refusal("There is no zip yet: drop one with captioned images.")
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
