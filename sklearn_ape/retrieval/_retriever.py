"""Search in a collection of images, by words or by images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import numpy as np
from sklearn.base import BaseEstimator
from sklearn.exceptions import NotFittedError
from sklearn.utils.validation import check_is_fitted

from ..aligners.similarity import Bank, check_standardize, resolve_bank
from ..aligners.wrapper import resolve_aligner, unwrap_aligner
from ..encoders import EncodingFailedWarning
from ..utils.sklearn_compat import DocLinkMixin
from ..utils.validation import check_sequence, format_list
from ..utils.warnings import warn
from ._collection import Collection, Relative, SavedRetriever, embedded, items_of
from ._index import INDEXES, told_apart

if TYPE_CHECKING:
    import pandas as pd


class SearchResult(NamedTuple):
    """The images found for every query, the nearest first.

    Parameters
    ----------
    scores : ndarray of shape (n_queries, k)
        Cosines, or standardised ones. NaN for a query that could not be read.
    indices : ndarray of int, shape (n_queries, k)
        Rows of the collection; -1 for a query that could not be read.
    items : list of n_queries lists
        What stands for these rows: paths, or the entries of y. Empty for a query that could not
        be read.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn_ape.retrieval import SearchResult
    >>> found = SearchResult(np.array([[0.9, 0.2]]), np.array([[4, 1]]), [["a.jpg", "b.jpg"]])
    >>> found.items[0][0]
    'a.jpg'
    >>> found.to_frame(["a red fruit"])
             query  rank  score  index   item
    0  a red fruit     1    0.9      4  a.jpg
    1  a red fruit     2    0.2      1  b.jpg
    """

    scores: np.ndarray
    indices: np.ndarray
    items: list[list[Any]]

    def to_frame(self, queries: Sequence[Any] | None = None) -> pd.DataFrame:
        """Return a table with one row for each image found.

        Parameters
        ----------
        queries : sequence of length n_queries or None, default=None
            What to call the queries; None numbers them.

        Returns
        -------
        table : pandas.DataFrame
            With the columns query, rank (from 1), score, index and item. Queries that could not
            be read have no row.

        Raises
        ------
        ValueError
            When there are not as many queries.
        """
        try:
            import pandas as pd
        except ImportError as error:
            raise ImportError(
                'A table needs pandas: pip install "sklearn-ape[tables]".'
            ) from error
        names = range(len(self.items)) if queries is None else queries
        if len(names) != len(self.items):
            raise ValueError(
                f"queries has {len(names)} entries, and this is the result of {len(self.items)}."
            )
        rows = [
            (name, rank + 1, self.scores[row, rank], self.indices[row, rank], item)
            for row, name in enumerate(names)
            for rank, item in enumerate(self.items[row])
        ]
        return pd.DataFrame(rows, columns=["query", "rank", "score", "index", "item"])


_DTYPES = ("float32", "float16")


class CrossModalRetriever(SavedRetriever, DocLinkMixin, BaseEstimator):
    """Find the images of a collection that are nearest to words, or to other images.

    Parameters
    ----------
    aligner : estimator, str or None, default=None
        A fitted aligner such as `APEAligner`, or a Pipeline that ends in one; it is used as it
        is. The name of a CLIP model, ``"open_clip:ViT-B-32/openai"``, stands for a
        `CLIPAligner`. None is the starter model that ships with the package.
    index : {"exact", "faiss", "usearch"}, default="exact"
        What finds the nearest. ``"exact"`` computes all cosines, some at a time. ``"faiss"``
        does the same in a flat index of faiss. ``"usearch"`` walks a graph (HNSW): much faster
        in large collections, and approximate, so that it can miss images. The latter two are
        in the extra ``index`` and keep a copy of the embeddings.
    standardize : bool or collection of images or features, default=False
        Whether cosines with texts are taken relative to what is usual for the image and for
        the text, which keeps images that are similar to everything from being found by
        everything; see the aligner's ``similarity``. True compares with up to 1,000 of the
        indexed images, and with captions of the aligner's fit; a collection stands in for
        these images. Needs ``index="exact"``. Searches by images are by plain cosine.
    dtype : {"float32", "float16"}, default="float32"
        How embeddings are kept. ``"float16"`` takes half the memory and moves a cosine by up to
        0.0005; searches are exact for the embeddings as they are kept.

    Attributes
    ----------
    aligner_ : estimator
        The aligner used.
    items_ : list of length n_samples_fit_
        What stands for the images in results.
    n_samples_fit_ : int
        How many images were given; `indices` of results count them.
    n_unread_ : int
        How many of them an encoder with ``on_error="nan"`` gave up. They are in no answer.
    n_features_in_ : int
        Width of the features, where the aligner takes features.

    See Also
    --------
    ZeroShotClassifier : Name images, from a given list of names.
    sklearn_ape.curation.find_near_duplicates : Images that are nearly the same.

    Notes
    -----
    `fit` embeds the images; it trains nothing. Words are embedded as they are, without prompt
    templates: search for ``"a photo of a cat"`` where the captions were like that.

    When the aligner is fitted again after `fit`, or a parameter is set that changes its embeddings
    (of an encoder or of another step of its Pipeline), the indexed embeddings are not comparable
    any more. `search`, `add`, `kneighbors` and `save_pretrained` raise ValueError then, as they do
    when `aligner`, `index` or `dtype` is set after `fit`. Call `fit` again. `standardize` may be
    set at any time.

    `save_pretrained` writes the aligner, the embeddings and the items in results, if each item is
    a str, a path (loaded as str), a number, a bool or None. For bytes, dates and other objects it
    warns, and after loading the items are row numbers. The images themselves are not saved. An
    index is built again in loading.

    References
    ----------
    .. [1] Y. Malkov and D. Yashunin, "Efficient and robust approximate nearest neighbor search
       using Hierarchical Navigable Small World graphs", TPAMI 2020.

    Examples
    --------
    >>> from sklearn_ape import CrossModalRetriever
    >>> from sklearn_ape.datasets import load_openmoji
    >>> data = load_openmoji()
    >>> food = [i for i, c in enumerate(data.categories) if c == "Food & Drink"]
    >>> images = [data.images[i] for i in food]
    >>> captions = [data.captions[i] for i in food]
    >>> retriever = CrossModalRetriever().fit(images, captions)
    >>> retriever.search(["an ice cream"], k=2).items
    [['ice cream', 'soft ice cream']]
    >>> retriever.search([images[captions.index("pizza")]], k=1, modality="image").items
    [['pizza']]
    """

    _fit_only = ("aligner", "index", "dtype")

    def __init__(
        self,
        aligner: Any = None,
        *,
        index: str = "exact",
        standardize: Any = False,
        dtype: str = "float32",
    ) -> None:
        self.aligner = aligner
        self.index = index
        self.standardize = standardize
        self.dtype = dtype

    def fit(self, images: Any, y: Any = None) -> Self:
        """Embed and index images.

        Parameters
        ----------
        images : sequence of images, or array-like of shape (n_samples, n_features_in_)
            What the aligner takes. A memory map of features is read some rows at a time.
        y : sequence of length n_samples or None, default=None
            What stands for the images in results, such as ids or captions; it is not learned
            from. None shows the images as they were given, which keeps them in memory, or the
            numbers of the rows where they are features.

        Returns
        -------
        self : object
            The fitted retriever.

        Raises
        ------
        NotFittedError
            When the aligner is not fitted.
        ValueError
            When parameters, images or y cannot be used, or no image can be read.
        """
        self._check_parameters()
        check_sequence(images, "images", "image", "images or features")
        aligner = resolve_aligner(self.aligner)
        texts = unwrap_aligner(aligner)
        _check_aligner_is_fitted(aligner)
        items = items_of(images, y) if y is not None else None
        embeddings = embedded(aligner, images, _width(texts))
        if y is None:
            items = items_of(images, None)
        self._collection = Collection.of(embeddings, items, self.dtype, self.index)
        self._has_y = y is not None
        self.aligner_ = aligner
        self._note_fit()
        return self

    def add(self, images: Any, y: Any = None) -> Self:
        """Embed and index more images, behind those that are there.

        Parameters
        ----------
        images : sequence of images, or array-like of shape (n_samples, n_features_in_)
            As in `fit`.
        y : sequence of length n_samples or None, default=None
            As in `fit`, and given if it was given there.

        Returns
        -------
        self : object
            The retriever, which answers as if it had been fitted on all images at once.

        Raises
        ------
        ValueError
            As `fit` does; the retriever is as before then. Also when y is given here and was not
            in `fit`, or the other way round.
        """
        self._check_ready()
        check_sequence(images, "images", "image", "images or features")
        if (y is not None) != self._has_y:
            raise ValueError(
                "fit was given y, so add needs the y of the new images as well."
                if self._has_y
                else "fit was not given y, so that y has no place here: fit again with y of all."
            )
        before = self._collection
        items = items_of(images, y) if y is not None else None
        embeddings = embedded(self.aligner_, images, before.embeddings.shape[1])
        if y is None:
            items = items_of(images, None)
        if (items is None) != (before.items is None):
            given = ("images", "features") if items is None else ("features", "images")
            raise ValueError(f"fit was given {given[0]}, and add is given {given[1]}.")
        self._collection = before.with_more(embeddings, items)
        return self

    def search(self, queries: Any, k: int = 5, *, modality: str = "auto") -> SearchResult:
        """Find the k nearest images for every query.

        Parameters
        ----------
        queries : sequence of str, sequence of images, or array of features
            Words, or what `fit` takes.
        k : int, default=5
            How many, at most as many as there are images that could be read.
        modality : {"auto", "image", "text"}, default="auto"
            What queries are. ``"auto"`` takes str as text and all else (paths as
            `pathlib.Path`, `PIL.Image`, bytes, arrays) as images or features of images.
            ``"image"`` takes str as paths. ``"text"`` takes str, or features of texts.

        Returns
        -------
        result : SearchResult
            Named tuple of ``scores``, ``indices`` and ``items``, the nearest first; of equals
            the first one of the collection. An image of the collection finds itself first (or
            one that is equal to it).

        Raises
        ------
        ValueError
            When queries, k or modality cannot be used.

        Warns
        -----
        UserWarning
            When a query cannot be read by an encoder with ``on_error="nan"``: its ``indices``
            are -1; and when texts look like paths.
        """
        collection = self._check_ready()
        k = _checked_k(k, "k", collection)
        asked, is_text = told_apart(queries, modality)
        if is_text:
            found = np.asarray(
                unwrap_aligner(self.aligner_).transform_text(asked), dtype=np.float32
            )
        else:
            found = self._embedded_images(asked, collection)
        read = np.flatnonzero(~np.isnan(found[:, 0]))
        relative = self._relative(found[read], collection) if is_text and len(read) else None
        scores = np.full((len(found), k), np.nan, dtype=np.float32)
        indices = np.full((len(found), k), -1, dtype=np.intp)
        if len(read):
            scores[read], indices[read] = collection.nearest(found[read], k, relative)
        if len(read) < len(found):
            _warn_of_unread(np.setdiff1d(np.arange(len(found)), read))
        items = [collection.items_at(row) if row[0] >= 0 else [] for row in indices]
        return SearchResult(scores, indices, items)

    def kneighbors(
        self, X: Any, n_neighbors: int = 5, return_distance: bool = True
    ) -> tuple[np.ndarray, np.ndarray] | np.ndarray:
        """Find the nearest images for images, as scikit-learn's neighbours do.

        Parameters
        ----------
        X : sequence of images, or array-like of shape (n_queries, n_features_in_)
            What `fit` takes; str are paths.
        n_neighbors : int, default=5
            How many, at most as many as there are images that could be read.
        return_distance : bool, default=True
            Whether distances are returned as well.

        Returns
        -------
        distances : ndarray of shape (n_queries, n_neighbors)
            One minus the cosine, as with ``metric="cosine"``; never standardised. Only with
            ``return_distance=True``.
        indices : ndarray of int, shape (n_queries, n_neighbors)
            Rows of the collection, the nearest first.

        Raises
        ------
        ValueError
            When X or n_neighbors cannot be used, or an image cannot be read.
        """
        collection = self._check_ready()
        n_neighbors = _checked_k(n_neighbors, "n_neighbors", collection)
        check_sequence(X, "X", "image", "images or features")
        queries = self._embedded_images(X, collection)
        unread = np.flatnonzero(np.isnan(queries[:, 0]))
        if unread.size:
            raise ValueError(
                f"{len(unread)} images in X could not be read, so that they have no neighbours: "
                f"rows {format_list(unread, str)}. Leave them out, or use search."
            )
        scores, indices = collection.nearest(queries, n_neighbors)
        if not return_distance:
            return indices
        return np.clip(1 - scores, 0, 2), indices

    @property
    def items_(self) -> list[Any]:
        """What stands for the images in results."""
        collection = self._check_ready("items_")
        return collection.items_at(np.arange(collection.n_rows))

    @property
    def n_samples_fit_(self) -> int:
        """How many images were given."""
        return self._check_ready("n_samples_fit_").n_rows

    @property
    def n_unread_(self) -> int:
        """How many images could not be read."""
        collection = self._check_ready("n_unread_")
        return collection.n_rows - len(collection.rows)

    @property
    def n_features_in_(self) -> int:
        """Width of the features that the aligner was fitted on."""
        return self.aligner_.n_features_in_

    @property
    def feature_names_in_(self) -> np.ndarray:
        """Names of the features that the aligner was fitted on."""
        return self.aligner_.feature_names_in_

    def _embedded_images(self, X: Any, collection: Collection) -> np.ndarray:
        return embedded(self.aligner_, X, collection.embeddings.shape[1])

    def _relative(self, texts: np.ndarray, collection: Collection) -> Relative | None:
        """Return what standardises the cosines of texts, if so wished."""
        side = unwrap_aligner(self.aligner_)
        captions = getattr(getattr(side, "bank_", None), "text", None)
        bank: Bank | None
        if isinstance(self.standardize, bool | np.bool_):
            bank = collection.bank(captions) if self.standardize else None
        else:
            bank = resolve_bank(
                self.standardize, side, self.aligner_.transform, whole=self.aligner_
            )
        if bank is None:
            return None
        moments = None if bank.text is None else collection.moments(bank.text)
        return Relative(texts, bank, moments)

    def _check_ready(self, attribute: str | None = None) -> Collection:
        """Return the collection, the one that was there when the call began."""
        collection: Collection | None = getattr(self, "_collection", None)
        if collection is None:
            if attribute is not None:
                raise AttributeError(f"{type(self).__name__} has no {attribute} before fit.")
            check_is_fitted(self)
        if attribute is None:
            self._check_parameters()
            self._check_current()
        assert collection is not None
        return collection

    def _check_parameters(self) -> None:
        for name, choices in (("index", INDEXES), ("dtype", _DTYPES)):
            value = getattr(self, name)
            if value not in choices:
                raise ValueError(f"{name} must be one of {', '.join(choices)}, not {value!r}.")
        check_standardize(self.standardize)
        if self.index != "exact" and self.standardize is not False:
            raise ValueError(
                f"standardize needs index='exact', and index is {self.index!r}: an index finds "
                "what is near by cosine, not by standardised ones."
            )

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "_collection")


def _check_aligner_is_fitted(aligner: Any) -> None:
    try:
        check_is_fitted(aligner)
    except NotFittedError as error:
        raise NotFittedError(
            f"The aligner, {type(aligner).__name__}, is not fitted, and a retriever trains "
            "nothing: call aligner.fit(images, captions) first. (clone() gives back an unfitted "
            "one; sklearn.frozen.FrozenEstimator(aligner) keeps it.)"
        ) from error


def _checked_k(k: Any, name: str, collection: Collection) -> int:
    n_read = len(collection.rows)
    if isinstance(k, bool) or not isinstance(k, int | np.integer) or not 1 <= k <= n_read:
        raise ValueError(
            f"{name} must be an integer from 1 to the number of images indexed, {n_read}, not "
            f"{k!r}."
        )
    return int(k)


def _warn_of_unread(rows: np.ndarray) -> None:
    warn(
        f"{len(rows)} queries could not be read and find nothing: {format_list(rows, str)}.",
        EncodingFailedWarning,
    )


def _width(texts: Any) -> int:
    return int(getattr(texts, "n_components_", 1))
