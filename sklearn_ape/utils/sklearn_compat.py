"""Conventions of scikit-learn: callbacks, failed fits, labels, weights, splits, documentation."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import wraps
from itertools import accumulate
from numbers import Integral
from types import SimpleNamespace
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator
from sklearn.exceptions import DataConversionWarning
from sklearn.frozen import FrozenEstimator
from sklearn.utils import column_or_1d

from .messages import warn
from .validation import as_label_array, check_integer, check_not_masked, check_sequence

try:
    from sklearn.callback import CallbackSupportMixin, ProgressBar, with_callbacks
except ImportError:  # scikit-learn < 1.9

    class CallbackSupportMixin:  # type: ignore[no-redef]
        """Placeholder for versions of scikit-learn that have no callbacks."""

    def with_callbacks(method: Callable[..., Any]) -> Callable[..., Any]:
        """Return the method unchanged, as these versions of scikit-learn have no callbacks."""
        return method

    class ProgressBar:  # type: ignore[no-redef]
        """Placeholder for versions of scikit-learn that have no callbacks."""


def unfreeze(estimator: Any) -> Any:
    """Return the estimator in a FrozenEstimator, or any other estimator unchanged."""
    return estimator.estimator if isinstance(estimator, FrozenEstimator) else estimator


def observes_fit(estimator: Any) -> bool:
    """Return whether an estimator has scikit-learn callbacks other than progress bars."""
    callbacks = getattr(estimator, "_skl_callbacks", [])
    return any(not isinstance(callback, ProgressBar) for callback in callbacks)


class FitContext:
    """Reports one fit to scikit-learn's callbacks; does nothing in versions without callbacks.

    The subtasks are epochs, or fits of inner estimators; `n_subtasks` is their maximum number.
    """

    def __init__(self, estimator: Any, n_subtasks: int, X: Any, y: Any) -> None:
        self.estimator = estimator
        self.data = {"X": X, "y": y}
        self.callback_context = None
        if hasattr(estimator, "_init_callback_context"):
            self.callback_context = estimator._init_callback_context(max_subtasks=n_subtasks)
            self.callback_context.call_on_fit_task_begin(estimator=estimator, **self.data)

    def end(self) -> None:
        """Report the end of the fit. Call it when the estimator is completely fitted."""
        if self.callback_context is not None:
            self.callback_context.call_on_fit_task_end(
                estimator=self.estimator, reconstruction_attributes={}, **self.data
            )

    @contextmanager
    def fitting(self, inner: Any) -> Iterator[None]:
        """Report the fit of an inner aligner, and propagate the callbacks to it."""
        if self.callback_context is None:
            yield
            return
        task = self.callback_context.subcontext(task_name="fit-aligner")
        with task.propagate_callback_context(inner):
            task.call_on_fit_task_begin(estimator=self.estimator, **self.data)
            yield
            task.call_on_fit_task_end(estimator=self.estimator, **self.data)


@contextmanager
def restored_on_failure(estimator: Any) -> Iterator[None]:
    """Restore the attributes of an estimator if its fit fails, so that an earlier fit stays."""
    attributes = dict(vars(estimator))
    try:
        yield
    except BaseException:
        vars(estimator).clear()
        vars(estimator).update(attributes)
        raise


def reports_fit(method: Callable[..., Any]) -> Callable[..., Any]:
    """Decorate a `fit` method without subtasks so that it reports its begin and end."""

    @with_callbacks
    @wraps(method)
    def fit(self: Any, X: Any, y: Any = None) -> Any:
        context = FitContext(self, 0, X, y)
        method(self, X, y)
        context.end()
        return self

    return fit


def as_label_column(y: Any) -> np.ndarray:
    """Return labels as an array of one dimension; warn if they are a column.

    The warning of `column_or_1d` would not point to the line of the user's code.
    """
    array = as_label_array(y)
    if array.ndim == 2 and array.shape[1] == 1:
        warn(
            "A column-vector y was passed when a 1d array was expected. Pass np.ravel(y).",
            DataConversionWarning,
        )
    return column_or_1d(array)


def validate_weights(sample_weight: Any, n_samples: int) -> np.ndarray:
    """Return sample weights as floats, which are ones for None; errors name the invalid weight."""
    if sample_weight is None:
        return np.ones(n_samples)
    check_sequence(sample_weight, "sample_weight", "number")
    check_not_masked(sample_weight, "sample_weight")
    weights = np.asarray(sample_weight)
    if weights.dtype.kind == "O":  # such as pandas columns with missing values
        with suppress(TypeError, ValueError):
            weights = weights.astype(float)
    if weights.ndim != 1 or weights.dtype.kind not in "biuf":
        raise ValueError(
            "sample_weight must be one number per image, not an array of shape "
            f"{weights.shape} and type {weights.dtype}."
        )
    weights = weights.astype(float)
    invalid = np.flatnonzero(~(np.isfinite(weights) & (weights >= 0)))
    if invalid.size:
        raise ValueError(
            f"sample_weight holds {weights[invalid[0]]} (row {invalid[0]}). Weights must be "
            "finite and at least 0."
        )
    if not weights.any():
        raise ValueError(
            "sample_weight is zero for every image. Pass a weight above 0 for at least one image."
        )
    return weights


def check_cv(cv: Any) -> None:
    """Raise ValueError unless `cv` is a number of folds, a splitter or an iterable of splits.

    The splits are not read, because an iterator could not be read again.
    """
    if isinstance(cv, Integral):
        check_integer(cv, "cv", 2)
    elif isinstance(cv, str | bytes) or not (hasattr(cv, "split") or isinstance(cv, Iterable)):
        raise ValueError(
            "cv must be an integer >= 2, a splitter of scikit-learn or an iterable of splits, "
            f"not {cv!r}."
        )


def read_splits(
    cv: Any, n_rows: int, X: Any, y: Any = None, groups: Any = None
) -> list[tuple[Any, Any]]:
    """Return the training and test rows of each split of a splitter or an iterable of splits.

    Raise ValueError unless the test sets are a partition of the rows, each of which needs a score.
    """
    splits = list(cv.split(X, y, groups) if hasattr(cv, "split") else cv)
    tested = np.empty(0)
    with suppress(TypeError, ValueError):  # not pairs of rows, or no splits
        tested = np.sort(np.concatenate([test for _, test in splits]))
    if not np.array_equal(tested, np.arange(n_rows)):
        raise ValueError(
            f"cv has {len(splits)} splits whose test sets do not contain each of {n_rows} rows "
            "once. Pass a splitter such as KFold, or a list of pairs of training rows and test "
            "rows."
        )
    return splits


# scikit-learn's private function that writes diagrams; it asks every transformer for its names.
_DIAGRAM_FUNCTION = "_write_estimator_html"


class DocLinkMixin:
    """Links an estimator's HTML diagram to its documentation page.

    Displaying an estimator must not load weights, download files or fail. Therefore only the
    properties in `_shown_properties`, which must be cheap, are evaluated.
    """

    _doc_link_module = "sklearn_ape"
    _doc_link_template = (
        "https://sklearn-ape.readthedocs.io/en/latest/generated/{module}.{name}.html"
    )
    _shown_properties: tuple[str, ...] = ()

    def _doc_link_url_param_generator(self) -> dict[str, str]:
        return {"module": _find_public_module(type(self)), "name": type(self).__name__}

    def _get_doc_link(self) -> str:
        """Return the link, or "" for a class without a documentation page."""
        if not _find_public_module(type(self)):
            return ""
        return super()._get_doc_link()  # type: ignore[misc]

    def _get_fitted_attr_html(self, doc_link: str = "") -> Any:
        """Return the table of fitted attributes (scikit-learn 1.9 and later)."""
        # scikit-learn evaluates every property, and some properties of encoders load a network.
        # Pass it an object that has only the attributes and the cheap properties.
        plain = SimpleNamespace(**vars(self))
        for name in self._shown_properties:
            with suppress(Exception):  # `fit` and `predict` report invalid parameters
                setattr(plain, name, getattr(self, name))
        table = BaseEstimator._get_fitted_attr_html(plain, doc_link)
        table.estimator_class = type(self)
        return table


class LazyNamesMixin(DocLinkMixin):
    """`DocLinkMixin` for transformers whose number of output columns is known after loading."""

    def get_feature_names_out(self, input_features: Any = None) -> np.ndarray:
        """Return the names of the output columns. Loads the network if it is not loaded yet.

        Parameters
        ----------
        input_features : object, default=None
            Ignored.

        Returns
        -------
        names : ndarray of str
            The lowercase name of the class with the number of the column.
        """
        if sys._getframe(1).f_code.co_name == _DIAGRAM_FUNCTION and not self._is_width_known():
            raise AttributeError(
                "The number of columns is not known before the weights are loaded."
            )
        return super().get_feature_names_out(input_features)  # type: ignore[misc]

    def _is_width_known(self) -> bool:
        return False


def _find_public_module(cls: type) -> str:
    """Return the shortest module name that exports a class, or "" if no module does."""
    for name in accumulate(cls.__module__.split("."), "{}.{}".format):
        if cls.__name__ in getattr(sys.modules.get(name), "__all__", ()):
            return name
    return ""
