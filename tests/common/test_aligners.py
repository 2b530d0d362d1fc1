"""Common tests of aligners: scikit-learn's checks, valid embeddings, errors for bad input."""

import pickle
import re
import warnings

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
import torch
from sklearn.base import clone
from sklearn.feature_extraction.text import HashingVectorizer
from sklearn.utils.estimator_checks import check_estimator

from sklearn_ape import (
    APEAligner,
    ASIFAligner,
    CCAAligner,
    CrossModalRetriever,
    KernelAligner,
    ZeroShotClassifier,
)

ALIGNERS = [
    CCAAligner(),
    ASIFAligner(),
    KernelAligner(),
    APEAligner(width=32, max_epochs=2, random_state=0),
]


@pytest.fixture(params=ALIGNERS, ids=lambda aligner: type(aligner).__name__)
def aligner(request):
    return clone(request.param)


def fit_and_check(aligner, image, text):
    """Fit, and check that embeddings are finite and have unit norm (or are zero)."""
    aligner.fit(image, text)
    for embeddings in (aligner.transform(image), aligner.transform_text(text)):
        assert embeddings.dtype == np.float32
        assert embeddings.shape[1] == aligner.n_components_
        norms = np.linalg.norm(embeddings, axis=1)
        assert np.all((np.abs(norms - 1) < 1e-5) | (norms == 0))
    assert 1 <= aligner.logit_scale_ <= 100
    return aligner


@pytest.mark.filterwarnings("ignore:y has one number per image")
def test_passes_all_estimator_checks(aligner):
    """The number of checks is asserted because an estimator tag could disable most of them."""
    results = check_estimator(aligner, on_skip=None, on_fail="raise")
    statuses = [result["status"] for result in results]
    assert statuses.count("passed") >= 47
    assert len(statuses) - statuses.count("passed") <= 1  # the array API may be missing


def test_learns_common_concepts(aligner, concepts):
    aligner.fit(concepts.image[:200], concepts.text[:200])
    assert aligner.score(concepts.image[200:], concepts.text[200:]) > 0.3  # chance is 0.01
    assert aligner.n_parameters_ > 0


def test_equal_data_give_bitwise_equal_fits_and_other_data_another_fingerprint(aligner, concepts):
    one = clone(aligner).fit(concepts.image, concepts.text)
    two = clone(aligner).fit(concepts.image, concepts.text)
    assert one.fingerprint_ == two.fingerprint_
    assert one.logit_scale_ == two.logit_scale_
    other = clone(aligner).fit(concepts.image[:-1], concepts.text[:-1])
    assert other.fingerprint_ != one.fingerprint_


def test_features_that_differ_in_the_sign_of_zero_are_equal(aligner, concepts):
    image, text = (side.clip(min=0) for side in (concepts.image, concepts.text))
    negative = [np.where(side > 0, side, np.float32(-0.0)) for side in (image, text)]
    expected = clone(aligner).fit(np.tile(image, (2, 1)), np.tile(text, (2, 1)))
    repeated = np.concatenate([image, negative[0]]), np.concatenate([text, negative[1]])
    assert aligner.fit(*repeated).fingerprint_ == expected.fingerprint_
    assert aligner.was_fitted_on(negative[0]).all()


def test_pickle_gives_the_same_embeddings(aligner, concepts):
    aligner.fit(concepts.image, concepts.text)
    back = pickle.loads(pickle.dumps(aligner))
    np.testing.assert_array_equal(
        back.transform(concepts.image), aligner.transform(concepts.image)
    )
    np.testing.assert_array_equal(
        back.transform_text(concepts.text), aligner.transform_text(concepts.text)
    )


def test_similarity_is_the_product_of_the_embeddings(aligner, concepts):
    aligner.fit(concepts.image, concepts.text)
    expected = aligner.transform(concepts.image) @ aligner.transform_text(concepts.text[:7]).T
    similarity = aligner.similarity(concepts.image, concepts.text[:7])
    np.testing.assert_allclose(similarity, expected, atol=1e-6)


COLUMNS_OF_ARRAYS = {
    "pandas column of arrays": lambda rows: pd.Series(list(rows), index=range(len(rows), 0, -1)),
    "pandas column of lists": lambda rows: pd.Series(rows.tolist()),
    "polars column of lists": lambda rows: pl.Series(rows.tolist()),
    "polars column of arrays": lambda rows: pl.Series(
        rows, dtype=pl.Array(pl.Float32, rows.shape[1])
    ),
    "pyarrow column of lists": lambda rows: pa.array(rows.tolist()),
    "tensor with gradients": lambda rows: torch.from_numpy(rows).requires_grad_(),
}


