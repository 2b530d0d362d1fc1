"""select_relevant: selection, labels and order of pairs."""

import warnings
from collections import Counter

import numpy as np
import pytest
from sklearn.decomposition import TruncatedSVD
from sklearn.feature_extraction.text import HashingVectorizer, TfidfVectorizer
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, normalize

from sklearn_ape.curation import _relevance, select_relevant
from sklearn_ape.curation._relevance import compute_name_shares
from sklearn_ape.encoders.items import EncodingError
from sklearn_ape.features import matrix

CAPTIONS = [
    "a black cat, animal",
    "sunset over the sea",
    "Two DOGS and a cat",
    "hot-dog stand",
    "cattle",
    "a red fire-engine",
    "cats",
]


def name_shares(label_names, caption):
    return compute_name_shares([caption], label_names).toarray()[0]


@pytest.mark.parametrize(
    ("name", "caption", "share"),
    [
        ("cat", "cattle", 0),
        ("Cat", "two CATS", 1 / 2),
        ("A frog.", "2 dead frogs", 1 / 3),
        ("fire engine", "red fire-engine", 2 / 3),
        ("fire engine", "engine on fire", 0),
        ("glass", "a glass", 1 / 2),
        ("bus", "bus", 1),
        ("a {} by night", "a cat by night", 0),
        ("!", "!", 0),
        ("की", "एक का", 0),  # different vowels
        ("बिल्ली", "एक बिल्ली", 1 / 2),
        ("❤\ufe0f", "☀\ufe0f", 0),
        ("cat", "❤\ufe0fcats", 1),
        ("1", "1\ufe0f\u20e3", 1),  # the emoji of a digit
    ],
)
def test_names_match_whole_words(name, caption, share):
    """Words match in order, in any case, in singular and plural; templates do not match."""
    assert name_shares({"cat": [name]}, caption) == pytest.approx([share])


def test_longest_name_counts():
    """The longest synonym in the caption determines the share of a label."""
    names = {"car": ["car", "sports car"], "sport": ["sports"]}
    assert name_shares(names, "sports car race").tolist() == pytest.approx([2 / 3, 1 / 3])


def test_selection_without_encoder_uses_names():
    """Only captions that contain a name are selected."""
    chosen = select_relevant(CAPTIONS, ["cat", "dog"], random_state=0)
    assert sorted(chosen.indices.tolist()) == [0, 2, 3, 6]
    assert chosen.word_match.all()
    assert chosen.indices[0] == 6  # the caption is the name
    assert chosen.similarity[0] == 1
    assert chosen.labels[0] == "cat"


def make_features(cosines):
    """Return features of captions and two labels in 3 dimensions with the given cosines."""
    cosines = np.asarray(cosines, dtype=float)
    remainder = np.sqrt(1 - (cosines**2).sum(axis=1))
    return np.column_stack([cosines, remainder]), np.eye(3)[:2]


def test_labels_are_selected_in_rounds():
    """Each label gets its best pairs, even if all pairs of the other label are more similar."""
    captions, labels = make_features([[0.9, 0.1], [0.8, 0.1], [0.7, 0.1], [0.1, 0.5], [0, 0.4]])
    args = {"label_features": labels, "n_pairs": 4, "random_state": 0}
    chosen = select_relevant(captions, ["a", "b"], **args)
    assert chosen.indices.tolist() == [0, 3, 1, 4]
    assert chosen.labels.tolist() == ["a", "b", "a", "b"]
    assert chosen.similarity == pytest.approx([0.9, 0.5, 0.8, 0.4])
    assert not chosen.word_match.any()
    greedy = select_relevant(captions, ["a", "b"], balance=False, **args)
    assert greedy.indices.tolist() == [0, 1, 2, 3]


def test_pair_is_assigned_to_the_nearest_label():
    captions, labels = make_features([[0.7, 0.6], [0.1, 0.5], [0.3, 0.1]])
    chosen = select_relevant(captions, [7, 3], label_features=labels, per_label=1, random_state=0)
    assert chosen.indices.tolist() == [0, 1]
    assert chosen.labels.tolist() == [7, 3]


def test_limits_hold_together():
    captions, labels = make_features([[0.9, 0.1], [0.9, 0.1], [0.8, 0.1], [0.7, 0], [0.1, 0.3]])
    args = {"label_features": labels, "random_state": 0}
    chosen = select_relevant(captions, ["a", "b"], min_similarity=0.5, **args)
    assert sorted(chosen.indices.tolist()) == [0, 1, 2, 3]
    for balance in (True, False):
        chosen = select_relevant(
            captions, ["a", "b"], per_label=2, groups=[5, 5, 5, 1, 2], balance=balance, **args
        )
        assert sorted(chosen.indices.tolist()) in ([0, 3, 4], [1, 3, 4])
        assert Counter(chosen.labels) == {"a": 2, "b": 1}


def test_min_similarity_alone_keeps_labels_in_turns():
    captions, labels = make_features([[0.9, 0], [0.8, 0], [0.7, 0], [0, 0.6]])
    chosen = select_relevant(
        captions, ["a", "b"], label_features=labels, min_similarity=0.5, random_state=0
    )
    assert chosen.indices.tolist() == [0, 3, 1, 2]


