"""Numerical cases of texts as captions, queries and labels."""

from __future__ import annotations

from functools import cache, partial
from typing import Any, NamedTuple

import numpy as np
from sklearn.base import BaseEstimator, TransformerMixin, clone

from sklearn_ape import (
    APEAligner,
    ASIFAligner,
    CCAAligner,
    CrossModalRetriever,
    KernelAligner,
    MultiLabelZeroShotClassifier,
    ZeroShotClassifier,
)
from sklearn_ape.curation import pair_quality, select_relevant
from sklearn_ape.encoders import TransformersTextEncoder
from tests.robustness.numerics.cases import Cell
from tests.robustness.numerics.estimators import IMAGE, Lookup

_PLACE = 5
_BASE = ["a cat", "a cat", "a dog", "a dog", "a tree", "", "a red bus", "a boat", "rain", "snow"]
_BASE += ["a house", "an apple", "two birds", "the sea", "a chair", "a clock", "a hat", "a fish"]


class Text(NamedTuple):
    """Text, and optionally a text `like` it that must have the same feature."""

    name: str
    text: Any
    like: str | None = None
    words: tuple[str, ...] = ()
    warning: tuple[str, ...] = ()


_FOREIGN = ("not in the Latin alphabet",)
TEXTS = [
    Text("10,000 words", "a big red bus on a road " * 1430, "a big red bus on a road " * 60),
    Text("one word of 10,000 letters", "a" * 10_000),
    Text("right-to-left script", "كلب صغير يركض", warning=_FOREIGN),
    Text(
        "right-to-left script with direction marks", "\u202bشجرة\u202c", "شجرة", warning=_FOREIGN
    ),
    Text("emoji", "🍎", warning=_FOREIGN),
    Text("several emoji joined into one", "👩\u200d👩\u200d👧\u200d👦", warning=_FOREIGN),
    Text("decomposed accents (NFD)", "cafe\u0301 au lait", "caf\u00e9 au lait"),
    Text("full-width letters", "\uff43\uff41\uff54"),
    Text("control characters between letters", "a\x01 red\x7f boat", "a red boat"),
    Text("a NUL character between letters", "a red\0 boat", "a red boat"),
    Text("zero-width characters", "a\u200b red\u200b boat", "a red boat"),
    Text("tabs and line breaks", "a\tred\n\nboat\r\n", "a red boat"),
    Text("capital letters", "A RED BOAT", "a red boat"),
    Text("punctuation only", "?!"),
    Text("a number as text", "3.14"),
    Text("braces and percent signs", "{} {0} %s {{x}}"),
    Text("special tokens of the tokenizer", "[CLS] a boat [SEP] [PAD]"),
    *(
        Text(name, text, "a boat", (word,))
        for name, text, word in [
            ("a lone surrogate", "a boat \ud800", "Unicode"),
            ("an empty text", "", "empty"),
            ("whitespace only", " \t\n\u3000", "empty"),
            ("control characters only", "\0\x01\u200b", "empty"),
            ("None", None, "None"),
            ("NaN", float("nan"), "nan"),
            ("an integer", 7, "7"),
            ("bytes", b"a boat", "b"),
        ]
    ),
]
# Entry points whose messages contain other words.
_LABELS = "labels of ZeroShotClassifier", "labels of MultiLabelZeroShotClassifier"
_OTHER_WORDS = {
    **{("an integer", to): ("mixes texts and numbers",) for to in _LABELS},
    **{("bytes", to): ("bytes", "Decode") for to in _LABELS},
    **{
        (name, "CrossModalRetriever.search"): ("row 0", word)
        for name, word in [
            ("None", "missing"), ("NaN", "missing"), ("an integer", "int"), ("bytes", "bytes"),
        ]
    },
}  # fmt: skip
# pair_quality compares captions without encoding them.
_NOT_ENCODED = {
    ("a lone surrogate", "captions of pair_quality"),
    ("control characters only", "captions of pair_quality"),
}


@cache
def encoder() -> TransformersTextEncoder:
    return TransformersTextEncoder()


@cache
def _fit_aligner() -> CCAAligner:
    """Return an aligner of images whose features equal those of their captions."""
    captions = list(dict.fromkeys(text for text in _BASE if text))
    image = encoder().transform(captions)
    return CCAAligner(text_encoder=encoder(), ridge=1e-3).fit(image, captions)


def _check_encoder(text: Any, like: str | None) -> None:
    rows = encoder().transform(["a cat", text, "a dog"])
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-5)
    alone = clone(encoder()).set_params(cache=None).transform([text if like is None else like])
    np.testing.assert_allclose(rows[1:2], alone, atol=1e-5)


