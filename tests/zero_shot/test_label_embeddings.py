"""Labels by the thousand: each prompt once, in batches, and never again for what is known."""

import pickle
import zlib
from typing import ClassVar
from uuid import uuid4

import numpy as np
import pytest
from sklearn.base import BaseEstimator, clone
from sklearn.feature_extraction.text import HashingVectorizer

from sklearn_ape import CCAAligner, ZeroShotClassifier
from sklearn_ape.aligners._base import BaseAligner
from sklearn_ape.encoders import TransformersTextEncoder
from sklearn_ape.utils.concurrency import LRUCache
from sklearn_ape.zero_shot import _base as _label_embeddings
from sklearn_ape.zero_shot._base import embed_labels

PLAIN = ("{}",)


class CountingTexts:
    """Stands for a fitted aligner; each text has an embedding of its own."""

    fingerprint_ = "always the same"
    n_components_ = 8

    def __init__(self):
        self.calls = []

    def transform_text(self, texts):
        self.calls.append(list(texts))
        seeds = np.array([zlib.crc32(text.encode()) for text in texts])[:, None]
        return np.cos(seeds * np.arange(1, 9)).astype(np.float32)


def direct(texts, names, templates):
    """Return what the embeddings should be, one class at a time."""
    rows = []
    for some in names.values():
        prompts = {template.replace("{}", name) for name in some for template in templates}
        mean = texts.transform_text(sorted(prompts)).astype(np.float64).mean(axis=0)
        rows.append(mean / np.linalg.norm(mean))
    return np.array(rows)


def test_ten_thousand_labels_and_eighty_templates():
    """Encoded in batches; no array of all 800,000 prompts."""
    names = {f"thing {number}": [f"thing {number}"] for number in range(10_000)}
    templates = tuple(f"image {number} of a {{}}" for number in range(80))
    texts = CountingTexts()
    embeddings = embed_labels(texts, names, templates)
    assert embeddings.shape == (10_000, 8)
    sizes = [len(call) for call in texts.calls]
    assert sum(sizes) == 800_000
    assert max(sizes) <= 16_384
    some = {label: names[label] for label in list(names)[::997]}
    np.testing.assert_allclose(embeddings[::997], direct(texts, some, templates), atol=1e-6)


def test_prompts_that_coincide_are_encoded_once(monkeypatch):
    """Of one class they count once, of several classes for each of them."""
    monkeypatch.setattr(_label_embeddings, "_PROMPTS_AT_ONCE", 3)
    names = {"pet": ["cat", "dog", "cat"], "cat": ["cat"], "feline": ["cat", "lynx"], "a": ["b"]}
    templates = ("{}", "a {}", "{}")
    texts = CountingTexts()
    embeddings = embed_labels(texts, names, templates)
    encoded = [text for call in texts.calls for text in call]
    assert sorted(encoded) == ["a b", "a cat", "a dog", "a lynx", "b", "cat", "dog", "lynx"]
    assert [len(call) for call in texts.calls] == [3, 3, 2]
    np.testing.assert_allclose(embeddings, direct(texts, names, templates), atol=1e-6)


def test_real_encoder_in_batches_is_the_direct_mean(
    features, text_encoder, captioned_images, monkeypatch
):
    aligner = CCAAligner(text_encoder=text_encoder).fit(features.image, captioned_images.captions)
    names = {name: [name] for name in sorted(set(captioned_images.captions[:6]))}
    templates = ("{}", "a photo of a {}", "a drawing of {}")
    expected = direct(aligner, names, templates)
    monkeypatch.setattr(_label_embeddings, "_PROMPTS_AT_ONCE", 4)
    np.testing.assert_allclose(embed_labels(aligner, names, templates), expected, atol=1e-6)


def test_wide_embeddings_come_in_smaller_batches(monkeypatch):
    """Those of ASIF have a number an anchor."""
    monkeypatch.setattr(_label_embeddings, "_EMBEDDING_BYTES", 10 * 4 * 8)
    texts = CountingTexts()
    embed_labels(texts, {str(number): [str(number)] for number in range(40)}, PLAIN)
    assert max(len(call) for call in texts.calls) == 11


