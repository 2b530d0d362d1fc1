"""Warnings that point to the line of the caller's code."""

from __future__ import annotations

import os
import sys
import warnings
from types import FrameType

# Packages whose functions stand between ours and those of the caller. Only those that are
# imported can be on the stack.
_PASSED_THROUGH = ("sklearn_ape", "sklearn", "skorch", "joblib", "torch")


# Modules of Python with wrappers of functions, such as context managers used as decorators.
_WRAPPERS = ("contextlib", "functools")


def warn(message: str, category: type[Warning] = UserWarning) -> None:
    """Warn, and point to the first frame outside of this package and those that it builds on.

    Parameters
    ----------
    message : str
        What is wrong, and what to do.
    category : type of Warning, default=UserWarning
        Class of the warning.
    """
    frame = _caller()
    warnings.warn_explicit(
        message,
        category,
        filename=frame.f_code.co_filename,
        lineno=frame.f_lineno,
        module=frame.f_globals.get("__name__") or "<string>",
        registry=frame.f_globals.setdefault("__warningregistry__", {}),
    )


def _caller() -> FrameType:
    """Return the first frame outside; in a thread without one, the outermost frame."""
    prefixes = _prefixes()
    frame = outermost = sys._getframe(1)
    while frame is not None:
        if not frame.f_code.co_filename.startswith(prefixes):
            return frame
        outermost, frame = frame, frame.f_back  # type: ignore[assignment]
    return outermost


def _prefixes() -> tuple[str, ...]:
    folders = (os.path.dirname(file) + os.sep for file in _files(_PASSED_THROUGH))
    return (*folders, *_files(_WRAPPERS), "<frozen ")


def _files(names: tuple[str, ...]) -> list[str]:
    modules = (sys.modules.get(name) for name in names)
    return [file for module in modules if (file := getattr(module, "__file__", None))]
