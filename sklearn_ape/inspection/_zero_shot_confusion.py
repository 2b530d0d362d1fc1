"""Which classes are taken for which, with an image of each kind of mistake."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Self

import numpy as np
from sklearn.utils.validation import check_consistent_length

from ._plotting import axes_for, check_names, draw_thumbnail, images_in, ink_on, plain

OTHERS = "(others)"


class ZeroShotConfusionDisplay:
    """Confusion of zero-shot classes: true ones in rows, predicted ones in columns.

    A cell holds the number of images and one of them, its shade is the share of its row.
    Make it with `from_estimator` or `from_predictions`.

    Parameters
    ----------
    counts : ndarray of int, shape (n_rows, n_columns)
        Images by true and predicted class.
    row_labels : sequence of length n_rows
        True classes.
    column_labels : sequence of length n_columns
        Predicted classes. The last may be the classifier's label for rejected images, and
        ``"(others)"``, the classes that are not shown.
    examples : dict or None, default=None
        Image by ``(row, column)``.
    title : str or None, default=None
        Says what is shown.

    Attributes
    ----------
    im_ : matplotlib.image.AxesImage
        The shades.
    text_ : ndarray of shape (n_rows, n_columns)
        The numbers; None where there are none.
    thumbnails_ : dict
        `matplotlib.image.AxesImage` by ``(row, column)``.
    ax_ : matplotlib.axes.Axes
        Where it was drawn.
    figure_ : matplotlib.figure.Figure
        Of these axes.

    See Also
    --------
    sklearn.metrics.ConfusionMatrixDisplay : Without images.
    sklearn_ape.metrics.per_class_accuracy : The accuracy of every class.

    Examples
    --------
    >>> from sklearn_ape.inspection import ZeroShotConfusionDisplay
    >>> display = ZeroShotConfusionDisplay.from_predictions(
    ...     ["cat", "cat", "dog"], ["cat", "dog", "dog"]
    ... )
    >>> display.counts
    array([[1, 1],
           [0, 1]])
    """

    def __init__(
        self,
        counts: np.ndarray,
        *,
        row_labels: Sequence[Any],
        column_labels: Sequence[Any],
        examples: Mapping[tuple[int, int], Any] | None = None,
        title: str | None = None,
    ) -> None:
        self.counts = counts
        self.row_labels = row_labels
        self.column_labels = column_labels
        self.examples = examples
        self.title = title

    @classmethod
    def from_estimator(
        cls,
        estimator: Any,
        X: Any,
        y: Any,
        *,
        images: Any = None,
        max_classes: int = 10,
        ax: Any = None,
        **plot_options: Any,
    ) -> Self:
        """Classify images and draw the confusion.

        Parameters
        ----------
        estimator : estimator
            A `ZeroShotClassifier`, a Pipeline that ends in one, or any other fitted classifier.
        X : sequence of images, or array-like of shape (n_samples, n_features)
            What the estimator takes.
        y : sequence of length n_samples
            True labels.
        images : sequence of images of length n_samples or None, default=None
            To be shown where X is features.
        max_classes : int, default=10
            The most classes to show; see `from_predictions`.
        ax : matplotlib.axes.Axes or None, default=None
            Where to draw. None makes a figure.
        **plot_options : object
            Given to `plot`.

        Returns
        -------
        display : ZeroShotConfusionDisplay
            Drawn.
        """
        check_consistent_length(X, y)
        last = estimator
        while hasattr(last, "steps"):
            last = last.steps[-1][1]
        return cls.from_predictions(
            y,
            estimator.predict(X),
            images=images_in(X) if images is None else images,
            unknown_label=getattr(last, "unknown_label", "unknown"),
            max_classes=max_classes,
            ax=ax,
            **plot_options,
        )

    @classmethod
    def from_predictions(
        cls,
        y_true: Any,
        y_pred: Any,
        *,
        images: Any = None,
        unknown_label: Any = "unknown",
        max_classes: int = 10,
        ax: Any = None,
        **plot_options: Any,
    ) -> Self:
        """Draw the confusion of predictions.

        Parameters
        ----------
        y_true : sequence of length n_samples
            True labels.
        y_pred : sequence of length n_samples
            Predicted ones.
        images : sequence of images of length n_samples or None, default=None
            The first of each kind is shown.
        unknown_label : object, default="unknown"
            What images below the threshold are called; its column, where there are any, comes
            after those of the classes.
        max_classes : int, default=10
            The most classes to show. Of more, those that are most often confused are shown, and
            all others are one column; the title says so.
        ax : matplotlib.axes.Axes or None, default=None
            Where to draw. None makes a figure.
        **plot_options : object
            Given to `plot`.

        Returns
        -------
        display : ZeroShotConfusionDisplay
            Drawn.

        Raises
        ------
        ValueError
            When the lengths differ, there are no samples, or `max_classes` is below 2.
        """
        truth, predicted = _as_list(y_true), _as_list(y_pred)
        check_consistent_length(truth, predicted)
        if not truth:
            raise ValueError("y_true is empty: there is nothing to show.")
        if max_classes < 2:
            raise ValueError(f"max_classes must be at least 2, not {max_classes!r}.")
        sample_images = check_names(images, len(truth), "images", "sample")
        counts = Counter(zip(truth, predicted, strict=True))
        classes = _in_order({*truth, *predicted} - {unknown_label})
        shown = _most_confused(counts, classes, max_classes)
        there = set(truth)
        rows = [label for label in shown if label in there]
        columns = list(shown)
        if unknown_label in there:
            rows.append(unknown_label)
        if unknown_label in there or unknown_label in set(predicted):
            columns.append(unknown_label)
        row_of = {label: row for row, label in enumerate(rows)}
        column_of = {label: column for column, label in enumerate(columns)}
        hidden = any(t in row_of and p not in column_of for t, p in counts)
        matrix = np.zeros((len(rows), len(columns) + hidden), dtype=int)
        examples: dict[tuple[int, int], Any] = {}
        for sample, (true, called) in enumerate(zip(truth, predicted, strict=True)):
            if true in row_of:
                place = row_of[true], column_of.get(called, len(columns))
                matrix[place] += 1
                if sample_images is not None:
                    examples.setdefault(place, sample_images[sample])
        title = f"accuracy {np.mean([t == p for t, p in zip(truth, predicted, strict=True)]):.1%}"
        if len(shown) < len(classes):
            title += f" on all; the {len(shown)} most confused of {len(classes):,} classes"
        display = cls(
            matrix,
            row_labels=rows,
            column_labels=[*columns, OTHERS] if hidden else columns,
            examples=examples if sample_images is not None else None,
            title=title,
        )
        return display.plot(ax=ax, **plot_options)

    def plot(
        self,
        ax: Any = None,
        *,
        cmap: Any = "Blues",
        thumbnails: bool = True,
        im_kw: dict[str, Any] | None = None,
    ) -> Self:
        """Draw, without computing anything.

        Parameters
        ----------
        ax : matplotlib.axes.Axes or None, default=None
            Where to draw. None makes a figure.
        cmap : str or matplotlib.colors.Colormap, default="Blues"
            Of the shares.
        thumbnails : bool, default=True
            Whether images are shown.
        im_kw : dict or None, default=None
            For matplotlib's ``imshow``.

        Returns
        -------
        display : ZeroShotConfusionDisplay
            This one.
        """
        counts = np.asarray(self.counts)
        n_rows, n_columns = counts.shape
        shown = self.examples if thumbnails and self.examples is not None else {}
        cell = 0.95 if shown else 0.55
        self.ax_ = ax = axes_for(ax, 2.4 + cell * n_columns, 2 + cell * n_rows)
        self.figure_ = ax.figure
        share = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
        self.im_ = ax.imshow(share, **({"cmap": cmap, "vmin": 0, "vmax": 1} | (im_kw or {})))
        colors = self.im_.cmap(self.im_.norm(share))
        self.text_ = np.full(counts.shape, None, dtype=object)
        for row, column in np.argwhere(counts > 0):
            place = int(row), int(column)
            self.text_[place] = ax.text(
                column,
                row + (0.39 if place in shown else 0),
                f"{counts[place]:,}",
                ha="center",
                va="center",
                color=ink_on(colors[place]),
                fontsize=8 if place in shown else 10,
            )
        self.thumbnails_ = {
            (row, column): draw_thumbnail(ax, image, (column, row - 0.1), 0.72)
            for (row, column), image in shown.items()
        }
        self._frame_right_ones()
        ax.set_xticks(range(n_columns), [plain(label, 24) for label in self.column_labels])
        ax.set_yticks(range(n_rows), [plain(label, 16, 2) for label in self.row_labels])
        longest = max(len(str(label)) for label in self.column_labels)
        if longest > 6:
            ax.tick_params(axis="x", labelrotation=45)
            for label in ax.get_xticklabels():
                label.set(ha="right", rotation_mode="anchor")
        ax.set(xlabel="predicted", ylabel="true")
        if self.title:
            ax.set_title(plain(self.title, 60, 2), fontsize="medium")
        return self

    def _frame_right_ones(self) -> None:
        from matplotlib.patches import Rectangle

        for row, label in enumerate(self.row_labels):
            for column, other in enumerate(self.column_labels):
                if label == other:
                    self.ax_.add_patch(
                        Rectangle(
                            (column - 0.48, row - 0.48), 0.96, 0.96, fill=False,
                            edgecolor="tab:green", linewidth=1.5,
                        )
                    )  # fmt: skip


def _as_list(labels: Any) -> list[Any]:
    """Return labels as Python's own objects; an array of a list would make text of numbers."""
    return list(labels) if isinstance(labels, list | tuple) else np.asarray(labels).tolist()


def _in_order(labels: Iterable[Any]) -> list[Any]:
    """Return labels sorted; those of several types by their text."""
    labels = list(labels)
    try:
        return sorted(labels)
    except TypeError:
        return sorted(labels, key=str)


def _most_confused(counts: Counter[Any], classes: list[Any], most: int) -> list[Any]:
    """Return the classes of the most frequent mistakes, in their order."""
    if len(classes) <= most:
        return classes
    known = set(classes)
    chosen: dict[Any, None] = {}
    mistakes = [pair for pair, _ in counts.most_common() if pair[0] != pair[1]]
    right = [pair for pair, _ in counts.most_common() if pair[0] == pair[1]]
    for pair in [*(pair for pair in mistakes if known.issuperset(pair)), *right]:
        new = [label for label in dict.fromkeys(pair) if label in known and label not in chosen]
        if len(chosen) + len(new) <= most:
            chosen.update(dict.fromkeys(new))
    return [label for label in classes if label in chosen]
