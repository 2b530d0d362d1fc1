"""The pairs to train on and to test with, as features of the same two encoders for all methods."""

from __future__ import annotations

import re
from collections.abc import Sequence
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

MOST_OF_A_CAPTION = 5
HELD_OUT_EMOJI = 0.2
HELD_OUT_CLIP_ART = 0.25
CLIP_ART_SAMPLE = 1000
# Distinct colours per opaque pixel. 95 % of the stamps in folders called "cartoon" have fewer.
COLOURS_OF_A_PHOTOGRAPH = 0.3
_GENDER = re.compile(r"\b(man|woman|person|men|women|people)\b")
_QUICK = {"clip art": 400, "stamps": 120, "emoji": 300}


class Train(NamedTuple):
    """Pairs: features of images and captions, the captions, and titles ("" for none)."""

    image: np.ndarray
    text: np.ndarray
    captions: list[str]
    titles: list[str]
    title_features: np.ndarray


class Trial(NamedTuple):
    """Images, distinct captions, and which belong together."""

    name: str
    image: np.ndarray
    text: np.ndarray
    captions: list[str]
    pairs: np.ndarray


class Head(NamedTuple):
    """The image network's own classes: for ConSE, and as pairs with features of texts."""

    weights: np.ndarray
    bias: np.ndarray
    class_texts: np.ndarray
    names: HeadPairs
    everything: HeadPairs


