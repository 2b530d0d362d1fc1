"""Recall@k over k, both ways, beside chance."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

import numpy as np
from scipy.special import gammaln
from sklearn.utils.validation import check_is_fitted

from ..metrics import recall_at_k
from ..metrics.retrieval import compute_both_ranks
from ._plotting import aligner_and_input, axes_for, checked_pairs, plain

_MOST_KS = 60
_CHANCE = "chance"
_WAYS = {"image_to_text": ("image → caption", "-"), "text_to_image": ("caption → image", "--")}


class RecallCurveDisplay:
    """Share of the queries whose match is among the first k, by k.

    Solid for finding captions by images, dashed for images by captions. Several estimators go
    on one axes with ``ax=display.ax_``. Make it with `from_estimator` or `from_predictions`.

    Parameters
    ----------
    ks : ndarray of shape (n_ks,)
        Where recall was taken.
    recall : dict
        ``{"image_to_text": ndarray of shape (n_ks,), "text_to_image": ...}``; one of them may be
        missing.
    chance : dict or None, default=None
        The same of a random order.
    estimator_name : str or None, default=None
        For the legend.

    Attributes
    ----------
    lines_ : dict
        The two curves, `matplotlib.lines.Line2D` by direction.
    chance_lines_ : dict
        Those of chance. One that the axes has already is not drawn again.
    ax_ : matplotlib.axes.Axes
        Where it was drawn.
    figure_ : matplotlib.figure.Figure
        Of these axes.

    See Also
    --------
    sklearn_ape.metrics.retrieval_report : The numbers alone.

    Notes
    -----
    Recall falls with the number of candidates: compare curves of one test set.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn_ape.inspection import RecallCurveDisplay
    >>> display = RecallCurveDisplay.from_predictions(np.eye(4), np.eye(4)[[0, 1, 3, 2]])
    >>> display.ks.tolist(), display.recall["image_to_text"].tolist()
    ([1, 2, 3, 4], [0.5, 0.5, 0.5, 1.0])
    """

    def __init__(
        self,
        ks: np.ndarray,
        recall: dict[str, np.ndarray],
        *,
        chance: dict[str, np.ndarray] | None = None,
        estimator_name: str | None = None,
    ) -> None:
        self.ks = ks
        self.recall = recall
        self.chance = chance
        self.estimator_name = estimator_name

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
        """Draw the recall of an aligner on pairs, best on pairs that it was not fitted on.

        Parameters
        ----------
        estimator : estimator, str or None
            A fitted aligner or a Pipeline that ends in one; a name or None as
            `ZeroShotClassifier` takes them.
        X : sequence of images, or array-like of shape (n_samples, n_features)
            What the estimator takes.
        y : sequence of captions, or array-like of shape (n_samples, n_text_features)
            One or several captions per image, as in `fit`. A hit on any of them counts.
        groups : array-like of shape (n_samples,) or None, default=None
            Group of every row, such as the file name of its image; see the aligner's
            ``retrieval_ranks``.
        ks : sequence of int or None, default=None
            Where recall is taken. None takes up to 60, from 1 to the number of candidates.
        name : str or None, default=None
            For the legend. None is the name of the class.
        ax : matplotlib.axes.Axes or None, default=None
            Where to draw. None makes a figure.
        **plot_options : object
            Given to `plot`.

        Returns
        -------
        display : RecallCurveDisplay
            Drawn.
        """
        aligner, features = aligner_and_input(estimator, X)
        check_is_fitted(aligner)
        data = aligner._scored_pairs(features, y, groups)
        return cls.from_predictions(
            *aligner._compared(data),
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
        image_embeddings : ndarray of shape (n_images, n_components)
            One row a distinct image, of length 1.
        text_embeddings : ndarray of shape (n_texts, n_components)
            One row a distinct caption, of length 1.
        pairs : ndarray of shape (n_pairs, 2) or None, default=None
            Rows of images and captions that belong together. None pairs those at the same
            place.
        ks : sequence of int or None, default=None
            Where recall is taken. None takes up to 60, from 1 to the number of candidates.
        name : str or None, default=None
            For the legend.
        ax : matplotlib.axes.Axes or None, default=None
            Where to draw. None makes a figure.
        **plot_options : object
            Given to `plot`.

        Returns
        -------
        display : RecallCurveDisplay
            Drawn.

        Raises
        ------
        ValueError
            When a row has no match, a k is below 1, or an embedding is not finite.
        """
        n_images, n_texts = len(image_embeddings), len(text_embeddings)
        pairs = np.unique(checked_pairs(pairs, n_images, n_texts), axis=0)
        most = max(n_images, n_texts)
        places: np.ndarray = (
            np.geomspace(1, most, min(most, _MOST_KS)).round().astype(int)
            if ks is None
            else np.atleast_1d(np.asarray(ks))
        )
        if places.size == 0 or places.dtype.kind not in "iu" or places.min() < 1:
            raise ValueError(f"ks must be integers of at least 1, not {places.tolist()}.")
        places = np.unique(places)
        of_images, of_texts = compute_both_ranks(image_embeddings, text_embeddings, pairs)
        recall = {
            way: np.array([recall_at_k(ranks, int(k)) for k in places])
            for way, ranks in zip(_WAYS, (of_images, of_texts), strict=True)
        }
        chance = {
            way: _chance(np.bincount(pairs[:, side], minlength=n), n_others, places)
            for way, side, n, n_others in (
                ("image_to_text", 0, n_images, n_texts),
                ("text_to_image", 1, n_texts, n_images),
            )
        }
        return cls(places, recall, chance=chance, estimator_name=name).plot(ax=ax, **plot_options)

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
        """Draw, without computing anything.

        Parameters
        ----------
        ax : matplotlib.axes.Axes or None, default=None
            Where to draw, beside what is there. None makes a figure.
        name : str or None, default=None
            For the legend. None is `estimator_name`.
        color : object, default=None
            Of both curves. None takes the next one.
        plot_chance_level : bool, default=True
            Whether the recall of a random order is drawn as well.
        legend : bool, default=True
            Whether to say which line is which.
        **line_options : object
            For matplotlib's ``plot``, of both curves.

        Returns
        -------
        display : RecallCurveDisplay
            This one.
        """
        from matplotlib.ticker import LogLocator, NullLocator, PercentFormatter, StrMethodFormatter

        self.ax_ = ax = axes_for(ax, 7, 4.8)
        self.figure_ = ax.figure
        name = self.estimator_name if name is None else name
        self.lines_: dict[str, Any] = {}
        self.chance_lines_: dict[str, Any] = {}
        for way, (words, style) in _WAYS.items():
            if way not in self.recall:
                continue
            label = words if name is None else f"{plain(name)}: {words}"
            options = {"color": color, "linestyle": style, "label": label} | line_options
            (self.lines_[way],) = ax.plot(self.ks, self.recall[way], **options)
            color = self.lines_[way].get_color()
        if plot_chance_level and self.chance is not None:
            self._draw_chance()
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

    def _draw_chance(self) -> None:
        """Draw chance: once on the axes, and once for both directions where it is the same."""
        assert self.chance is not None
        there = [line.get_ydata() for line in self.ax_.lines if line.get_gid() == _CHANCE]
        curves = list(self.chance.values())
        same = all(_same(curve, curves[0]) for curve in curves)
        for way, values in self.chance.items():
            if any(_same(one, values) for one in there):
                continue
            label = _CHANCE if same else f"{_CHANCE}, {_WAYS[way][0]}"
            style: Any = ":" if way == "image_to_text" else (0, (1, 4))
            (line,) = self.ax_.plot(
                self.ks, values, color="gray", linestyle=style, label=label, gid=_CHANCE
            )
            self.chance_lines_[way] = line
            there.append(values)


def _same(one: Any, other: Any) -> bool:
    """Say whether two curves of chance would lie on each other in a figure."""
    return len(one) == len(other) and np.allclose(one, other, atol=0.005)


def _chance(n_positives: np.ndarray, n_candidates: int, ks: np.ndarray) -> np.ndarray:
    """Return the mean chance that k of the candidates, drawn at random, hold a positive.

    The draw holds none with probability C(n - p, k) / C(n, k).
    """
    counts, of_each = np.unique(n_positives, return_counts=True)
    others = n_candidates - counts[:, None]
    k = np.minimum(ks, n_candidates)[None, :]
    possible = others - k >= 0
    log_none = (
        gammaln(others + 1)
        - gammaln(np.where(possible, others - k, 0) + 1)
        - gammaln(n_candidates + 1)
        + gammaln(n_candidates - k + 1)
    )
    none = np.where(possible, np.exp(log_none), 0.0)
    return np.average(1 - none, axis=0, weights=of_each)
