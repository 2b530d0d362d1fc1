"""Extension of a fitted aligner by further pairs, for `APEAligner`."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from sklearn.base import clone
from sklearn.frozen import FrozenEstimator
from sklearn.model_selection import GroupKFold
from sklearn.pipeline import make_pipeline
from sklearn.utils.validation import check_is_fitted

from ..encoders.base import FrozenEncoder
from ..encoders.resolve import resolve_encoder
from ..heads import ConcatenatedHead, ExtendedHead, Head, KernelMap, TwoTower
from ..training.data import PairDataset, as_tensor, group_pairs, subset
from ..training.net import embed_pairs
from ..utils.linalg import choose_evenly_spaced, normalize_rows, sum_by_group
from ..utils.messages import make_progress_bar, warn
from ..utils.sklearn_compat import unfreeze
from ._closed_form import RIDGE, WHITENING, Targets, whiten_images
from ._kernel_maps import choose_smoothness, make_kernel_maps, scale_gamma
from ._kernel_ridge import count_fitting_anchors, solve_kernel_ridge
from .wrapper import unwrap

# Factors of the correction and shares of own heads that are compared, and logit scales, of which
# the best is used for each. With a scale of 0, all have the loss of a guess, so that none is
# better if pairs do not match. A full correction is preferred: with weaker ones, recall of foods
# was equal or lower, and the accuracy of classification by names 3 to 6 points lower.
_STRENGTHS = (1.0, 0.5, 0.1)
_OWN_SHARES = (0.0, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7)
_LOGIT_SCALES = (0.0, *(1.5**k for k in range(12)))  # products with float32 stay float32

# With 25 pairs, the share with the least loss lowered recall@1 by up to 2 points.
_MIN_GROUPS = 50

# Number of folds of the cross-validation, which ends after this number of held-out pairs.
_N_FOLDS = 5
_MAX_HELD_OUT = 1000


def resolve_base(init: Any) -> tuple[Any, Any]:
    """Return the fitted aligner that an ``init`` parameter stands for, and its image encoder.

    The steps before the aligner in a Pipeline are a part of the encoder, which may be None.
    """
    if isinstance(init, str) and init == "starter":
        from .starter import load_starter  # which is an APEAligner

        init = load_starter()
    preprocessing, base = unwrap(init, "init")
    # The text head of LiTAligner is a network that takes tokens.
    if not isinstance(getattr(getattr(base, "module_", None), "text_head", None), Head):
        check_is_fitted(
            base,
            msg="init, of the class %(name)s, is not fitted. Fit it first. Where the aligner is "
            "cloned, as in a search, pass init=FrozenEstimator(aligner).",
        )
        raise TypeError(
            f"init must be a fitted APEAligner or KernelAligner, not {type(base).__name__}."
        )
    steps = (preprocessing, getattr(base, "image_encoder_", None))
    encoders = [unfreeze(step) for step in steps if step is not None]
    return base, make_pipeline(*encoders) if len(encoders) > 1 else next(iter(encoders), None)


def choose_encoder(encoder: Any, expected: Any, side: str) -> Any:
    """Return the encoder of a base, with the options of a given encoder.

    None selects the `expected` encoder, that of the base. ValueError is raised if the encoders are
    of different models. If other settings differ, those of the base are used, with a warning.
    Encoders that learn, such as TfidfVectorizer, stay as they were fitted.
    """
    if encoder is not None:
        encoder = resolve_encoder(encoder, side)
    expected = unfreeze(expected)
    if expected is None:
        return encoder
    encoder = unfreeze(encoder)
    if encoder is not None and not _are_same_model(encoder, expected):
        raise ValueError(
            f"{side}_encoder is {encoder!r}, and init was fitted with {expected!r}. Pass "
            f"{side}_encoder=None to use the encoder of init."
        )
    if not isinstance(expected, FrozenEncoder):  # it learns, such as TfidfVectorizer
        return FrozenEstimator(expected)
    if encoder is None:
        return expected
    options = {
        name: value
        for name, value in encoder.get_params(deep=False).items()
        if name in expected._runtime_params or name == "on_error"
    }
    adapted = clone(expected).set_params(**options)
    before, after = (e.get_params(deep=False) for e in (encoder, adapted))
    changes = [f"{name}={after[name]!r}" for name in after if before[name] != after[name]]
    if changes:
        warn(
            f"{side}_encoder is used with {', '.join(changes)}, as init was fitted. Features with "
            f"other settings would not fit. Pass {side}_encoder=None to use the encoder of init."
        )
    return adapted


def _are_same_model(encoder: Any, expected: Any) -> bool:
    if type(encoder) is not type(expected):
        return False
    if isinstance(expected, FrozenEncoder):
        return encoder.model_name == expected.model_name
    # The shown parameters of other encoders determine what they compute.
    return repr(encoder) == repr(expected)


@dataclass
class Extension:
    """Extension of the fitted aligner `base` by pairs of `data`.

    `weight` is the weight of a pair. With `center`, the mean of the image embeddings is
    subtracted: images of one kind, such as line drawings, have a direction in common that does not
    depend on what they show.
    """

    base: Any
    data: PairDataset
    weight: float
    center: bool
    device: torch.device
    verbose: int | None

    def __post_init__(self) -> None:
        _check_sizes(self.base.module_, self.data)
        self._image, self._text = embed_pairs(self.base.module_, self.data)
        self._mean_image = np.zeros_like(self._image[0])
        if self.center:
            self._mean_image = self._image[: self.data.n_images].mean(axis=0)

    def fit(self, pairs: np.ndarray, strength: float, own_share: float) -> TwoTower:
        """Return the corrected base, concatenated with heads that are fitted to the pairs alone.

        `strength` is the factor of the correction, and `own_share` the share of the own heads in
        the cosines.
        """
        base = self.base.module_
        scale, correction = self._fit_correction(pairs)
        if correction is not None:
            correction.coefficients.mul_(strength)
        no_shift = np.zeros_like(self._mean_image)
        corrected = TwoTower(
            ExtendedHead(base.image_head, 1.0, -self._mean_image),
            ExtendedHead(base.text_head, scale, no_shift, correction),
        ).eval()
        if own_share == 0:
            return corrected
        own = self._fit_own_heads(pairs)
        return TwoTower(
            ConcatenatedHead(corrected.image_head, own.image_head, own_share),
            ConcatenatedHead(corrected.text_head, own.text_head, own_share),
        ).eval()

    def choose_parameters(self, own_share: float | None) -> tuple[float, float]:
        """Return the strength of the correction and the own share, which is chosen if it is None.

        Their InfoNCE loss on held-out pairs exceeds the least one by at most a standard error,
        because losses of few pairs are imprecise. Of such values, the least share is chosen, and
        with it the largest strength. With fewer than 50 groups of pairs, they are 1 and 0.
        """
        pairs = self.data.pairs
        groups = group_pairs(pairs)
        rows = np.flatnonzero(pairs[:, 0] < self.data.n_images)  # images rather than prototypes
        if len(np.unique(groups[rows])) < _MIN_GROUPS:
            return _STRENGTHS[0], own_share or 0.0
        shares = _OWN_SHARES if own_share is None else (own_share,)
        losses: list[np.ndarray] = []
        n_held_out = 0
        with make_progress_bar(
            _N_FOLDS, self.verbose, desc="Cross-validating", unit="fold"
        ) as bar:
            for _, valid in GroupKFold(_N_FOLDS).split(rows, groups=groups[rows]):
                train = np.flatnonzero(~np.isin(groups, groups[rows[valid]]))
                losses.append(self._measure_losses(pairs[train], rows[valid], shares))
                bar.update()
                n_held_out += losses[-1].shape[2]
                if n_held_out >= _MAX_HELD_OUT:
                    break
        chosen = _choose_combination(np.concatenate(losses, axis=2))
        share, strength = divmod(chosen, len(_STRENGTHS))  # the inverse of their order
        return _STRENGTHS[strength], shares[share]

    def _measure_losses(
        self, train: np.ndarray, valid: np.ndarray, shares: tuple[float, ...]
    ) -> np.ndarray:
        """Fit to the pairs `train`, and return the InfoNCE losses of the rows `valid` of pairs.

        The array has the shape (n_combinations, n_logit_scales, n_valid). The combinations are
        those of a share and a strength: all strengths with the first share come first.
        """
        valid = valid[choose_evenly_spaced(len(valid), _MAX_HELD_OUT)]
        held_out = subset(self.data, valid)
        images, texts = (np.unique(rows) for rows in self.data.pairs[valid].T)  # as in held_out
        image = normalize_rows(self._image[images] - self._mean_image)
        # As ExtendedHead, but the base, which may be large, is not applied for each strength.
        base_scale, correction = self._fit_correction(train)
        text, change = base_scale * self._text[texts], np.zeros_like(self._text[texts])
        if correction is not None:
            change = correction(as_tensor(np.asarray(self.data.text[texts]))).numpy()
        corrected_cosines = [
            image @ normalize_rows(text + strength * change).T for strength in _STRENGTHS
        ]
        own_cosines = corrected_cosines[0]  # any numbers will do if their share is 0
        if any(shares):
            own_image, own_text = embed_pairs(self._fit_own_heads(train), held_out)
            own_cosines = own_image @ own_text.T
        losses = []
        for share in shares:
            for corrected in corrected_cosines:
                cosines = (1 - share) * corrected + share * own_cosines
                losses.append(
                    [_compute_losses(scale * cosines, held_out.pairs) for scale in _LOGIT_SCALES]
                )
        return np.array(losses)

    def _fit_correction(self, pairs: np.ndarray) -> tuple[float, KernelMap | None]:
        """Return the scale of the base and a correction of its text embeddings.

        The embedding of a text is ``scale * b(t) + k(t, texts) @ coefficients``, where b is the
        base. The scale and, by kernel ridge regression of the rest, the coefficients are fitted to
        the embeddings of the images. The correction is None if all texts are zero.
        """
        # A text of several images is one row with their mean, as in KernelAligner.
        texts, rows, counts = np.unique(pairs[:, 1], return_inverse=True, return_counts=True)
        targets = sum_by_group(self._image[pairs[:, 0]] - self._mean_image, rows) / counts[:, None]
        predictions = self._text[texts]
        # Least squares: the embeddings of the base have unit norm, and their length is not
        # predicted.
        scale = max(0.0, float(counts @ (predictions * targets).sum(axis=1) / counts.sum()))
        anchors = normalize_rows(np.asarray(self.data.text[texts]))
        is_nonzero = anchors.any(axis=1)
        if not is_nonzero.any():
            return scale, None
        gamma = _find_gamma(self.base.module_, anchors, counts)
        coefficients = solve_kernel_ridge(
            anchors[is_nonzero],
            RIDGE / (self.weight * counts[is_nonzero]),
            (targets - scale * predictions)[is_nonzero],
            gamma,
            self.device,
            self.verbose,
        ).coefficients
        return scale, KernelMap(anchors[is_nonzero], coefficients, gamma)

    def _fit_own_heads(self, pairs: np.ndarray) -> TwoTower:
        """Return the heads of a `KernelAligner` of the pairs."""
        data = replace(self.data, pairs=pairs)
        image_map = whiten_images(data, WHITENING, None)
        options: dict[str, Any] = {
            "seed": 0,
            "device": self.device,
            "max_texts": count_fitting_anchors(self.device),
            "verbose": self.verbose,
        }
        options |= choose_smoothness(data, image_map, RIDGE, **options)
        return make_kernel_maps(Targets(data, image_map), **options).make_module()


def _compute_losses(logits: np.ndarray, pairs: np.ndarray) -> np.ndarray:
    """Return the InfoNCE loss of each pair, from the logits of all images and texts."""
    images, texts = pairs.T
    by_image, by_text = (torch.from_numpy(logits).logsumexp(dim=dim).numpy() for dim in (1, 0))
    return (by_image[images] + by_text[texts]) / 2 - logits[images, texts]


def _choose_combination(losses: np.ndarray) -> int:
    """Return the first row whose mean loss exceeds the least one by at most a standard error.

    `losses` are those of `Extension._measure_losses`. Each row is given its best logit scale.
    """
    best_scales = losses.mean(axis=2).argmin(axis=1)
    losses = losses[np.arange(len(losses)), best_scales]
    excess = losses - losses[losses.mean(axis=1).argmin()]
    standard_errors = excess.std(axis=1) / np.sqrt(excess.shape[1])
    return int(np.argmax(excess.mean(axis=1) <= standard_errors))


def _check_sizes(module: TwoTower, data: PairDataset) -> None:
    """Raise ValueError unless the heads of the base take features of these sizes."""
    for side, name, features in (("image", "X", data.image), ("text", "y", data.text)):
        n_expected = getattr(module, f"{side}_head").n_in
        if features.shape[1] != n_expected:
            raise ValueError(
                f"{name} has {features.shape[1]} features, and init was fitted with {n_expected} "
                f"{side} features. Pass features of the encoder that init was fitted with."
            )


def _find_gamma(module: TwoTower, anchors: np.ndarray, counts: np.ndarray) -> float:
    """Return the gamma of the base, or, without a kernel, that of the captions.

    A wide kernel, as the base may have, would change the embeddings of most texts: with 200 emoji
    as own pairs, recall of other emoji was 7 % with a gamma of 3, and 11 % with 8.
    """
    for part in module.text_head.modules():
        if isinstance(part, KernelMap):
            return max(float(part.gamma), scale_gamma(part.anchors.mean(dim=0).numpy()))
    return scale_gamma(counts @ anchors / counts.sum())
