"""Cosine similarities in tiles, and their standardization by a bank of embeddings."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple, Self
from weakref import WeakKeyDictionary

import numpy as np
from scipy.sparse import csr_array, issparse
from sklearn.utils import _safe_indexing, get_tags
from sklearn.utils.validation import _num_samples

from ..encoders.images import digest_images
from ..encoders.items import EncodingFailedWarning
from ..features.matrix import is_table, iter_feature_tiles, iter_row_tiles
from ..persistence.mixins import FittedState
from ..utils.concurrency import LRUCache
from ..utils.linalg import choose_evenly_spaced, find_largest_columns
from ..utils.messages import warn
from ..utils.validation import format_list, ignores_underflow
from .fitted_images import digest_exactly
from .wrapper import unwrap_aligner

# Values in place of the index of a text: the probability is below the threshold, or the image is
# unreadable.
UNKNOWN, UNREADABLE = -1, -2

_MAX_BANKS = 4  # per aligner

# A standard deviation of cosines below this is rounding error.
_MIN_STD = 1e-6

# The banks of collections are not stored on the aligners: predicting does not change estimators.
_banks: WeakKeyDictionary[Any, LRUCache[str, Bank]] = WeakKeyDictionary()


def warn_unreadable(
    rows: np.ndarray, n_items: int, consequence: str, *, kind: str = "images", advice: str = ""
) -> None:
    """Warn about the rows of items that could not be read, if there are any."""
    if rows.size:
        warn(
            f"{len(rows)} of {n_items} {kind} could not be read and {consequence}: rows "
            f"{format_list(rows, str)}.{advice}",
            EncodingFailedWarning,
        )


class SparseRows:
    """Sparse embeddings whose products are dense, as `retrieval_ranks` needs them by the tile."""

    def __init__(self, rows: csr_array) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return self.rows.shape[0]

    def __getitem__(self, index: Any) -> SparseRows:
        return SparseRows(self.rows[index])

    @property
    def T(self) -> Any:
        """The transposed embeddings."""
        return self.rows.T

    def __matmul__(self, columns: Any) -> np.ndarray:
        product = self.rows @ columns
        return product.toarray() if issparse(product) else product


class LogitTile(NamedTuple):
    """Logits of a slice of the `n_rows` images.

    The array is reused for the next tile. It may be modified.
    """

    n_rows: int
    rows: slice
    logits: np.ndarray


class LogitTiles:
    """Scaled cosines of images with a fixed set of texts, standardized if there is a bank.

    The aligner may be a Pipeline that ends in one. `classes` are the classes of the texts, which
    are stored for the callers and not used here. `offset` is added to the logits of each text.
    """

    @ignores_underflow
    def __init__(
        self,
        aligner: Any,
        classes: np.ndarray,
        texts: np.ndarray,
        scale: float,
        bank: Bank | None,
        offset: np.ndarray | None = None,
    ) -> None:
        self.aligner = aligner
        self.classes = classes
        self.offset = offset
        self.n_texts, self.n_components = texts.shape
        self.standardizer = None if bank is None else Standardizer(texts, bank, scale)
        # There are fewer texts than images: scaling them once is cheaper than scaling the logits.
        self.columns = (texts if bank is not None else texts * scale).T

    def iter_tiles(self, X: Any) -> Iterator[LogitTile]:
        """Yield the logits of X in tiles, of which there is at least one.

        Features are embedded tile by tile. Images are embedded in a single call, because encoders
        batch them themselves and name unreadable ones by their rows, which are NaN.
        """
        width = max(self.n_texts, self.n_components)
        if is_table(X):
            n_rows = X.shape[0]
            tiles = iter_feature_tiles(X, width, self.aligner.transform)
        else:
            all_embeddings = np.asarray(self.aligner.transform(X))
            n_rows = len(all_embeddings)
            tiles = ((rows, all_embeddings[rows]) for rows in iter_row_tiles(n_rows, width))
        buffer: np.ndarray | None = None
        for rows, embeddings in tiles:
            if buffer is None:
                dtype = np.result_type(embeddings, self.columns)
                buffer = np.empty((len(embeddings), self.n_texts), dtype)
            logits = np.matmul(embeddings, self.columns, out=buffer[: len(embeddings)])
            self._adjust(logits, embeddings)
            yield LogitTile(n_rows, rows, logits)

    @ignores_underflow
    def compute(self, embeddings: Any) -> np.ndarray:
        """Return the logits of images that are already embedded, dense or sparse."""
        logits = np.asarray(embeddings @ self.columns)
        self._adjust(logits, embeddings)
        return logits

    def _adjust(self, logits: np.ndarray, embeddings: Any) -> None:
        if self.standardizer is not None:
            self.standardizer.apply(logits, embeddings)
        if self.offset is not None:
            logits += self.offset

    @ignores_underflow
    def collect(self, X: Any) -> np.ndarray:
        """Return the logits of X as one array of shape (n_samples, n_texts); see `iter_tiles`."""
        collected: np.ndarray | None = None
        for n_rows, rows, logits in self.iter_tiles(X):
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
    """Return the index of the text with the largest logit in each row.

    The index is `UNKNOWN` where the probability is below the threshold, and `UNREADABLE` in rows
    of NaN. The logits are modified.
    """
    best = np.argmax(logits, axis=1)
    is_unreadable = np.isnan(logits[:, 0])
    if threshold is not None:
        best[to_probabilities(logits).max(axis=1) < threshold] = UNKNOWN
    best[is_unreadable] = UNREADABLE
    return best


def choose_top_texts(logits: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the indices of the k most probable texts of each row, and their probabilities."""
    is_unreadable = np.isnan(logits[:, 0])
    logits[is_unreadable] = 0  # NaN cannot be ordered
    texts = find_largest_columns(logits, k)
    # Stable, so that ties are broken by index, as argmax does.
    order = np.argsort(-np.take_along_axis(logits, texts, axis=1), axis=1, kind="stable")
    texts = np.take_along_axis(texts, order, axis=1)
    probabilities = np.take_along_axis(to_probabilities(logits), texts, axis=1)
    texts[is_unreadable], probabilities[is_unreadable] = UNREADABLE, np.nan
    return texts, probabilities


