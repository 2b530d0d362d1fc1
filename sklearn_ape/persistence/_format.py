"""The number of the format, and how older ones are brought up to it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

FORMAT = 1

# From the number of a format to what turns its config into that of the next.
_MIGRATIONS: dict[int, Callable[[dict[str, Any]], dict[str, Any]]] = {}


def migrated(config: dict[str, Any], what: str) -> dict[str, Any]:
    """Return a config in the present format.

    Raises
    ------
    ValueError
        When it is of a newer format, or of none.
    """
    number = config.get("format")
    if type(number) is not int or number < 1 or config.get("library") != "sklearn-ape":
        raise ValueError(
            f"{what} describes no model of sklearn-ape: it has no 'library' and 'format' of ours."
        )
    if number > FORMAT:
        raise ValueError(
            f"{what} is of format {number}, written by sklearn-ape "
            f"{str(config.get('version'))[:40]}; this version reads formats up to {FORMAT}. "
            "Upgrade: pip install --upgrade sklearn-ape."
        )
    for old in range(number, FORMAT):
        config = _MIGRATIONS[old](config)
    return config
