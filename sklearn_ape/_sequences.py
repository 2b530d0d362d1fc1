"""Checks of arguments that must be sequences of texts, images or rows of numbers."""

from __future__ import annotations

import reprlib
from collections.abc import Mapping
from os import PathLike
from typing import Any


def check_sequence(values: Any, name: str, kind: str, kinds: str | None = None) -> None:
    """Refuse a single item, and a container whose items have no number or no order.

    Python reads a str as a sequence of letters and a dict as a sequence of its keys. Without this
    check they would be accepted as such.

    Parameters
    ----------
    values : object
        The argument.
    name : str
        Name of the parameter, for messages.
    kind : str
        Noun for one item, such as "text" or "image".
    kinds : str or None, default=None
        Noun for the items. None is the plural of `kind`.

    Raises
    ------
    ValueError
        When `values` is a str, bytes, a path or a PIL image; or a dict, a set, an iterator, an
        array without dimensions or anything else that is not a sequence.
    """
    if isinstance(values, str | bytes | bytearray | memoryview | PathLike):
        shown = reprlib.repr(str(values)) if isinstance(values, str) and kind != "image" else name
        raise ValueError(
            f"{name} is a single {kind}, not a sequence of them: pass a list, [{shown}]."
        )
    kinds = kinds or f"{kind}s"
    if hasattr(values, "getexif"):
        raise ValueError(
            f"{name} is a single image, not a sequence of "
            f"{'them' if kind == 'image' else kinds}: pass a list, [{name}]."
        )
    if getattr(values, "ndim", 1) == 0:
        raise ValueError(
            f"{name} must be a sequence of {kinds}, not a single object in an array without "
            f"dimensions: pass a list, [{name}.item()]."
        )
    is_sized = hasattr(values, "__len__") or hasattr(values, "__array__")
    has_no_order = isinstance(values, Mapping | set | frozenset | type)
    # dok_array of scipy is a dict as well as an array.
    if (has_no_order and not hasattr(values, "ndim")) or not is_sized:
        items = f"{name}.values()" if isinstance(values, Mapping) else name
        shown = f"list({items})" if hasattr(values, "__iter__") else f"[{name}]"
        raise ValueError(
            f"{name} must be a sequence of {kinds} (a list, an array, a column), not "
            f"{type(values).__name__}: pass a list, {shown}."
        )
