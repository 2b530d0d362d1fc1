"""Base class for text encoders, and preparation of texts."""

from __future__ import annotations

import hashlib
import os
import unicodedata
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from sklearn.utils import Tags

from ..utils.concurrency import ForkSafeLock
from ..utils.files import IMAGE_SUFFIXES
from ..utils.validation import format_list
from ..utils.warnings import warn
from .base import FrozenEncoder
from .items import ItemError
from .weights import loading, read_side_file


class TextPreparation(NamedTuple):
    """Changes of a text before it is tokenized, as the files of a model declare them.

    Parameters
    ----------
    prompt : str, default=""
        Text that is put in front of every text.
    lower : bool, default=False
        Whether texts are lower-cased, the prompt with them.
    tokenizer_lowers : bool, default=False
        Whether the tokenizer lower-cases by itself.
    """

    prompt: str = ""
    lower: bool = False
    tokenizer_lowers: bool = False

    def __call__(self, texts: Any) -> Any:
        """Return the texts as the model was trained to read them."""
        if self.prompt:
            texts = [self.prompt + text for text in texts]
        return [text.lower() for text in texts] if self.lower else texts

    def identity(self) -> dict[str, Any]:
        """Return the changes that affect features, for the key of the cache."""
        identity: dict[str, Any] = {}
        if self.prompt:
            identity["prompt"] = self.prompt
        if self.lower and not self.tokenizer_lowers:
            identity["lower"] = True
        return identity


@lru_cache(maxsize=64)
def declared_preparation(
    model_name: str, revision: str | None, weights: str | None
) -> TextPreparation:
    """Return the preparation of texts that the files of a model declare.

    SigLIP and SigLIP 2 were trained on lower-cased texts. The tokenizer of the first lower-cases
    by itself; that of the second, where it is loaded as Gemma's, does not.

    Parameters
    ----------
    model_name : str
        The ``model_name`` of a `TransformersTextEncoder`.
    revision : str or None
        Revision of a hub model.
    weights : str or None
        Digest or commit of the model. The files are read once for each.

    Returns
    -------
    preparation : TextPreparation
        For most models it changes nothing.

    Raises
    ------
    ValueError
        When the files are damaged, or name a default prompt that they do not hold.
    """

    def read(filename: str) -> dict[str, Any]:
        return read_side_file(model_name, revision, filename) or {}

    with loading(model_name):
        is_siglip = str(read("config.json").get("model_type")).startswith("siglip")
        lower = is_siglip or bool(read("sentence_bert_config.json").get("do_lower_case"))
        tokenizer = read("tokenizer_config.json") if is_siglip else {}
        tokenizer_lowers = str(tokenizer.get("tokenizer_class")).startswith("Siglip")
        is_sentence_model = read_side_file(model_name, revision, "modules.json") is not None
        sentence = read("config_sentence_transformers.json") if is_sentence_model else {}
        prompts = sentence.get("prompts") or {}
        default = sentence.get("default_prompt_name")
        if default is not None and default not in prompts:
            raise ValueError(f"default_prompt_name {default!r} is not among the prompts.")
    if default is None:
        _warn_of_prompts(model_name, {name: text for name, text in prompts.items() if text})
        return TextPreparation("", lower, tokenizer_lowers)
    return TextPreparation(prompts[default] or "", lower, tokenizer_lowers)


def _warn_of_prompts(model_name: str, prompts: dict[str, str]) -> None:
    if prompts:
        warn(
            f"{model_name!r} has prompts ({format_list(prompts)}) and none of them is the "
            "default, so texts are encoded without a prompt, as sentence-transformers does. Put "
            "the prompt in front of the texts yourself, for instance "
            f"{next(iter(prompts.values()))!r}.",
        )


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
