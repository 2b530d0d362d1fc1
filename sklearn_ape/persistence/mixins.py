"""Mixins that save and load estimators, and validated access to the state in a file."""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any, ClassVar, Self

import numpy as np
from sklearn.exceptions import NotFittedError
from sklearn.utils.validation import check_is_fitted

from ..utils.validation import format_list
from .files import FORMAT, write_model
from .hub import Facts, check_scores, load_pretrained, upload, write_card
from .serialize import Serializer, is_serializable


class FittedState:
    """Validated access to the fitted state in a file, by name.

    Each value can be read once, so that `close` finds values that were not read. A value of None
    counts as missing.

    Parameters
    ----------
    values : mapping of str to object
        Values that `PretrainedMixin._get_state` returned.
    where : str
        Name of the state for error messages.

    Raises
    ------
    ValueError
        By every method, if a value is missing or has another type.

    Examples
    --------
    >>> from sklearn_ape.persistence import FittedState
    >>> state = FittedState({"n": 3, "more": {"scale": 1.5}}, "model")
    >>> state.integer("n", least=1)
    3
    >>> state.part("more").number("scale")
    1.5
    >>> state.close()
    """

    def __init__(self, values: Any, where: str) -> None:
        if not isinstance(values, Mapping):
            raise ValueError(f"{where} must be an object, not {_describe(values)}.")
        self._values = {name: value for name, value in values.items() if value is not None}
        self._parts: list[FittedState] = []
        self.where = where

    def __contains__(self, name: str) -> bool:
        return name in self._values

    def __len__(self) -> int:
        return len(self._values)

    def value(self, name: str) -> Any:
        """Return a value of any type."""
        if name not in self._values:
            raise ValueError(f"{self.where} has no {name!r}.")
        return self._values.pop(name)

    def optional(self, name: str) -> Any:
        """Return a value of any type, or None if it is missing."""
        return self._values.pop(name, None)

    def part(self, name: str) -> FittedState:
        """Return the nested state of a name."""
        part = FittedState(self.value(name), f"{self.where}.{name}")
        self._parts.append(part)
        return part

    def integer(self, name: str, least: int = 0, most: int = 2**53) -> int:
        """Return an integer in [least, most]."""
        value = self.value(name)
        is_valid = type(value) is int and least <= value <= most
        return self._require(is_valid, name, f"an integer from {least} to {most}", value)

    def number(self, name: str, above: float = -math.inf, least: float | None = None) -> float:
        """Return a finite number greater than `above`, or at least `least`."""
        value = self.value(name)
        is_valid = type(value) in (int, float) and above < value < math.inf
        if least is not None:
            is_valid = is_valid and value >= least
        bound = f"above {above:g}" if least is None else f"of at least {least:g}"
        return float(self._require(is_valid, name, f"a number {bound}", value))

    def boolean(self, name: str) -> bool:
        """Return a bool."""
        value = self.value(name)
        return self._require(isinstance(value, bool), name, "true or false", value)

    def text(self, name: str) -> str:
        """Return a str."""
        value = self.value(name)
        return self._require(isinstance(value, str), name, "a text", value)

    def texts(self, name: str) -> list[str]:
        """Return a list of str."""
        value = self.value(name)
        is_valid = isinstance(value, list) and all(isinstance(text, str) for text in value)
        return self._require(is_valid, name, "a list of texts", value)

    def array(
        self, name: str, shape: Sequence[int | None], kinds: str = "f", finite: bool = True
    ) -> np.ndarray:
        """Return an array of a kind of NumPy types and a shape, in which None is any length."""
        value = self.value(name)
        lengths = ", ".join("any" if length is None else str(length) for length in shape)
        is_valid = (
            isinstance(value, np.ndarray)
            and value.dtype.kind in kinds
            and value.ndim == len(shape)
            and all(length in (None, n) for length, n in zip(shape, value.shape, strict=True))
        )
        self._require(is_valid, name, f"an array of shape ({lengths}) and kind {kinds!r}", value)
        if finite and value.dtype.kind == "f" and not np.isfinite(value).all():
            raise ValueError(f"{self.where}.{name} has values that are not finite.")
        return value

    def close(self) -> None:
        """Raise ValueError if a value was not read."""
        if self._values:
            raise ValueError(
                f"{self.where} has {format_list(sorted(self._values))}, which this version of "
                "sklearn-ape does not support. Upgrade: pip install --upgrade sklearn-ape."
            )
        for part in self._parts:
            part.close()

    def _require(self, is_valid: bool, name: str, expected: str, value: Any) -> Any:
        if not is_valid:
            raise ValueError(f"{self.where}.{name} must be {expected}, not {_describe(value)}.")
        return value


def _describe(value: Any) -> str:
    if isinstance(value, np.ndarray):
        return f"an array of shape {value.shape} and type {value.dtype}"
    return repr(value) if isinstance(value, bool | int | float) else f"a {type(value).__name__}"


