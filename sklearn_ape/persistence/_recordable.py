"""The contract of what a file of a model may hold."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple, Self

from sklearn.exceptions import NotFittedError
from sklearn.utils.validation import check_is_fitted

from ._state import State


class Record(NamedTuple):
    """An object as plain data, arrays and recordable objects."""

    params: dict[str, Any]
    state: dict[str, Any] | None


class Recordable:
    """Base of estimators that files of models may hold.

    Subclasses say which parameters belong to a machine, what `fit` left and how it is put back.
    A value may be plain data (None, bool, numbers, str, list, tuple, dict), a numpy array, or
    itself recordable.
    """

    # What depends on the machine that loads, and what has no use after a fit.
    _of_the_machine: ClassVar[frozenset[str]] = frozenset()
    _left_out: ClassVar[frozenset[str]] = frozenset()

    def _fitted_state(self) -> dict[str, Any]:
        """Return what `fit` left."""
        return {}

    def _restore_state(self, state: State) -> None:
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
        return Record(params, self._fitted_state())

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
            read = State(state, cls.__name__)
            found._restore_state(read)
            read.close()
        return found
