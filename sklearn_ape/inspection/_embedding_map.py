"""Two-dimensional map of image and text embeddings."""

from __future__ import annotations

import reprlib
from collections import Counter
from dataclasses import KW_ONLY, dataclass
from typing import Any, Self

import numpy as np
from sklearn.base import clone
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE
from sklearn.utils import check_array

from ..utils.messages import warn
from ..utils.validation import describe_rows, is_missing, to_builtin
from ._plotting import (
    check_items,
    format_text,
    get_aligner_and_input,
    get_axes,
    get_images,
    make_thumbnail,
    name_others,
    resolve_pairs,
)

_THUMBNAIL_PIXELS = 32
_IMAGE_COLOR, _TEXT_COLOR = "tab:blue", "tab:orange"
_MAX_COLORS = 10
_GREY_INDEX = 7  # of grey in the sequence of colors "tab10"


@dataclass(eq=False, repr=False)
class EmbeddingMapDisplay:
    """Map of image and text embeddings in two dimensions.

    Images are drawn as circles, and captions as triangles. Create it with `from_estimator` or
    `from_predictions`.

    Parameters
    ----------
    image_points, text_points : ndarray of shape (n_rows, 2)
        Coordinates of the images and of the captions.
    pairs : ndarray of shape (n_pairs, 2) or None, default=None
        Indices of images and captions that are joined by a thin line. None draws no lines.
    image_labels, text_labels : sequence or None, default=None
        Labels of images and of captions, which determine the colors. With more than ten labels,
        the less frequent ones are grey.
    images : sequence of images of length n_images or None, default=None
        Images, which `plot` can show as thumbnails.
    axis_names : tuple of str, default=("", "")
        Names of the axes.

    Attributes
    ----------
    image_points_, text_points_ : list of matplotlib.collections.PathCollection
        Points of images and of captions, one collection per color.
    lines_ : matplotlib.collections.LineCollection or None
        Lines between pairs.
    thumbnails_ : list of matplotlib.offsetbox.AnnotationBbox
        Thumbnails of images.
    ax_, figure_ : matplotlib.axes.Axes, matplotlib.figure.Figure
        Axes and figure of the display.

    See Also
    --------
    SimilarityMatrixDisplay : Shows the cosines.

    Notes
    -----
    In spaces that are trained contrastively, images and captions tend to be in two separate cones,
    the modality gap [1]_. The first axis of the map then only separates the modalities, which does
    not affect retrieval. ``center=True`` removes the gap from the map.

    A map of two dimensions omits most of the information of the space. In a t-SNE map only the
    nearest neighbours are meaningful. To evaluate an aligner, use `RecallCurveDisplay`.

    References
    ----------
    .. [1] W. Liang et al., "Mind the Gap: Understanding the Modality Gap in Multi-modal
       Contrastive Representation Learning", NeurIPS 2022.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn_ape.inspection import EmbeddingMapDisplay
    >>> embeddings = np.eye(4)
    >>> display = EmbeddingMapDisplay.from_predictions(embeddings, embeddings, random_state=0)
    >>> np.allclose(display.image_points, display.text_points)
    True
    """

    image_points: np.ndarray
    text_points: np.ndarray
    _: KW_ONLY
    pairs: np.ndarray | None = None
    image_labels: Any = None
    text_labels: Any = None
    images: Any = None
    axis_names: tuple[str, str] = ("", "")

    @classmethod
    def from_estimator(
        cls,
        estimator: Any,
        X: Any,
        y: Any,
        *,
        images: Any = None,
        pairs: Any = "auto",
        labels: Any = None,
        text_labels: Any = None,
        reducer: Any = "pca",
        center: bool = False,
        random_state: int | np.random.RandomState | None = None,
        ax: Any = None,
        **plot_options: Any,
    ) -> Self:
        """Embed images and captions and draw the map.

        Parameters
        ----------
        estimator : estimator, str or None
            Fitted aligner, or a Pipeline that ends in one. A name or None stands for the aligner
            that `ZeroShotClassifier` takes for it.
        X : sequence of images, or array-like of shape (n_images, n_features)
            Images, or features if the estimator takes features.
        y : sequence of str, or array-like of shape (n_texts, n_text_features)
            Texts, or their features. The number of texts may differ from the number of images.
        images : sequence of images of length n_images or None, default=None
            Images for thumbnails, if X is features.
        pairs, labels, text_labels, reducer, center, random_state, ax, **plot_options : object
            Options of `from_predictions`.

        Returns
        -------
        display : EmbeddingMapDisplay
        """
        aligner, features = get_aligner_and_input(estimator, X)
        return cls.from_predictions(
            aligner.transform(features),
            aligner.transform_text(y),
            images=get_images(X) if images is None else images,
            pairs=pairs,
            labels=labels,
            text_labels=text_labels,
            reducer=reducer,
            center=center,
            random_state=random_state,
            ax=ax,
            **plot_options,
        )

    @classmethod
    def from_predictions(
        cls,
        image_embeddings: Any,
        text_embeddings: Any,
        *,
        images: Any = None,
        pairs: Any = "auto",
        labels: Any = None,
        text_labels: Any = None,
        reducer: Any = "pca",
        center: bool = False,
        random_state: int | np.random.RandomState | None = None,
        ax: Any = None,
        **plot_options: Any,
    ) -> Self:
        """Draw the map of embeddings.

        Parameters
        ----------
        image_embeddings, text_embeddings : array-like of shape (n_rows, n_components)
            Embeddings of images and of captions in the same space. Rows of NaN are left out.
        images : sequence of images of length n_images or None, default=None
            Images for thumbnails.
        pairs : {"auto"}, array-like of shape (n_pairs, 2) or None, default="auto"
            Indices of images and captions to join by lines. ``"auto"`` joins images and captions
            at the same index, if there are as many texts as images. None draws no lines.
        labels, text_labels : sequence or None, default=None
            Labels of images and of captions, which determine the colors. If `text_labels` is None
            and there are as many texts as images, captions have the labels of their images.
        reducer : {"pca", "tsne"} or estimator, default="pca"
            Method of dimensionality reduction. t-SNE uses cosine distances. An estimator must have
            ``fit_transform`` and give two components, as UMAP does; it is cloned.
        center : bool, default=False
            Whether the mean of each modality is subtracted first; see the notes.
        random_state : int, RandomState instance or None, default=None
            Random seed of "pca" and "tsne", for reproducible results.
        ax, **plot_options : object
            Axes to draw on, and other arguments of `plot`.

        Returns
        -------
        display : EmbeddingMapDisplay

        Raises
        ------
        ValueError
            If the numbers of components or of items are inconsistent, or there are fewer than
            3 points.
        """
        options: dict[str, Any] = {"dtype": np.float64, "ensure_all_finite": "allow-nan"}
        image_embeddings = check_array(image_embeddings, input_name="image_embeddings", **options)
        text_embeddings = check_array(text_embeddings, input_name="text_embeddings", **options)
        (n_images, width), (n_texts, text_width) = image_embeddings.shape, text_embeddings.shape
        if width != text_width:
            raise ValueError(
                f"image_embeddings has {width} components, and text_embeddings has {text_width}. "
                "Pass embeddings of one space, not features."
            )
        images = check_items(images, n_images, "images", "image")
        labels = _check_labels(labels, n_images, "labels", "image")
        text_labels = _check_labels(text_labels, n_texts, "text_labels", "text")
        if text_labels is None and n_texts == n_images:
            text_labels = labels
        pairs = resolve_pairs(pairs, n_images, n_texts)
        sides = [image_embeddings, text_embeddings]
        points, axis_names = _project(sides, reducer, center, random_state)
        return cls(
            points[:n_images],
            points[n_images:],
            pairs=pairs,
            image_labels=labels,
            text_labels=text_labels,
            images=images,
            axis_names=axis_names,
        ).plot(ax=ax, **plot_options)

    def plot(
        self,
        ax: Any = None,
        *,
        thumbnails: bool | int = False,
        lines: bool = True,
        legend: bool = True,
        size: float = 28.0,
    ) -> Self:
        """Draw the stored results.

        Parameters
        ----------
        ax : matplotlib.axes.Axes or None, default=None
            Axes to draw on. None creates a figure.
        thumbnails : bool or int, default=False
            Number of images, evenly spaced in the data, to show as thumbnails. True shows 100.
        lines : bool, default=True
            Whether to join pairs by lines.
        legend : bool, default=True
            Whether to draw a legend.
        size : float, default=28.0
            Area of a marker in square points.

        Returns
        -------
        display : EmbeddingMapDisplay
        """
        self.ax_ = ax = get_axes(ax, 8.4, 6)
        from matplotlib.collections import LineCollection

        self.figure_ = ax.figure
        colors = _assign_colors(self.image_labels, self.text_labels)
        self.lines_ = None
        if lines and self.pairs is not None and len(self.pairs):
            images, texts = self.pairs.T
            ends = np.stack([self.image_points[images], self.text_points[texts]], axis=1)
            ends = ends[np.isfinite(ends).all(axis=(1, 2))]
            self.lines_ = LineCollection(ends, colors="0.75", linewidths=0.6, zorder=1)
            ax.add_collection(self.lines_)
        self.image_points_ = self._scatter(self.image_points, self.image_labels, colors, "o", size)
        self.text_points_ = self._scatter(self.text_points, self.text_labels, colors, "^", size)
        self.thumbnails_ = self._draw_thumbnails(100 if thumbnails is True else int(thumbnails))
        ax.autoscale_view()
        ax.set(xticks=[], yticks=[], xlabel=self.axis_names[0], ylabel=self.axis_names[1])
        if legend:
            self._draw_legend(colors)
        return self

    def _draw_legend(self, colors: dict[Any, Any]) -> None:
        from matplotlib.lines import Line2D

        def make_handle(marker: str, color: Any, text: str) -> Any:
            return Line2D([], [], marker=marker, linestyle="", color=color, label=text)

        handles = [
            make_handle("o", _IMAGE_COLOR if self.image_labels is None else "0.35", "image"),
            make_handle("^", _TEXT_COLOR if self.text_labels is None else "0.35", "caption"),
            *(make_handle("s", color, format_text(label, 24)) for label, color in colors.items()),
        ]
        # Beside the axes, where the legend covers no points.
        place = {"loc": "upper left", "bbox_to_anchor": (1, 1)}
        self.ax_.legend(handles=handles, **place, fontsize="small", frameon=False)

    def _scatter(
        self, points: np.ndarray, labels: Any, colors: dict[Any, Any], marker: str, size: float
    ) -> list[Any]:
        style = {"linewidths": 0.4, "edgecolors": "white", "zorder": 2}
        options = {"marker": marker, "s": size, **style}
        if labels is None:
            color = _IMAGE_COLOR if marker == "o" else _TEXT_COLOR
            return [self.ax_.scatter(points[:, 0], points[:, 1], color=color, **options)]
        numbers = {label: number for number, label in enumerate(colors)}
        others = len(colors) - 1  # the group of the other labels comes last, if there are any
        groups = np.array([numbers.get(label, others) for label in labels])
        return [
            self.ax_.scatter(*points[groups == number].T, color=color, **options)
            for number, color in enumerate(colors.values())
            if (groups == number).any()
        ]

    def _draw_thumbnails(self, n_thumbnails: int) -> list[Any]:
        from matplotlib.offsetbox import AnnotationBbox, OffsetImage

        if self.images is None or n_thumbnails < 1:
            return []
        rows = np.flatnonzero(np.isfinite(self.image_points).all(axis=1))
        sample = np.linspace(0, len(rows) - 1, min(n_thumbnails, len(rows))).round().astype(int)
        drawn = []
        for row in rows[sample]:
            image = OffsetImage(make_thumbnail(self.images[row], _THUMBNAIL_PIXELS), zoom=0.75)
            box = AnnotationBbox(image, self.image_points[row], pad=0.05, zorder=3)
            box.patch.set(edgecolor="0.8", linewidth=0.5)
            drawn.append(self.ax_.add_artist(box))
        return drawn


