"""Queries and the images found for them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, Self

import numpy as np
from sklearn.utils.validation import check_is_fitted

from ..utils.validation import check_sequence
from ._plotting import aligner_and_input, axes_for, check_names, draw_thumbnail, images_in, plain

_QUERY_WIDTH = 1.5  # in images
_RIGHT, _WRONG = "tab:green", "tab:red"


class RetrievalGridDisplay:
    """One row a query: the query, then the images found for it, nearest first, with scores.

    Make it with `from_estimator` or `from_predictions`.

    Parameters
    ----------
    queries : sequence of length n_queries
        Texts are written, images are shown.
    images : sequence of length n_queries of sequences of images
        What was found.
    scores : ndarray of shape (n_queries, k)
        Similarities, below each image.
    captions : sequence of sequences of str or None, default=None
        Below each image besides.
    relevant : ndarray of bool, shape (n_queries, k), or None, default=None
        Whether each was right: a green frame, else a red one. None frames none.

    Attributes
    ----------
    thumbnails_ : list of list of matplotlib.image.AxesImage
        The images found.
    text_ : list of list of matplotlib.text.Text
        What stands below them.
    query_ : list
        The queries' texts or images.
    ax_ : matplotlib.axes.Axes
        Where it was drawn.
    figure_ : matplotlib.figure.Figure
        Of these axes.

    See Also
    --------
    RecallCurveDisplay : How often the right one is among the first k.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn_ape.inspection import RetrievalGridDisplay
    >>> red = np.full((8, 8, 3), [255, 0, 0], dtype=np.uint8)
    >>> display = RetrievalGridDisplay(["red"], [[red, None]], np.array([[0.9, 0.1]])).plot()
    >>> display.text_[0][0].get_text()
    '0.90'
    """

    def __init__(
        self,
        queries: Sequence[Any],
        images: Sequence[Sequence[Any]],
        scores: np.ndarray,
        *,
        captions: Sequence[Sequence[str]] | None = None,
        relevant: np.ndarray | None = None,
    ) -> None:
        self.queries = queries
        self.images = images
        self.scores = scores
        self.captions = captions
        self.relevant = relevant

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
        """Search and draw what was found.

        Parameters
        ----------
        estimator : estimator, str or None
            A fitted `CrossModalRetriever`, which has its images; or an aligner or a Pipeline
            that ends in one, with which texts are looked up among `images`.
        queries : sequence
            Texts; for a retriever images as well.
        images : sequence of images of length n_images or None, default=None
            What an aligner searches. For a retriever: the images it was fitted on, needed where
            it was given ids or captions to return in their place.
        k : int, default=5
            Images a query; fewer where there are fewer.
        X : array-like of shape (n_images, n_features) or None, default=None
            Features of `images`, for an aligner that takes features.
        captions : sequence of str of length n_images or None, default=None
            To be written below the images.
        relevant : sequence of length n_queries of collections of int, or None, default=None
            For every query the numbers of the images that are right.
        standardize : bool or collection, default=False
            See `APEAligner.similarity`; of an aligner.
        modality : {"auto", "image", "text"}, default="auto"
            See `CrossModalRetriever.search`; of a retriever.
        ax : matplotlib.axes.Axes or None, default=None
            Where to draw. None makes a figure.
        **plot_options : object
            Given to `plot`.

        Returns
        -------
        display : RetrievalGridDisplay
            Drawn.

        Raises
        ------
        ValueError
            When an aligner is given no images, or lengths do not agree.
        """
        _check_queries(queries)
        result: Any
        if hasattr(estimator, "search"):
            result = estimator.search(queries, k, modality=modality)
        else:
            if images is None:
                raise ValueError(
                    "images is None: an aligner has no images of its own. Pass those to be "
                    "searched, or a fitted CrossModalRetriever."
                )
            images = check_names(images, len(images if X is None else X), "images", "row")
            assert images is not None
            aligner, features = aligner_and_input(estimator, images if X is None else X)
            check_is_fitted(aligner)
            similarity = aligner.similarity(features, queries, standardize=standardize).T
            # An image that could not be read is found last.
            order = np.argsort(-similarity, axis=1, kind="stable")[:, :k]
            result = np.take_along_axis(similarity, order, axis=1), order
        return cls.from_predictions(
            result,
            queries,
            images=images,
            captions=captions,
            relevant=relevant,
            ax=ax,
            **plot_options,
        )

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
        """Draw what was found.

        Parameters
        ----------
        result : SearchResult or tuple
            What `CrossModalRetriever.search` returns; or ``(scores, indices)``, arrays of shape
            (n_queries, k), and then `images` is needed.
        queries : sequence of length n_queries
            What was looked for.
        images : sequence of images of length n_images or None, default=None
            The images that the indices are of. None takes the items of the result.
        captions : sequence of str of length n_images or None, default=None
            To be written below the images. With `images` and without `captions`, items of the
            result that are texts are written.
        relevant : sequence of length n_queries of collections of int, or None, default=None
            For every query the numbers of the images that are right.
        ax : matplotlib.axes.Axes or None, default=None
            Where to draw. None makes a figure.
        **plot_options : object
            Given to `plot`.

        Returns
        -------
        display : RetrievalGridDisplay
            Drawn.

        Raises
        ------
        ValueError
            When lengths do not agree, or there are no images to show.
        """
        _check_queries(queries)
        queries = list(queries)
        scores, indices = (np.atleast_2d(np.asarray(part)) for part in result[:2])
        items: Any = result[2] if len(result) > 2 else None
        if scores.shape != indices.shape or len(scores) != len(queries):
            raise ValueError(
                f"There are {len(queries)} queries, scores of shape {scores.shape} and indices of "
                f"shape {indices.shape}: pass the result of a search for these queries."
            )
        if images is None and items is None:
            raise ValueError("images is None: pass the images that the indices are of.")
        if images is None and _all_texts(items) and not _any_files(items):
            raise ValueError(
                f"The items of the result, such as {_first(items)!r}, are no files: pass images, "
                "the images that were searched."
            )
        of = _Lookup(indices)
        written = None if captions is None else of(captions, "captions")
        if written is None and images is not None and items is not None and _all_texts(items):
            written = items
        display = cls(
            queries,
            items if images is None else of(images, "images"),
            scores,
            captions=written,
            relevant=None if relevant is None else _hits(indices, relevant),
        )
        return display.plot(ax=ax, **plot_options)

    def plot(
        self, ax: Any = None, *, max_queries: int = 12, scores_format: str | None = ".2f"
    ) -> Self:
        """Draw, without computing anything.

        Parameters
        ----------
        ax : matplotlib.axes.Axes or None, default=None
            Where to draw. None makes a figure.
        max_queries : int, default=12
            Of more, the first are shown, and the title says so.
        scores_format : str or None, default=".2f"
            Of the scores; None leaves them out.

        Returns
        -------
        display : RetrievalGridDisplay
            This one.
        """
        n_shown = min(len(self.queries), max_queries)
        k = np.shape(self.scores)[1]
        n_lines = (self.captions is not None) * 2 + (scores_format is not None)
        height = 1.06 + 0.16 * n_lines
        self.ax_ = ax = axes_for(ax, 1.25 * (k + _QUERY_WIDTH), 1.25 * height * n_shown + 0.5)
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
                frame = None
                if self.relevant is not None:
                    frame = _RIGHT if self.relevant[row][column] else _WRONG
                image = self.images[row][column]
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
        return self.ax_.text(x, y, plain(query, 15, 5), ha="center", va="center", fontsize=10)

    def _write_below(self, row: int, column: int, y: float, scores_format: str | None) -> Any:
        lines = []
        if scores_format is not None:
            lines.append(format(self.scores[row][column], scores_format))
        if self.captions is not None:
            lines.append(plain(self.captions[row][column], 17, 2))
        return self.ax_.text(
            column, y + 0.5, "\n".join(lines), ha="center", va="top", fontsize=8, color="0.3"
        )


class _Lookup:
    """Takes from a sequence what the indices of a search name; an index below 0 names nothing."""

    def __init__(self, indices: np.ndarray) -> None:
        self.indices = indices

    def __call__(self, sequence: Any, what: str) -> list[list[Any]]:
        items = images_in(sequence)
        if items is None or (self.indices.size and self.indices.max() >= len(items)):
            raise ValueError(
                f"The indices go up to {self.indices.max()}, and {what} has {len(sequence)} "
                f"entries: pass those of all images that were searched."
            )
        return [[items[i] if i >= 0 else None for i in row] for row in self.indices]


def _hits(indices: np.ndarray, relevant: Any) -> np.ndarray:
    """Return which indices are among the relevant ones of their query."""
    if len(relevant) != len(indices):
        raise ValueError(
            f"relevant has {len(relevant)} entries for {len(indices)} queries: pass for each a "
            "collection of numbers of images."
        )
    sets = [{one} if isinstance(one, int | np.integer) else set(one) for one in relevant]
    return np.array(
        [[int(i) in right for i in row] for row, right in zip(indices, sets, strict=True)]
    )


def _all_texts(items: Any) -> bool:
    return all(isinstance(item, str) for row in items for item in row)


def _any_files(items: Any) -> bool:
    return any(os.path.isfile(item) for row in items for item in row)


def _first(items: Any) -> Any:
    return next((item for row in items for item in row), None)


def _check_queries(queries: Any) -> None:
    check_sequence(queries, "queries", "query", "texts or images")
    if len(queries) == 0:
        raise ValueError("queries is empty: there is nothing to show.")
