"""Image search by texts or by images."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from typing import Any, Self

import numpy as np
from sklearn.base import BaseEstimator
from sklearn.utils.validation import check_is_fitted

from ..aligners.pairs import holds_images
from ..aligners.similarity import Standardizer, check_standardize, resolve_bank, warn_unreadable
from ..aligners.wrapper import AlignerWrapperMixin, resolve_aligner, unwrap_aligner
from ..persistence.hub import Facts
from ..persistence.mixins import FittedState
from ..utils.validation import (
    check_choice,
    check_count,
    check_number,
    check_sequence,
    format_list,
    to_list,
)
from ._collection import (
    Collection,
    SearchResult,
    embed_images,
    find_items,
    resolve_items,
    resolve_mask,
)
from ._index import INDEXES, resolve_queries, separate_pairs

_DTYPES = ("float32", "float16")

_ALIGNER_NOT_FITTED = (
    "aligner is a %(name)s that is not fitted, and a retriever does not train it. Call "
    "aligner.fit(images, captions) first. (clone() returns an unfitted copy; "
    "sklearn.frozen.FrozenEstimator(aligner) keeps the fit.)"
)


@dataclass(eq=False, repr=False)
class CrossModalRetriever(AlignerWrapperMixin, BaseEstimator):
    """Search a collection of images by texts or by images.

    Parameters
    ----------
    aligner : estimator, str or None, default=None
        A fitted aligner such as `APEAligner`, or a Pipeline that ends in one; it is not fitted
        again. ``"open_clip:ViT-B-32/openai"`` or another name of a CLIP model selects a
        `CLIPAligner`. None selects the starter model that is installed with the package.
    index : {"exact", "faiss", "usearch"}, default="exact"
        Search algorithm. ``"exact"`` and ``"faiss"`` compute all cosines. ``"usearch"`` uses a
        graph (HNSW [1]_), which is much faster in large collections but can miss images. The
        latter two need the extra ``index`` and store a copy of the embeddings.
    standardize : bool or collection of images or features, default=False
        Whether to standardize the cosines of texts with images, so that images that are similar
        to everything are not found for every query. True uses up to 1,000 of the indexed images,
        and captions of the aligner's fit, as reference. A collection replaces these images.
        Requires ``index="exact"``. Searches by images always use plain cosines.
    dtype : {"float32", "float16"}, default="float32"
        Type in which embeddings are stored. ``"float16"`` takes half the memory and changes
        cosines by up to 0.0005.

    Attributes
    ----------
    aligner_ : estimator
        The aligner used.
    items_ : list of length n_samples_fit_
        The objects that results show for the images.
    n_samples_fit_ : int
        Number of images passed to `fit` and `add`, including unreadable ones.
    n_unread_ : int
        Number of images that an encoder with ``on_error="nan"`` could not read. They cannot be
        found.
    n_features_in_, feature_names_in_ : int, ndarray of str
        Number of features, if the aligner takes features, and their names, if they have any.

    See Also
    --------
    ZeroShotClassifier : Classify images by class names.
    sklearn_ape.curation.find_near_duplicates : Find images that are nearly the same.

    Notes
    -----
    `fit` embeds the images and trains nothing. Texts are embedded without prompt templates. If
    the captions of the aligner's fit were like ``"a photo of a cat"``, write queries like that.

    Call `fit` again if `aligner`, `index` or `dtype` was set after `fit`, or if the aligner was
    changed: it was fitted again, or a parameter of its encoders or of a step of its Pipeline was
    set. Until then all methods raise ValueError. `standardize` may be set at any time.

    `save_pretrained` writes the aligner, the embeddings and the items in results, if each item is
    a str, a path (loaded as str), a number, a bool, None or a dict of these. For other objects it
    warns, and after loading the items are row numbers. The images themselves are not saved.

    References
    ----------
    .. [1] Y. Malkov and D. Yashunin, "Efficient and robust approximate nearest neighbor search
       using Hierarchical Navigable Small World graphs", TPAMI 2020.

    Examples
    --------
    >>> from sklearn_ape import CrossModalRetriever
    >>> from sklearn_ape.datasets import load_openmoji
    >>> data = load_openmoji()
    >>> names = ["pizza", "ice cream", "teapot", "soft ice cream"]
    >>> images = [data.images[data.captions.index(name)] for name in names]
    >>> retriever = CrossModalRetriever().fit(images, names)
    >>> retriever.search(["an ice cream"], k=2).items
    [['ice cream', 'soft ice cream']]
    >>> retriever.search(images[:1], k=1, modality="image").items
    [['pizza']]
    >>> retriever.search(["food"], k=1, where=lambda name: "ice" in name).items
    [['ice cream']]
    """

    aligner: BaseEstimator | str | None = None
    _: KW_ONLY
    index: str = "exact"
    standardize: Any = False
    dtype: str = "float32"

    _fit_only = ("aligner", "index", "dtype")

    def fit(self, images: Any, y: Any = None) -> Self:
        """Embed and index images.

        Parameters
        ----------
        images : sequence of images, or array-like of shape (n_samples, n_features_in_)
            Images or features, as the aligner takes them. Features in a memory map are read in
            blocks of rows.
        y : sequence of length n_samples, DataFrame or None, default=None
            Items that results show for the images, such as ids or captions; they are not used
            for training. The rows of a DataFrame become dicts. If None, results show the images as
            they were passed, which are then kept in memory, or row numbers of features.

        Returns
        -------
        self : object
            The fitted retriever.

        Raises
        ------
        NotFittedError
            If the aligner is not fitted.
        ValueError
            If a parameter, the images or y are invalid, or no image can be read.
        """
        self._check_parameters()
        check_sequence(images, "images", "image", "images or features")
        aligner = resolve_aligner(self.aligner)
        unwrap_aligner(aligner)  # an invalid type is reported first
        check_is_fitted(aligner, msg=_ALIGNER_NOT_FITTED)
        embeddings, items = _embed_with_items(aligner, images, y)
        self._collection = Collection.from_embeddings(embeddings, items, self.dtype, self.index)
        self._has_y = y is not None
        self.aligner_ = aligner
        self._note_fit()
        return self

    def add(self, images: Any, y: Any = None) -> Self:
        """Embed and index more images, after those in the collection.

        Parameters
        ----------
        images : sequence of images, or array-like of shape (n_samples, n_features_in_)
            Images or features, as in `fit`.
        y : sequence of length n_samples or None, default=None
            Items that results show for the images. Required if `fit` was called with y, and not
            allowed otherwise.

        Returns
        -------
        self : object
            The retriever. It gives the same results as one that is fitted on all images.

        Raises
        ------
        ValueError
            If the images or y are invalid, or y does not correspond to that of `fit`.

        Warns
        -----
        UserWarning
            If images with the same path or entry of y are in the collection already. They are
            added again.
        """
        collection = self._check_ready()
        check_sequence(images, "images", "image", "images or features")
        if (y is not None) != self._has_y:
            raise ValueError(
                "y is None, and fit was called with y. Pass the y of the new images."
                if self._has_y
                else "y was passed, and fit was called without y. Call fit again with all y."
            )
        embeddings, items = _embed_with_items(self.aligner_, images, y)
        if (items is None) != (collection.items is None):
            kinds = ("images", "features") if items is None else ("features", "images")
            raise ValueError(f"images must be {kinds[0]} as in fit, not {kinds[1]}.")
        self._collection = collection.extend(embeddings, items, self._has_y)
        return self

    def remove(self, items: Any) -> Self:
        """Remove images from the collection.

        Parameters
        ----------
        items : sequence
            Members of `items_`: ids, paths, or row numbers if the collection is of features. All
            images with one of these items are removed.

        Returns
        -------
        self : object
            The retriever. It gives the same results as one that is fitted on the other images,
            and rows are numbered like those.

        Raises
        ------
        ValueError
            If an item is not in the collection, or no image would be left.
        """
        collection = self._check_ready()
        self._collection = collection.remove(find_items(collection, items))
        return self

    def search(
        self,
        queries: Any,
        k: int = 5,
        *,
        modality: str = "auto",
        min_score: float | str | None = None,
        where: Any = None,
    ) -> SearchResult:
        """Find the k nearest images to each query.

        Parameters
        ----------
        queries : sequence of str, sequence of images, array of features, or list of pairs
            Texts, or images or features as in `fit`. Pairs ``(image, text)`` find images that are
            similar to the image and to the text.
        k : int, default=5
            Number of images to find, at most the number of readable images.
        modality : {"auto", "image", "text"}, default="auto"
            Type of the queries. ``"auto"`` treats str as text and everything else (paths as
            `pathlib.Path`, `PIL.Image`, bytes, arrays) as images or features of images.
            ``"image"`` treats str as paths. ``"text"`` takes str, or features of texts. In pairs,
            the first member is an image or its path.
        min_score : float, "auto" or None, default=None
            Images with a lower score are not returned, so that fewer than k images may be
            found. ``"auto"`` compares with the scores that images of the aligner's fit have with
            the query by chance (images of the collection if the aligner stores none).
        where : function, mask of length n_samples_fit_, or None, default=None
            Which images may be found: a function of an item that returns a bool, or one bool per
            image. All cosines are computed in this case, also with an approximate index.

        Returns
        -------
        result : SearchResult
            Named tuple of ``scores``, ``indices`` and ``items``, nearest first; ties are in the
            order of the collection.

        Raises
        ------
        ValueError
            If a parameter or a query is invalid, such as the path of an image as str without
            ``modality="image"``, or the aligner was changed after `fit`.

        Warns
        -----
        UserWarning
            If an encoder with ``on_error="nan"`` cannot read a query, or texts look like paths.
        """
        collection = self._check_ready()
        check_count(k, "k", len(collection.rows), "images indexed")
        if not isinstance(min_score, str) or min_score != "auto":
            check_number(min_score, "min_score, if not 'auto',", -np.inf, optional=True)
        is_candidate = resolve_mask(where, collection)
        embeddings, are_texts = self._embed_queries(queries, modality, collection)
        readable = np.flatnonzero(~np.isnan(embeddings[:, 0]))
        scores = np.full((len(embeddings), k), np.nan, dtype=np.float32)
        indices = np.full((len(embeddings), k), -1, dtype=np.intp)
        n_found = int(k if is_candidate is None else min(k, is_candidate.sum()))
        if len(readable) and n_found:
            query_rows = embeddings[readable]
            standardizer = self._make_standardizer(query_rows, collection) if are_texts else None
            best_scores, best_rows = collection.search(
                query_rows, n_found, standardizer, is_candidate
            )
            if min_score is not None:
                bound = self._compute_bound(min_score, query_rows, collection, standardizer)
                is_low = best_scores < bound
                best_scores[is_low], best_rows[is_low] = np.nan, -1
            scores[readable, :n_found], indices[readable, :n_found] = best_scores, best_rows
        unreadable = np.setdiff1d(np.arange(len(embeddings)), readable)
        warn_unreadable(unreadable, len(embeddings), "have no results", kind="queries")
        items = [collection.get_items(row[row >= 0]) for row in indices]
        return SearchResult(scores, indices, items)

    def kneighbors(
        self, X: Any, n_neighbors: int = 5, return_distance: bool = True
    ) -> tuple[np.ndarray, np.ndarray] | np.ndarray:
        """Find the nearest images to images, as in `sklearn.neighbors`.

        Parameters
        ----------
        X : sequence of images, or array-like of shape (n_queries, n_features_in_)
            Images or features, as in `fit`. Values of type str are paths.
        n_neighbors : int, default=5
            Number of images to find, at most the number of readable images.
        return_distance : bool, default=True
            Whether to return distances as well.

        Returns
        -------
        distances : ndarray of shape (n_queries, n_neighbors)
            Cosine distances (1 - cosine), never standardized. Only returned if
            ``return_distance=True``.
        indices : ndarray of int, shape (n_queries, n_neighbors)
            Rows of the images in the collection, nearest first.

        Raises
        ------
        ValueError
            If `X` or `n_neighbors` is invalid, or an image cannot be read.
        """
        collection = self._check_ready()
        check_count(n_neighbors, "n_neighbors", len(collection.rows), "images indexed")
        check_sequence(X, "X", "image", "images or features")
        queries = embed_images(self.aligner_, X)
        unreadable = np.flatnonzero(np.isnan(queries[:, 0]))
        if unreadable.size:
            raise ValueError(
                f"X has {len(unreadable)} images that could not be read: rows "
                f"{format_list(unreadable, str)}. Leave them out, or use search."
            )
        scores, indices = collection.search(queries, int(n_neighbors))
        if not return_distance:
            return indices
        return np.clip(1 - scores, 0, 2), indices

    @property
    def items_(self) -> list[Any]:
        """Objects that results show for the images."""
        collection = self._get_collection("items_")
        return collection.get_items(np.arange(collection.n_rows))

    @property
    def n_samples_fit_(self) -> int:
        """Number of images passed to `fit` and `add`."""
        return self._get_collection("n_samples_fit_").n_rows

    @property
    def n_unread_(self) -> int:
        """Number of images that could not be read."""
        collection = self._get_collection("n_unread_")
        return collection.n_rows - len(collection.rows)

    def _embed_queries(
        self, queries: Any, modality: str, collection: Collection
    ) -> tuple[np.ndarray, bool]:
        """Return embeddings of queries, and whether the queries are texts."""
        pairs = separate_pairs(queries, modality)
        if pairs is not None:
            images = embed_images(self.aligner_, pairs[0])
            return collection.combine_queries(images, self._embed_texts(pairs[1])), False
        aligner = unwrap_aligner(self.aligner_)
        text_encoder = getattr(aligner, "text_encoder_", None)
        queries, are_texts = resolve_queries(queries, modality, text_encoder)
        if are_texts:
            return self._embed_texts(queries), True
        try:
            return embed_images(self.aligner_, queries), False
        except ValueError as error:
            shape: tuple[int, ...] = getattr(queries, "shape", ())
            n_text = getattr(aligner, "n_text_features_in_", None)
            n_image = getattr(self.aligner_, "n_features_in_", None)
            if modality == "auto" and len(shape) == 2 and shape[1] == n_text != n_image:
                hint = "For features of texts, pass modality='text'."
                raise ValueError(f"{error} {hint}") from error
            raise

    def _embed_texts(self, texts: Any) -> np.ndarray:
        embeddings = unwrap_aligner(self.aligner_).transform_text(texts)
        return np.asarray(embeddings, dtype=np.float32)

    def _compute_bound(
        self, min_score: Any, queries: Any, collection: Collection, standardizer: Any
    ) -> Any:
        """Return the minimum score as a number, or as a column with one number per query."""
        if min_score != "auto":
            return min_score
        bank = getattr(unwrap_aligner(self.aligner_), "bank_", None)
        reference = collection.select_sample() if bank is None else bank.image
        return collection.compute_chance_bounds(queries, reference, standardizer)[:, None]

    def _make_standardizer(self, texts: np.ndarray, collection: Collection) -> Standardizer | None:
        """Return the `Standardizer` of the cosines of texts, or None for plain cosines."""
        if isinstance(self.standardize, bool | np.bool_):
            aligner = unwrap_aligner(self.aligner_)
            captions = getattr(getattr(aligner, "bank_", None), "text", None)
            bank = collection.get_bank(captions) if self.standardize else None
        else:
            bank = resolve_bank(self.standardize, self.aligner_)
        return None if bank is None else Standardizer(texts, bank)

    def _check_ready(self) -> Collection:
        """Check that the retriever is fitted and current, and return its collection.

        A method uses one collection throughout, since another thread may add images meanwhile.
        """
        check_is_fitted(self)
        self._check_parameters()
        self._check_current()
        return self._collection

    def _get_collection(self, attribute: str) -> Collection:
        """Return the collection; AttributeError names the attribute that needs it."""
        if not hasattr(self, "_collection"):
            raise AttributeError(f"{type(self).__name__} has no {attribute} before fit.")
        return self._collection

    def _check_parameters(self) -> None:
        check_choice(self.index, "index", INDEXES)
        check_choice(self.dtype, "dtype", _DTYPES)
        check_standardize(self.standardize)
        if self.index != "exact" and self.standardize is not False:
            raise ValueError(
                f"standardize is not supported with index={self.index!r}, which finds images by "
                "plain cosines. Pass index='exact'."
            )

    def _get_state(self) -> dict[str, Any]:
        fingerprint = getattr(unwrap_aligner(self.aligner_), "fingerprint_", None)
        own_state = {"has_y": self._has_y, "fingerprint": fingerprint}
        return {**super()._get_state(), **self._collection.get_state(), **own_state}

    def _set_state(self, state: FittedState) -> None:
        super()._set_state(state)
        aligner = unwrap_aligner(self.aligner_)
        collection = Collection.from_state(
            state, int(aligner.n_components_), self.dtype, self.index
        )
        has_y = state.boolean("has_y")
        if state.optional("fingerprint") != getattr(aligner, "fingerprint_", None):
            raise ValueError(
                "fingerprint does not match the aligner: its weights or parameters differ from "
                "those that the images were embedded with. Index the images again."
            )
        self._has_y = has_y
        self._collection = collection

    def _get_card_facts(self) -> Facts:
        facts = self._get_aligner_facts()
        facts.what = (
            "Finds the images of a collection that are nearest to texts or to other images. "
            f"It contains their embeddings, not the images. {facts.what}"
        )
        facts.rows = {"images indexed": f"{len(self._collection.rows):,}"} | facts.rows
        facts.usage = "print(model.search(['a red fruit'], k=5).items)"
        return facts

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "_collection")


def _embed_with_items(
    aligner: BaseEstimator, images: Any, y: Any
) -> tuple[np.ndarray, list[Any] | None]:
    """Return embeddings of images, and the items of `fit`; None for row numbers of features."""
    # y is checked before the images are encoded, which takes long. Images that are the items
    # themselves are listed afterwards, so that the encoder reports invalid ones.
    items = None if y is None else resolve_items(images, y)
    embeddings = embed_images(aligner, images)
    if y is None and holds_images(images):
        items = to_list(images)
    return embeddings, items
