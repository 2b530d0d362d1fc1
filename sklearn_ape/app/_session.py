"""State of a visitor's session, and the service that processes the requests."""

from __future__ import annotations

import contextlib
import copy
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from ..datasets import get_data_home, load_image_folder, load_openmoji
from ..datasets.base import name_folder
from ..encoders import HeadPairs
from ..features import MemoryFeatureCache
from ..prompts import TEMPLATES, is_hierarchy, prompts_of, resolve_templates
from ..retrieval import CrossModalRetriever
from ..utils.concurrency import LRUCache
from ..utils.files import IMAGE_SUFFIXES
from ..utils.messages import escape_controls, escape_markdown
from ..zero_shot import FewShotClassifier, ZeroShotClassifier
from ._limits import (
    Limits,
    Progress,
    UserError,
    check_text,
    format_percent,
    make_download_message,
    parse_labels,
    quote,
    scale_progress,
)
from ._model import (
    Alignment,
    Download,
    Model,
    align,
    draw_similarity_map,
    encode,
    get_encoders,
    load_zip,
    make_head_pairs,
    replace_caches,
    save_zip,
)
from ._uploads import (
    CAPTIONED_SUFFIXES,
    check_image,
    check_images,
    create_temporary_folder,
    describe_problems,
    list_images,
    load_captioned_images,
    make_thumbnail,
    unpack,
)

# Drawings of objects, without faces, flags and symbols: few enough to embed at the first search.
_OPENMOJI_CATEGORIES = (
    "Activities",
    "Animals & Nature",
    "Food & Drink",
    "Objects",
    "Travel & Places",
)
_N_EXAMPLES = 12
_EXAMPLE_NAMES = ("tiger", "pizza", "bicycle", "rocket", "umbrella", "guitar")


@dataclass(frozen=True)
class ImageCollection:
    """Paths of images to search, and the names shown below them, before they are embedded.

    The page shows the title after the number of images.
    """

    images: list[str]
    names: list[str]
    cache: Any
    title: str
    folder: Any = None  # temporary folder, deleted with this object
    labels: list[str] | None = None  # names of the subfolders


def load_collection(images: Any) -> ImageCollection:
    """Return the images for the parameter ``images`` of `build_app`."""
    cache = get_data_home() / "features"
    if images is None:
        return _load_openmoji_collection(cache)
    if isinstance(images, str | os.PathLike):
        return _load_folder_collection(images, cache)
    if not isinstance(images, Sequence) or not len(images):
        raise ValueError(
            f"images must be a folder, a sequence of image paths or None, got {images!r}. None "
            "shows drawings of OpenMoji."
        )
    paths = [os.fspath(image) for image in images]
    return ImageCollection(paths, get_file_names(paths), cache, "images")


def _load_openmoji_collection(cache: Path) -> ImageCollection:
    data = load_openmoji()
    rows = np.flatnonzero(np.isin(data.categories, _OPENMOJI_CATEGORIES)).tolist()
    paths, names = ([column[row] for row in rows] for column in (data.images, data.captions))
    return ImageCollection(paths, names, cache, "drawings of OpenMoji (CC BY-SA 4.0)")


def _load_folder_collection(folder: str | os.PathLike[str], cache: Path) -> ImageCollection:
    try:
        data = load_image_folder(folder)
    except ValueError:  # incomplete captions, which are needed as names only
        data = load_image_folder(folder, captions=None)
    names = [text if isinstance(text, str) else text[0] for text in data.captions or []]
    names = names or get_file_names(data.images)
    title = f"images of {Path(folder).name!r}"
    # Numbers at the end are kept, unlike in captions: they can distinguish classes.
    names_of_labels = map(escape_controls, data.get("labels", ()))
    folders = sorted({name_folder(label) for label in names_of_labels} - {""})
    labels = folders if len(folders) > 1 else None
    return ImageCollection(data.images, names, cache, title, labels=labels)


def get_file_names(paths: Sequence[str]) -> list[str]:
    """Return names for images without captions, by which a visitor finds the files."""
    # Gradio cannot send undecodable bytes of file names.
    return [escape_controls(Path(path).stem) for path in paths]


