"""Search in a collection of images, by texts or by images."""

from ._collection import SearchResult
from ._retriever import CrossModalRetriever

__all__ = ["CrossModalRetriever", "SearchResult"]
