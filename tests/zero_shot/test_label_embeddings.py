"""Embeddings of thousands of labels: distinct prompts, blocks and the cache."""

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
from sklearn_ape.features import DiskFeatureCache
from sklearn_ape.utils.concurrency import LRUCache
from sklearn_ape.zero_shot import _label_embeddings
from sklearn_ape.zero_shot._label_embeddings import embed_labels

PLAIN = ("{}",)


@pytest.fixture(scope="module")
def X(features):
    """Return 64 of 1,280 features, with which a fit takes a tenth of the time."""
    return features.image[:, :64]


class CountingTexts:
    """Simulated fitted aligner that gives each text its own embedding."""

    fingerprint_ = "always the same"
    n_components_ = 8

    def __init__(self):
        self.calls = []

    def transform_text(self, texts):
        self.calls.append(list(texts))
        seeds = np.array([zlib.crc32(text.encode()) for text in texts])[:, None]
        return np.cos(seeds * np.arange(1, 9)).astype(np.float32)


def embed_directly(aligner, names, templates):
    """Return the expected embeddings, one class at a time."""
    rows = []
    for class_names in names.values():
        prompts = {template.replace("{}", name) for name in class_names for template in templates}
        mean = aligner.transform_text(sorted(prompts)).astype(np.float64).mean(axis=0)
        rows.append(mean / np.linalg.norm(mean))
    return np.array(rows)


@pytest.mark.exhaustive
def test_many_prompts_are_encoded_in_blocks():
    """There is no array of the embeddings of all 800,000 prompts."""
    names = {f"thing {number}": [f"thing {number}"] for number in range(10_000)}
    templates = tuple(f"image {number} of a {{}}" for number in range(80))
    texts = CountingTexts()
    embeddings = embed_labels(texts, names, templates)
    assert embeddings.shape == (10_000, 8)
    sizes = [len(call) for call in texts.calls]
    assert sum(sizes) == 800_000
    assert max(sizes) <= 16_384
    sample = {label: names[label] for label in list(names)[::997]}
    np.testing.assert_allclose(
        embeddings[::997], embed_directly(texts, sample, templates), atol=1e-6
    )


def test_equal_prompts_are_encoded_once(monkeypatch):
    """Duplicates within a class count once; a prompt of several classes counts for each."""
    monkeypatch.setattr(_label_embeddings, "_BLOCK_PROMPTS", 3)
    names = {"pet": ["cat", "dog", "cat"], "cat": ["cat"], "feline": ["cat", "lynx"], "a": ["b"]}
    templates = ("{}", "a {}", "{}")
    texts = CountingTexts()
    embeddings = embed_labels(texts, names, templates)
    encoded = [text for call in texts.calls for text in call]
    assert sorted(encoded) == ["a b", "a cat", "a dog", "a lynx", "b", "cat", "dog", "lynx"]
    assert [len(call) for call in texts.calls] == [3, 3, 2]
    np.testing.assert_allclose(embeddings, embed_directly(texts, names, templates), atol=1e-6)


def test_blocks_of_real_encoder_give_mean_of_prompts(
    X, text_encoder, captioned_images, monkeypatch
):
    aligner = CCAAligner(text_encoder=text_encoder).fit(X, captioned_images.captions)
    names = {name: [name] for name in sorted(set(captioned_images.captions[:6]))}
    templates = ("{}", "a photo of a {}", "a drawing of {}")
    expected = embed_directly(aligner, names, templates)
    monkeypatch.setattr(_label_embeddings, "_BLOCK_PROMPTS", 4)
    np.testing.assert_allclose(embed_labels(aligner, names, templates), expected, atol=1e-6)


def test_wide_embeddings_give_smaller_blocks(monkeypatch):
    """Embeddings of ASIF have one component per anchor."""
    monkeypatch.setattr(_label_embeddings, "_BLOCK_BYTES", 10 * 4 * 8)
    texts = CountingTexts()
    embed_labels(texts, {str(number): [str(number)] for number in range(40)}, PLAIN)
    assert max(len(call) for call in texts.calls) == 11


