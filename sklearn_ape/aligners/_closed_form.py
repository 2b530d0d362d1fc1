"""Closed-form solutions: kernel and linear ridge regression, and the logit scale."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from typing import Any, NamedTuple

import numpy as np
from scipy.linalg import LinAlgError, cho_factor, cho_solve
from scipy.optimize import minimize_scalar
from scipy.sparse import csr_array
from sklearn.utils import gen_batches

from ..heads import BaseMap, KernelMap, LinearMap, WhitenedMap
from ..training import split_pairs
from ..training.data import PairDataset
from ..utils.linalg import covariance, mean, normalize_rows

_MOST_PAIRS = 2048


_VALIDATION_FRACTION = 0.2


def fit_logit_scale(image: Any, text: Any, pairs: np.ndarray, max_scale: float = 100.0) -> float:
    """Return the factor of the cosines at which the symmetric InfoNCE loss is least.

    On the pairs that an aligner was fitted on it is overconfident: their cosines are higher than
    those of new pairs. Give pairs that it has not seen where there are some.

    Parameters
    ----------
    image : ndarray of shape (n_images, n_components)
        Embeddings of length 1.
    text : ndarray of shape (n_texts, n_components)
        Embeddings of length 1.
    pairs : ndarray of shape (n_pairs, 2)
        Rows of images and of captions that belong together. Of very many, 2,048 at equal
        distances are taken.
    max_scale : float, default=100.0
        Bound on the factor; it is at least 1.

    Returns
    -------
    scale : float
        Equal for equal input: nothing is drawn at random.
    """
    pairs = _few(pairs)
    images, texts = pairs[:, 0], pairs[:, 1]
    cosine = np.asarray(image[images] @ text[texts].T, dtype=np.float64)
    ones = (np.ones(len(pairs), dtype=bool), (images, texts))
    belong = csr_array(ones, shape=(len(image), len(text)))[images][:, texts]
    # The target of a row is the same weight on each of its positives, as in InfoNCELoss.
    target = belong.multiply(1 / belong.sum(axis=1)[:, None]).multiply(cosine).sum()
    target += belong.multiply(1 / belong.sum(axis=0)[None]).multiply(cosine).sum()

    def loss(log_scale: float) -> float:
        scale = math.exp(log_scale)
        # A cosine is at most 1, so that nothing overflows; doubles reach down to exp(-700).
        odds = np.exp(scale * (cosine - 1))
        normalizer = np.log(odds.sum(axis=0)).sum() + np.log(odds.sum(axis=1)).sum()
        return float(normalizer + scale * (2 * len(pairs) - target)) / len(pairs)

    best = minimize_scalar(loss, bounds=(0.0, math.log(max_scale)), method="bounded")
    return math.exp(best.x)


def held_out_logit_scale(
    data: PairDataset, fit: Callable[[PairDataset], tuple[Any, Any]]
) -> float:
    """Return the logit scale of pairs that were held out of an aligner's fit.

    With too few groups of pairs to hold any out it is that of the training pairs.

    Parameters
    ----------
    data : PairDataset
        The training pairs. A fifth of them is held out, of images rather than prototypes.
    fit : callable
        Takes pairs; returns what embeds image and text features of length 1.

    Returns
    -------
    scale : float
        Between 1 and 100.
    """
    split = split_pairs(data.pairs, _VALIDATION_FRACTION, np.random.RandomState(0))
    seen = unseen = split.train
    if split.valid is not None:
        image_pairs = split.valid[data.pairs[split.valid, 0] < data.n_images]
        unseen = image_pairs if len(image_pairs) > 1 else split.valid
    embed_image, embed_text = fit(data.replace(pairs=data.pairs[seen]))
    unseen = _few(unseen)
    images, at_image = np.unique(data.pairs[unseen, 0], return_inverse=True)
    texts, at_text = np.unique(data.pairs[unseen, 1], return_inverse=True)
    pairs = np.column_stack([at_image, at_text])
    return fit_logit_scale(embed_image(data.image[images]), embed_text(data.text[texts]), pairs)


def _few(rows: np.ndarray) -> np.ndarray:
    """Return rows at equal distances, if there are too many."""
    if len(rows) <= _MOST_PAIRS:
        return rows
    return rows[np.linspace(0, len(rows) - 1, _MOST_PAIRS).astype(np.intp)]


# Found on held-out folders of Open Clip Art.
RIDGE = 0.3


WHITENING = 0.03


MOST_ANCHORS = 16_384


_NO_VARIANCE = 1e-6


_ROWS_AT_ONCE = 4096


_TEXTS_AT_ONCE = MOST_ANCHORS


# One less the mean cosine of MiniLM's captions times the factor that was best there, 8.
_SPREAD_TIMES_GAMMA = 6.8


class Maps(NamedTuple):
    """What brings both sides into one space."""

    image: WhitenedMap
    text: BaseMap


def kernel_maps(
    data: PairDataset,
    *,
    gamma: float | str,
    ridge: float,
    whitening: float,
    n_components: int | None,
    max_anchors: int,
    rng: np.random.RandomState,
) -> Maps:
    """Return whitened images and a kernel ridge regression from texts to them."""
    targets = _Targets(data, whitening, n_components)
    gamma = _gamma(targets) if gamma == "scale" else float(gamma)
    if len(targets.texts) <= max_anchors:
        anchors = targets.units(slice(None))
        if not anchors.any():  # one text, of zeros, whose target is zero: any anchor will do
            anchors[:, 0] = 1
        matrix = _kernel(anchors, anchors, gamma)
        # A text of several images is one row that counts as often.
        matrix[np.diag_indices_from(matrix)] += ridge / targets.counts
        right = np.concatenate([some for _, some in targets])
        return Maps(targets.image, KernelMap(anchors, _solution(matrix, right), gamma))
    # Nyström: as many texts as there is room for stand for all.
    chosen = np.sort(rng.choice(len(targets.texts), max_anchors, replace=False))
    landmarks = targets.units(chosen)
    matrix = ridge * _kernel(landmarks, landmarks, gamma)
    right = np.zeros((max_anchors, targets.image.n_out), dtype=np.float32)
    for rows, wanted in targets:
        for part_of_run in gen_batches(len(wanted), _ROWS_AT_ONCE):
            some = slice(rows.start + part_of_run.start, rows.start + part_of_run.stop)
            part = _kernel(targets.units(some), landmarks, gamma)
            weighted = part * targets.counts[some, None]
            matrix += weighted.T @ part
            right += weighted.T @ wanted[part_of_run]
    # Landmarks that are nearly the same would make it singular in single precision.
    matrix[np.diag_indices_from(matrix)] += 1e-5 * matrix.diagonal().max()
    return Maps(targets.image, KernelMap(landmarks, _solution(matrix, right), gamma))


def linear_maps(
    data: PairDataset, *, ridge: float, whitening: float, n_components: int | None
) -> Maps:
    """Return whitened images and a ridge regression from texts to them.

    The ridge is relative to the mean variance of a text feature.
    """
    targets = _Targets(data, whitening, n_components)
    middle, total = targets.mean_of_units(np.float64), targets.counts.sum()
    matrix = np.zeros((len(middle), len(middle)))
    right = np.zeros((len(middle), targets.image.n_out))
    for rows, wanted in targets:
        features = targets.units(rows) - middle
        weighted = (features * targets.counts[rows, None]).T
        matrix += weighted @ features
        right += weighted @ wanted
    matrix /= total
    size = matrix.trace() / len(matrix)
    matrix[np.diag_indices_from(matrix)] += ridge * size if size > 0 else 1.0
    weights = cho_solve(cho_factor(matrix, lower=True), right / total)
    return Maps(targets.image, LinearMap(middle, weights))


class _Units:
    """Rows of features, scaled to length 1 when they are asked for."""

    def __init__(self, features: Any) -> None:
        self.features = features
        self.shape = features.shape

    def __getitem__(self, rows: Any) -> np.ndarray:
        return normalize_rows(self.features[rows])


class _Targets:
    """The image map, the texts that say something, and where each is to be sent.

    A text's target is the mean of its images' embeddings, less the mean of all. Iterating
    yields slices of `texts` and their targets, a bounded number at a time.
    """

    def __init__(self, data: PairDataset, whitening: float, n_components: int | None) -> None:
        self._data = data
        # A text without length has no direction to measure an angle from.
        blocks = gen_batches(len(data.text), _TEXTS_AT_ONCE)
        has_length = np.concatenate([data.text[some].any(axis=1) for some in blocks])
        has_length = has_length[data.pairs[:, 1]]
        pairs = data.pairs[has_length] if has_length.any() else data.pairs
        images = np.unique(pairs[:, 0])
        self.image = _whitened(_Units(data.image), images, whitening, n_components)
        self.texts, row, counts = np.unique(pairs[:, 1], return_inverse=True, return_counts=True)
        self.counts = counts.astype(np.float32)
        # By text, so that all images of a run of texts stand together.
        order = np.argsort(row, kind="stable")
        self._images, self._row = pairs[order, 0], row[order]
        self._runs = list(gen_batches(len(self.texts), _TEXTS_AT_ONCE))
        self._kept = [self._sums(run) for run in self._runs] if len(self._runs) == 1 else None
        self._n_pairs = len(pairs)

    def __iter__(self) -> Iterator[tuple[slice, np.ndarray]]:
        middle = sum(sums.sum(axis=0) for sums in self._all_sums()) / self._n_pairs
        for run, sums in zip(self._runs, self._all_sums(), strict=True):
            yield run, (sums / self.counts[run, None] - middle).astype(np.float32)

    def units(self, rows: Any) -> np.ndarray:
        """Return features of some of the texts, of length 1."""
        return normalize_rows(self._data.text[self.texts[rows]])

    def mean_of_units(self, dtype: Any) -> np.ndarray:
        """Return the mean of all texts, each as often as it has images."""
        sums = (self.counts[run] @ self.units(run).astype(dtype) for run in self._runs)
        return sum(sums) / self.counts.sum()

    def _all_sums(self) -> Iterable[np.ndarray]:
        return map(self._sums, self._runs) if self._kept is None else self._kept

    def _sums(self, run: slice) -> np.ndarray:
        """Return for each text of a run the sum of its images' embeddings."""
        directions, around = self.image.directions.numpy(), self.image.mean.numpy()
        sums = np.zeros((run.stop - run.start, directions.shape[1]))
        first, end = np.searchsorted(self._row, [run.start, run.stop])
        for start in range(first, end, _ROWS_AT_ONCE):
            some = slice(start, min(start + _ROWS_AT_ONCE, end))
            images = normalize_rows(self._data.image[self._images[some]])
            np.add.at(
                sums, self._row[some] - run.start, normalize_rows((images - around) @ directions)
            )
        return sums


