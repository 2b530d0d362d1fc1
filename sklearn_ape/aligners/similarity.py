"""Cosine similarities in tiles, and their standardization by a bank of embeddings."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from copy import deepcopy
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import numpy as np
import torch
from scipy.sparse import csr_array, issparse
from sklearn.utils import gen_batches

from ..devices import resolve_device
from ..features.memmap import feature_tiles, is_table, row_tiles
from ..heads import TwoTower
from ..training import embed
from ..utils.concurrency import LRUCache
from ..utils.linalg import evenly_spaced
from ..utils.validation import ignores_underflow
from .fitted_images import exact_digest


def embedded(
    module: TwoTower, side: str, features: Any, device: str | torch.device | None
) -> np.ndarray:
    """Embed features with a module that lies, and stays, on the CPU."""
    where = resolve_device(device)
    if where.type != "cpu":
        module = deepcopy(module).to(where)
    return embed(module, side, features, where)


def make_embedders(module: TwoTower) -> tuple[Callable, Callable]:
    """Return what embeds image features, and text features, on the CPU."""
    return (
        lambda features: embedded(module, "image", features, "cpu"),
        lambda features: embedded(module, "text", features, "cpu"),
    )


class SparseRows:
    """Sparse embeddings; their products are dense, as `retrieval_ranks` wants them, tile by tile.

    Parameters
    ----------
    rows : csr_array of shape (n, n_components)
        Of length 1.
    """

    def __init__(self, rows: csr_array) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return self.rows.shape[0]

    def __getitem__(self, index: Any) -> SparseRows:
        return SparseRows(self.rows[index])

    @property
    def T(self) -> Any:
        """The rows as columns."""
        return self.rows.T

    def __matmul__(self, columns: Any) -> np.ndarray:
        product = self.rows @ columns
        return product.toarray() if issparse(product) else product


# In the place of the number of a text.
UNKNOWN, UNREADABLE = -1, -2


class LogitTile(NamedTuple):
    """Logits of some rows of all; they hold until the next tile, and may be changed."""

    n_rows: int
    rows: slice
    logits: np.ndarray


class LogitTiles:
    """Scaled cosines of images with a fixed set of texts, standardised if there is a bank.

    Parameters
    ----------
    aligner : estimator
        Its `transform` embeds images.
    classes : ndarray of shape (n_texts,)
        What the texts stand for; kept, and not used.
    texts : ndarray of shape (n_texts, n_components)
        Embeddings of length 1.
    scale : float
        Factor of the cosines.
    bank : Bank or None
        What cosines are compared with.
    """

    @ignores_underflow
    def __init__(
        self,
        aligner: Any,
        classes: np.ndarray,
        texts: np.ndarray,
        scale: float,
        bank: Bank | None,
    ) -> None:
        self.aligner = aligner
        self.classes = classes
        self.n_texts, self.n_components = texts.shape
        self.standardizer = None if bank is None else Standardizer(texts, bank, scale)
        # Texts are fewer than images: scaled once, logits need no pass of their own.
        self.columns = (texts if bank is not None else texts * scale).T

    def of(self, X: Any) -> Iterator[LogitTile]:
        """Yield tiles of the logits of X.

        Parameters
        ----------
        X : sequence of images, or array-like of shape (n_samples, n_features)
            Features are embedded by the tile. Images are embedded all at once, as their
            encoders work in batches of their own and name bad ones by their rows.

        Yields
        ------
        tile : LogitTile
            At least one. Rows of NaN where an encoder gave up.
        """
        width = max(self.n_texts, self.n_components)
        if is_table(X):
            n_rows = X.shape[0]
            embedded = feature_tiles(X, width, self.aligner.transform)
        else:
            whole = np.asarray(self.aligner.transform(X))
            n_rows = len(whole)
            embedded = ((rows, whole[rows]) for rows in row_tiles(n_rows, width))
        buffer: np.ndarray | None = None
        for rows, embeddings in embedded:
            if buffer is None:
                dtype = np.result_type(embeddings, self.columns)
                buffer = np.empty((len(embeddings), self.n_texts), dtype)
            logits = np.matmul(embeddings, self.columns, out=buffer[: len(embeddings)])
            if self.standardizer is not None:
                self.standardizer.apply(logits, embeddings)
            yield LogitTile(n_rows, rows, logits)

    @ignores_underflow
    def of_embeddings(self, embeddings: Any) -> np.ndarray:
        """Return the logits of a few images that were embedded before.

        Parameters
        ----------
        embeddings : array of shape (n, n_components)
            Dense or sparse.
        """
        logits = np.asarray(embeddings @ self.columns)
        if self.standardizer is not None:
            self.standardizer.apply(logits, embeddings)
        return logits

    @ignores_underflow
    def collect(self, X: Any) -> np.ndarray:
        """Return the logits of X as one array of shape (n_samples, n_texts).

        Parameters
        ----------
        X : sequence of images, or array-like of shape (n_samples, n_features)
            See `of`.
        """
        collected: np.ndarray | None = None
        for n_rows, rows, logits in self.of(X):
            if collected is None:
                collected = np.empty((n_rows, self.n_texts), logits.dtype)
            collected[rows] = logits
        assert collected is not None
        return collected


def to_probabilities(logits: np.ndarray) -> np.ndarray:
    """Turn logits of shape (n, n_texts) into probabilities in place, and return them."""
    logits -= logits.max(axis=1, keepdims=True)
    np.exp(logits, out=logits)
    logits /= logits.sum(axis=1, keepdims=True)
    return logits


def choose_texts(logits: np.ndarray, threshold: float | None) -> np.ndarray:
    """Return the number of the text with the largest logit in every row.

    `UNKNOWN` where its probability is below the threshold, `UNREADABLE` where
    there are no numbers.
    """
    best = np.argmax(logits, axis=1)
    unread = np.isnan(logits[:, 0])
    if threshold is not None:
        best[to_probabilities(logits).max(axis=1) < threshold] = UNKNOWN
    best[unread] = UNREADABLE
    return best


def choose_top_texts(logits: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the numbers of the k most probable texts of every row, and their probabilities."""
    first = logits.shape[1] - k
    order = np.argpartition(logits, first, axis=1)[:, first:]
    order.sort(axis=1)  # the first one of equals is the first one
    largest = np.take_along_axis(logits, order, axis=1)
    order = np.take_along_axis(order, np.argsort(-largest, axis=1, kind="stable"), axis=1)
    probabilities = np.take_along_axis(to_probabilities(logits), order, axis=1)
    order[np.isnan(logits[:, 0])] = UNREADABLE
    return order, probabilities


