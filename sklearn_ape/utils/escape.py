"""Escaping of untrusted text for terminals, Markdown and spreadsheets."""

from __future__ import annotations

import re
import unicodedata

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


def _is_visible(character: str) -> bool:
    category = unicodedata.category(character)
    # Also spaces, and characters for private use or newer than this Python, shown as a box.
    return character.isprintable() or category in ("Zs", "Co", "Cn")


def _escape_character(character: str) -> str:
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:  # surrogateescape: an undecodable byte of a file name
        return f"\\x{code - 0xDC00:02x}"
    return character.encode("unicode_escape").decode()
