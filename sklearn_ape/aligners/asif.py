"""ASIF: similarities to the training pairs as embeddings, without training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from scipy.sparse import csr_array, vstack
from sklearn.utils import gen_batches

from ..persistence.mixins import FittedState
from ..training.data import PairDataset
from ..utils.linalg import compute_mean, find_largest_columns, fingerprint, normalize_rows
from ..utils.validation import check_boolean, check_integer, check_number
from ._closed_form import fit_held_out_logit_scale
from ._trained import ClosedFormAligner
from .similarity import SparseRows

# Size of the two matrices of similarities of a tile: to distinct features, and to pairs.
_TILE_BYTES = 2**26
_BLOCK_SIZE = 8192
# A normalized vector minus the mean that is shorter than this is rounding error.
_MIN_NORM = 1e-6


@dataclass(eq=False, repr=False, kw_only=True)
class ASIFAligner(ClosedFormAligner):
    """Align two frozen encoders by their similarities to training pairs, without training.

    An image is represented by its similarities to the images of the training pairs (anchors), a
    caption by its similarities to the captions of the training pairs. Both embeddings have one
    value per anchor, so they can be compared. New pairs are added by fitting again, which takes
    seconds [1]_.

    Parameters
    ----------
    image_encoder : transformer, str or None, default=None
        Encoder of images. A str is the name of an encoder with default parameters, such as
        ``"efficientnet_lite0"``; see `APEAligner`. If None, X holds features.
    text_encoder : transformer, str or None, default=None
        Encoder of captions. A str is the name of an encoder with default parameters, such as
        ``"all-MiniLM-L6-v2"``; see `APEAligner`. If None, y holds features.
    head_pairs : image encoder, str, HeadPairs or None, default=None
        Additional anchors from a classification head: an image encoder that has one, or
        `sklearn_ape.encoders.HeadPairs`.
    k : int, default=100
        Number of nearest anchors whose similarities are kept; the remaining ones are set to
        zero. If there are fewer anchors, all are kept. Of anchors that are equally similar, such
        as those of a repeated caption, the first ones are kept.
    power : float, default=6.0
        Exponent of the similarities. Larger values give more weight to the nearest anchors.
    center : bool, default=True
        Whether to subtract the mean of the anchors from the L2-normalized features.

    Attributes
    ----------
    n_components_ : int
        Size of the embeddings: the number of training pairs.
    logit_scale_ : float
        Logit scale (factor of the cosines), fitted on held-out pairs. With fewer than 50 groups of
        pairs that share no image or caption, new images of known captions are held out. With
        fewer than four images it is 1.
    n_parameters_ : int
        Number of stored parameters: the features of the anchors and their means.
    n_features_in_, n_text_features_in_ : int
        Numbers of image features and of text features.
    feature_names_in_ : ndarray of shape (n_features_in_,)
        Names of the image features, if X is a table with column names.
    image_encoder_, text_encoder_ : transformer
        The fitted encoders, if `image_encoder` or `text_encoder` is set.
    bank_ : Bank
        Embeddings of up to 1,000 training images and captions, by which cosines are standardized.
    fingerprint_ : str
        Digest of the anchors.

    See Also
    --------
    CCAAligner : Also fitted in closed form, with small embeddings.
    APEAligner : Trains small heads.

    Notes
    -----
    `transform` returns dense arrays, which take 4 bytes per row and anchor: 40 kB per image with
    10,000 pairs. `similarity`, `retrieval_report` and `score` use sparse arrays with k values
    per row. Negative similarities are set to zero. If all are negative, the embedding is zero.

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

    image_encoder: Any = None
    text_encoder: Any = None
    head_pairs: Any = None
    k: int = 100
    power: float = 6.0
    center: bool = True

    def _fit_data(self, data: PairDataset) -> None:
        self._set_anchors(*self._make_anchors(data))
        self.logit_scale_ = fit_held_out_logit_scale(data, self._make_anchors)

    def _set_anchors(self, image: _Anchors, text: _Anchors) -> None:
        self._anchors = {"image": image, "text": text}
        self.n_components_ = len(image.rows)
        self.n_parameters_ = sum(side.mean.size + side.unit.size for side in (image, text))
        # Includes k and power, which change the embeddings as well.
        self.fingerprint_ = fingerprint(*map(np.asarray, (*image, *text)))

    def _get_learned_state(self) -> dict[str, Any]:
        return {side: anchors._asdict() for side, anchors in self._anchors.items()}

    def _restore_learned(self, state: FittedState) -> None:
        image, text = (_Anchors.from_state(state.part(side)) for side in ("image", "text"))
        if len(image.rows) != len(text.rows):
            raise ValueError(
                f"image.rows has {len(image.rows)} anchors, and text.rows has {len(text.rows)}. "
                "The file is damaged."
            )
        self._set_anchors(image, text)
        self.n_features_in_, self.n_text_features_in_ = len(image.mean), len(text.mean)

    def _check_parameters(self) -> None:
        check_integer(self.k, "k", 1)
        check_number(self.power, "power", 0, closed="neither")
        check_boolean(self.center, "center")

    def _make_anchors(self, data: PairDataset) -> tuple[_Anchors, _Anchors]:
        options = (bool(self.center), min(int(self.k), len(data.pairs)), float(self.power))
        sides = zip((data.image, data.text), data.pairs.T, strict=True)
        image, text = (_Anchors.from_features(side, rows, *options) for side, rows in sides)
        return image, text

    def _embed_comparable(self, side: str, features: Any) -> SparseRows:
        return self._anchors[side](features)

    def _embed(self, side: str, features: np.ndarray) -> np.ndarray:
        return self._embed_comparable(side, features).rows.toarray()