_MAX_BANKS = 4


_TILE_BYTES = 2**23


# A standard deviation of cosines below this is their rounding error.
_NO_SPREAD = 1e-6


# Outside the aligners, as predicting must not change an estimator. An aligner's banks are dropped
# with it.
_banks: WeakKeyDictionary[Any, LRUCache[str, Bank]] = WeakKeyDictionary()


class Bank(NamedTuple):
    """Embeddings that others are compared with, and the spread of their cosines.

    Parameters
    ----------
    image : array of shape (n_images, n_components)
        Of length 1, dense or sparse.
    text : array of shape (n_texts, n_components) or None
        None where there are no captions: texts alone are standardised then.
    spread : float
        Mean standard deviation of the cosines of a caption with the images, and of an image
        with the captions; NaN without captions.
    """

    image: Any
    text: Any
    spread: float

    @classmethod
    def of(cls, image: Any, text: Any) -> Bank:
        """Make a bank of embeddings."""
        if text is None:
            return cls(image, None, np.nan)
        spreads = _moments(text, image)[1].mean(), _moments(image, text)[1].mean()
        return cls(image, text, float(np.mean(spreads)))


class Standardizer:
    """Puts cosines with some texts in relation to those with a bank.

    A text that is similar to all images, a hub, comes first for many of them by its cosine.
    With z of an image x and a text t,

        z = (s(x, t) - mean_b s(b, t)) / sd_b s(b, t) + (s(x, t) - mean_b s(x, b)) / sd_b s(x, b),

    over images b of the bank in the first term and captions b in the second, half of z times
    the mean standard deviation within the bank is returned: as large as a cosine less its mean,
    so that a logit scale and a threshold keep their sense.

    Parameters
    ----------
    text : array of shape (n_texts, n_components)
        The embeddings of the texts.
    bank : Bank
        One without captions gives the first term alone, and the spread is that of `text`.
    scale : float, default=1.0
        Factor of the result.
    """

    def __init__(self, text: Any, bank: Bank, scale: float = 1.0) -> None:
        self.bank = bank
        self.middle, spread = _moments(text, bank.image)
        whole = spread.mean() if bank.text is None else bank.spread / 2
        self.scale = scale * whole
        self.factor = self.scale / _divisor(spread)

    @ignores_underflow
    def apply(self, cosines: np.ndarray, image: Any) -> None:
        """Change cosines, of shape (n_images, n_texts), in place.

        Parameters
        ----------
        cosines : ndarray of shape (n_images, n_texts)
            Of floats, and writable.
        image : array of shape (n_images, n_components)
            The embeddings of the images; rows of NaN stay NaN.
        """
        middle, factor = self.middle.astype(cosines.dtype), self.factor.astype(cosines.dtype)
        if self.bank.text is not None:
            own_middle, spread = _moments(image, self.bank.text)
            own_middle = own_middle.astype(cosines.dtype)[:, None]
            own_factor = (self.scale / _divisor(spread)).astype(cosines.dtype)[:, None]
        for rows in _tiles(*cosines.shape):
            some = cosines[rows]
            if self.bank.text is not None:
                second = some - own_middle[rows]
                second *= own_factor[rows]
            some -= middle
            some *= factor
            if self.bank.text is not None:
                some += second