def _check_fit(aligner: Any, text: Any, like: str | None) -> None:
    captions: list[Any] = list(_BASE)
    captions[_PLACE] = text
    image = IMAGE[: len(captions)]
    fitted = clone(aligner).set_params(text_encoder=encoder()).fit(image, captions)
    other = text if like is None else like
    both = fitted.similarity(image, [text, other])
    assert np.isfinite(both).all()
    np.testing.assert_allclose(both[:, 0], both[:, 1], atol=1e-3)
    assert fitted.similarity(image[_PLACE : _PLACE + 1], [text]) > 0.3


def _check_search(text: Any, like: str | None) -> None:
    image = encoder().transform(["a cat", "a dog", text if like is None else like, "a house"])
    results = CrossModalRetriever(_fit_aligner()).fit(image).search([text], k=1, modality="text")
    assert results.indices[0, 0] == 2


def _check_labels(text: Any, like: str | None, cls: Any = ZeroShotClassifier) -> None:
    image = encoder().transform([text if like is None else like, "a dog", "snow"])
    labels = [text, "a dog", "snow"]
    classifier = cls(labels, aligner=_fit_aligner(), templates="none")
    if cls is ZeroShotClassifier:
        assert classifier.predict(image).tolist() == labels
        return
    scores = classifier.decision_function(image)
    assert scores.argmax(axis=0).tolist() == [0, 1, 2]  # the best image of each label


def _check_selection(text: Any, like: str | None) -> None:
    captions: list[Any] = list(_BASE)
    captions[_PLACE] = text
    label = text if like is None else like
    selection = select_relevant(
        captions, [label], text_encoder=encoder(), templates="none", n_pairs=1, random_state=0
    )
    assert selection.indices.tolist() == [_PLACE]
    assert selection.similarity > 0.99


def _check_quality(text: Any, like: str | None) -> None:
    captions: list[Any] = list(_BASE)
    captions[_PLACE] = text
    image = IMAGE[: len(captions)]
    assert np.isfinite(pair_quality(image, image, captions, random_state=0).score).all()


_HEADS = {"width": 16, "max_epochs": 2, "random_state": 0}
_ENTRY_POINTS = {
    "TransformersTextEncoder": (_check_encoder, ("row 1",)),
    "CCAAligner.fit": (partial(_check_fit, CCAAligner(ridge=1e-3)), (f"row {_PLACE}",)),
    "ASIFAligner.fit": (partial(_check_fit, ASIFAligner(k=5)), (f"row {_PLACE}",)),
    "KernelAligner.fit": (partial(_check_fit, KernelAligner()), (f"row {_PLACE}",)),
    "APEAligner.fit": (partial(_check_fit, APEAligner(**_HEADS)), (f"row {_PLACE}",)),
    "CrossModalRetriever.search": (_check_search, ()),
    "labels of ZeroShotClassifier": (_check_labels, ()),
    "labels of MultiLabelZeroShotClassifier": (
        partial(_check_labels, cls=MultiLabelZeroShotClassifier),
        (),
    ),
    "captions of select_relevant": (_check_selection, (f"row {_PLACE}",)),
    "captions of pair_quality": (_check_quality, (f"row {_PLACE}",)),
}


class RandomTextEncoder(TransformerMixin, BaseEstimator):
    """Text encoder that returns random features with the text as seed."""

    def fit(self, X: Any, y: Any = None) -> RandomTextEncoder:
        return self

    def transform(self, X: Any) -> np.ndarray:
        seeds = (int.from_bytes(text.encode()) % 2**63 for text in X)
        return np.array([np.random.default_rng(seed).standard_normal(24) for seed in seeds])

    def __sklearn_is_fitted__(self) -> bool:
        return True


@cache
def _fit_random_aligner() -> KernelAligner:
    captions = [f"caption {row}" for row in range(60)]
    image = RandomTextEncoder().transform(captions)
    return KernelAligner(text_encoder=RandomTextEncoder()).fit(image, captions)


def _check_own(labels: Any, test_names: list[str] | None = None) -> None:
    """Check that an image with the feature of a label's text is predicted as this label."""
    names = list(labels.values()) if isinstance(labels, dict) else labels
    image = encoder().transform(test_names or names)
    classifier = ZeroShotClassifier(labels, aligner=_fit_aligner(), templates="none")
    assert classifier.predict(image).tolist() == list(labels)
    np.testing.assert_allclose(classifier.predict_proba(image).sum(axis=1), 1, atol=1e-5)


