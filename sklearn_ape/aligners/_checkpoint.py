"""Checkpoints of a training run: when they are written, and the file."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any, Self

import joblib
import numpy as np
from filelock import FileLock, Timeout
from sklearn.utils import gen_batches

from ..persistence import FittedState
from ..persistence.files import read_file, read_head, write_file
from ..training import Ranks, current_ranks
from ..training.callbacks import TrainingResult, is_first_rank
from ..training.data import Pairs
from ..training.distributed import SINGLE_PROCESS_PARAMETERS
from ..training.state import SaveState
from ..utils.files import remove_unfinished_directories
from ..utils.linalg import fingerprint
from ..utils.sklearn_compat import observes_fit
from ..utils.validation import format_list
from ..utils.warnings import warn
from ._text_tower import TextTower

_FORMAT = 1


_UNFINISHED, _FINISHED = ".training.safetensors", ".trained.safetensors"


# Whoever looks at a lock holds it for a moment.
_LOCK_TIMEOUT_S = 1.0


_MOST_NAMED = 4


_REMEDY = "Delete it to train from the beginning, or pass another folder as checkpoint."


def prepare_folder(checkpoint: Any) -> None:
    """Make the folder of a checkpoint and see that it can be written to, before long work.

    Raises
    ------
    TypeError
        When it is no path.
    OSError
        When it cannot be made or written to; also (FileExistsError) when it holds other things.
    """
    ranks = current_ranks()
    if checkpoint is None or (ranks is not None and ranks.rank):
        return  # of processes that train together the first one writes
    if not isinstance(checkpoint, str | os.PathLike) or not os.fspath(checkpoint):
        raise TypeError(f"checkpoint must be None or the path of a folder, not {checkpoint!r}.")
    folder = folder_of(checkpoint)
    if folder.exists() and not folder.is_dir():
        raise FileExistsError(f"checkpoint={str(folder)!r} is a file: pass a folder.")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
        names = sorted(name for name in os.listdir(folder) if not name.startswith("."))
    except OSError as error:
        raise type(error)(
            f"checkpoint={str(folder)!r} cannot be written to ({error}): pass another folder, or "
            "None to train without."
        ) from None
    if names and not any(name.endswith((_UNFINISHED, _FINISHED)) for name in names):
        raise FileExistsError(
            f"checkpoint={str(folder)!r} holds {format_list(names, str)} and no training of "
            "sklearn-ape: pass a folder of its own, such as a new one."
        )


def folder_of(checkpoint: Any) -> Path:
    """Return the path that a parameter stands for."""
    return Path(checkpoint).expanduser()


class TrainingFile:
    """What is kept of one training: its state while it runs, and what it led to.

    Opening it takes the place of the one process that writes; a process that comes second trains
    without writing.

    Parameters
    ----------
    folder : Path
        That exists, and may hold other trainings: each has names of its own.
    training : dict
        Plain data that says which training it is: ``class``, ``parameters`` (texts by name) and
        what else tells it from others.
    """

    def __init__(self, folder: Path, training: dict[str, Any]) -> None:
        self.training = training
        key = hashlib.sha256(json.dumps(training, sort_keys=True).encode()).hexdigest()[:20]
        name = f"{training['class']}-{key}"
        self.unfinished = folder / f"{name}{_UNFINISHED}"
        self.finished = folder / f"{name}{_FINISHED}"
        self._lock = _lock_of(self.unfinished)
        self._has_told = False
        self.is_ours = True

    def open(self) -> None:
        """Become the one who writes, unless another process is."""
        try:
            self._lock.acquire(timeout=_LOCK_TIMEOUT_S)
        except Timeout:
            self.is_ours = False
            warn(
                f"Another process is at the same training, and keeps its state in "
                f"{str(self.unfinished)!r}: this one trains beside it, without a checkpoint.",
            )
        except (OSError, NotImplementedError):
            pass  # a disk without locks: whole files replace one another all the same
        for path in (self.unfinished, self.finished):
            remove_unfinished_directories(path)

    def close(self) -> None:
        """Let others write."""
        self._lock.release()

    def read(self, finished: bool = True) -> tuple[str, dict[str, Any]] | None:
        """Return ("finished" or "unfinished", what was written), or None for a new training.

        Parameters
        ----------
        finished : bool, default=True
            Whether a finished training is returned. Otherwise only an unfinished one is.

        Raises
        ------
        ValueError
            When it is damaged, of another training or of another format.
        """
        if not self.is_ours:
            return None
        for path, kind in ((self.finished, "finished"), (self.unfinished, "unfinished")):
            if path.exists() and (finished or path != self.finished):
                return kind, self._read(path)
        self._tell_of_others()
        return None

    def write(self, values: dict[str, Any], finished: bool = False) -> None:
        """Write, or warn once that it cannot be done: training goes on."""
        if not self.is_ours:
            return
        head = {
            "library": "sklearn-ape",
            "checkpoint_format": _FORMAT,
            "versions": _versions(),
            "training": self.training,
        }
        try:
            write_file(self.finished if finished else self.unfinished, head, values)
            if finished:
                self.unfinished.unlink(missing_ok=True)
        except OSError as error:
            if not self._has_told:
                self._has_told = True
                warn(
                    f"The checkpoint in {str(self.unfinished.parent)!r} cannot be written "
                    f"({error}): training goes on, and what is there stays as it is.",
                    RuntimeWarning,
                )

    def remove(self) -> None:
        """Forget the training."""
        if self.is_ours:
            with suppress(OSError):
                self.unfinished.unlink(missing_ok=True)

    def _read(self, path: Path) -> dict[str, Any]:
        try:
            head = read_head(path)
            if head.get("checkpoint_format") != _FORMAT:
                raise ValueError(
                    f"{str(path)!r} is of format {str(head.get('checkpoint_format'))[:20]}, and "
                    f"this version of sklearn-ape reads format {_FORMAT}."
                )
            if head.get("training") != self.training:
                raise ValueError(
                    f"{str(path)!r} is of another training: "
                    f"{_difference(head.get('training'), self.training)}."
                )
            values = read_file(path)
        except ValueError as error:
            raise ValueError(f"{error} {_REMEDY}") from None
        begun, here = head.get("versions"), _versions()
        if begun != here:
            warn(
                f"{str(path)!r} was written with {begun}, and these are {here}: the result may "
                "differ in the last digits from that of a training in one go.",
            )
        return values

    def _tell_of_others(self) -> None:
        """Say what differs from a training that was killed: that may be an accident."""
        pattern = f"{self.training['class']}-*{_UNFINISHED}"
        for path in sorted(self.unfinished.parent.glob(pattern)):
            with suppress(OSError, ValueError, Timeout, NotImplementedError):
                with _lock_of(path).acquire(timeout=0):  # else it is running
                    there = read_head(path).get("training")
                warn(
                    f"{str(path)!r} is an unfinished training with "
                    f"{_difference(there, self.training)}. This one is another, and begins at the "
                    "beginning; that one is left as it is.",
                )
                return


def _lock_of(path: Path) -> FileLock:
    return FileLock(path.with_name(f".{path.name}.lock"))


def _versions() -> dict[str, str]:
    return {name: version(name) for name in ("sklearn-ape", "torch")}


def _difference(there: Any, here: dict[str, Any]) -> str:
    """Say in what two trainings differ."""
    if not isinstance(there, dict) or not isinstance(there.get("parameters"), dict):
        return "nothing that this version knows"
    others, ours = there["parameters"], here["parameters"]
    found = [
        f"{name}={others.get(name, 'unknown')} (here {ours.get(name, 'unknown')})"
        for name in sorted(others.keys() | ours.keys())
        if others.get(name) != ours.get(name)
    ]
    named = sorted((there.keys() | here.keys()) - {"parameters", "class"})
    found += [f"other {name}" for name in named if there.get(name) != here.get(name)]
    more = ["..."] if len(found) > _MOST_NAMED else []
    return ", ".join(found[:_MOST_NAMED] + more) or "other content"


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
        if self.is_on and is_first_rank(ranks):
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
        state = FittedState(learned, "the finished training")
        self.aligner._restore_learned(state, self._finished["logit_scale"])
        state.close()
        return True

    @property
    def course(self) -> TrainingResult | None:
        """That of the training that found the best epoch, if it is over."""
        return None if self._course is None else TrainingResult(**self._course)

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
        return [("checkpoint", SaveState(lambda make: self._keep(phase, make), start))]

    def note_course(self, course: TrainingResult) -> None:
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
            if name not in SINGLE_PROCESS_PARAMETERS
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