@pytest.mark.exhaustive
def test_many_prompts_do_not_enter_the_memory_cache(
    X, text_encoder, captioned_images, monkeypatch
):
    """800,000 prompts would evict all features of images, and are used once."""
    encoder = clone(text_encoder).set_params(cache="memory", max_length=20)
    aligner = CCAAligner(text_encoder=encoder).fit(X, captioned_images.captions)
    monkeypatch.setattr(_label_embeddings, "_BLOCK_PROMPTS", 2)
    # Random names, which are not in the cache yet.
    names = [f"a {kind} called {uuid4().hex[:8]}" for kind in ("gnu", "lynx", "okapi")]
    embed_labels(aligner, {name: [name] for name in names}, PLAIN)
    hits, misses = encoder.cache_info()
    encoder.transform(names)
    assert encoder.cache_info() == (hits, misses + 3)
    assert aligner.text_encoder_.cache == "memory"


class RecordingBar:
    """Simulated progress bar of tqdm."""

    bars: ClassVar[list] = []

    def __init__(self, *, total, unit, **_):
        self.total, self.unit, self.done = total, unit, 0
        self.bars.append(self)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def update(self, n):
        self.done += n


@pytest.fixture
def bars(monkeypatch):
    monkeypatch.setattr("tqdm.tqdm", RecordingBar)
    monkeypatch.setattr(RecordingBar, "bars", [])
    return RecordingBar.bars


class AlignerWithCache(BaseEstimator):
    """Makes its encoder from its own parameters, as CLIPAligner does."""

    n_components_ = 384
    calls: ClassVar[list] = []

    def __init__(self, cache="memory", verbose=0):
        self.cache = cache
        self.verbose = verbose

    @property
    def text_encoder(self):
        return TransformersTextEncoder(cache=self.cache, verbose=self.verbose)

    def transform_text(self, texts):
        self.calls.append((self.cache, self.verbose))
        return self.text_encoder.transform(texts)


