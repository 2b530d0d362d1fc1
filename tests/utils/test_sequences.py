"""Errors for single items, dicts, sets and generators in place of sequences of texts or images.

The tests cover every public callable that takes texts or images. A str must not be read as a
sequence of its letters, nor a dict as a sequence of its keys.
"""

from pathlib import Path

import numpy as np
import pytest
import scipy.sparse
from PIL import Image
from sklearn.base import clone
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.preprocessing import FunctionTransformer
from tqdm import tqdm

from sklearn_ape import (
    APEAligner,
    ASIFAligner,
    CCAAligner,
    CrossModalRetriever,
    FewShotClassifier,
    KernelAligner,
    LiTAligner,
    MultiLabelZeroShotClassifier,
    ZeroShotClassifier,
)
from sklearn_ape.aligners._export import _tokenize
from sklearn_ape.curation import (
    drop_near_duplicates,
    find_near_duplicates,
    pair_quality,
    select_relevant,
)
from sklearn_ape.datasets import load_image_folder, write_webdataset
from sklearn_ape.encoders import HeadPairs, TimmImageEncoder, TransformersTextEncoder
from sklearn_ape.inspection import (
    EmbeddingMapDisplay,
    RecallCurveDisplay,
    RetrievalGridDisplay,
    SimilarityMatrixDisplay,
)
from sklearn_ape.metrics import per_class_accuracy
from sklearn_ape.prompts import fill, prompts_of, resolve_templates
from sklearn_ape.utils.validation import check_sequence

IMAGES = [np.full((4, 5, 3), 40 * n, dtype=np.uint8) + np.arange(3, dtype=np.uint8) * n
          for n in range(6)]  # fmt: skip
TEXTS = ["cat", "dog", "bus", "tree", "red house", "apple"]
FEATURES = np.random.default_rng(0).standard_normal((6, 5)).astype(np.float32)

SINGLE = {
    "str": lambda: "cat",
    "empty str": lambda: "",
    "numpy str": lambda: np.str_("cat"),
    "bytes": lambda: b"cat",
    "bytearray": lambda: bytearray(b"cat"),
    "path": lambda: Path("cat"),
    "PIL image": lambda: Image.new("RGB", (3, 3)),
    "array without dimensions": lambda: np.array("cat"),
}
UNORDERED = {
    "dict": lambda: dict(enumerate(TEXTS)),
    "set": lambda: set(TEXTS),
    "frozenset": lambda: frozenset(TEXTS),
    "generator": lambda: (text for text in TEXTS),
    "map": lambda: map(str, TEXTS),
    "number": lambda: 6,
}
NOT_A_SEQUENCE = SINGLE | UNORDERED


def _corner(images):
    return np.array([np.asarray(image)[0, 0] for image in images], dtype=float)


def aligners():
    encoders = {
        "image_encoder": FunctionTransformer(_corner),
        "text_encoder": TfidfVectorizer(analyzer="char"),
    }
    ape = APEAligner(**encoders, max_epochs=1, width=8, random_state=0)
    return [ape, *(kind(**encoders) for kind in (KernelAligner, CCAAligner, ASIFAligner))]


@pytest.fixture(scope="module")
def aligner():
    return aligners()[2].fit(IMAGES, TEXTS)


@pytest.fixture(scope="module")
def retriever(aligner):
    return CrossModalRetriever(aligner).fit(IMAGES, TEXTS)


def assert_raises(name, call):
    with pytest.raises(ValueError, match="Pass a list") as caught:
        call()
    assert name in str(caught.value)


