"""Parts of scikit-learn that differ between its versions: callbacks and documentation links."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache, wraps
from importlib.metadata import PackageNotFoundError, metadata
from types import SimpleNamespace
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator
from sklearn.frozen import FrozenEstimator

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


def unfreeze(estimator: Any) -> Any:
    """Return the estimator in a FrozenEstimator; any other estimator is returned as it is."""
    return estimator.estimator if isinstance(estimator, FrozenEstimator) else estimator


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


_DOCUMENTATION = "https://sklearn-ape.readthedocs.io/en/latest/"


# scikit-learn's private writer of diagrams, which asks every fitted transformer for its names.
_WRITER = "_write_estimator_html"


class DocLinkMixin:
    """Links an estimator's HTML diagram to its page of the documentation.

    Showing an estimator loads no weights, downloads nothing and never fails: of properties that
    end in an underscore only `_shown_properties` are looked at, which must be cheap.
    """

    _doc_link_module = "sklearn_ape"
    _shown_properties: tuple[str, ...] = ()

    @property
    def _doc_link_template(self) -> str:
        return f"{_documentation()}generated/{{module}}.{{name}}.html"

    def _doc_link_url_param_generator(self) -> dict[str, str]:
        return {"module": _public_module(type(self)), "name": type(self).__name__}

    def _get_doc_link(self) -> str:
        """Return the link; "" for a class that has no page."""
        if not _public_module(type(self)):
            return ""
        return super()._get_doc_link()  # type: ignore[misc]

    def _get_fitted_attr_html(self, doc_link: str = "") -> Any:
        """Return the table of fitted attributes (scikit-learn 1.9 and later)."""
        # scikit-learn reads every property, and some of ours load a network.
        plain = SimpleNamespace(**vars(self))
        for name in self._shown_properties:
            with suppress(Exception):  # a bad parameter is told of where it is used
                setattr(plain, name, getattr(self, name))
        table = BaseEstimator._get_fitted_attr_html(plain, doc_link)
        table.estimator_class = type(self)
        return table


class LazyNamesMixin(DocLinkMixin):
    """The same for transformers that know how many columns they give when weights are loaded."""

    def get_feature_names_out(self, input_features: Any = None) -> np.ndarray:
        """Name the columns; loads the network, unless it was used before.

        Parameters
        ----------
        input_features : object, default=None
            Ignored.

        Returns
        -------
        names : ndarray of str
            The name of the class in small letters, with a number.
        """
        if sys._getframe(1).f_code.co_name == _WRITER and not self._knows_its_width():
            raise AttributeError("The number of columns is not known before weights are loaded.")
        return super().get_feature_names_out(input_features)  # type: ignore[misc]

    def _knows_its_width(self) -> bool:
        return False


@lru_cache
def _documentation() -> str:
    """Return the address of the documentation, as the package's metadata have it."""
    with suppress(PackageNotFoundError):
        for entry in metadata("sklearn-ape").get_all("Project-URL") or []:
            label, _, address = entry.partition(", ")
            if label.lower() == "documentation":
                return address.rstrip("/") + "/"
    return _DOCUMENTATION


def _public_module(cls: type) -> str:
    """Return the shortest module that exports a class, where its page is; "" if none does."""
    parts = cls.__module__.split(".")
    for n_parts in range(1, len(parts) + 1):
        name = ".".join(parts[:n_parts])
        module = sys.modules.get(name)
        if module is not None and cls.__name__ in getattr(module, "__all__", ()):
            return name
    return ""