def test_without_limits_every_group_has_its_best_pair_and_label():
    """Rounds would assign pairs to other labels than the most similar one."""
    rng = np.random.default_rng(0)
    captions, labels = (normalize(rng.standard_normal((n, 4))) for n in (40, 3))
    groups = rng.integers(0, 15, 40)
    scores = captions @ labels.T
    expected = {}
    for group in np.unique(groups):
        rows = np.flatnonzero(groups == group)
        row = int(rows[scores[rows].max(axis=1).argmax()])
        expected[row] = int(scores[row].argmax())
    chosen = select_relevant(
        captions, range(3), label_features=labels, groups=groups, min_similarity=-1
    )
    assert dict(zip(chosen.indices.tolist(), chosen.labels.tolist(), strict=True)) == expected
    with pytest.warns(UserWarning, match=f"n_pairs=40, but only {len(expected)} pairs"):
        limited = select_relevant(
            captions, range(3), label_features=labels, groups=groups, n_pairs=40
        )
    assert limited.indices.tolist() == chosen.indices.tolist()
    assert limited.labels.tolist() == chosen.labels.tolist()


@pytest.mark.parametrize("balance", [True, False])
def test_tile_size_and_depth_do_not_change_selection(monkeypatch, balance):
    """Short lists of candidates and small tiles give the selection of full ones."""
    rng = np.random.default_rng(0)
    captions, labels = rng.standard_normal((400, 8)), rng.standard_normal((5, 8))
    captions[::2, :] += 3 * labels[0]  # makes one label the nearest of most captions
    args = {
        "label_features": labels,
        "n_pairs": 150,
        "groups": rng.integers(0, 250, 400),
        "balance": balance,
        "random_state": 0,
    }
    expected = select_relevant(captions, range(5), **args)
    monkeypatch.setattr(_relevance, "_EXTRA_CANDIDATES", -58)  # depth 2
    monkeypatch.setattr(matrix, "TILE_BYTES", 500)
    tiled = select_relevant(captions, range(5), **args)
    assert expected.indices.tolist() == tiled.indices.tolist()
    assert expected.labels.tolist() == tiled.labels.tolist()
    assert len(set(args["groups"][expected.indices])) == 150


def test_ties_depend_only_on_random_state():
    """Equal captions are drawn at random, reproducibly for a seed."""
    captions = ["cat"] * 100
    selections = [select_relevant(captions, ["cat"], n_pairs=5, random_state=s) for s in (0, 0, 1)]
    assert (
        selections[0].indices.tolist()
        == selections[1].indices.tolist()
        != selections[2].indices.tolist()
    )


def test_encoder_selects_by_meaning(text_encoder):
    """Captions without the words of a name are selected by similarity, also to synonyms."""
    captions = ["a kitten asleep", "the stock market", "an automobile", "tabby"]
    chosen = select_relevant(
        captions,
        {"animal": ["cat"], "vehicle": ["car", "truck"]},
        text_encoder=text_encoder,
        n_pairs=2,
        random_state=0,
    )
    assert dict(zip(chosen.labels, chosen.indices, strict=True))["vehicle"] == 2
    assert set(chosen.indices.tolist()) < {0, 2, 3}


def test_labels_are_encoded_before_captions():
    """An error of the labels does not wait until all captions are encoded."""
    encoded = []

    class Encoder(HashingVectorizer):
        def transform(self, X):
            encoded.extend(X)
            return super().transform(X)

    select_relevant(CAPTIONS, ["cat"], text_encoder=Encoder(), n_pairs=1, templates="none")
    assert encoded == ["cat", *CAPTIONS]


def test_word_match_overrides_min_similarity(text_encoder):
    """A long caption that contains the name is relevant even if its similarity is low."""
    captions = ["stock market report of the year, p. 17, with tables; cover: cat", "law"]
    chosen = select_relevant(captions, ["cat"], text_encoder=text_encoder, min_similarity=0.8)
    assert chosen.indices.tolist() == [0]
    assert chosen.similarity[0] < 0.8


def test_captions_and_their_features_give_equal_selections(
    captioned_images, features, text_encoder
):
    """Without the bonus for words the selections are equal."""
    labels = ["cat", "fish", "red fruit", "train"]
    args = {"text_encoder": text_encoder, "n_pairs": 20, "random_state": 0}
    texts = select_relevant(captioned_images.captions, labels, word_bonus=0, **args)
    arrays = select_relevant(features.text, labels, **args)
    assert texts.indices.tolist() == arrays.indices.tolist()
    assert texts.similarity == pytest.approx(arrays.similarity, abs=1e-5)


def test_best_of_several_captions_counts(text_encoder):
    captions = [["law", "a cat"], ["law", "the law"], ["a dog", "economy", "x"]]
    chosen = select_relevant(
        captions, ["cat", "dog"], text_encoder=text_encoder, n_pairs=2, random_state=0
    )
    assert set(zip(chosen.indices.tolist(), chosen.labels.tolist(), strict=True)) == {
        (0, "cat"),
        (2, "dog"),
    }
    assert chosen.word_match.all()