def _check_labels(labels: Any, n_items: int, name: str, noun: str) -> list[Any] | None:
    """Return one label per `noun` as a list, in which every missing label is None."""
    labels = check_items(labels, n_items, name, noun)
    if labels is None:
        return None
    # NaN is not equal to NaN, so that each would be another label.
    labels = [None if is_missing(label) else to_builtin(label) for label in labels]
    for row, label in enumerate(labels):
        try:
            hash(label)
        except TypeError as error:  # such as a list, or a tuple that holds one
            raise ValueError(
                f"{name} holds {reprlib.repr(label)} in row {row}. Pass one text or number per "
                f"{noun}."
            ) from error
    return labels


def _project(
    sides: list[np.ndarray], reducer: Any, center: bool, random_state: Any
) -> tuple[np.ndarray, tuple[str, str]]:
    """Return points of all rows in two dimensions, NaN for rows of NaN, and names of the axes."""
    if center:
        sides = [_center(side) for side in sides]
    embeddings = np.concatenate(sides)
    is_finite = np.isfinite(embeddings).all(axis=1)
    if not is_finite.all():
        rows = np.flatnonzero(~is_finite)
        warn(
            f"The map leaves out {describe_rows(rows)} with NaN or infinity, counted from the "
            "first image to the last text."
        )
    n_points = int(is_finite.sum())
    if n_points < 3:
        raise ValueError(
            f"image_embeddings and text_embeddings have {n_points} finite rows in all. Pass at "
            "least 3."
        )
    estimator = _make_reducer(reducer, (n_points, embeddings.shape[1]), random_state)
    reduced = np.asarray(estimator.fit_transform(embeddings[is_finite]))
    if reduced.shape != (n_points, 2):
        raise ValueError(
            f"reducer returned an array of shape {reduced.shape}, not ({n_points}, 2). Pass an "
            "estimator with two components."
        )
    axis_names = ("", "")
    if isinstance(estimator, PCA):
        first, second = estimator.explained_variance_ratio_
        axis_names = f"first component ({first:.0%} of variance)", f"second ({second:.0%})"
    points = np.full((len(embeddings), 2), np.nan)
    points[is_finite] = reduced
    return points, axis_names


