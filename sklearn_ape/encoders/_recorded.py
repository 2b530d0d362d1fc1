"""The part of an encoder that is recorded in a saved model: its class, parameters and weights."""

from __future__ import annotations

import re
from abc import abstractmethod
from typing import Any, ClassVar

from ..persistence import Recordable, State

_COMMIT = re.compile(r".*@([0-9a-f]{40})")


class RecordedEncoder(Recordable):
    """Records what tells the weights from others, not the weights themselves."""

    _of_the_machine: ClassVar = frozenset(
        {"batch_size", "cache", "device", "engine", "n_jobs", "verbose"}
    )

    model_name: str

    @abstractmethod
    def _known_weights(self) -> str | None:
        """Return what tells the weights from others; None when only loading would tell."""

    @abstractmethod
    def _check_parameters(self) -> None:
        """Raise ValueError for parameters that cannot be used."""

    def _recorded_params(self) -> dict[str, Any]:
        params = super()._recorded_params()
        commit = _COMMIT.fullmatch(self._known_weights() or "")
        # The commit that the features came from: the branch may move on.
        if commit and "revision" in params:
            params["revision"] = commit[1]
        return params

    def _fitted_state(self) -> dict[str, Any]:
        return {"weights": self._known_weights()}

    def _restore_state(self, state: State) -> None:
        recorded = state.optional("weights")
        known = self._known_weights()
        if recorded is not None and known is not None and recorded != known:
            raise ValueError(
                f"{type(self).__name__}({self.model_name!r}) has other weights here "
                f"({known[:60]}) than those that the model was fitted with "
                f"({str(recorded)[:60]}): it would give wrong answers. Get those weights, or fit "
                "again."
            )
        if known is None and re.fullmatch("[0-9a-f]{64}", str(recorded)):
            raise ValueError(
                f"The weights of {type(self).__name__} were in the folder {self.model_name!r}, "
                "which is not here: put that folder there."
            )

    def _check_restored(self) -> None:
        self._check_parameters()