@pytest.mark.parametrize("name", COLUMNS_OF_ARRAYS)
def test_columns_of_arrays_are_features(concepts, name):
    """Tables of embeddings, such as parquet files, have one column with an array per cell."""
    convert = COLUMNS_OF_ARRAYS[name]
    image, text = concepts.image[:100], concepts.text[:100]
    expected = KernelAligner().fit(image, text)
    aligner = KernelAligner().fit(convert(image), convert(text))
    KernelAligner(text_encoder=HashingVectorizer()).fit(convert(image), convert(text))
    np.testing.assert_array_equal(aligner.transform(convert(image)), expected.transform(image))
    similarity = aligner.similarity(convert(image), convert(text))
    np.testing.assert_array_equal(similarity, expected.similarity(image, text))


def test_class_labels_as_y_cause_a_warning(aligner, concepts):
    """They are accepted, because scikit-learn's checks of estimators pass them."""
    X, y = concepts.image[:60], np.arange(60) % 3
    with pytest.warns(UserWarning, match="^y has one number per image.* use FewShotClassifier"):
        aligner.fit(X, y)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        aligner.score(X, concepts.text[:60, :1])


def test_tensors_in_bfloat16_are_features(concepts):
    """NumPy has no bfloat16, in which networks often compute features."""
    image, text = (
        torch.from_numpy(rows[:100]).bfloat16() for rows in (concepts.image, concepts.text)
    )
    expected = KernelAligner().fit(image.float(), text.float()).transform(image.float())
    aligner = KernelAligner().fit(image, text)
    cells = np.empty(len(image), dtype=object)
    for number, row in enumerate(image):  # NumPy may convert a list of tensors
        cells[number] = row
    for rows in (image, list(image), pd.Series(cells), image.requires_grad_()):
        np.testing.assert_array_equal(aligner.transform(rows), expected)
    found = CrossModalRetriever(aligner).fit(image).search(image[:3], k=1)
    assert np.ravel(found.indices).tolist() == [0, 1, 2]


def test_column_of_arrays_of_different_lengths_raises():
    with pytest.raises(ValueError, match=r"X is a column of .* different lengths \(2, 3\)"):
        KernelAligner().fit(pd.Series([[1.0, 2.0], [1.0, 2.0, 3.0]]), np.eye(2))


@pytest.mark.parametrize(
    "convert", [torch.utils.data.DataLoader, lambda X: dict(enumerate(X)).values()]
)
def test_features_without_rows_raise(concepts, convert):
    rows = convert(concepts.image[:60])
    with pytest.raises(
        ValueError, match=f"^X is a {type(rows).__name__}, whose rows cannot be indexed"
    ):
        KernelAligner().fit(rows, concepts.text[:60])
    with pytest.raises(
        ValueError, match=f"^y is a {type(rows).__name__}, whose rows cannot be indexed"
    ):
        KernelAligner().fit(concepts.image[:60], rows)


class Rows(torch.utils.data.Dataset):
    """Dataset without an IndexError at its end, at which an iteration over it would end."""

    def __init__(self, rows):
        self.rows = rows

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, row):
        assert row < len(self), "read beyond the end"
        return self.rows[row]


@pytest.mark.parametrize("convert", [lambda rows: rows, torch.from_numpy])
def test_datasets_of_torch_are_read_up_to_their_length(concepts, convert):
    image, text = concepts.image[:60], concepts.text[:60]
    aligner = KernelAligner(random_state=0).fit(Rows(convert(image)), Rows(convert(text)))
    expected = KernelAligner(random_state=0).fit(image, text)
    np.testing.assert_array_equal(aligner.transform(Rows(image)), expected.transform(image))
    captions = [f"caption {number}" for number in range(60)]
    texts = HashingVectorizer(n_features=16, analyzer="char")
    aligner = KernelAligner(text_encoder=texts, random_state=0).fit(image, Rows(captions))
    expected = aligner.transform(image)
    np.testing.assert_array_equal(aligner.fit(image, captions).transform(image), expected)


