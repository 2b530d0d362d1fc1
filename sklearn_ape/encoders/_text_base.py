"""What all encoders of texts share."""

from __future__ import annotations

import hashlib
import os
import unicodedata
from pathlib import Path
from typing import Any

import torch
from sklearn.utils import Tags

from .._forks import ForkSafeLock
from .._image_suffixes import IMAGE_SUFFIXES
from ._base import FrozenEncoder
from ._errors import ItemError

# A fast tokenizer serves one thread at a time, and has a lock that stays locked in the child of a
# fork during its work.
TOKENIZING = ForkSafeLock(guards_library=True)


class TextEncoder(FrozenEncoder):
    """Base of the encoders of texts."""

    _modality = "text"
    _worth_exporting = 4096

    def _digest(self, item: Any) -> bytes:
        return hashlib.sha256(b"text" + _checked_text(item).encode()).digest()

    def _check(self, item: Any) -> None:
        if Path(item).suffix.lower() in IMAGE_SUFFIXES and os.path.isfile(item):
            raise ItemError(
                "is an image's file, not a text: captions go to the text encoder, images to "
                "the image encoder."
            )

    def _prepare(self, prepare: Any, item: Any) -> str:
        return str(item)

    def _blank(self) -> str:
        return "a"

    def _examples(self) -> list[list[Any]]:
        return [
            ["a cat", "a photograph of two dogs that run along a beach", "rain"],
            ["a"],
            ["many words " * 20, "a b"],
        ]

    def _default_batch_size(self, engine: str, device: torch.device) -> int:
        if engine == "torch":
            return 64 if device.type == "cpu" else 512
        return 4

    def _order(self, items: list[Any]) -> list[int]:
        # Texts of like length side by side need the least padding.
        # Of equal ones by their letters: the same texts in another order make the same batches.
        return sorted(
            range(len(items)), key=lambda place: (len(items[place]), items[place]), reverse=True
        )

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.input_tags.string = True
        return tags


def _is_invisible(character: str) -> bool:
    """Say whether tokenizers keep nothing of a character: a space, or a mark of control."""
    return character.isspace() or unicodedata.category(character) in ("Cc", "Cf")


def _checked_text(item: Any) -> str:
    """Return a text that says something, or raise ItemError."""
    if isinstance(item, str):
        if all(map(_is_invisible, item)):
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