def _check_many() -> None:
    labels = [f"label {row}" for row in range(5000)]
    classifier = ZeroShotClassifier(labels, aligner=_fit_random_aligner(), templates="none")
    image = RandomTextEncoder().transform([f"caption {row}" for row in range(4)])
    proba = classifier.predict_proba(image)
    assert proba.shape == (4, 5000)
    np.testing.assert_allclose(proba.sum(axis=1), 1, atol=1e-4)
    assert (proba.argmax(axis=1) == classifier.decision_function(image).argmax(axis=1)).all()


def _prompt(templates: Any) -> None:
    classifier = ZeroShotClassifier(["a dog", "snow"], aligner=_fit_aligner(), templates=templates)
    image = encoder().transform(["a dog", "snow"])
    assert classifier.predict(image).tolist() == ["a dog", "snow"]


def _label_cells() -> list[Cell]:
    def cell(
        given: str, run: Any, expected: str = "right", words: Any = (), means: str = ""
    ) -> Cell:
        return Cell("labels", given, "ZeroShotClassifier", expected, words, means, run)

    own = "an image with the feature of a label's text is predicted as this label"
    twins = ("the same embedding", "cannot distinguish")
    return [
        cell(
            "labels that are prefixes of each other",
            partial(_check_own, ["cat", "cat food", "cat food bowl", "caterpillar"]),
            means=own,
        ),
        cell("one label", partial(_check_own, ["cat"]), "warning", ("only one class, cat",),
             "its probability is 1"),
        cell("5,000 labels", _check_many, means="probabilities add up to 1"),
        cell("two labels that differ in case", lambda: _tie(["cat", "Cat"]), "warning", twins,
             "both have the same probability"),
        cell("two labels that differ in a trailing space", lambda: _tie(["cat", "cat "]),
             "warning", twins, "both have the same probability"),
        cell("a repeated label", partial(_check_own, ["cat", "cat"]), "error", ("repeat", "cat")),
        cell("integer labels with names", partial(_check_own, {0: "cat", 1: "a bus", 7: "snow"}),
             means=own),
        cell("integer labels without names", lambda: _predict([1, 2]), "warning",
             ("holds numbers",), "the number is embedded as text"),
        cell("a mapping with an empty name", partial(_check_own, {"cat": ""}, ["cat"]),
             "error", ("cat", "must be texts")),
        cell("an empty list of labels", partial(_check_own, [], ["cat"]), "error", ("labels",)),
        cell("a single string", lambda: _predict("cat"), "error", ("sequence of names", "cat")),
        cell("a label with a trailing NUL, which NumPy drops", lambda: _predict(["cat\0", "dog"]),
             "error", ("cat",)),
        cell("a template with braces around the placeholder", partial(_prompt, "{{}}"),
             means="braces are kept"),
        cell("a template with braces in other places", partial(_prompt, "a {} of {{kind}} %s"),
             means="braces are kept"),
        cell("a template with two placeholders", partial(_prompt, "{} and {}"), "error",
             ("exactly one place", "{} and {}")),
        cell("a template with a named placeholder", partial(_prompt, ["a {name}"]), "error",
             ("exactly one place", "{name}")),
        cell("a template with an unclosed brace", partial(_prompt, "a {"), "error",
             ("exactly one place", "a {")),
        cell("an empty template", partial(_prompt, [""]), "error", ("exactly one place",)),
        cell("an empty list of templates", partial(_prompt, []), "error",
             ("templates is empty",)),
    ]  # fmt: skip


def _tie(labels: list[str]) -> None:
    classifier = ZeroShotClassifier(labels, aligner=_fit_aligner(), templates="none")
    proba = classifier.predict_proba(encoder().transform(["a cat", "snow"]))
    np.testing.assert_allclose(proba[:, 0], proba[:, 1], atol=1e-5)


def _predict(labels: Any) -> None:
    classifier = ZeroShotClassifier(labels, aligner=_fit_aligner(), templates="none")
    named = classifier.predict(encoder().transform([str(label) for label in labels]))
    assert named.tolist() == list(labels)


def make_text_cells() -> list[Cell]:
    """Return the cells of texts."""
    means = {
        True: "same result as for the normalized or truncated text",
        False: "finite and independent of the other texts",
    }
    cells = []
    for text in TEXTS:
        for name, (run, where) in _ENTRY_POINTS.items():
            if (text.name, name) in _NOT_ENCODED:
                continue
            words = _OTHER_WORDS.get((text.name, name), text.words)
            words = (*words, *where) if words else ()
            what = "" if words else means[text.like is not None]
            expected = "error" if words else "right"
            if text.warning and name != "captions of pair_quality":  # which encodes no captions
                expected, words = "warning", text.warning
            cells.append(
                Cell("texts", text.name, name, expected, words, what,
                     partial(run, text.text, text.like))
            )  # fmt: skip
    return cells + _label_cells()


__all__ = ["Lookup", "RandomTextEncoder", "make_text_cells"]