class World:
    """The collections and their features, each encoded when it is first asked for.

    Parameters
    ----------
    cache : path-like
        Folder of the encoders' feature cache.
    quick : bool, default=False
        Whether to take a few hundred images of each collection, to try the script.
    """

    def __init__(self, cache: Any, quick: bool = False) -> None:
        self.quick = quick
        self.image_encoder = TimmImageEncoder(
            "efficientnet_lite0", crop="pad", cache=cache, verbose=1
        )
        self.text_encoder = TransformersTextEncoder("all-MiniLM-L6-v2", cache=cache)

    # Collections

    @cached_property
    def clip_art(self) -> Any:
        """Open Clip Art with captions as its authors gave them, and features of all."""
        data = datasets.load_openclipart(replace_collection_titles=False)
        # The first part of the caption is the cleaned title, or the words of the file name.
        titles = [caption.partition(", ")[0] for caption in data.captions]
        titles = [t if t != c else "" for t, c in zip(titles, data.captions, strict=True)]
        data = self._taken(data, "clip art", titles=titles)
        data.title_text = self.text_encoder.transform([t or "-" for t in data.titles])
        return data

    @cached_property
    def stamps(self) -> Any:
        """The Tux Paint stamps; `photographs` says which are no drawings."""
        data = self._taken(datasets.load_tuxpaint_stamps(), "stamps")
        data.photographs = np.array(
            [
                "cartoon" not in folder and _colours(path) > COLOURS_OF_A_PHOTOGRAPH
                for path, folder in zip(data.images, data.subjects, strict=True)
            ]
        )
        return data

    @cached_property
    def emoji(self) -> Any:
        """OpenMoji; `concepts` are names without the words for a person's gender."""
        data = self._taken(datasets.load_openmoji(), "emoji")
        data.concepts = [" ".join(_GENDER.sub(" ", name).split()) for name in data.captions]
        return data

    @cached_property
    def head(self) -> Head:
        """The classification head of the image encoder."""
        everything = classifier_head_pairs(self.image_encoder)
        # What the logits of an image have beyond its features times the weights is the bias.
        image = [np.full((64, 64, 3), 127, dtype=np.uint8)]
        logits = TimmImageEncoder("efficientnet_lite0", crop="pad", output="logits")
        of_features = self.image_encoder.transform(image) @ everything.weights.T
        names = [texts[:1] for texts in everything.texts]
        pairs = {
            kind: HeadPairs(
                everything.weights,
                self.text_encoder.transform([text for texts in some for text in texts]),
                np.repeat(np.arange(len(some)), [len(texts) for texts in some]),
            )
            for kind, some in (("names", names), ("everything", everything.texts))
        }
        return Head(
            everything.weights,
            (logits.transform(image) - of_features)[0],
            np.asarray(pairs["names"].texts),
            pairs["names"],
            pairs["everything"],
        )

    def _taken(self, data: Any, name: str, **columns: Any) -> Any:
        data.update(columns)
        if self.quick:
            n = len(data.images)
            rows = np.random.default_rng(0).permutation(n)[: _QUICK[name]]
            for key, column in data.items():
                if not isinstance(column, str) and len(column) == n:
                    some = [column[row] for row in rows]
                    data[key] = np.array(some) if isinstance(column, np.ndarray) else some
        data.image = self.image_encoder.transform(data.images)
        data.text = self.text_encoder.transform(data.captions)
        return data

    # Rows to train on

    def clip_art_rows(self, seed: int) -> np.ndarray:
        """Draw at most five images a caption, in random order."""
        rows = np.random.default_rng(seed).permutation(len(self.clip_art.captions))
        seen: dict[str, int] = {}
        kept = []
        for row in rows.tolist():
            caption = self.clip_art.captions[row]
            seen[caption] = seen.get(caption, 0) + 1
            if seen[caption] <= MOST_OF_A_CAPTION:
                kept.append(row)
        return np.array(kept)

    def emoji_rows(self, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """Split OpenMoji so that no concept is on both sides."""
        split = GroupShuffleSplit(1, test_size=HELD_OUT_EMOJI, random_state=seed)
        return next(split.split(self.emoji.captions, groups=self.emoji.concepts))

    def folder_rows(self, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """Hold out top folders that hold about a quarter of the clip art pairs.

        What the training part has as well, by file or by caption, is not tested with.
        """
        rows, data = self.clip_art_rows(seed), self.clip_art
        folders, counts = np.unique(data.categories[rows], return_counts=True)
        room, chosen = HELD_OUT_CLIP_ART * len(rows), []
        for number in np.random.default_rng(seed).permutation(len(folders)):
            if counts[number] <= room:
                chosen.append(folders[number])
                room -= counts[number]
        held_out = np.isin(data.categories[rows], chosen)
        train, test = rows[~held_out], rows[held_out]
        known = {data.captions[row] for row in train}
        new = ~np.isin(data.groups[test], data.groups[train])
        new &= [data.captions[row] not in known for row in test]
        return train, test[new]

    def curated_rows(self, n_pairs: int, seed: int) -> np.ndarray:
        """Choose clip art pairs for the names of the stamps, by the package's own curation."""
        return select_relevant(
            self.clip_art.captions,
            list(dict.fromkeys(self.stamps.captions)),
            text_encoder=self.text_encoder,
            n_pairs=n_pairs,
            templates="none",  # they are sentences
            groups=self._near_duplicates,
            random_state=seed,
        ).indices

    @cached_property
    def _near_duplicates(self) -> np.ndarray:
        return find_near_duplicates(self.clip_art.image)

    # Pairs and tests of rows

    def train(self, data: Any, rows: Any) -> Train:
        """Return the pairs of some rows of a collection."""
        titles = data.get("titles") if "title_text" in data else None
        return Train(
            data.image[rows],
            data.text[rows],
            [data.captions[row] for row in rows],
            [titles[row] for row in rows] if titles else [""] * len(rows),
            data.title_text[rows] if titles else data.text[rows],
        )

    def test(self, name: str, data: Any, rows: Sequence[int] | np.ndarray | None = None) -> Trial:
        """Return the images of some rows of a collection, and their distinct captions."""
        rows = np.arange(len(data.captions)) if rows is None else np.asarray(rows)
        captions = [data.captions[row] for row in rows]
        number = {caption: i for i, caption in enumerate(dict.fromkeys(captions))}
        first = {caption: row for row, caption in reversed(list(zip(rows, captions, strict=True)))}
        pairs = np.column_stack([np.arange(len(rows)), [number[c] for c in captions]])
        text = data.text[[first[caption] for caption in number]]
        return Trial(name, data.image[rows], text, list(number), pairs)

    def clip_art_sample(self, seed: int) -> Trial:
        """Draw distinct clip art captions, with an image each, to test with."""
        first: dict[str, int] = {}
        for row in self.clip_art_rows(seed).tolist():
            first.setdefault(self.clip_art.captions[row], row)
        rows = list(first.values())[:CLIP_ART_SAMPLE]
        return self.test("clip art", self.clip_art, rows)


def _colours(path: str) -> float:
    """Distinct colours per opaque pixel: drawings have few, photographs many."""
    with Image.open(path) as image:
        pixels = np.asarray(image.convert("RGBA")).astype(np.int32)
    opaque = pixels[pixels[..., 3] == 255]
    numbers = opaque[:, 0] << 16 | opaque[:, 1] << 8 | opaque[:, 2]
    return len(np.unique(numbers)) / max(1, len(numbers))