class SerializableMixin:
    """Base class for estimators that can be part of a saved model.

    Subclasses define `_get_state` and `_set_state`. Values may be plain data (None, bool, numbers,
    str, list, tuple, dict), NumPy arrays, or estimators with this mixin.
    """

    # Parameters of the machine that runs the model, such as the device, are chosen when the model
    # is loaded. Parameters that only `fit` uses are not saved.
    _runtime_params: ClassVar[frozenset[str]] = frozenset()
    _unsaved_params: ClassVar[frozenset[str]] = frozenset()

    def _get_state(self) -> dict[str, Any]:
        """Return the state that `fit` computed."""
        return {}

    def _set_state(self, state: FittedState) -> None:
        """Set the attributes that `fit` sets. The parameters are already set."""

    def _check_parameters(self) -> Any:
        """Raise an error for an invalid parameter."""

    def _check_restored(self) -> None:
        """Raise an error for parameters in a file that are invalid."""
        self._check_parameters()

    def _get_recorded_params(self) -> dict[str, Any]:
        """Return the parameters to save."""
        params = self.get_params(deep=False)  # type: ignore[attr-defined]
        return {name: params[name] for name in params if name not in self._runtime_params}

    def _to_record(self) -> tuple[dict[str, Any], dict[str, Any] | None]:
        """Return the parameters and the fitted state, which is None if it is not fitted."""
        params = self._get_recorded_params()
        try:
            check_is_fitted(self)
        except NotFittedError:
            return params, None
        return params, self._get_state()

    @classmethod
    def _from_record(
        cls, params: dict[str, Any], state: Mapping[str, Any] | None, settings: Mapping[str, Any]
    ) -> Self:
        names = set(cls._get_param_names())  # type: ignore[attr-defined]
        unknown = sorted(set(params) - (names - cls._runtime_params))
        if unknown:
            raise ValueError(
                f"{cls.__name__} of the model has the parameter {unknown[0][:80]!r}, which this "
                "version of sklearn-ape does not support. Upgrade: "
                "pip install --upgrade sklearn-ape."
            )
        runtime = {name: settings[name] for name in cls._runtime_params & names & settings.keys()}
        estimator = cls(**params, **runtime)
        estimator._check_restored()
        if state is not None:
            fitted_state = FittedState(state, cls.__name__)
            estimator._set_state(fitted_state)
            fitted_state.close()
        return estimator


class PretrainedMixin(SerializableMixin):
    """Base class for estimators that are saved to a folder or uploaded to the Hub."""

    def _get_card_facts(self) -> Facts:
        """Return the contents of the model card for this estimator."""
        return Facts()

    def save_pretrained(
        self, folder: str | os.PathLike[str], *, scores: Mapping[str, float] | None = None
    ) -> None:
        """Save the model to a folder: parameters as JSON, arrays as safetensors, and a model card.

        Encoders are saved by class, parameters and digest of their weights, without the weights.
        Runtime parameters, such as the device and the cache, are not saved.

        Parameters
        ----------
        folder : str or path-like
            Path of the folder. A model in it is replaced atomically. Other files are not touched.
        scores : mapping of str to float or None, default=None
            Scores for the model card, such as ``{"accuracy on my images": 0.93}``.

        Raises
        ------
        TypeError
            If the class, which must be one of this package, or a parameter cannot be saved so that
            it can be loaded without executing code. The message names it and a remedy. Nothing is
            written.
        OSError
            If the folder cannot be written, or has other files than a model.

        See Also
        --------
        sklearn_ape.load_pretrained : Load a saved model of any class.
        """
        check_is_fitted(self)
        if not is_serializable(self):
            raise TypeError(
                f"{type(self).__name__} cannot be saved, as {type(self).__module__}."
                f"{type(self).__qualname__} has no safe file format. Save it with joblib.dump, or "
                "fit an estimator of sklearn_ape instead of a subclass."
            )
        scores = check_scores(scores)
        serializer = Serializer()
        model = serializer.encode_estimator(self, type(self).__name__)
        package_version = version("sklearn-ape")
        head = {"library": "sklearn-ape", "version": package_version, "format": FORMAT}
        config = {**head, "model": model, "scores": scores, "left_out": serializer.left_out}
        card = write_card(model, self._get_card_facts(), scores, serializer, package_version)
        write_model(folder, config, serializer.tensors, card)

    @classmethod
    def from_pretrained(
        cls,
        source: str | os.PathLike[str],
        *,
        revision: str | None = None,
        token: str | bool | None = None,
        cache: Any = None,
        device: Any = "auto",
    ) -> Self:
        """Load a model that was saved with `save_pretrained`. No code in the files is executed.

        Parameters
        ----------
        source, revision, token, cache, device : object
            Folder or ID of the model, and options; see `load_pretrained`.

        Returns
        -------
        estimator : object
            Fitted estimator of this class.

        Raises
        ------
        ValueError
            If the model is of another class. For other errors, see `load_pretrained`.
        """
        estimator = load_pretrained(
            source, revision=revision, token=token, cache=cache, device=device
        )
        if not isinstance(estimator, cls):
            name = type(estimator).__name__
            raise ValueError(
                f"{str(source)!r} has a model of the class {name}. Load it with "
                f"{name}.from_pretrained or sklearn_ape.load_pretrained."
            )
        return estimator

    def push_to_hub(
        self,
        repo_id: str,
        *,
        token: str | bool | None = None,
        private: bool | None = None,
        commit_message: str | None = None,
        scores: Mapping[str, float] | None = None,
    ) -> str:
        """Upload the model to the Hugging Face Hub; the repository is created if necessary.

        Parameters
        ----------
        repo_id : str
            ID of the repository, ``"owner/name"``.
        token : str, bool or None, default=None
            Access token for the Hub with write permission. None uses the token of the local login.
        private : bool or None, default=None
            Whether a new repository is private. None uses the default of the owner.
        commit_message : str or None, default=None
            Message of the commit. None uses a message with the name of the class.
        scores : mapping of str to float or None, default=None
            Scores for the model card; see `save_pretrained`.

        Returns
        -------
        url : str
            URL of the repository.

        Raises
        ------
        OSError
            If the Hub rejects the upload or cannot be reached.
        """
        with tempfile.TemporaryDirectory(prefix="sklearn_ape_") as folder:
            self.save_pretrained(folder, scores=scores)
            message = commit_message or f"{type(self).__name__} of sklearn-ape"
            return upload(folder, repo_id, token, private, message)