def make_examples(collection: ImageCollection) -> list[tuple[Any, str]]:
    """Return thumbnails and names of a few images."""
    rows = [collection.names.index(name) for name in _EXAMPLE_NAMES if name in collection.names]
    rows += range(0, len(collection.images), len(collection.images) // _N_EXAMPLES or 1)
    examples = []
    for row in dict.fromkeys(rows):
        with contextlib.suppress(Exception):  # skip unreadable images
            examples.append((make_thumbnail(collection.images[row]), collection.names[row]))
        if len(examples) == _N_EXAMPLES:
            break
    return examples


class Classification(NamedTuple):
    """Labels with probabilities in decreasing order, and a summary in Markdown."""

    probabilities: dict[str, float]
    summary: str


class SimilarityMap(NamedTuple):
    """A label, an image with the map of the label in color, and the position of its maximum."""

    label: str
    image: Image.Image
    position: str


class FoundImage(NamedTuple):
    """An image with its name and its cosine similarity to the query."""

    image: str
    name: str
    score: float


@dataclass(frozen=True)
class Session:
    """Data of one visitor: own aligner, its zip file, own images, and the embedded images.

    `index` has the images that it was built for, and a retriever whose items are their paths and
    names. `few_shot` has learned from the visitor's corrections of classifications, and
    `previous_few_shot` from all but the last one. If `can_undo`, the last one can be undone.
    The index and `few_shot` may be those of an aligner that was replaced at the same time.
    """

    alignment: Alignment | None = None
    download: Download | None = None
    images: ImageCollection | None = None
    index: tuple[ImageCollection | None, CrossModalRetriever] | None = None
    few_shot: FewShotClassifier | None = None
    previous_few_shot: FewShotClassifier | None = None
    can_undo: bool = False

    def set_few_shot(self, few_shot: FewShotClassifier | None) -> Session:
        """Return a session with another few-shot classifier, and no correction to undo."""
        return replace(self, few_shot=few_shot, previous_few_shot=None, can_undo=False)


def _summarize(
    classifier: ZeroShotClassifier, probabilities: dict[str, float], threshold: float
) -> str:
    """Return the predicted label in Markdown: below the threshold a group, or "unknown"."""
    best, probability = next(iter(probabilities.items()))
    label = escape_markdown(best)
    if probability >= threshold:
        n = len(probabilities)
        percent = format_percent(probability)
        return f"**{label}**, {percent}, among {n} labels (chance {100 / n:.2g}%)."
    classifier = copy.copy(classifier)
    classifier.threshold = threshold
    row = np.array([[probabilities[str(name)] for name in classifier.classes_.tolist()]])
    (group,), (group_probability,) = classifier._choose_labels(row)
    answer = "**Unknown.**"
    if group_probability >= threshold:  # only if the labels are a hierarchy
        percent = format_percent(group_probability)
        answer = f"**{escape_markdown(str(group))}**, {percent}, a group of labels."
    # With three digits, because rounded percentages are often equal.
    percent, limit = (f"{100 * value:.3g}%" for value in (probability, threshold))
    percent = f"just under {limit}" if percent == limit else percent
    reason = f"{label}, has {percent}, less than the threshold of {limit}."
    return f"{answer} The most probable label, {reason}"


class AppService:
    """Model, images and limits of a server, and the requests that it processes.

    Requests may come from several threads. Methods do not change a session but return a new one.
    """

    def __init__(self, model: Model, images: Any, limits: Limits) -> None:
        self.model = model
        self.limits = limits
        self.images = load_collection(images)
        self.labels = model.labels or self.images.labels or []  # initial labels of the page
        self.examples = make_examples(self.images)
        self.initial_session = Session(few_shot=model.few_shot)
        # Templates by their value in the field of the page. Initially, the page classifies as a
        # served classifier does.
        self.templates: dict[str, Any] = {name: name for name in TEMPLATES}
        self.initial_templates, self.initial_threshold = "simple", 0.0
        served = model.classifier
        if served is not None:
            templates: Any = served.templates
            has_name = isinstance(templates, str) and templates in TEMPLATES
            self.initial_templates = templates if has_name else "model"
            self.templates[self.initial_templates] = templates
            self.initial_threshold = float(served.threshold or 0)
        # Values that are computed when they are needed. Concurrent requests wait for the result
        # instead of computing it again.
        self._index: LRUCache[str, CrossModalRetriever] = LRUCache()
        self._head_pairs: LRUCache[str, HeadPairs | None] = LRUCache()

    def get_aligner(self, session: Session) -> Any:
        """Return the visitor's own aligner or the aligner of the server."""
        return self.model.aligner if session.alignment is None else session.alignment.aligner

    def list_examples(self, session: Session) -> list[tuple[Any, str]]:
        """Return thumbnails and names of a few of the images that the visitor searches."""
        return self.examples if session.images is None else make_examples(session.images)

    def classify(
        self, session: Session, image: Any, labels: str, templates: str, threshold: float
    ) -> Classification:
        """Classify an image; below the threshold, the summary says "unknown"."""
        path, names, few_shot = self._check_request(session, image, labels, templates)
        if not isinstance(threshold, int | float) or not 0 <= threshold <= 1:
            raise UserError("The threshold must be between 0 and 1.")
        try:
            classifier = few_shot or self._get_zero_shot(session, names, templates)
            top_labels, top_probabilities = classifier.predict_top_k([path], k=len(names))
        except ValueError as error:  # about the labels, since the image was checked above
            raise UserError(str(error).replace(path, "The image")) from error
        pairs = zip(top_labels[0], top_probabilities[0], strict=True)
        probabilities = {str(label): float(probability) for label, probability in pairs}
        summary = _summarize(classifier, probabilities, threshold)
        if few_shot is not None:
            summary += f" Labelled images used: {few_shot.class_count_.sum()}."
            chosen = self.templates[templates]
            if resolve_templates(few_shot.templates) != resolve_templates(chosen):
                summary += " The prompt templates are those of the first labelled image."
        return Classification(probabilities, summary)

    def locate(self, session: Session, image: Any, labels: str, templates: str) -> SimilarityMap:
        """Show which parts of an image are similar to its most probable label."""
        label = next(iter(self.classify(session, image, labels, templates, 0).probabilities))
        names = (self.model.names or {}).get(label, [label])
        texts = prompts_of(label, names, self.templates[templates])
        try:
            drawn, position = draw_similarity_map(self.get_aligner(session), image, texts)
        except (TypeError, ValueError) as error:  # the image and the labels were checked above
            raise UserError(
                "The aligner in use cannot show where a label is in the image, because it does "
                "not average over the parts of the image. Use the initial aligner, or ask the "
                "person who runs the page to start it with the starter model."
            ) from error
        return SimilarityMap(label, drawn, position)

    def parse_labels(self, labels: str) -> list[str]:
        """Return the label names of a text, see `parse_labels`; none if they are not valid."""
        with contextlib.suppress(UserError):
            return parse_labels(labels, self.limits, self.labels)
        return []

    def correct(
        self, session: Session, image: Any, labels: str, templates: str, correct_label: str
    ) -> Session:
        """Learn the correct label of an image, for further classifications of the visitor."""
        path, names, few_shot = self._check_request(session, image, labels, templates)
        if correct_label not in names:
            raise UserError("Choose the correct label of the image. It must be one of the labels.")
        if few_shot is None:
            # It has the parameters of the classifier that the visitor corrects.
            zero_shot = self._get_zero_shot(session, names, templates)
            param_names = ("aligner", "templates", "class_prior", "logit_scale")
            params = {name: getattr(zero_shot, name) for name in param_names}
            label_names = (
                zero_shot.labels if is_hierarchy(zero_shot.labels) else zero_shot._resolve_names()
            )
            few_shot = FewShotClassifier(label_names, **params)
        elif few_shot.class_count_.sum() >= self.limits.corrections:
            raise UserError(
                f"The limit is {self.limits.corrections:,} labelled images. Undo the last "
                "correction, or reload the page to discard all of them."
            )
        # The labels of a served classifier may be numbers.
        label = next(x for x in few_shot.classes_.tolist() if str(x) == correct_label)
        try:
            few_shot = copy.copy(few_shot).partial_fit([path], [label])
        except ValueError as error:  # about the labels, since the image was checked above
            raise UserError(str(error).replace(path, "The image")) from error
        return replace(
            session, few_shot=few_shot, previous_few_shot=session.few_shot, can_undo=True
        )

    def _get_zero_shot(
        self, session: Session, names: Sequence[str], templates: str
    ) -> ZeroShotClassifier:
        """Return the served classifier if it has these labels, or a new one."""
        served = self.model.classifier
        # A served classifier may define the texts to embed for a label.
        names_by_label = self.model.names or {}
        label_names: Any = {label: names_by_label.get(label, label) for label in names}
        if served is not None and set(map(str, served.classes_)) == set(names):
            if served is not self.model.few_shot and session.alignment is None:
                if templates == self.initial_templates:
                    return served
                params = {**served.get_params(False), "templates": self.templates[templates]}
                return type(served)(**params)
            if is_hierarchy(served._get_labels()):
                label_names = served._get_labels()
        return ZeroShotClassifier(
            label_names, aligner=self.get_aligner(session), templates=self.templates[templates]
        )

    def undo_correction(self, session: Session) -> Session:
        """Forget the last correction. Those that it replaced are used again."""
        if not session.can_undo:
            raise UserError("There is no correction to undo. Only the last one can be undone.")
        return session.set_few_shot(session.previous_few_shot)

    def _check_request(
        self, session: Session, image: Any, labels: str, templates: str
    ) -> tuple[str, list[str], FewShotClassifier | None]:
        """Return the image's path, the labels, and the few-shot classifier if it has them."""
        path = check_image(image, self.limits)
        names = parse_labels(labels, self.limits, self.labels)
        if templates not in self.templates:
            raise UserError(
                f"{quote(str(templates))} is not a set of prompt templates. Choose one of "
                f"{', '.join(self.templates)}."
            )
        few_shot = session.few_shot
        if few_shot is None or few_shot.aligner is not self.get_aligner(session):
            return path, names, None
        return path, names, few_shot if set(map(str, few_shot.classes_)) == set(names) else None

    def search(
        self, session: Session, query: str, image: Any, k: int, progress: Progress
    ) -> tuple[Session, list[FoundImage]]:
        """Search by a text or, if there is none, by an image; the most similar images first.

        The visitor's images are embedded at the first search.
        """
        session, index = self._get_index(session, progress)
        query = " ".join((query or "").split())
        k = min(int(k), self.limits.found, index.n_samples_fit_)
        if query:
            check_text(query, self.limits, "query")
            result = index.search([query], k=k, modality="text")
        elif image is not None:
            result = index.search([check_image(image, self.limits)], k=k, modality="image")
        else:
            raise UserError(
                "There is no query. Enter a text such as 'a red fruit', or drop an image."
            )
        results = zip(result.items[0], result.scores[0], strict=True)
        return session, [FoundImage(path, name, float(score)) for (path, name), score in results]

    def warm_up(self, progress: Progress) -> None:
        """Load the networks and embed the images before the first request."""
        self._get_index(Session(), progress)
        self._get_head_pairs(progress)

    def load_aligner(self, session: Session, archive: Any) -> Session:
        """Use an aligner that was downloaded from this page."""
        with create_temporary_folder("saved-") as folder:
            alignment = load_zip(archive, folder, self.model.aligner, self.limits)
        session = replace(session, alignment=alignment, download=None, index=None)
        return session.set_few_shot(None)

    def load_images(self, session: Session, archive: Any, progress: Progress) -> Session:
        """Use the images of a zip file for searches."""
        folder = create_temporary_folder("collection-")
        try:
            unpack(archive, folder.name, IMAGE_SUFFIXES, self.limits)
            paths = list_images(Path(folder.name), self.limits)
            check_progress = scale_progress(progress, 0, 0.2)
            rows, problems = check_images(paths, folder.name, self.limits, check_progress)
            paths = [paths[row] for row in rows]
            names, cache = get_file_names(paths), MemoryFeatureCache()
            title = f"images of your zip. {describe_problems(problems)}"
            images = ImageCollection(paths, names, cache, title, folder)
            session = replace(session, images=images, index=None)
            return self._get_index(session, scale_progress(progress, 0.2, 1))[0]
        except BaseException:
            folder.cleanup()
            raise

    def reset_images(self, session: Session) -> Session:
        """Search the images of the server again."""
        return replace(session, images=None, index=None)

    def align(
        self, session: Session, archive: Any, method: str, with_head: bool, progress: Progress
    ) -> tuple[Session, str]:
        """Fit an aligner on the captioned images of a zip file; return remarks on the images."""
        with create_temporary_folder("align-") as folder:
            unpack(archive, folder, CAPTIONED_SUFFIXES, self.limits)
            data = load_captioned_images(Path(folder), self.limits)
            check_progress = scale_progress(progress, 0, 0.05)
            rows, problems = check_images(data.images, folder, self.limits, check_progress)
            data = data.select(rows)
            start, head_pairs = 0.05, None
            if with_head and method != "extend":
                head_pairs = self._get_head_pairs(scale_progress(progress, start, 0.3))
                start = 0.3
            alignment = align(
                self.model.aligner, data, method, head_pairs, scale_progress(progress, start, 1)
            )
        remark = f"The captions are from {data.source}. {describe_problems(problems)}"
        session = replace(session, alignment=alignment, download=None, index=None)
        try:
            session = replace(session, download=save_zip(alignment))
        except OSError as error:  # such as a full disk; the fitted aligner must not be lost
            remark += f" {make_download_message(error)}"
        return session.set_few_shot(None), remark

    def reset_aligner(self, session: Session) -> Session:
        """Use the aligner of the server again."""
        session = replace(session, alignment=None, download=None, index=None)
        return session.set_few_shot(self.model.few_shot)

    def _get_index(
        self, session: Session, progress: Progress
    ) -> tuple[Session, CrossModalRetriever]:
        """Return the session with its index, which is built if necessary."""
        if session.alignment is None and session.images is None:
            return session, self._index.get_or_create(
                "index", lambda: self._build_index(session, progress)
            )
        if session.index is not None:
            images, index = session.index
            if images is session.images and index.aligner_ is self.get_aligner(session):
                return session, index
        index = self._build_index(session, progress)
        return replace(session, index=(session.images, index)), index

    def _build_index(self, session: Session, progress: Progress) -> CrossModalRetriever:
        """Embed images for searches. Unreadable images are skipped.

        Their features are cached, so that another aligner with the same encoders does not encode
        the images again.
        """
        collection, aligner = session.images or self.images, self.get_aligner(session)
        caching_aligner = replace_caches(aligner, collection.cache, on_error="nan")
        encoder, images = get_encoders(caching_aligner)[0], collection.images
        features = encode(encoder, images, progress, "Encoding image")
        # Readable images only, so that the others are not reported again.
        rows = np.flatnonzero(~np.isnan(features[:, 0]))
        if not len(rows):
            raise ValueError(f"None of the {len(images)} images could be read. Check the files.")
        paths, names = ([column[row] for row in rows] for column in (images, collection.names))
        if collection is self.images and len(rows) < len(images):
            title = f"{collection.title}, without {len(images) - len(rows)} that cannot be read"
            self.images = replace(collection, images=paths, names=names, title=title)
        items = list(zip(paths, names, strict=True))
        retriever = CrossModalRetriever(caching_aligner).fit(paths, items)
        # Query images of visitors must not be stored in the cache.
        retriever.aligner_ = aligner
        return retriever

    def _get_head_pairs(self, progress: Progress) -> HeadPairs | None:
        """Return the pairs of the image encoder's classification head, if it has one."""
        encoders = get_encoders(self.model.aligner)
        return self._head_pairs.get_or_create(
            "pairs", lambda: make_head_pairs(*encoders, progress)
        )