def resolve_bank(
    standardize: Any, aligner: Any, transform: Callable[[Any], Any], whole: Any
) -> Bank | None:
    """Return the bank that a ``standardize`` parameter stands for.

    Parameters
    ----------
    standardize : bool, sequence of images or array-like of shape (n_images, n_features_in_)
        False is no bank, True the aligner's own; of a collection of images the captions are the
        aligner's own, and its embeddings are kept for as long as the aligner lives.
    aligner : aligner
        May have a ``bank_``.
    transform : callable
        Embeds the images of a collection.
    whole : estimator
        What `transform` belongs to: the aligner itself, or a Pipeline around it.

    Raises
    ------
    ValueError
        When there is no such bank; the message says what to pass.
    """
    name = type(aligner).__name__
    own = getattr(aligner, "bank_", None)
    if isinstance(standardize, bool | np.bool_):
        if standardize and own is None:
            raise ValueError(
                f"standardize=True needs images and captions that the aligner was fitted on, "
                f"and this {name} keeps none. Pass a collection of images (or their features) "
                "like those to be compared, standardize=images, or fit the aligner again."
            )
        return own if standardize else None
    check_standardize(standardize)
    n_images = _length(standardize)
    if n_images < 2:
        raise ValueError(
            f"standardize is a collection of {n_images} images, and a bank needs at least 2, "
            "better some hundreds, like those to be compared."
        )
    images = _rows_of(standardize, evenly_spaced(n_images))
    key = exact_digest(whole, images)
    banks = _banks.setdefault(aligner, LRUCache(max_entries=_MAX_BANKS))
    bank = banks.get(key) if key else None
    if bank is None:
        bank = Bank.of(_distinct(transform(images)), own and own.text)
        if key:
            banks.put(key, bank)
    return bank


def check_standardize(standardize: Any) -> None:
    """Refuse what is neither a bool nor a collection."""
    if isinstance(standardize, bool | np.bool_):
        return
    is_single = isinstance(standardize, str | bytes) or getattr(standardize, "ndim", 1) == 0
    has_no_rows = isinstance(standardize, dict | set | frozenset)
    if is_single or has_no_rows or not hasattr(standardize, "__len__"):
        raise ValueError(
            "standardize must be True, False or a collection of images (or their features), "
            f"not {standardize!r}."
        )


def _length(collection: Any) -> int:
    shape = getattr(collection, "shape", None)
    return shape[0] if shape else len(collection)


def _rows_of(collection: Any, rows: np.ndarray) -> Any:
    """Return some rows of a list, an array, a table or a column, as what it is."""
    if hasattr(collection, "iloc"):
        return collection.iloc[rows]
    if hasattr(collection, "to_pylist") and hasattr(collection, "take"):  # pyarrow
        return collection.take(rows)
    if getattr(collection, "shape", None):
        return collection[rows]
    return [collection[int(row)] for row in rows]


def _distinct(embeddings: Any) -> np.ndarray:
    """Leave out images that could not be read; what is left must differ."""
    embeddings = np.asarray(embeddings)
    embeddings = embeddings[~np.isnan(embeddings[:, 0])]
    if not len(embeddings) or not np.ptp(embeddings, axis=0).max() > _NO_SPREAD:
        raise ValueError(
            "standardize is a collection of images that could not be read or are all the same: "
            "a bank needs images that differ."
        )
    return embeddings


@ignores_underflow
def _moments(embeddings: Any, bank: Any) -> tuple[np.ndarray, np.ndarray]:
    """Return the mean and standard deviation of every row's cosines with the bank."""
    n_rows = len(embeddings)
    middle, spread = np.empty((2, n_rows))
    columns = bank.T
    for rows in _tiles(n_rows, len(bank)):
        cosines = embeddings[rows] @ columns
        middle[rows] = cosines.mean(axis=1, dtype=np.float64)
        cosines -= middle[rows, None].astype(cosines.dtype)
        # Of deviations, small numbers around 0, float32 holds the squares well enough.
        spread[rows] = np.sqrt(np.einsum("ij,ij->i", cosines, cosines) / len(bank))
    return middle, spread


def _tiles(n_rows: int, n_columns: int) -> Iterator[slice]:
    """Return slices of rows of which a matrix of so many columns is small."""
    size = max(1, _TILE_BYTES // (4 * max(n_columns, 1)))
    return gen_batches(n_rows, size)


def _divisor(spread: np.ndarray) -> np.ndarray:
    """Return what to divide by: without a spread nothing deviates. NaN stays NaN."""
    return np.where(spread <= _NO_SPREAD, np.inf, spread)
