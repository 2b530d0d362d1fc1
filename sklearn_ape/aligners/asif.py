"""ASIF: images and captions compared by what they are similar to, without training."""

from __future__ import annotations

from typing import Any, NamedTuple, Self

import numpy as np
from scipy.sparse import csr_array, vstack
from sklearn.utils import gen_batches

from ..persistence import FittedState
from ..training.data import Pairs
from ..utils.linalg import fingerprint, mean, normalize_rows
from ..utils.sklearn_compat import reports_fit
from ..utils.torch_state import default_state
from ..utils.validation import check_integer, check_number
from ._base import BaseAligner
from ._closed_form import held_out_logit_scale
from .similarity import SparseRows

_TILE_BYTES = 2**26
_ROWS_AT_ONCE = 8192
# Of what is left of a vector of length 1 when the mean is the same up to rounding.
_NO_LENGTH = 1e-6


class ASIFAligner(BaseAligner):
    """Align two frozen encoders by coupled data alone.

    An image is described by its similarity to the images of the training pairs, the anchors;
    a caption by its similarity to their captions. Both descriptions have one number an anchor, so
    they compare. Nothing is trained, and new pairs are added by fitting again [1]_.

    Parameters
    ----------
    image_encoder : transformer, str or None, default=None
        Turns images into features. A str is the name of an encoder with default parameters, such
        as ``"efficientnet_lite0"``; see `APEAligner`. With None, X is features.
    text_encoder : transformer, str or None, default=None
        Turns captions into features. A str is the name of an encoder with default parameters,
        such as ``"all-MiniLM-L6-v2"``; see `APEAligner`. With None, y is features.
    head_pairs : image encoder, str, HeadPairs or None, default=None
        More anchors, from a classification head: an image encoder that has one, or
        `sklearn_ape.encoders.HeadPairs`.
    k : int, default=100
        The anchors kept in a description, those most similar; the others count as zero. All are
        kept when there are fewer.
    power : float, default=6.0
        Similarities are raised to it, so that the nearest anchors count most.
    center : bool, default=True
        Whether the mean of the anchors is taken off all features of length 1 first.

    Attributes
    ----------
    n_components_ : int
        Size of the embeddings, one number a training pair.
    logit_scale_ : float
        Factor of the cosines at which held-out pairs are told apart best.
    n_parameters_ : int
        Numbers kept: the features of the anchors.
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
        Digest of the anchors.

    See Also
    --------
    CCAAligner : Also fitted in closed form, with small embeddings.
    APEAligner : Trains small heads.

    Notes
    -----
    `transform` gives dense arrays, which take 4 bytes a row and anchor: 40 kB an image with
    10,000 pairs. `similarity`, `retrieval_report` and `score` go over sparse ones, k numbers a
    row. An anchor that points away (of negative similarity) counts as zero; where all do, the
    embedding is zero.

    References
    ----------
    .. [1] A. Norelli et al., "ASIF: Coupled Data Turns Unimodal Models to Multimodal Without
       Training", NeurIPS 2023.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn_ape import ASIFAligner
    >>> rng = np.random.default_rng(0)
    >>> concepts = rng.standard_normal((300, 8))
    >>> image_features = concepts @ rng.standard_normal((8, 32))
    >>> text_features = concepts @ rng.standard_normal((8, 16))
    >>> aligner = ASIFAligner().fit(image_features[:200], text_features[:200])
    >>> aligner.transform(image_features[200:]).shape
    (100, 200)
    >>> aligner.score(image_features[200:], text_features[200:]) > 0.3
    True
    """

    def __init__(
        self,
        *,
        image_encoder: Any = None,
        text_encoder: Any = None,
        head_pairs: Any = None,
        k: int = 100,
        power: float = 6.0,
        center: bool = True,
    ) -> None:
        self.image_encoder = image_encoder
        self.text_encoder = text_encoder
        self.head_pairs = head_pairs
        self.k = k
        self.power = power
        self.center = center

    @reports_fit
    def fit(self, X: Any, y: Any) -> Self:
        """Keep pairs of images and captions as anchors.

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
            self._keep(self._anchors_of(data))

            def fit(some: Pairs) -> tuple[Any, Any]:
                image, text = self._anchors_of(some)
                return image.describe, text.describe

            self.logit_scale_ = held_out_logit_scale(data, fit)
            self._keep_bank(data)
        return self

    def _keep(self, anchors: tuple[_Anchors, _Anchors]) -> None:
        self._anchors = anchors
        self.n_components_ = self._n_features_out = len(anchors[0].rows)
        self.n_parameters_ = sum(side.mean.size + side.unit.size for side in anchors)
        # Number and power of the similarities change the embeddings as the anchors do.
        numbers = [np.asarray(part) for side in anchors for part in side]
        self.fingerprint_ = fingerprint(*numbers)

    def _learned_state(self) -> dict[str, Any]:
        return dict(
            zip(("image", "text"), (side._asdict() for side in self._anchors), strict=True)
        )

    def _restore_learned(self, state: FittedState, logit_scale: float) -> tuple[int, int | None]:
        image, text = (_Anchors.restored(state.part(side)) for side in ("image", "text"))
        if len(image.rows) != len(text.rows):
            raise ValueError("Both sides must have as many anchors.")
        self._keep((image, text))
        return len(image.mean), len(text.mean)

    def _check_parameters(self) -> None:
        check_integer(self.k, "k", 1)
        check_number(self.power, "power", 0, closed="neither")
        if not isinstance(self.center, bool | np.bool_):
            raise ValueError(f"center must be True or False, not {self.center!r}.")

    def _anchors_of(self, data: Pairs) -> tuple[_Anchors, _Anchors]:
        images, texts = data.pairs.T
        given = (bool(self.center), min(int(self.k), len(data.pairs)), float(self.power))
        return _Anchors.of(data.image, images, *given), _Anchors.of(data.text, texts, *given)

    def _compared_images(self, features: Any) -> SparseRows:
        return self._anchors[0].describe(features)

    def _compared_texts(self, features: Any) -> SparseRows:
        return self._anchors[1].describe(features)

    def _embed_image(self, features: np.ndarray) -> np.ndarray:
        return self._anchors[0].describe(features).rows.toarray()

    def _embed_text(self, features: np.ndarray) -> np.ndarray:
        return self._anchors[1].describe(features).rows.toarray()


class _Anchors(NamedTuple):
    """One side of the training pairs: distinct features of length 1, and which each pair has."""

    mean: np.ndarray
    unit: np.ndarray
    rows: np.ndarray
    k: int
    power: float

    @classmethod
    def of(cls, features: Any, rows: np.ndarray, center: bool, k: int, power: float) -> _Anchors:
        unit = np.empty(features.shape, dtype=np.float32)
        blocks = list(gen_batches(len(unit), _ROWS_AT_ONCE))
        for some in blocks:
            unit[some] = normalize_rows(features[some])
        middle = mean(unit, rows) if center else np.zeros(features.shape[1])
        middle = middle.astype(np.float32)
        for some in blocks:
            unit[some] = normalize_rows(unit[some] - middle, _NO_LENGTH)
        return cls(middle, unit, rows, k, power)

    @classmethod
    def restored(cls, state: FittedState) -> _Anchors:
        """Return anchors from a file."""
        mean = state.array("mean", (None,))
        unit = state.array("unit", (None, len(mean)))
        rows = state.array("rows", (None,), "i")
        if not len(rows) or rows.min() < 0 or rows.max() >= len(unit):
            raise ValueError(f"{state.where}.rows must be rows of unit.")
        k = state.integer("k", 1, most=len(rows))
        return cls(mean, unit, rows, k, state.number("power", above=0))

    def describe(self, features: Any) -> SparseRows:
        """Return the similarities to the k nearest anchors, to a power and scaled to length 1."""
        tile = max(1, _TILE_BYTES // (8 * len(self.rows)))
        tiles = gen_batches(max(len(features), 1), tile)
        parts = [self._nearest(features[rows]) for rows in tiles]
        return SparseRows(csr_array(vstack(parts)))

    def _nearest(self, features: np.ndarray) -> csr_array:
        centered = normalize_rows(normalize_rows(features) - self.mean, _NO_LENGTH)
        similarity = (centered @ self.unit.T)[:, self.rows]
        nearest = np.argpartition(similarity, -self.k, axis=1)[:, -self.k :]
        # What points away is not similar: an even power would make it so.
        values = np.take_along_axis(similarity, nearest, axis=1).clip(min=0)
        # By the largest first, which high powers of small numbers would lose.
        largest = values.max(axis=1, keepdims=True)
        values = (values / np.where(largest > 0, largest, 1)) ** self.power
        values /= np.where(largest > 0, np.linalg.norm(values, axis=1, keepdims=True), 1)
        ends = np.arange(len(features) + 1) * self.k
        shape = (len(features), len(self.rows))
        return csr_array((values.ravel(), nearest.ravel(), ends), shape=shape)
