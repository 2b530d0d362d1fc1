"""Plots of training histories and of recall@k in both directions, with the chance level."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any, Self

import numpy as np
from scipy.stats import hypergeom
from sklearn.utils.validation import check_is_fitted

from ..aligners.similarity import SparseRows
from ..aligners.wrapper import unwrap_aligner
from ..metrics import recall_at_k
from ..metrics.retrieval import check_embeddings, compute_both_ranks
from ._plotting import check_pairs, format_text, get_aligner_and_input, get_axes

_LOSS_COLOR, _RECALL_COLOR = "tab:blue", "tab:orange"


@dataclass(eq=False, repr=False)
class TrainingHistoryDisplay:
    """Training loss (left axis) and recall on held-out pairs (right axis) per epoch.

    The recall is the mean of recall@1, 5 and 10 in both directions, which early stopping monitors.
    A vertical line marks the epoch that was kept, and a dashed horizontal line the recall of the
    initialization. Create the display with `from_estimator`.

    Parameters
    ----------
    history : sequence of dict
        One dict per epoch, as in ``history_``, with ``epoch`` and ``train_loss``, and with
        ``valid_recall`` if pairs were held out. Epoch 0 is the initialization.
    best_epoch : int or None, default=None
        Epoch that was kept, as in ``best_epoch_``.
    estimator_name : str or None, default=None
        Title of the display.

    Attributes
    ----------
    loss_line_, recall_line_ : matplotlib.lines.Line2D or None
        Curves of the loss and of the recall, or None if they are not in the history.
    start_line_, best_line_ : matplotlib.lines.Line2D or None
        Lines at the recall of the initialization and at the epoch that was kept.
    ax_ : matplotlib.axes.Axes
        Axes of the loss.
    recall_ax_ : matplotlib.axes.Axes or None
        Axes of the recall.
    figure_ : matplotlib.figure.Figure
        Figure of the axes.

    See Also
    --------
    sklearn_ape.APEAligner : Aligner with a history, as `LiTAligner` is.

    Examples
    --------
    >>> from sklearn_ape.inspection import TrainingHistoryDisplay
    >>> history = [
    ...     {"epoch": 0, "valid_recall": 0.2},
    ...     {"epoch": 1, "train_loss": 5.1, "valid_recall": 0.3},
    ...     {"epoch": 2, "train_loss": 4.2, "valid_recall": 0.25},
    ... ]
    >>> display = TrainingHistoryDisplay(history, best_epoch=1).plot()
    >>> display.recall_line_.get_xdata().tolist()
    [0, 1, 2]
    """

    history: Sequence[Mapping[str, Any]]
    _: KW_ONLY
    best_epoch: int | None = None
    estimator_name: str | None = None

    @classmethod
    def from_estimator(
        cls, estimator: Any, *, name: str | None = None, ax: Any = None, **plot_options: Any
    ) -> Self:
        """Draw the training history of an aligner.

        Parameters
        ----------
        estimator : estimator
            Fitted `APEAligner` or `LiTAligner`, or a Pipeline or search that ends in one.
        name : str or None, default=None
            Title of the display. None takes the name of the class.
        ax, **plot_options : object
            Axes to draw on, and other arguments of `plot`.

        Returns
        -------
        display : TrainingHistoryDisplay

        Raises
        ------
        ValueError
            If the aligner has no history, since its solution is in closed form or it had too few
            pairs to hold any out and kept its initialization.
        """
        aligner = unwrap_aligner(estimator, "estimator")
        check_is_fitted(aligner)
        history = getattr(aligner, "history_", None)
        if history is None:
            raise ValueError(
                f"estimator is a {type(aligner).__name__}, which has no history_, since it is not "
                "trained in epochs. Pass an APEAligner or a LiTAligner."
            )
        return cls(
            [dict(row) for row in history],
            best_epoch=getattr(aligner, "best_epoch_", None),
            estimator_name=type(aligner).__name__ if name is None else name,
        ).plot(ax=ax, **plot_options)

    def plot(self, ax: Any = None, *, legend: bool = True) -> Self:
        """Draw the stored results.

        Parameters
        ----------
        ax : matplotlib.axes.Axes or None, default=None
            Axes to draw on. None creates a figure.
        legend : bool, default=True
            Whether to draw a legend.

        Returns
        -------
        display : TrainingHistoryDisplay

        Raises
        ------
        ValueError
            If the history is empty.
        """
        losses = _get_series(self.history, "train_loss")
        recalls = _get_series(self.history, "valid_recall")
        if not (losses or recalls):
            raise ValueError(
                "history is empty, since no epoch was run. With init='auto' and too few pairs to "
                "hold any out, APEAligner keeps its initialization. To train it, pass "
                "early_stopping=False."
            )
        self.ax_ = ax = get_axes(ax, 7, 4.2)
        from matplotlib.ticker import MaxNLocator

        self.figure_ = ax.figure
        self.loss_line_ = self.recall_line_ = self.start_line_ = self.best_line_ = None
        self.recall_ax_ = None
        ax.set_xlabel("epoch")
        if losses:
            epochs, values = zip(*losses, strict=True)
            style = {"color": _LOSS_COLOR, "marker": _choose_marker(losses)}
            (self.loss_line_,) = ax.plot(epochs, values, label="training loss", **style)
            ax.set_ylabel("training loss", color=_LOSS_COLOR)
        if recalls:
            self._draw_recall(recalls)
        if self.best_epoch is not None:
            best = self.best_epoch
            label = "initialization was kept" if best == 0 else f"epoch {best} was kept"
            self.best_line_ = ax.axvline(best, color="tab:green", linestyle=":", label=label)
        ax.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        title = None if self.estimator_name is None else format_text(self.estimator_name, 60)
        if legend:
            lines = (self.loss_line_, self.recall_line_, self.start_line_, self.best_line_)
            handles = [line for line in lines if line is not None]
            # Above the axes, where no curve of either axis crosses the legend.
            place = {"loc": "lower center", "bbox_to_anchor": (0.5, 1.0), "ncols": len(handles)}
            ax.legend(handles=handles, title=title, **place, fontsize="small", frameon=False)
        elif title:
            ax.set_title(title)
        return self

    def _draw_recall(self, recalls: list[tuple[int, float]]) -> None:
        from matplotlib.ticker import PercentFormatter

        self.recall_ax_ = right = self.ax_.twinx()
        epochs, values = zip(*recalls, strict=True)
        style: dict[str, Any] = {"color": _RECALL_COLOR, "marker": _choose_marker(recalls)}
        (self.recall_line_,) = right.plot(epochs, values, label="held-out recall", **style)
        if epochs[0] == 0:
            style = {"color": _RECALL_COLOR, "linestyle": "--", "linewidth": 1}
            self.start_line_ = right.axhline(values[0], label="recall of initialization", **style)
        right.yaxis.set_major_formatter(PercentFormatter(1.0))
        right.set_ylabel("held-out recall (mean of @1, 5 and 10)", color=_RECALL_COLOR)


def _get_series(history: Sequence[Mapping[str, Any]], key: str) -> list[tuple[int, float]]:
    return [
        (row.get("epoch", number), row[key]) for number, row in enumerate(history, 1) if key in row
    ]


def _choose_marker(points: list[tuple[int, float]]) -> str:
    return "o" if len(points) < 30 else ""


_MAX_KS = 60
_CHANCE = "chance"
_DIRECTIONS = {
    "image_to_text": ("image → caption", "-"),
    "text_to_image": ("caption → image", "--"),
}


@dataclass(eq=False, repr=False)
class RecallCurveDisplay:
    """Recall@k, the fraction of queries with a match among the first k results, over k.

    A solid line shows the retrieval of captions by images, and a dashed line the retrieval of
    images by captions. To compare estimators on one axes, pass ``ax=display.ax_``. Create the
    display with `from_estimator` or `from_predictions`.

    Parameters
    ----------
    ks : ndarray of shape (n_ks,)
        Values of k.
    recall : dict
        Recall by direction, ``{"image_to_text": ndarray of shape (n_ks,), "text_to_image": ...}``.
        One of the directions may be missing.
    chance : dict or None, default=None
        Recall of a random order, by direction.
    estimator_name : str or None, default=None
        Name of the estimator in the legend.

    Attributes
    ----------
    lines_ : dict
        Curves of recall, `matplotlib.lines.Line2D` by direction.
    chance_lines_ : dict
        Curves of the chance level by direction, unless the axes already had an equal curve.
    ax_, figure_ : matplotlib.axes.Axes, matplotlib.figure.Figure
        Axes and figure of the display.

    See Also
    --------
    sklearn_ape.metrics.retrieval_report : Computes recall without drawing it.

    Notes
    -----
    Recall decreases with the number of candidates, so compare only curves of the same test set.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn_ape.inspection import RecallCurveDisplay
    >>> display = RecallCurveDisplay.from_predictions(np.eye(4), np.eye(4)[[0, 1, 3, 2]])
    >>> display.ks.tolist(), display.recall["image_to_text"].tolist()
    ([1, 2, 3, 4], [0.5, 0.5, 0.5, 1.0])
    """

    ks: np.ndarray
    recall: dict[str, np.ndarray]
    _: KW_ONLY
    chance: dict[str, np.ndarray] | None = None
    estimator_name: str | None = None

    @classmethod
    def from_estimator(
        cls,
        estimator: Any,
        X: Any,
        y: Any,
        *,
        groups: Any = None,
        ks: Sequence[int] | None = None,
        name: str | None = None,
        ax: Any = None,
        **plot_options: Any,
    ) -> Self:
        """Draw the recall of an aligner on pairs, which it should not have been fitted on.

        Parameters
        ----------
        estimator : estimator, str or None
            Fitted aligner, or a Pipeline that ends in one. A name or None stands for the aligner
            that `ZeroShotClassifier` takes for it.
        X : sequence of images, or array-like of shape (n_samples, n_features)
            Images, or features if the estimator takes features.
        y : sequence of captions, or array-like of shape (n_samples, n_text_features)
            One or several captions per image, or their features, as in `fit`. Any caption of an
            image counts as a match.
        groups : array-like of shape (n_samples,) or None, default=None
            Group of each row, such as the file name of its image; see the method
            ``retrieval_ranks`` of the aligner.
        name : str or None, default=None
            Name in the legend. None takes the name of the class.
        ks, ax, **plot_options : object
            Options of `from_predictions`.

        Returns
        -------
        display : RecallCurveDisplay
        """
        aligner, features = get_aligner_and_input(estimator, X)
        data = aligner._make_scored_pairs(features, y, groups)
        return cls.from_predictions(
            aligner._embed_comparable("image", data.image),
            aligner._embed_comparable("text", data.text),
            pairs=data.pairs,
            ks=ks,
            name=type(aligner).__name__ if name is None else name,
            ax=ax,
            **plot_options,
        )

    @classmethod
    def from_predictions(
        cls,
        image_embeddings: Any,
        text_embeddings: Any,
        *,
        pairs: Any = None,
        ks: Sequence[int] | None = None,
        name: str | None = None,
        ax: Any = None,
        **plot_options: Any,
    ) -> Self:
        """Draw the recall of embeddings.

        Parameters
        ----------
        image_embeddings, text_embeddings : array-like of shape (n_rows, n_components)
            L2-normalized embeddings, one row per distinct image and per distinct caption.
        pairs : ndarray of shape (n_pairs, 2) or None, default=None
            Indices of images and captions that belong together. None pairs images and captions at
            the same index.
        ks : sequence of int or None, default=None
            Values of k. None takes up to 60 values, from 1 to the number of candidates.
        name : str or None, default=None
            Name in the legend.
        ax, **plot_options : object
            Axes to draw on, and other arguments of `plot`.

        Returns
        -------
        display : RecallCurveDisplay

        Raises
        ------
        ValueError
            If a row has no match, k is below 1, or an embedding is not finite.
        """
        if not isinstance(image_embeddings, SparseRows):
            image_embeddings, text_embeddings = check_embeddings(
                image_embeddings=image_embeddings, text_embeddings=text_embeddings
            )
        n_images, n_texts = len(image_embeddings), len(text_embeddings)
        pairs = np.unique(check_pairs(pairs, n_images, n_texts), axis=0)
        largest = max(n_images, n_texts)
        if ks is None:
            values = np.geomspace(1, largest, min(largest, _MAX_KS)).round().astype(int)
        else:
            values = np.atleast_1d(np.asarray(ks))
        if values.size == 0 or values.dtype.kind not in "iu" or values.min() < 1:
            raise ValueError(f"ks must be integers of at least 1, not {values.tolist()}.")
        values = np.unique(values)
        both_ranks = compute_both_ranks(image_embeddings, text_embeddings, pairs)
        recall = {
            direction: np.array([recall_at_k(ranks, int(k)) for k in values])
            for direction, ranks in zip(_DIRECTIONS, both_ranks, strict=True)
        }
        n_texts_of_image = np.bincount(pairs[:, 0], minlength=n_images)
        n_images_of_text = np.bincount(pairs[:, 1], minlength=n_texts)
        chance = {
            "image_to_text": _compute_chance(n_texts_of_image, n_texts, values),
            "text_to_image": _compute_chance(n_images_of_text, n_images, values),
        }
        return cls(values, recall, chance=chance, estimator_name=name).plot(ax=ax, **plot_options)

    def plot(
        self,
        ax: Any = None,
        *,
        name: str | None = None,
        color: Any = None,
        plot_chance_level: bool = True,
        legend: bool = True,
        **line_options: Any,
    ) -> Self:
        """Draw the stored results.

        Parameters
        ----------
        ax : matplotlib.axes.Axes or None, default=None
            Axes to draw on, without clearing them. None creates a figure.
        name : str or None, default=None
            Name in the legend. None takes `estimator_name`.
        color : object, default=None
            Color of both curves. None takes the next color of the axes.
        plot_chance_level : bool, default=True
            Whether to draw the recall of a random order.
        legend : bool, default=True
            Whether to draw a legend.
        **line_options : object
            Keyword arguments of matplotlib's ``plot`` for both curves.

        Returns
        -------
        display : RecallCurveDisplay
        """
        self.ax_ = ax = get_axes(ax, 7, 4.8)
        from matplotlib.ticker import LogLocator, NullLocator, PercentFormatter, StrMethodFormatter

        self.figure_ = ax.figure
        name = self.estimator_name if name is None else name
        self.lines_: dict[str, Any] = {}
        self.chance_lines_: dict[str, Any] = {}
        for direction, (text, style) in _DIRECTIONS.items():
            if direction not in self.recall:
                continue
            label = text if name is None else f"{format_text(name)}: {text}"
            options = {"color": color, "linestyle": style, "label": label} | line_options
            (self.lines_[direction],) = ax.plot(self.ks, self.recall[direction], **options)
            color = self.lines_[direction].get_color()  # both curves have one color
        if plot_chance_level and self.chance is not None:
            self._draw_chance(self.chance)
        ax.set_xscale("log")
        ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        ax.xaxis.set_minor_locator(NullLocator())
        ax.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
        ax.yaxis.set_major_formatter(PercentFormatter(1.0))
        ax.set_ylim(-0.02, 1.02)
        ax.set(xlabel="k", ylabel="recall@k")
        if legend:
            ax.legend(loc="best", fontsize="small")
        return self

    def _draw_chance(self, chance: dict[str, np.ndarray]) -> None:
        """Draw the chance level, without curves that are equal to one on the axes."""
        drawn = [line.get_ydata() for line in self.ax_.lines if line.get_gid() == _CHANCE]
        curves = list(chance.values())
        are_equal = all(_look_equal(curve, curves[0]) for curve in curves)
        for direction, values in chance.items():
            if any(_look_equal(curve, values) for curve in drawn):
                continue
            label = _CHANCE if are_equal else f"{_CHANCE}, {_DIRECTIONS[direction][0]}"
            dashes: Any = ":" if direction == "image_to_text" else (0, (1, 4))
            style = {"color": "gray", "linestyle": dashes, "label": label, "gid": _CHANCE}
            (self.chance_lines_[direction],) = self.ax_.plot(self.ks, values, **style)
            drawn.append(values)


def _look_equal(curve: Any, other: Any) -> bool:
    # Curves that differ by less than 0.005 cannot be distinguished in a figure.
    return len(curve) == len(other) and np.allclose(curve, other, atol=0.005)


def _compute_chance(n_positives: np.ndarray, n_candidates: int, ks: np.ndarray) -> np.ndarray:
    """Return the mean probability that k random candidates include a positive."""
    counts, frequencies = np.unique(n_positives, return_counts=True)
    miss = hypergeom.pmf(0, n_candidates, counts[:, None], np.minimum(ks, n_candidates))
    return np.average(1 - miss, axis=0, weights=frequencies)
