"""Mixins that save and load estimators, and access to the fitted state of a file."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Self

import numpy as np
from sklearn.exceptions import NotFittedError
from sklearn.utils.validation import check_is_fitted

from ..utils.validation import format_list
from ._serialize import Recorder
from .files import FORMAT, write_model
from .hub import Facts, card_of, checked_scores, load_pretrained, temporary, upload


class FittedState:
    """Named values of a file, each given out once and checked.

    Parameters
    ----------
    values : mapping of str to object
        As `PretrainedMixin._get_state` returned them.
    where : str
        What errors call the place in the file.

    Raises
    ------
    ValueError
        From every method, when a value is missing or not of the kind asked for.

    Examples
    --------
    >>> from sklearn_ape.persistence import State
    >>> state = State({"n": 3, "more": {"scale": 1.5}}, "model")
    >>> state.integer("n", least=1)
    3
    >>> state.part("more").number("scale")
    1.5
    >>> state.close()
    """

    def __init__(self, values: Any, where: str) -> None:
        if not isinstance(values, Mapping):
            raise ValueError(f"{where} must be an object, not {_short(values)}.")
        self._values = dict(values)
        self._parts: list[FittedState] = []
        self.where = where

    def __contains__(self, name: str) -> bool:
        return self._values.get(name) is not None

    def __len__(self) -> int:
        return len(self._values)

    def value(self, name: str) -> Any:
        """Return anything."""
        if name not in self._values:
            raise ValueError(f"{self.where} has no {name!r}.")
        return self._values.pop(name)

    def optional(self, name: str) -> Any:
        """Return anything, or None where there is nothing."""
        return self._values.pop(name, None)

    def peek(self, name: str) -> Any:
        """Return anything, or None, and leave it there."""
        return self._values.get(name)

    def part(self, name: str) -> FittedState:
        """Return named values within."""
        part = FittedState(self.value(name), f"{self.where}.{name}")
        self._parts.append(part)
        return part

    def integer(self, name: str, least: int = 0, most: int = 2**53) -> int:
        """Return an integer in [least, most]."""
        value = self.value(name)
        if type(value) is not int or not least <= value <= most:
            self._refuse(name, f"an integer from {least} to {most}", value)
        return value

    def number(self, name: str, above: float = -math.inf) -> float:
        """Return a finite number above another."""
        value = self.value(name)
        if type(value) not in (int, float) or not above < value < math.inf:
            self._refuse(name, f"a number above {above:g}", value)
        return float(value)

    def text(self, name: str) -> str:
        """Return a str."""
        value = self.value(name)
        if not isinstance(value, str):
            self._refuse(name, "a text", value)
        return value

    def texts(self, name: str) -> list[str]:
        """Return a list of str."""
        value = self.value(name)
        if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
            self._refuse(name, "a list of texts", value)
        return value

    def array(
        self, name: str, shape: Sequence[int | None], kinds: str = "f", finite: bool = True
    ) -> np.ndarray:
        """Return an array of some shape (None for any length) and kinds of numpy's types."""
        value = self.value(name)
        if (
            not isinstance(value, np.ndarray)
            or value.dtype.kind not in kinds
            or value.ndim != len(shape)
            or any(wanted not in (None, n) for wanted, n in zip(shape, value.shape, strict=True))
        ):
            wanted = ", ".join("any" if length is None else str(length) for length in shape)
            self._refuse(name, f"an array of shape ({wanted}) and kind {kinds!r}", value)
        if finite and value.dtype.kind == "f" and not np.isfinite(value).all():
            raise ValueError(f"{self.where}.{name} holds numbers that are not finite.")
        return value

    def close(self) -> None:
        """Refuse values that nobody asked for."""
        if self._values:
            raise ValueError(
                f"{self.where} has {format_list(sorted(self._values))}, which this "
                "version of sklearn-ape does not know: pip install --upgrade sklearn-ape."
            )
        for part in self._parts:
            part.close()

    def _refuse(self, name: str, wanted: str, value: Any) -> None:
        raise ValueError(f"{self.where}.{name} must be {wanted}, not {_short(value)}.")


def _short(value: Any) -> str:
    if isinstance(value, np.ndarray):
        return f"an array of shape {value.shape} and type {value.dtype}"
    return repr(value) if isinstance(value, bool | int | float) else f"a {type(value).__name__}"


class Record(NamedTuple):
    """An object as plain data, arrays and recordable objects."""

    params: dict[str, Any]
    state: dict[str, Any] | None


