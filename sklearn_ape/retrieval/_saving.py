"""The part of a retriever that is saved and loaded."""

from __future__ import annotations

import json
import os
from contextlib import suppress
from os import PathLike
from typing import Any

import numpy as np

from .._aligner_choice import text_side
from .._around_aligner import AroundAligner
from .._warnings import warn
from ..persistence import State
from ..persistence._card import Facts
from ._collection import Collection
from ._indexes import make_index

# Of file names that are no text, as Python itself has it.
_ENCODING = ("utf-8", "surrogateescape")
_INT64 = np.iinfo(np.int64)
_JSON_TYPES = {str, int, float, bool, type(None)}


class SavedRetriever(AroundAligner):
    """The part of `CrossModalRetriever` that is saved and loaded.

    Embeddings and what stands for the images are tensors, however many there are; an index is
    made anew.
    """

    dtype: str
    index: str
    _collection: Collection

    def _own_state(self) -> dict[str, Any]:
        self._check_current()
        collection = self._collection
        unread = np.setdiff1d(np.arange(collection.n_rows), collection.rows)
        return {
            "embeddings": collection.embeddings,
            "unread": unread.astype(np.int64),
            "items": None if collection.items is None else _packed(collection.items),
            "has_y": self._has_y,
            "fingerprint": getattr(text_side(self.aligner_), "fingerprint_", None),
        }

    def _restore_own(self, state: State) -> None:
        texts = text_side(self.aligner_)
        embeddings = state.array("embeddings", (None, int(texts.n_components_)))
        if not len(embeddings) or embeddings.dtype.name != self.dtype:
            raise ValueError(f"embeddings must be rows of {self.dtype}, one at least.")
        unread = state.array("unread", (None,), "i")
        n_rows = len(embeddings) + len(unread)
        if len(unread) and not (
            (np.diff(unread) > 0).all() and unread[0] >= 0 and unread[-1] < n_rows
        ):
            raise ValueError("unread must be rows of the collection, in ascending order.")
        items = None
        if "items" in state:
            items = _unpacked(state.part("items"))
            if len(items) != n_rows:
                raise ValueError(f"items must be {n_rows}, one for each image.")
        state.optional("items")
        has_y = state.value("has_y")
        if not isinstance(has_y, bool):
            raise ValueError("has_y must be true or false.")
        if state.optional("fingerprint") != getattr(texts, "fingerprint_", None):
            raise ValueError(
                "The aligner is not the one that the images were embedded with (its weights or "
                "settings are others here): index the images again."
            )
        self._has_y = has_y
        rows = np.setdiff1d(np.arange(n_rows), unread)
        finder = make_index(self.index, embeddings)
        self._collection = Collection(embeddings, rows, n_rows, items, finder, {})

    def _check_restored(self) -> None:
        self._check_parameters()  # type: ignore[attr-defined]

    def _card_facts(self) -> Facts:
        facts = self._aligner_facts()
        facts.what = (
            "Finds the images of a collection that are nearest to words or to other images. "
            "It holds their embeddings, not the images. " + facts.what
        )
        facts.facts = {"images indexed": f"{len(self._collection.rows):,}"} | facts.facts
        facts.usage = "print(model.search(['a red fruit'], k=5).items)"
        return facts


def _packed(items: list[Any]) -> dict[str, Any] | None:
    """Return the items in results as arrays, or None with a warning if that is not possible."""
    plain = [_plain(item) for item in items]
    kinds = set(map(type, plain))
    if kinds <= {str}:
        with suppress(UnicodeEncodeError):  # half a surrogate pair
            parts = [text.encode(*_ENCODING) for text in plain]
            ends = np.cumsum([len(part) for part in parts], dtype=np.int64)
            return {"texts": np.frombuffer(b"".join(parts), dtype=np.uint8), "ends": ends}
    if kinds == {float} or (
        kinds == {int} and _INT64.min <= min(plain) and max(plain) <= _INT64.max
    ):
        return {"numbers": np.array(plain)}
    if kinds <= _JSON_TYPES:  # of several types, or integers of any size
        with suppress(ValueError):  # an integer of thousands of digits
            return {"json": np.frombuffer(json.dumps(plain).encode(), dtype=np.uint8)}
    warn(
        "The items in results are not saved, because some are not a str, path, number, bool or "
        "None. After loading the items are row numbers. Pass y to fit to give the images ids.",
    )
    return None


def _plain(item: Any) -> Any:
    """Return an item as a plain object of Python, if it is one of those that JSON has."""
    if isinstance(item, PathLike):
        item = os.fspath(item)
    elif isinstance(item, np.generic) and item.dtype.kind not in "mM":  # dates become integers
        item = item.item()
    if isinstance(item, str):  # such as one of an Enum
        return str.__str__(item)
    if isinstance(item, int) and not isinstance(item, bool):
        return int(item)
    return float(item) if isinstance(item, float) else item


def _unpacked(state: State) -> list[Any]:
    if "numbers" in state:
        return state.array("numbers", (None,), "if", finite=False).tolist()
    if "json" in state:
        return _from_json(state.array("json", (None,), "u").astype(np.uint8).tobytes())
    whole = state.array("texts", (None,), "u").astype(np.uint8).tobytes()
    ends = state.array("ends", (None,), "i")
    starts = np.concatenate([[0], ends[:-1]]) if len(ends) else ends
    if (starts > ends).any() or (len(whole) != ends[-1] if len(ends) else len(whole)):
        raise ValueError("ends must say where the texts of items end.")
    return [
        whole[start:end].decode(*_ENCODING)
        for start, end in zip(starts.tolist(), ends.tolist(), strict=True)
    ]


def _from_json(text: bytes) -> list[Any]:
    try:
        items = json.loads(text)
    except (ValueError, RecursionError):
        items = None
    if not isinstance(items, list) or not set(map(type, items)) <= _JSON_TYPES:
        raise ValueError("items must be a JSON list of texts, numbers, booleans and nulls.")
    return items
