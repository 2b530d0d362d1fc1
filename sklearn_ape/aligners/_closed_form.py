"""Closed-form solutions: ridge regression, choice of the kernel, and the logit scale."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy.linalg import cho_factor, cho_solve
from scipy.optimize import minimize_scalar
from scipy.sparse import csr_array
from sklearn.utils import gen_batches

from ..heads import BaseMap, ClosedFormHead, KernelMap, LinearMap, TwoTower, WhitenedMap
from ..training.callbacks import mean_recall
from ..training.data import PairDataset, Split, split_pairs, subset
from ..training.net import embed, embed_pairs
from ..utils.linalg import (
    choose_evenly_spaced,
    covariance,
    eigh_of_covariance,
    mean,
    normalize_rows,
    sum_by_group,
)
from ._kernel_ridge import (
    choose_anchors,
    count_default_anchors,
    kernel,
    solve_kernel_ridge,
    solve_positive_definite,
)

# Defaults, chosen on held-out folders of Open Clip Art.
RIDGE = 0.3
WHITENING = 0.03

# With many repeated captions, the whitening is divided by this number. Chosen on 16,000 icons: the
# recall on other sets was 17.3 % with 0.01 and 16.8 % with 0.03. With 150 images whose captions
# are not repeated, 0.01 was less accurate than 0.03 for broad names such as "animal".
_STYLE_DIVISOR = 3

# Largest logit scale, as of CLIP. A larger one would make training unstable.
MAX_LOGIT_SCALE = 100.0

# Pairs from which the logit scale is fitted; their matrix of cosines is in memory.
_MAX_SCALE_PAIRS = 2048
_VALIDATION_FRACTION = 0.2

# The whitening of fewer images per feature depends on each of them, so that a logit scale is too
# large if it is fitted on images which the whitening was computed from: 19 instead of 9 with 150
# emoji, but 16.7 instead of 16.6 with 4,000 icons, in features of size 1,280.
_MIN_IMAGES_PER_FEATURE = 3

# Two kernels are compared on a sample of the pairs. With fewer pairs than the minimum, a
# difference of their recalls is mostly chance.
_MIN_COMPARED_PAIRS, _MAX_COMPARED_PAIRS = 5000, 10_000

# The wide kernel has a quarter of gamma and twice the ridge. It is better if captions are inexact,
# such as the names of icons: with 16,000 of them, recall on other sets was 18.5 % instead of
# 17.2 %. With exact captions it is worse for broad class names: trained on the emoji of Noto, the
# mean accuracy on five other sets of classes was 17.7 % instead of 20.2 %. So it must gain 2 % of
# the recall of held-out pairs.
_GAMMA_DIVISOR, _RIDGE_FACTOR = 4, 2
_MIN_RELATIVE_GAIN = 0.02

# Variances below this share of the largest one are rounding error.
_MIN_VARIANCE = 1e-6

# Block sizes. Sums depend on them in their last bits.
_BLOCK_SIZE = 4096
_TEXT_BLOCK_SIZE = 16_384

# gamma="scale" is this number divided by the variance of the L2-normalized text features. For the
# captions on which it was chosen, in features of MiniLM, gamma was 8 and the variance 0.85.
_GAMMA_TIMES_VARIANCE = 6.8


def fit_logit_scale(
    image: Any, text: Any, pairs: np.ndarray, max_scale: float = MAX_LOGIT_SCALE
) -> float:
    """Return the logit scale from 1 to `max_scale` that minimizes the symmetric InfoNCE loss.

    If `max_scale` is below 1, it is the scale.

    Cosines of training pairs are higher than those of new pairs, so a scale that is fitted on them
    is overconfident: pass held-out pairs if possible. `pairs` are rows of L2-normalized embeddings
    of images and of texts. If there are more than 2,048, an evenly spaced sample of them is used.
    """
    pairs = pairs[choose_evenly_spaced(len(pairs), _MAX_SCALE_PAIRS)]
    images, texts = pairs[:, 0], pairs[:, 1]
    cosine = np.asarray(image[images] @ text[texts].T, dtype=np.float64)
    ones = (np.ones(len(pairs), dtype=bool), (images, texts))
    positives = csr_array(ones, shape=(len(image), len(text)))[images][:, texts]
    # The target gives the same weight to each positive of a row, as in InfoNCELoss.
    target = positives.multiply(1 / positives.sum(axis=1)[:, None]).multiply(cosine).sum()
    target += positives.multiply(1 / positives.sum(axis=0)[None]).multiply(cosine).sum()

    def loss(log_scale: float) -> float:
        scale = math.exp(log_scale)
        # Relative to cosine 1, so that exp does not overflow. Scales of at most 100 do not
        # underflow either, since doubles reach down to exp(-700).
        odds = np.exp(scale * (cosine - 1))
        normalizer = np.log(odds.sum(axis=0)).sum() + np.log(odds.sum(axis=1)).sum()
        return float(normalizer + scale * (2 * len(pairs) - target)) / len(pairs)

    if max_scale <= 1:
        return max_scale
    result = minimize_scalar(loss, bounds=(0.0, math.log(max_scale)), method="bounded")
    return math.exp(result.x)


def fit_held_out_logit_scale(
    data: PairDataset,
    fit: Callable[[PairDataset], tuple[Any, Any]],
    max_scale: float = MAX_LOGIT_SCALE,
) -> float:
    """Return the logit scale fitted on pairs that are held out of an aligner's fit.

    A fifth of the pairs is held out, of images rather than prototypes, or the training pairs are
    used if there are too few groups of pairs. `fit` is a function of training pairs that returns
    two functions, which compute L2-normalized embeddings of image features and of text features.
    """
    split = hold_out_pairs(data)
    embed_image, embed_text = fit(replace(data, pairs=data.pairs[split.train]))
    part = subset(data, choose_scale_pairs(data, split))
    return fit_logit_scale(embed_image(part.image), embed_text(part.text), part.pairs, max_scale)


def hold_out_pairs(data: PairDataset) -> Split:
    """Hold out a fifth of the pairs, from which the logit scale is fitted."""
    rows = _select_rows_with_texts(data)
    split = split_pairs(data.pairs[rows], _VALIDATION_FRACTION, np.random.RandomState(0))
    return Split(rows[split.train], None if split.valid is None else rows[split.valid])


def choose_scale_pairs(data: PairDataset, split: Split) -> np.ndarray:
    """Return the rows of the held-out pairs of images from which the logit scale is fitted."""
    rows = split.train
    if split.valid is not None:
        rows = split.valid[data.pairs[split.valid, 0] < data.n_images]
        rows = rows if len(rows) > 1 else split.valid
    return rows[choose_evenly_spaced(len(rows), _MAX_SCALE_PAIRS)]


def make_embedders(module: TwoTower) -> tuple[Callable, Callable]:
    """Return functions that embed image features and text features on the CPU."""
    image, text = (partial(embed, module, side, device="cpu") for side in ("image", "text"))
    return image, text


class Maps(NamedTuple):
    """Maps of image features and text features to the shared space.

    `held_out_text` are embeddings of the held-out texts by the map without these texts.
    """

    image: WhitenedMap
    text: BaseMap
    held_out_text: np.ndarray | None = None

    def make_module(self) -> TwoTower:
        """Return heads that compute the maps."""
        return TwoTower(ClosedFormHead(self.image), ClosedFormHead(self.text)).eval()


def make_kernel_maps(
    data: PairDataset,
    image_map: WhitenedMap,
    *,
    gamma: float | str,
    ridge: float,
    max_anchors: int | str,
    seed: int,
    device: torch.device,
    verbose: int | None = 0,
    held_out_texts: Any = (),
) -> Maps:
    """Return a whitening of images, and a kernel ridge regression from texts to its output.

    `held_out_texts` are sorted rows of the texts. Their embeddings by the solution without them
    are returned, too, if the matrix is decomposed with all texts as anchors.
    """
    targets = _Targets(data, image_map)
    gamma = (
        scale_gamma(targets.compute_mean_text(np.float32)) if gamma == "scale" else float(gamma)
    )
    if max_anchors == "auto":
        max_anchors = count_default_anchors(len(targets.texts), device)
    limit = int(max_anchors)
    if len(targets.texts) <= limit:
        is_held_out = np.isin(targets.texts, held_out_texts)
        order = np.argsort(is_held_out, kind="stable")  # the held-out texts are last
        n_held_out = int(is_held_out.sum())
        anchors = targets.normalize_texts(order)
        if not anchors.any():  # a single text of zeros with target zero: any anchor will do
            anchors[:, 0] = 1
        right = np.concatenate([block_targets for _, block_targets in targets])[order]
        # Dividing the ridge by the number of images of a text weights the text by its images.
        ridges = (ridge / targets.counts)[order]
        solution = solve_kernel_ridge(anchors, ridges, right, gamma, device, verbose, n_held_out)
        text_map = KernelMap(anchors, solution.coefficients, gamma)
        if solution.residuals is None or n_held_out == 0:
            return Maps(image_map, text_map)
        predictions = right[-n_held_out:] - solution.residuals
        return Maps(image_map, text_map, normalize_rows(predictions))
    # Nyström approximation: some of the texts serve as anchors, and all are fitted.
    chosen = choose_anchors(targets.counts, limit, np.random.RandomState(seed))
    anchors = targets.normalize_texts(chosen)
    coefficients = _solve_nystroem(targets, anchors, ridge, gamma, device, verbose)
    return Maps(image_map, KernelMap(anchors, coefficients, gamma))


def _solve_nystroem(
    targets: _Targets,
    anchors: np.ndarray,
    ridge: float,
    gamma: float,
    device: torch.device,
    verbose: int | None,
) -> np.ndarray:
    """Return the coefficients of anchors by which the targets of all texts are fitted best."""
    landmarks = torch.as_tensor(anchors).to(device)
    counts = torch.as_tensor(targets.counts).to(device)
    right = torch.zeros(len(anchors), targets.image.n_out, device=device)

    def iter_kernels(block: slice) -> Iterator[tuple[slice, torch.Tensor, torch.Tensor]]:
        for part in gen_batches(block.stop - block.start, _BLOCK_SIZE):
            rows = slice(block.start + part.start, block.start + part.stop)
            texts = torch.as_tensor(targets.normalize_texts(rows)).to(device)
            rows_kernel = kernel(texts, landmarks, gamma)
            yield part, rows_kernel, (rows_kernel * counts[rows, None]).T

    def make_matrix() -> torch.Tensor:
        matrix = kernel(landmarks, landmarks, gamma).mul_(ridge)
        for block in targets.blocks:
            for _, rows_kernel, weighted in iter_kernels(block):
                matrix.addmm_(weighted, rows_kernel)
        # Anchors that are nearly equal would make the matrix singular in single precision.
        matrix.diagonal().add_(1e-5 * float(matrix.diagonal().max()))
        return matrix

    for block, block_targets in targets:
        for part, _, weighted in iter_kernels(block):
            right += weighted @ torch.as_tensor(block_targets[part]).to(device)
    return solve_positive_definite(make_matrix, right, verbose).coefficients


def make_linear_maps(data: PairDataset, image_map: WhitenedMap, *, ridge: float) -> Maps:
    """Return a whitening of images, and a ridge regression from texts to its output.

    The ridge is relative to the mean variance of a text feature.
    """
    targets = _Targets(data, image_map)
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
    weights = cho_solve(cho_factor(matrix, lower=True), right / total)
    return Maps(image_map, LinearMap(text_mean, weights))


class _NormalizedRows:
    """Features whose rows are L2-normalized when they are read."""

    def __init__(self, features: Any) -> None:
        self.features = features
        self.shape = features.shape

    def __getitem__(self, rows: Any) -> np.ndarray:
        return normalize_rows(self.features[rows])


class _Targets:
    """The regression targets of the distinct texts.

    The target of a text is the mean of the embeddings of its images, minus the mean over all
    pairs. Iterating yields slices of `texts` and their targets, block by block.
    """

    def __init__(self, data: PairDataset, image_map: WhitenedMap) -> None:
        self._data = data
        self.image = image_map
        pairs = data.pairs[_select_rows_with_texts(data)]
        self.texts, row, counts = np.unique(pairs[:, 1], return_inverse=True, return_counts=True)
        self.counts = counts.astype(np.float32)
        self._images, self._row = _sort_by_text(pairs, row)
        self.blocks = list(gen_batches(len(self.texts), _TEXT_BLOCK_SIZE))
        is_single = len(self.blocks) == 1
        self._cached_sums = [self._sum_images(self.blocks[0])] if is_single else None
        self._n_pairs = len(pairs)

    def __iter__(self) -> Iterator[tuple[slice, np.ndarray]]:
        mean_target = sum(sums.sum(axis=0) for sums in self._iter_sums()) / self._n_pairs
        for block, sums in zip(self.blocks, self._iter_sums(), strict=True):
            # In double precision, so that the target of a single text is exactly 0.
            targets = sums / self.counts[block, None]
            targets -= mean_target
            yield block, targets.astype(np.float32)

    def normalize_texts(self, rows: Any) -> np.ndarray:
        """Return L2-normalized features of rows of `texts`."""
        return normalize_rows(self._data.text[self.texts[rows]])

    def compute_mean_text(self, dtype: Any) -> np.ndarray:
        """Return the mean of the normalized texts, weighted by their numbers of images."""
        sums = (
            self.counts[block] @ self.normalize_texts(block).astype(dtype) for block in self.blocks
        )
        return sum(sums) / self.counts.sum()

    def _iter_sums(self) -> Iterable[np.ndarray]:
        if self._cached_sums is not None:
            return self._cached_sums
        return map(self._sum_images, self.blocks)

    def _sum_images(self, block: slice) -> np.ndarray:
        """Return the sum of the embeddings of the images of each text in a block."""
        directions, image_mean = self.image.directions.numpy(), self.image.mean.numpy()

        def embed(images: np.ndarray) -> np.ndarray:
            features = normalize_rows(self._data.image[images])
            return normalize_rows((features - image_mean) @ directions)

        return _sum_by_text(embed, self._images, self._row, block, directions.shape[1])


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
    image_mean = mean(features, rows)
    total = covariance(features, features, (rows, rows), (image_mean, image_mean))
    style, weight = _compute_style_covariance(total, features, pairs, image_mean)
    whitening /= 1 + weight * (_STYLE_DIVISOR - 1)
    mixed = (1 - weight) * total + weight * style
    variances, directions = eigh_of_covariance(mixed, features, rows, image_mean)
    variances, directions = variances[::-1], directions[:, ::-1]
    is_varying = variances > _MIN_VARIANCE * max(variances[0], _MIN_VARIANCE)
    if not is_varying.any():  # all images are equal: every embedding is zero
        return WhitenedMap(image_mean, np.zeros((len(image_mean), 1)))
    directions = directions[:, is_varying]
    # The signs of eigenvectors are arbitrary. They are fixed to make results reproducible.
    largest = np.abs(directions).argmax(axis=0)
    directions *= np.sign(directions[largest, np.arange(directions.shape[1])])
    directions /= np.sqrt(variances[is_varying] / variances[0] + whitening)
    if n_components is not None:
        # Directions of style have the largest eigenvalues, but not the largest variance now.
        variances = np.einsum("ij,ij->j", directions, total @ directions)
        directions = directions[:, np.argsort(-variances, kind="stable")[:n_components]]
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
    style = len(images) * covariance(features, features, (images, images), means)
    n_features = len(total)
    for block in gen_batches(len(counts), _TEXT_BLOCK_SIZE):
        sums = _sum_by_text(
            lambda rows: features[rows] - image_mean, images, row, block, n_features
        )
        style -= (sums / counts[block, None]).T @ sums
    style /= n_samples
    if style.trace() <= _MIN_VARIANCE * total.trace():  # copies of images
        return total, 0.0
    # A covariance of few samples is inaccurate, so it is shrunk towards `total`: it counts like
    # its samples, and `total` like as many samples as there are features.
    return style * (total.trace() / style.trace()), n_samples / (n_samples + n_features)


def _sum_by_text(
    embed: Callable[[np.ndarray], np.ndarray],
    images: np.ndarray,
    row: np.ndarray,
    block: slice,
    width: int,
) -> np.ndarray:
    """Return the sum of the embeddings of the images of each text in a block."""
    sums = np.zeros((block.stop - block.start, width))
    first, end = np.searchsorted(row, [block.start, block.stop])
    for start in range(first, end, _BLOCK_SIZE):
        part = slice(start, min(start + _BLOCK_SIZE, end))
        texts = slice(row[start] - block.start, row[part.stop - 1] - block.start + 1)
        sums[texts] += sum_by_group(embed(images[part]), row[part] - row[start])
    return sums


def _sort_by_text(pairs: np.ndarray, row: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the images of pairs and the rows of their texts, sorted by text."""
    order = np.argsort(row, kind="stable")
    return pairs[order, 0], row[order]