class SerializableMixin:
    """Base of estimators that files of models may hold.

    Subclasses say which parameters belong to a machine, what `fit` left and how it is put back.
    A value may be plain data (None, bool, numbers, str, list, tuple, dict), a numpy array, or
    itself recordable.
    """

    # What depends on the machine that loads, and what has no use after a fit.
    _of_the_machine: ClassVar[frozenset[str]] = frozenset()
    _left_out: ClassVar[frozenset[str]] = frozenset()

    def _get_state(self) -> dict[str, Any]:
        """Return what `fit` left."""
        return {}

    def _set_state(self, state: FittedState) -> None:
        """Put back what `fit` left; called on an estimator with its parameters set."""

    def _check_restored(self) -> None:
        """Raise ValueError for parameters that cannot be used."""

    def _recorded_params(self) -> dict[str, Any]:
        """Return the parameters to record."""
        params = self.get_params(deep=False)  # type: ignore[attr-defined]
        return {name: params[name] for name in params if name not in self._of_the_machine}

    def _to_record(self) -> Record:
        params = self._recorded_params()
        try:
            check_is_fitted(self)
        except NotFittedError:
            return Record(params, None)
        return Record(params, self._get_state())

    @classmethod
    def _from_record(
        cls, params: dict[str, Any], state: Mapping[str, Any] | None, settings: Mapping[str, Any]
    ) -> Self:
        known = set(cls._get_param_names())  # type: ignore[attr-defined]
        unknown = sorted(set(params) - (known - cls._of_the_machine))
        if unknown:
            raise ValueError(
                f"The model gives {cls.__name__} the parameter {unknown[0][:80]!r}, which this "
                "version of sklearn-ape does not know: pip install --upgrade sklearn-ape."
            )
        machine = {name: settings[name] for name in cls._of_the_machine & known & settings.keys()}
        found = cls(**params, **machine)
        found._check_restored()
        if state is not None:
            read = FittedState(state, cls.__name__)
            found._set_state(read)
            read.close()
        return found


class PretrainedMixin(SerializableMixin):
    """Base of fitted estimators that are saved to a folder, loaded and shared."""

    def _card_facts(self) -> Facts:
        """Return what the model card tells of this estimator."""
        return Facts()

    def save_pretrained(
        self, folder: str | os.PathLike[str], *, scores: Mapping[str, float] | None = None
    ) -> None:
        """Save to a folder: parameters as JSON, numbers as safetensors, and a model card.

        Encoders are recorded by class, parameters and what tells their weights from others, not
        with their weights. Settings of this machine (device, cache, ...) are not saved.

        Parameters
        ----------
        folder : str or path-like
            Made when it does not exist. A model in it is replaced, in one step: a save that is
            killed leaves the old one or the new one. Other files stay.
        scores : mapping of str to float or None, default=None
            What was measured, for the model card: ``{"accuracy on my images": 0.93}``.

        Raises
        ------
        TypeError
            When a parameter has no form that can be read without executing anything; the message
            names it and the remedy. Nothing is written.
        OSError
            When the folder cannot be written, or holds other things than a model.

        See Also
        --------
        sklearn_ape.load_pretrained : Loads whatever class was saved.
        """
        check_is_fitted(self)
        scores = checked_scores(scores)
        recorder = Recorder()
        model = recorder.object(self, type(self).__name__)
        made_with = version("sklearn-ape")
        config = {
            "library": "sklearn-ape",
            "version": made_with,
            "format": FORMAT,
            "model": model,
            "scores": scores,
            "left_out": recorder.left_out,
        }
        facts = self._card_facts()
        card = card_of(model, facts, scores, recorder, made_with)
        write_model(folder, config, recorder.tensors, card)

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
        """Load what `save_pretrained` wrote; nothing that a file says is executed.

        Parameters
        ----------
        source : str or path-like
            A folder, or the name of a model on the Hugging Face hub, ``"owner/name"``.
        revision : str or None, default=None
            Branch, tag or commit on the hub.
        token : str, bool or None, default=None
            Of the hub; None takes the one that you are logged in with.
        cache : str, path-like, FeatureCache or None, default=None
            Where the encoders keep features; None is their own default.
        device : {"auto"}, str or torch.device, default="auto"
            Where encoders and heads are computed.

        Returns
        -------
        estimator : object
            Fitted.

        Raises
        ------
        ValueError
            When there is no such model, it is damaged, of a newer format or another class, or
            its encoders have other weights here than it was fitted with.
        ImportError
            When the package with an encoder's weights, or huggingface_hub, is not installed.
        OSError
            When the files cannot be read, or the hub cannot be reached.
        """
        found = load_pretrained(source, revision=revision, token=token, cache=cache, device=device)
        if not isinstance(found, cls):
            name = type(found).__name__
            raise ValueError(
                f"{str(source)!r} holds a {name}: load it with {name}.from_pretrained, or "
                "sklearn_ape.load_pretrained for any class."
            )
        return found

    def push_to_hub(
        self,
        repo_id: str,
        *,
        token: str | bool | None = None,
        private: bool | None = None,
        commit_message: str | None = None,
        scores: Mapping[str, float] | None = None,
    ) -> str:
        """Upload to the Hugging Face hub, making the repository if need be.

        Parameters
        ----------
        repo_id : str
            ``"owner/name"``.
        token : str, bool or None, default=None
            Of the hub, with the right to write; None takes the one that you are logged in with.
        private : bool or None, default=None
            Whether a new repository is private; None is the owner's default.
        commit_message : str or None, default=None
            Of the upload.
        scores : mapping of str to float or None, default=None
            See `save_pretrained`.

        Returns
        -------
        address : str
            Of the repository.

        Raises
        ------
        ImportError
            When huggingface_hub is not installed.
        OSError
            When the hub refuses or cannot be reached.
        """
        with temporary() as parent:
            folder = Path(parent) / "model"
            self.save_pretrained(folder, scores=scores)
            message = commit_message or f"{type(self).__name__} of sklearn-ape"
            return upload(folder, repo_id, token, private, message)
