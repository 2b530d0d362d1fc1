"""Numerical cases of metrics, losses and heads."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import torch

from sklearn_ape.heads import HEAD_KINDS, Standardize, make_head
from sklearn_ape.losses import LOSSES, StructureLoss
from sklearn_ape.metrics import (
    expected_calibration_error,
    fit_temperature,
    rank_report,
    recall_at_k,
    retrieval_ranks,
)
from tests.robustness.numerics.cases import Cell
from tests.robustness.numerics.estimators import IMAGE, TEXT

_LOSSES = {cls.__name__: cls for cls in LOSSES.values()}
_EYE = np.column_stack([np.arange(20)] * 2)


def _tied() -> None:
    ranks = retrieval_ranks(np.ones((5, 3)), np.ones((5, 3)), np.column_stack([np.arange(5)] * 2))
    assert (ranks == 4).all()


def _one_row() -> None:
    assert retrieval_ranks([[1.0, 0]], [[0.5, 0]], np.array([[0, 0]])).tolist() == [0]
    assert (
        rank_report([[1.0, 0]], [[0.5, 0]], np.array([[0, 0]]))["image_to_text"]["recall@1"] == 1
    )


def _scaled_ranks(factor: float) -> None:
    image, text = IMAGE[:20].astype(np.float64), TEXT[:20].astype(np.float64)
    expected = retrieval_ranks(image, text, _EYE)
    found = retrieval_ranks(image * factor, text * factor, _EYE)
    np.testing.assert_array_equal(found, expected)


def _bad_rank(value: float) -> None:
    rows = IMAGE[:20].copy()
    rows[3, 1] = value
    retrieval_ranks(rows, TEXT[:20], _EYE)


def _proba(kind: str) -> None:
    proba = np.tile([0.8, 0.2], (10, 1))
    y = np.array([0] * 8 + [1] * 2)
    expected = expected_calibration_error(y, proba)
    if kind == "float16":
        found = expected_calibration_error(y, proba.astype(np.float16))
        np.testing.assert_allclose(found, expected, atol=1e-3)
        return
    if kind == "one sample":
        assert abs(expected_calibration_error([0], [[0.75, 0.25]], labels=[0, 1]) - 0.25) < 1e-12
        return
    bad = {"NaN": np.nan, "above 1": 1.5, "below 0": -0.5, "infinity": np.inf}[kind]
    proba[3, 0] = bad
    expected_calibration_error(y, proba)


def _temperature(factor: float) -> None:
    logits = np.random.default_rng(0).standard_normal((50, 3))
    y = np.where(np.arange(50) % 4, logits.argmax(axis=1), np.arange(50) % 3)
    expected = fit_temperature(logits, y)
    np.testing.assert_allclose(fit_temperature(logits * factor, y), expected * factor, rtol=1e-3)


def _temperature_of(value: float) -> None:
    fit_temperature([[value, 0.0], [0.0, 1.0]], [0, 0], labels=[0, 1])


def _rows(dtype: Any = torch.float32) -> tuple[torch.Tensor, torch.Tensor]:
    rng = torch.Generator().manual_seed(0)
    image, text = (torch.randn(12, 6, generator=rng).to(dtype) for _ in range(2))
    return (torch.nn.functional.normalize(side, dim=1) for side in (image, text))  # type: ignore


def _loss_of_dtype(loss: str, dtype: torch.dtype, tolerance: float) -> None:
    image, text = _rows()
    expected = _LOSSES[loss]()(image, text)
    found = _LOSSES[loss]()(image.to(dtype), text.to(dtype))
    np.testing.assert_allclose(found.double().item(), expected.item(), rtol=tolerance)


def _loss_of_strides(loss: str) -> None:
    image, text = _rows()
    expected = _LOSSES[loss]()(image, text)
    wide = image.repeat_interleave(2, dim=1)[:, ::2]
    np.testing.assert_allclose(_LOSSES[loss]()(wide, text).item(), expected.item(), rtol=1e-6)


def _loss_in_tiles(loss: str, scale: float) -> None:
    """Check that tiles do not change loss and gradients at any logit scale."""
    found = []
    for tile_size in (None, 5):
        image, text = (side.clone().requires_grad_() for side in _rows())
        criterion = _LOSSES[loss](
            logit_scale=scale, max_logit_scale=10 * scale, tile_size=tile_size
        )
        value = criterion(image, text)
        value.backward()
        assert torch.isfinite(value)
        assert torch.isfinite(image.grad).all()
        found.append((value.item(), image.grad.numpy()))
    np.testing.assert_allclose(found[0][0], found[1][0], rtol=1e-5)
    np.testing.assert_allclose(found[0][1], found[1][1], rtol=1e-3, atol=1e-6)


def _loss_of_one_pair(loss: str) -> None:
    image, text = _rows()
    value = _LOSSES[loss]()(image[:1], text[:1])
    assert torch.isfinite(value)
    if loss == "InfoNCELoss":
        assert value == 0


def _loss_of_zeros(loss: str) -> None:
    """Check that zero embeddings give a finite loss and finite gradients."""
    image, text = (torch.zeros(8, 4, requires_grad=True) for _ in range(2))
    value = _LOSSES[loss]()(image, text)
    value.backward()
    assert torch.isfinite(image.grad).all()
    if loss == "InfoNCELoss":
        np.testing.assert_allclose(value.item(), np.log(8), rtol=1e-5)


def _loss_of_nan(loss: str) -> None:
    """Check that NaN reaches the loss, so that training detects it."""
    image, text = _rows()
    image[3, 2] = np.nan
    assert not torch.isfinite(_LOSSES[loss]()(image, text))


def _structure(factor: float) -> None:
    features, embeddings = torch.from_numpy(IMAGE[:20]), torch.from_numpy(TEXT[:20])
    expected = StructureLoss()(features, embeddings)
    found = StructureLoss()(features * factor, embeddings * factor)
    np.testing.assert_allclose(found.item(), expected.item(), rtol=1e-4)


def _head(kind: str, factor: float) -> None:
    """Check that the output of a head does not depend on the scale of the features."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        head = make_head(kind, 12, 8, depth=2, width=16, dropout=0.0).eval()
    rows = torch.from_numpy(IMAGE)
    head.set_statistics(rows)
    expected = head(rows)
    head.set_statistics(rows * factor)
    np.testing.assert_allclose(
        head(rows * factor).detach().numpy(), expected.detach().numpy(), atol=1e-3
    )


