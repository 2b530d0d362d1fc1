"""Training history: loss and held-out recall per epoch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any, Self

from sklearn.utils.validation import check_is_fitted

from ..aligners.wrapper import unwrap_aligner
from ._plotting import format_text, get_axes

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
            When the aligner has no history, since its solution is in closed form or it had too few
            pairs to hold any out and kept its initialization.
        """
        aligner = unwrap_aligner(estimator)
        check_is_fitted(aligner)
        history = getattr(aligner, "history_", None)
        if history is None:
            raise ValueError(
                f"estimator is a {type(aligner).__name__}, which has no history_, since it is not "
                "trained in epochs. Pass an APEAligner or a LiTAligner."
            )
        display = cls(
            [dict(row) for row in history],
            best_epoch=getattr(aligner, "best_epoch_", None),
            estimator_name=type(aligner).__name__ if name is None else name,
        )
        return display.plot(ax=ax, **plot_options)

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
            When the history is empty.
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
        ax.xaxis.get_major_locator().set_params(integer=True)
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