class Bank(NamedTuple):
    """Reference embeddings that cosines are standardized by, dense or `SparseRows`.

    Without texts, cosines are standardized per text only. `std` is the mean standard deviation of
    the cosines of a caption with the images, and of an image with the captions, or NaN without
    captions.
    """

    image: Any
    text: Any
    std: float

    @classmethod
    def from_embeddings(cls, image: Any, text: Any) -> Self:
        """Return the bank of embeddings of images, and of captions or None."""
        if text is None:
            return cls(image, None, np.nan)
        stds = compute_moments(text, image)[1].mean(), compute_moments(image, text)[1].mean()
        return cls(image, text, float(np.mean(stds)))

    def get_state(self) -> dict[str, Any]:
        """Return the bank as plain arrays for saving; "spread" is a key of the file format."""
        return {
            "image": _get_rows_state(self.image),
            "text": _get_rows_state(self.text),
            "spread": float(self.std),
        }

    @classmethod
    def from_state(cls, state: FittedState, n_components: int) -> Self:
        """Return the bank whose `get_state` was saved."""
        image, text = (_restore_rows(state.part(s), n_components) for s in ("image", "text"))
        return cls(image, text, state.number("spread", least=0))


def _get_rows_state(rows: Any) -> dict[str, Any]:
    if isinstance(rows, SparseRows):
        csr = rows.rows
        return {"data": csr.data, "indices": csr.indices, "indptr": csr.indptr}
    return {"dense": np.asarray(rows)}


def _restore_rows(state: FittedState, n_components: int) -> Any:
    if "dense" in state:
        return state.array("dense", (None, n_components))
    data = state.array("data", (None,))
    indices, indptr = (state.array(name, (None,), "i") for name in ("indices", "indptr"))
    shape = (len(indptr) - 1, n_components)
    rows = csr_array((data, indices, indptr), shape=shape)
    rows.check_format(full_check=True)
    return SparseRows(rows)


class Standardizer:
    """Standardizes cosines with a fixed set of texts by a bank.

    By plain cosines, a text that is similar to all images (a hub) ranks first for many of them.
    For an image x and a text t let

        z = (s(x, t) - mean_b s(b, t)) / std_b s(b, t)
            + (s(x, t) - mean_b s(x, b)) / std_b s(x, b),

    where b runs over the images of the bank in the first term and over its captions in the second.
    The result is z / 2 times the mean standard deviation within the bank. It has the scale of a
    centered cosine, so that logit scales and thresholds keep their meaning. Without captions only
    the first term is used, with the mean standard deviation of the texts.

    `scale` is a factor of the result.
    """

    def __init__(self, text: Any, bank: Bank, scale: float = 1.0) -> None:
        self.bank = bank
        self.mean, std = compute_moments(text, bank.image)
        self.scale = scale * (std.mean() if bank.text is None else bank.std / 2)
        self.factor = self.scale / _replace_rounding_errors(std)

    def apply(self, cosines: np.ndarray, image: Any) -> None:
        """Standardize cosines of images with all texts in place. Rows of NaN stay NaN."""
        moments = () if self.bank.text is None else compute_moments(image, self.bank.text)
        self.apply_moments(cosines, [values[:, None] for values in moments])

    @ignores_underflow
    def apply_moments(
        self, cosines: np.ndarray, moments: list[np.ndarray], texts: slice = slice(None)
    ) -> None:
        """Standardize cosines with a slice of the texts in place, one column per text.

        `moments` are the mean and standard deviation of the cosines of the images with the
        captions of the bank, which are broadcast to the cosines. They are empty without captions.
        """
        dtype = cosines.dtype
        mean, factor = self.mean[texts].astype(dtype), self.factor[texts].astype(dtype)
        if moments:
            image_mean = moments[0].astype(dtype)
            image_factor = (self.scale / _replace_rounding_errors(moments[1])).astype(dtype)
        # In small tiles, so that the second term needs no array as large as the cosines.
        for rows in iter_row_tiles(*cosines.shape):
            tile = cosines[rows]
            if moments:
                image_term = tile - image_mean[rows]
                image_term *= image_factor[rows]
            tile -= mean
            tile *= factor
            if moments:
                tile += image_term