def test_score_is_that_of_one_caption():
    """The similarity of one caption and the words of another one were added up."""
    features = {"bird": [1, 0], "red bird": [0.8, 0.6], "sparrow": [0.96, 0.28]}
    features["a bird in a paper"] = [0, 1]
    encoder = FunctionTransformer(lambda texts: np.array([features[text] for text in texts]))
    chosen = select_relevant(
        [["sparrow", "a bird in a paper"], ["red bird"]],
        ["bird"],
        text_encoder=encoder,
        n_pairs=2,
        templates="none",
    )
    assert chosen.indices.tolist() == [1, 0]
    assert chosen.similarity == pytest.approx([0.8, 0.96])
    assert chosen.word_match.tolist() == [True, False]


def test_opposite_captions_are_selected_without_min_similarity():
    """Cosines that rounding made smaller than -1 were left out."""
    label = np.random.default_rng(0).standard_normal((1, 37)).astype(np.float32)
    captions = -label * np.arange(1, 40, dtype=np.float32)[:, None]
    chosen = select_relevant(captions, ["a"], label_features=label, n_pairs=39)
    assert len(chosen.indices) == 39


def test_rows_of_nan_are_never_selected():
    captions, labels = make_features([[0.9, 0.1], [0.8, 0.1], [0.1, 0.6]])
    captions[0] = np.nan
    with pytest.warns(UserWarning, match="n_pairs=3, but only 2 pairs"):
        chosen = select_relevant(captions, ["a", "b"], label_features=labels, n_pairs=3)
    assert 0 not in chosen.indices


def test_captions_that_cannot_be_encoded_are_named_by_the_rows_of_their_pairs(text_encoder):
    """They were named by their positions among all captions."""
    captions = [["a cat", "a pet"], ["a dog", "a pet"], ["a bird", "\u200b"]]
    with pytest.raises(EncodingError, match=r"row 2: '.*' is an empty text") as caught:
        select_relevant(captions, ["cat", "dog"], text_encoder=text_encoder, n_pairs=2)
    assert list(caught.value.errors) == [2]


def test_invalid_parameters_raise(text_encoder):
    captions, labels = make_features([[0.9, 0.1], [0.1, 0.9]])
    with pytest.raises(ValueError, match="n_pairs, per_label and min_similarity are all None"):
        select_relevant(captions, ["a", "b"], label_features=labels)
    with pytest.raises(ValueError, match="label_features"):
        select_relevant(captions, ["a", "b"], n_pairs=1)
    with pytest.raises(ValueError, match=r"must have shape \(2, 3\)"):
        select_relevant(captions, ["a", "b"], label_features=np.eye(2), n_pairs=1)
    with pytest.raises(ValueError, match="are both set"):
        select_relevant(
            captions, ["a", "b"], label_features=labels, text_encoder=text_encoder, n_pairs=1
        )
    with pytest.raises(ValueError, match="n_pairs must be None or an integer >= 1, not 0"):
        select_relevant(CAPTIONS, ["cat"], n_pairs=0)
    with pytest.raises(ValueError, match="needs text_encoder"):
        select_relevant(CAPTIONS, ["cat"], min_similarity=0.5)
    with pytest.raises(ValueError, match="do not match any label"):
        select_relevant(CAPTIONS, ["zebra"])
    with pytest.raises(ValueError, match="groups has 2 entries for 7 rows"):
        select_relevant(CAPTIONS, ["cat"], groups=[0, 1])
    with pytest.raises(ValueError, match="row 1: '  ' is an empty caption"):
        select_relevant(["a cat", "  "], ["cat"])


def test_full_selection_does_not_warn():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(select_relevant(CAPTIONS, ["cat", "dog"], n_pairs=4).indices) == 4


def test_fitted_text_encoder_of_the_features_is_not_fitted_again():
    """Another fit, on the labels, would give their features another space."""
    captions = ["a red cat", "a blue dog", "a red fish", "blue water", "a cat asleep", "dogs bark"]
    encoder = make_pipeline(TfidfVectorizer(), TruncatedSVD(4, random_state=0)).fit(captions)
    options = {"text_encoder": encoder, "per_label": 1, "templates": "none", "random_state": 0}
    chosen = select_relevant(encoder.transform(captions), ["cat", "dog"], **options)
    expected = select_relevant(
        encoder.transform(captions),
        ["cat", "dog"],
        label_features=encoder.transform(["cat", "dog"]),
        per_label=1,
        random_state=0,
    )
    assert chosen.indices.tolist() == expected.indices.tolist()
    np.testing.assert_allclose(chosen.similarity, expected.similarity, rtol=1e-5)


def test_labels_unknown_to_the_encoder_are_named():
    """The error gave only the shape of the features, which was right."""
    encoder = TfidfVectorizer()
    with pytest.raises(ValueError, match=r"labels have features that are all 0 or NaN: 'zebra'\."):
        select_relevant(["cat", "a dog"], ["cat", "zebra"], text_encoder=encoder, n_pairs=1)
