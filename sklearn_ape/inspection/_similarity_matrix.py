"""Matrix of the cosine similarities of images and captions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any, Self

import numpy as np
from sklearn.utils import check_array

from ._plotting import (
    check_items,
    draw_thumbnail,
    format_text,
    get_aligner_and_input,
    get_axes,
    get_images,
    get_texts,
    resolve_pairs,
    write_in_cell,
)

_MAX_LABELED = 60  # thumbnails and captions of more rows and columns would be too small
_MAX_VALUES = 12


@dataclass(eq=False, repr=False)
class SimilarityMatrixDisplay:
    """Similarities of images (rows) with captions (columns).

    Create it with `from_estimator` or `from_predictions`.

    Parameters
    ----------
    similarity : ndarray of shape (n_images, n_texts)
        Similarities. Cells with NaN are white.
    images : sequence of images of length n_images or None, default=None
        Images, which are shown beside the rows.
    captions : sequence of str of length n_texts or None, default=None
        Captions, which are written below the columns.
    pairs : ndarray of shape (n_pairs, 2) or None, default=None
        Indices of images and captions whose cells get a frame. None draws no frames.

    Attributes
    ----------
    im_ : matplotlib.image.AxesImage
        Artist of the matrix.
    text_ : ndarray of shape (n_images, n_texts), or None
        Values in the cells, or None if they are not written.
    thumbnails_ : list of matplotlib.image.AxesImage
        Images beside the rows.
    ax_, figure_ : matplotlib.axes.Axes, matplotlib.figure.Figure
        Axes and figure of the display.

    See Also
    --------
    RecallCurveDisplay : Shows how often the matching caption is found, for many pairs.

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

    similarity: np.ndarray
    _: KW_ONLY
    images: Sequence[Any] | None = None
    captions: Sequence[str] | None = None
    pairs: np.ndarray | None = None

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
        """Compute similarities with an aligner, and draw them.

        Parameters
        ----------
        estimator : estimator, str or None
            Fitted aligner, or a Pipeline that ends in one. A name or None stands for the aligner
            that `ZeroShotClassifier` takes for it.
        X : sequence of images, or array-like of shape (n_images, n_features)
            Images, or features if the estimator takes features.
        y : sequence of str, or array-like of shape (n_texts, n_text_features)
            Texts, or their features. The number of texts may differ from the number of images.
        standardize : bool or collection like X, default=False
            Whether similarities are standardized; see `APEAligner.similarity`. For a Pipeline, a
            collection holds features.
        images : sequence of images of length n_images or None, default=None
            Images to show, if X is features.
        captions : sequence of str of length n_texts or None, default=None
            Captions to write, if y is features or other texts should be shown.
        pairs, ax, **plot_options : object
            Options of `from_predictions`.

        Returns
        -------
        display : SimilarityMatrixDisplay
        """
        aligner, features = get_aligner_and_input(estimator, X)
        return cls.from_predictions(
            aligner.similarity(features, y, standardize=standardize),
            images=get_images(X) if images is None else images,
            captions=get_texts(y) if captions is None else captions,
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
            Similarities, as the method ``similarity`` of an aligner returns them.
        images : sequence of images of length n_images or None, default=None
            Images of the rows, as paths, PIL images, bytes or arrays.
        captions : sequence of str of length n_texts or None, default=None
            Captions of the columns.
        pairs : {"auto"}, array-like of shape (n_pairs, 2) or None, default="auto"
            Cells to frame. ``"auto"`` frames the diagonal of a square matrix. None draws no
            frames.
        ax, **plot_options : object
            Axes to draw on, and other arguments of `plot`.

        Returns
        -------
        display : SimilarityMatrixDisplay

        Raises
        ------
        ValueError
            When lengths are inconsistent, or a pair is outside of the matrix.
        """
        options = {"ensure_all_finite": "allow-nan", "input_name": "similarity"}
        similarity = check_array(similarity, dtype=[np.float64, np.float32], **options)
        n_images, n_texts = similarity.shape
        display = cls(
            similarity,
            images=check_items(images, n_images, "images", "row"),
            captions=check_items(captions, n_texts, "captions", "column"),
            pairs=resolve_pairs(pairs, n_images, n_texts),
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
        """Draw the stored results.

        Parameters
        ----------
        ax : matplotlib.axes.Axes or None, default=None
            Axes to draw on. None creates a figure.
        cmap : str or matplotlib.colors.Colormap, default="viridis"
            Colour map of the similarities.
        include_values : bool or None, default=None
            Whether to write the values into the cells. None writes up to 12 x 12 values.
        values_format : str, default=".2f"
            Format of the values.
        colorbar : bool, default=True
            Whether to draw a colour bar.
        frame_color : str, default="tab:red"
            Colour of the frames of pairs.
        im_kw : dict or None, default=None
            Keyword arguments of matplotlib's ``imshow``, such as ``vmin`` and ``vmax``.

        Returns
        -------
        display : SimilarityMatrixDisplay
        """
        from matplotlib.patches import Rectangle

        n_images, n_texts = self.similarity.shape
        cell = np.clip(9 / max(n_images, n_texts), 0.16, 0.7)  # inches
        names = None
        if self.captions is not None and n_texts <= _MAX_LABELED:
            names = [format_text(caption, 28) for caption in self.captions]
        below = 0.6 if names is None else 0.085 * max(map(len, names))
        self.ax_ = ax = get_axes(ax, 3 + cell * n_texts, 0.6 + below + cell * n_images)
        self.figure_ = ax.figure
        self.im_ = ax.imshow(self.similarity, **{"cmap": cmap, **(im_kw or {})})
        if include_values is None:
            include_values = max(n_images, n_texts) <= _MAX_VALUES
        self.text_ = self._write_values(values_format, cell) if include_values else None
        for row, column in () if self.pairs is None else self.pairs:
            corner = column - 0.5, row - 0.5
            ax.add_patch(Rectangle(corner, 1, 1, fill=False, ec=frame_color, lw=2, clip_on=False))
        self.thumbnails_ = []
        if self.images is not None and n_images <= _MAX_LABELED:
            ax.set_yticks([])
            for row, image in enumerate(self.images):
                self.thumbnails_.append(draw_thumbnail(ax, image, (-1.1, row), 0.92))
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

    def _write_values(self, values_format: str, cell_size: float) -> np.ndarray:
        fontsize = min(9, 22 * cell_size)
        texts = np.empty(self.similarity.shape, dtype=object)
        colors = self.im_.cmap(self.im_.norm(self.similarity))
        for cell, value in np.ndenumerate(self.similarity):
            row, column = cell
            text = "" if np.isnan(value) else format(value, values_format)
            texts[cell] = write_in_cell(self.ax_, row, column, text, colors[cell], fontsize)
        return texts
