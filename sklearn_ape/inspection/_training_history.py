"""How training went: loss and recall on held-out pairs, epoch by epoch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Self

from sklearn.utils.validation import check_is_fitted

from ..aligners.wrapper import unwrap_aligner
from ._plotting import axes_for, plain

_LOSS, _RECALL = "tab:blue", "tab:orange"


class TrainingHistoryDisplay:
    """Training loss (left) and recall on the pairs held out (right) by epoch.

    That recall is the mean of recall@1, 5 and 10 in both directions, which early stopping follows.

    The epoch that was kept has a vertical line; a start that training had to beat is a dashed
    horizontal one. Make it with `from_estimator`.

    Parameters
    ----------
    history : sequence of dict
        One an epoch, as in ``history_``: ``epoch`` and ``train_loss``, ``valid_recall`` where
        pairs were held out. Epoch 0 is the start.
    best_epoch : int or None, default=None
        The epoch that was kept, as in ``best_epoch_``.
    estimator_name : str or None, default=None
        Title.

    Attributes
    ----------
    loss_line_, recall_line_ : matplotlib.lines.Line2D or None
        The curves; None where the history has none.
    start_line_, best_line_ : matplotlib.lines.Line2D or None
        The recall of the start, and the epoch kept.
    ax_ : matplotlib.axes.Axes
        Axes of the loss.
    recall_ax_ : matplotlib.axes.Axes or None
        Axes of the recall.
    figure_ : matplotlib.figure.Figure
        Of these axes.

    See Also
    --------
    sklearn_ape.APEAligner : Has a history, as `LiTAligner` does.

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

    def __init__(
        self,
        history: Sequence[Mapping[str, Any]],
        *,
        best_epoch: int | None = None,
        estimator_name: str | None = None,
    ) -> None:
        self.history = history
        self.best_epoch = best_epoch
        self.estimator_name = estimator_name

    @classmethod
    def from_estimator(
        cls, estimator: Any, *, name: str | None = None, ax: Any = None, **plot_options: Any
    ) -> Self:
        """Draw how the training of an aligner went.

        Parameters
        ----------
        estimator : estimator
            A fitted `APEAligner` or `LiTAligner`, or a Pipeline or search that ends in one.
        name : str or None, default=None
            Title. None is the name of the class.
        ax : matplotlib.axes.Axes or None, default=None
            Where to draw. None makes a figure.
        **plot_options : object
            Given to `plot`.

        Returns
        -------
        display : TrainingHistoryDisplay
            Drawn.

        Raises
        ------
        ValueError
            When the aligner has no history: its solution is in closed form, or it had too few
            pairs to hold any out and kept its start.
        """
        aligner = unwrap_aligner(estimator)
        check_is_fitted(aligner)
        history = getattr(aligner, "history_", None)
        if history is None:
            raise ValueError(
                f"{type(aligner).__name__} has no history_: it is not trained by epochs. Pass an "
                "APEAligner or a LiTAligner."
            )
        display = cls(
            [dict(row) for row in history],
            best_epoch=getattr(aligner, "best_epoch_", None),
            estimator_name=type(aligner).__name__ if name is None else name,
        )
        return display.plot(ax=ax, **plot_options)

    def plot(self, ax: Any = None, *, legend: bool = True) -> Self:
        """Draw, without computing anything.

        Parameters
        ----------
        ax : matplotlib.axes.Axes or None, default=None
            Where to draw. None makes a figure.
        legend : bool, default=True
            Whether to say which line is which.

        Returns
        -------
        display : TrainingHistoryDisplay
            This one.

        Raises
        ------
        ValueError
            When the history is empty.
        """
        losses = _column(self.history, "train_loss")
        recalls = _column(self.history, "valid_recall")
        if not (losses or recalls):
            raise ValueError(
                "The history is empty: no epoch was run. With init='auto' and too few pairs to "
                "hold any out, APEAligner keeps its start; with early_stopping=False it trains."
            )
        self.ax_ = ax = axes_for(ax, 7, 4.2)
        self.figure_ = ax.figure
        self.loss_line_ = self.recall_line_ = self.start_line_ = self.best_line_ = None
        self.recall_ax_ = None
        ax.set_xlabel("epoch")
        if losses:
            epochs, values = zip(*losses, strict=True)
            (self.loss_line_,) = ax.plot(
                epochs, values, color=_LOSS, marker=_dots(losses), label="training loss"
            )
            ax.set_ylabel("training loss", color=_LOSS)
        if recalls:
            self._draw_recall(recalls)
        if self.best_epoch is not None:
            best = self.best_epoch
            words = "the start was kept" if best == 0 else f"epoch {best} was kept"
            self.best_line_ = ax.axvline(
                self.best_epoch, color="tab:green", linestyle=":", label=words
            )
        ax.xaxis.get_major_locator().set_params(integer=True)
        title = None if self.estimator_name is None else plain(self.estimator_name, 60)
        if legend:
            lines = (self.loss_line_, self.recall_line_, self.start_line_, self.best_line_)
            shown = [line for line in lines if line is not None]
            # Above the axes: within them a curve of either scale would run through the words.
            ax.legend(
                handles=shown,
                title=title,
                loc="lower center",
                bbox_to_anchor=(0.5, 1.0),
                ncols=len(shown),
                fontsize="small",
                frameon=False,
            )
        elif title:
            ax.set_title(title)
        return self

    def _draw_recall(self, recalls: list[tuple[int, float]]) -> None:
        from matplotlib.ticker import PercentFormatter

        self.recall_ax_ = right = self.ax_.twinx()
        epochs, values = zip(*recalls, strict=True)
        (self.recall_line_,) = right.plot(
            epochs, values, color=_RECALL, marker=_dots(recalls), label="held-out recall"
        )
        if epochs[0] == 0:
            self.start_line_ = right.axhline(
                values[0], color=_RECALL, linestyle="--", linewidth=1, label="recall of the start"
            )
        right.yaxis.set_major_formatter(PercentFormatter(1.0))
        right.set_ylabel("held-out recall (mean of @1, 5 and 10)", color=_RECALL)


def _column(history: Sequence[Mapping[str, Any]], key: str) -> list[tuple[int, float]]:
    return [(row.get("epoch", n), row[key]) for n, row in enumerate(history, 1) if key in row]


def _dots(points: list[tuple[int, float]]) -> str:
    return "o" if len(points) < 30 else ""
