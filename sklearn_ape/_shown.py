"""How estimators show themselves in a notebook: links to their documentation, and no surprises."""

from __future__ import annotations

import sys
from contextlib import suppress
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, metadata
from types import SimpleNamespace
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator

_DOCUMENTATION = "https://sklearn-ape.readthedocs.io/en/latest/"
# scikit-learn's private writer of diagrams, which asks every fitted transformer for its names.
_WRITER = "_write_estimator_html"


class ShownMixin:
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


class LazyNamesMixin(ShownMixin):
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