@pytest.mark.parametrize(("cache", "used"), [("memory", None), ("folder", "folder")])
def test_many_prompts_use_only_a_cache_on_disk(cache, used, monkeypatch, bars, tmp_path):
    """An interrupted run resumes from the cache on disk."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(_label_embeddings, "_BLOCK_PROMPTS", 2)
    monkeypatch.setattr(AlignerWithCache, "calls", [])
    for verbose in (1, 0):
        aligner = AlignerWithCache(cache=cache, verbose=verbose)
        embed_labels(aligner, {name: [name] for name in ("a gnu", "an emu", f"{verbose}")}, PLAIN)
    assert AlignerWithCache.calls == [(used, 0)] * 4
    assert [bar.unit for bar in bars] == ["prompt"]


@pytest.mark.parametrize("attribute", [None, "text_encoder", "cache"])
def test_aligner_without_encoder_of_ours_shows_no_bar(attribute, bars, monkeypatch):
    monkeypatch.setattr(_label_embeddings, "_BLOCK_PROMPTS", 2)
    texts = CountingTexts()
    if attribute == "text_encoder":
        texts.text_encoder = TransformersTextEncoder()
    elif attribute == "cache":
        texts.cache = "memory"
    embed_labels(texts, {name: [name] for name in "abc"}, PLAIN)
    assert texts.calls == [["a", "b"], ["c"]]
    assert not bars


@pytest.mark.exhaustive
@pytest.mark.parametrize("verbose", [0, 1])
def test_verbose_encoder_shows_one_bar_for_all_blocks(
    X, text_encoder, captioned_images, monkeypatch, bars, verbose
):
    aligner = CCAAligner(text_encoder=text_encoder).fit(X, captioned_images.captions)
    aligner.text_encoder_.set_params(verbose=verbose)
    monkeypatch.setattr(_label_embeddings, "_BLOCK_PROMPTS", 2)
    embed_labels(aligner, {name: [name] for name in "abc"}, PLAIN)
    assert [(bar.total, bar.done) for bar in bars] == [(3, 3)] * verbose


@pytest.fixture
def calls(monkeypatch):
    """Return a list to which every embedding of texts appends their number."""
    calls = []
    transform_text = BaseAligner.transform_text
    monkeypatch.setattr(
        BaseAligner,
        "transform_text",
        lambda self, y: calls.append(len(y)) or transform_text(self, y),
    )
    return calls


class TestCache:
    def test_clones_refits_and_copies_share_the_cache(
        self, X, text_encoder, captioned_images, calls
    ):
        """A worker process gets a copy."""
        aligner = CCAAligner(text_encoder=text_encoder).fit(X, captioned_images.captions)
        classifier = ZeroShotClassifier(["ibis", "kiwi"], aligner=aligner, templates="none")
        first = classifier.predict_proba(X[:3])
        copied = pickle.loads(pickle.dumps(classifier))
        refitted = clone(classifier).fit(X, captions=captioned_images.captions)
        for other in (copied, refitted, clone(classifier).set_params(aligner=aligner)):
            np.testing.assert_array_equal(other.predict_proba(X[:3]), first)
        assert calls == [2]

    def test_other_text_encoder_is_not_answered_from_the_cache(
        self, X, text_encoder, captioned_images, calls
    ):
        aligner = CCAAligner(text_encoder=text_encoder).fit(X, captioned_images.captions)
        names = {"a kiwi that is read to its end": ["a kiwi that is read to its end"]}
        before = embed_labels(aligner, names, PLAIN)
        aligner.text_encoder_ = clone(text_encoder).set_params(max_length=4)
        assert not np.allclose(embed_labels(aligner, names, PLAIN), before, atol=1e-3)
        assert calls == [1, 1]

    def test_other_encoders_share_the_cache_only_within_one_aligner(self, concepts, calls):
        """Encoders of other libraries may differ in more than their parameters."""
        names = [f"thing {number}" for number in range(300)]
        encoder = HashingVectorizer(n_features=16, analyzer="char")
        pair = [CCAAligner(text_encoder=encoder).fit(concepts.image, names) for _ in range(2)]
        for aligner in [*pair, *pair]:
            embed_labels(aligner, {"thing 7": ["thing 7"]}, PLAIN)
        assert calls == [1, 1]

    def test_cache_drops_least_recently_used_embeddings(self, monkeypatch):
        cache = LRUCache(max_bytes=3 * 8 * 4, keep_newest=True)
        monkeypatch.setattr(_label_embeddings, "_cache", cache)
        texts = CountingTexts()
        for name in ("ant", "bee", "ant", "cow", "doe", "ant", "bee"):
            embed_labels(texts, {name: [name]}, PLAIN)
        assert texts.calls == [["ant"], ["bee"], ["cow"], ["doe"], ["bee"]]
        many = {str(number): [str(number)] for number in range(9)}
        assert embed_labels(texts, many, PLAIN) is embed_labels(texts, many, PLAIN)


class TestDiskCache:
    """Embeddings of thousands of prompts are stored in the cache of the text encoder."""

    NAMES: ClassVar = {name: [name] for name in ("a gnu", "an ibis", "a kiwi", "a lynx")}

    @pytest.fixture(autouse=True)
    def few_prompts_suffice(self, monkeypatch):
        monkeypatch.setattr(_label_embeddings, "_MIN_STORED_PROMPTS", 4)

    @pytest.fixture
    def embed_in_new_process(self, monkeypatch, calls):
        """Return a function that embeds without a cache in memory, and counts the prompts."""

        def embed(aligner, names, templates=PLAIN):
            monkeypatch.setattr(_label_embeddings, "_cache", LRUCache(max_bytes=2**20))
            calls.clear()
            return embed_labels(aligner, names, templates), sum(calls)

        return embed

    @pytest.fixture
    def fit_aligner(self, X, text_encoder, captioned_images):
        def fit(cache, rows=slice(None)):
            encoder = clone(text_encoder).set_params(cache=cache)
            aligner = CCAAligner(text_encoder=encoder)
            return aligner.fit(X[rows], captioned_images.captions[rows])

        return fit

    def test_is_read_by_the_next_process(self, fit_aligner, embed_in_new_process, tmp_path):
        aligner = fit_aligner(tmp_path)
        first, n_computed = embed_in_new_process(aligner, self.NAMES)
        assert n_computed == 4
        np.testing.assert_allclose(first, embed_directly(aligner, self.NAMES, PLAIN), atol=1e-6)
        again, n_computed = embed_in_new_process(fit_aligner(tmp_path), self.NAMES)
        assert n_computed == 0
        np.testing.assert_array_equal(again, first)

    def test_only_new_classes_are_computed(self, fit_aligner, embed_in_new_process, tmp_path):
        aligner = fit_aligner(tmp_path)
        embed_in_new_process(aligner, self.NAMES)
        names = {"an emu": ["an emu"], **self.NAMES, "kiwi": ["a kiwi"]}
        embeddings, n_computed = embed_in_new_process(aligner, names)
        assert n_computed == 1
        expected = embed_directly(aligner, names, PLAIN)
        np.testing.assert_allclose(embeddings, expected, atol=1e-6)

    @pytest.mark.sampled(3)
    @pytest.mark.parametrize("change", ["templates", "aligner", "encoder"])
    def test_changes_are_noticed(self, fit_aligner, embed_in_new_process, tmp_path, change):
        embed_in_new_process(fit_aligner(tmp_path), self.NAMES)
        aligner = fit_aligner(tmp_path, slice(200 if change == "aligner" else None))
        templates = ("{}!",) if change == "templates" else PLAIN
        if change == "encoder":
            aligner.text_encoder_.set_params(max_length=4)
        embeddings, n_computed = embed_in_new_process(aligner, self.NAMES, templates)
        assert n_computed == 4
        expected = embed_directly(aligner, self.NAMES, templates)
        np.testing.assert_allclose(embeddings, expected, atol=1e-6)

    @pytest.mark.exhaustive
    def test_is_not_used_for_wide_embeddings(
        self, fit_aligner, embed_in_new_process, tmp_path, monkeypatch
    ):
        aligner = fit_aligner(tmp_path)
        monkeypatch.setattr(_label_embeddings, "_MAX_STORED_COMPONENTS", aligner.n_components_ - 1)
        for _ in range(2):
            assert embed_in_new_process(aligner, self.NAMES)[1] == 4

    def test_is_not_used_in_half_precision(self, fit_aligner, embed_in_new_process, tmp_path):
        aligner = fit_aligner(DiskFeatureCache(tmp_path, dtype="float16"))
        for _ in range(2):
            assert embed_in_new_process(aligner, self.NAMES)[1] == 4


class FailingTexts(BaseEstimator):
    """Text encoder that returns NaN for digits."""

    def fit(self, X, y=None):
        return self

    def transform(self, X):
        return np.array([[np.nan] * 3 if x.isdigit() else [len(x), 1.0, 2.0] for x in X])


def test_class_that_the_encoder_fails_on_raises(concepts):
    """Otherwise all images would be predicted as unreadable."""
    captions = ["a" * (1 + number % 7) for number in range(300)]
    aligner = CCAAligner(text_encoder=FailingTexts()).fit(concepts.image, captions)
    classifier = ZeroShotClassifier(["bb", "7"], aligner=aligner, templates="none")
    with pytest.raises(ValueError, match="class '7', for which the text encoder returns NaN"):
        classifier.predict(concepts.image[:2])
