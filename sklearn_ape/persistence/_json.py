"""JSON as files of models are written and read: strict, and bounded in size and depth."""

from __future__ import annotations

import json
import math
from typing import Any, NoReturn

MOST_BYTES = 2**26
DEEPEST = 40


def dumped(value: Any) -> str:
    """Return JSON for people to read.

    Raises
    ------
    ValueError
        When it is too long to be read back.
    """
    text = json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False)
    if len(text.encode()) > MOST_BYTES:
        raise ValueError(
            f"The model's config.json would be longer than {MOST_BYTES >> 20} MiB: it holds too "
            "many labels or texts."
        )
    return text


def loaded(text: str | bytes, what: str) -> dict[str, Any]:
    """Return the object that JSON describes.

    Parameters
    ----------
    text : str or bytes
        JSON in UTF-8.
    what : str
        What errors call it.

    Raises
    ------
    ValueError
        When it is no object, holds numbers that are not finite or a key twice, is too long or
        too deep.
    """
    if len(text) > MOST_BYTES:
        raise ValueError(f"{what} is longer than {MOST_BYTES >> 20} MiB: it is no model's.")
    try:
        value = json.loads(
            text,
            object_pairs_hook=_once,
            parse_constant=_not_finite,
            parse_float=_finite,
        )
    except RecursionError:
        raise ValueError(f"{what} is nested too deep.") from None
    except ValueError as error:  # JSON's own and Unicode's are kinds of it
        raise ValueError(f"{what} is no valid JSON: {error}") from None
    if not isinstance(value, dict):
        raise ValueError(f"{what} must be a JSON object, not a {type(value).__name__}.")
    return value


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key is given twice.")
    return found


def _not_finite(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number of JSON.")


def _finite(digits: str) -> float:
    number = float(digits)
    if not math.isfinite(number):
        raise ValueError(f"{digits[:20]} is too large a number.")
    return number