def scale_gamma(text_mean: np.ndarray) -> float:
    """Return the gamma of "scale", inversely proportional to the variance of the texts.

    The variance of L2-normalized texts is 1 minus the squared norm of their mean.
    """
    # The bound keeps gamma finite if all texts are nearly equal.
    return float(_GAMMA_TIMES_VARIANCE / max(1 - float(text_mean @ text_mean), 1e-3))


def choose_smoothness(
    data: PairDataset, ridge: float, seed: int, solve: Callable[..., Maps]
) -> dict[str, Any]:
    """Return the parameters ``gamma`` and ``ridge`` of the better kernel on held-out pairs.

    The first kernel has the `ridge` and the gamma "scale". It is chosen if there are fewer than
    5,000 pairs. The kernels are compared on a random sample of at most 10,000 pairs. `solve` is a
    function of training pairs and the two parameters.
    """
    narrow = {"gamma": "scale", "ridge": ridge}
    rows = np.flatnonzero(data.pairs[:, 0] < data.n_images)  # pairs of images, not of prototypes
    if len(rows) < _MIN_COMPARED_PAIRS:
        return narrow
    rng = np.random.RandomState(seed)
    sample = subset(data, np.sort(rng.permutation(rows)[:_MAX_COMPARED_PAIRS]))
    split = split_pairs(sample.pairs, _VALIDATION_FRACTION, rng)
    if split.valid is None:
        return narrow
    train, valid = subset(sample, split.train), subset(sample, split.valid).expand_items()

    def measure(smoothness: dict[str, Any]) -> tuple[float, float]:
        module = solve(train, **smoothness).make_module()
        recall = mean_recall(*embed_pairs(module, valid), valid.pairs)
        return recall, float(module.text_head.base.gamma)

    recall, gamma = measure(narrow)
    wide = {"gamma": gamma / _GAMMA_DIVISOR, "ridge": ridge * _RIDGE_FACTOR}
    wide_recall, _ = measure(wide)
    return wide if wide_recall > (1 + _MIN_RELATIVE_GAIN) * recall else narrow