class _Anchors(NamedTuple):
    """One side of the training pairs: L2-normalized distinct features, and their row per pair."""

    mean: np.ndarray
    unit: np.ndarray
    rows: np.ndarray
    k: int
    power: float

    @classmethod
    def from_features(
        cls, features: Any, rows: np.ndarray, center: bool, k: int, power: float
    ) -> _Anchors:
        """Return anchors of the features of one side."""
        unit = np.empty(features.shape, dtype=np.float32)
        blocks = list(gen_batches(len(unit), _BLOCK_SIZE))
        for block in blocks:
            unit[block] = normalize_rows(features[block])
        center_point = compute_mean(unit, rows) if center else np.zeros(features.shape[1])
        center_point = center_point.astype(np.float32)
        for block in blocks:
            unit[block] = normalize_rows(unit[block] - center_point, _MIN_NORM)
        return cls(center_point, unit, rows, k, power)

    @classmethod
    def from_state(cls, state: FittedState) -> _Anchors:
        """Return the anchors of a saved model."""
        mean = state.array("mean", (None,))
        unit = state.array("unit", (None, len(mean)))
        rows = state.array("rows", (None,), "i")
        if not len(rows) or rows.min() < 0 or rows.max() >= len(unit):
            raise ValueError(f"{state.where}.rows must be rows of unit. The file is damaged.")
        k = state.integer("k", 1, most=len(rows))
        return cls(mean, unit, rows, k, state.number("power", above=0))

    def __call__(self, features: Any) -> SparseRows:
        """Return L2-normalized powers of the similarities to the k nearest anchors."""
        size = max(1, _TILE_BYTES // (8 * len(self.rows)))
        tiles = gen_batches(max(len(features), 1), size)
        parts = [self._find_nearest(features[rows]) for rows in tiles]
        return SparseRows(csr_array(vstack(parts)))

    def _find_nearest(self, features: np.ndarray) -> csr_array:
        centered = normalize_rows(normalize_rows(features) - self.mean, _MIN_NORM)
        similarity = (centered @ self.unit.T)[:, self.rows]
        nearest = find_largest_columns(similarity, self.k)
        # Negative similarities are set to zero: an even power would make them positive.
        values = np.take_along_axis(similarity, nearest, axis=1).clip(min=0)
        # Divide by the largest value first, since high powers of small numbers underflow.
        largest = values.max(axis=1, keepdims=True)
        values = (values / np.where(largest > 0, largest, 1)) ** self.power
        values /= np.where(largest > 0, np.linalg.norm(values, axis=1, keepdims=True), 1)
        ends = np.arange(len(features) + 1) * self.k
        shape = (len(features), len(self.rows))
        return csr_array((values.ravel(), nearest.ravel(), ends), shape=shape)
