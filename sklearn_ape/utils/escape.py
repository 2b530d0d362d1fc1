"""Escaping of untrusted text for terminals, Markdown and spreadsheets."""

from __future__ import annotations

import re
import unicodedata

# Persian, Hindi and emoji of several persons are written with joiners, which have no width.
_JOINERS = "\u200c\u200d"


# Characters, and positions of characters, that mean something in CommonMark, in GitHub's tables
# or to programs that make links of addresses. An underscore within a word means nothing.
_MARKUP = re.compile(
    r"[\\`*\[\]<>|~$]"
    r"|(?<![^\W_])_|_(?![^\W_])"
    r"|&(?=#?\w+;)"
    r"|:(?=//)"
    r"|(?<=\w)\.(?=[^\W\d_]{2})"
    r"|@(?=[\w-]+\.)"
)


# Spreadsheets compute cells that begin with these characters, some also their full-width forms.
_FORMULA = "[=+\\-@\t\r\n\uff1d\uff0b\uff0d\uff20]"


_FORMULA_PATH = re.compile(_FORMULA)


_FORMULA_TEXT = re.compile(f"'*{_FORMULA}")


_ESCAPED_FORMULA = re.compile(f"'+{_FORMULA}")


_NUMBER = re.compile(r"[+-]?\d+(\.\d+)?([eE][+-]?\d+)?", re.ASCII)


def escape_controls(text: str, keep: str = "") -> str:
    r"""Return a text in which control and invisible characters are written as escapes.

    Marks that reorder text, and bytes of file names that are not text, are escaped as well.

    Parameters
    ----------
    text : str
        Any text.
    keep : str, default=""
        Characters to leave as they are.

    Returns
    -------
    escaped : str
        The same text if it has no such character.

    Examples
    --------
    >>> from sklearn_ape.utils.escape import escape_controls
    >>> print(escape_controls("red\x1b[31m\n"))
    red\x1b[31m\n
    """
    if text.isprintable():
        return text
    keep += _JOINERS
    return "".join(
        character if character in keep or _has_shape(character) else _escaped(character)
        for character in text
    )


def escape_markdown(text: str) -> str:
    r"""Return Markdown that shows a text on one line as it stands, in a cell or in a sentence.

    Parameters
    ----------
    text : str
        Any text.

    Returns
    -------
    escaped : str
        Text in which links, images, HTML, emphasis, code and line ends are escaped.

    Examples
    --------
    >>> from sklearn_ape.utils.escape import escape_markdown
    >>> print(escape_markdown("![x](https://example.org) a_b"))
    !\[x\](https\://example\.org) a_b
    """
    return _MARKUP.sub(r"\\\g<0>", escape_controls(text))


def escape_formula(text: str) -> str:
    """Return a text with an apostrophe in front if a spreadsheet would compute it.

    Parameters
    ----------
    text : str
        Any text; plain numbers such as "-0.5" stay as they are.

    Returns
    -------
    escaped : str
        `unescape_formula` returns the text that was passed.

    Examples
    --------
    >>> from sklearn_ape.utils.escape import escape_formula
    >>> escape_formula("=1+1"), escape_formula("a cat"), escape_formula("-0.5")
    ("'=1+1", 'a cat', '-0.5')
    """
    return f"'{text}" if _FORMULA_TEXT.match(text) and not _NUMBER.fullmatch(text) else text


def unescape_formula(text: str) -> str:
    """Return the text that `escape_formula` was given.

    Parameters
    ----------
    text : str
        A cell.

    Returns
    -------
    text : str
        The cell without the apostrophe in front of a formula.

    Examples
    --------
    >>> from sklearn_ape.utils.escape import unescape_formula
    >>> unescape_formula("'=1+1"), unescape_formula("'tis a cat"), unescape_formula("-0.5")
    ('=1+1', "'tis a cat", '-0.5')
    """
    return text[1:] if _ESCAPED_FORMULA.match(text) else text


def escape_formula_path(path: str) -> str:
    """Return a path of the same file that a spreadsheet does not compute.

    Parameters
    ----------
    path : str
        Any path.

    Returns
    -------
    escaped : str
        The path with ``./`` in front if it would be a formula.

    Examples
    --------
    >>> from sklearn_ape.utils.escape import escape_formula_path
    >>> escape_formula_path("=x.jpg"), escape_formula_path("photos/=x.jpg")
    ('./=x.jpg', 'photos/=x.jpg')
    """
    return f"./{path}" if _FORMULA_PATH.match(path) else path


def _has_shape(character: str) -> bool:
    category = unicodedata.category(character)
    # Spaces, and characters for private use or newer than this Python, which are shown as a box.
    return character.isprintable() or category in ("Zs", "Co", "Cn")


def _escaped(character: str) -> str:
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:  # a byte that is not text, as Python reads names of files
        return f"\\x{code - 0xDC00:02x}"
    return character.encode("unicode_escape").decode()
