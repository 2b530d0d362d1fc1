"""Cosines of images and captions, as a matrix with both of them on its sides."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

import numpy as np
from sklearn.utils import check_array
from sklearn.utils.validation import check_is_fitted

from ._plotting import (
    aligner_and_input,
    axes_for,
    check_names,
    checked_pairs,
    draw_thumbnail,
    images_in,
    ink_on,
    plain,
    texts_in,
)

_MOST_NAMED = 60  # beyond it sides have numbers: names would be dots
_MOST_WRITTEN = 12


class SimilarityMatrixDisplay:
    """Similarities of images (rows) and captions (columns).

    Make it with `from_estimator` or `from_predictions`.

    Parameters
    ----------
    similarity : ndarray of shape (n_images, n_texts)
        NaN stays white.
    images : sequence of images of length n_images or None, default=None
        Shown beside the rows.
    captions : sequence of str of length n_texts or None, default=None
        Written below the columns.
    pairs : ndarray of shape (n_pairs, 2) or None, default=None
        Rows and columns that belong together: these cells get a frame. None frames none.

    Attributes
    ----------
    im_ : matplotlib.image.AxesImage
        The matrix.
    text_ : ndarray of shape (n_images, n_texts), or None
        The numbers in the cells, where there are at most 12 x 12 of them.
    thumbnails_ : list of matplotlib.image.AxesImage
        The images.
    ax_ : matplotlib.axes.Axes
        Where it was drawn.
    figure_ : matplotlib.figure.Figure
        Of these axes.

    See Also
    --------
    RecallCurveDisplay : How often the right caption comes first, for many pairs.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn_ape.inspection import SimilarityMatrixDisplay
    >>> display = SimilarityMatrixDisplay.from_predictions(
    ...     np.array([[0.7, 0.1], [0.2, 0.6]]), captions=["a cat", "a dog"]
    ... )
    >>> [label.get_text() for label in display.ax_.get_xticklabels()]
    ['a cat', 'a dog']
    """

    def __init__(
        self,
        similarity: np.ndarray,
        *,
        images: Sequence[Any] | None = None,
        captions: Sequence[str] | None = None,
        pairs: np.ndarray | None = None,
    ) -> None:
        self.similarity = similarity
        self.images = images
        self.captions = captions
        self.pairs = pairs

    @classmethod
    def from_estimator(
        cls,
        estimator: Any,
        X: Any,
        y: Any,
        *,
        standardize: Any = False,
        images: Any = None,
        captions: Any = None,
        pairs: Any = "auto",
        ax: Any = None,
        **plot_options: Any,
    ) -> Self:
        """Draw the similarities that an aligner gives.

        Parameters
        ----------
        estimator : estimator, str or None
            A fitted aligner or a Pipeline that ends in one; a name or None as
            `ZeroShotClassifier` takes them.
        X : sequence of images, or array-like of shape (n_images, n_features)
            What the estimator takes.
        y : sequence of str, or array-like of shape (n_texts, n_text_features)
            Texts, not necessarily as many as images.
        standardize : bool or collection like X, default=False
            See `APEAligner.similarity`. With a Pipeline, a collection is one of features.
        images : sequence of images of length n_images or None, default=None
            To be shown where X is features.
        captions : sequence of str of length n_texts or None, default=None
            To be shown where y is features, or instead of y.
        pairs : {"auto"}, array-like of shape (n_pairs, 2) or None, default="auto"
            Cells to frame. ``"auto"`` is those on the diagonal if there are as many texts as
            images.
        ax : matplotlib.axes.Axes or None, default=None
            Where to draw. None makes a figure.
        **plot_options : object
            Given to `plot`.

        Returns
        -------
        display : SimilarityMatrixDisplay
            Drawn.
        """
        aligner, features = aligner_and_input(estimator, X)
        check_is_fitted(aligner)
        return cls.from_predictions(
            aligner.similarity(features, y, standardize=standardize),
            images=images_in(X) if images is None else images,
            captions=texts_in(y) if captions is None else captions,
            pairs=pairs,
            ax=ax,
            **plot_options,
        )

    @classmethod
    def from_predictions(
        cls,
        similarity: Any,
        *,
        images: Any = None,
        captions: Any = None,
        pairs: Any = "auto",
        ax: Any = None,
        **plot_options: Any,
    ) -> Self:
        """Draw similarities.

        Parameters
        ----------
        similarity : array-like of shape (n_images, n_texts)
            What an aligner's ``similarity`` returns.
        images : sequence of images of length n_images or None, default=None
            Paths, PIL images, bytes or arrays.
        captions : sequence of str of length n_texts or None, default=None
            Names of the columns.
        pairs : {"auto"}, array-like of shape (n_pairs, 2) or None, default="auto"
            Cells to frame. ``"auto"`` is those on the diagonal of a square matrix.
        ax : matplotlib.axes.Axes or None, default=None
            Where to draw. None makes a figure.
        **plot_options : object
            Given to `plot`.

        Returns
        -------
        display : SimilarityMatrixDisplay
            Drawn.

        Raises
        ------
        ValueError
            When the lengths do not agree, or a pair is of no cell.
        """
        similarity = check_array(
            similarity,
            dtype=[np.float64, np.float32],
            ensure_all_finite="allow-nan",
            input_name="similarity",
        )
        n_images, n_texts = similarity.shape
        if isinstance(pairs, str):
            if pairs != "auto":
                raise ValueError(f"pairs must be 'auto', an array or None, not {pairs!r}.")
            pairs = None if n_images != n_texts else checked_pairs(None, n_images, n_texts)
        elif pairs is not None:
            pairs = checked_pairs(pairs, n_images, n_texts)
        display = cls(
            similarity,
            images=check_names(images, n_images, "images", "row"),
            captions=check_names(captions, n_texts, "captions", "column"),
            pairs=pairs,
        )
        return display.plot(ax=ax, **plot_options)

    def plot(
        self,
        ax: Any = None,
        *,
        cmap: Any = "viridis",
        include_values: bool | None = None,
        values_format: str = ".2f",
        colorbar: bool = True,
        frame_color: str = "tab:red",
        im_kw: dict[str, Any] | None = None,
    ) -> Self:
        """Draw, without computing anything.

        Parameters
        ----------
        ax : matplotlib.axes.Axes or None, default=None
            Where to draw. None makes a figure.
        cmap : str or matplotlib.colors.Colormap, default="viridis"
            Colours.
        include_values : bool or None, default=None
            Whether the cells hold their numbers. None writes them up to 12 x 12 cells.
        values_format : str, default=".2f"
            Of the numbers.
        colorbar : bool, default=True
            Whether a scale stands beside the matrix.
        frame_color : str, default="tab:red"
            Of the frames of pairs.
        im_kw : dict or None, default=None
            For matplotlib's ``imshow``, such as ``vmin`` and ``vmax``.

        Returns
        -------
        display : SimilarityMatrixDisplay
            This one.
        """
        from matplotlib.patches import Rectangle

        n_images, n_texts = self.similarity.shape
        cell = np.clip(9 / max(n_images, n_texts), 0.16, 0.7)
        names = None
        if self.captions is not None and n_texts <= _MOST_NAMED:
            names = [plain(caption, 28) for caption in self.captions]
        below = 0.6 if names is None else 0.085 * max(map(len, names))
        self.ax_ = ax = axes_for(ax, 3 + cell * n_texts, 0.6 + below + cell * n_images)
        self.figure_ = ax.figure
        self.im_ = ax.imshow(self.similarity, **{"cmap": cmap, **(im_kw or {})})
        few = max(n_images, n_texts) <= _MOST_WRITTEN
        self.text_ = None
        if include_values or (include_values is None and few):
            self.text_ = self._write(values_format, fontsize=min(9, 22 * cell))
        for row, column in () if self.pairs is None else self.pairs:
            ax.add_patch(
                Rectangle(
                    (column - 0.5, row - 0.5), 1, 1, fill=False, edgecolor=frame_color,
                    linewidth=2, clip_on=False,
                )
            )  # fmt: skip
        self.thumbnails_ = []
        if self.images is not None and n_images <= _MOST_NAMED:
            ax.set_yticks([])
            self.thumbnails_ = [
                draw_thumbnail(ax, image, (-1.1, row), 0.92)
                for row, image in enumerate(self.images)
            ]
        else:
            ax.set_ylabel("image")
        if names is not None:
            ax.set_xticks(range(n_texts), names, rotation=90, fontsize=min(10, 46 * cell))
        else:
            ax.set_xlabel("caption")
        if colorbar:
            bar = self.figure_.colorbar(self.im_, ax=ax, shrink=0.8)
            bar.set_label("similarity")
        return self

    def _write(self, values_format: str, fontsize: float) -> np.ndarray:
        """Write the numbers into the cells."""
        written = np.empty(self.similarity.shape, dtype=object)
        colors = self.im_.cmap(self.im_.norm(self.similarity))
        for place, value in np.ndenumerate(self.similarity):
            written[place] = self.ax_.text(
                place[1],
                place[0],
                "" if np.isnan(value) else format(value, values_format),
                ha="center",
                va="center",
                color=ink_on(colors[place]),
                fontsize=fontsize,
            )
        return written
