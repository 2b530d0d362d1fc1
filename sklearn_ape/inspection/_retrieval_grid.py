"""Grid of queries and the images found for them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from numbers import Number
from typing import Any, Self

import numpy as np

from ..utils.validation import check_integer, check_sequence, to_list
from ._plotting import (
    check_items,
    draw_thumbnail,
    format_text,
    get_aligner_and_input,
    get_axes,
    get_images,
)

_QUERY_WIDTH = 1.5  # in units of the width of an image
_RELEVANT_COLOR, _IRRELEVANT_COLOR = "tab:green", "tab:red"


@dataclass(eq=False, repr=False)
class RetrievalGridDisplay:
    """One row per query, with the images found for it and their scores, best first.

    Create it with `from_estimator` or `from_predictions`.

    Parameters
    ----------
    queries : sequence of length n_queries
        Texts or images.
    images : sequence of length n_queries of sequences of images
        Images found for each query.
    scores : ndarray of shape (n_queries, k)
        Similarities, which are written below the images.
    captions : sequence of sequences of str or None, default=None
        Captions, which are also written below the images.
    relevant : ndarray of bool, shape (n_queries, k), or None, default=None
        Whether each image gets a green frame instead of a red one. None draws no frames.

    Attributes
    ----------
    thumbnails_ : list of list of matplotlib.image.AxesImage
        Images found for each query.
    text_ : list of list of matplotlib.text.Text
        Texts below the images.
    query_ : list
        Artist of each query, a text or an image.
    ax_, figure_ : matplotlib.axes.Axes, matplotlib.figure.Figure
        Axes and figure of the display.

    See Also
    --------
    RecallCurveDisplay : Shows how often a match is among the first k images.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn_ape.inspection import RetrievalGridDisplay
    >>> red = np.full((8, 8, 3), [255, 0, 0], dtype=np.uint8)
    >>> display = RetrievalGridDisplay(["red"], [[red, None]], np.array([[0.9, 0.1]])).plot()
    >>> display.text_[0][0].get_text()
    '0.90'
    """

    queries: Sequence[Any]
    images: Sequence[Sequence[Any]]
    scores: np.ndarray
    _: KW_ONLY
    captions: Sequence[Sequence[str]] | None = None
    relevant: np.ndarray | None = None

    @classmethod
    def from_estimator(
        cls,
        estimator: Any,
        queries: Any,
        images: Any = None,
        *,
        k: int = 5,
        X: Any = None,
        captions: Any = None,
        relevant: Any = None,
        standardize: Any = False,
        modality: str = "auto",
        ax: Any = None,
        **plot_options: Any,
    ) -> Self:
        """Search, and draw the results.

        Parameters
        ----------
        estimator : estimator, str or None
            Fitted `CrossModalRetriever`, which searches its own images; or an aligner or a
            Pipeline that ends in one, which searches `images` for texts.
        queries : sequence
            Texts. For a retriever, also images.
        images : sequence of images of length n_images or None, default=None
            Images for an aligner to search. For a retriever, the images of its collection, in the
            order of its ``items_``, which are needed if it returns ids or captions instead.
        k : int, default=5
            Maximum number of images per query.
        X : array-like of shape (n_images, n_features) or None, default=None
            Features of `images`, for an aligner that takes features.
        standardize : bool or collection, default=False
            Whether an aligner standardizes similarities; see `APEAligner.similarity`. Ignored for
            a retriever.
        modality : {"auto", "image", "text"}, default="auto"
            Modality of the queries for a retriever; see `CrossModalRetriever.search`. Ignored for
            an aligner.
        captions, relevant, ax, **plot_options : object
            Options of `from_predictions`.

        Returns
        -------
        display : RetrievalGridDisplay

        Raises
        ------
        ValueError
            If there are no images for an aligner, or lengths are inconsistent.
        """
        _check_queries(queries)
        check_integer(k, "k", 1)
        result: Any
        if hasattr(estimator, "search"):
            n_images = getattr(estimator, "n_samples_fit_", None)
            if n_images is not None:  # `add` and `remove` change the rows of images
                images = check_items(images, n_images, "images", "indexed image")
                captions = check_items(captions, n_images, "captions", "indexed image")
            result = estimator.search(queries, k, modality=modality)
        else:
            if images is None:
                raise ValueError(
                    "images is None, and an aligner has no images of its own. Pass the images to "
                    "search, or a fitted CrossModalRetriever."
                )
            images = check_items(images, len(images if X is None else X), "images", "row")
            aligner, features = get_aligner_and_input(estimator, images if X is None else X)
            similarity = aligner.similarity(features, queries, standardize=standardize).T
            # NaN, the similarity of an image that could not be read, is sorted last.
            order = np.argsort(-similarity, axis=1, kind="stable")[:, :k]
            result = np.take_along_axis(similarity, order, axis=1), order
        items = {"images": images, "captions": captions, "relevant": relevant}
        return cls.from_predictions(result, queries, ax=ax, **items, **plot_options)

    @classmethod
    def from_predictions(
        cls,
        result: Any,
        queries: Any,
        *,
        images: Any = None,
        captions: Any = None,
        relevant: Any = None,
        ax: Any = None,
        **plot_options: Any,
    ) -> Self:
        """Draw the results of a search.

        Parameters
        ----------
        result : SearchResult or tuple
            Result of `CrossModalRetriever.search`, or ``(scores, indices)``, arrays of shape
            (n_queries, k), which need `images`.
        queries : sequence of length n_queries
            Queries of the search.
        images : sequence of images of length n_images or None, default=None
            All images that were searched. None shows the items of the result.
        captions : sequence of str of length n_images or None, default=None
            Captions of all images, to write below them. None takes the items of the result, if
            they are texts and `images` is passed.
        relevant : sequence of length n_queries of collections of int, or None, default=None
            Indices of the relevant images of each query.
        ax, **plot_options : object
            Axes to draw on, and other arguments of `plot`.

        Returns
        -------
        display : RetrievalGridDisplay

        Raises
        ------
        ValueError
            If lengths are inconsistent, or there are no images to show.
        """
        _check_queries(queries)
        queries = to_list(queries)
        if hasattr(result, "columns"):
            raise ValueError(
                "result is a table. Pass the result of a search, not the output of to_frame."
            )
        scores, indices = (np.atleast_2d(np.asarray(part)) for part in result[:2])
        items: Any = result[2] if len(result) > 2 else None
        if scores.shape != indices.shape or len(scores) != len(queries):
            raise ValueError(
                f"result has scores of shape {scores.shape} and indices of shape {indices.shape}, "
                f"and there are {len(queries)} queries. Pass the result of a search for these "
                "queries."
            )
        if images is None:
            _check_are_images(items)
        texts = None if captions is None else _select_items(captions, indices, "captions")
        if texts is None and images is not None and items is not None and _are_texts(items):
            texts = items
        return cls(
            queries,
            items if images is None else _select_items(images, indices, "images"),
            scores,
            captions=texts,
            relevant=None if relevant is None else _mark_relevant(indices, relevant),
        ).plot(ax=ax, **plot_options)

    def plot(
        self, ax: Any = None, *, max_queries: int = 12, scores_format: str | None = ".2f"
    ) -> Self:
        """Draw the stored results.

        Parameters
        ----------
        ax : matplotlib.axes.Axes or None, default=None
            Axes to draw on. None creates a figure.
        max_queries : int, default=12
            Maximum number of queries. If there are more, the first ones are shown, and the title
            says so.
        scores_format : str or None, default=".2f"
            Format of the scores. None leaves them out.

        Returns
        -------
        display : RetrievalGridDisplay
        """
        n_shown = min(len(self.queries), max_queries)
        k = np.shape(self.scores)[1]
        n_lines = (self.captions is not None) * 2 + (scores_format is not None)
        height = 1.06 + 0.16 * n_lines  # of a row, in units of the width of an image
        self.ax_ = ax = get_axes(ax, 1.25 * (k + _QUERY_WIDTH), 1.25 * height * n_shown + 0.5)
        self.figure_ = ax.figure
        ax.set(xlim=(-0.5 - _QUERY_WIDTH, k - 0.5), ylim=(height * n_shown - 0.53, -0.53))
        ax.set_aspect("equal")
        ax.set_axis_off()
        self.thumbnails_, self.text_, self.query_ = [], [], []
        for row in range(n_shown):
            y = row * height
            self.query_.append(self._draw_query(self.queries[row], y))
            images, texts = [], []
            for column in range(min(k, len(self.images[row]))):
                image, frame = self.images[row][column], None
                if self.relevant is not None and image is not None:
                    is_relevant = self.relevant[row][column]
                    frame = _RELEVANT_COLOR if is_relevant else _IRRELEVANT_COLOR
                images.append(draw_thumbnail(ax, image, (column, y), 0.92, frame))
                texts.append(self._write_below(row, column, y, scores_format))
            self.thumbnails_.append(images)
            self.text_.append(texts)
        if n_shown < len(self.queries):
            ax.set_title(f"the first {n_shown} of {len(self.queries):,} queries")
        return self

    def _draw_query(self, query: Any, y: float) -> Any:
        x = -0.5 - _QUERY_WIDTH / 2
        if not isinstance(query, str) or os.path.isfile(query):
            return draw_thumbnail(self.ax_, query, (x, y), 0.92, "black")
        return self.ax_.text(
            x, y, format_text(query, 15, 5), ha="center", va="center", fontsize=10
        )

    def _write_below(self, row: int, column: int, y: float, scores_format: str | None) -> Any:
        """Write the score and the caption of an image below it, or an empty text if it is None."""
        lines = []
        is_image = self.images[row][column] is not None
        if is_image and scores_format is not None:
            lines.append(format(self.scores[row][column], scores_format))
        if is_image and self.captions is not None:
            lines.append(format_text(self.captions[row][column], 17, 2))
        return self.ax_.text(
            column, y + 0.5, "\n".join(lines), ha="center", va="top", fontsize=8, alpha=0.7
        )


def _select_items(sequence: Any, indices: np.ndarray, name: str) -> list[list[Any]]:
    """Return the items at the indices of a search, and None for negative indices."""
    items = get_images(sequence)
    if items is None or (indices.size and indices.max() >= len(items)):
        raise ValueError(
            f"{name} has {len(sequence)} items, and the indices go up to {indices.max()}. Pass "
            "the items of all images that were searched."
        )
    return [[items[i] if i >= 0 else None for i in row] for row in indices]


def _mark_relevant(indices: np.ndarray, relevant: Any) -> np.ndarray:
    """Return whether each index is among the relevant indices of its query."""
    if len(relevant) != len(indices):
        raise ValueError(
            f"relevant has {len(relevant)} items for {len(indices)} queries. Pass a collection of "
            "indices of images for each query."
        )
    sets = [{entry} if isinstance(entry, int | np.integer) else set(entry) for entry in relevant]
    invalid = [hit for hits in sets for hit in hits if isinstance(hit, str | bool | np.bool_)]
    if invalid:
        raise ValueError(
            f"relevant must hold row numbers of images, and has {invalid[0]!r}. Pass "
            "np.flatnonzero(mask) for a mask of the images."
        )
    return np.array([np.isin(row, [*hits]) for row, hits in zip(indices, sets, strict=True)])


def _are_texts(items: Any) -> bool:
    return all(isinstance(item, str) for row in items for item in row)


def _check_are_images(items: Any) -> None:
    """Raise ValueError unless the items of a result can be shown as images."""
    if items is None:
        raise ValueError("images is None. Pass the images that were searched.")
    flat = [item for row in items for item in row]
    are_images = [
        os.path.isfile(item) if isinstance(item, str) else not isinstance(item, Number)
        for item in flat
    ]
    if flat and not any(are_images):
        raise ValueError(
            f"result has items such as {flat[0]!r}, which are not files. Pass the images that "
            "were searched as images."
        )


def _check_queries(queries: Any) -> None:
    check_sequence(queries, "queries", "query", "texts or images")
    if len(queries) == 0:
        raise ValueError("queries is empty. Pass at least one query.")
