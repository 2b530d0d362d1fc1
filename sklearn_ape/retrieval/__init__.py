"""Search in a collection of pictures, by words or by pictures."""

from ._result import SearchResult
from ._retriever import CrossModalRetriever

__all__ = ["CrossModalRetriever", "SearchResult"]