class TestTexts:
    @pytest.mark.parametrize("kind", NOT_A_SEQUENCE)
    @pytest.mark.parametrize(
        "method",
        ["transform_text", "similarity", "score", "retrieval_report", "retrieval_ranks"],
    )
    def test_methods_of_fitted_aligner_raise(self, aligner, method, kind):
        bad = NOT_A_SEQUENCE[kind]()
        arguments = (bad,) if method == "transform_text" else (IMAGES, bad)
        assert_raises("y", lambda: getattr(aligner, method)(*arguments))

    @pytest.mark.parametrize("kind", NOT_A_SEQUENCE)
    @pytest.mark.parametrize("aligner", aligners(), ids=lambda aligner: type(aligner).__name__)
    def test_fit_raises(self, aligner, kind):
        assert_raises("y", lambda: clone(aligner).fit(IMAGES, NOT_A_SEQUENCE[kind]()))
        features = type(aligner)(text_encoder=TfidfVectorizer())
        assert_raises("y", lambda: features.fit(FEATURES, NOT_A_SEQUENCE[kind]()))
        assert_raises("y", lambda: type(aligner)().fit(FEATURES, NOT_A_SEQUENCE[kind]()))

    @pytest.mark.parametrize("kind", NOT_A_SEQUENCE)
    def test_fit_of_lit_raises(self, kind):
        assert_raises(
            "y",
            lambda: LiTAligner(text_encoder="all-MiniLM-L6-v2").fit(
                FEATURES, NOT_A_SEQUENCE[kind]()
            ),
        )

    @pytest.mark.parametrize("kind", NOT_A_SEQUENCE)
    @pytest.mark.parametrize("method", ["fit", "transform", "fit_transform", "encode_to"])
    def test_text_encoder_raises(self, method, kind, tmp_path):
        call = getattr(TransformersTextEncoder(cache=None), method)
        path = (tmp_path / "features.npy",) if method == "encode_to" else ()
        assert_raises("X", lambda: call(*path, NOT_A_SEQUENCE[kind]()))

    @pytest.mark.parametrize("kind", NOT_A_SEQUENCE)
    def test_retriever_raises(self, retriever, aligner, kind):
        assert_raises("queries", lambda: retriever.search(NOT_A_SEQUENCE[kind](), k=1))
        assert_raises(
            "y", lambda: CrossModalRetriever(aligner).fit(IMAGES, NOT_A_SEQUENCE[kind]())
        )
        assert_raises("y", lambda: retriever.add(IMAGES, NOT_A_SEQUENCE[kind]()))

    @pytest.mark.parametrize("kind", NOT_A_SEQUENCE)
    def test_curation_raises(self, kind):
        bad = NOT_A_SEQUENCE[kind]
        assert_raises("captions", lambda: select_relevant(bad(), ["cat", "dog"]))
        assert_raises("captions", lambda: pair_quality(FEATURES, FEATURES, bad(), cv=2))
        assert_raises("groups", lambda: drop_near_duplicates(bad()))
        assert_raises("groups", lambda: select_relevant(TEXTS, ["cat", "dog"], groups=bad()))
        for features in (bad, lambda: np.array(FEATURES[0, 0])):
            with pytest.raises((ValueError, TypeError)):
                find_near_duplicates(features())

    @pytest.mark.parametrize("kind", ["str", "empty str", "numpy str", "path", "PIL image"])
    @pytest.mark.parametrize("cls", [ZeroShotClassifier, MultiLabelZeroShotClassifier])
    def test_labels_raise(self, aligner, cls, kind):
        """Mappings and iterators of names are accepted, but a single name is not."""
        with pytest.raises(ValueError, match="labels must be a sequence"):
            cls(SINGLE[kind](), aligner=aligner).predict(IMAGES)

    @pytest.mark.parametrize("kind", NOT_A_SEQUENCE)
    def test_displays_raise(self, aligner, kind):
        pytest.importorskip("matplotlib")
        bad = NOT_A_SEQUENCE[kind]
        for display in (SimilarityMatrixDisplay, RecallCurveDisplay, EmbeddingMapDisplay):
            assert_raises(
                "y", lambda display=display: display.from_estimator(aligner, IMAGES, bad())
            )
        assert_raises(
            "captions",
            lambda: SimilarityMatrixDisplay.from_predictions(np.eye(6), captions=bad()),
        )
        assert_raises(
            "queries", lambda: RetrievalGridDisplay.from_estimator(aligner, bad(), images=IMAGES)
        )
        assert_raises(
            "text_labels",
            lambda: EmbeddingMapDisplay.from_predictions(FEATURES, FEATURES, text_labels=bad()),
        )

    @pytest.mark.parametrize("kind", NOT_A_SEQUENCE)
    def test_head_pairs_raise(self, kind):
        head = HeadPairs(np.eye(6, 5), NOT_A_SEQUENCE[kind]())
        aligner = CCAAligner(text_encoder=TfidfVectorizer(), head_pairs=head)
        assert_raises("head_pairs", lambda: aligner.fit(FEATURES, TEXTS))

    @pytest.mark.parametrize("kind", NOT_A_SEQUENCE)
    def test_prompts_raise(self, kind):
        bad = NOT_A_SEQUENCE[kind]
        assert_raises("names", lambda: prompts_of("cat", bad(), ["{}"]))
        if not isinstance(bad(), str):  # a str is a template or the name of a set of templates
            assert_raises("templates", lambda: resolve_templates(bad()))

    def test_single_template_is_not_split_into_letters(self):
        assert fill("a {}", "cat") == ["a cat"]
        assert prompts_of("cat", ["cat", "kitten"], "photo") == [
            "a photo of a cat.",
            "a photo of a kitten.",
        ]

    @pytest.mark.parametrize("kind", NOT_A_SEQUENCE)
    def test_open_clip_tokenizer_raises(self, kind):
        bad = NOT_A_SEQUENCE[kind]()
        if isinstance(bad, str):  # like tokenizers of open_clip, it accepts one text
            assert _tokenize(bad).shape == (1, len(bad))
        else:
            assert_raises("texts", lambda: _tokenize(bad))

    @pytest.mark.parametrize("kind", NOT_A_SEQUENCE)
    def test_datasets_raise(self, kind, tmp_path):
        bad = NOT_A_SEQUENCE[kind]
        assert_raises("extensions", lambda: load_image_folder(tmp_path, extensions=bad()))
        if kind in ("generator", "map"):  # items are written one by one
            return
        pytest.importorskip("webdataset")
        assert_raises("captions", lambda: write_webdataset([b"x"] * 3, bad(), tmp_path / "s"))
        assert_raises("images", lambda: write_webdataset(bad(), ["a"] * 3, tmp_path / "s"))
        assert not (tmp_path / "s").exists()

    @pytest.mark.parametrize("kind", ["str", "numpy str", "array without dimensions", "number"])
    def test_metrics_raise(self, kind):
        bad = NOT_A_SEQUENCE[kind]
        with pytest.raises((ValueError, TypeError)):
            per_class_accuracy(bad(), bad())

    @pytest.mark.parametrize("empty", [[], (), np.array([]), np.array([], dtype=str)])
    def test_empty_sequence_of_texts_raises(self, aligner, empty):
        for call in (
            lambda: aligner.transform_text(empty),
            lambda: aligner.similarity(IMAGES, empty),
            lambda: clone(aligner).fit(IMAGES, empty),
        ):
            with pytest.raises(ValueError, match=r"y is empty\. Pass a list with at least one"):
                call()


