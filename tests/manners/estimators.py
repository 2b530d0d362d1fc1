"""Every public estimator of the package."""

import importlib
import inspect
import pkgutil

from sklearn.base import BaseEstimator
from skorch import NeuralNet

import sklearn_ape


def public_estimators():
    """Return the classes that some public module exports, by their names; not skorch's net."""
    found = {}
    for module in pkgutil.walk_packages(sklearn_ape.__path__, "sklearn_ape."):
        parts = module.name.split(".")
        if any(part.startswith("_") for part in parts) or {"app", "cli"} & set(parts):
            continue
        imported = importlib.import_module(module.name)
        for name in getattr(imported, "__all__", []):
            item = getattr(imported, name)
            if not inspect.isclass(item) or issubclass(item, NeuralNet):
                continue
            if issubclass(item, BaseEstimator):
                found[name] = item
    return found
