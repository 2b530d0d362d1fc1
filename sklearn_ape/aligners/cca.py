"""CCA: the directions in which images and captions agree, in closed form."""

from __future__ import annotations

from typing import Any, NamedTuple, Self

import numpy as np
from sklearn.utils import gen_batches
from sklearn.utils.extmath import svd_flip

from ..persistence import FittedState
from ..training.data import Pairs
from ..utils.linalg import covariance, fingerprint, mean
from ..utils.sklearn_compat import reports_fit
from ..utils.torch_state import default_state
from ..utils.validation import check_integer, check_number
from ._base import BaseAligner
from ._closed_form import held_out_logit_scale

# Shares of the largest variance, and of the squared mean, that are rounding errors of features.
_NO_VARIANCE = 1e-10
_NO_VARIANCE_AROUND_MEAN = 1e-13
_NO_CORRELATION = 1e-6
_ROWS_AT_ONCE = 8192


class _Projection(NamedTuple):
    """Maps features of shape (n, n_features) to embeddings of length 1."""

    mean: np.ndarray
    matrix: np.ndarray

    @classmethod
    def restored(cls, state: FittedState, n_out: int) -> _Projection:
        mean = state.array("mean", (None,))
        return cls(mean, state.array("matrix", (len(mean), n_out)))

    def __call__(self, features: np.ndarray) -> np.ndarray:
        embeddings = np.empty((len(features), self.matrix.shape[1]), dtype=np.float32)
        for rows in gen_batches(len(features), _ROWS_AT_ONCE):
            projected = (features[rows] - self.mean) @ self.matrix
            length = np.linalg.norm(projected, axis=1, keepdims=True)
            embeddings[rows] = projected / np.where(length > 0, length, 1)
        return embeddings