class TestImages:
    @pytest.mark.parametrize("kind", NOT_A_SEQUENCE)
    @pytest.mark.parametrize(
        "method", ["transform", "similarity", "score", "retrieval_report", "retrieval_ranks"]
    )
    def test_methods_of_fitted_aligner_raise(self, aligner, method, kind):
        more = () if method == "transform" else (TEXTS,)
        assert_raises("X", lambda: getattr(aligner, method)(NOT_A_SEQUENCE[kind](), *more))

    @pytest.mark.parametrize("kind", NOT_A_SEQUENCE)
    @pytest.mark.parametrize("aligner", aligners(), ids=lambda aligner: type(aligner).__name__)
    def test_fit_raises(self, aligner, kind):
        assert_raises("X", lambda: clone(aligner).fit(NOT_A_SEQUENCE[kind](), TEXTS))
        assert_raises("X", lambda: type(aligner)().fit(NOT_A_SEQUENCE[kind](), FEATURES))

    @pytest.mark.parametrize("kind", NOT_A_SEQUENCE)
    @pytest.mark.parametrize("method", ["fit", "transform", "encode_to"])
    def test_image_encoder_raises(self, method, kind, tmp_path):
        call = getattr(TimmImageEncoder(cache=None), method)
        path = (tmp_path / "features.npy",) if method == "encode_to" else ()
        assert_raises("X", lambda: call(*path, NOT_A_SEQUENCE[kind]()))

    @pytest.mark.parametrize("kind", NOT_A_SEQUENCE)
    def test_retriever_raises(self, retriever, aligner, kind):
        bad = NOT_A_SEQUENCE[kind]
        assert_raises("queries", lambda: retriever.search(bad(), k=1, modality="image"))
        assert_raises("images", lambda: CrossModalRetriever(aligner).fit(bad()))
        assert_raises("images", lambda: retriever.add(bad(), TEXTS))
        assert_raises("X", lambda: retriever.kneighbors(bad(), n_neighbors=1))

    @pytest.mark.parametrize("kind", NOT_A_SEQUENCE)
    @pytest.mark.parametrize("method", ["predict", "predict_proba"])
    def test_classifier_raises(self, aligner, method, kind):
        classifier = ZeroShotClassifier(["cat", "bus"], aligner=aligner)
        assert_raises("X", lambda: getattr(classifier, method)(NOT_A_SEQUENCE[kind]()))

    @pytest.mark.parametrize("kind", NOT_A_SEQUENCE)
    @pytest.mark.parametrize("method", ["fit", "score"])
    @pytest.mark.parametrize(
        ("classifier_class", "y"),
        [
            (ZeroShotClassifier, ["cat", "bus"]),
            (FewShotClassifier, ["cat", "bus"]),
            (MultiLabelZeroShotClassifier, [["cat"], ["bus"]]),
        ],
    )
    def test_classifier_with_labels_raises(self, aligner, classifier_class, y, method, kind):
        """The letters of a path, and the bytes of a file, were counted as images."""
        call = getattr(classifier_class(["cat", "bus"], aligner=aligner), method)
        assert_raises("X", lambda: call(NOT_A_SEQUENCE[kind](), y))

    @pytest.mark.parametrize("kind", NOT_A_SEQUENCE)
    def test_displays_raise(self, kind):
        pytest.importorskip("matplotlib")
        bad = NOT_A_SEQUENCE[kind]
        assert_raises(
            "images", lambda: SimilarityMatrixDisplay.from_predictions(np.eye(6), images=bad())
        )

    @pytest.mark.parametrize("kind", sorted(set(NOT_A_SEQUENCE) - {"number"}))
    def test_bank_for_standardization_raises(self, aligner, kind):
        with pytest.raises(ValueError, match="standardize must be True, False or a collection"):
            aligner.similarity(IMAGES, TEXTS, standardize=NOT_A_SEQUENCE[kind]())