def test_datasets_of_features_and_labels_raise(concepts):
    """NumPy's message is about an inhomogeneous shape."""
    rows = torch.from_numpy(concepts.image[:60])
    aligner = CCAAligner().fit(rows, concepts.text[:60])
    pairs = torch.utils.data.TensorDataset(rows, torch.arange(60))
    message = re.escape("X holds tuples with a row of features each. Pass the rows without")
    for X in (pairs, list(pairs), torch.utils.data.TensorDataset(rows)):
        with pytest.raises(ValueError, match=message):
            aligner.transform(X)
    np.testing.assert_array_equal(
        aligner.transform([pairs[i][0] for i in range(len(pairs))]), aligner.transform(rows)
    )


def test_nan_rows_give_nan_embeddings(aligner, concepts):
    image = concepts.image.copy()
    image[7] = np.nan
    with pytest.warns(UserWarning, match=r"left out \(1 of .*: 7\."):
        aligner.fit(image, concepts.text)
    for result in (aligner.transform(image), aligner.similarity(image, concepts.text)):
        assert np.isnan(result[7]).all()
        assert np.isfinite(np.delete(result, 7, axis=0)).all()


def test_only_nan_images_give_nan_similarities(aligner, concepts):
    aligner.fit(concepts.image, concepts.text)
    unreadable = np.full((2, 32), np.nan)
    assert np.isnan(aligner.similarity(unreadable, concepts.text[:3])).all()


def test_set_output_returns_named_columns(aligner, concepts):
    frame = pd.DataFrame(concepts.image, index=np.arange(300) + 7)
    frame.columns = [f"f{i}" for i in range(32)]
    out = aligner.set_output(transform="pandas").fit(frame, concepts.text).transform(frame)
    assert out.columns[0] == f"{type(aligner).__name__.lower()}0"
    assert out.index.equals(frame.index)


def test_aligner_of_captions_classifies_by_class_names(
    aligner, captioned_images, features, text_encoder
):
    """ZeroShotClassifier relies on aligners that are fitted on captions."""
    aligner.set_params(text_encoder=text_encoder).fit(
        features.image[:200], captioned_images.captions[:200]
    )
    names = ["animal", "food", "travel"]
    classifier = ZeroShotClassifier(names, aligner=aligner)
    assert (
        classifier.score(features.image[200:], captioned_images.categories[200:]) > 0.4
    )  # chance: 1/3
    np.testing.assert_allclose(classifier.predict_proba(features.image).sum(axis=1), 1, rtol=1e-5)


def test_several_captions_per_image_are_fitted(aligner, captioned_images, features, text_encoder):
    several = [[caption, f"an image of {caption}"] for caption in captioned_images.captions]
    aligner.set_params(text_encoder=text_encoder).fit(features.image, several)
    assert aligner.retrieval_report(features.image, several)["image_to_text"][10] > 0.9


class TestDegenerateData:
    @pytest.mark.parametrize(("n_image", "n_text"), [(50, 40), (50, 3), (3, 40), (1, 1)])
    def test_fewer_pairs_than_features_are_fitted(self, aligner, n_image, n_text):
        rng = np.random.default_rng(0)
        fit_and_check(
            aligner, rng.standard_normal((12, n_image)), rng.standard_normal((12, n_text))
        )

    def test_two_pairs_are_fitted(self, aligner):
        rng = np.random.default_rng(0)
        image, text = rng.standard_normal((2, 5)), rng.standard_normal((2, 4))
        assert fit_and_check(aligner, image, text).score(image, text) == 1.0

    def test_constant_features_are_ignored(self, aligner, concepts):
        """Constant features, zero or large, do not change the embeddings."""
        constant = np.tile(np.float32([0, 1e4]), (300, 1))
        plain = clone(aligner).fit(concepts.image[:200], concepts.text[:200])
        padded = [np.hstack([side, 0 * constant]) for side in (concepts.image, concepts.text)]
        score = plain.score(concepts.image[200:], concepts.text[200:])
        aligner.fit(padded[0][:200], padded[1][:200])
        assert aligner.score(padded[0][200:], padded[1][200:]) == pytest.approx(score, abs=0.05)
        fit_and_check(
            aligner, *(np.hstack([side, constant]) for side in (concepts.image, concepts.text))
        )

    def test_equal_captions_are_refused(self, aligner, concepts):
        """They say nothing about the images."""
        with pytest.raises(ValueError, match="All captions in y are the same"):
            aligner.fit(concepts.image, np.full((300, 4), 0.1))

    def test_equal_images_are_fitted(self, aligner, concepts):
        with pytest.warns(UserWarning, match="All images have the same features"):
            fit_and_check(aligner, np.full((300, 4), 0.1), concepts.text)

    @pytest.mark.parametrize("scale", [1e-12, 1e12])
    def test_features_of_any_scale_are_fitted(self, aligner, concepts, scale):
        image, text = scale * concepts.image, scale * concepts.text
        fit_and_check(aligner, image[:200], text[:200])
        assert aligner.score(image[200:], text[200:]) > 0.3

    def test_failed_fit_keeps_the_earlier_one(self, aligner, concepts):
        """Heads of one fit must not be combined with encoders or widths of another."""
        aligner = clone(aligner).fit(concepts.image[:60], concepts.text[:60])
        expected = aligner.transform(concepts.image[:5])
        with pytest.raises(ValueError, match="minimum of 2 is required"):
            aligner.fit(concepts.image[:1, :5], concepts.text[:1])
        np.testing.assert_array_equal(aligner.transform(concepts.image[:5]), expected)

    def test_one_pair_raises(self, aligner, concepts):
        with pytest.raises(ValueError, match="minimum of 2 is required"):
            aligner.fit(concepts.image[:1], concepts.text[:1])


