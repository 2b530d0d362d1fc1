"""Warnings that point to the line of the caller's code."""

from __future__ import annotations

import os
import sys
import warnings
from types import FrameType

# Packages whose functions may be on the stack between the caller's code and ours.
_INTERNAL_PACKAGES = ("sklearn_ape", "sklearn", "skorch", "joblib", "torch")
# Modules of the standard library whose wrappers may be on the stack, such as decorators.
_WRAPPERS = ("contextlib", "functools")


def warn(message: str, category: type[Warning] = UserWarning) -> None:
    """Issue a warning that points to the line of the user's code."""
    frame = _find_caller()
    warnings.warn_explicit(
        message,
        category,
        filename=frame.f_code.co_filename,
        lineno=frame.f_lineno,
        module=frame.f_globals.get("__name__") or "<string>",
        registry=frame.f_globals.setdefault("__warningregistry__", {}),
    )


def _find_caller() -> FrameType:
    """Return the innermost frame of the user's code, or the outermost frame if there is none."""
    prefixes = _internal_prefixes()
    frame = outermost = sys._getframe(1)
    while frame is not None:
        if not frame.f_code.co_filename.startswith(prefixes):
            return frame
        outermost, frame = frame, frame.f_back  # type: ignore[assignment]
    return outermost


def _internal_prefixes() -> tuple[str, ...]:
    folders = (os.path.dirname(file) + os.sep for file in _files(_INTERNAL_PACKAGES))
    return (*folders, *_files(_WRAPPERS), "<frozen ")


def _files(names: tuple[str, ...]) -> list[str]:
    modules = (sys.modules.get(name) for name in names)
    return [file for module in modules if (file := getattr(module, "__file__", None))]
