"""Canonical correlation analysis of image and text features."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from sklearn.utils import gen_batches
from sklearn.utils.extmath import svd_flip
from torch import nn

from ..persistence.mixins import FittedState
from ..training.data import PairDataset
from ..utils.linalg import (
    compute_covariance,
    compute_mean,
    eigh_of_covariance,
    fingerprint,
    normalize_rows,
)
from ..utils.validation import check_integer, check_number
from ._closed_form import fit_held_out_logit_scale
from ._trained import ClosedFormAligner

# Variances below these shares of the largest variance and of the squared mean are rounding errors.
_MIN_VARIANCE = 1e-10
_MIN_VARIANCE_TO_MEAN = 1e-13
_MIN_CORRELATION = 1e-6
_BLOCK_SIZE = 8192


class _Projection(NamedTuple):
    """Map of features of shape (n, n_features) to L2-normalized embeddings."""

    mean: np.ndarray
    matrix: np.ndarray

    @classmethod
    def from_state(cls, state: FittedState, n_out: int) -> _Projection:
        mean = state.array("mean", (None,))
        return cls(mean, state.array("matrix", (len(mean), n_out)))

    def __call__(self, features: np.ndarray) -> np.ndarray:
        embeddings = np.empty((len(features), self.matrix.shape[1]), dtype=np.float32)
        for rows in gen_batches(len(features), _BLOCK_SIZE):
            embeddings[rows] = normalize_rows((features[rows] - self.mean) @ self.matrix)
        return embeddings


class _ProjectionNetwork(nn.Module):
    """A projection in double precision, as in numpy, for ONNX."""

    mean: torch.Tensor
    matrix: torch.Tensor

    def __init__(self, mean: np.ndarray, matrix: np.ndarray) -> None:
        super().__init__()
        self.register_buffer("mean", torch.from_numpy(mean).double())
        self.register_buffer("matrix", torch.from_numpy(np.ascontiguousarray(matrix)).double())

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        projected = (features.double() - self.mean) @ self.matrix
        norm = projected.norm(dim=1, keepdim=True)
        return (projected / torch.where(norm > 0, norm, 1.0)).float()


@dataclass(eq=False, repr=False, kw_only=True)
class CCAAligner(ClosedFormAligner):
    """Align two frozen encoders by ridge canonical correlation analysis.

    Both sides are projected on the pairs of directions along which images and captions
    correlate most [1]_, each weighted by its correlation [2]_. The fit computes a few
    eigendecompositions and takes seconds.

    Parameters
    ----------
    image_encoder : transformer, str or None, default=None
        Encoder of images. A str is the name of an encoder with default parameters, such as
        ``"efficientnet_lite0"``; see `APEAligner`. If None, X holds features.
    text_encoder : transformer, str or None, default=None
        Encoder of captions. A str is the name of an encoder with default parameters, such as
        ``"all-MiniLM-L6-v2"``; see `APEAligner`. If None, y holds features.
    head_pairs : image encoder, str, HeadPairs or None, default=None
        Additional training pairs from a classification head: an image encoder that has one, or
        `sklearn_ape.encoders.HeadPairs`.
    n_components : int or None, default=None
        Number of canonical directions. The maximum is the smallest of the two numbers of
        features and the number of pairs minus one; None uses the maximum.
    ridge : float, default=1.0
        Constant added to the variances of both sides, as a multiple of their mean variance. The
        default suits up to a few thousand pairs; more pairs need less.
    power : float, default=1.0
        Exponent of the correlations, which are the weights of the directions in the cosine. 0
        is plain CCA.

    Attributes
    ----------
    correlations_ : ndarray of shape (n_components_,)
        Correlations of the directions in the regularized problem, in decreasing order.
    n_components_ : int
        Size of the embeddings: `n_components`, or fewer if the features have a lower rank.
    logit_scale_ : float
        Logit scale (factor of the cosines), fitted on held-out pairs. With fewer than 50 groups of
        pairs that share no image or caption, new images of known captions are held out. With
        fewer than four images it is 1.
    n_parameters_ : int
        Number of parameters of the two projections.
    n_features_in_, n_text_features_in_ : int
        Numbers of image features and of text features.
    feature_names_in_ : ndarray of shape (n_features_in_,)
        Names of the image features, if X is a table with column names.
    image_encoder_, text_encoder_ : transformer
        The fitted encoders, if `image_encoder` or `text_encoder` is set.
    bank_ : Bank
        Embeddings of up to 1,000 training images and captions, by which cosines are standardized.
    fingerprint_ : str
        Digest of the projections.

    See Also
    --------
    ASIFAligner : Compares with the training pairs.
    APEAligner : Trains small heads.

    Notes
    -----
    The embedding of an image or caption whose features exactly equal the mean of the training set
    is zero. If they differ from the mean by rounding errors only, its direction is arbitrary.

    References
    ----------
    .. [1] H. Hotelling, "Relations Between Two Sets of Variates", Biometrika, 1936.
    .. [2] P. Li et al., "CSA: Data-efficient Mapping of Unimodal Features to Multimodal
       Features", ICLR 2025.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn_ape import CCAAligner
    >>> rng = np.random.default_rng(0)
    >>> concepts = rng.standard_normal((300, 8))
    >>> image_features = concepts @ rng.standard_normal((8, 32))
    >>> text_features = concepts @ rng.standard_normal((8, 16))
    >>> aligner = CCAAligner(ridge=0.01).fit(image_features[:200], text_features[:200])
    >>> aligner.n_components_
    8
    >>> aligner.score(image_features[200:], text_features[200:]) > 0.9
    True
    """

    image_encoder: Any = None
    text_encoder: Any = None
    head_pairs: Any = None
    n_components: int | None = None
    ridge: float = 1.0
    power: float = 1.0

    def _fit_data(self, data: PairDataset) -> None:
        largest = min(data.image.shape[1], data.text.shape[1], len(data.pairs) - 1)
        if self.n_components is not None and self.n_components > largest:
            raise ValueError(
                f"n_components must be None or at most {largest} (the smallest of the numbers "
                "of image features, of text features and of pairs minus one), not "
                f"{self.n_components}."
            )
        self._set_projections(*self._solve(data))
        self.logit_scale_ = fit_held_out_logit_scale(data, lambda train: self._solve(train)[:2])

    def _set_projections(
        self, image: _Projection, text: _Projection, correlations: np.ndarray
    ) -> None:
        self._projections = {"image": image, "text": text}
        self.correlations_ = correlations
        self.n_components_ = len(correlations)
        self.n_parameters_ = sum(array.size for array in (*image, *text))
        self.fingerprint_ = fingerprint(*image, *text)

    def _get_learned_state(self) -> dict[str, Any]:
        sides = {side: projection._asdict() for side, projection in self._projections.items()}
        return {**sides, "correlations": self.correlations_}

    def _restore_learned(self, state: FittedState) -> None:
        correlations = state.array("correlations", (None,))
        n_out = len(correlations)
        image, text = (_Projection.from_state(state.part(s), n_out) for s in ("image", "text"))
        self._set_projections(image, text, correlations)
        self.n_features_in_, self.n_text_features_in_ = len(image.mean), len(text.mean)

    def _check_parameters(self) -> None:
        check_integer(self.n_components, "n_components", 1, optional=True)
        check_number(self.ridge, "ridge", 0)
        check_number(self.power, "power", 0)

    def _solve(self, data: PairDataset) -> tuple[_Projection, _Projection, np.ndarray]:
        """Return the projections of both sides and the correlations between them."""
        images, texts = data.pairs.T
        image_mean, text_mean = compute_mean(data.image, images), compute_mean(data.text, texts)
        image_whitening = _compute_whitening(data.image, images, image_mean, self.ridge)
        text_whitening = _compute_whitening(data.text, texts, text_mean, self.ridge)
        cross = compute_covariance(data.image, data.text, (images, texts), (image_mean, text_mean))
        whitened = image_whitening.T @ cross @ text_whitening
        left, correlations, right = np.linalg.svd(whitened, full_matrices=False)
        # The signs of singular vectors are arbitrary. They are fixed to make results reproducible.
        left, right = svd_flip(left, right)
        # A ridge reduces all correlations, also the true ones.
        is_correlated = correlations > _MIN_CORRELATION / (1 + self.ridge)
        # At least one direction, even if all embeddings are zero.
        n_out = max(1, int(is_correlated.sum()))
        n_out = min(n_out, self.n_components or n_out, max(1, len(data.pairs) - 1))
        correlations = np.where(is_correlated, correlations, 0).clip(max=1)
        correlations = correlations[:n_out]
        # Half of the exponent on each side, so that products have the full weight.
        weight = np.where(correlations > 0, correlations ** (self.power / 2), 0)
        return (
            _Projection(image_mean, image_whitening @ left[:, :n_out] * weight),
            _Projection(text_mean, text_whitening @ right[:n_out].T * weight),
            correlations,
        )

    def _embed(self, side: str, features: np.ndarray) -> np.ndarray:
        return self._projections[side](features)

    def _make_network(self, side: str) -> nn.Module:
        """Return the network of one side that `export_onnx` writes."""
        return _ProjectionNetwork(*self._projections[side])


def _compute_whitening(
    features: np.ndarray, rows: np.ndarray, center: np.ndarray, ridge: float
) -> np.ndarray:
    """Return a matrix of shape (n_features, rank) that whitens the features."""
    total = compute_covariance(features, features, (rows, rows), (center, center))
    variances, directions = eigh_of_covariance(total, features, rows, center)
    mean_variance = total.trace() / len(total)
    smallest = max(_MIN_VARIANCE * variances[-1], _MIN_VARIANCE_TO_MEAN * float(center @ center))
    is_varying = variances > smallest
    if not is_varying.any():
        return np.zeros((len(center), 1))
    return directions[:, is_varying] * (variances[is_varying] + ridge * mean_variance) ** -0.5