TINY = {"width": 8, "max_epochs": 1, "random_state": 0}
TEXTS = HashingVectorizer(n_features=64, analyzer="char")

CHECKED_ALIGNERS = {
    "CCA, one component": CCAAligner(n_components=1, power=0.0, ridge=0.1),
    "CCA, no ridge": CCAAligner(ridge=0.0, power=0.5),
    "Kernel, few anchors": KernelAligner(n_components=1, max_anchors=5, random_state=3),
    "Kernel, narrow": KernelAligner(gamma=1.0, ridge=0.1, whitening=0.5, device="cpu"),
    "ASIF, nearest anchor": ASIFAligner(k=1, power=1.0, center=False),
    "ASIF, all anchors": ASIFAligner(k=10**6, power=0.5),
    "APE, GLU, sigmoid": APEAligner(
        head="glu", loss="sigmoid", optimizer="adam", init="kernel", early_stopping=False, **TINY
    ),
    "APE, star, mixup": APEAligner(
        head="star", side="both", init="linear", mixup=0.3,
        loss_params={"structure_weight": 0.2}, optimizer_params={"clip_norm": 1.0},
        **TINY,
    ),
    "APE, batch norm, plain": APEAligner(
        head="batchnorm_mlp", init=None, optimizer="lion", batch_size=64,
        loss_params={"learn_logit_scale": False, "tile_size": 16}, optimizer_params={"warmup": 2},
        **TINY,
    ),
    "APE, skip, image side": APEAligner(
        head="skip_mlp", side="image", init="kernel", depth=3, n_components=1, refit=False,
        dropout=0.0, **TINY,
    ),
}  # fmt: skip
CHECKED_CLASSIFIERS = {
    "ASIF, photo": ZeroShotClassifier(
        aligner=ASIFAligner(text_encoder=TEXTS, k=20), templates="photo", logit_scale=2.0
    ),
    "CCA, numbers": ZeroShotClassifier(
        aligner=CCAAligner(text_encoder=TEXTS, ridge=0.1), templates=["{}", "no {}"],
        threshold=0.0, unknown_label=-1, standardize=True,
    ),
}  # fmt: skip


def n_passed(estimator):
    """Return the number of checks that passed; at most one, of array API, is skipped."""
    results = check_estimator(estimator, on_skip=None, on_fail="raise")
    passed = [result for result in results if result["status"] == "passed"]
    assert len(results) - len(passed) <= 1
    return len(passed)


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", CHECKED_ALIGNERS)
@pytest.mark.filterwarnings("ignore:y has one number per image")
def test_aligners_pass_all_checks(name):
    """The number of checks is asserted because an estimator tag could disable most of them."""
    assert n_passed(CHECKED_ALIGNERS[name]) >= 47


@pytest.mark.sampled(2)
@pytest.mark.parametrize("name", CHECKED_CLASSIFIERS)
def test_classifiers_pass_all_checks(name):
    assert n_passed(CHECKED_CLASSIFIERS[name]) >= 54