def _constant(value: float) -> None:
    """Check that standardization sets a constant column to zero."""
    rows = torch.cat([torch.from_numpy(IMAGE), torch.full((len(IMAGE), 1), value)], dim=1)
    standardize = Standardize(rows.shape[1])
    standardize.set(rows)
    found = standardize(rows)
    assert (found[:, -1].abs() < 1e-6).all()
    np.testing.assert_allclose(found[:, :-1].std(dim=0, correction=0).numpy(), 1, rtol=1e-4)


def make_score_cells() -> list[Cell]:
    """Return the cells of metrics, losses and heads."""
    cells: list[Cell] = []

    def add(given: str, to: str, run: Any, means: str = "", words: tuple[str, ...] = ()) -> None:
        expected = "error" if words else "right"
        cells.append(Cell("metrics, losses, heads", given, to, expected, words, means, run))

    add(
        "all embeddings equal",
        "retrieval_ranks",
        _tied,
        "the last rank, because ties count against the score",
    )
    add("one row", "retrieval_ranks", _one_row, "the rank is 0")
    for value in (np.nan, np.inf):
        add(f"{value} in an embedding", "retrieval_ranks", partial(_bad_rank, value),
            words=("finite",))  # fmt: skip
    for factor in (1e-300, 1e300):
        add(f"float64 multiplied by {factor:g}", "retrieval_ranks", partial(_scaled_ranks, factor),
            "same ranks")  # fmt: skip
    add("k = 0", "recall_at_k", partial(recall_at_k, np.arange(3), 0), words=("integer >= 1", "0"))
    calibration = "expected_calibration_error"
    add(
        "probabilities in float16",
        calibration,
        partial(_proba, "float16"),
        "same result as in float64",
    )
    add("one sample", calibration, partial(_proba, "one sample"), "the gap of this sample")
    add("NaN", calibration, partial(_proba, "NaN"), words=("NaN", "proba"))
    add("infinity", calibration, partial(_proba, "infinity"), words=("infinity", "proba"))
    for kind in ("above 1", "below 0"):
        add(f"a value {kind}", calibration, partial(_proba, kind),
            words=("row 3", "predict_proba"))  # fmt: skip
    for factor in (1e-30, 1e-10, 1e10, 1e30):
        add(f"logits multiplied by {factor:g}", "fit_temperature", partial(_temperature, factor),
            "the temperature is multiplied by the same factor")  # fmt: skip
    add("logits of NaN", "fit_temperature", partial(_temperature_of, np.nan), words=("NaN",))
    add("logits of infinity", "fit_temperature", partial(_temperature_of, np.inf),
        words=("infinity",))  # fmt: skip
    for loss in _LOSSES:
        for dtype, tolerance in ((torch.float64, 1e-5), (torch.bfloat16, 3e-2)):
            kind = str(dtype).removeprefix("torch.")
            run = partial(_loss_of_dtype, loss, dtype, tolerance)
            add(f"embeddings in {kind}", loss, run, "close to the loss in float32")
        add("embeddings with other strides", loss, partial(_loss_of_strides, loss), "same loss")
        for scale in (1e-6, 100.0, 1e4):
            add(f"a logit scale of {scale:g}", loss, partial(_loss_in_tiles, loss, scale),
                "finite and equal with and without tiles, including gradients")  # fmt: skip
        add(
            "one pair",
            loss,
            partial(_loss_of_one_pair, loss),
            "the loss is finite (0 for InfoNCE)",
        )
        add("embeddings of zeros", loss, partial(_loss_of_zeros, loss), "gradients are finite")
        add("NaN in an embedding", loss, partial(_loss_of_nan, loss), "the loss is not finite")
    for power in (-66, 66):
        add(f"rows multiplied by 2**{power}", "StructureLoss", partial(_structure, 2.0**power),
            "same loss")  # fmt: skip
        for kind in HEAD_KINDS:
            add(f"features multiplied by 2**{power}", f"make_head({kind!r})",
                partial(_head, kind, 2.0**power), "same output")  # fmt: skip
    for value in (0.0, 0.1, 1e6, 1e30):
        add(f"a constant column of {value:g}", "Standardize", partial(_constant, value),
            "the column becomes 0, and the others have a standard deviation of 1")  # fmt: skip
    return cells