class CCAAligner(BaseAligner):
    """Align two frozen encoders by ridge canonical correlation analysis.

    Both sides are projected on the pairs of directions along which images and captions
    correlate most [1]_, each weighted by its correlation [2]_. There is nothing to train: a fit
    is a few eigendecompositions and takes seconds.

    Parameters
    ----------
    image_encoder : transformer, str or None, default=None
        Turns images into features. A str is the name of an encoder with default parameters, such
        as ``"efficientnet_lite0"``; see `APEAligner`. With None, X is features.
    text_encoder : transformer, str or None, default=None
        Turns captions into features. A str is the name of an encoder with default parameters,
        such as ``"all-MiniLM-L6-v2"``; see `APEAligner`. With None, y is features.
    head_pairs : image encoder, str, HeadPairs or None, default=None
        More pairs to fit on, from a classification head: an image encoder that has one, or
        `sklearn_ape.encoders.HeadPairs`.
    n_components : int or None, default=None
        Canonical directions kept; None keeps all, which are as many as the smaller of the two
        widths and of the number of pairs less one.
    ridge : float, default=1.0
        Added to the variances of both sides, as a multiple of their mean variance. The default is
        for a few thousand pairs or fewer; more pairs need less.
    power : float, default=1.0
        The weight of a direction in the cosine is its correlation to this power; 0 is plain CCA.

    Attributes
    ----------
    correlations_ : ndarray of shape (n_components_,)
        Correlations of the directions, from high to low; those of the ridge problem.
    n_components_ : int
        Size of the embeddings: `n_components`, or fewer where the features have a lower rank.
    logit_scale_ : float
        Factor of the cosines at which held-out pairs are told apart best.
    n_parameters_ : int
        Numbers of the two projections.
    n_features_in_ : int
        Width of the image features.
    n_text_features_in_ : int
        Width of the text features.
    image_encoder_, text_encoder_ : transformer
        The encoders used, where they were given.
    bank_ : Bank
        Embeddings of up to 1,000 training images and captions, which `similarity` and
        `ZeroShotClassifier` standardise by.
    fingerprint_ : str
        Digest of the projections.

    See Also
    --------
    ASIFAligner : Compares with the training pairs themselves.
    APEAligner : Trains small heads.

    Notes
    -----
    An image or caption whose features are the mean of the training set lies in no direction:
    its embedding is zero.

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

    def __init__(
        self,
        *,
        image_encoder: Any = None,
        text_encoder: Any = None,
        head_pairs: Any = None,
        n_components: int | None = None,
        ridge: float = 1.0,
        power: float = 1.0,
    ) -> None:
        self.image_encoder = image_encoder
        self.text_encoder = text_encoder
        self.head_pairs = head_pairs
        self.n_components = n_components
        self.ridge = ridge
        self.power = power

    @reports_fit
    def fit(self, X: Any, y: Any) -> Self:
        """Find the canonical directions of pairs of images and captions.

        Parameters
        ----------
        X : sequence of images, or array-like of shape (n_samples, n_features)
            Images if `image_encoder` is set, else features of images.
        y : sequence of length n_samples, or array-like of shape (n_samples, n_text_features)
            With `text_encoder`, a caption or a list of captions for every image. Else features.

        Returns
        -------
        self : object
            The fitted aligner.

        Raises
        ------
        ValueError
            When parameters or data cannot be used; the message names the row and the remedy.
        """
        self._check_parameters()
        with default_state():
            data = self._fit_pairs(X, y)
            most = min(data.image.shape[1], data.text.shape[1], len(data.pairs) - 1)
            if self.n_components is not None and self.n_components > most:
                raise ValueError(
                    f"n_components must be None or at most {most} (the smaller of both widths and "
                    f"of the number of pairs less one), not {self.n_components}."
                )
            self._keep(*self._canonical(data))
            self.logit_scale_ = held_out_logit_scale(data, lambda some: self._canonical(some)[:2])
            self._keep_bank(data)
        return self

    def _keep(self, image: _Projection, text: _Projection, correlations: np.ndarray) -> None:
        self._image_projection, self._text_projection = image, text
        self.correlations_ = correlations
        self.n_components_ = self._n_features_out = len(correlations)
        self.n_parameters_ = sum(array.size for array in (*image, *text))
        self.fingerprint_ = fingerprint(*image, *text)

    def _learned_state(self) -> dict[str, Any]:
        return {
            "image": self._image_projection._asdict(),
            "text": self._text_projection._asdict(),
            "correlations": self.correlations_,
        }

    def _restore_learned(self, state: FittedState, logit_scale: float) -> tuple[int, int | None]:
        correlations = state.array("correlations", (None,))
        n_out = len(correlations)
        image, text = (_Projection.restored(state.part(s), n_out) for s in ("image", "text"))
        self._keep(image, text, correlations)
        return len(image.mean), len(text.mean)

    def _check_parameters(self) -> None:
        check_integer(self.n_components, "n_components", 1, optional=True)
        check_number(self.ridge, "ridge", 0)
        check_number(self.power, "power", 0)

    def _canonical(self, data: Pairs) -> tuple[_Projection, _Projection, np.ndarray]:
        """Return the projections of both sides and the correlations between them."""
        images, texts = data.pairs.T
        image_mean, text_mean = mean(data.image, images), mean(data.text, texts)
        image = _whitening(data.image, images, image_mean, self.ridge)
        text = _whitening(data.text, texts, text_mean, self.ridge)
        shared = covariance(data.image, data.text, (images, texts), (image_mean, text_mean))
        left, correlations, right = np.linalg.svd(image.T @ shared @ text, full_matrices=False)
        left, right = svd_flip(left, right)
        # At least one direction, so that there are embeddings, though they be zero.
        n_kept = max(1, int((correlations > _NO_CORRELATION).sum()))
        n_kept = min(n_kept, self.n_components or n_kept, max(1, len(data.pairs) - 1))
        correlations = np.where(correlations > _NO_CORRELATION, correlations, 0).clip(max=1)
        correlations = correlations[:n_kept]
        # The root on both sides, so that the dot product has the whole weight.
        weight = np.where(correlations > 0, correlations ** (self.power / 2), 0)
        return (
            _Projection(image_mean, image @ left[:, :n_kept] * weight),
            _Projection(text_mean, text @ right[:n_kept].T * weight),
            correlations,
        )

    def _embed_image(self, features: np.ndarray) -> np.ndarray:
        return self._image_projection(features)

    def _embed_text(self, features: np.ndarray) -> np.ndarray:
        return self._text_projection(features)


def _whitening(
    features: np.ndarray, rows: np.ndarray, around: np.ndarray, ridge: float
) -> np.ndarray:
    """Return a matrix (n_features, rank) after which the features have the identity covariance."""
    variances, directions = np.linalg.eigh(
        covariance(features, features, (rows, rows), (around, around))
    )
    total = variances.clip(min=0).mean()
    least = max(_NO_VARIANCE * variances[-1], _NO_VARIANCE_AROUND_MEAN * float(around @ around))
    varies = variances > least
    if not varies.any():
        return np.zeros((len(around), 1))
    return directions[:, varies] * (variances[varies] + ridge * total) ** -0.5