def resolve_bank(standardize: Any, estimator: Any) -> Bank | None:
    """Return the bank that a ``standardize`` parameter selects.

    The estimator is an aligner, or a Pipeline that ends in one. False selects no bank and True the
    aligner's ``bank_``. The images of a collection, which the estimator embeds, are combined with
    the captions of ``bank_``. Their embeddings are cached for the lifetime of the aligner, until a
    parameter of the estimator changes.
    """
    aligner = unwrap_aligner(estimator)
    name = type(aligner).__name__
    fitted_bank = getattr(aligner, "bank_", None)
    if isinstance(standardize, bool | np.bool_):
        if standardize and fitted_bank is None:
            advice = ", or fit the aligner again" if get_tags(aligner).requires_fit else ""
            raise ValueError(
                f"standardize=True needs the training images and captions, and this {name} has "
                "not stored any. Pass a collection of images (or their features) like those to be "
                f"compared, standardize=images{advice}."
            )
        return fitted_bank if standardize else None
    check_standardize(standardize)
    n_images = _num_samples(standardize)
    if n_images < 2:
        raise ValueError(
            f"standardize is a collection of {n_images} images, and at least 2 are needed. Pass "
            "some hundreds of images like those to be compared."
        )
    images = _select_rows(standardize, choose_evenly_spaced(n_images))
    # Paths are the same if the files have changed, so the contents of files are digested, too.
    weights = getattr(aligner, "_weights_fingerprint", None)  # of a CLIP model on the hub
    key = digest_exactly(estimator, weights, images, digest_images(images))
    banks = _banks.setdefault(aligner, LRUCache(max_entries=_MAX_BANKS))
    bank = banks.get(key) if key else None
    if bank is None:
        embeddings = drop_missing_rows(estimator.transform(images))
        captions = None if fitted_bank is None else fitted_bank.text
        bank = Bank.from_embeddings(embeddings, captions)
        if key:
            banks.put(key, bank)
    return bank


def check_standardize(standardize: Any) -> None:
    """Raise ValueError unless a ``standardize`` parameter is a bool or a collection."""
    if isinstance(standardize, bool | np.bool_):
        return
    is_rejected = isinstance(standardize, str | bytes | bytearray | dict)
    is_single = getattr(standardize, "ndim", 1) == 0
    has_rows = hasattr(standardize, "__len__") and hasattr(standardize, "__getitem__")
    if is_rejected or is_single or not has_rows:
        raise ValueError(
            "standardize must be True, False or a collection of images (or their features), "
            f"not {standardize!r}."
        )


def _select_rows(collection: Any, rows: np.ndarray) -> Any:
    """Return rows of a list, an array, a table or a column as an object of the same type."""
    # scikit-learn < 1.9 does not support pyarrow, and no version supports an Index of pandas.
    if hasattr(collection, "take") and getattr(collection, "ndim", 1) == 1:
        return collection.take(rows)
    return _safe_indexing(collection, rows.tolist())


def drop_missing_rows(embeddings: Any) -> np.ndarray:
    """Return the embeddings of a bank without rows of NaN; raise ValueError if all are equal."""
    embeddings = np.asarray(embeddings)
    embeddings = embeddings[~np.isnan(embeddings[:, 0])]
    if not len(embeddings) or not np.ptp(embeddings, axis=0).max() > _MIN_STD:
        raise ValueError(
            "standardize needs images that differ, and those of the collection are unreadable or "
            "all the same. Pass images that differ as standardize, or pass standardize=False."
        )
    return embeddings


@ignores_underflow
def compute_moments(embeddings: Any, bank: Any) -> tuple[np.ndarray, np.ndarray]:
    """Return the mean and standard deviation of the cosines of each row with the bank."""
    n_rows = len(embeddings)
    mean, std = np.empty((2, n_rows))
    columns = bank.T
    for rows in iter_row_tiles(n_rows, len(bank)):
        cosines = embeddings[rows] @ columns
        mean[rows] = cosines.mean(axis=1, dtype=np.float64)
        cosines -= mean[rows, None].astype(cosines.dtype)
        # Deviations are small and centered, so float32 is precise enough for their squares.
        std[rows] = np.sqrt(np.einsum("ij,ij->i", cosines, cosines) / len(bank))
    return mean, std


def _replace_rounding_errors(std: np.ndarray) -> np.ndarray:
    """Return standard deviations with infinity in place of rounding errors; NaN stays NaN."""
    return np.where(std <= _MIN_STD, np.inf, std)
