"""A training that is killed and goes on: what its checkpoint keeps, and when."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Self

import joblib
import numpy as np
from sklearn.utils import gen_batches

from .._callbacks import observes_fit
from ..persistence import State
from ..training import Ranks
from ..training._state import KeepState
from ._course import Course, is_first
from ._fingerprint import fingerprint
from ._pairs import Pairs
from ._text_tower import TextTower
from ._together import OF_ONE_PROCESS
from ._training_file import TrainingFile, folder_of

# Writing may take a twentieth of the time.
_PAUSE_OF_WRITING = 19
_ROWS_AT_ONCE = 4096


class Checkpoint:
    """What is kept of one training, if anything; a context in which it is trained.

    Parameters
    ----------
    aligner : APEAligner or LiTAligner
        Its parameters are read.
    data : Pairs
        What it is trained on.
    seed : int
        What a new training would take.
    ranks : Ranks or None, default=None
        Processes that train together: the first one reads and writes for all.
    tower : TextTower or None, default=None
        What is trained besides heads, as it was before.

    Attributes
    ----------
    seed : int
        What to train with: that of the training that was killed, if it drew its own.

    Raises
    ------
    ValueError
        When the file of this very training is damaged or of another format.
    OSError
        When it cannot be read.
    """

    def __init__(
        self,
        aligner: Any,
        data: Pairs,
        seed: int,
        ranks: Ranks | None = None,
        tower: TextTower | None = None,
    ) -> None:
        self.aligner = aligner
        self.ranks = ranks
        self.seed = seed
        self._tower = tower
        self._file: TrainingFile | None = None
        self._finished: dict[str, Any] | None = None
        self._phase = ""
        self._state: dict[str, Any] | None = None
        self._course: dict[str, Any] | None = None
        self._is_stopped = False
        self._next_write = -np.inf
        checkpoint = aligner.checkpoint
        self.is_on = checkpoint is not None
        if ranks is not None:
            self.is_on = ranks.of_first(self.is_on)
        if self.is_on and is_first(ranks):
            training = _described(aligner, data, seed, ranks, tower)
            self._file = TrainingFile(folder_of(checkpoint), training)

    def __enter__(self) -> Self:
        if not self.is_on:
            return self
        found: Any = None
        if self._file is not None:
            self._file.open()
            try:
                # Callbacks must be called, and those of scikit-learn may stop the training.
                found = self._file.read(finished=not observes_fit(self.aligner))
            except (ValueError, OSError) as error:
                self._file.close()
                found = error
        if self.ranks is not None:  # which must not wait for one that has failed
            found = self.ranks.of_first(found)
        if isinstance(found, Exception):
            raise found
        if found is not None:
            kind, values = found
            if kind == "finished":
                self._finished = values
            else:
                self.seed = values["seed"]
                self._phase, self._state = values["phase"], values["state"]
                self._course = values["course"]
        return self

    def __exit__(self, kind: Any, error: Any, traceback: Any) -> None:
        if self._file is None:
            return
        if isinstance(error, FloatingPointError):
            self._file.remove()  # it would diverge again
        self._file.close()

    def restore(self) -> bool:
        """Give the aligner what the whole training led to; say whether that was there."""
        if self._finished is None:
            return False
        learned = self._finished["learned"]
        if "text_tower" in learned:
            assert self._tower is not None
            learned["text_tower"]["encoder"] = self._tower.encoder
        state = State(learned, "the finished training")
        self.aligner._restore_learned(state, self._finished["logit_scale"])
        state.close()
        return True

    @property
    def course(self) -> Course | None:
        """That of the training that found the best epoch, if it is over."""
        return None if self._course is None else Course(**self._course)

    def callbacks(self, phase: str) -> list[Any]:
        """Return what a net needs to keep its state, and to go on from the one kept.

        Parameters
        ----------
        phase : str
            Which net of the training it is.
        """
        if not self.is_on or self._is_stopped:
            return []
        start = self._state if phase == self._phase else None
        self._state = None
        return [("checkpoint", KeepState(lambda make: self._keep(phase, make), start))]

    def note_course(self, course: Course) -> None:
        """Take note that the best epoch is found, unless training was stopped before."""
        if course.was_stopped:
            self.stop()
        self._course = course._asdict()

    def stop(self) -> None:
        """Leave the last state for the next fit: training was interrupted."""
        self._is_stopped = True

    def begin(self, phase: str) -> None:
        """Keep that a phase begins: what was done before it is not done again."""
        if self.is_on and not self._is_stopped and phase != self._phase:
            self._write(phase, None)

    def finish(self) -> None:
        """Keep the result, or delete the state if a new fit has to train again.

        It has to if it draws another seed or calls callbacks: they can change weights, and a
        class or a function of the same name may do something else by then.
        """
        if self._file is None or self._is_stopped:
            return
        if self.aligner.random_state is None or self.aligner.callbacks:
            self._file.remove()
            return
        learned = self.aligner._learned_state()
        if "text_tower" in learned:
            learned["text_tower"].pop("encoder")  # it is that of the aligner
        values = {"learned": learned, "logit_scale": self.aligner.logit_scale_}
        self._file.write(values, finished=True)

    def _keep(self, phase: str, make: Callable[[], dict[str, Any]]) -> None:
        is_due = time.monotonic() >= self._next_write
        if self.ranks is not None:
            is_due = self.ranks.of_first(is_due)
        if is_due:
            start = time.monotonic()
            self._write(phase, make())
            end = time.monotonic()
            self._next_write = end + _PAUSE_OF_WRITING * (end - start)

    def _write(self, phase: str, state: dict[str, Any] | None) -> None:
        if self._file is not None:
            values = {"seed": self.seed, "phase": phase, "course": self._course, "state": state}
            self._file.write(values)


def _described(
    aligner: Any, data: Pairs, seed: int, ranks: Ranks | None, tower: TextTower | None
) -> dict[str, Any]:
    """Say which training it is: all that its numbers depend on."""
    parameters = aligner.get_params(deep=False)
    found: dict[str, Any] = {
        "class": type(aligner).__name__,
        "parameters": {
            name: repr(value.item() if isinstance(value, np.generic) else value)
            for name, value in parameters.items()
            if name not in OF_ONE_PROCESS
        },
        "pairs": _digest(data),
        "random_state": None if aligner.random_state is None else seed,
        "number of processes": 1 if ranks is None else ranks.size,
    }
    if aligner.callbacks:
        found["callbacks"] = [_description(callback) for callback in aligner.callbacks]
    return found if tower is None else {**found, "text_encoder": tower.digest()}


def _description(callback: Any) -> str:
    """Describe a skorch callback by its class and parameters."""
    if isinstance(callback, tuple):  # with a name
        callback = callback[1]
    kind = callback if isinstance(callback, type) else type(callback)
    values = {} if isinstance(callback, type) else vars(callback)
    parameters = [
        f"{name}={_hash(value)}" for name, value in sorted(values.items()) if name[-1] != "_"
    ]
    return f"{kind.__module__}.{kind.__qualname__}({', '.join(parameters)})"


def _hash(value: Any) -> str:
    """Return a hash that is the same in every process, or the type's name if there is none."""
    try:
        return joblib.hash(value)
    except Exception:  # pickling may raise anything
        return type(value).__name__


def _digest(data: Pairs) -> str:
    """Return a digest of all rows, of which a few are in memory."""
    parts = [
        fingerprint(np.asarray(side[rows]))
        for side in (data.image, data.text)
        for rows in gen_batches(len(side), _ROWS_AT_ONCE)
    ]
    items = [] if data.items is None else [data.items]  # they decide which epoch is the best
    return fingerprint(data.pairs, np.array([data.n_prototypes]), np.array(parts), *items)