def _make_reducer(reducer: Any, shape: tuple[int, int], random_state: Any) -> Any:
    """Return an unfitted estimator that reduces embeddings of a shape to two dimensions."""
    n_points, n_components = shape
    if not isinstance(reducer, str):
        return clone(reducer)
    if reducer == "pca":
        if n_components < 2:
            raise ValueError(
                "image_embeddings and text_embeddings have 1 component, and reducer='pca' needs "
                "at least 2. Draw a histogram of the embeddings instead."
            )
        return PCA(2, random_state=random_state)
    if reducer == "tsne":
        # The perplexity must be below the number of points; 30 is scikit-learn's default.
        perplexity = min(30.0, (n_points - 1) / 3)
        options: dict[str, Any] = {"perplexity": perplexity, "random_state": random_state}
        return TSNE(2, metric="cosine", init="random", **options)
    raise ValueError(f"reducer must be 'pca', 'tsne' or an estimator, not {reducer!r}.")


def _center(side: np.ndarray) -> np.ndarray:
    """Subtract the mean of the rows without NaN, if there are any."""
    rows = side[~np.isnan(side).any(axis=1)]
    return side - rows.mean(axis=0) if len(rows) else side


def _assign_colors(*label_lists: Any) -> dict[Any, Any]:
    """Return a color for each label; beyond ten labels, one grey for the less frequent ones."""
    counts = Counter(label for labels in label_lists if labels is not None for label in labels)
    from matplotlib import color_sequences

    palette = list(color_sequences["tab10"])
    grey = palette.pop(_GREY_INDEX)
    has_others = len(counts) > _MAX_COLORS
    colored = [label for label, _ in counts.most_common(_MAX_COLORS - has_others)]
    # Grey comes last. It is for the less frequent labels, or for the tenth label.
    colors = dict(zip(sorted(colored, key=str), [*palette, grey], strict=False))
    if has_others:
        colors[name_others(counts)] = grey
    return colors
