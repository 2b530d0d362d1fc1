"""Base class for text encoders, and preparation of texts."""

from __future__ import annotations

import hashlib
import os
import re
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.utils import Tags

from ..utils.concurrency import ForkSafeLock, LRUCache, delay_forks
from ..utils.files import IMAGE_SUFFIXES
from ..utils.messages import is_invisible, warn
from ..utils.validation import format_list, is_missing
from .base import FrozenEncoder
from .items import ItemError
from .weights import PACKAGED, Network, explain_load_errors, list_unknown_files, read_side_file

# Letters up to this one are Latin, phonetic or Greek. A few Greek ones occur in English texts, but
# no words.
_LAST_GREEK = "\u03ff"
_GREEK_WORD = re.compile("[\u0370-\u03ff]{4}")
# Largest share of texts in another alphabet that causes no warning.
_MAX_FOREIGN_SHARE = 0.01

# A tokenizer that transformers makes without files has at most this many tokens that are not
# special.
_MAX_DEFAULT_TOKENS = 2

# Largest relative change of features by padding that is rounding.
_PADDING_TOLERANCE = 1e-4
# Whether padding changes features, by the encoder's identity.
_sensitive_to_padding: LRUCache[bytes, bool] = LRUCache(max_entries=1024)


def read_prompt(model_name: str, revision: str | None) -> tuple[str, int | None]:
    """Return the prompt and the number of features that a sentence-transformers model declares."""
    with explain_load_errors(model_name):
        sentence = read_side_file(model_name, revision, "config_sentence_transformers.json") or {}
        prompts = sentence.get("prompts") or {}
        default = sentence.get("default_prompt_name")
        if default is not None and default not in prompts:
            raise ValueError(f"default_prompt_name={default!r} is not among the prompts.")
    prompts = {name: text for name, text in prompts.items() if text}
    if default is None and prompts:
        warn(
            f"model_name={model_name!r} has prompts ({format_list(prompts)}) but no default "
            "prompt, so texts are encoded without one, as in sentence-transformers. Prepend a "
            f"prompt to the texts, for instance {next(iter(prompts.values()))!r}."
        )
    return prompts.get(default, ""), sentence.get("truncate_dim")


def check_tokenizer(tokenizer: Any, model_name: str) -> None:
    """Raise ValueError if the vocabulary of a tokenizer is empty because its files are missing.

    transformers then returns a tokenizer that maps all words to the same tokens.
    """
    if len(tokenizer) - len(tokenizer.all_special_ids) <= _MAX_DEFAULT_TOKENS:
        raise ValueError(
            f"model_name={model_name!r} is a model without the files of its tokenizer, whose "
            "vocabulary is empty. Save the tokenizer to the same folder as the model."
        )


def parse_pooling(config: dict[str, Any]) -> str:
    """Return the pooling of a sentence-transformers config in the old or the new format."""
    modes = config.get("pooling_mode") or [
        key.removeprefix("pooling_mode_")
        for key, is_used in config.items()
        if key.startswith("pooling_mode_") and is_used
    ]
    names = {"cls_token": "cls", "mean_tokens": "mean", "lasttoken": "last"}
    return "+".join(names.get(mode, mode) for mode in np.atleast_1d(modes))


def pool_tokens(last: torch.Tensor, mask: torch.Tensor, pooling: str) -> torch.Tensor:
    """Pool hidden states, (n, n_tokens, width), over tokens that are not padding."""
    if pooling not in ("mean", "cls", "cls+mean", "last"):
        raise ValueError(
            f"pooling='auto' is not supported for this model, whose files declare {pooling!r}. "
            "Pass pooling='mean', 'cls', 'cls+mean' or 'last', or use SentenceTransformerEncoder."
        )
    weights = mask.unsqueeze(-1).to(last.dtype)
    mean = (last * weights).sum(dim=1) / weights.sum(dim=1).clamp(min=1)
    if pooling == "mean":
        return mean
    if pooling == "last":
        return last[torch.arange(last.shape[0]), mask.sum(dim=1) - 1]
    return last[:, 0] if pooling == "cls" else torch.cat([last[:, 0], mean], dim=1)


_tokenizer_lock = ForkSafeLock()


@contextmanager
def use_tokenizers() -> Iterator[None]:
    """Return a context in which one thread uses tokenizers: fast ones are not thread-safe."""
    with _tokenizer_lock, delay_forks:
        yield


def differs_by_padding(alone: torch.Tensor, padded: torch.Tensor) -> bool:
    """Return whether padding changed the features of a text by more than rounding."""
    return bool((padded - alone).abs().max() > _PADDING_TOLERANCE * alone.abs().max())


def is_image_file(text: str) -> bool:
    """Return whether a text is the path of an image file that exists."""
    return Path(text).suffix.lower() in IMAGE_SUFFIXES and os.path.isfile(text)