def test_many_prompts_leave_the_shared_memory_to_others(
    features, text_encoder, captioned_images, monkeypatch
):
    """800,000 of them would drive all features of images out of it, to be used once."""
    encoder = clone(text_encoder).set_params(cache="memory", max_length=20)
    aligner = CCAAligner(text_encoder=encoder).fit(features.image, captioned_images.captions)
    monkeypatch.setattr(_label_embeddings, "_PROMPTS_AT_ONCE", 2)
    # That nobody asked for in this process before.
    names = [f"a {kind} called {uuid4().hex[:8]}" for kind in ("gnu", "lynx", "okapi")]
    embed_labels(aligner, {name: [name] for name in names}, PLAIN)
    hits, misses = encoder.cache_info()
    encoder.transform(names)
    assert encoder.cache_info() == (hits, misses + 3)
    assert aligner.text_encoder_.cache == "memory"


class Bar:
    """Stands for tqdm's."""

    made: ClassVar[list] = []

    def __init__(self, *, total, disable, **_):
        self.total, self.shown, self.done = total, not disable, 0
        self.made.append(self)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def update(self, n):
        self.done += n


@pytest.fixture
def bars(monkeypatch):
    monkeypatch.setattr(_label_embeddings, "tqdm", Bar)
    monkeypatch.setattr(Bar, "made", [])
    return Bar.made


class MadeOfParameters(BaseEstimator):
    """Has its encoder made of its own parameters, as CLIPAligner has."""

    n_components_ = 384
    seen: ClassVar[list] = []

    def __init__(self, cache="memory", verbose=0):
        self.cache = cache
        self.verbose = verbose

    @property
    def text_encoder(self):
        return TransformersTextEncoder(cache=self.cache, verbose=self.verbose)

    def transform_text(self, texts):
        self.seen.append((self.cache, self.verbose))
        return self.text_encoder.transform(texts)


