"""Broad words such as "animal" and "food" for the training images of the starter model.

    python -m benchmarks.studies.broad_words [--cache FOLDER]

Captions rarely say that a duck is a bird, or that a bird is an animal. `find_broad_words` takes
such words from the subcategories of emoji and from the keywords and folders of Open Clip Art. As a
program, this module prints how often the starter model classifies Tux Paint stamps by the word of
their folder: accuracy in %, mean over words with at least eight stamps, on all stamps and on the
half that no choice was made with.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from sklearn.utils import Bunch

from sklearn_ape import ZeroShotClassifier
from sklearn_ape.aligners.starter import STARTER_FOLDER, make_starter_encoders, unpack_starter
from sklearn_ape.datasets import get_data_home, load_tuxpaint_stamps

from .._results import make_parser

# Broad words of the subcategories of emoji.
WORDS_OF_SUBCATEGORY = {
    "alphanum": "letter",
    "animal-amphibian": "animal, amphibian",
    "animal-bird": "animal, bird",
    "animal-bug": "animal, insect",
    "animal-mammal": "animal, mammal",
    "animal-marine": "animal, sea animal",
    "animal-reptile": "animal, reptile",
    "arrow": "arrow",
    "arts & crafts": "art",
    "award-medal": "award, medal",
    "body-parts": "body part",
    "book-paper": "book, paper",
    "cat-face": "animal, cat",
    "clothing": "clothing",
    "computer": "computer",
    "country-flag": "flag",
    "dishware": "dish, tableware",
    "drink": "drink",
    "event": "celebration, event",
    "face-affection": "face, smiley",
    "face-concerned": "face, smiley",
    "face-costume": "face",
    "face-glasses": "face, smiley",
    "face-hand": "face, smiley",
    "face-hat": "face, smiley",
    "face-negative": "face, smiley",
    "face-neutral-skeptical": "face, smiley",
    "face-sleepy": "face, smiley",
    "face-smiling": "face, smiley",
    "face-tongue": "face, smiley",
    "face-unwell": "face, smiley",
    "family": "family, people",
    "flag": "flag",
    "food-asian": "food, meal",
    "food-fruit": "food, fruit",
    "food-marine": "food, seafood",
    "food-prepared": "food, meal",
    "food-sweet": "dessert, food, sweet",
    "food-vegetable": "food, vegetable",
    "game": "game",
    "geometric": "shape",
    "hand-fingers-closed": "gesture, hand",
    "hand-fingers-open": "gesture, hand",
    "hand-fingers-partial": "gesture, hand",
    "hand-prop": "hand",
    "hand-single-finger": "gesture, hand",
    "hands": "gesture, hand",
    "heart": "heart",
    "household": "household",
    "keycap": "number",
    "light & video": "light",
    "lock": "lock",
    "mail": "mail",
    "math": "mathematical symbol",
    "medical": "medicine",
    "money": "money",
    "monkey-face": "animal, monkey",
    "music": "music",
    "musical-instrument": "music, musical instrument",
    "office": "office",
    "person": "people, person",
    "person-activity": "activity, people, person",
    "person-fantasy": "fantasy, people, person",
    "person-gesture": "gesture, people, person",
    "person-resting": "people, person",
    "person-role": "people, person, profession",
    "person-sport": "activity, people, person",
    "phone": "telephone",
    "place-building": "building, place",
    "place-geographic": "landscape, place",
    "place-map": "map",
    "place-other": "place",
    "place-religious": "building, place, religious building",
    "plant-flower": "flower, plant",
    "plant-other": "plant",
    "religion": "religious symbol",
    "science": "science",
    "sky & weather": "sky, weather",
    "sport": "sport",
    "subdivision-flag": "flag",
    "time": "clock, time",
    "tool": "tool",
    "transport-air": "aircraft, transport, vehicle",
    "transport-ground": "land vehicle, transport, vehicle",
    "transport-sign": "sign",
    "transport-water": "transport, vehicle, watercraft",
    "warning": "sign, warning sign",
    "writing": "writing",
    "zodiac": "zodiac sign",
}
# Keywords of Open Clip Art that mean a broad word.
SYNONYMS = {
    "beverage": "drink",
    "bodypart": "body part",
    "bug": "insect",
    "clothes": "clothing",
    "transportation": "transport",
}

# Correct words for folders of Tux Paint stamps; the first matching folder counts.
TOP_FOLDERS = {
    "animals": "animal",
    "food": "food",
    "plants": "plant",
    "vehicles": "vehicle",
    "military/vehicles": "vehicle",
    "clothes": "clothing",
    "people/body_parts": "body part",
    "people/cartoon": "person",
    "hobbies/music": "musical instrument",
    "sports": "sport",
    "town/houses": "building",
    "town/monuments": "building",
    "household/tools": "tool",
    "household/dishes": "dishes",
    "household/electronics": "electronic device",
    "symbols/alphabets": "letter",
    "symbols/money": "money",
    "town/flags": "flag",
    "town/roadsigns": "sign",
}
FOLDERS = {
    "animals/birds": "bird",
    "animals/fish": "fish",
    "animals/insects": "insect",
    "animals/mammals/cats": "cat",
    "animals/mammals/dogs": "dog",
    "animals/mammals/equines": "horse",
    "plants/flowers": "flower",
    "plants/trees": "tree",
    "food/fruit": "fruit",
    "food/vegetables": "vegetable",
    "vehicles/auto": "car",
    "vehicles/ship": "boat",
    "vehicles/flight/planes": "airplane",
    "vehicles/locomotive": "train",
    "vehicles/cycle": "bicycle",
    "clothes/hats": "hat",
    "town/houses": "house",
    "people/cartoon": "person",
    "household/tools": "tool",
    "hobbies/music": "musical instrument",
    "town/flags": "flag",
    "town/roadsigns": "sign",
    "symbols/alphabets": "letter",
    "household/dishes": "dishes",
    "sports": "sport",
}
MIN_IMAGES = 8  # smaller classes are left out of the mean
PROMPTS = ("default templates", "without article", "with article")
NO_ARTICLE = frozenset(("clothing", "dishes", "food", "money"))


def add_article(word: str) -> str:
    """Return a word with its indefinite article."""
    return f"{'an' if word[0] in 'aeiou' else 'a'} {word}"


def find_broad_words(emoji: Iterable[Bunch], clip_art: Bunch) -> dict[str, list[str]]:
    """Return the broad words of each image path, in alphabetical order.

    An emoji has the words of its subcategory. A drawing of Open Clip Art has its keywords and
    folders that are broad words; other keywords are names of themes, places and programs.
    """
    words_of: dict[str, set[str]] = defaultdict(set)
    for style in emoji:
        for image, subcategory in zip(style.images, style.subcategories, strict=True):
            words_of[image].update(filter(None, _split_words(subcategory)))
    broad = set().union(*words_of.values())
    for image, keywords in zip(clip_art.images, clip_art.keywords, strict=True):
        words = {_normalize_keyword(word, broad) for word in (*keywords, *_folder_of(image).parts)}
        words_of[image] |= words & broad
    return {image: sorted(words) for image, words in words_of.items()}


def make_captions(words: Iterable[str]) -> list[str]:
    """Return each word without and with an article, as captions."""
    return [text for word in words for text in (word, add_article(word))]


def _split_words(subcategory: str) -> list[str]:
    return WORDS_OF_SUBCATEGORY.get(subcategory, "").split(", ")


def _folder_of(image: str) -> Path:
    """Return the folders of a drawing within the collection."""
    return Path(image.rpartition("/png/")[2]).parent


def _normalize_keyword(keyword: str, broad: set[str]) -> str:
    """Return a keyword as words, in the singular if that is a broad word."""
    word = re.sub("[_-]+", " ", keyword).strip().lower()
    endings = (("ies", "y"), ("es", ""), ("s", ""), ("", ""))
    for stem in (word.removesuffix(end) + new for end, new in endings if word.endswith(end)):
        if SYNONYMS.get(stem, stem) in broad:
            return SYNONYMS.get(stem, stem)
    return word


def find_answer(folder: str, answers: dict[str, str]) -> str:
    """Return the correct word for stamps of a folder, "" if there is none."""
    words = (word for top, word in answers.items() if f"{folder}/".startswith(f"{top}/"))
    return next(words, "")


def find_hits(aligner, images: list[str], y: np.ndarray, prompts: str) -> np.ndarray:
    """Return for each image whether its word in y is predicted, among all words in y."""
    articles = prompts == "with article"
    names = {
        word: add_article(word) if articles and word not in NO_ARTICLE else word for word in set(y)
    }
    templates = "simple" if prompts == "default templates" else "none"
    return ZeroShotClassifier(names, aligner=aligner, templates=templates).predict(images) == y


def main() -> None:
    parser = make_parser("studies.broad_words", __doc__)
    parser.add_argument(
        "--cache", default=get_data_home() / "features", help="feature cache folder"
    )
    parser.add_argument(
        "--model",
        default=STARTER_FOLDER / "model.safetensors",
        type=Path,
        help="starter model file",
    )
    options = parser.parse_args()
    aligner = unpack_starter(options.model)
    aligner.image_encoder_, aligner.text_encoder_ = make_starter_encoders(
        cache=options.cache, engine="torch"
    )
    images = load_tuxpaint_stamps().images
    folders = [Path(image.rpartition("/stamps/")[2]).parent.as_posix() for image in images]
    is_test_half = np.random.default_rng(0).permutation(len(images)) % 2 == 1
    print("| words | stamps | " + " | ".join(PROMPTS) + " |")
    print("|---|---|---|---|---|")
    for kind, answers in (("broad", TOP_FOLDERS), ("everyday", FOLDERS)):
        correct = np.array([find_answer(folder, answers) for folder in folders])
        rows = np.flatnonzero(correct != "")
        y = correct[rows]
        words = [word for word in np.unique(y) if np.sum(y == word) >= MIN_IMAGES]
        hits = [
            find_hits(aligner, [images[row] for row in rows], y, prompts) for prompts in PROMPTS
        ]
        for part, is_counted in (
            ("all", np.full(len(y), True)),
            ("half for testing", is_test_half[rows]),
        ):
            cells = [
                np.mean([hit[is_counted & (y == word)].mean() for word in words]) for hit in hits
            ]
            print(
                f"| {kind} | {part} | " + " | ".join(f"{100 * cell:.1f}" for cell in cells) + " |"
            )


if __name__ == "__main__":
    main()