@pytest.mark.parametrize(
    "good",
    [
        ["cat"], ("cat",), [], np.array(["cat"]), np.zeros((2, 3)), range(3), {"a": 1}.values(),
        {"a": 1}.keys(), scipy.sparse.eye_array(3), scipy.sparse.eye_array(3).todok(),
    ],
    ids=lambda good: type(good).__name__,
)  # fmt: skip
def test_sequences_and_tables_are_accepted(good):
    check_sequence(good, "X", "text")


@pytest.mark.parametrize(
    ("values", "kind", "message"),
    [
        ("cat", "text", r"y is a single text, not a sequence of texts. Pass a list: \['cat'\]\."),
        (np.str_("cat"), "text", r"Pass a list: \['cat'\]\."),
        ("c.png", "image", r"y is a single image, not a sequence of images. Pass a list: \[y\]\."),
        (Image.new("L", (2, 2)), "text", r"y is a single image, not a sequence of texts. Pass"),
        ({"a": 1}, "text", r"must be a sequence of texts, .* not dict. .* list\(y.values\(\)\)\."),
        ({"images": [], "a": 1}, "image", r"not dict. Pass one of its fields: y\['images'\]\."),
        ({"image": [], "a": 1}, "image", r"not dict. Pass one of its fields: y\['image'\]\."),
        ({"a"}, "text", r"not set. Pass a list: list\(y\)\."),
        (tqdm(zip("ab"), total=2, disable=True), "text", r"not zip. Pass a list: list\(y\)\."),
        (np.array("cat"), "text", r"not an array without dimensions. Pass a list: \[y.item\(\)\]"),
        (None, "text", r"not NoneType. Pass a list: \[y\]\."),
    ],
)
def test_message_says_what_to_pass(values, kind, message):
    with pytest.raises(ValueError, match=message):
        check_sequence(values, "y", kind)


