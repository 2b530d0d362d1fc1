"""Messages for users: warnings, progress bars, missing packages, and escaping of text."""

from __future__ import annotations

import os
import re
import sys
import unicodedata
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from importlib import import_module
from traceback import walk_stack
from types import FrameType
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from tqdm import tqdm

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
    folders = (os.path.dirname(file) + os.sep for file in _list_files(_INTERNAL_PACKAGES))
    internal_prefixes = (*folders, *_list_files(_WRAPPERS), "<frozen ")
    for frame, _ in walk_stack(sys._getframe()):
        if not frame.f_code.co_filename.startswith(internal_prefixes):
            break
    return frame


def _list_files(names: tuple[str, ...]) -> list[str]:
    modules = (sys.modules.get(name) for name in names)
    return [file for module in modules if (file := getattr(module, "__file__", None))]


# Seconds of work without a bar, in general and if `verbose` is None.
_DELAY_S, _DEFAULT_DELAY_S = 0.5, 2.0


def shows_progress(verbose: int | None) -> bool:
    """Return whether to show progress bars for a value of the parameter ``verbose``.

    None means yes in a terminal and in a notebook, but not where standard error is written to a
    file, nor in worker processes, whose bars would overwrite each other.
    """
    if verbose is not None:
        return bool(verbose)
    from multiprocessing import current_process  # slow to import for the command line

    if current_process().name != "MainProcess":
        return False
    # The standard error of a notebook is not a terminal, but shows bars.
    return "ipykernel" in sys.modules or bool(sys.stderr and sys.stderr.isatty())