@pytest.mark.parametrize(("cache", "used"), [("memory", None), ("folder", "folder")])
def test_many_prompts_and_an_aligner_of_parameters(cache, used, monkeypatch, bars, tmp_path):
    """A folder is used: a run that was stopped goes on from what is in it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(_label_embeddings, "_PROMPTS_AT_ONCE", 2)
    monkeypatch.setattr(MadeOfParameters, "seen", [])
    for verbose in (1, 0):
        aligner = MadeOfParameters(cache=cache, verbose=verbose)
        embed_labels(aligner, {name: [name] for name in ("a gnu", "an emu", f"{verbose}")}, PLAIN)
    assert MadeOfParameters.seen == [(used, 0)] * 4
    assert [bar.shown for bar in bars] == [True, False]


@pytest.mark.parametrize("has", ["nothing", "a text encoder", "a cache"])
def test_another_aligner_is_taken_as_it_is_and_shows_no_bar(has, bars, monkeypatch):
    monkeypatch.setattr(_label_embeddings, "_PROMPTS_AT_ONCE", 2)
    texts = CountingTexts()
    if has == "a text encoder":
        texts.text_encoder = TransformersTextEncoder()
    elif has == "a cache":
        texts.cache = "memory"
    embed_labels(texts, {name: [name] for name in "abc"}, PLAIN)
    assert texts.calls == [["a", "b"], ["c"]]
    assert [bar.shown for bar in bars] == [False]


@pytest.mark.parametrize("verbose", [0, 1])
def test_one_bar_for_all_batches_if_the_encoder_shows_them(
    features, text_encoder, captioned_images, monkeypatch, bars, verbose
):
    aligner = CCAAligner(text_encoder=text_encoder).fit(features.image, captioned_images.captions)
    aligner.text_encoder_.set_params(verbose=verbose)
    monkeypatch.setattr(_label_embeddings, "_PROMPTS_AT_ONCE", 2)
    embed_labels(aligner, {name: [name] for name in "abc"}, PLAIN)
    assert [(bar.total, bar.shown, bar.done) for bar in bars] == [(3, bool(verbose), 3)]


class TestKept:
    @pytest.fixture
    def calls(self, monkeypatch):
        calls = []
        transform_text = BaseAligner.transform_text
        monkeypatch.setattr(
            BaseAligner,
            "transform_text",
            lambda self, y: calls.append(len(y)) or transform_text(self, y),
        )
        return calls

    def test_for_clones_refits_and_copies(self, features, text_encoder, captioned_images, calls):
        """Such as the copy that a worker process gets."""
        aligner = CCAAligner(text_encoder=text_encoder).fit(
            features.image, captioned_images.captions
        )
        classifier = ZeroShotClassifier(["ibis", "kiwi"], aligner=aligner, templates="none")
        first = classifier.predict_proba(features.image[:3])
        again = pickle.loads(pickle.dumps(classifier))
        refitted = clone(classifier).fit(features.image, captions=captioned_images.captions)
        for other in (again, refitted, clone(classifier).set_params(aligner=aligner)):
            np.testing.assert_array_equal(other.predict_proba(features.image[:3]), first)
        assert calls == [2]

    def test_not_for_another_text_encoder_under_the_same_head(
        self, features, text_encoder, captioned_images, calls
    ):
        aligner = CCAAligner(text_encoder=text_encoder).fit(
            features.image, captioned_images.captions
        )
        names = {"a kiwi that is read to its end": ["a kiwi that is read to its end"]}
        whole = embed_labels(aligner, names, PLAIN)
        aligner.text_encoder_ = clone(text_encoder).set_params(max_length=4)
        assert not np.allclose(embed_labels(aligner, names, PLAIN), whole, atol=1e-3)
        assert calls == [1, 1]

    def test_not_for_another_aligner_whose_encoder_cannot_say_what_it_is(self, concepts, calls):
        """Two encoders of one class may differ in what scikit-learn knows nothing of."""
        names = [f"thing {number}" for number in range(300)]
        encoder = HashingVectorizer(n_features=16, analyzer="char")
        pair = [CCAAligner(text_encoder=encoder).fit(concepts.image, names) for _ in range(2)]
        for aligner in [*pair, *pair]:
            embed_labels(aligner, {"thing 7": ["thing 7"]}, PLAIN)
        assert calls == [1, 1]

    def test_up_to_a_bound(self, monkeypatch):
        cache = LRUCache(max_bytes=3 * 8 * 4, keep_newest=True)
        monkeypatch.setattr(_label_embeddings, "_label_embeddings", cache)
        texts = CountingTexts()
        for name in ("ant", "bee", "ant", "cow", "doe", "ant", "bee"):
            embed_labels(texts, {name: [name]}, PLAIN)
        # The least recently used is dropped first.
        assert texts.calls == [["ant"], ["bee"], ["cow"], ["doe"], ["bee"]]
        many = {str(number): [str(number)] for number in range(9)}
        assert embed_labels(texts, many, PLAIN) is embed_labels(texts, many, PLAIN)


class Mute(BaseEstimator):
    """Knows no text of digits."""

    def fit(self, X, y=None):
        return self

    def transform(self, X):
        return np.array([[np.nan] * 3 if x.isdigit() else [len(x), 1.0, 2.0] for x in X])


def test_a_class_that_the_encoder_gives_up_is_named(concepts):
    """Else no image would get any class, and be called unreadable."""
    captions = ["a" * (1 + number % 7) for number in range(300)]
    aligner = CCAAligner(text_encoder=Mute()).fit(concepts.image, captions)
    classifier = ZeroShotClassifier(["bb", "7"], aligner=aligner, templates="none")
    with pytest.raises(ValueError, match="no numbers for the class '7'"):
        classifier.predict(concepts.image[:2])
