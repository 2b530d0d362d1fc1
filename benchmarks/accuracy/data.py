"""Training pairs and test sets: features of the same two encoders for all methods."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from PIL import Image
from sklearn.model_selection import GroupShuffleSplit

from sklearn_ape import datasets
from sklearn_ape.curation import find_near_duplicates, select_relevant
from sklearn_ape.encoders import (
    HeadPairs,
    TimmImageEncoder,
    TransformersTextEncoder,
    classifier_head_pairs,
)

MAX_PER_CAPTION = 5
HELD_OUT_EMOJI = 0.2
HELD_OUT_CLIP_ART = 0.25
CLIP_ART_SAMPLE = 1000
# Distinct colours per opaque pixel. 95 % of the stamps in folders called "cartoon" have fewer.
MIN_COLOURS_OF_PHOTOGRAPH = 0.3
_GENDER = re.compile(r"\b(man|woman|person|men|women|people)\b")
_QUICK = {"clip art": 400, "stamps": 120, "emoji": 300}


class TrainingPairs(NamedTuple):
    """Features of images and captions, the captions, and titles ("" where there is none)."""

    image: np.ndarray
    text: np.ndarray
    captions: list[str]
    titles: list[str]
    title_features: np.ndarray


class EvaluationSet(NamedTuple):
    """Features of images and of distinct captions, and the matching (image, caption) pairs."""

    name: str
    image: np.ndarray
    text: np.ndarray
    captions: list[str]
    pairs: np.ndarray


class ClassifierHead(NamedTuple):
    """Classification head of the image encoder: its weights for ConSE, and its head pairs."""

    weights: np.ndarray
    bias: np.ndarray
    class_texts: np.ndarray
    names: HeadPairs
    everything: HeadPairs


class Collections:
    """The image collections and their features; each is encoded on first access.

    Parameters
    ----------
    cache : path-like
        Folder of the encoders' feature cache.
    quick : bool, default=False
        Whether to take only a few hundred images of each collection.
    """

    def __init__(self, cache: Any, quick: bool = False) -> None:
        self.quick = quick
        self.image_encoder = TimmImageEncoder(
            "efficientnet_lite0", crop="pad", cache=cache, verbose=1
        )
        self.text_encoder = TransformersTextEncoder("all-MiniLM-L6-v2", cache=cache)

    @cached_property
    def clip_art(self) -> Any:
        """Open Clip Art with the original captions of its authors."""
        data = datasets.load_openclipart(replace_collection_titles=False)
        # The first part of a caption is the cleaned title, or the words of the file name.
        titles = [caption.partition(", ")[0] for caption in data.captions]
        titles = [t if t != c else "" for t, c in zip(titles, data.captions, strict=True)]
        data = self._encode(data, "clip art", titles=titles)
        data.title_text = self.text_encoder.transform([t or "-" for t in data.titles])
        return data

    @cached_property
    def stamps(self) -> Any:
        """The Tux Paint stamps; `photographs` is a mask of those that are not drawings."""
        data = self._encode(datasets.load_tuxpaint_stamps(), "stamps")
        data.photographs = np.array(
            [
                "cartoon" not in folder and _colour_ratio(path) > MIN_COLOURS_OF_PHOTOGRAPH
                for path, folder in zip(data.images, data.subjects, strict=True)
            ]
        )
        return data

    @cached_property
    def emoji(self) -> Any:
        """OpenMoji; `concepts` are the names without words for a person's gender."""
        data = self._encode(datasets.load_openmoji(), "emoji")
        data.concepts = [" ".join(_GENDER.sub(" ", name).split()) for name in data.captions]
        return data

    @cached_property
    def head(self) -> ClassifierHead:
        """The classification head of the image encoder."""
        everything = classifier_head_pairs(self.image_encoder)
        # The bias is the difference between the logits and features times weights.
        image = [np.full((64, 64, 3), 127, dtype=np.uint8)]
        logits = TimmImageEncoder("efficientnet_lite0", crop="pad", output="logits")
        products = self.image_encoder.transform(image) @ everything.weights.T
        names = [texts[:1] for texts in everything.texts]
        pairs = {
            kind: HeadPairs(
                everything.weights,
                self.text_encoder.transform([text for texts in texts_by_class for text in texts]),
                np.repeat(
                    np.arange(len(texts_by_class)), [len(texts) for texts in texts_by_class]
                ),
            )
            for kind, texts_by_class in (("names", names), ("everything", everything.texts))
        }
        return ClassifierHead(
            everything.weights,
            (logits.transform(image) - products)[0],
            np.asarray(pairs["names"].texts),
            pairs["names"],
            pairs["everything"],
        )

    def _encode(self, data: Any, name: str, **columns: Any) -> Any:
        data.update(columns)
        if self.quick:
            n = len(data.images)
            rows = np.random.default_rng(0).permutation(n)[: _QUICK[name]]
            for key, column in data.items():
                if not isinstance(column, str) and len(column) == n:
                    subset = [column[row] for row in rows]
                    data[key] = np.array(subset) if isinstance(column, np.ndarray) else subset
        data.image = self.image_encoder.transform(data.images)
        data.text = self.text_encoder.transform(data.captions)
        return data

    def draw_clip_art_rows(self, seed: int) -> np.ndarray:
        """Draw at most five images per caption, in random order."""
        return draw_rows(self.clip_art.captions, seed)

    def split_emoji(self, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """Split OpenMoji so that no concept is in both parts."""
        split = GroupShuffleSplit(1, test_size=HELD_OUT_EMOJI, random_state=seed)
        return next(split.split(self.emoji.captions, groups=self.emoji.concepts))

    def split_folders(self, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """Hold out top folders with about a quarter of the clip art pairs.

        Test rows whose file or caption also occurs in the training part are dropped.
        """
        rows, data = self.draw_clip_art_rows(seed), self.clip_art
        folders, counts = np.unique(data.categories[rows], return_counts=True)
        n_left, held_out_folders = HELD_OUT_CLIP_ART * len(rows), []
        for number in np.random.default_rng(seed).permutation(len(folders)):
            if counts[number] <= n_left:
                held_out_folders.append(folders[number])
                n_left -= counts[number]
        held_out = np.isin(data.categories[rows], held_out_folders)
        train, test = rows[~held_out], rows[held_out]
        train_captions = {data.captions[row] for row in train}
        is_new = ~np.isin(data.groups[test], data.groups[train])
        is_new &= [data.captions[row] not in train_captions for row in test]
        return train, test[is_new]

    def select_curated_rows(self, n_pairs: int, seed: int) -> np.ndarray:
        """Select clip art pairs for the names of the stamps with `select_relevant`."""
        return select_relevant(
            self.clip_art.captions,
            list(dict.fromkeys(self.stamps.captions)),
            text_encoder=self.text_encoder,
            n_pairs=n_pairs,
            templates="none",  # the captions are sentences already
            groups=self.near_duplicate_groups,
            random_state=seed,
        ).indices

    @cached_property
    def near_duplicate_groups(self) -> np.ndarray:
        """Groups of near-duplicate images of Open Clip Art."""
        return find_near_duplicates(self.clip_art.image)

    def make_training_pairs(self, data: Any, rows: Any) -> TrainingPairs:
        """Return the pairs of the given rows of a collection."""
        titles = data.get("titles") if "title_text" in data else None
        return TrainingPairs(
            data.image[rows],
            data.text[rows],
            [data.captions[row] for row in rows],
            [titles[row] for row in rows] if titles else [""] * len(rows),
            data.title_text[rows] if titles else data.text[rows],
        )

    def make_evaluation_set(
        self, name: str, data: Any, rows: Sequence[int] | np.ndarray | None = None
    ) -> EvaluationSet:
        """Return the images of the given rows and their distinct captions."""
        rows = np.arange(len(data.captions)) if rows is None else np.asarray(rows)
        captions = [data.captions[row] for row in rows]
        number = {caption: i for i, caption in enumerate(dict.fromkeys(captions))}
        first = {caption: row for row, caption in reversed(list(zip(rows, captions, strict=True)))}
        pairs = np.column_stack([np.arange(len(rows)), [number[c] for c in captions]])
        text = data.text[[first[caption] for caption in number]]
        return EvaluationSet(name, data.image[rows], text, list(number), pairs)

    def draw_clip_art_sample(self, seed: int) -> EvaluationSet:
        """Draw distinct clip art captions, with one image each, as a test set."""
        first: dict[str, int] = {}
        for row in self.draw_clip_art_rows(seed).tolist():
            first.setdefault(self.clip_art.captions[row], row)
        rows = list(first.values())[:CLIP_ART_SAMPLE]
        return self.make_evaluation_set("clip art", self.clip_art, rows)


def draw_rows(captions: Sequence[str], seed: int) -> np.ndarray:
    """Return the rows of at most five images per caption, in random order."""
    order = np.random.default_rng(seed).permutation(len(captions))
    return order[choose_rows([captions[row] for row in order], MAX_PER_CAPTION)]


def choose_rows(captions: Iterable[str], n_most: int) -> list[int]:
    """Return the rows of the first few images of every caption."""
    counts: Counter[str] = Counter()
    rows = []
    for row, caption in enumerate(captions):
        counts[caption] += 1
        if counts[caption] <= n_most:
            rows.append(row)
    return rows


def _colour_ratio(path: str) -> float:
    """Return the distinct colours per opaque pixel: few in drawings, many in photographs."""
    with Image.open(path) as image:
        pixels = np.asarray(image.convert("RGBA")).astype(np.int32)
    opaque = pixels[pixels[..., 3] == 255]
    numbers = opaque[:, 0] << 16 | opaque[:, 1] << 8 | opaque[:, 2]
    return len(np.unique(numbers)) / max(1, len(numbers))
