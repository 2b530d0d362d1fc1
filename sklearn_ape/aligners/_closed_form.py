"""Whitening of images, targets of texts, linear regression, and the logit scale."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from copy import copy
from dataclasses import replace
from functools import cached_property, partial
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy.linalg import cho_factor, cho_solve
from scipy.optimize import brentq
from scipy.sparse import csr_array
from sklearn.utils import gen_batches
from sklearn.utils.extmath import svd_flip

from ..heads import BaseMap, ClosedFormHead, LinearMap, TwoTower, WhitenedMap
from ..training.data import PairDataset, group_pairs, split_pairs, subset
from ..training.net import embed
from ..utils.linalg import (
    choose_evenly_spaced,
    compute_covariance,
    compute_mean,
    eigh_of_covariance,
    normalize_rows,
    sum_by_group,
)

# Defaults, chosen on held-out folders of Open Clip Art.
RIDGE = 0.3
WHITENING = 0.03

# With many repeated captions, the whitening is divided by this number. Chosen on 16,000 icons: the
# recall on other sets was 17.3 % with 0.01 and 16.8 % with 0.03. With 150 images whose captions
# are not repeated, 0.01 was less accurate than 0.03 for broad names such as "animal".
_STYLE_DIVISOR = 3

# Exponent down to which exp has all digits in float32; exp(-87.3) is the smallest normal number.
_MIN_EXPONENT = -80.0

# Largest logit scale, as of CLIP. A larger one would make training unstable.
MAX_LOGIT_SCALE = 100.0

# Pairs from which the logit scale is fitted; their matrix of cosines is in memory.
_MAX_SCALE_PAIRS = 2048
VALIDATION_FRACTION = 0.2

# Fewer pairs than both of these are held out in turn: with one fifth of 60 to 200 pairs, the scale
# differed from the best one for new pairs by twice as much. The fits of the folds take up to twice
# as long as the fit of all pairs. A group is what shares images or captions.
_MIN_GROUPS_OF_ONE_SPLIT = 500
_MIN_PAIRS_OF_ONE_SPLIT = 2000
_N_FOLDS = 5

# Standard deviation of the logarithm of the scale around the expected one. Extensions of the
# starter model by four to 20 pairs, all of which may be predicted right, had a scale of up to 100
# without it, on average two to three times the best one for new pairs.
_LOG_SCALE_STD = 0.5

# With fewer groups, new images of known captions are held out instead of new captions.
_MIN_GROUPS_OF_CAPTIONS = 50

# The whitening of fewer images per feature depends on each of them, so that a logit scale is too
# large if it is fitted on images which the whitening was computed from: 19 instead of 9 with 150
# emoji, but 16.7 instead of 16.6 with 4,000 icons, in features of size 1,280.
_MIN_IMAGES_PER_FEATURE = 3

# Variances below this share of the largest one are rounding error.
_MIN_VARIANCE = 1e-6

# Block sizes. Sums depend on them in their last bits.
BLOCK_SIZE = 4096
_TEXT_BLOCK_SIZE = 16_384


def fit_logit_scale(
    image: Any, text: Any, pairs: np.ndarray, max_scale: float = MAX_LOGIT_SCALE
) -> float:
    """Return the logit scale from 1 to `max_scale` that minimizes the symmetric InfoNCE loss.

    If `max_scale` is at most 1, it is the scale.

    Cosines of training pairs are higher than those of new pairs, so a scale that is fitted on them
    is overconfident: pass held-out pairs if possible. `pairs` are rows of L2-normalized embeddings
    of images and of texts. If there are more than 2,048, an evenly spaced sample of them is used.
    """
    return _minimize_loss([_make_slope(image, text, pairs)], max_scale)


def fit_held_out_logit_scale(
    data: PairDataset,
    fit: Callable[[PairDataset], tuple[Any, Any]],
    max_scale: float = MAX_LOGIT_SCALE,
    expected: float | None = None,
) -> float:
    """Return the logit scale fitted on pairs that are held out of an aligner's fit.

    The pairs of images are used rather than those of prototypes. `fit` is a function of training
    pairs that returns two functions, which compute L2-normalized embeddings of image features and
    of text features. Few pairs change the scale little from the `expected` one, if any. With too
    few images to hold some out, it is the expected scale or 1.
    """
    slopes: list[Callable[[float], float]] = []
    if expected is not None:
        slopes.append(lambda scale: math.log(scale / expected) / (_LOG_SCALE_STD**2 * scale))
    for train, held_out in hold_out_pairs(data):
        embed_image, embed_text = fit(replace(data, pairs=data.pairs[train]))
        part = subset(data, choose_scale_pairs(data, held_out))
        slopes.append(_make_slope(embed_image(part.image), embed_text(part.text), part.pairs))
    return _minimize_loss(slopes, max_scale)


def hold_out_pairs(data: PairDataset) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return the rows of training pairs and of held-out pairs, once or in five folds.

    The logit scale is fitted on the held-out pairs. A fifth of many pairs is held out. Few pairs
    are held out in turn, since a fifth of them would be too few for a reliable scale. The held-out
    pairs share neither an image nor a caption with the others. If there are too few such groups of
    pairs, as with labels as captions, they may share captions. The list is empty if there are
    fewer than four images.
    """
    rows = _select_rows_with_texts(data)
    pairs = data.pairs[rows]
    groups, group, sizes = np.unique(group_pairs(pairs), return_inverse=True, return_counts=True)
    if len(groups) >= _MIN_GROUPS_OF_ONE_SPLIT or len(pairs) >= _MIN_PAIRS_OF_ONE_SPLIT:
        for by_image in (False, True):
            rng = np.random.RandomState(0)
            split = split_pairs(pairs, VALIDATION_FRACTION, rng, by_image)
            if split.valid is not None:
                return [(rows[split.train], rows[split.valid])]
    # A caption of many images is a large group, which stays in training.
    is_large = sizes > VALIDATION_FRACTION * len(pairs)
    if np.sum(~is_large) < _MIN_GROUPS_OF_CAPTIONS:
        groups, group = np.unique(pairs[:, 0], return_inverse=True)
        is_large = np.zeros(len(groups), dtype=bool)
    n_folds = min(_N_FOLDS, len(groups) // 2)
    if n_folds < 2:
        return []
    order = np.random.RandomState(0).permutation(len(groups))
    # Large groups get the number `n_folds`, which is never held out.
    fold = np.where(is_large, n_folds, order % n_folds)[group]
    return [(rows[fold != i], rows[fold == i]) for i in range(n_folds)]


def choose_scale_pairs(data: PairDataset, held_out: np.ndarray) -> np.ndarray:
    """Return the rows of the held-out pairs of images from which the logit scale is fitted."""
    rows = held_out[data.pairs[held_out, 0] < data.n_images]
    rows = rows if len(rows) > 1 else held_out
    return rows[choose_evenly_spaced(len(rows), _MAX_SCALE_PAIRS)]


def _minimize_loss(slopes: list[Callable[[float], float]], max_scale: float) -> float:
    """Return the scale from 1 to `max_scale` at which the sum of the slopes is zero."""

    def slope(log_scale: float) -> float:
        return sum(part(math.exp(log_scale)) for part in slopes)

    if max_scale <= 1:
        return max_scale
    if slope(0.0) >= 0:
        return 1.0
    if slope(math.log(max_scale)) <= 0:
        return max_scale
    return math.exp(brentq(slope, 0.0, math.log(max_scale), xtol=1e-6))


def _make_slope(image: Any, text: Any, pairs: np.ndarray) -> Callable[[float], float]:
    """Return the derivative of the InfoNCE loss, which is convex, as a function of the scale."""
    pairs = pairs[choose_evenly_spaced(len(pairs), _MAX_SCALE_PAIRS)]
    images, texts = pairs[:, 0], pairs[:, 1]
    # torch computes exponentials several times as fast as NumPy.
    cosine = torch.from_numpy(np.asarray(image[images] @ text[texts].T, dtype=np.float32))
    positives = csr_array((np.ones(len(pairs)), (images, texts)))[images][:, texts].tocoo()
    rows, columns = positives.row, positives.col
    # The positives of a row, or of a column, have equal weights with the sum 1, as in InfoNCELoss.
    weights = sum(
        positives.data / np.bincount(side, positives.data)[side] for side in (rows, columns)
    )
    cosine -= 1  # so that exp does not overflow
    slope_of_positives = float(weights @ cosine.numpy()[rows, columns])
    logits, products = torch.empty_like(cosine), torch.empty_like(cosine)

    def slope(scale: float) -> float:
        torch.mul(cosine, scale, out=logits)
        # The derivative of logsumexp is the mean cosine, weighted by the softmax.
        if logits.min() < _MIN_EXPONENT:
            means = [(logits.softmax(dim) * cosine).sum(dim) for dim in (0, 1)]
        else:  # several times as fast
            exponentials = logits.exp_()
            torch.mul(exponentials, cosine, out=products)
            means = [products.sum(dim) / exponentials.sum(dim) for dim in (0, 1)]
        return float(torch.cat(means).sum(dtype=torch.float64)) - slope_of_positives

    return slope


def make_embedders(module: TwoTower) -> tuple[Callable, Callable]:
    """Return functions that embed image features and text features on the CPU."""
    image, text = (partial(embed, module, side, device="cpu") for side in ("image", "text"))
    return image, text


class TextFit(NamedTuple):
    """Predictions for the training texts, and estimates how much each depends on an image.

    Attributes
    ----------
    texts : ndarray of shape (n_texts,)
        Rows of the texts in the dataset.
    predictions : ndarray of shape (n_texts, n_components)
        Output of the map for the texts, which is not L2-normalized.
    signs : ndarray of shape (n_images, n_signs)
        Random targets of the images, -1 or 1.
    predicted_signs : ndarray of shape (n_texts, n_signs)
        Predictions of the same regression for `signs`.
    mean_target : ndarray of shape (n_components,)
        Mean embedding of the images, which the map does not predict.
    """

    texts: np.ndarray
    predictions: np.ndarray
    signs: np.ndarray
    predicted_signs: np.ndarray
    mean_target: np.ndarray

    def estimate_shares(self, images: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """Return the share of an image in a prediction, for pairs of an image and a row.

        The share includes that by other captions of the image. A prediction is a weighted sum of
        the targets of all images. The signs of two images have the product 1 if they are the same
        image, and on average 0 if not, so that the mean product is the weight.
        """
        shares = np.empty(len(rows), dtype=np.float32)
        for part in gen_batches(len(rows), BLOCK_SIZE):
            products = self.signs[images[part]] * self.predicted_signs[rows[part]]
            shares[part] = products.mean(axis=1)
        return shares


class Maps(NamedTuple):
    """Maps of image features and text features to the shared space.

    `held_out_text` are embeddings of the held-out texts by the map without these texts.
    """

    image: WhitenedMap
    text: BaseMap
    held_out_text: np.ndarray | None = None
    fit: TextFit | None = None

    def make_module(self) -> TwoTower:
        """Return heads that compute the maps."""
        return TwoTower(ClosedFormHead(self.image), ClosedFormHead(self.text)).eval()


def make_linear_maps(data: PairDataset, image_map: WhitenedMap, *, ridge: float) -> Maps:
    """Return a whitening of images, and a ridge regression from texts to its output.

    The ridge is relative to the mean variance of a text feature.
    """
    targets = Targets(data, image_map)
    text_mean, total = targets.compute_mean_text(np.float64), targets.counts.sum()
    matrix = np.zeros((len(text_mean), len(text_mean)))
    right = np.zeros((len(text_mean), targets.image.n_out))
    for block, block_targets in targets:
        features = targets.normalize_texts(block) - text_mean
        weighted = (features * targets.counts[block, None]).T
        matrix += weighted @ features
        right += weighted @ block_targets
    matrix /= total
    variance = matrix.trace() / len(matrix)
    # With a single text all variances are zero: any ridge makes the matrix regular.
    matrix[np.diag_indices_from(matrix)] += ridge * variance if variance > 0 else 1.0
    weights = cho_solve(cho_factor(matrix), right / total)
    return Maps(image_map, LinearMap(text_mean, weights))


class _NormalizedRows:
    """Features whose rows are L2-normalized when they are read."""

    def __init__(self, features: Any) -> None:
        self.features = features
        self.shape = features.shape

    def __getitem__(self, rows: Any) -> np.ndarray:
        return normalize_rows(self.features[rows])


class Targets:
    """The regression targets of the distinct texts.

    The target of a text is the mean of the embeddings of its images, minus the mean over all
    pairs. Iterating yields slices of `texts` and their targets, block by block.

    Attributes
    ----------
    texts : ndarray of shape (n_texts,)
        Sorted rows of the texts in the dataset.
    counts : ndarray of shape (n_texts,)
        Number of images of each text, or its weight after `merge`.
    blocks : list of slice
        Blocks of `texts`.
    """

    def __init__(self, data: PairDataset, image_map: WhitenedMap) -> None:
        self.data = data
        self.image = image_map
        pairs = data.pairs[_select_rows_with_texts(data)]
        self.texts, row, counts = np.unique(pairs[:, 1], return_inverse=True, return_counts=True)
        self.counts = counts.astype(np.float32)
        # The image of each pair, its text as a position in `texts`, and its weight in sums, which
        # `merge` changes.
        self._images, self._rows = _sort_by_text(pairs, row)
        self._weights = np.ones(len(pairs))
        self._set_blocks()

    def _set_blocks(self) -> None:
        """Set the blocks of `texts`, and what follows from the pairs and their weights."""
        # Factor of the mean over all pairs that is subtracted from a target; 1 before `merge`.
        self._mean_factors = np.bincount(self._rows, self._weights) / self.counts
        self.blocks = list(gen_batches(len(self.texts), _TEXT_BLOCK_SIZE))
        is_single = len(self.blocks) == 1
        self._cached_sums = [self._sum_images(self.blocks[0])] if is_single else None

    @cached_property
    def mean(self) -> np.ndarray:
        """Mean embedding of the images of all pairs."""
        return sum(sums.sum(axis=0) for sums in self._iter_sums()) / len(self._images)

    def __iter__(self) -> Iterator[tuple[slice, np.ndarray]]:
        for block, sums in zip(self.blocks, self._iter_sums(), strict=True):
            # In double precision, so that the target of a single text is exactly 0.
            targets = sums / self.counts[block, None]
            targets -= self._mean_factors[block, None] * self.mean
            yield block, targets.astype(np.float32)

    def merge(self, anchors: np.ndarray, nearest: np.ndarray, factors: np.ndarray) -> Targets:
        """Return targets of some texts, the anchors, that have the squared errors of all texts.

        The prediction for a text is taken to be a factor of that for an anchor. `anchors` are
        sorted rows of `texts`, `nearest` is the position in `anchors` for each text, and `factors`
        are the factors, 1 for anchors. The errors ``|factor * prediction - target|**2`` of the
        texts with the same anchor differ by a constant from an error with one target, the mean
        of ``target / factor`` weighted by ``factor**2``.
        """
        merged = copy(self)
        merged.mean = self.mean
        rows = nearest[self._rows]
        order = np.argsort(rows, kind="stable")
        merged.texts = self.texts[anchors]
        merged._images, merged._rows = self._images[order], rows[order]
        merged._weights = factors[self._rows[order]]
        merged.counts = np.bincount(merged._rows, merged._weights**2).astype(np.float32)
        merged._set_blocks()
        return merged

    def normalize_texts(self, rows: Any) -> np.ndarray:
        """Return L2-normalized features of rows of `texts`."""
        return normalize_rows(self.data.text[self.texts[rows]])

    def compute_mean_text(self, dtype: Any) -> np.ndarray:
        """Return the mean of the normalized texts, weighted by their numbers of images."""
        sums = (
            self.counts[block] @ self.normalize_texts(block).astype(dtype) for block in self.blocks
        )
        return sum(sums) / self.counts.sum()

    def average_by_text(self, values: np.ndarray) -> np.ndarray:
        """Return the mean of the values of the images of each text, in single precision."""
        sums = [
            self._sum_weighted(lambda images: values[images], block, values.shape[1])
            for block in self.blocks
        ]
        return (np.concatenate(sums) / self.counts[:, None]).astype(np.float32)

    def _iter_sums(self) -> Iterable[np.ndarray]:
        if self._cached_sums is not None:
            return self._cached_sums
        return map(self._sum_images, self.blocks)

    def _sum_images(self, block: slice) -> np.ndarray:
        """Return the sum of the embeddings of the images of each text in a block."""
        directions, image_mean = self.image.directions.numpy(), self.image.mean.numpy()

        def embed(images: np.ndarray) -> np.ndarray:
            features = normalize_rows(self.data.image[images])
            return normalize_rows((features - image_mean) @ directions)

        return self._sum_weighted(embed, block, directions.shape[1])

    def _sum_weighted(self, get_values: Callable, block: slice, width: int) -> np.ndarray:
        """Return the weighted sum of the values of the images of each text in a block."""

        def get_weighted(part: slice) -> np.ndarray:
            return get_values(self._images[part]) * self._weights[part, None]

        return _sum_by_text(get_weighted, self._rows, block, width)


def _select_rows_with_texts(data: PairDataset) -> np.ndarray:
    """Return the rows of the pairs, without texts whose features are zeros and have no cosine."""
    blocks = gen_batches(len(data.text), _TEXT_BLOCK_SIZE)
    is_nonzero = np.concatenate([data.text[block].any(axis=1) for block in blocks])
    rows = np.flatnonzero(is_nonzero[data.pairs[:, 1]])
    return rows if len(rows) else np.arange(len(data.pairs))


def whiten_images(data: PairDataset, whitening: float, n_components: int | None) -> WhitenedMap:
    """Return the whitening of the images of a dataset; see `KernelAligner`."""
    features, pairs = _NormalizedRows(data.image), data.pairs[_select_rows_with_texts(data)]
    if n_components is not None and n_components > features.shape[1]:
        raise ValueError(
            f"n_components must be None or at most {features.shape[1]}, the number of image "
            f"features, not {n_components}."
        )
    rows = np.unique(pairs[:, 0])
    image_mean = compute_mean(features, rows)
    total = compute_covariance(features, features, (rows, rows), (image_mean, image_mean))
    style, weight = _compute_style_covariance(total, features, pairs, image_mean)
    whitening /= 1 + weight * (_STYLE_DIVISOR - 1)
    mixed = (1 - weight) * total + weight * style
    variances, directions = eigh_of_covariance(mixed, features, rows, image_mean)
    variances, directions = variances[::-1], directions[:, ::-1]
    is_varying = variances > _MIN_VARIANCE * max(variances[0], _MIN_VARIANCE)
    if not is_varying.any():  # all images are equal: every embedding is zero
        return WhitenedMap(image_mean, np.zeros((len(image_mean), 1)))
    # The signs of eigenvectors are arbitrary. They are fixed to make results reproducible.
    directions, _ = svd_flip(directions[:, is_varying], None)
    directions /= np.sqrt(variances[is_varying] / variances[0] + whitening)
    if n_components is not None:
        # Directions of style have the largest eigenvalues, but not the largest variance now.
        variances = np.einsum("ij,ij->j", directions, total @ directions)
        directions = directions[:, np.argsort(-variances)[:n_components]]
    return WhitenedMap(image_mean, directions)


def has_stable_whitening(data: PairDataset) -> bool:
    """Return whether a fifth of the images hardly changes the whitening."""
    return data.n_images >= _MIN_IMAGES_PER_FEATURE * data.image.shape[1]


def _compute_style_covariance(
    total: np.ndarray, features: _NormalizedRows, pairs: np.ndarray, image_mean: np.ndarray
) -> tuple[np.ndarray, float]:
    """Return the covariance of images with one caption, with the trace of `total`, and a weight.

    Images with the same caption differ in style, not in what they show. Directions in which they
    differ are divided by more, so that cosines depend less on style.
    """
    _, row, counts = np.unique(pairs[:, 1], return_inverse=True, return_counts=True)
    is_repeated = counts[row] > 1
    n_samples = int(is_repeated.sum() - (counts > 1).sum())  # less one per mean
    if n_samples == 0:
        return total, 0.0
    _, row, counts = np.unique(row[is_repeated], return_inverse=True, return_counts=True)
    images, row = _sort_by_text(pairs[is_repeated], row)
    means = (image_mean, image_mean)
    style = len(images) * compute_covariance(features, features, (images, images), means)
    n_features = len(total)
    for block in gen_batches(len(counts), _TEXT_BLOCK_SIZE):
        sums = _sum_by_text(
            lambda part: features[images[part]] - image_mean, row, block, n_features
        )
        style -= (sums / counts[block, None]).T @ sums
    style /= n_samples
    if style.trace() <= _MIN_VARIANCE * total.trace():  # copies of images
        return total, 0.0
    # A covariance of few samples is inaccurate, so it is shrunk towards `total`: it counts like
    # its samples, and `total` like as many samples as there are features.
    return style * (total.trace() / style.trace()), n_samples / (n_samples + n_features)


def _sum_by_text(
    get_values: Callable[[slice], np.ndarray], rows: np.ndarray, block: slice, width: int
) -> np.ndarray:
    """Return the sum of the values of the pairs of each text in a block of texts.

    `get_values` returns an array of `width` columns for a slice of the pairs, which are sorted by
    text, and `rows` are the texts of all pairs.
    """
    sums = np.zeros((block.stop - block.start, width))
    first, end = np.searchsorted(rows, [block.start, block.stop])
    for start in range(first, end, BLOCK_SIZE):
        part = slice(start, min(start + BLOCK_SIZE, end))
        texts = slice(rows[start] - block.start, rows[part.stop - 1] - block.start + 1)
        sums[texts] += sum_by_group(get_values(part), rows[part] - rows[start])
    return sums


def _sort_by_text(pairs: np.ndarray, row: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the images of pairs and the rows of their texts, sorted by text."""
    order = np.argsort(row, kind="stable")
    return pairs[order, 0], row[order]
