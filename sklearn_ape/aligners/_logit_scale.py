"""The factor of the cosines for aligners that do not learn one."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.sparse import csr_array

from ..training import split_pairs
from ._pairs import Pairs

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


def held_out_logit_scale(data: Pairs, fit: Callable[[Pairs], tuple[Any, Any]]) -> float:
    """Return the logit scale of pairs that were held out of an aligner's fit.

    With too few groups of pairs to hold any out it is that of the training pairs.

    Parameters
    ----------
    data : Pairs
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
    embed_image, embed_text = fit(data._replace(pairs=data.pairs[seen]))
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
