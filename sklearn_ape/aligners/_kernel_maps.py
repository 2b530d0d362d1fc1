"""Kernel ridge regression from texts to whitened images, and the choice of the kernel."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from sklearn.utils import gen_batches

from ..heads import KernelMap, WhitenedMap
from ..training.callbacks import mean_recall
from ..training.data import PairDataset, split_pairs, subset
from ..training.net import embed
from ..utils.linalg import choose_evenly_spaced, normalize_rows
from ._closed_form import BLOCK_SIZE, Maps, Targets, TextFit
from ._kernel_ridge import (
    choose_anchors,
    get_lower_rows,
    kernel,
    measure_available_memory,
    solve_kernel_ridge,
    solve_positive_definite,
)

# Two kernels are compared on a sample of this number of pairs. With fewer pairs, a difference of
# their recalls is mostly chance. The difference varies less if many of the pairs are held out.
_N_COMPARED_PAIRS = 5000
_COMPARED_FRACTION = 0.3

# The wide kernel has a quarter of gamma and twice the ridge. It is better if captions are inexact,
# such as the names of icons: with 16,000 of them, recall on other sets was 18.5 % instead of
# 17.2 %. With exact captions it is worse for broad class names: trained on the emoji of Noto, the
# mean accuracy on five other sets of classes was 17.7 % instead of 20.2 %. So it must gain 2 % of
# the recall of held-out pairs.
_GAMMA_DIVISOR, _RIDGE_FACTOR = 4, 2
_MIN_RELATIVE_GAIN = 0.02

# gamma="scale" is this number divided by the variance of the L2-normalized text features. For the
# captions on which it was chosen, in features of MiniLM, gamma was 8 and the variance 0.85.
_GAMMA_TIMES_VARIANCE = 6.8

# Number of random vectors by which the share of each image in the predictions for its texts is
# estimated. The standard error of a share is at most 0.05.
_N_SIGNS = 96

# The predictions for the training texts may take this share of the available memory, and at least
# those for this number of texts are kept: 0.5 GB with 1,280 image features.
_PREDICTIONS_SHARE = 0.1
_MIN_PREDICTED_TEXTS = 100_000


def make_kernel_maps(
    targets: Targets,
    *,
    gamma: float | str,
    ridge: float,
    seed: int,
    device: torch.device,
    max_texts: int | None = None,
    max_anchors: int | None = None,
    verbose: int | None = 0,
    held_out_texts: Any = (),
    max_predicted_texts: int = 0,
) -> Maps:
    """Return the whitening of `targets`, and a kernel ridge regression from texts to its output.

    If there are more than `max_texts` texts, similar ones are merged. If there are more than
    `max_anchors` then, the Nyström approximation is used.

    `held_out_texts` are sorted rows of the texts. Their embeddings by the solution without them
    are returned, too, if the matrix is decomposed with all texts as anchors. If
    `max_predicted_texts` is not 0, so are the predictions for all anchors, and for other texts
    up to this number; not with the Nyström approximation.
    """
    if gamma == "scale":
        gamma = scale_gamma(targets.compute_mean_text(np.float32))
    gamma = float(gamma)
    shape = (len(targets.data.image), _N_SIGNS if max_predicted_texts else 0)
    image_signs = 2 * np.random.RandomState(seed).randint(2, size=shape, dtype=np.int8) - 1
    predicted_texts = np.empty(0, dtype=np.intp)  # in addition to the anchors
    if max_texts is not None and len(targets.texts) > max_texts:
        all_texts = targets.texts
        targets = _merge_texts(targets, max_texts, gamma, seed, device)
        held_out_texts = ()  # they may be merged with texts that are not held out
        merged_texts = np.setdiff1d(all_texts, targets.texts)
        n_predicted = max(0, max_predicted_texts - max_texts)
        predicted_texts = merged_texts[choose_evenly_spaced(len(merged_texts), n_predicted)]
    regression = _Regression(targets, gamma, ridge, image_signs, device, verbose)
    if max_anchors is None or len(targets.texts) <= max_anchors:
        return regression.solve_exactly(held_out_texts, predicted_texts)
    anchors = choose_anchors(targets.counts, max_anchors, np.random.RandomState(seed))
    return regression.solve_nystroem(targets.normalize_texts(anchors))


def _merge_texts(
    targets: Targets, max_texts: int, gamma: float, seed: int, device: torch.device
) -> Targets:
    """Merge each text with the most similar one of those with most images.

    A prediction is a sum of kernels, so that the prediction for a text is nearly that for the most
    similar text times the kernel of both. Trained on 47,000 icons with different captions, of
    which half were kept, the recall@1 on six other sets was 15.7 %, and 14.9 % without the other
    half. A Nyström approximation that took longer had 15.4 %.
    """
    anchors = choose_anchors(targets.counts, max_texts, np.random.RandomState(seed))
    anchor_features = torch.as_tensor(targets.normalize_texts(anchors)).to(device)
    n_texts = len(targets.texts)
    nearest, factors = np.empty(n_texts, dtype=np.intp), np.empty(n_texts)
    for part in gen_batches(n_texts, BLOCK_SIZE):
        texts = torch.as_tensor(targets.normalize_texts(part)).to(device)
        cosine, row = (texts @ anchor_features.T).max(dim=1)
        nearest[part] = row.cpu().numpy()
        factors[part] = np.exp(gamma * (cosine.cpu().numpy() - 1))
    nearest[anchors], factors[anchors] = np.arange(len(anchors)), 1
    return targets.merge(anchors, nearest, factors)


class _Regression(NamedTuple):
    """Kernel ridge regression from texts to `targets` and to the mean signs of their images.

    `image_signs` are random vectors by which the share of each image in the predictions for its
    texts is estimated. Without columns, the predictions are not returned.
    """

    targets: Targets
    gamma: float
    ridge: float
    image_signs: np.ndarray
    device: torch.device
    verbose: int | None

    def solve_exactly(self, held_out_texts: Any, predicted_texts: np.ndarray) -> Maps:
        """Return the maps with all texts as anchors.

        `predicted_texts` are rows of other texts of the dataset for which predictions are returned
        as well.
        """
        targets, n_out = self.targets, self.targets.image.n_out
        has_signs = self.image_signs.shape[1] > 0
        is_held_out = np.isin(targets.texts, held_out_texts)
        order = np.argsort(is_held_out, kind="stable")  # the held-out texts are last
        n_held_out = int(is_held_out.sum())
        anchors = targets.normalize_texts(order)
        if not anchors.any():  # a single text of zeros with target zero: any anchor will do
            anchors[:, 0] = 1
        # The columns of the right side are the targets, followed by the mean signs if any.
        right = np.concatenate([block_targets for _, block_targets in targets])[order]
        # Dividing the ridge by the number of images of a text weights the text by its images.
        ridges = (self.ridge / targets.counts)[order]
        if has_signs:
            right = np.hstack([right, targets.average_by_text(self.image_signs)[order]])
        solution = solve_kernel_ridge(
            anchors, ridges, right, self.gamma, self.device, self.verbose, n_held_out
        )
        held_out_text = fit = None
        if solution.residuals is not None and n_held_out:
            held_out_text = normalize_rows((right[-n_held_out:] - solution.residuals)[:, :n_out])
        if has_signs:
            # With the inverse of (K + ridges), the predictions K @ inverse @ right are
            # right - ridges * inverse @ right. They replace `right`, to use no more memory.
            right -= ridges[:, None] * solution.coefficients
            if len(predicted_texts):
                right = np.concatenate(
                    [right, self._predict(predicted_texts, anchors, solution.coefficients)]
                )
            texts = np.concatenate([targets.texts[order], predicted_texts])
            predictions, signs = np.split(right, [n_out], axis=1)
            fit = TextFit(texts, predictions, self.image_signs, signs, targets.mean)
        kernel_map = KernelMap(anchors, solution.coefficients[:, :n_out], self.gamma)
        return Maps(targets.image, kernel_map, held_out_text, fit)

    def solve_nystroem(self, anchors: np.ndarray) -> Maps:
        """Return the maps with the coefficients of anchors that fit all texts best."""
        targets, device = self.targets, self.device
        landmarks = torch.as_tensor(anchors).to(device)
        counts = torch.as_tensor(targets.counts).to(device)
        right = torch.zeros(len(anchors), targets.image.n_out, device=device)

        def iter_kernels(block: slice) -> Iterator[tuple[slice, torch.Tensor, torch.Tensor]]:
            for part in gen_batches(block.stop - block.start, BLOCK_SIZE):
                rows = slice(block.start + part.start, block.start + part.stop)
                texts = torch.as_tensor(targets.normalize_texts(rows)).to(device)
                rows_kernel = kernel(texts, landmarks, self.gamma)
                yield part, rows_kernel, (rows_kernel * counts[rows, None]).T

        def make_lower_rows() -> list[torch.Tensor]:
            matrix = kernel(landmarks, landmarks, self.gamma).mul_(self.ridge)
            for block in targets.blocks:
                for _, rows_kernel, weighted in iter_kernels(block):
                    matrix.addmm_(weighted, rows_kernel)
            # Anchors that are nearly equal would make the matrix singular in single precision.
            matrix.diagonal().add_(1e-5 * float(matrix.diagonal().max()))
            return get_lower_rows(matrix)

        for block, block_targets in targets:
            for part, _, weighted in iter_kernels(block):
                right += weighted @ torch.as_tensor(block_targets[part]).to(device)
        coefficients = solve_positive_definite(make_lower_rows, right, self.verbose).coefficients
        return Maps(targets.image, KernelMap(anchors, coefficients, self.gamma))

    def _predict(
        self, texts: np.ndarray, anchors: np.ndarray, coefficients: np.ndarray
    ) -> np.ndarray:
        """Return the predictions for rows of texts of the dataset."""
        kernel_map = KernelMap(anchors, coefficients, self.gamma).to(self.device)
        predictions = np.empty((len(texts), coefficients.shape[1]), dtype=np.float32)
        for part in gen_batches(len(texts), BLOCK_SIZE):
            features = torch.as_tensor(self.targets.data.text[texts[part]]).to(self.device)
            predictions[part] = kernel_map(features).cpu().numpy()
        return predictions


def count_predicted_texts(n_out: int) -> int:
    """Return the number of texts whose predictions are kept while a head is trained on them."""
    n_bytes = _PREDICTIONS_SHARE * measure_available_memory(torch.device("cpu"))
    return max(_MIN_PREDICTED_TEXTS, int(n_bytes / (4 * n_out)))


def scale_gamma(text_mean: np.ndarray) -> float:
    """Return the gamma of "scale", inversely proportional to the variance of the texts.

    The variance of L2-normalized texts is 1 minus the squared norm of their mean.
    """
    # The bound keeps gamma finite if all texts are nearly equal.
    return float(_GAMMA_TIMES_VARIANCE / max(1 - float(text_mean @ text_mean), 1e-3))


def choose_smoothness(
    data: PairDataset,
    image_map: WhitenedMap,
    ridge: float,
    *,
    seed: int,
    **options: Any,
) -> dict[str, Any]:
    """Return the parameters ``gamma`` and ``ridge`` of the better kernel on held-out pairs.

    The first kernel has the `ridge` and the gamma "scale". It is chosen if there are fewer than
    5,000 pairs, otherwise the kernels are compared on a random sample of this number. `seed` and
    `options` are those of `make_kernel_maps`.
    """
    narrow: dict[str, Any] = {"gamma": "scale", "ridge": ridge}
    rows = np.flatnonzero(data.pairs[:, 0] < data.n_images)  # pairs of images, not of prototypes
    if len(rows) < _N_COMPARED_PAIRS:
        return narrow
    rng = np.random.RandomState(seed)
    sample = subset(data, np.sort(rng.permutation(rows)[:_N_COMPARED_PAIRS]))
    split = split_pairs(sample.pairs, _COMPARED_FRACTION, rng)
    if split.valid is None:
        return narrow
    targets = Targets(subset(sample, split.train), image_map)
    valid = subset(sample, split.valid).expand_items()
    modules = [make_kernel_maps(targets, **narrow, seed=seed, **options).make_module()]
    gamma = float(modules[0].text_head.base.gamma)
    wide: dict[str, Any] = {"gamma": gamma / _GAMMA_DIVISOR, "ridge": ridge * _RIDGE_FACTOR}
    modules.append(make_kernel_maps(targets, **wide, seed=seed, **options).make_module())
    image = embed(modules[0], "image", valid.image, "cpu")  # the same for both kernels
    recall, wide_recall = (
        mean_recall(image, embed(module, "text", valid.text, "cpu"), valid.pairs)
        for module in modules
    )
    return wide if wide_recall > (1 + _MIN_RELATIVE_GAIN) * recall else narrow
