"""Ways to find the nearest of many embeddings."""

from __future__ import annotations

from typing import Any, Protocol, Self

import numpy as np

from ..aligners._feature_tiles import row_tiles
from ._nearest import nearest

INDEXES = ("exact", "faiss", "usearch")


class Index(Protocol):
    """Finds embeddings that it was made of, by their numbers."""

    def search(self, embeddings: np.ndarray, queries: np.ndarray, k: int) -> np.ndarray:
        """Return the numbers of k embeddings near every query, in any order."""

    def with_more(self, embeddings: np.ndarray, n_before: int) -> Self:
        """Return an index of these and more; this one stays as it is, for searches under way."""


class ExactIndex:
    """No index: all products, a tile at a time."""

    def search(self, embeddings: np.ndarray, queries: np.ndarray, k: int) -> np.ndarray:
        """Return the numbers of the k nearest embeddings of every query."""
        return nearest(embeddings, queries, k)

    def with_more(self, embeddings: np.ndarray, n_before: int) -> Self:
        """Return an index of all embeddings."""
        return self


class FaissIndex:
    """A flat index of faiss: all products, in threads of its own."""

    def __init__(self, n_components: int, index: Any = None) -> None:
        try:
            import faiss
        except ImportError as error:
            raise _missing("faiss") from error
        self.index = faiss.IndexFlatIP(n_components) if index is None else index

    def search(self, embeddings: np.ndarray, queries: np.ndarray, k: int) -> np.ndarray:
        """Return the numbers of the k nearest embeddings of every query."""
        return self.index.search(np.ascontiguousarray(queries), k)[1].astype(np.intp)

    def with_more(self, embeddings: np.ndarray, n_before: int) -> Self:
        """Return an index of all embeddings."""
        import faiss

        index = faiss.clone_index(self.index)
        for rows in row_tiles(len(embeddings) - n_before, embeddings.shape[1]):
            some = embeddings[n_before + rows.start : n_before + rows.stop]
            index.add(np.ascontiguousarray(some, dtype=np.float32))
        return type(self)(embeddings.shape[1], index)


class UsearchIndex:
    """A graph (HNSW) of usearch: much faster in large collections, and approximate."""

    def __init__(self, n_components: int, dtype: str, index: Any = None) -> None:
        try:
            from usearch.index import Index
        except ImportError as error:
            raise _missing("usearch") from error
        kind = {"float32": "f32", "float16": "f16"}[dtype]
        self.dtype = dtype
        self.index = Index(ndim=n_components, metric="ip", dtype=kind) if index is None else index

    def search(self, embeddings: np.ndarray, queries: np.ndarray, k: int) -> np.ndarray:
        """Return the numbers of k embeddings near every query."""
        found = self.index.search(queries.reshape(len(queries), -1), k)
        rows = np.asarray(found.keys).astype(np.intp).reshape(len(queries), -1)
        counts = np.asarray(getattr(found, "counts", rows.shape[1]))
        # A graph may have corners that a walk does not reach.
        few = np.flatnonzero(np.broadcast_to(counts, len(queries)) < k)
        if few.size == 0:
            return rows
        whole = np.empty((len(queries), k), dtype=np.intp)
        enough = np.setdiff1d(np.arange(len(queries)), few)
        whole[enough] = rows[enough] if enough.size else 0
        whole[few] = nearest(embeddings, queries[few], k)
        return whole

    def with_more(self, embeddings: np.ndarray, n_before: int) -> Self:
        """Return an index of all embeddings."""
        index = self.index.copy()
        index.add(
            np.arange(n_before, len(embeddings), dtype=np.uint64),
            np.ascontiguousarray(embeddings[n_before:]),
        )
        return type(self)(embeddings.shape[1], self.dtype, index)

    def __getstate__(self) -> dict[str, Any]:
        graph: Any = self.index.save()  # to memory, as no path is given
        return {"dtype": self.dtype, "graph": bytes(graph)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        from usearch.index import Index

        self.dtype = state["dtype"]
        self.index = Index.restore(state["graph"])


def make_index(name: str, embeddings: np.ndarray) -> Index:
    """Return an index of embeddings.

    Parameters
    ----------
    name : {"exact", "faiss", "usearch"}
        Which.
    embeddings : ndarray of shape (n, n_components)
        Of float32 or float16, finite.
    """
    if name == "exact":
        return ExactIndex()
    width = embeddings.shape[1]
    empty = FaissIndex(width) if name == "faiss" else UsearchIndex(width, embeddings.dtype.name)
    return empty.with_more(embeddings, 0)


def _missing(package: str) -> ImportError:
    return ImportError(
        f'index={package!r} needs {package}: pip install "sklearn-ape[index]", or pass '
        "index='exact'."
    )