class SentenceFilesEncoder(FrozenEncoder):
    """Base class for encoders that read the sentence-transformers files of a model."""

    def _get_identity(self) -> dict[str, Any]:
        if list_unknown_files(self.model_name, self.revision):
            self._get_network()  # downloads the files
        identity = super()._get_identity()
        unknown = list_unknown_files(self.model_name, self.revision)
        # Features that were computed without a file differ from those with it.
        return identity | {"unknown_files": unknown} if unknown else identity

    def _is_width_known(self) -> bool:
        # The identity would load the model.
        is_complete = not list_unknown_files(self.model_name, self.revision)
        return is_complete and super()._is_width_known()


class TextEncoder(FrozenEncoder):
    """Base class for text encoders."""

    _modality = "text"
    _min_items_to_export = 4096
    # Larger batches are faster for short texts, but slower for texts of several titles.
    _cpu_batch_size = 32
    _gpu_batch_size = 512

    n_jobs = None  # tokenizers are fast, or use several threads on their own

    def _digest_item(self, item: Any) -> bytes:
        return hashlib.sha256(b"text" + validate_text(item).encode()).digest()

    def _check_item(self, item: Any) -> None:
        if is_image_file(item):
            raise ItemError(
                "is an image file, not a text. Pass captions to the text encoder and images to "
                "the image encoder."
            )

    def _warn_about_unsuitable(self, items: list[Any]) -> None:
        if self.model_name not in PACKAGED:  # whose networks were trained on English texts
            return
        foreign = [text for text in items if isinstance(text, str) and not _may_be_english(text)]
        # A few words of other languages in many captions are harmless.
        if len(foreign) <= _MAX_FOREIGN_SHARE * len(items):
            return
        count = "1 text is" if len(foreign) == 1 else f"{len(foreign):,} texts are"
        warn(
            f"{count} not in the Latin alphabet ({format_list(foreign)}), and the text encoder "
            f"{self.model_name!r} was trained on English, so that the features say little about "
            "the meaning. Use English texts, for labels as in labels={'猫': 'cat'}, or another "
            "text encoder."
        )

    def _prepare_item(self, prepare: Any, item: Any) -> str:
        return str.__str__(item)  # str() of a member of an Enum of texts is its name

    def _choose_batch_size(self, device: torch.device) -> int:
        is_sensitive = _sensitive_to_padding.get_or_create(
            self._digest_identity(), lambda: self._is_sensitive_to_padding(self._get_network())
        )
        return 1 if is_sensitive else super()._choose_batch_size(device)

    def _is_sensitive_to_padding(self, network: Network) -> bool:
        """Return whether the features of a text depend on the other texts of its batch."""
        return False

    def _make_blank(self) -> str:
        return "a"

    def _make_examples(self) -> list[list[Any]]:
        return [
            ["a cat", "a photograph of two dogs that run along a beach", "rain"],
            ["a"],
            # So much padding that a sliding window, such as ModernBERT's, has no token of a text.
            # OpenVINO then returns NaN.
            ["many words " * 100, "a b"],
        ]

    def _sort_rows(self, items: list[Any]) -> list[int]:
        # Batches of similar lengths need the least padding. Equal lengths are sorted by text, so
        # that batches, and thus the rounding of features, do not depend on the order of items.
        lengths = self._measure_lengths(items)
        return sorted(range(len(items)), key=lambda row: (lengths[row], items[row]), reverse=True)

    def _measure_lengths(self, items: list[Any]) -> list[int]:
        return list(map(len, items))

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.input_tags.string = True
        return tags


def _may_be_english(text: str) -> bool:
    """Return whether a text has no letters but Latin and a few Greek ones, and not only symbols.

    >>> [_may_be_english(text) for text in ("café", "α-helix", "5 °C", "猫", "кот", "🐱", "a 🐱")]
    [True, True, True, False, False, False, True]
    """
    if text.isascii():
        return True
    text = unicodedata.normalize("NFKC", text)  # full-width and mathematical letters
    letters = [char for char in text if char.isalpha()]
    if any(char > _LAST_GREEK and "LATIN" not in unicodedata.name(char, "") for char in letters):
        return False
    if _GREEK_WORD.search(text):
        return False
    is_symbol = (unicodedata.category(char) == "So" for char in text)
    return any(map(str.isalnum, text)) or not any(is_symbol)


def validate_text(item: Any) -> str:
    """Return a text that is not blank, or raise ItemError."""
    if isinstance(item, str):
        if is_invisible(item):
            raise ItemError("is an empty text. Pass a text with visible characters.")
        try:
            item.encode()
        except UnicodeEncodeError as error:  # lone surrogates, which tokenizers reject
            raise ItemError(
                f"is not valid Unicode ({error.reason}). Remove lone surrogates."
            ) from None
        return item
    if is_missing(item):
        raise ItemError("is a missing value, not a text. Remove the row or write a caption.")
    hint = ""
    if hasattr(item, "shape"):
        hint = (
            " Pass images to an image encoder. In a Pipeline, pass the text encoder to the "
            "aligner, not as a step."
        )
    raise ItemError(f"is of type {type(item).__name__}. Pass a str.{hint}")
