"""Both modalities on one flat map."""

from __future__ import annotations

from typing import Any, Self

import numpy as np
from sklearn.utils import check_array
from sklearn.utils.validation import check_is_fitted

from ._plotting import (
    OTHERS,
    aligner_and_input,
    axes_for,
    check_names,
    checked_pairs,
    colors_of,
    flat_points,
    images_in,
    plain,
    thumbnail,
)

_THUMBNAIL_PIXELS = 32
_IMAGE_COLOR, _TEXT_COLOR = "tab:blue", "tab:orange"


class EmbeddingMapDisplay:
    """Two dimensions of the shared space: images are circles, captions triangles.

    Make it with `from_estimator` or `from_predictions`.

    Parameters
    ----------
    image_points : ndarray of shape (n_images, 2)
        Places of images.
    text_points : ndarray of shape (n_texts, 2)
        Places of captions.
    pairs : ndarray of shape (n_pairs, 2) or None, default=None
        What belongs together: a thin line each. None draws none.
    image_labels, text_labels : sequence or None, default=None
        Colour. Beyond ten labels the rarer ones share a grey.
    images : sequence of images of length n_images or None, default=None
        Shown in place of circles if `plot` is asked for thumbnails.
    axis_names : tuple of str, default=("", "")
        What the axes are.

    Attributes
    ----------
    image_points_, text_points_ : list of matplotlib.collections.PathCollection
        What was drawn, by colour.
    lines_ : matplotlib.collections.LineCollection or None
        Of the pairs.
    thumbnails_ : list of matplotlib.offsetbox.AnnotationBbox
        Images.
    ax_ : matplotlib.axes.Axes
        Where it was drawn.
    figure_ : matplotlib.figure.Figure
        Of these axes.

    See Also
    --------
    SimilarityMatrixDisplay : The cosines themselves.

    Notes
    -----
    **The modality gap.** In spaces trained contrastively images and captions tend to lie in two
    separate cones [1]_: an image can be nearest to its own caption among all captions, and yet
    nearer to every other image than to it. The first axis of a map then shows nothing but the
    modality. This is no fault of retrieval, which compares captions with one another only.
    ``center=True`` subtracts the mean of each modality, so that the map shows what is left; it
    also hides how large the gap is.

    A map of two dimensions drops most of what the space holds. Distances in a t-SNE map mean
    nothing beyond the nearest neighbours. Do not judge an aligner by it: see
    `RecallCurveDisplay`.

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

    def __init__(
        self,
        image_points: np.ndarray,
        text_points: np.ndarray,
        *,
        pairs: np.ndarray | None = None,
        image_labels: Any = None,
        text_labels: Any = None,
        images: Any = None,
        axis_names: tuple[str, str] = ("", ""),
    ) -> None:
        self.image_points = image_points
        self.text_points = text_points
        self.pairs = pairs
        self.image_labels = image_labels
        self.text_labels = text_labels
        self.images = images
        self.axis_names = axis_names

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
            A fitted aligner or a Pipeline that ends in one; a name or None as
            `ZeroShotClassifier` takes them.
        X : sequence of images, or array-like of shape (n_images, n_features)
            What the estimator takes.
        y : sequence of str, or array-like of shape (n_texts, n_text_features)
            Texts, not necessarily as many as images.
        images : sequence of images of length n_images or None, default=None
            For thumbnails where X is features.
        pairs, labels, text_labels, reducer, center, random_state : object
            See `from_predictions`.
        ax : matplotlib.axes.Axes or None, default=None
            Where to draw. None makes a figure.
        **plot_options : object
            Given to `plot`.

        Returns
        -------
        display : EmbeddingMapDisplay
            Drawn.
        """
        aligner, features = aligner_and_input(estimator, X)
        check_is_fitted(aligner)
        return cls.from_predictions(
            aligner.transform(features),
            aligner.transform_text(y),
            images=images_in(X) if images is None else images,
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
        image_embeddings : array-like of shape (n_images, n_components)
            Images. Rows of NaN are left out.
        text_embeddings : array-like of shape (n_texts, n_components)
            Captions, in the same space.
        images : sequence of images of length n_images or None, default=None
            For thumbnails.
        pairs : {"auto"}, array-like of shape (n_pairs, 2) or None, default="auto"
            What is joined by lines. ``"auto"`` joins what stands at the same place, if there are
            as many texts as images.
        labels : sequence of length n_images or None, default=None
            Colours of the images.
        text_labels : sequence of length n_texts or None, default=None
            Colours of the captions. None takes `labels`, if there are as many.
        reducer : {"pca", "tsne"} or estimator, default="pca"
            Makes two dimensions of many. t-SNE works with cosines. Any estimator with
            ``fit_transform`` and two components, such as one of UMAP, is cloned.
        center : bool, default=False
            Whether the mean of each modality is subtracted first; see the notes.
        random_state : int, RandomState instance or None, default=None
            Of the reducer, where it was named.
        ax : matplotlib.axes.Axes or None, default=None
            Where to draw. None makes a figure.
        **plot_options : object
            Given to `plot`.

        Returns
        -------
        display : EmbeddingMapDisplay
            Drawn.

        Raises
        ------
        ValueError
            When the widths or lengths do not agree, or there are too few points.
        """
        sides = [
            check_array(side, dtype=np.float64, ensure_all_finite="allow-nan", input_name=name)
            for side, name in (
                (image_embeddings, "image_embeddings"),
                (text_embeddings, "text_embeddings"),
            )
        ]
        n_images, n_texts = map(len, sides)
        if sides[0].shape[1] != sides[1].shape[1]:
            raise ValueError(
                f"Images have {sides[0].shape[1]} components and texts {sides[1].shape[1]}: "
                "pass embeddings of one space, not features."
            )
        images = check_names(images, n_images, "images", "image")
        if text_labels is None and labels is not None and len(labels) == n_texts == n_images:
            text_labels = labels
        labels = check_names(labels, n_images, "labels", "image")
        text_labels = check_names(text_labels, n_texts, "text_labels", "text")
        if isinstance(pairs, str):
            if pairs != "auto":
                raise ValueError(f"pairs must be 'auto', an array or None, not {pairs!r}.")
            pairs = checked_pairs(None, n_images, n_texts) if n_images == n_texts else None
        elif pairs is not None:
            pairs = checked_pairs(pairs, n_images, n_texts)
        points, axis_names = flat_points(sides, reducer, center, random_state)
        display = cls(
            points[:n_images],
            points[n_images:],
            pairs=pairs,
            image_labels=labels,
            text_labels=text_labels,
            images=images,
            axis_names=axis_names,
        )
        return display.plot(ax=ax, **plot_options)

    def plot(
        self,
        ax: Any = None,
        *,
        thumbnails: bool | int = False,
        lines: bool = True,
        legend: bool = True,
        size: float = 28.0,
    ) -> Self:
        """Draw, without computing anything.

        Parameters
        ----------
        ax : matplotlib.axes.Axes or None, default=None
            Where to draw. None makes a figure.
        thumbnails : bool or int, default=False
            How many of the images, evenly spaced, are shown themselves. True is 100.
        lines : bool, default=True
            Whether pairs are joined.
        legend : bool, default=True
            Whether to say what is what.
        size : float, default=28.0
            Area of a mark in square points.

        Returns
        -------
        display : EmbeddingMapDisplay
            This one.
        """
        from matplotlib.collections import LineCollection

        self.ax_ = ax = axes_for(ax, 8.4, 6)
        self.figure_ = ax.figure
        colors = colors_of(self.image_labels, self.text_labels)
        self.lines_ = None
        if lines and self.pairs is not None and len(self.pairs):
            ends = np.stack(
                [self.image_points[self.pairs[:, 0]], self.text_points[self.pairs[:, 1]]], axis=1
            )
            self.lines_ = LineCollection(
                ends[np.isfinite(ends).all(axis=(1, 2))], colors="0.75", linewidths=0.6, zorder=1
            )
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

        def mark(shape: str, color: Any, words: str) -> Any:
            return Line2D([], [], marker=shape, linestyle="", color=color, label=words)

        handles = [
            mark("o", _IMAGE_COLOR if self.image_labels is None else "0.35", "image"),
            mark("^", _TEXT_COLOR if self.text_labels is None else "0.35", "caption"),
            *(mark("s", color, plain(label, 24)) for label, color in colors.items()),
        ]
        # Beside the axes, where no point can lie below it.
        self.ax_.legend(
            handles=handles,
            loc="upper left",
            bbox_to_anchor=(1, 1),
            fontsize="small",
            frameon=False,
        )

    def _scatter(
        self, points: np.ndarray, labels: Any, colors: dict[Any, Any], mark: str, size: float
    ) -> list[Any]:
        options = {
            "marker": mark,
            "s": size,
            "linewidths": 0.4,
            "edgecolors": "white",
            "zorder": 2,
        }
        if labels is None:
            color = _IMAGE_COLOR if mark == "o" else _TEXT_COLOR
            return [self.ax_.scatter(points[:, 0], points[:, 1], color=color, **options)]
        names = np.array([str(label if label in colors else OTHERS) for label in labels])
        return [
            self.ax_.scatter(*points[names == str(label)].T, color=color, **options)
            for label, color in colors.items()
            if (names == str(label)).any()
        ]

    def _draw_thumbnails(self, most: int) -> list[Any]:
        from matplotlib.offsetbox import AnnotationBbox, OffsetImage

        if self.images is None or most < 1:
            return []
        known = np.flatnonzero(np.isfinite(self.image_points).all(axis=1))
        some = known[np.linspace(0, len(known) - 1, min(most, len(known))).round().astype(int)]
        drawn = []
        for row in some:
            small = OffsetImage(thumbnail(self.images[row], _THUMBNAIL_PIXELS), zoom=0.75)
            box = AnnotationBbox(small, self.image_points[row], pad=0.05, zorder=3)
            box.patch.set(edgecolor="0.8", linewidth=0.5)
            drawn.append(self.ax_.add_artist(box))
        return drawn
