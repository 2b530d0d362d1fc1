"""Extension of a fitted aligner by further pairs, for `APEAligner`."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from sklearn.base import clone
from sklearn.frozen import FrozenEstimator
from sklearn.model_selection import GroupKFold
from sklearn.utils.validation import check_is_fitted

from ..encoders.base import FrozenEncoder
from ..encoders.resolve import resolve_encoder
from ..heads import ConcatenatedHead, ExtendedHead, KernelMap, TwoTower
from ..training.data import PairDataset, group_pairs, subset
from ..training.net import embed_pairs
from ..utils.linalg import choose_evenly_spaced, normalize_rows, sum_by_group
from ..utils.messages import make_progress_bar, warn
from ..utils.sklearn_compat import unfreeze
from ._closed_form import RIDGE, WHITENING, Targets, whiten_images
from ._kernel_maps import choose_smoothness, make_kernel_maps, scale_gamma
from ._kernel_ridge import count_fitting_anchors, solve_kernel_ridge
from .wrapper import unwrap_aligner

# Shares of own heads that are compared, and logit scales, of which the best is used for each. With
# a scale of 0, all shares have the loss of a guess, so that none is better if pairs do not match.
_OWN_SHARES = (0.0, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7)
_LOGIT_SCALES = (0.0, *1.5 ** np.arange(12))

# With 25 pairs, the share with the least loss lowered recall@1 by up to 2 points.
_MIN_GROUPS = 50

# Number of folds of the cross-validation, which ends after this number of held-out pairs.
_N_FOLDS = 5
_MAX_HELD_OUT = 1000


def resolve_base(init: Any) -> Any:
    """Return the fitted aligner that an ``init`` parameter stands for."""
    if isinstance(init, str) and init == "starter":
        from .starter import load_starter  # which is an APEAligner

        return load_starter()
    base = unwrap_aligner(init, "init")
    if not isinstance(getattr(base, "module_", None), TwoTower):
        check_is_fitted(
            base,
            msg="init, of the class %(name)s, is not fitted. Fit it first. Where the aligner is "
            "cloned, as in a search, pass init=FrozenEstimator(aligner).",
        )
        raise TypeError(
            f"init must be a fitted APEAligner or KernelAligner, not {type(base).__name__}."
        )
    return base


def choose_encoder(encoder: Any, base: Any, side: str) -> Any:
    """Return the encoder whose features the base takes, with the options of a given encoder.

    None selects the encoder of the base. ValueError is raised if the encoders are of different
    models. If other settings differ, those of the base are used, with a warning. Encoders that
    learn, such as TfidfVectorizer, stay as they were fitted.
    """
    if encoder is not None:
        encoder = resolve_encoder(encoder, side)
    expected = unfreeze(getattr(base, f"{side}_encoder_", None))
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

    def fit(self, pairs: np.ndarray, own_share: float) -> TwoTower:
        """Return the corrected base, concatenated with heads that are fitted to the pairs alone.

        `own_share` is the share of these own heads in the cosines.
        """
        if own_share == 0:
            return self._correct_base(pairs)
        base, own = self._correct_base(pairs), self._fit_own_heads(pairs)
        return TwoTower(
            ConcatenatedHead(base.image_head, own.image_head, own_share),
            ConcatenatedHead(base.text_head, own.text_head, own_share),
        ).eval()

    def choose_own_share(self) -> float:
        """Return the least share whose InfoNCE loss on held-out pairs is near the best one.

        The losses differ by at most a standard error: with few pairs they are imprecise. With
        fewer than 50 groups of pairs, the share is 0.
        """
        pairs = self.data.pairs
        groups = group_pairs(pairs)
        rows = np.flatnonzero(pairs[:, 0] < self.data.n_images)  # images rather than prototypes
        if len(np.unique(groups[rows])) < _MIN_GROUPS:
            return 0.0
        losses: list[np.ndarray] = []
        n_held_out = 0
        with make_progress_bar(
            _N_FOLDS, self.verbose, desc="Choosing own_share", unit="fold"
        ) as bar:
            for _, valid in GroupKFold(_N_FOLDS).split(rows, groups=groups[rows]):
                train = np.flatnonzero(~np.isin(groups, groups[rows[valid]]))
                losses.append(self._measure_losses(pairs[train], rows[valid]))
                bar.update()
                n_held_out += losses[-1].shape[2]
                if n_held_out >= _MAX_HELD_OUT:
                    break
        return _choose_share(np.concatenate(losses, axis=2))

    def _measure_losses(self, train: np.ndarray, valid: np.ndarray) -> np.ndarray:
        """Fit to the pairs `train`, and return the losses of the rows `valid` of the pairs."""
        held_out = subset(self.data, valid[choose_evenly_spaced(len(valid), _MAX_HELD_OUT)])
        cosines = []
        for heads in (self._correct_base(train), self._fit_own_heads(train)):
            image, text = embed_pairs(heads, held_out)
            cosines.append(torch.from_numpy(image @ text.T))
        return _compute_losses(cosines, held_out.pairs)

    def _correct_base(self, pairs: np.ndarray) -> TwoTower:
        """Return the heads of the base with a correction that the pairs determine.

        The embedding of a text is ``scale * b(t) + k(t, texts) @ coefficients``, where b is the
        base. The scale and, by kernel ridge regression of the rest, the coefficients are fitted to
        the embeddings of the images.
        """
        module = self.base.module_
        # A text of several images is one row with their mean, as in KernelAligner.
        texts, rows, counts = np.unique(pairs[:, 1], return_inverse=True, return_counts=True)
        targets = sum_by_group(self._image[pairs[:, 0]] - self._mean_image, rows) / counts[:, None]
        predictions = self._text[texts]
        # Least squares: the embeddings of the base have unit norm, and their length is not
        # predicted.
        scale = max(0.0, float(counts @ (predictions * targets).sum(axis=1) / counts.sum()))
        anchors = normalize_rows(np.asarray(self.data.text[texts]))
        is_nonzero = anchors.any(axis=1)
        gamma = _find_gamma(module, anchors, counts)
        correction = None
        if is_nonzero.any():
            coefficients = solve_kernel_ridge(
                anchors[is_nonzero],
                RIDGE / (self.weight * counts[is_nonzero]),
                (targets - scale * predictions)[is_nonzero],
                gamma,
                self.device,
                self.verbose,
            ).coefficients
            correction = KernelMap(anchors[is_nonzero], coefficients, gamma)
        return TwoTower(
            ExtendedHead(module.image_head, 1.0, -self._mean_image),
            ExtendedHead(module.text_head, scale, np.zeros_like(self._mean_image), correction),
        ).eval()

    def _fit_own_heads(self, pairs: np.ndarray) -> TwoTower:
        """Return the heads of a `KernelAligner` of the pairs."""
        data = replace(self.data, pairs=pairs)
        image_map = whiten_images(data, WHITENING, None)
        solve = partial(
            make_kernel_maps,
            seed=0,
            device=self.device,
            max_texts=count_fitting_anchors(self.device),
            verbose=self.verbose,
        )
        smoothness = choose_smoothness(data, image_map, RIDGE, 0, solve)
        return solve(Targets(data, image_map), **smoothness).make_module()


def _compute_losses(cosines: list[torch.Tensor], pairs: np.ndarray) -> np.ndarray:
    """Return the InfoNCE loss of each pair for each share and logit scale.

    `cosines` are those of all images and texts by the base, and by own heads.
    """
    base, own = cosines
    images, texts = pairs.T
    losses = np.empty((len(_OWN_SHARES), len(_LOGIT_SCALES), len(pairs)))
    for i, share in enumerate(_OWN_SHARES):
        for j, scale in enumerate(_LOGIT_SCALES):
            logits = scale * torch.lerp(base, own, share)
            sums = logits.logsumexp(dim=1)[images] + logits.logsumexp(dim=0)[texts]
            losses[i, j] = sums / 2 - logits[images, texts]
    return losses


def _choose_share(losses: np.ndarray) -> float:
    """Return the least share whose mean loss exceeds the least one by at most a standard error."""
    best_scales = losses.mean(axis=2).argmin(axis=1)
    losses = losses[np.arange(len(losses)), best_scales]
    excess = losses - losses[losses.mean(axis=1).argmin()]
    errors = excess.std(axis=1) / np.sqrt(excess.shape[1])
    return _OWN_SHARES[np.argmax(excess.mean(axis=1) <= errors)]


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
