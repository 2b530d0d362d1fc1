"""Numerical cases of degenerate sets of pairs."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from sklearn.base import clone

from sklearn_ape.curation import find_near_duplicates, pair_quality
from tests.robustness.numerics.cases import Cell
from tests.robustness.numerics.estimators import ALIGNERS, IMAGE, N_TRAIN, TEXT

_TRAIN, _TEST = slice(None, N_TRAIN), slice(N_TRAIN, None)
CLOSED = ("CCAAligner", "ASIFAligner", "KernelAligner")
_ALL = tuple(ALIGNERS)
_ALL_WITHOUT_RECALL = tuple(name for name in ALIGNERS if name != "APEAligner")
_WELL_FORMED = "embeddings are finite, with norm 1 or 0"


def _fit(name: str, image: Any, text: Any) -> Any:
    fitted = clone(ALIGNERS[name]).fit(image, text)
    for rows in (fitted.transform(image[:50]), fitted.transform_text(text[:50])):
        norms = np.linalg.norm(rows, axis=1)
        assert ((np.abs(norms - 1) < 1e-4) | (norms == 0)).all()
    assert 1 <= fitted.logit_scale_ <= 100
    return fitted


def _plain(name: str, n: int, n_image: int, n_text: int) -> None:
    rng = np.random.default_rng(0)
    _fit(name, rng.standard_normal((n, n_image)), rng.standard_normal((n, n_text)))


def _two_pairs(name: str) -> None:
    image, text = np.eye(5)[:2] + 0.1, np.eye(4)[:2] + 0.1
    fitted = _fit(name, image, text)
    similarity = fitted.similarity(image, text)
    assert similarity.shape == (2, 2)
    assert np.isfinite(similarity).all()


def _duplicates(name: str) -> None:
    """Check that repeated pairs count once: the fit is bitwise that of the distinct pairs."""
    image, text = IMAGE[_TRAIN], TEXT[_TRAIN]
    order = np.random.default_rng(0).permutation(50 * N_TRAIN - N_TRAIN) % N_TRAIN
    rows = np.concatenate([np.arange(N_TRAIN), order])
    one, many = _fit(name, image, text), _fit(name, image[rows], text[rows])
    assert one.fingerprint_ == many.fingerprint_
    assert one.logit_scale_ == many.logit_scale_


def _low_rank(name: str) -> None:
    rng = np.random.default_rng(0)
    base = rng.standard_normal((N_TRAIN, 2))
    image, text = base @ rng.standard_normal((2, 12)), base @ rng.standard_normal((2, 12))
    _fit(name, image, text)


def _copied_columns(name: str) -> None:
    """Check that duplicated columns, which double inner products, do not change cosines."""
    one = _fit(name, IMAGE[_TRAIN], TEXT[_TRAIN])
    image, text = np.hstack([IMAGE, IMAGE]), np.hstack([TEXT, TEXT])
    two = _fit(name, image[_TRAIN], text[_TRAIN])
    expected = one.similarity(IMAGE[_TEST], TEXT[_TEST])
    similarity = two.similarity(image[_TEST], text[_TEST])
    np.testing.assert_allclose(similarity, expected, atol=1e-3)


def _zero_column(name: str) -> None:
    one = _fit(name, IMAGE[_TRAIN], TEXT[_TRAIN])
    image, text = (np.hstack([side, np.zeros((len(side), 1), "f")]) for side in (IMAGE, TEXT))
    two = _fit(name, image[_TRAIN], text[_TRAIN])
    expected = one.similarity(IMAGE[_TEST], TEXT[_TEST])
    similarity = two.similarity(image[_TEST], text[_TEST])
    np.testing.assert_allclose(similarity, expected, atol=1e-3)


def _constant_column(name: str, value: float) -> None:
    one = _fit(name, IMAGE[_TRAIN], TEXT[_TRAIN])
    image, text = (np.hstack([s, np.full((len(s), 1), value, "f")]) for s in (IMAGE, TEXT))
    two = _fit(name, image[_TRAIN], text[_TRAIN])
    if name == "CCAAligner":
        expected = one.similarity(IMAGE[_TEST], TEXT[_TEST])
        similarity = two.similarity(image[_TEST], text[_TEST])
        # The ridge is relative to the mean variance, which a constant column reduces.
        assert np.corrcoef(similarity.ravel(), expected.ravel())[0, 1] > 0.99
    else:
        plain = one.score(IMAGE[_TEST], TEXT[_TEST])
        assert two.score(image[_TEST], text[_TEST]) > plain - 0.2


def _repeat(name: str, side: str) -> None:
    image = np.full((N_TRAIN, 4), 0.1) if side == "image" else IMAGE[_TRAIN]
    text = np.full((N_TRAIN, 4), 0.1) if side == "text" else TEXT[_TRAIN]
    _fit(name, image, text)


def _one_image_of_two_captions(name: str) -> None:
    """Check that an image with several captions counts once, with all of them as positives."""
    image = np.repeat(IMAGE[:30], 2, axis=0)
    fitted = _fit(name, image, TEXT[_TRAIN])
    groups = np.repeat(np.arange(30), 2)
    ranks = fitted.retrieval_ranks(image, TEXT[_TRAIN], groups=groups)
    assert len(ranks["image_to_text"]) == 30
    assert len(ranks["text_to_image"]) == N_TRAIN


def _zero_row(name: str) -> None:
    image, text = IMAGE[_TRAIN].copy(), TEXT[_TRAIN].copy()
    image[3], text[5] = 0, 0
    _fit(name, image, text)


def _nan_row(name: str) -> None:
    """Check that NaN rows are left out of the fit, and that their embeddings are NaN."""
    image, text = IMAGE[_TRAIN].copy(), TEXT[_TRAIN]
    image[3] = np.nan
    fitted = clone(ALIGNERS[name]).fit(image, text)
    without = clone(ALIGNERS[name]).fit(np.delete(image, 3, axis=0), np.delete(text, 3, axis=0))
    assert fitted.fingerprint_ == without.fingerprint_
    assert np.isnan(fitted.transform(image)[3]).all()


def _other_width(name: str) -> None:
    _fit(name, IMAGE[_TRAIN], TEXT[_TRAIN]).transform(IMAGE[:, :-1])


def _other_lengths(name: str) -> None:
    _fit(name, IMAGE[_TRAIN], TEXT[: N_TRAIN - 1])


def _find_repeated_rows() -> None:
    rows = np.tile(IMAGE[:30], (100, 1)) * np.float32(3)
    groups = find_near_duplicates(rows, threshold=0.999)
    assert np.array_equal(groups, np.tile(find_near_duplicates(IMAGE[:30], threshold=0.999), 100))


def _judge_identical_images() -> None:
    quality = pair_quality(np.ones((40, 4)), TEXT[:40], random_state=0)
    assert np.isfinite(quality.score).all()


def _judge_unreadable_row(value: float) -> None:
    image = IMAGE[_TRAIN].copy()
    image[3] = value
    quality = pair_quality(image, TEXT[_TRAIN], random_state=0)
    assert quality.score[3] == 0
    assert quality.reason[3] == "unreadable"
    assert np.isfinite(quality.score).all()


def make_pair_cells() -> list[Cell]:
    """Return the cells of degenerate sets of pairs."""
    closed = ("CCAAligner", "ASIFAligner", "KernelAligner", "APEAligner")
    linear = (*closed, "APEAligner(init='linear')")
    rows: list[tuple[str, tuple[str, ...], Callable[[str], None], str, tuple[str, ...], str]] = [
        ("one pair", _ALL, partial(_plain, n=1, n_image=5, n_text=4), "error",
         ("minimum of 2",), ""),
        ("two pairs", _ALL, _two_pairs, "right", (), _WELL_FORMED),
        ("more features than pairs", _ALL, partial(_plain, n=12, n_image=50, n_text=40), "right",
         (), _WELL_FORMED),
        ("one feature per side", _ALL, partial(_plain, n=12, n_image=1, n_text=1), "right", (),
         _WELL_FORMED),
        ("every pair repeated 50 times (3,000 rows)", _ALL_WITHOUT_RECALL, _duplicates, "right",
         (), "bitwise identical to the fit on distinct pairs"),
        # It computes the recall on held-out pairs, which the repeated rows lower.
        ("every pair repeated 50 times (3,000 rows)", ("APEAligner",), _duplicates, "warning",
         ("same features as another row",), "bitwise identical to the fit on distinct pairs"),
        ("features of rank 2", _ALL, _low_rank, "right", (), _WELL_FORMED),
        ("every column duplicated", closed[1:], _copied_columns, "right", (),
         "same results as without the duplicates"),
        ("a column of zeros", closed[1:], _zero_column, "right", (),
         "same results as without the column"),
        ("a column of zeros", ("CCAAligner",), partial(_constant_column, value=0.0), "right", (),
         "nearly the same results, because the ridge is relative to the mean variance"),
        ("a constant column of 1", linear, partial(_constant_column, value=1.0), "right", (),
         "nearly the same results for CCA, a similar score for the others"),
        ("all images identical", _ALL, partial(_repeat, side="image"), "warning",
         ("All images have the same features",), _WELL_FORMED),
        ("all captions identical", _ALL, partial(_repeat, side="text"), "error",
         ("All captions in y are the same",), ""),
        ("every image twice, with two captions", _ALL, _one_image_of_two_captions, "right", (),
         "each image counts once, with both captions as positives"),
        ("a row of zeros", _ALL, _zero_row, "right", (), _WELL_FORMED),
        ("a row of NaN (an item that failed to encode)", _ALL, _nan_row, "warning",
         ("could not be encoded", "3"),
         "bitwise identical to the fit without the row, whose embedding is NaN"),
        ("another number of features than in fit", _ALL, _other_width, "error", ("11", "12"), ""),
        ("fewer captions than images", _ALL, _other_lengths, "error",
         ("inconsistent", "60", "59"), ""),
    ]  # fmt: skip
    cells = [
        Cell("sets of pairs", given, name, expected, words, means, partial(run, name))
        for given, names, run, expected, words, means in rows
        for name in names
    ]
    others: list[Any] = [
        ("every row repeated 100 times", "find_near_duplicates", "right", (),
         "all copies of a row form one group", _find_repeated_rows),
        ("all images identical", "pair_quality", "error", ("got 1", "smaller cv"), "",
         _judge_identical_images),
        ("a row of NaN", "pair_quality", "right", (), "the row is reported as unreadable",
         partial(_judge_unreadable_row, np.nan)),
        ("a row of zeros", "pair_quality", "right", (), "the row is reported as unreadable",
         partial(_judge_unreadable_row, 0)),
        ("a row of infinity", "pair_quality", "error", ("infinity", "3"), "",
         partial(_judge_unreadable_row, np.inf)),
    ]  # fmt: skip
    return cells + [
        Cell("sets of pairs", given, to, expected, words, means, run)
        for given, to, expected, words, means, run in others
    ]
