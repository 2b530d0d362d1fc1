"""The files of one training in the folder of its checkpoint."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from .._unfinished import clear_unfinished
from .._warnings import warn
from ..persistence._one_file import read_file, read_head, write_file
from ..training import current_ranks

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
            f"checkpoint={str(folder)!r} holds {', '.join(names[:3])}"
            f"{', ...' * (len(names) > 3)} and no training of sklearn-ape: pass a folder of its "
            "own, such as a new one."
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
            clear_unfinished(path)

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