@pytest.mark.parametrize("kind", [str, Path])
def test_folder_in_place_of_images_raises(tmp_path, kind):
    with pytest.raises(
        ValueError, match=r"X is a folder, .*load_image_folder\(X, captions=None\)"
    ):
        TimmImageEncoder().transform(kind(tmp_path))


def test_pattern_in_place_of_images_raises():
    with pytest.raises(ValueError, match=r"X is a pattern, .* sorted\(glob\.glob\(X\)\)"):
        ZeroShotClassifier(["a cat", "a dog"]).predict("photos/*.jpg")


def test_file_with_an_asterisk_is_not_a_pattern(tmp_path):
    path = tmp_path / "a*b.jpg"
    path.write_bytes(b"")
    with pytest.raises(ValueError, match="X is a single image"):
        check_sequence(str(path), "X", "image")


MASKED_TEXTS = np.ma.masked_array(TEXTS, mask=[0, 0, 1, 0, 0, 0])
MASKED_NUMBERS = np.ma.masked_array(np.full(6, 1 / 6), mask=[0, 0, 1, 0, 0, 0])
MASKED = {
    "transform_text": lambda: fitted_aligner().transform_text(MASKED_TEXTS),
    "fit": lambda: CCAAligner(text_encoder=TfidfVectorizer()).fit(FEATURES, MASKED_TEXTS),
    "score": lambda: fitted_aligner().score(FEATURES, MASKED_TEXTS),
    "captions": lambda: select_relevant(MASKED_TEXTS, ["cat"], n_pairs=1),
    "scores": lambda: drop_near_duplicates([0, 1, 0, 1, 0, 1], scores=MASKED_NUMBERS),
    "queries": lambda: indexed_features().search(MASKED_TEXTS),
    "where": lambda: indexed_features().search(TEXTS, where=MASKED_NUMBERS > 0),
    "labels": lambda: classifier(MASKED_TEXTS).predict(FEATURES),
    "class_prior": lambda: classifier(TEXTS, class_prior=MASKED_NUMBERS).predict(FEATURES),
    "sample_weight": lambda: classifier(TEXTS).score(FEATURES, TEXTS, MASKED_NUMBERS),
}


def fitted_aligner():
    return CCAAligner(text_encoder=TfidfVectorizer(), n_components=2).fit(FEATURES, TEXTS)


def indexed_features():
    return CrossModalRetriever(aligner=fitted_aligner()).fit(FEATURES)


def classifier(labels, **params):
    return ZeroShotClassifier(labels, aligner=fitted_aligner(), templates="none", **params)


@pytest.mark.parametrize("call", MASKED.values(), ids=MASKED)
def test_masked_values_are_missing(call):
    """Masks of numbers were ignored, and those of texts raised errors about other causes."""
    with pytest.raises(ValueError, match=r"has masked values in 1 row|a missing"):
        call()
