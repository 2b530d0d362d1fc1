"""scikit-learn's own callbacks (1.9 and later): how an estimator tells them of its fit."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any

try:
    from sklearn.callback import CallbackSupportMixin, ProgressBar, with_callbacks
except ImportError:  # scikit-learn < 1.9

    class CallbackSupportMixin:  # type: ignore[no-redef]
        """Stands in where scikit-learn has no callbacks."""

    def with_callbacks(method: Callable[..., Any]) -> Callable[..., Any]:
        """Return the method as it is."""
        return method

    class ProgressBar:  # type: ignore[no-redef]
        """Placeholder for versions of scikit-learn that have no callbacks."""


def observes_fit(estimator: Any) -> bool:
    """Say whether an estimator has callbacks of scikit-learn that do more than show progress."""
    callbacks = getattr(estimator, "_skl_callbacks", [])
    return any(not isinstance(callback, ProgressBar) for callback in callbacks)


class FitContext:
    """One fit as scikit-learn's callbacks see it; silent where they do not exist.

    Parameters
    ----------
    estimator : estimator
        The one being fitted.
    n_subtasks : int
        The most epochs, or fits of other estimators, that it may take.
    X, y : object
        What it is fitted on.
    """

    def __init__(self, estimator: Any, n_subtasks: int, X: Any, y: Any) -> None:
        self.estimator = estimator
        self.data = {"X": X, "y": y}
        self.context = None
        if hasattr(estimator, "_init_callback_context"):
            self.context = estimator._init_callback_context(max_subtasks=n_subtasks)
            self.context.call_on_fit_task_begin(estimator=estimator, **self.data)

    def end(self) -> None:
        """Report the end of the fit; the estimator is as it will be used."""
        if self.context is not None:
            self.context.call_on_fit_task_end(
                estimator=self.estimator, reconstruction_attributes={}, **self.data
            )

    @contextmanager
    def fitting(self, inner: Any, name: str) -> Iterator[None]:
        """Report the fit of another estimator, which passes callbacks on to it."""
        if self.context is None:
            yield
            return
        task = self.context.subcontext(task_name=name)
        with task.propagate_callback_context(inner):
            task.call_on_fit_task_begin(estimator=self.estimator, **self.data)
            yield
            task.call_on_fit_task_end(estimator=self.estimator, **self.data)


def reports_fit(method: Callable[..., Any]) -> Callable[..., Any]:
    """Let a `fit` that has no steps of its own report its beginning and end."""

    @with_callbacks
    @wraps(method)
    def fit(self: Any, X: Any, y: Any = None) -> Any:
        context = FitContext(self, 0, X, y)
        method(self, X, y)
        context.end()
        return self

    return fit
