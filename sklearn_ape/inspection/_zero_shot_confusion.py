"""Confusion matrix of a zero-shot classifier, with an example image in each cell."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any, Self

import numpy as np

from ..aligners.wrapper import unwrap
from ..utils.validation import (
    as_labels,
    check_integer,
    check_not_missing,
    check_same_length,
    is_missing,
    to_builtin,
)
from ._plotting import (
    check_items,
    draw_frame,
    draw_thumbnail,
    format_text,
    get_axes,
    get_images,
    name_others,
    write_in_cell,
)


@dataclass(eq=False, repr=False)
class ZeroShotConfusionDisplay:
    """Confusion matrix of zero-shot classes, with true classes in rows and predicted in columns.

    A cell shows the number of images and one of them. Its shade is the fraction of the row.
    Create it with `from_estimator` or `from_predictions`.

    Parameters
    ----------
    counts : ndarray of int, shape (n_rows, n_columns)
        Number of images by true and predicted class.
    row_labels : sequence of length n_rows
        True classes.
    column_labels : sequence of length n_columns
        Predicted classes. The last columns may be the label of the classifier for unknown images,
        and ``"(others)"`` for the classes that are not shown.
    examples : dict or None, default=None
        Example images by ``(row, column)``.
    title : str or None, default=None
        Title of the display.

    Attributes
    ----------
    im_ : matplotlib.image.AxesImage
        Artist of the matrix.
    text_ : ndarray of shape (n_rows, n_columns)
        Numbers in the cells, and None in empty cells.
    thumbnails_ : dict
        Example images, `matplotlib.image.AxesImage` by ``(row, column)``.
    ax_, figure_ : matplotlib.axes.Axes, matplotlib.figure.Figure
        Axes and figure of the display.

    See Also
    --------
    sklearn.metrics.ConfusionMatrixDisplay : Confusion matrix without images.
    sklearn_ape.metrics.per_class_accuracy : Computes the accuracy of each class.

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

    counts: np.ndarray
    _: KW_ONLY
    row_labels: Sequence[Any]
    column_labels: Sequence[Any]
    examples: Mapping[tuple[int, int], Any] | None = None
    title: str | None = None

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
        """Classify images and draw the confusion matrix.

        Parameters
        ----------
        estimator : estimator
            `ZeroShotClassifier`, a Pipeline that ends in one, or any other fitted classifier.
        X : sequence of images, or array-like of shape (n_samples, n_features)
            Images, or features if the estimator takes features.
        y : sequence of length n_samples
            True labels.
        images : sequence of images of length n_samples or None, default=None
            Images to show, if X is features.
        max_classes, ax, **plot_options : object
            Options of `from_predictions`.

        Returns
        -------
        display : ZeroShotConfusionDisplay
        """
        check_same_length(X=X, y=y)
        classifier = unwrap(estimator, None)[1]
        return cls.from_predictions(
            y,
            estimator.predict(X),
            images=get_images(X) if images is None else images,
            unknown_label=getattr(classifier, "unknown_label", "unknown"),
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
        """Draw the confusion matrix of predictions.

        Parameters
        ----------
        y_true, y_pred : sequence of length n_samples
            True and predicted labels.
        images : sequence of images of length n_samples or None, default=None
            Images, of which the first of each cell is shown.
        unknown_label : object, default="unknown"
            Label of images below the threshold. If it occurs, its column comes after those of the
            classes.
        max_classes : int, default=10
            Maximum number of classes to show. If there are more, the classes that are confused
            most often are shown, all others share one column, and the title says so.
        ax, **plot_options : object
            Axes to draw on, and other arguments of `plot`.

        Returns
        -------
        display : ZeroShotConfusionDisplay

        Raises
        ------
        ValueError
            If the lengths differ, there are no samples, labels are missing, or `max_classes` is
            below 2.
        """
        truth = as_labels(y_true, "y_true").tolist()
        predicted = as_labels(y_pred, "y_pred").tolist()
        check_same_length(y_true=truth, y_pred=predicted)
        if not truth:
            raise ValueError("y_true is empty. Pass at least one label.")
        check_integer(max_classes, "max_classes", 2)
        unknown_label = to_builtin(unknown_label)
        if is_missing(unknown_label):  # NaN is not equal to itself
            truth = [unknown_label if is_missing(label) else label for label in truth]
            predicted = [unknown_label if is_missing(label) else label for label in predicted]
        else:
            check_not_missing(truth, "y_true")
            check_not_missing(predicted, "y_pred")
        sample_images = check_items(images, len(truth), "images", "sample")
        counts = Counter(zip(truth, predicted, strict=True))
        labels = {*truth, *predicted}
        classes = _sort_labels(labels - {unknown_label})
        shown = _select_most_confused(counts, classes, max_classes)
        true_labels = set(truth)
        rows = [label for label in (*shown, unknown_label) if label in true_labels]
        columns = [*shown, unknown_label] if unknown_label in labels else shown
        row_of = {label: row for row, label in enumerate(rows)}
        column_of = {label: column for column, label in enumerate(columns)}
        if any(true in row_of and pred not in column_of for true, pred in counts):
            columns = [*columns, name_others(columns)]  # the last column is for all other classes
        matrix = np.zeros((len(rows), len(columns)), dtype=int)
        examples: dict[tuple[int, int], Any] = {}
        for sample, (true, pred) in enumerate(zip(truth, predicted, strict=True)):
            if true in row_of:
                cell = row_of[true], column_of.get(pred, len(columns) - 1)
                matrix[cell] += 1
                if sample_images is not None:
                    examples.setdefault(cell, sample_images[sample])
        n_hits = sum(count for (true, pred), count in counts.items() if true == pred)
        title = f"accuracy {n_hits / len(truth):.1%}"
        if len(shown) < len(classes):
            title += f" on all; the {len(shown)} most confused of {len(classes):,} classes"
        return cls(
            matrix,
            row_labels=rows,
            column_labels=columns,
            examples=None if sample_images is None else examples,
            title=title,
        ).plot(ax=ax, **plot_options)

    def plot(
        self,
        ax: Any = None,
        *,
        cmap: Any = "Blues",
        thumbnails: bool = True,
        im_kw: dict[str, Any] | None = None,
    ) -> Self:
        """Draw the stored results.

        Parameters
        ----------
        ax : matplotlib.axes.Axes or None, default=None
            Axes to draw on. None creates a figure.
        cmap : str or matplotlib.colors.Colormap, default="Blues"
            Color map of the fractions.
        thumbnails : bool, default=True
            Whether to show images.
        im_kw : dict or None, default=None
            Keyword arguments of matplotlib's ``imshow``.

        Returns
        -------
        display : ZeroShotConfusionDisplay
        """
        counts = np.asarray(self.counts)
        n_rows, n_columns = counts.shape
        examples = self.examples if thumbnails and self.examples is not None else {}
        cell_size = 0.95 if examples else 0.55  # inches
        self.ax_ = ax = get_axes(ax, 2.4 + cell_size * n_columns, 2 + cell_size * n_rows)
        self.figure_ = ax.figure
        fractions = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
        self.im_ = ax.imshow(fractions, **({"cmap": cmap, "vmin": 0, "vmax": 1} | (im_kw or {})))
        colors = self.im_.cmap(self.im_.norm(fractions))
        self.text_ = np.full(counts.shape, None, dtype=object)
        for row, column in np.argwhere(counts > 0):
            cell = int(row), int(column)
            y, fontsize = (row + 0.39, 8) if cell in examples else (row, 10)  # below an image
            text = f"{counts[cell]:,}"
            self.text_[cell] = write_in_cell(ax, y, column, text, colors[cell], fontsize)
        self.thumbnails_ = {
            (row, column): draw_thumbnail(ax, image, (column, row - 0.1), 0.72)
            for (row, column), image in examples.items()
        }
        for row, column in np.ndindex(counts.shape):
            if self.row_labels[row] == self.column_labels[column]:
                draw_frame(ax, row, column, 0.96, ec="tab:green", lw=1.5)
        self._write_labels()
        return self

    def _write_labels(self) -> None:
        ax, rows, columns = self.ax_, self.row_labels, self.column_labels
        ax.set_xticks(range(len(columns)), [format_text(label, 24) for label in columns])
        ax.set_yticks(range(len(rows)), [format_text(label, 16, 2) for label in rows])
        if max(len(str(label)) for label in columns) > 6:
            ax.tick_params(axis="x", labelrotation=45)
            for label in ax.get_xticklabels():
                label.set(ha="right", rotation_mode="anchor")
        ax.set(xlabel="predicted", ylabel="true")
        if self.title:
            ax.set_title(format_text(self.title, 60, 2), fontsize="medium")


def _sort_labels(labels: set[Any]) -> list[Any]:
    try:
        return sorted(labels)
    except TypeError:  # labels of several types
        return sorted(labels, key=str)


def _select_most_confused(counts: Counter[Any], classes: list[Any], max_classes: int) -> list[Any]:
    """Return the classes of the most frequent errors, in the order of classes.

    If there are at most `max_classes`, all of them are returned.
    """
    class_set = set(classes)  # without the label of unknown images, which counts as an error
    selected: set[Any] = set()
    by_frequency = [pair for pair, _ in counts.most_common()]
    for pair in sorted(by_frequency, key=lambda pair: pair[0] == pair[1]):  # errors first
        new = class_set.intersection(pair) - selected
        if len(selected) + len(new) <= max_classes:
            selected |= new
    return [label for label in classes if label in selected]