def _whitened(
    features: _Units, rows: np.ndarray, whitening: float, n_components: int | None
) -> WhitenedMap:
    if n_components is not None and n_components > features.shape[1]:
        raise ValueError(
            f"n_components must be None or at most {features.shape[1]} (the width of the image "
            f"features), not {n_components}."
        )
    middle = mean(features, rows)
    variances, directions = np.linalg.eigh(
        covariance(features, features, (rows, rows), (middle, middle))
    )
    variances, directions = variances[::-1], directions[:, ::-1]
    varies = variances > _NO_VARIANCE * max(variances[0], _NO_VARIANCE)
    if not varies.any():  # all images alike: no embedding says anything
        return WhitenedMap(middle, np.zeros((len(middle), 1)))
    directions = directions[:, varies][:, :n_components]
    variances = variances[varies][:n_components] / variances[0]
    # The sign of an eigenvector is the solver's whim.
    signs = np.sign(directions[np.abs(directions).argmax(axis=0), np.arange(len(variances))])
    return WhitenedMap(middle, directions * signs / np.sqrt(variances + whitening))


def _gamma(targets: _Targets) -> float:
    """Return a gamma that suits how far the texts are apart from each other."""
    middle = targets.mean_of_units(np.float32)
    return float(_SPREAD_TIMES_GAMMA / max(1 - float(middle @ middle), 1e-3))


def _solution(matrix: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Solve a system that is positive definite, but for the rounding of single precision."""
    diagonal, size = np.diag_indices_from(matrix), matrix.diagonal().max()
    for share in (0.0, 1e-5, 1e-4, 1e-3, 1e-2):
        matrix[diagonal] += share * size
        with suppress(LinAlgError):
            return cho_solve(cho_factor(matrix, lower=True, check_finite=False), right)
    raise ValueError("The captions cannot be told apart in single precision: raise ridge.")


def _kernel(left: np.ndarray, right: np.ndarray, gamma: float) -> np.ndarray:
    matrix = left @ right.T
    matrix -= 1
    matrix *= gamma
    return np.exp(matrix, out=matrix)
