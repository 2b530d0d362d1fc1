"""What all encoders of texts share."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

from sklearn.utils import Tags

from ._base import FrozenEncoder
from ._errors import ItemError
from ._images import IMAGE_SUFFIXES


class TextEncoder(FrozenEncoder):
    """Base of the encoders of texts."""

    _modality = "text"

    def _digest(self, item: Any) -> bytes:
        return hashlib.sha256(b"text" + _checked_text(item).encode()).digest()

    def _check(self, item: Any) -> None:
        if Path(item).suffix.lower() in IMAGE_SUFFIXES and os.path.isfile(item):
            raise ItemError(
                "is a picture's file, not a text: captions go to the text encoder, pictures to "
                "the image encoder."
            )

    def _prepare(self, prepare: Any, item: Any) -> str:
        return str(item)

    def _blank(self) -> str:
        return "a"

    def _order(self, items: list[Any]) -> list[int]:
        # Texts of like length side by side need the least padding.
        return sorted(range(len(items)), key=lambda place: len(items[place]), reverse=True)

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.input_tags.string = True
        return tags


def _checked_text(item: Any) -> str:
    """Return a text that says something, or raise ItemError."""
    if isinstance(item, str):
        if not item.strip():
            raise ItemError("is empty: expected a text.")
        try:
            item.encode()
        except UnicodeEncodeError as error:  # half a surrogate pair: no tokenizer takes it
            raise ItemError(f"is no valid Unicode ({error.reason}).") from None
        return item
    is_nan = isinstance(item, float) and item != item
    if item is None or is_nan or type(item).__name__ in ("NAType", "NaTType"):
        raise ItemError("is no text (a missing caption?).")
    raise ItemError(f"is of type {type(item).__name__}: expected a str.")
