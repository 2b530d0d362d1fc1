"""Plots of similarities: a matrix of images and captions, and maps of the parts of an image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any, Self

import numpy as np
import torch
from scipy.ndimage import gaussian_filter
from sklearn.utils import check_array
from sklearn.utils.validation import check_is_fitted

from ..aligners.wrapper import resolve_aligner, unwrap
from ..devices import default_state
from ..heads import ConcatenatedHead, ExtendedHead, TwoTower
from ..utils.validation import check_sequence
from ._plotting import (
    check_items,
    draw_frame,
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
        Images, which are shown next to the rows.
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
        Images next to the rows.
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
            If lengths are inconsistent, or a pair is outside of the matrix.
        """
        options = {"ensure_all_finite": "allow-nan", "input_name": "similarity"}
        similarity = check_array(similarity, dtype=[np.float64, np.float32], **options)
        n_images, n_texts = similarity.shape
        return cls(
            similarity,
            images=check_items(images, n_images, "images", "row"),
            captions=check_items(captions, n_texts, "captions", "column"),
            pairs=resolve_pairs(pairs, n_images, n_texts),
        ).plot(ax=ax, **plot_options)

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
            Color map of the similarities.
        include_values : bool or None, default=None
            Whether to write the values into the cells. None writes up to 12 x 12 values.
        values_format : str, default=".2f"
            Format of the values.
        colorbar : bool, default=True
            Whether to draw a color bar.
        frame_color : str, default="tab:red"
            Color of the frames of pairs.
        im_kw : dict or None, default=None
            Keyword arguments of matplotlib's ``imshow``, such as ``vmin`` and ``vmax``.

        Returns
        -------
        display : SimilarityMatrixDisplay
        """
        n_images, n_texts = self.similarity.shape
        names = None
        if self.captions is not None and n_texts <= _MAX_LABELED:
            names = [format_text(caption, 28) for caption in self.captions]
        images = self.images if n_images <= _MAX_LABELED else None
        # Captions and thumbnails need cells of this size; without them, the figure fits a screen.
        smallest = 0.0 if images is None and names is None else 0.16
        cell = np.clip(9 / max(n_images, n_texts), smallest, 0.7)  # inches
        below = 0.6 if names is None else 0.085 * max(map(len, names))
        self.ax_ = ax = get_axes(ax, 3 + cell * n_texts, 0.6 + below + cell * n_images)
        from matplotlib.ticker import MaxNLocator

        self.figure_ = ax.figure
        self.im_ = ax.imshow(self.similarity, **{"cmap": cmap, **(im_kw or {})})
        if include_values is None:
            include_values = max(n_images, n_texts) <= _MAX_VALUES
        self.text_ = self._write_values(values_format, cell) if include_values else None
        for row, column in () if self.pairs is None else self.pairs:
            draw_frame(ax, row, column, 1, ec=frame_color, lw=min(2, 12.5 * cell))
        if images is None:
            ax.set_ylabel("image")
            ax.yaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        else:
            ax.set_yticks([])
        self.thumbnails_ = [
            draw_thumbnail(ax, image, (-1.1, row), 0.92)
            for row, image in enumerate(() if images is None else images)
        ]
        if names is None:
            ax.set_xlabel("caption")
            ax.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        else:
            ax.set_xticks(range(n_texts), names, rotation=90, fontsize=min(10, 46 * cell))
        if colorbar:
            self.figure_.colorbar(self.im_, ax=ax, shrink=0.8, label="similarity")
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


# Largest relative difference of a nonlinear head's output that is rounding.
_TOLERANCE = 1e-3
# Standard deviation of the blur, as a share of the image's side. A wider blur hides small objects.
_BLUR = 1 / 14


@dataclass(eq=False, repr=False)
class SimilarityMapDisplay:
    """Where an image is similar to texts.

    The image is divided into the cells of the grid on which its encoder computes features. The
    cosine of the image with a text is the mean of the values of its cells, so that the map shows
    which parts of the image contribute to it [1]_. Create it with `from_estimator`.

    Parameters
    ----------
    maps : ndarray of shape (n_texts, n_rows, n_columns)
        Value of each cell.
    image : ndarray of shape (height, width, 3) and dtype uint8
        The part of the image that the encoder sees.
    texts : sequence of str of length n_texts
        Texts.

    Attributes
    ----------
    ims_ : list of matplotlib.image.AxesImage
        Artists of the maps.
    axes_ : ndarray of matplotlib.axes.Axes of shape (n_texts + 1,)
        Axes of the image and of each map.
    figure_ : matplotlib.figure.Figure
        Figure of the display.

    See Also
    --------
    SimilarityMatrixDisplay : Similarities of whole images with texts.

    Notes
    -----
    Cells are computed from the image in twice its usual size, unless the network has a fixed input
    size, and depend on larger parts of the image. The nonlinear correction of the starter model
    and of extended aligners is computed for each cell. An equal addition to all cells makes their
    mean the cosine. The colors of all maps have the same scale, which is symmetric around zero.

    References
    ----------
    .. [1] B. Zhou, A. Khosla, A. Lapedriza, A. Oliva and A. Torralba, "Learning Deep Features for
       Discriminative Localization", CVPR 2016.

    Examples
    --------
    >>> from skimage import data
    >>> from sklearn_ape.inspection import SimilarityMapDisplay
    >>> display = SimilarityMapDisplay.from_estimator(None, data.coffee(), ["a cup of coffee"])
    >>> display.maps.shape
    (1, 14, 14)
    """

    maps: np.ndarray
    image: np.ndarray
    texts: Sequence[str]

    @classmethod
    def from_estimator(
        cls, estimator: Any, image: Any, texts: Sequence[str], **plot_options: Any
    ) -> Self:
        """Compute the maps of an image with an aligner, and draw them.

        Parameters
        ----------
        estimator : estimator, str or None
            Fitted aligner with a `TimmImageEncoder`, or a Pipeline of these. None stands for the
            starter model.
        image : image
            A path, `PIL.Image`, array of shape (height, width, 3) or bytes.
        texts : sequence of str
            Texts, which are embedded without prompt templates.
        **plot_options : object
            Options of `plot`.

        Returns
        -------
        display : SimilarityMapDisplay

        Raises
        ------
        TypeError
            If the image encoder has no grid of features.
        ValueError
            If the aligner's map of images is not linear, such as an MLP on the image side, or the
            encoder does not pool by a mean.
        """
        maps, pixels = compute_similarity_maps(estimator, [image], texts)
        return cls(maps[0], pixels[0], list(texts)).plot(**plot_options)

    def plot(self, *, cmap: str = "RdBu_r", alpha: float = 0.6) -> Self:
        """Draw the image, and the map of each text on the image.

        Parameters
        ----------
        cmap : str, default="RdBu_r"
            Name of a matplotlib colormap.
        alpha : float, default=0.6
            Opacity of the maps.

        Returns
        -------
        display : SimilarityMapDisplay
            This display.
        """
        n_panels = len(self.texts) + 1
        figure = get_axes(None, 3 * n_panels, 3.4).figure
        figure.clear()
        self.axes_ = figure.subplots(1, n_panels, squeeze=False)[0]
        height, width = self.image.shape[:2]
        limit = float(np.abs(self.maps).max()) or 1.0
        for ax in self.axes_:
            ax.set_axis_off()
        image_ax, *map_axes = self.axes_
        image_ax.imshow(self.image)
        image_ax.set_title("image")
        self.ims_ = []
        options = {"interpolation": "bilinear", "extent": (0, width, height, 0), "alpha": alpha}
        for ax, text, values in zip(map_axes, self.texts, self.maps, strict=True):
            # Without its own colors, the image does not hide those of the map.
            ax.imshow(self.image.mean(axis=2), cmap="gray", vmin=0, vmax=255)
            ax.set_title(f"{format_text(text, lines=2)}\n{values.mean():.2f}")
            self.ims_.append(ax.imshow(values, cmap=cmap, vmin=-limit, vmax=limit, **options))
        figure.colorbar(self.ims_[-1], ax=self.axes_.tolist(), label="contribution to the cosine")
        self.figure_ = figure
        return self


@default_state()
def compute_similarity_maps(
    estimator: Any, images: Sequence[Any], texts: Sequence[str]
) -> tuple[np.ndarray, np.ndarray]:
    """Compute the contribution of each cell of images to their cosines with texts.

    Parameters
    ----------
    estimator : estimator, str or None
        Fitted aligner with a `TimmImageEncoder`; see `SimilarityMapDisplay.from_estimator`.
    images : sequence of length n_images
        Images.
    texts : sequence of str of length n_texts
        Texts.

    Returns
    -------
    maps : ndarray of shape (n_images, n_texts, n_rows, n_columns)
        Contributions, slightly blurred. Their mean over the cells is the cosine.
    pixels : ndarray of shape (n_images, height, width, 3) and dtype uint8
        The part of the images that the encoder sees.

    Raises
    ------
    TypeError
        If the image encoder has no grid of features, or the aligner's map of images is not a head.
    ValueError
        If the aligner's map of images is not linear.

    See Also
    --------
    SimilarityMapDisplay : Draws the maps of one image.

    Examples
    --------
    >>> from skimage import data
    >>> from sklearn_ape.inspection import compute_similarity_maps
    >>> maps, _ = compute_similarity_maps(None, [data.coffee()], ["coffee", "a cat"])
    >>> maps.mean(axis=(2, 3)).shape
    (1, 2)
    """
    for items, kind in ((images, "image"), (texts, "text")):
        check_sequence(items, f"{kind}s", kind)
        if not len(items):
            raise ValueError(f"{kind}s is empty. Pass at least one {kind}.")
    if invalid := [text for text in texts if not isinstance(text, str)]:
        raise ValueError(f"texts has {invalid[0]!r}, which is not a text. Pass one str per map.")
    estimator = resolve_aligner(estimator)
    preprocessing, aligner = unwrap(estimator, "estimator")
    check_is_fitted(aligner)
    encoder: Any = preprocessing or getattr(aligner, "image_encoder_", None)
    if not hasattr(encoder, "transform_grid"):
        raise TypeError(
            f"estimator has the image encoder {type(encoder).__name__}, which has no grid of "
            "features. Use an aligner with a TimmImageEncoder."
        )
    if not isinstance(module := getattr(aligner, "module_", None), TwoTower):
        raise TypeError(
            f"estimator has the aligner {type(aligner).__name__}, whose map of images is not a "
            "head. Use APEAligner or KernelAligner."
        )
    grid, pixels = encoder.transform_grid(images, enlarge=True)
    embeddings = np.asarray(aligner.transform_text(list(texts)), np.float32)
    cell_outputs, outputs = _map_cells(module.image_head, torch.from_numpy(grid).flatten(1, 2))
    if ((cell_outputs.mean(dim=1) - outputs).norm(dim=1) > _TOLERANCE).any():
        raise ValueError(
            "estimator maps images by a nonlinear head, so that the cosine is not a mean over the "
            "image. Use APEAligner() or KernelAligner."
        )
    maps = cell_outputs.numpy() @ embeddings.T
    # Their mean is the cosine of the enlarged image. Make it that of the image in its usual size.
    cosines = np.asarray(estimator.transform(images), np.float32) @ embeddings.T
    maps += (cosines - maps.mean(axis=1))[:, None]
    maps = maps.transpose(0, 2, 1).reshape(*cosines.shape, *grid.shape[1:3])
    sigma = (0, 0, _BLUR * maps.shape[2], _BLUR * maps.shape[3])
    return gaussian_filter(maps, sigma, mode="reflect"), pixels  # reflection keeps the mean


@torch.inference_mode()
def _map_cells(head: torch.nn.Module, cells: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the outputs of cells (n, n_cells, n_features) and of their means, (n, n_out).

    Both are divided by the norms of the outputs of the means. The mean of the cells' outputs is
    that of their mean if the head is affine, or affine after it has L2-normalized its input, as
    closed-form heads do. Such a head does not see the norm of a cell, so that its output is
    computed from that of its direction. An `ExtendedHead` adds the correction of each cell; an
    equal addition to all cells makes their mean exact.
    """
    features = cells.mean(dim=1)
    outputs = head(features)
    if isinstance(head, ConcatenatedHead):
        first, second = (_map_cells(part, cells)[0] for part in (head.first, head.second))
        cell_outputs = head.concatenate(first, second)
    elif isinstance(head, ExtendedHead):
        cell_outputs = head.scale * _map_cells(head.base, cells)[0]
        if head.correction is not None:
            cell_outputs += head.correction(cells.flatten(0, 1)).unflatten(0, cells.shape[:2])
        cell_outputs += (outputs - cell_outputs.mean(dim=1))[:, None]
    else:
        cell_outputs = head(cells.flatten(0, 1)).unflatten(0, cells.shape[:2])
        if (cell_outputs.mean(dim=1) - outputs).norm() > _TOLERANCE * outputs.norm():
            # The terms that depend on the direction cancel.
            offset = ((outputs + head(-features)) / 2)[:, None]
            relative_norm = cells.norm(dim=2) / features.norm(dim=1, keepdim=True)
            cell_outputs = offset + relative_norm[:, :, None] * (cell_outputs - offset)
    norm = outputs.norm(dim=1, keepdim=True)
    return cell_outputs / norm[:, None], outputs / norm