class HiddenBar:
    """Progress bar that is not shown, with the methods of tqdm that the package uses.

    A disabled bar of tqdm takes the lock of all bars, which forked processes share. If one of them
    is killed while it holds the lock, the others wait for it forever.
    """

    n = initial = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        """Do nothing."""

    def update(self, n: int = 1) -> None:
        """Do nothing."""

    def reset(self, total: int | None = None) -> None:
        """Do nothing."""

    def set_postfix(self, *args: Any, **options: Any) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Do nothing."""


def make_progress_bar(
    total: int | None, verbose: int | None, delay: float | None = None, **options: Any
) -> tqdm | HiddenBar:
    """Make a progress bar, which appears only if the work takes more than `delay` seconds.

    By default, this is half a second. If `verbose` is None, it is two seconds, and the bar is
    removed at the end, so that a terminal does not fill with the bars of many calls. The options
    are those of tqdm.
    """
    if not shows_progress(verbose):
        return HiddenBar()
    from tqdm import tqdm  # slow to import for the command line

    by_default = verbose is None
    if delay is None:
        delay = _DEFAULT_DELAY_S if by_default else _DELAY_S
    return tqdm(total=total, delay=delay, **{"leave": not by_default} | options)


class _BlockBar(HiddenBar):
    """Bar of a block of items, which advances the bar of all blocks instead of its own."""

    def __init__(self, bar: tqdm | HiddenBar) -> None:
        self._bar = bar

    def update(self, n: int = 1) -> None:
        self._bar.update(n)


# The bar of all blocks, and its unit, while one of the blocks is processed.
_bar_of_blocks: ContextVar[tuple[tqdm | HiddenBar, str] | None] = ContextVar(
    "_bar_of_blocks", default=None
)


@contextmanager
def advance_within_block(bar: tqdm | HiddenBar, unit: str) -> Iterator[None]:
    """Let `make_block_bar` return bars that advance a bar of the same unit."""
    token = _bar_of_blocks.set((bar, unit))
    try:
        yield
    finally:
        _bar_of_blocks.reset(token)


def make_block_bar(
    total: int | None, verbose: int | None, *, unit: str, **options: Any
) -> tqdm | HiddenBar:
    """Make a progress bar, or return one that advances the bar of `advance_within_block`."""
    bar, unit_of_blocks = _bar_of_blocks.get() or (None, None)
    if bar is not None and unit == unit_of_blocks:
        return _BlockBar(bar)
    return make_progress_bar(total, verbose, unit=unit, **options)


def import_optional(module: str, *, extra: str, purpose: str, package: str | None = None) -> Any:
    """Import a module, or raise ImportError with the command that installs it.

    `package` is the name of its package if it is not that of the module with hyphens.
    """
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        package = package or module.replace("_", "-")
        raise ImportError(
            f"{purpose} needs the package {package!r}, which is not installed. "
            f'Install it with: pip install "sklearn-ape[{extra}]"'
        ) from error


# Persian, Hindi and emoji of several persons need these joiners, which have no width.
_JOINERS = "\u200c\u200d"

# Characters, and positions of characters, that have a meaning in CommonMark, in GitHub's tables
# or to programs that turn addresses into links. An underscore within a word has none.
_MARKUP = re.compile(
    r"[\\`*\[\]<>|~$]"
    r"|(?<![^\W_])_|_(?![^\W_])"
    r"|&(?=#?\w+;)"
    r"|:(?=//)"
    r"|(?<=\w)\.(?=[^\W\d_]{2})"
    r"|@(?=[\w-]+\.)"
)

# Spreadsheets evaluate cells that begin with these characters, some also their full-width forms.
_FORMULA = "[=+\\-@\t\r\n\uff1d\uff0b\uff0d\uff20]"
_FORMULA_PATH = re.compile(_FORMULA)
_FORMULA_TEXT = re.compile(f"'*{_FORMULA}")
_ESCAPED_FORMULA = re.compile(f"'+{_FORMULA}")
_NUMBER = re.compile(r"[+-]?\d+(\.\d+)?([eE][+-]?\d+)?", re.ASCII)


def escape_controls(text: str, keep: str = "") -> str:
    r"""Replace control and invisible characters, except those in `keep`, by escape sequences.

    Marks that reorder text, and undecodable bytes of file names, are escaped as well.

    >>> print(escape_controls("red\x1b[31m\n"))
    red\x1b[31m\n
    """
    if text.isprintable():
        return text
    keep += _JOINERS
    return "".join(
        character if character in keep or _is_visible(character) else _escape_character(character)
        for character in text
    )


def escape_markdown(text: str) -> str:
    r"""Return Markdown that displays a text literally, on one line.

    >>> print(escape_markdown("![x](https://example.org) a_b"))
    !\[x\](https\://example\.org) a_b
    """
    return _MARKUP.sub(r"\\\g<0>", escape_controls(text))


def escape_formula(text: str) -> str:
    """Prepend an apostrophe to a text that a spreadsheet would evaluate as a formula.

    >>> escape_formula("=1+1"), escape_formula("a cat"), escape_formula("-0.5")
    ("'=1+1", 'a cat', '-0.5')
    """
    return f"'{text}" if _FORMULA_TEXT.match(text) and not _NUMBER.fullmatch(text) else text


def unescape_formula(text: str) -> str:
    """Undo `escape_formula`.

    >>> unescape_formula("'=1+1"), unescape_formula("'tis a cat"), unescape_formula("-0.5")
    ('=1+1', "'tis a cat", '-0.5')
    """
    return text[1:] if _ESCAPED_FORMULA.match(text) else text


def escape_formula_path(path: str) -> str:
    """Return a path to the same file that a spreadsheet does not evaluate as a formula.

    >>> escape_formula_path("=x.jpg"), escape_formula_path("photos/=x.jpg")
    ('./=x.jpg', 'photos/=x.jpg')
    """
    return f"./{path}" if _FORMULA_PATH.match(path) else path


def is_invisible(text: str) -> bool:
    """Return whether a text has only white space, control characters and format characters."""
    return all(char.isspace() or unicodedata.category(char) in ("Cc", "Cf") for char in text)


def _is_visible(character: str) -> bool:
    category = unicodedata.category(character)
    # Also spaces, and characters for private use or newer than this Python, shown as a box.
    return character.isprintable() or category in ("Zs", "Co", "Cn")


def _escape_character(character: str) -> str:
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:  # surrogateescape: an undecodable byte of a file name
        return f"\\x{code - 0xDC00:02x}"
    return character.encode("unicode_escape").decode()
