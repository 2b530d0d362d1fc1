"""Checkpoints of a training run: their files, and when they are written."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import joblib
import numpy as np
from filelock import FileLock, Timeout
from sklearn.utils import gen_batches

from ..persistence.files import read_description, read_file, write_file
from ..training.callbacks import TrainingResult
from ..training.data import PairDataset
from ..training.distributed import Ranks, broadcast, current_ranks, is_first_rank
from ..training.state import SaveState
from ..utils.files import check_writable, expand_user, remove_unfinished_directories
from ..utils.linalg import fingerprint
from ..utils.messages import warn
from ..utils.sklearn_compat import observes_fit
from ..utils.validation import format_list, to_builtin

if TYPE_CHECKING:
    from ._trained import TrainedAligner

_FORMAT = 1
_UNFINISHED, _FINISHED = ".training.safetensors", ".trained.safetensors"

# Processes that only check whether a training is running hold its lock for a moment.
_LOCK_TIMEOUT_S = 1.0

# After writing for t seconds, the next state is written 19 t later at the earliest, so that
# writing takes at most a twentieth of the time.
_PAUSE_OF_WRITING = 19

_BLOCK_SIZE = 4096  # rows of features that are digested together
_MAX_DIFFERENCES = 4  # that a message lists
_REMEDY = "Delete it to train from the beginning, or pass another folder as checkpoint."


def prepare_folder(checkpoint: Any) -> None:
    """Create the folder of checkpoints and check that it is writable, before training starts.

    Raise FileExistsError if it contains other files.
    """
    if checkpoint is None or not is_first_rank(current_ranks()):
        return  # in distributed training only the first rank writes
    if not isinstance(checkpoint, str | os.PathLike) or not os.fspath(checkpoint):
        raise TypeError(f"checkpoint must be None or the path of a folder, not {checkpoint!r}.")
    folder = expand_user(checkpoint)
    if folder.exists() and not folder.is_dir():
        raise FileExistsError(f"checkpoint={str(folder)!r} is a file. Pass a folder.")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        check_writable(folder)
        names = sorted(name for name in os.listdir(folder) if not name.startswith("."))
    except OSError as error:
        raise type(error)(
            f"checkpoint={str(folder)!r} is not writable ({error}). Pass another folder, or None "
            "to train without checkpoints."
        ) from None
    if names and not any(name.endswith((_UNFINISHED, _FINISHED)) for name in names):
        raise FileExistsError(
            f"checkpoint={str(folder)!r} contains {format_list(names, str)} and no checkpoint of "
            "sklearn-ape. Pass a folder for checkpoints only, such as a new one."
        )


class TrainingFile:
    """Files with the state and the result of one training run, in an existing folder.

    One process at a time holds the lock of a run and writes its files. Another process with the
    same run trains without checkpoints. `training` is plain data that identifies the run:
    ``class``, ``parameters`` (texts by name) and digests.
    """

    def __init__(self, folder: Path, training: dict[str, Any]) -> None:
        self.training = training
        key = hashlib.sha256(json.dumps(training, sort_keys=True).encode()).hexdigest()[:20]
        name = f"{training['class']}-{key}"
        self.unfinished = folder / f"{name}{_UNFINISHED}"
        self.finished = folder / f"{name}{_FINISHED}"
        self._lock = _make_lock(self.unfinished)
        self._has_warned = False

    def open(self) -> bool:
        """Acquire the lock; return False, with a warning, if another process holds it."""
        try:
            self._lock.acquire(timeout=_LOCK_TIMEOUT_S)
        except Timeout:
            warn(
                f"Another process holds the lock on checkpoint {str(self.unfinished)!r}. This run "
                "will train without checkpoints."
            )
            return False
        except (OSError, NotImplementedError):
            pass  # file systems without locks: files are still replaced atomically
        for path in (self.unfinished, self.finished):
            remove_unfinished_directories(path)
        return True

    def close(self) -> None:
        """Release the lock."""
        self._lock.release()

    def read(self, finished: bool) -> dict[str, Any] | None:
        """Return the state of the run, or its result if it has one and `finished` is True.

        Without a file, None is returned, with a warning about an unfinished run that differs.
        ValueError is raised if the file is damaged, or belongs to another run or format.
        """
        paths = [self.finished, self.unfinished] if finished else [self.unfinished]
        for path in paths:
            if path.exists():
                return self._read(path)
        self._warn_about_other_runs()
        return None

    def write(self, values: dict[str, Any], finished: bool = False) -> None:
        """Write values; if that fails, warn once and let training continue."""
        head = {
            "library": "sklearn-ape",
            "checkpoint_format": _FORMAT,
            "versions": _list_versions(),
            "training": self.training,
        }
        try:
            write_file(self.finished if finished else self.unfinished, head, values)
            if finished:
                self.unfinished.unlink(missing_ok=True)
        except OSError as error:
            if not self._has_warned:
                self._has_warned = True
                warn(
                    f"The checkpoint in {str(self.unfinished.parent)!r} cannot be written "
                    f"({error}). Training continues, and existing files are left unchanged.",
                    RuntimeWarning,
                )

    def remove(self) -> None:
        """Delete the state of an unfinished training."""
        with suppress(OSError):
            self.unfinished.unlink(missing_ok=True)

    def _read(self, path: Path) -> dict[str, Any]:
        try:
            head = read_description(path)
            if head.get("checkpoint_format") != _FORMAT:
                raise ValueError(
                    f"{str(path)!r} has format {str(head.get('checkpoint_format'))[:20]}, and "
                    f"this version of sklearn-ape reads format {_FORMAT}."
                )
            if head.get("training") != self.training:
                raise ValueError(
                    f"{str(path)!r} belongs to another training: "
                    f"{_describe_difference(head.get('training'), self.training)}."
                )
            values = read_file(path)
        except ValueError as error:
            raise ValueError(f"{error} {_REMEDY}") from None
        versions, installed_versions = head.get("versions"), _list_versions()
        if versions != installed_versions:
            warn(
                f"{str(path)!r} was written with {versions}, and the installed versions are "
                f"{installed_versions}. The result may differ in the last digits from an "
                "uninterrupted training."
            )
        return values

    def _warn_about_other_runs(self) -> None:
        """Warn about an unfinished run that differs, possibly by accident."""
        pattern = f"{self.training['class']}-*{_UNFINISHED}"
        for path in sorted(self.unfinished.parent.glob(pattern)):
            with suppress(OSError, ValueError, Timeout, NotImplementedError):
                with _make_lock(path).acquire(timeout=0):  # Timeout if that run is active
                    training = read_description(path).get("training")
                warn(
                    f"{str(path)!r} is an unfinished training with "
                    f"{_describe_difference(training, self.training)}. Starting a new run; the "
                    "existing checkpoint is left unchanged."
                )
                return


def _make_lock(path: Path) -> FileLock:
    return FileLock(path.with_name(f".{path.name}.lock"))


def _list_versions() -> dict[str, str]:
    return {name: version(name) for name in ("sklearn-ape", "torch")}


def _describe_difference(other: Any, own: dict[str, Any]) -> str:
    """Return the parameters and data in which another training differs."""
    if not isinstance(other, dict) or not isinstance(other.get("parameters"), dict):
        return "an unknown description"
    other_parameters, parameters = other["parameters"], own["parameters"]
    differences = [
        f"{name}={other_parameters.get(name, 'unknown')} (here {parameters.get(name, 'unknown')})"
        for name in sorted(other_parameters.keys() | parameters.keys())
        if other_parameters.get(name) != parameters.get(name)
    ]
    names = sorted((other.keys() | own.keys()) - {"parameters", "class"})
    differences += [f"other {name}" for name in names if other.get(name) != own.get(name)]
    return format_list(differences, str, _MAX_DIFFERENCES) or "other content"


class Checkpoint:
    """Context of a training run that saves and restores its state if `checkpoint` is set.

    A resumed training has the `seed` in its file. In distributed training, the first rank reads
    and writes for all of them. Entering the context raises ValueError if the file is damaged or
    has another format, and OSError if it cannot be read.
    """

    def __init__(
        self, aligner: TrainedAligner, data: PairDataset, seed: int, ranks: Ranks | None = None
    ) -> None:
        self.aligner = aligner
        self.ranks = ranks
        self.seed = seed
        self._file: TrainingFile | None = None
        self._content: dict[str, Any] = {}  # values that were read from the file
        # Result of the search for the best epoch, if it is finished.
        self.result: TrainingResult | None = None
        self._next_write = -np.inf
        self.is_enabled = broadcast(ranks, aligner.checkpoint is not None)
        if self.is_enabled and is_first_rank(ranks):
            training = _describe_training(aligner, data, seed, ranks)
            self._file = TrainingFile(expand_user(aligner.checkpoint), training)

    def __enter__(self) -> Self:
        content: Any = None
        if self._file is not None and not self._file.open():
            self._file = None  # another process writes the files of this run
        if self._file is not None:
            try:
                # Callbacks of scikit-learn must be called, and may stop the training.
                content = self._file.read(finished=not observes_fit(self.aligner))
            except (ValueError, OSError) as error:
                self._file.close()
                content = error
        # Also broadcast an error: the other ranks would wait for the first one.
        content = broadcast(self.ranks, content)
        if isinstance(content, Exception):
            raise content
        self._content = content or {}
        self.seed = self._content.get("seed", self.seed)
        if self._content.get("course") is not None:
            self.result = TrainingResult(**self._content["course"])
        return self

    def __exit__(self, kind: Any, error: Any, traceback: Any) -> None:
        if self._file is None:
            return
        if isinstance(error, FloatingPointError):
            self._file.remove()  # a resumed training would diverge again
        self._file.close()

    def restore(self) -> bool:
        """Restore the result of a finished training; return whether there was one."""
        if "learned" not in self._content:
            return False
        self.aligner._set_result(self._content["learned"], self._content["logit_scale"])
        return True

    def make_callbacks(self, phase: str) -> list[Any]:
        """Return the callbacks by which a net saves its state and resumes from a saved one.

        Each phase of the training has its own net.
        """
        if not self.is_enabled:
            return []
        is_resumed = phase == self._content.get("phase")
        state = self._content.pop("state", None) if is_resumed else None
        return [("checkpoint", SaveState(lambda get: self._save(phase, get), state))]

    def note_result(self, result: TrainingResult) -> None:
        """Record the result of the search for the best epoch."""
        if result.was_stopped:
            self.stop()
        self.result = result

    def stop(self) -> None:
        """Stop writing, so that the next fit resumes from the last state before an interrupt."""
        self.is_enabled = False

    def begin(self, phase: str) -> None:
        """Record that a phase begins, so that earlier phases are not repeated."""
        if self.is_enabled and phase != self._content.get("phase"):
            self._write(phase, None)

    def finish(self) -> None:
        """Save the result, or delete the state if the next fit must train again.

        The next fit must train if it draws a new seed, or if there are callbacks. Callbacks can
        change weights, and their code may have changed by then.
        """
        if self._file is None or not self.is_enabled:
            return
        if self.aligner.random_state is None or self.aligner.callbacks:
            self._file.remove()
            return
        values = {"learned": self.aligner._get_result(), "logit_scale": self.aligner.logit_scale_}
        self._file.write(values, finished=True)

    def _save(self, phase: str, get_state: Callable[[], dict[str, Any]]) -> None:
        # `get_state` gathers from all ranks, so all must take the same branch.
        if broadcast(self.ranks, time.monotonic() >= self._next_write):
            start = time.monotonic()
            self._write(phase, get_state())
            end = time.monotonic()
            self._next_write = end + _PAUSE_OF_WRITING * (end - start)

    def _write(self, phase: str, state: dict[str, Any] | None) -> None:
        if self._file is not None:
            # "course" is a key of the file format.
            course = None if self.result is None else self.result._asdict()
            values = {"seed": self.seed, "phase": phase, "course": course, "state": state}
            self._file.write(values)


def _describe_training(
    aligner: TrainedAligner, data: PairDataset, seed: int, ranks: Ranks | None
) -> dict[str, Any]:
    """Return everything that the result of a training depends on, as plain data."""
    parameters = aligner._get_compared_parameters()
    training: dict[str, Any] = {
        "class": type(aligner).__name__,
        "parameters": {name: repr(to_builtin(value)) for name, value in parameters.items()},
        "pairs": _digest_pairs(data),
        "random_state": None if aligner.random_state is None else seed,
        "number of processes": 1 if ranks is None else ranks.size,
    }
    if aligner.callbacks:
        training["callbacks"] = [_describe_callback(callback) for callback in aligner.callbacks]
    return training | aligner._get_compared_weights()


def remove_name(callback: Any) -> Any:
    """Return a skorch callback without its name, if it has one."""
    is_named = isinstance(callback, list | tuple) and len(callback) == 2
    return callback[1] if is_named else callback


def _describe_callback(callback: Any) -> str:
    """Return the class and the parameters of a skorch callback."""
    callback = remove_name(callback)
    cls = callback if isinstance(callback, type) else type(callback)
    values = {} if isinstance(callback, type) else getattr(callback, "__dict__", {})
    parameters = [
        f"{name}={_hash_value(value)}" for name, value in sorted(values.items()) if name[-1] != "_"
    ]
    return f"{cls.__module__}.{cls.__qualname__}({', '.join(parameters)})"


def _hash_value(value: Any) -> str:
    """Return a hash that does not depend on the process, or the type if hashing fails."""
    try:
        return joblib.hash(value)
    except Exception:  # pickling may raise anything
        return type(value).__name__


def _digest_pairs(data: PairDataset) -> str:
    """Return a digest of all features and pairs, computed in blocks of rows."""
    digests = [
        fingerprint(np.asarray(side[block]))
        for side in (data.image, data.text)
        for block in gen_batches(len(side), _BLOCK_SIZE)
    ]
    # Items decide which epoch is the best one.
    items = [] if data.items is None else [data.items]
    return fingerprint(data.pairs, np.array([data.n_prototypes]), np.array(digests), *items)
